"""The study of reproducibility: a part is trained, measured and kept, and is not run again."""

import json
import re

import numpy as np
import pytest
import torch as t
from caches import HOOK, D
from scipy.optimize import linear_sum_assignment

from dictionary_learning_ext import load_dictionary
from dictionary_learning_ext.config.presets import preset
from experiments.reproducibility import decisions, page, parts, settings
from experiments.reproducibility.settings import CANDIDATES, CONFIRM, SAMPLED, TOP_K, Setting, arms
from experiments.reproducibility.study import STAGES

SMALL = Setting(
    cache="",
    hook=HOOK,
    activation_dim=D,
    dict_size=4 * D,
    k=4,
    steps=6,
    eval_tokens=256,
    eval_documents=2,
    dtype="float32",
)
SEEDS = (3, 4)


@pytest.fixture
def at(small_cache, tmp_path, monkeypatch):
    """Where the part's runs and rows go."""
    monkeypatch.setattr(parts, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(settings, "RUNS", small_cache)
    monkeypatch.setattr(settings, "BATCH", 128)
    return tmp_path / "raw.json"


def test_a_part_has_the_rows_of_its_arms_and_seeds(at):
    chosen = {TOP_K: {}, "noise and penalty": SAMPLED["noise 0.1, penalty 0.03"]}
    parts.run_part("confirm", "tiny", SMALL, chosen, SEEDS, at)
    content = json.loads(at.read_text())
    assert {(row["arm"], row["seed"]) for row in content["saes"]} == {
        (arm, seed) for arm in chosen for seed in SEEDS
    }
    (row,) = (row for row in content["pairs"] if row["arm"] == TOP_K)
    folders = [
        parts.seed_folder("confirm", "tiny", s) / parts.arm_folder_name(TOP_K) for s in SEEDS
    ]
    one, other = (
        t.nn.functional.normalize(
            load_dictionary(folder)[0].decoder.weight.detach().T, dim=1
        ).numpy()
        for folder in folders
    )
    cosines = np.abs(one @ other.T)
    rows, columns = linear_sum_assignment(cosines, maximize=True)
    assert row["pw_mcc"] == pytest.approx(cosines[rows, columns].mean(), abs=1e-5)
    assert row["less_null"] == pytest.approx(row["pw_mcc"] - row["null"])
    assert sum(row["matches"]) == SMALL.dict_size
    assert content["parts"]["confirm: tiny: 3, 4"]["minutes"] >= 0


def test_rows_that_are_there_are_kept_and_only_what_is_missing_is_trained(at, monkeypatch):
    parts.run_part("confirm", "tiny", SMALL, {TOP_K: {}}, SEEDS, at)
    before = json.loads(at.read_text())
    later = {TOP_K: {}, "penalty alone": {"penalty": 0.1}}
    parts.run_part("confirm", "tiny", SMALL, later, SEEDS, at)
    after = json.loads(at.read_text())
    assert after["pairs"][: len(before["pairs"])] == before["pairs"]
    assert [row["arm"] for row in after["pairs"]] == [TOP_K, "penalty alone"]

    monkeypatch.setattr(parts, "train_missing", lambda *_: pytest.fail("trained again"))
    parts.run_part("confirm", "tiny", SMALL, later, SEEDS, at)
    assert json.loads(at.read_text()) == after


def test_an_arm_trained_later_saw_the_same_batches(at):
    """A rival that is added to a part trains as it would have trained beside the others."""
    together = {TOP_K: {}, "penalty alone": {"penalty": 0.1}}
    parts.run_part("confirm", "together", SMALL, together, SEEDS, at)
    for arm, options in together.items():
        parts.run_part("confirm", "apart", SMALL, {arm: options}, SEEDS, at)
    for arm in together:
        one, other = (
            load_dictionary(parts.seed_folder("confirm", name, 3) / parts.arm_folder_name(arm))[0]
            for name in ("together", "apart")
        )
        for name, value in one.state_dict().items():
            assert t.equal(value, other.state_dict()[name]), (arm, name)


def test_every_candidate_is_an_sae_of_its_setting():
    saes = {name: settings.SEARCH.sae(options, 900) for name, options in CANDIDATES.items()}
    assert len(saes) <= 60
    assert len({json.dumps(vars(sae), default=str) for sae in saes.values()}) == len(saes)
    assert len({parts.arm_folder_name(name) for name in saes}) == len(saes)
    for name in SAMPLED:
        sae = saes[name]
        assert (sae.noise_on, sae.noise_to_signal) == ("selection", SAMPLED[name]["noise"])
        assert sae.noise_anneal_steps in (1000, 1600)
        assert sae.beta == SAMPLED[name].get("penalty", 0.0)
    assert saes[TOP_K].posterior == "point"
    assert not saes[TOP_K].rectify
    assert saes[TOP_K].beta == 0


def test_the_recommended_preset_is_what_was_chosen():
    chosen = decisions.chosen(parts.read())
    assert chosen is not None
    confirmed = next(iter(CONFIRM.values())).sae(SAMPLED[chosen], seed=0)
    config = preset("recommended")
    own = config.sae
    assert own.noise_anneal_steps == config.run.steps * 0.5
    assert confirmed.noise_anneal_steps == 4000 * 0.5
    for name in (
        "k",
        "dict_size",
        "posterior",
        "noise_on",
        "noise_to_signal",
        "beta",
        "kl_scope",
        "lr",
    ):
        assert getattr(own, name) == getattr(confirmed, name), name


def test_the_arms_take_the_chosen_setting_apart():
    names = list(CONFIRM)
    small, wide = CONFIRM[names[0]], CONFIRM[names[3]]
    found = arms("noise 0.2 until 80%, penalty 0.03", "BatchTopK", small)
    assert found == {
        TOP_K: {},
        "penalty alone": {"penalty": 0.03},
        "noise alone": {"noise": 0.2, "until": 0.8},
        "noise and penalty": {"noise": 0.2, "until": 0.8, "penalty": 0.03},
        "best rival": {"architecture": "batch_top_k"},
    }
    assert "best rival" not in arms("noise 0.1, penalty 0.03", "BatchTopK", wide)
    assert list(arms("noise 0.1, penalty 0", None, small)) == [TOP_K, "noise and penalty"]


def test_a_seed_is_the_saes_seed_and_the_order_of_its_data(at):
    run, sae = SMALL.run(at.parent, 7), SMALL.sae({"noise": 0.1, "penalty": 0.03}, 7)
    assert (run.data_seed, sae.seed) == (7, 7)
    assert run.model.startswith("/"), "the cache's, not the default"
    (outlier_free,) = {s.max_norm_multiple for name, s in CONFIRM.items() if "SmolLM2" in name}
    assert outlier_free == 10.0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["confirm", "--setting", "embeded"], "--setting 'embeded': expected the start of one of"),
        (["length"], "no setting is chosen: expected the rows of all candidates"),
    ],
)
def test_what_cannot_be_run_is_said(words, says, monkeypatch):
    if words[0] == "length":
        monkeypatch.setattr(parts, "read", lambda: {"parts": {}, "saes": [], "pairs": []})
    monkeypatch.setattr(parts, "run_part", lambda *_: pytest.fail("it ran"))
    with pytest.raises(SystemExit, match=re.escape(says)):
        STAGES.run(words)


def test_settings_differ_by_their_six_names():
    assert len(CONFIRM) == 6
    assert len({(s.cache, s.hook, s.dict_size, s.k) for s in CONFIRM.values()}) == 6


def test_the_page_says_what_has_not_run(at):
    parts.run_part("confirm", next(iter(CONFIRM)), SMALL, {TOP_K: {}}, SEEDS, at)
    shown = "\n".join(page.lines(json.loads(at.read_text())))
    assert "Chosen in the search: not yet" in shown
    assert f"### {next(iter(CONFIRM))}" in shown
