"""SAE Bench with equally many features in use, and its figures, on small SAEs."""

import pytest
import torch as t
from bench_saes import PLACE, SMALL, D, F, K

from dictionary_learning_ext import RunConfig, SAEConfig, VariationalTopKAutoEncoder, train

pytest.importorskip("sae_bench", reason="needs the extra: pip install -e '.[saebench]'")

from dictionary_learning_ext.sae_bench.adapter import BenchSAE
from experiments import size_matched
from experiments.better_vsae.bench_figures import write_figures


def test_a_mask_leaves_the_most_used_features():
    mask_F = size_matched.most_used([5, 0, 9, 7], 2)
    assert mask_F.tolist() == [False, False, True, True]
    sae = BenchSAE(VariationalTopKAutoEncoder(D, F, K), **PLACE)
    mask_F = t.arange(F) < F // 2
    x = t.randn(50, D)
    f, whole = size_matched.MaskedSAE(sae, mask_F).encode(x), sae.encode(x)
    assert t.equal(f[:, : F // 2], whole[:, : F // 2])
    assert not f[:, F // 2 :].any()
    assert whole[:, F // 2 :].any()


def test_the_sae_with_more_features_in_use_is_measured_with_as_many(tiny_lm_dir, text, tmp_path):
    run = RunConfig(
        model=str(tiny_lm_dir),
        data=text,
        save_dir=str(tmp_path),
        steps=60,
        batch_size=64,
        n_ctxs=8,
        ctx_len=32,
        eval_tokens=0,
    )
    saes = {
        f"F{size}": SAEConfig(architecture="top_k", dict_size=size, k=K) for size in (F, F // 2)
    }
    folders = list(train(run, saes).values())
    evals = ("core", "scr", "tpp")
    outcome, controls = size_matched.bench_size_matched(folders, evals, floor=True, **SMALL)
    assert outcome.failures == {}
    used = {name: size_matched.in_use(outcome.results[name]["core"]) for name in saes}
    fewest = used[f"F{F // 2}"]
    assert fewest < used[f"F{F}"]
    assert controls == {f"F{F}": f"F{F}_top{fewest}"}
    masked = outcome.results[controls[f"F{F}"]]
    assert set(masked) == {"scr", "tpp"}
    for name, found in masked.items():
        own = outcome.results[f"F{F}"][name]
        assert found["eval_config"] == own["eval_config"]
    assert list(outcome.results)[-1] == controls[f"F{F}"]

    write_figures(outcome, controls.values(), tmp_path / "figures")
    sizes = [path.stat().st_size for path in (tmp_path / "figures").iterdir()]
    assert len(sizes) == 3
    assert min(sizes) > 10_000
