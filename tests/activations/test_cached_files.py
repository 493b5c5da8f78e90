"""Arrow files as `datasets` and SAELens write them, and as they read ours."""

import numpy as np
import pytest
import torch as t
from caches import HOOK, OTHER
from datasets import Array2D, Dataset, Features, Sequence, Value, load_from_disk

from dictionary_learning_ext.activations.cached_files import (
    FileReader,
    Part,
    contexts_in,
    cut,
    read_dataset_folder,
)
from dictionary_learning_ext.activations.stored_rows import activations_of
from dictionary_learning_ext.errors import ActivationsError

N, L, D = 50, 8, 6
pytestmark = pytest.mark.usefixtures("no_video")


@pytest.fixture
def theirs(tmp_path):
    """A data set as SAELens's runner saves it, in batches of 20 contexts, and its arrays."""
    x = np.random.default_rng(0).standard_normal((N, L, D)).astype(np.float32)
    ids = np.arange(N * L).reshape(N, L).astype(np.int32)
    features = Features(
        {HOOK: Array2D((L, D), "float32"), "token_ids": Sequence(Value("int32"), length=L)}
    )
    path = tmp_path / "theirs"
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "DEFAULT_MAX_BATCH_SIZE", 20)
        Dataset.from_dict({HOOK: x, "token_ids": ids}, features).save_to_disk(
            str(path), num_shards=1
        )
    return path, x, ids


def test_any_contexts_of_their_files_are_read_across_their_batches(theirs):
    folder, x, ids = theirs
    found = read_dataset_folder(folder)
    assert found.hooks == {HOOK: (L, D)}
    (path,) = found.files
    assert contexts_in(path, HOOK) == N
    reader = FileReader(HOOK)
    for start, stop in ((0, 50), (0, 1), (15, 45), (49, 50), (20, 40)):
        piece = reader.read(Part(path, start, stop))
        assert (piece.x_NLD == x[start:stop]).all()
        assert (piece.ids_NL == ids[start:stop]).all()
        copy = activations_of(piece)
        assert t.equal(copy, t.from_numpy(x[start:stop]))
        copy.zero_()  # of a copy


def test_a_whole_batch_is_a_view_of_the_file(small_cache):
    piece = FileReader(HOOK).read(Part(small_cache / "data-00000.arrow", 3, 9))
    assert not piece.x_NLD.flags.owndata
    assert not piece.x_NLD.flags.writeable


def test_each_hook_point_is_a_column(small_cache):
    rows = load_from_disk(str(small_cache)).with_format("numpy")[32:64]
    for hook in (HOOK, OTHER):
        piece = FileReader(hook).read(Part(small_cache / "data-00001.arrow", 0, 32))
        assert (piece.x_NLD == rows[hook]).all()
        assert (piece.ids_NL == rows["token_ids"]).all()


def test_datasets_reads_types_as_sae_lens_declares_them(small_cache):
    features = load_from_disk(str(small_cache)).features
    assert features[HOOK] == Array2D((32, 16), "float32")
    assert features["token_ids"] == Sequence(Value("int32"), length=32)


def test_a_part_is_cut_into_pieces_without_a_gap(tmp_path):
    assert [(piece.start, piece.stop) for piece in cut(Part(tmp_path, 3, 12), 4)] == [
        (3, 7),
        (7, 11),
        (11, 12),
    ]


@pytest.mark.parametrize("keep", [0, 100, 1000])
def test_a_damaged_file_is_named(keep, theirs):
    folder, *_ = theirs
    (path,) = read_dataset_folder(folder).files
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ActivationsError) as raised:
        FileReader(HOOK).read(Part(path, 0, N))
    assert str(raised.value).startswith(f"{path}: ")
    assert "restore it" in str(raised.value)


def test_a_data_set_without_activations_is_refused(tmp_path):
    Dataset.from_dict({"text": ["a"]}).save_to_disk(str(tmp_path / "x"))
    with pytest.raises(ActivationsError, match=r"without activations \(columns: text\)"):
        read_dataset_folder(tmp_path / "x")
    (tmp_path / "x" / "state.json").write_text("{")
    with pytest.raises(ActivationsError, match=r"state.json or dataset_info.json is damaged"):
        read_dataset_folder(tmp_path / "x")
    assert read_dataset_folder(tmp_path) is None
