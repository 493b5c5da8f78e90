"""The real SAELens reads our caches, and its runner's caches are read by us."""

import numpy as np
import pytest
import torch as t
from caches import CTX_LEN, HOOK, OTHER, D, write_small
from datasets import Dataset, load_from_disk

from dictionary_learning_ext.activations.hook_points import find_hook
from dictionary_learning_ext.activations.positions import PositionRule
from dictionary_learning_ext.activations.stored import UNKNOWN, open_stored
from dictionary_learning_ext.activations.stored_rows import StoredRows
from dictionary_learning_ext.cli import main

pytest.importorskip("sae_lens", reason="needs the extra: pip install -e '.[sae-bench]'")

from sae_lens import cache_activations_runner  # pyright: ignore[reportMissingImports]
from sae_lens.config import CacheActivationsRunnerConfig  # pyright: ignore[reportMissingImports]
from sae_lens.training.activations_store import (  # pyright: ignore[reportMissingImports]
    ActivationsStore,
)

from dictionary_learning_ext.sae_bench.lens_model import hooked_transformer

pytestmark = [pytest.mark.extra, pytest.mark.usefixtures("no_video")]


def store_of(folder, hook, **options):
    """SAELens's reader of a cache."""
    given = {
        "model": t.nn.Module(),
        "dataset": None,
        "streaming": False,
        "hook_name": hook,
        "hook_head_index": None,
        "context_size": CTX_LEN,
        "d_in": D,
        "n_batches_in_buffer": 4,
        "total_training_tokens": 10**6,
        "store_batch_size_prompts": 16,
        "train_batch_size_tokens": 64,
        "prepend_bos": False,
        "normalize_activations": "none",
        "device": t.device("cpu"),
        "dtype": "float32",
        "cached_activations_path": str(folder),
    }
    return ActivationsStore(**given | options)


@pytest.mark.parametrize("hook", [HOOK, OTHER])
def test_sae_lens_reads_each_hook_point_of_ours(hook, small_cache):
    rows = load_from_disk(str(small_cache)).with_format("torch")[:16]
    activations, token_ids = store_of(small_cache, hook).get_raw_llm_batch()
    assert t.equal(activations, rows[hook].reshape(-1, D))
    assert t.equal(token_ids, rows["token_ids"].reshape(-1))


def test_sae_lens_trains_on_what_is_in_our_float16(cached_run, tmp_path):
    write_small(tmp_path / "cache", cached_run, dtype="float16")
    rows = load_from_disk(str(tmp_path / "cache")).with_format("torch")[HOOK][:]
    store = store_of(tmp_path / "cache", HOOK)
    batch = next(iter(store.get_data_loader()))
    assert batch.shape == (64, D)
    assert batch.dtype == t.float32
    known = {tuple(row) for row in rows.reshape(-1, D).float().tolist()}
    assert {tuple(row) for row in batch.tolist()} <= known


@pytest.fixture
def theirs(tiny_lm, tmp_path, monkeypatch):
    """A cache of SAELens's runner, and its rows."""
    lens = hooked_transformer(tiny_lm, find_hook(tiny_lm, HOOK), "tiny")
    monkeypatch.setattr(cache_activations_runner, "load_model", lambda **_: lens)
    ids = np.random.default_rng(0).integers(2, 300, (100, CTX_LEN)).tolist()
    config = CacheActivationsRunnerConfig(
        dataset_path="ours",
        model_name="tiny",
        model_batch_size=4,
        hook_name=HOOK,
        d_in=D,
        training_tokens=80 * CTX_LEN,
        context_size=CTX_LEN,
        new_cached_activations_path=str(tmp_path / "theirs"),
        shuffle=False,
        device="cpu",
        prepend_bos=False,
        buffer_size_gb=1e-4,
    )
    runner = cache_activations_runner.CacheActivationsRunner(
        config, override_dataset=Dataset.from_dict({"tokens": ids})
    )
    return tmp_path / "theirs", runner.run().with_format("torch")[:]


def test_we_read_the_cache_of_sae_lens(theirs):
    folder, rows = theirs
    stored = open_stored(folder)
    assert stored.manifest is None
    n = len(rows["token_ids"])
    assert stored.held_out_tokens == n // 20 * CTX_LEN
    assert stored.settings == {
        "activations": str(folder),
        "model": UNKNOWN,
        "data": str(folder),
        "hook": HOOK,
        "ctx_len": CTX_LEN,
    }
    sizes = {"size": 64, "out_batch_size": CTX_LEN}
    source = StoredRows(stored, HOOK, PositionRule(), seed=None, **sizes)
    for context in range(n - n // 20):
        assert t.equal(next(source), rows[HOOK][context])


def test_we_train_on_the_cache_of_sae_lens(theirs, tmp_path):
    folder, _ = theirs
    flags = ["--steps=20", "--batch-size=64", "--dict-size=32", "--k=4", "--n-ctxs=16"]
    flags += ["--eval-tokens=100", f"--save-dir={tmp_path / 'run'}"]
    assert main(["train", f"--activations={folder}", *flags]) == 0
    assert (tmp_path / "run" / "metrics.json").is_file()
