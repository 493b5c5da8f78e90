"""What the report says first: what is not matched, which values are starred."""

from types import SimpleNamespace

import torch as t

from dictionary_learning_ext.report.headline import sentences, setting_text

METRICS = {"fve": 0.9, "l0": 16.0, "tokens": 1000}


def analysis(label, metrics=None, trainer=None, **settings):
    """An SAE of a report, without its weights."""
    statistics = SimpleNamespace(
        alive_F=t.tensor([True, False]),
        tokens=600,
        sampled=SimpleNamespace(ids_FTW=t.zeros(2, 1, 1, dtype=t.int32), at=0),
    )
    settings = {"architecture": "top_k", "k": 16} | settings
    config = {"trainer": {"lr": 1e-3, **(trainer or {})}, "run": {"settings": settings}}
    metrics = METRICS | (metrics or {})
    return SimpleNamespace(
        label=label, folder=label, metrics=metrics, config=config, statistics=statistics
    )


def comparison(*analyses):
    return SimpleNamespace(analyses=list(analyses), no_map="none was made")


def said(*analyses):
    return "\n".join(sentences(comparison(*analyses)))


def test_unequal_learning_rates_are_not_a_matched_comparison():
    """One was given, one was left to the trainer."""
    words = said(analysis("a", lr=2e-3), analysis("b", lr=None), analysis("c", lr=1e-3))
    assert "not a matched comparison" in words
    assert "differ in lr (0.002 | 0.001 | 0.001) (in the order of the table)." in words
    assert "matched" not in said(analysis("b", lr=None), analysis("c", lr=1e-3))
    assert "matched" not in said(analysis("a", lr=2e-3))


def test_another_architecture_or_place_is_a_matched_comparison():
    one, other = analysis("a", save_dir="a"), analysis("b", architecture="relu", save_dir="b")
    assert "matched" not in said(one, other)


def test_metrics_of_other_token_counts_are_called_so():
    words = said(analysis("a"), analysis("b", {"tokens": 2000}))
    assert "not measured alike: they differ in tokens (1000 | 2000)" in words
    assert "alike" not in said(analysis("a"), analysis("b"))


def test_a_setting_is_shown_short():
    assert [setting_text(value) for value in (None, 1e-3, 16, "pack")] == [
        *("–", "0.001", "16", "pack")
    ]
