"""What a folder of activations is, whether it is what a run asks for, and its contexts."""

import json
import os
import re
from dataclasses import replace

import numpy as np
import pytest
import torch as t
from caches import HOOK, OTHER, write_small
from datasets import Array2D, Dataset, Features, Sequence, Value, load_from_disk
from safetensors.torch import save_file
from texts import error_of

from dictionary_learning_ext.activations.positions import PositionRule
from dictionary_learning_ext.activations.stored import UNKNOWN, Part, open_stored, read_part
from dictionary_learning_ext.activations.stored_rows import pieces_of, read_contexts
from dictionary_learning_ext.config.run import RunConfig
from dictionary_learning_ext.errors import ActivationsError
from dictionary_learning_ext.run_folder import files

N, L, D = 50, 8, 6
pytestmark = pytest.mark.usefixtures("no_video")


# A cache of `vsae cache`.


def test_a_cache_gives_the_settings_of_a_run(small_cache, cached_run):
    found = open_stored(small_cache)
    run = replace(RunConfig(hook=HOOK), **found.settings)
    names = ("model", "data", "text_packing", "ctx_len")
    assert [getattr(run, name) for name in names] == [getattr(cached_run, name) for name in names]
    assert run.activations == str(small_cache)
    assert run.hook == HOOK, "one of two"
    found.require_fit(run, [run.hook])
    assert [part.stop for part in found.parts["train"]] == [32, 32, 32, 29]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hook": "blocks.2.hook_resid_post"}, f"{HOOK}, {OTHER}"),
        ({"model": "embedded"}, "model='embedded': "),
        ({"data": __file__}, f"data={__file__!r}: "),
        ({"ctx_len": 64}, "ctx_len=64: "),
        ({"text_packing": "truncate"}, "text_packing='truncate': "),
    ],
)  # fmt: skip
def test_what_differs_is_refused_with_the_difference(changes, said, small_cache):
    found = open_stored(small_cache)
    run = replace(replace(RunConfig(hook=HOOK), **found.settings), **changes)
    message = error_of(lambda: found.require_fit(run, [run.hook]), ActivationsError)
    assert said in message
    assert str(small_cache) in message


@pytest.mark.parametrize("held_out", [True, False])
def test_a_cache_without_its_manifest_is_not_read_as_another_librarys(
    held_out, cached_run, tmp_path
):
    """Its held-out text would be other text."""
    write_small(tmp_path, cached_run if held_out else replace(cached_run, eval_tokens=0), 1000)
    (tmp_path / "manifest.json").unlink()
    assert "manifest.json" in error_of(lambda: open_stored(tmp_path), ActivationsError)


def test_a_cache_is_read_as_datasets_reads_it(small_cache):
    features = load_from_disk(str(small_cache)).features
    assert features[HOOK] == Array2D((32, 16), "float32")
    assert features["token_ids"] == Sequence(Value("int32"), length=32)
    rows = load_from_disk(str(small_cache)).with_format("numpy")[32:64]
    for hook in (HOOK, OTHER):
        piece = read_part(Part(small_cache / "data-00001.arrow", 0, 0, 32), hook)
        assert (piece.x_NLD == rows[hook]).all()
        assert (piece.ids_NL == rows["token_ids"]).all()


def test_what_is_read_is_a_view_of_the_file(small_cache):
    piece = read_part(Part(small_cache / "data-00000.arrow", 0, 3, 9), HOOK)
    assert not piece.x_NLD.flags.owndata
    assert not piece.x_NLD.flags.writeable


# A data set that `datasets` saved, as SAELens's runner does.


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    """One in batches of 20 contexts, its file, and its arrays."""
    x = np.random.default_rng(0).standard_normal((N, L, D)).astype(np.float32)
    ids = np.arange(N * L).reshape(N, L).astype(np.int32)
    features = {HOOK: Array2D((L, D), "float32"), "token_ids": Sequence(Value("int32"), length=L)}
    monkeypatch.setattr("datasets.config.DEFAULT_MAX_BATCH_SIZE", 20)
    rows = Dataset.from_dict({HOOK: x, "token_ids": ids}, Features(features))
    rows.save_to_disk(str(tmp_path / "theirs"), num_shards=1)
    (path,) = (tmp_path / "theirs").glob("*.arrow")
    return path, x, ids


def test_their_rows_are_read_in_order_and_the_last_5_percent_are_held_out(theirs):
    path, x, ids = theirs
    found = open_stored(path.parent)
    assert (found.ctx_len, found.widths) == (L, {HOOK: D})
    ends = [(0, 20), (0, 20), (0, 8)]
    assert found.parts["train"] == tuple(Part(path, n, *end) for n, end in enumerate(ends))
    assert found.parts["heldout"] == (Part(path, 2, 8, 10),)
    parts = pieces_of((*found.parts["train"], *found.parts["heldout"]), 2000)
    pieces = [read_contexts(part, HOOK, PositionRule()) for part in parts]
    assert all(len(piece.x_BLD) <= 2 for piece in pieces)
    assert t.equal(t.cat([piece.x_BLD for piece in pieces]), t.from_numpy(x))
    assert (t.cat([piece.input_ids_BL for piece in pieces]).numpy() == ids).all()
    pieces[0].x_BLD.zero_()  # of a copy


@pytest.mark.parametrize("keep", [0, 100, 1000])
def test_a_damaged_file_is_named(keep, theirs):
    path, *_ = theirs
    path.write_bytes(path.read_bytes()[:keep])
    message = error_of(lambda: read_part(Part(path, 1, 0, 20), HOOK), ActivationsError)
    assert str(path) in message
    error_of(lambda: open_stored(path.parent), ActivationsError)


def test_a_data_set_that_is_no_cache_is_refused(tmp_path):
    Dataset.from_dict({"text": ["a"]}).save_to_disk(str(tmp_path / "x"))
    with pytest.raises(ActivationsError, match="text"):
        open_stored(tmp_path / "x")
    for content in ("{", "[]", '{"_data_files": [{"filename": 3}]}'):
        (tmp_path / "x" / "state.json").write_text(content)
        with pytest.raises(ActivationsError, match=re.escape(str(tmp_path / "x"))):
            open_stored(tmp_path / "x")


# A user's own rows.


def rows(n, width=D, dtype=np.float32):
    return np.arange(n * width).reshape(n, width).astype(dtype)


@pytest.fixture
def own(tmp_path):
    """60 rows in two files."""
    folder = tmp_path / "own"
    folder.mkdir()
    np.save(folder / "b.npy", rows(10))
    np.save(folder / "a.npy", rows(50))
    return folder


def test_own_activations_are_rows_and_the_last_5_percent_are_held_out(own):
    (own / "notes.txt").write_text("")
    found = open_stored(own)
    assert found.held_out_tokens == 3
    assert found.parts["train"] == (Part(own / "a.npy", 0, 0, 50), Part(own / "b.npy", 0, 0, 7))
    assert found.parts["heldout"] == (Part(own / "b.npy", 0, 7, 10),)
    unknown = {"model": UNKNOWN, "hook": UNKNOWN, "data": str(own)}
    assert found.settings == unknown | {"activations": str(own)}
    assert found.width("blocks.12.hook_mlp_out") == D, "under any name"


@pytest.mark.parametrize("dtype", [t.float32, t.float16, t.bfloat16])
def test_rows_of_a_safetensors_file_are_its_tensors(dtype, tmp_path):
    tensors = {"b": t.randn(30, D).to(dtype), "a": t.randn(50, D).to(dtype)}
    path = tmp_path / "x.safetensors"
    save_file(tensors, path, {"made": "here"})
    parts = open_stored(tmp_path).parts
    assert parts["heldout"] == (Part(path, 1, 26, 30),)
    pieces = (read_contexts(part, UNKNOWN, PositionRule()) for part in parts["train"])
    found = t.cat([piece.x_BLD[:, 0] for piece in pieces])
    assert found.dtype == dtype
    assert t.equal(found, t.cat([tensors["a"], tensors["b"]])[:76]), "the library sorts them"


def test_tensors_of_a_safetensors_file_are_read_as_they_lie_in_it(tmp_path):
    """Another library's writer need not sort them by name."""
    b_ND, a_ND = rows(3), rows(2)
    ends = {"b": (0, b_ND.nbytes), "a": (b_ND.nbytes, b_ND.nbytes + a_ND.nbytes)}
    entries = {
        name: {"dtype": "F32", "shape": [len(x_ND), D], "data_offsets": ends[name]}
        for name, x_ND in {"a": a_ND, "b": b_ND}.items()
    }
    header = json.dumps(entries).encode()
    content = len(header).to_bytes(8, "little") + header + b_ND.tobytes() + a_ND.tobytes()
    (tmp_path / "x.safetensors").write_bytes(content)
    for n, x_ND in enumerate((b_ND, a_ND)):
        piece = read_part(Part(tmp_path / "x.safetensors", n, 0, len(x_ND)), UNKNOWN)
        assert np.array_equal(piece.x_NLD[:, 0], x_ND)


def test_the_digest_of_own_activations_follows_their_sizes_and_values(own):
    before = open_stored(own).digest
    hashed = files._sha256_of.cache_info().misses
    assert open_stored(own).digest == before
    assert files._sha256_of.cache_info().misses == hashed, "not hashed again"
    np.save(own / "b.npy", rows(11))
    longer = open_stored(own).digest
    np.save(own / "b.npy", rows(10) + 1)
    os.utime(own / "b.npy", (0, 0))  # a file system's clock may be slower than this test
    assert len({before, longer, open_stored(own).digest}) == 3


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (rows(3)[0], "float32 of shape (6,)"),
        (rows(8).reshape(2, 4, 6), "float32 of shape (2, 4, 6)"),
        (rows(3, dtype=np.float64), "float64 of shape (3, 6)"),
        (rows(3, dtype=np.uint16), "uint16 of shape (3, 6)"),
        (np.array([{}]), ""),
        (b"1 2 3 4 5 6", ""),
    ],
)
def test_what_is_no_array_of_rows_is_refused(content, said, tmp_path):
    path = tmp_path / "a.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content, allow_pickle=True)
    message = error_of(lambda: open_stored(tmp_path), ActivationsError)
    assert str(path) in message
    assert said in message


@pytest.mark.parametrize("keep", [0, 4, 20, -3])
def test_a_truncated_file_is_refused(keep, tmp_path):
    np.save(tmp_path / "x.npy", rows(4))
    save_file({"x": t.ones(4, D)}, tmp_path / "x.safetensors")
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ActivationsError, match=r"x\.npy"):
        open_stored(tmp_path)
    (tmp_path / "x.npy").unlink()
    with pytest.raises(ActivationsError, match=r"x\.safetensors"):
        open_stored(tmp_path)


def test_a_file_that_is_replaced_is_read_anew(own):
    part = Part(own / "a.npy", 0, 0, 50)
    read_part(part, UNKNOWN)
    np.save(own / "new.npy", rows(60) + 1)
    (own / "new.npy").replace(own / "a.npy")
    assert (read_part(part, UNKNOWN).x_NLD[:, 0] == rows(50) + 1).all()


def test_files_of_several_dtypes_are_refused_with_their_names(tmp_path):
    save_file({"x": t.ones(4, D)}, tmp_path / "a.safetensors")
    save_file({"x": t.ones(4, D, dtype=t.bfloat16)}, tmp_path / "b.safetensors")
    message = error_of(lambda: open_stored(tmp_path), ActivationsError)
    assert all(dtype in message for dtype in ("(float32)", "(bfloat16)"))


def test_a_file_without_tensors_is_refused(tmp_path):
    save_file({}, tmp_path / "a.safetensors")
    said = error_of(lambda: open_stored(tmp_path), ActivationsError)
    assert str(tmp_path / "a.safetensors") in said


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_rows_are_refused(n, tmp_path):
    save_file({"x": t.ones(n, D)}, tmp_path / "a.safetensors")
    assert str(tmp_path) in error_of(lambda: open_stored(tmp_path), ActivationsError)


def test_what_holds_no_activations_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    for folder in (tmp_path / "nowhere", tmp_path / "thesis.tex", tmp_path):
        said = error_of(lambda folder=folder: open_stored(folder), ActivationsError)
        assert f"activations={str(folder)!r}" in said
        assert all(each in said for each in ("`vsae cache`", ".npy", ".safetensors"))
