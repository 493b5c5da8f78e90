"""What the SAEs of a report are called, and in which order a report is made."""

from dataclasses import replace

import pytest

from dictionary_learning_ext.activations.inputs import Inputs
from dictionary_learning_ext.config.run import ReportOptions
from dictionary_learning_ext.errors import CheckpointError, ConfigError, LanguageModelError
from dictionary_learning_ext.report import analysis
from dictionary_learning_ext.report.analysis import analyse, labels_of

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

    monkeypatch.setattr(analysis, "LogitLens", fails)
    with pytest.raises(LanguageModelError, match="no final norm"):
        analyse([runs[0]], OPTIONS)


def test_seeds_are_matched_after_the_folders_are_opened(runs, monkeypatch):
    monkeypatch.setattr(analysis, "measured", lambda folders: pytest.fail("matched"))
    with pytest.raises(CheckpointError, match="128 wide"):
        analyse([runs[0]], OPTIONS, seeds=[runs[1]], model="embedded")


def test_that_the_text_ended_is_said_once(runs, caplog):
    few = replace(OPTIONS, tokens=100_000, split="heldout", map_tokens=5, logits=False)
    analyse(runs, few)
    assert caplog.text.count("the text ended after") == 1
