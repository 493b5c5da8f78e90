"""The study of reproducibility: a part is trained, measured and kept, and is not run again."""

import json

import numpy as np
import pytest
from caches import HOOK, D
from scipy.optimize import linear_sum_assignment

from dictionary_learning_ext import RunConfig, SAEConfig, train
from experiments.reproducibility import page, parts, settings
from experiments.reproducibility.settings import BOTH, SAMPLED, TOP_K, Setting
from experiments.trained_saes import directions_of

SMALL = Setting(
    cache="",
    hook=HOOK,
    activation_dim=D,
    dict_size=4 * D,
    k=4,
    steps=6,
    batch=128,
    eval_tokens=256,
    eval_documents=2,
    dtype="float32",
)
SEEDS = (3, 4)
ARMS = {TOP_K: {}, BOTH: SAMPLED["noise 0.1, penalty 0.03"]}


@pytest.fixture
def at(small_cache, tmp_path, monkeypatch):
    """Where the part's runs and rows go."""
    monkeypatch.setattr(parts, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(settings, "RUNS", small_cache)
    return tmp_path / "raw.json"


def directions(name, arm):
    folders = [parts.seed_folder("confirm", name, s) / parts.arm_folder_name(arm) for s in SEEDS]
    return [directions_of(folder) for folder in folders]


@pytest.mark.slow
def test_a_part_has_rows_that_are_kept_and_an_arm_trained_later_saw_the_same_batches(at):
    parts.run_part("confirm", "together", SMALL, ARMS, SEEDS, at)
    content = json.loads(at.read_text())
    assert {(r["arm"], r["seed"]) for r in content["saes"]} == {(a, s) for a in ARMS for s in SEEDS}
    (row,) = (row for row in content["pairs"] if row["arm"] == TOP_K)
    one, other = directions("together", TOP_K)
    cosines = np.abs(one @ other.T)
    matched = cosines[linear_sum_assignment(cosines, maximize=True)]
    assert row["pw_mcc"] == pytest.approx(matched.mean(), abs=1e-5)
    assert row["less_null"] == pytest.approx(row["pw_mcc"] - row["null"])
    assert sum(row["matches"]) == SMALL.dict_size

    for arm, options in ARMS.items():
        parts.run_part("confirm", "apart", SMALL, {arm: options}, SEEDS, at)
        for one, other in zip(directions("apart", arm), directions("together", arm), strict=True):
            assert np.array_equal(one, other)
    parts.run_part("confirm", "together", SMALL, ARMS, SEEDS, at)
    after = json.loads(at.read_text())
    assert after["pairs"][:2] == content["pairs"]
    assert len(after["pairs"]) == 4, "nothing was measured again"


def test_an_accuracy_of_probes_gets_to_its_own_row(at, monkeypatch):
    def by_seed(folders):
        """While it measures, another stage adds a row."""
        content = json.loads(at.read_text())
        content["saes"].insert(0, content["saes"][0] | {"seed": 1})
        at.write_text(json.dumps(content))
        return [int(folder.parent.name) for folder in folders]

    parts.run_part("confirm", "small", SMALL, ARMS, SEEDS, at)
    monkeypatch.setattr(parts, "accuracies", by_seed)
    parts.probe_setting("small", at)
    found = [(row["seed"], row.get(parts.PROBES)) for row in json.loads(at.read_text())["saes"]]
    assert found == [(1, None), *[(seed, seed) for seed in SEEDS for _ in ARMS]]


def test_the_share_above_a_threshold_is_what_was_measured():
    pairs = parts.read()["pairs"]
    assert len(pairs) > 100
    for row in pairs:
        for least in (0.7, 0.9):
            share = page.share_above(row["matches"], least)
            assert share == pytest.approx(row[f"returning_{least:g}"], abs=1e-9), row["part"]


def test_near_dead_features_bound_what_returns_of_the_others():
    """Of 10 features 4 return and 2 are near-dead: of the 8 others 2 to 4 do."""
    assert page.among_living(0.4, 0.2) == pytest.approx((2 / 8, 4 / 8))
    assert page.among_living(0.1, 0.2) == pytest.approx((0.0, 1 / 8))


def test_sae_bench_measures_each_folder(tiny_lm_dir, text, tmp_path, monkeypatch):
    """In the order of the folders, and as SAE Bench's own files have it."""
    pytest.importorskip("sae_bench", reason="needs the extra: pip install -e '.[saebench]'")
    monkeypatch.setattr(parts, "BENCH_SEEDS", 2)
    shared = {"architecture": "top_k", "dict_size": 64, "k": 4}
    run = RunConfig(
        model=str(tiny_lm_dir),
        data=text,
        save_dir=str(tmp_path),
        steps=30,
        batch_size=64,
        n_ctxs=8,
        ctx_len=32,
        eval_tokens=0,
    )
    saes = {str(seed): SAEConfig(seed=seed, **shared) for seed in SEEDS}
    folders = [*train(run, saes).values()][::-1]  # not in alphabetical order
    found = parts.accuracies(folders, "119_us_state_TX,118_us_state_CA")
    for folder, accuracy in zip(folders, found, strict=True):
        values = []
        for path in folder.rglob("*_eval_results.json"):
            metrics = json.loads(path.read_text())["eval_result_metrics"]["sae"]
            values += [metrics[f"sae_top_{k}_test_accuracy"] for k in (1, 2, 5)]
        assert len(values) == 6
        assert accuracy == pytest.approx(sum(values) / 6)
    assert len(set(found)) > 1, "the order is tested"
