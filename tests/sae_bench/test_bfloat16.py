"""A run in bfloat16 in SAE Bench."""

import pytest
import torch as t
from bench_saes import SMALL, F, K

from dictionary_learning_ext import RunConfig, SAEConfig, train

pytest.importorskip("sae_bench", reason="needs the extra: pip install -e '.[saebench]'")


def test_core_takes_a_run_in_bfloat16(tiny_lm_dir, text, tmp_path):
    from dictionary_learning_ext.sae_bench.runner import bench

    run = RunConfig(
        model=str(tiny_lm_dir),
        data=text,
        save_dir=str(tmp_path / "run"),
        dtype="bfloat16",
        steps=30,
        batch_size=64,
        n_ctxs=8,
        ctx_len=32,
        eval_tokens=0,
    )
    folders = train(run, {"sae": SAEConfig(dict_size=F, k=K, beta=0.1)})
    with t.enable_grad():
        outcome = bench(list(folders.values()), evals=["core"], **SMALL)
    outcome.check()
    (found,) = outcome.results.values()
    assert "core" in found
