"""The goal of search_and_confirm.py: the rule that picks, and what the paired tests decide."""

import pytest

from experiments.better_vsae import success_criteria


def searched(model, **metrics):
    usual = {"fve": 0.9, "near_dead_0.1": 0.1, "near_dead_0.5": 0.4, "agreement": 0.5}
    row = {"stage": "search", "model": model, "size": "a", "noise_to_signal": 0.01}
    return row | usual | metrics


def test_the_pick_is_sampled_reconstructs_and_gains_most():
    rows = [
        searched("TopK", noise_to_signal=0.0),
        searched("point", noise_to_signal=0.0, **{"near_dead_0.5": 0.0}),
        searched("noisy", fve=0.89, **{"near_dead_0.5": 0.1}),
        searched("faint", noise_to_signal=0.009, **{"near_dead_0.5": 0.1}),
        searched("good", **{"near_dead_0.5": 0.3}),
        searched("fair", **{"near_dead_0.5": 0.35}),
        searched("elsewhere", size="b", **{"near_dead_0.5": 0.0}),
    ]
    assert success_criteria.pick(rows, "a") == "good"


def confirmed(partner=lambda seed: seed + 8, **metrics):
    """Rows of a confirmation, each metric given for TopK, point and sampled, drifting over seeds."""
    return [
        {"model": model, "seed": seed, "partner": partner(seed)}
        | {n: values[i] + 0.001 * seed for n, values in metrics.items()}
        for i, model in enumerate(("TopK", "point", "sampled"))
        for seed in success_criteria.CONFIRM_SEEDS
    ]


GOOD = {
    "fve": (0.9, 0.9, 0.898),
    "near_dead_0.1": (0.3, 0.2, 0.1),
    "near_dead_0.5": (0.6, 0.5, 0.4),
    "agreement": (0.3, 0.4, 0.5),
    **dict.fromkeys(("scr", "scr_matched", "tpp"), (0.2, 0.2, 0.2)),
}


def judge(**metrics):
    return success_criteria.verdicts(confirmed(**GOOD | metrics))


def test_better_is_better_than_both_and_less_of_what_is_bad():
    found = judge(agreement=(0.3, 0.5, 0.4))
    floor = 2**-8
    assert found["near_dead_0.1"]["better"] == floor
    assert found["near_dead_0.1"]["corrected"] == pytest.approx(6 * floor), "Holm, six measures"
    assert found["agreement"]["no_worse"] == floor
    assert found["agreement"]["better"] == 1, "point is better"
    assert found["fve"]["no_worse"] == floor, "0.002 is within its margin"
    assert "corrected" not in found["fve"]


def test_the_goal_wants_two_families_that_are_better_and_nothing_worse():
    reached = judge()
    assert success_criteria.is_reached(reached)
    one_family = judge(agreement=(0.3, 0.5, 0.4))
    assert success_criteria.is_reached(one_family) is False, (
        "two thresholds of near-dead are one family"
    )
    lost = judge(fve=(0.9, 0.9, 0.8))
    assert success_criteria.is_reached(lost) is False
    rows = confirmed(**{name: values for name, values in GOOD.items() if name != "tpp"})
    unmeasured = success_criteria.verdicts(rows)
    assert success_criteria.is_reached(unmeasured) is None


def test_agreements_are_tested_on_pairs_that_share_no_sae():
    chain = confirmed(partner=lambda seed: (seed + 1) % 8, **GOOD)
    found = success_criteria.verdicts(chain)
    assert len(found["agreement"]["over"]["TopK"]) == 4
    assert found["agreement"]["no_worse"] == 2**-4
    assert len(found["fve"]["over"]["TopK"]) == 8
    assert len(judge()["agreement"]["over"]["TopK"]) == 8
