"""The study of threshold SAEs: its stages on a tiny cache, the choice of the margin, and what it decides."""

import json
from dataclasses import replace

import numpy as np
import pytest
from caches import HOOK, D

from experiments.reproducibility import parts, settings
from experiments.reproducibility.settings import Setting
from experiments.return_score import study, threshold, threshold_page
from experiments.return_score.candidates import OWN_MARGIN
from experiments.return_score.fitting import Labelled
from experiments.return_score.settings import RECOMMENDED

F = 4 * D
SMALL = Setting(
    *("", HOOK, D),
    dict_size=F,
    k=4,
    steps=6,
    batch=128,
    eval_tokens=256,
    eval_documents=2,
    dtype="float32",
)


def planted(arm, seed, strength, **more):
    """An SAE whose signals tell what returns, each as well as its strength says."""
    generator = np.random.default_rng(seed)
    returns_SF = generator.random((3, F)) < 0.5
    noise = {name: generator.normal(size=F) for name in strength}
    signals = {n: s * returns_SF.mean(0) + noise[n] for n, s in strength.items()}
    return Labelled(arm, seed, signals | more, returns_SF)


@pytest.fixture
def small(small_cache, tmp_path, monkeypatch):
    """The study on a tiny model, with one setting."""
    monkeypatch.setattr(parts, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(settings, "RUNS", small_cache)
    monkeypatch.setattr(threshold, "RAW", tmp_path / "raw.json")
    monkeypatch.setattr(threshold, "FITTED", tmp_path / "fit.npz")
    monkeypatch.setattr(threshold, "CONFIRM", {threshold.FITTED_AT: SMALL})
    monkeypatch.setattr(threshold, "TOKENS", 256)
    monkeypatch.setattr(threshold, "TESTS", threshold.TESTS[:1])
    strength = dict.fromkeys(("firing_rate", "error_share", "shape", "crowding", "margin"), 1.0)
    old = [
        planted(arm, seed, strength)
        for arm in ("TopK", "Probabilistic TopK", RECOMMENDED)
        for seed in threshold.FIT_SEEDS
    ]
    study.save(old, tmp_path / "first.npz")
    monkeypatch.setattr(study, "FITTED", tmp_path / "first.npz")
    return tmp_path / "raw.json"


def run(*words):
    arguments = threshold.STAGES.parse(words)
    threshold.STAGES.measure[words[0]](arguments)


def test_rows_land_one_by_one_and_are_not_measured_again(small, monkeypatch):
    monkeypatch.setattr(threshold, "RETURNING", (0.6,))  # about half, after six steps
    with pytest.raises(SystemExit, match="threshold fit"):
        run("test")
    run("fit")
    fit = json.loads(small.read_text())["fit"]
    assert set(fit["alone"]) == set(threshold.ALL)
    assert OWN_MARGIN not in fit["alone"]["JumpReLU"]
    run("test", "--arm", "JumpReLU")
    content = json.loads(small.read_text())
    assert [row["arm"] for row in content["tests"]] == 2 * ["JumpReLU"]
    for row in content["tests"]:
        for label in ("direction", "function"):
            assert {*threshold_page.SCORES, *fit["alone"]["JumpReLU"]} <= row["auc"][label].keys()
        assert row["l0"] > 0
    run("test", "--arm", "Matryoshka")
    after = json.loads(small.read_text())
    assert after["tests"][:2] == content["tests"]
    assert len(after["tests"]) == 4
    run("test", "--arm", "JumpReLU")
    assert json.loads(small.read_text()) == after
    page = "\n".join(threshold_page.tables(after))
    assert f"{threshold.FITTED_AT}: Matryoshka" in page


def test_a_jumprelu_aims_at_the_k_of_the_others():
    sae = threshold.config_of(SMALL, threshold.NEW["JumpReLU"], 7)
    assert (sae.target_l0, sae.dict_size, sae.seed, sae.lr) == (4.0, F, 7, 1e-3)
    assert threshold.config_of(SMALL, threshold.NEW["Matryoshka"], 7).k == 4


@pytest.mark.parametrize(
    ("own", "expected"), [(3.0, OWN_MARGIN), (-3.0, OWN_MARGIN), (0.0, "margin")]
)
def test_the_margin_is_the_one_that_tells_more_by_itself(own, expected):
    strength = {"margin": 1.0, OWN_MARGIN: own}
    saes = [planted(arm, seed, strength) for arm in ("JumpReLU", "BatchTopK") for seed in range(2)]
    saes += [planted("TopK", seed, {"margin": 9.0}) for seed in range(2)]  # has but one
    assert threshold.choose_margin(saes)[0] == expected
    signals = threshold.with_margin(saes[0].signals, expected)
    assert set(signals) == {"margin"}
    np.testing.assert_array_equal(signals["margin"], saes[0].signals[expected])
    np.testing.assert_array_equal(
        threshold.with_margin(saes[-1].signals, expected)["margin"], saes[-1].signals["margin"]
    )


def test_the_one_signal_has_one_sign_for_all():
    saes = [
        planted("a", 0, {"x": 9.0, "y": 2.0, "z": -4.0}),
        planted("b", 1, {"x": -9.0, "y": 2.0, "z": -4.0}),
    ]
    name, sign, value = threshold.one_signal(saes, ["x", "y", "z"])
    assert (name, sign) == ("z", -1)
    assert value > 0.7


@pytest.mark.parametrize(
    ("one", "signal", "expected"),
    [
        ((0.74, 0.84), (0.5, 0.5), (True, False)),
        ((0.73, 0.82), (0.5, 0.5), (False, False)),  # 0.015 more in the mean
        ((0.67, 0.95), (0.5, 0.5), (False, False)),  # worse in one by 0.03
        ((0.60, 0.60), (0.69, 0.79), (False, True)),
        ((0.74, 0.84), (0.69, 0.90), (True, False)),  # 0.05 below the fit that stays
    ],
)
def test_what_is_replaced(one, signal, expected):
    keys = [("s", "a"), ("s", "b")]
    today = (0.70, 0.81)
    rows = [
        {
            "setting": key[0],
            "arm": key[1],
            "auc": {"direction": {"today": x, "one fit": y, "one signal": z}},
        }
        for key, x, y, z in zip(keys, today, one, signal, strict=True)
    ]
    assert threshold_page.decision({"fit": {}, "tests": rows}) == expected


def test_settings_and_seeds_are_none_of_the_fit():
    for each in threshold.TESTS:
        assert not set(each.seeds) & set(threshold.FIT_SEEDS)
        assert each.setting in settings.CONFIRM
        assert set(each.arms) <= set(threshold.ALL)
    assert replace(threshold.TESTS[0], seeds=(1, 2)).arms == threshold.ALL
