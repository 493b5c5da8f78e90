"""The committed pages of experiments are what their committed raw results give."""

import json

import baselines
import better_vsae
import full_size
import pytest
import reproduce_paper
import selection_churn
import write_results
from paper_claims import verdict
from timing import RESULTS

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
    changed = next(row for row in reversed(content["rows"]) if "fve" in row)
    changed["fve"] += 0.5
    assert PAGES[name](content) != lines


def test_results_are_made_from_the_raw_results(monkeypatch):
    lines = write_results.PAGE.read_text(encoding="utf-8").splitlines()
    assert write_results.page() == lines
    read = write_results.read

    def changed(name):
        content = read(name)
        content["rows"][0]["fve"] += 0.5
        return content

    monkeypatch.setattr(write_results, "read", changed)
    assert write_results.page() != lines


def test_a_sign_flip_test_counts_the_flips_that_are_as_large():
    assert better_vsae.sign_flip([1.0, 2.0, 3.0]) == 1 / 8, "the floor of three pairs"
    assert better_vsae.sign_flip([-1.0, -2.0, -3.0]) == 1
    # Of +-1 +-2 +-3, 1 + 2 - 3 = 0 is reached or passed by 5 of 8.
    assert better_vsae.sign_flip([1.0, 2.0, -3.0]) == 5 / 8


def test_holm_multiplies_by_what_is_left_and_never_falls():
    corrected = better_vsae.holm({"a": 0.01, "b": 0.04, "c": 0.03})
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


def test_a_verdict_says_in_how_many_pairs():
    assert verdict([(5, 5), (5, 5)]) == "**holds**: 10 of 10"
    assert verdict([(5, 5), (4, 5)]) == "**mixed**: 9 of 10"
    assert verdict([(2, 5), (2, 5)]) == "**does not hold**: 4 of 10"
