"""The table at the top of a report: which values are starred."""

from types import SimpleNamespace

import pytest
import torch as t

from dictionary_learning_ext.report.analysis import table

METRICS = {"fve": 0.9, "l0": 16.0, "tokens": 1000}


def analysis(label, metrics=None):
    """An SAE of a report, without its weights."""
    statistics = SimpleNamespace(alive_F=t.tensor([True, False]), tokens=600)
    return SimpleNamespace(label=label, metrics=METRICS | (metrics or {}), statistics=statistics)


def comparison(*analyses):
    return SimpleNamespace(analyses=list(analyses), no_map="none was made")


def stars(*analyses):
    """The labels of the starred SAEs, by row."""
    return {
        row.name: [one.label for one, best in zip(analyses, row.best, strict=True) if best]
        for row in table(comparison(*analyses))
    }


def test_the_best_value_is_starred_where_there_is_a_better_direction():
    one = analysis("a", {"fve": 0.9, "near_dead_0.1": 0.2, "l0": 8.0})
    other = analysis("b", {"fve": 0.85, "near_dead_0.1": 0.1})
    found = stars(one, other)
    assert found["Variance explained (FVE)"] == ["a"]
    assert found["Almost never used (near-dead < 0.1)"] == ["b"]
    assert found["Features per token (L0)"] == []
    assert found["Alive"] == []
    assert not any(stars(one).values())


@pytest.mark.parametrize(("fve", "starred"), [(0.81, ["broken"]), (0.79, []), (-3.0, [])])
def test_an_sae_that_explains_little_gets_no_star(fve, starred):
    broken = analysis("broken", {"fve": fve, "near_dead_0.1": 0.0, "stability_rms": 0.9})
    good = analysis("good", {"fve": 0.9, "near_dead_0.1": 0.1, "stability_rms": 0.6})
    found = stars(good, broken)
    assert found["Variance explained (FVE)"] == ["good"]
    assert found["Almost never used (near-dead < 0.1)"] == found["Selection stability"] == starred


def test_equal_and_missing_values_get_no_star():
    one, other = analysis("a", {"near_dead_0.1": 0.5}), analysis("b", {"near_dead_0.1": None})
    assert stars(one, other)["Almost never used (near-dead < 0.1)"] == []
    assert stars(one, one)["Variance explained (FVE)"] == []
    unmeasured = analysis("c")
    unmeasured.metrics = {}
    assert not any(stars(unmeasured, unmeasured).values())
