"""The study of whose features come back: its trainers, its settings, and what its rules choose."""

import copy

import pytest
import torch as t
from small_trainers import D, F, batch

from dictionary_learning_ext.config.run import RunConfig, TrainConfig
from dictionary_learning_ext.trainers.build import build_trainer
from experiments.returning import rules
from experiments.returning.arms import ARCHITECTURES, DOSES, FIRST, FROZEN, GATES

PLACES = ("blocks.2", "mlp_out")


def trained(arm, steps=5, k=4):
    config = TrainConfig(arm.sae(k, F, 0), RunConfig(steps=50)).resolved
    where = {"layer": 0, "device": "cpu", "name": "x"}
    with arm.in_place():
        trainer = build_trainer(config, energy=D, activation_dim=D, **where)
    start_FD = trainer.ae.decoder.weight.T.detach().clone()
    for step in range(steps):
        trainer.update(step, batch(step))
    return trainer.ae, start_FD


@pytest.mark.parametrize("arms", [FIRST, GATES, DOSES, ARCHITECTURES, FROZEN], ids=len)
def test_every_arm_has_settings_that_a_run_takes(arms):
    for name, arm in arms.items():
        assert (arm.sae(16, 512, 0).resolve(8000).start == "data") == ("data" in name)


def test_aligned_training_holds_the_product_at_1_and_a_frozen_decoder_stays():
    aligned, _ = trained(ARCHITECTURES["aligned"])
    product_F = (aligned.encoder.weight * aligned.decoder.weight.T).sum(1)
    t.testing.assert_close(product_F, t.ones(F))
    plain, _ = trained(FIRST["TopK"])
    assert ((plain.encoder.weight * plain.decoder.weight.T).sum(1) - 1).abs().max() > 1e-3
    frozen, start_FD = trained(FROZEN["frozen decoder"])
    assert t.equal(frozen.decoder.weight.T, start_FD)
    l2, _ = trained(ARCHITECTURES["L2"], steps=40)
    plain, _ = trained(FIRST["TopK"], steps=40)
    assert l2.encoder.weight.norm() < plain.encoder.weight.norm()


@pytest.fixture
def rows():
    """Where all is level, but that a start from the data brings back more."""
    level = {"fve": 0.9, "near_dead_0.1": 0.05, "loss_added": 0.1, "in_function_fve": 0.6}
    level["loss_added_range"] = (0.09, 0.11)
    places = {place: {arm: dict(level) for arm in FIRST} for place in PLACES}
    for arms in places.values():
        arms["vSAE" + rules.DATA]["in_function_fve"] = 0.65
    return places, {samples: dict.fromkeys(FIRST, 0.95) for samples in ("3.1M", "6.1M")}


def test_a_start_that_costs_nothing_becomes_the_default(rows):
    assert rules.start_fails(*rows) == []
    assert rules.preset(*rows) == "vSAE" + rules.DATA


@pytest.mark.parametrize(
    ("place", "arm", "name", "value", "fails"),
    [
        ("mlp_out", "TopK", "fve", 0.8994, "FVE, TopK, mlp_out"),
        ("mlp_out", "vSAE", "loss_added", 0.121, "loss added, vSAE, mlp_out"),
        ("blocks.2", "vSAE", "near_dead_0.1", 0.061, "near-dead, vSAE, blocks.2"),
        ("blocks.2", "vSAE", "in_function_fve", 0.579, "FVE of what comes back, blocks.2"),
        ("3.1M", "TopK", None, 0.939, "MCC, TopK, 3.1M"),
    ],
)
def test_each_condition_can_keep_the_random_start(place, arm, name, value, fails, rows):
    places, truth = copy.deepcopy(rows)
    if name is None:
        truth[place][arm + rules.DATA] = value
    else:
        places[place][arm + rules.DATA][name] = value
    assert fails in rules.start_fails(places, truth)
    assert rules.preset(places, truth) == "vSAE"


def test_a_shorter_noise_must_lead_by_a_hundredth(rows):
    places, truth = rows
    shorter = f"vSAE until 0.25{rules.DATA}"
    for arms in places.values():
        arms["vSAE" + rules.DATA]["in_function_fve"] = 0.605
        arms[shorter]["in_function_fve"] = 0.609
    assert rules.preset(places, truth) == "vSAE"
    places["mlp_out"][shorter] |= {"in_function_fve": 0.63, "fve": 0.8}
    assert rules.preset(places, truth) == shorter, "what fails at mlp_out alone stays"
    places["blocks.2"][shorter]["fve"] = 0.8
    assert rules.preset(places, truth) == "vSAE"


@pytest.mark.parametrize(
    ("ahead", "own", "measured", "highest", "answer"),
    [
        (0.019, {}, True, (), None),
        (0.021, {}, True, (), "yes"),
        (0.021, {}, False, (), "undecided"),
        (0.021, {}, True, ("L2",), "undecided"),
        (0.021, {"mlp_out": 0.8}, True, (), "yes"),
        (0.021, {"blocks.2": 0.8994}, False, ("L2",), "not at this rate"),
    ],
)
def test_another_architecture_is_recommended_by_the_rule(
    ahead, own, measured, highest, answer, rows
):
    places, truth = rows
    for place, arms in places.items():
        arms["L2"] = arms["vSAE"] | {"in_function_fve": 0.6 + ahead, "fve": own.get(place, 0.9)}
        del arms["vSAE" + rules.DATA]
    if measured:
        truth["6.1M"]["L2"] = 0.95
    answers = [
        line.split("|")[-2].strip()
        for line in rules.in_its_place(places, truth, highest, "TopK")
        if line.startswith("| L2")
    ]
    assert answers == ([] if answer is None else [answer])
    truth["6.1M"]["L2"] = 0.9
    assert "yes" not in str(rules.in_its_place(places, truth, highest, "TopK")), "its MCC fails"
