"""In which order a report is made, what its SAEs are called, and which values are starred."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch as t

from dictionary_learning_ext.activations.inputs import Inputs
from dictionary_learning_ext.config.run import ReportOptions
from dictionary_learning_ext.errors import CheckpointError, ConfigError, LanguageModelError
from dictionary_learning_ext.report import analysis as module
from dictionary_learning_ext.report.analysis import analyse, headline, labels_of

OPTIONS = ReportOptions(tokens=600, split="train", synthesise=0, map_tokens=300)


def test_alike_names_are_told_apart():
    assert labels_of(["runs/a", "runs/b"]) == ["a", "b"]
    assert labels_of(["one/a", "two/a"]) == ["one/a", "two/a"]
    with pytest.raises(ConfigError, match="runs/a is given twice"):
        labels_of(["runs/a", "runs/../runs/a"])


def test_mistakes_come_up_before_the_text_is_read(runs, monkeypatch):
    monkeypatch.setattr(Inputs, "contexts", lambda *given: pytest.fail("text is read"))

    def fails(model):
        raise LanguageModelError("no final norm")

    monkeypatch.setattr(module, "LogitLens", fails)
    with pytest.raises(LanguageModelError, match="no final norm"):
        analyse([runs[0]], OPTIONS)


def test_seeds_are_matched_after_the_folders_are_opened(runs, monkeypatch):
    monkeypatch.setattr(module, "measured", lambda folders: pytest.fail("matched"))
    with pytest.raises(CheckpointError, match="128 wide"):
        analyse([runs[0]], OPTIONS, seeds=[runs[1]], model="embedded")


def test_that_the_text_ended_is_said_once(runs, caplog):
    few = replace(OPTIONS, tokens=100_000, split="heldout", map_tokens=5, logits=False)
    analyse(runs, few)
    assert caplog.text.count("the text ended after") == 1


# --- the table at the top


METRICS = {"fve": 0.9, "l0": 16.0, "tokens": 1000}


def analysis(label, metrics=None):
    """An SAE of a report, without its weights."""
    statistics = SimpleNamespace(alive_F=t.tensor([True, False]), tokens=600)
    return SimpleNamespace(label=label, metrics=METRICS | (metrics or {}), statistics=statistics)


def stars(*analyses):
    """The labels of the starred SAEs, by row."""
    shown = SimpleNamespace(analyses=list(analyses), no_map="none was made")
    return {
        row.name: [one.label for one, best in zip(analyses, row.best, strict=True) if best]
        for row in headline(shown)
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
