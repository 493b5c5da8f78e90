"""The committed pages of experiments are what their committed raw results give."""

import json
from dataclasses import asdict

import baselines
import better_vsae
import full_size
import pytest
import reproduce_paper
import selection_churn
import write_results
from pages import RESULTS
from paired_tests import holm, sign_flip
from paper_claims import against_top_k, verdict
from paper_raw import AS_STATED, RATIOS, Raw

from dictionary_learning_ext.presets import preset

PAGES = {
    "selection_churn": selection_churn.page,
    "reproduce_paper": reproduce_paper.tables,
    "full_size": full_size.tables,
    "baselines": baselines.tables,
    "better_vsae": better_vsae.tables,
}


@pytest.mark.parametrize("name", PAGES)
def test_pages_are_made_from_the_raw_results(name):
    content = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    lines = (RESULTS / f"{name}.md").read_text(encoding="utf-8").splitlines()
    assert PAGES[name](content) == lines
    assert PAGES[name](spoiled(content)) != lines


def spoiled(content):
    """With another FVE everywhere."""
    for row in content["rows"]:
        if "fve" in row:
            row["fve"] += 0.5
    return content


def test_results_are_made_from_the_raw_results(monkeypatch):
    lines = write_results.PAGE.read_text(encoding="utf-8").splitlines()
    assert write_results.page() == lines
    read = write_results.read

    for spoiled_name in PAGES:
        monkeypatch.setattr(
            write_results,
            "read",
            lambda name, which=spoiled_name: spoiled(read(name)) if name == which else read(name),
        )
        assert write_results.page() != lines, spoiled_name


def test_a_sign_flip_test_counts_the_flips_that_are_as_large():
    assert sign_flip([1.0, 2.0, 3.0]) == 1 / 8, "the floor of three pairs"
    assert sign_flip([-1.0, -2.0, -3.0]) == 1
    # Of +-1 +-2 +-3, 1 + 2 - 3 = 0 is reached or passed by 5 of 8.
    assert sign_flip([1.0, 2.0, -3.0]) == 5 / 8


def test_holm_multiplies_by_what_is_left_and_never_falls():
    corrected = holm({"a": 0.01, "b": 0.04, "c": 0.03})
    assert corrected == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})


def test_the_pick_is_sampled_reconstructs_and_gains_most():
    def row(model, **figures):
        usual = {"fve": 0.9, "near_dead_0.1": 0.1, "near_dead_0.5": 0.4, "agreement": 0.5}
        return {"model": model, "size": "a"} | usual | figures

    rows = [
        row("TopK"),
        row("point, KL 0.1", **{"near_dead_0.5": 0.0}),
        row("selection 0.1", fve=0.89, **{"near_dead_0.5": 0.1}),
        row("selection 0.03", **{"near_dead_0.5": 0.3}),
        row("selection 0.01", **{"near_dead_0.5": 0.35}),
    ]
    assert better_vsae.pick(rows, "a") == "selection 0.03"


def test_no_pick_says_what_to_do():
    rows = [
        {"size": "a", "model": "TopK", "fve": 0.9},
        {"size": "a", "model": "selection 0.1", "fve": 0.5},
    ]
    with pytest.raises(SystemExit, match=r"^a: no sampled candidate keeps TopK's FVE; add"):
        better_vsae.pick(rows, "a")


def confirmed(**figures):
    """Rows of a confirmation, each figure given for TopK, point and sampled, drifting over seeds."""
    return [
        {"model": model, "seed": seed}
        | {n: values[i] + 0.001 * seed for n, values in figures.items()}
        for i, model in enumerate(("TopK", "point", "sampled"))
        for seed in better_vsae.CONFIRM_SEEDS
    ]


def test_the_goal_wants_better_than_both_and_less_of_what_is_bad():
    good = {
        "fve": (0.9, 0.9, 0.898),
        "near_dead_0.1": (0.3, 0.2, 0.1),
        "near_dead_0.5": (0.6, 0.5, 0.4),
        "agreement": (0.3, 0.5, 0.4),
        **dict.fromkeys(("scr", "scr_matched", "tpp"), (0.2, 0.2, 0.2)),
    }
    floor = 2 ** -len(better_vsae.CONFIRM_SEEDS)
    found = better_vsae.verdicts(confirmed(**good))
    assert found["near_dead_0.1"]["better"] == floor
    assert found["near_dead_0.1"]["corrected"] == pytest.approx(6 * floor), "Holm, six measures"
    assert found["agreement"]["no_worse"] == floor
    assert found["agreement"]["better"] == 1, "point is better"
    assert found["fve"]["no_worse"] == floor, "0.002 is within its margin"
    assert "corrected" not in found["fve"]
    says = better_vsae.conclusion(found)
    assert (
        "**reached**. Better than both TopK and point on: near-dead < 0.1; near-dead < 0.5." in says
    )
    lost = better_vsae.conclusion(
        better_vsae.verdicts(confirmed(**good | {"fve": (0.9, 0.9, 0.8)}))
    )
    assert "**missed**" in lost
    assert "not shown on FVE" in lost
    one = good | {"near_dead_0.5": (0.6, 0.3, 0.4)}
    assert "**missed**" in better_vsae.conclusion(better_vsae.verdicts(confirmed(**one)))
    without = {name: values for name, values in good.items() if name != "tpp"}
    says = better_vsae.conclusion(better_vsae.verdicts(confirmed(**without)))
    assert "**open**" in says
    assert "not measured: TPP" in says


def test_the_recommended_preset_is_what_was_confirmed():
    size = next(iter(better_vsae.SIZES))
    picked = better_vsae.pick(
        [row for row in better_vsae.read()["rows"] if row["stage"] == "search"], size
    )
    confirmed = asdict(better_vsae.sae_of(better_vsae.CANDIDATES[picked], size, seed=0))
    config = preset("recommended")
    own = asdict(config.sae)
    assert own.pop("sigma") == pytest.approx(confirmed.pop("sigma"), abs=1e-3)
    assert own == confirmed
    assert config.run.steps == better_vsae.SIZES[size][2]


def test_claims_are_of_the_model_minus_top_k():
    def row(model, ratio, seed):
        cossim = 0.9 + (0.01 if model == "code, beta 1" else -0.01 if "equations" in model else 0)
        return {"model": model, "multiple": 4, "ratio": ratio, "seed": seed, "cossim": cossim}

    rows = [row(m, ratio, seed) for m in AS_STATED for ratio in RATIOS for seed in (0, 1)]
    numbers, says = against_top_k(
        Raw({"rows": rows, "bench": [], "maps": []}), "cossim", lambda d: d > 0
    )
    assert "code, beta 1: +0.010 at 1/32" in numbers
    assert "code, beta 1: **holds**: 8 of 8" in says
    assert "equations, beta 1: **does not hold**: 0 of 8" in says


def test_a_verdict_says_in_how_many_pairs():
    assert verdict([(5, 5), (5, 5)]) == "**holds**: 10 of 10"
    assert verdict([(5, 5), (4, 5)]) == "**mixed**: 9 of 10"
    assert verdict([(2, 5), (2, 5)]) == "**does not hold**: 4 of 10"
