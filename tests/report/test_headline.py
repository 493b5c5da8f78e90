"""What the report says first: what is not matched, which values are starred."""

from types import SimpleNamespace

import pytest
import torch as t

from dictionary_learning_ext.report.headline import sentences, table

METRICS = {"fve": 0.9, "l0": 16.0, "tokens": 1000}


def analysis(label, metrics=None, trainer=None, **settings):
    """An SAE of a report, without its weights."""
    statistics = SimpleNamespace(
        alive_F=t.tensor([True, False]),
        count_F=t.tensor([9, 0]),
        tokens=600,
        sampled=SimpleNamespace(ids_FTW=t.zeros(2, 8, 1, dtype=t.int32), at=0),
    )
    settings = {"architecture": "top_k", "k": 16} | settings
    config = {"trainer": {"lr": 1e-3, **(trainer or {})}, "run": {"settings": settings}}
    metrics = METRICS | (metrics or {})
    return SimpleNamespace(
        label=label, folder=label, metrics=metrics, config=config, statistics=statistics
    )


def comparison(*analyses):
    return SimpleNamespace(analyses=list(analyses), no_map="none was made", sinks=None)


def said(*analyses):
    return "\n".join(sentences(comparison(*analyses)))


def test_unequal_learning_rates_are_not_a_matched_comparison():
    """One was given, one was left to the trainer."""
    words = said(analysis("a", lr=2e-3), analysis("b", lr=None), analysis("c", lr=1e-3))
    assert "not a matched comparison" in words
    assert "differ in lr (0.002 | 0.001 | 0.001) (in the order of the table)." in words
    assert "matched" not in said(analysis("b", lr=None), analysis("c", lr=1e-3))
    assert "matched" not in said(analysis("a", lr=2e-3))


def test_posteriors_that_differ_are_what_is_compared():
    same = {"data": "a", "steps": 9, "batch_size": 4, "dict_size": 32, "seed": 0}
    vsae = same | {"architecture": "vsae_top_k", "lr": 1e-3}
    one, other = analysis("a", **vsae, beta=1.0), analysis("b", **vsae, beta=0.0)
    assert (
        "All were trained on the same batches from the same initial weights. Their posteriors "
        "differ: beta (- | 1 | 0) (in the order of the table)."
    ) in said(analysis("t", **same), one, other)
    assert "not a matched comparison" in said(one, analysis("c", **vsae | {"lr": 0.5}, beta=0.0))
    assert "initial weights" not in said(one, analysis("d", **vsae | {"seed": 1}, beta=0.0))


def test_another_architecture_or_place_is_a_matched_comparison():
    one, other = analysis("a", save_dir="a"), analysis("b", architecture="relu", save_dir="b")
    assert "matched" not in said(one, other)


def test_metrics_of_other_token_counts_are_called_so():
    words = said(analysis("a"), analysis("b", {"tokens": 2000}))
    assert "measured under different conditions (tokens (1000 | 2000)), so they can't" in words
    assert "conditions" not in said(analysis("a"), analysis("b"))


def test_two_seeds_of_one_setting_are_a_matched_comparison():
    words = said(analysis("a", seed=0), analysis("b", seed=1))
    assert "The SAEs were trained with different seeds." in words
    assert "matched" not in words
    assert "seeds" not in said(analysis("a", seed=0), analysis("b", seed=0))
    assert "differ in lr (0.1 | 0.2)" in said(
        analysis("a", seed=0, lr=0.1), analysis("b", seed=1, lr=0.2)
    )


def test_what_was_not_measured_is_said_with_its_reason():
    nothing = {"fve": None, "l0": None, "not_measured": {"fve": "the activations are all equal"}}
    words = said(analysis("a", nothing))
    assert "How well a reconstructs was not measured: the activations are all equal." in words
    assert "evaluated" not in words
    assert "b explains 90.0%" in said(analysis("a", nothing), analysis("b"))
    assert "b explains 90.0% of the activations' variance." in said(analysis("b", {"l0": None}))


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


def test_features_that_fire_too_rarely_do_not_count_as_readable():
    one = analysis("a")
    one.statistics.count_F = t.tensor([3, 9])  # of the tokens that the first fires on, all are one
    one.statistics.sampled.ids_FTW = t.tensor([[5] * 3 + [-1] * 5, list(range(8))])[:, :, None]
    assert "fire mostly on one token" not in said(one)
    one.statistics.sampled.ids_FTW[1, 4:] = 9
    words = (
        "100.0% of a's features fire mostly on one token: it is at least half of a random sample"
    )
    assert words in said(one)
    one.statistics.sampled.ids_FTW[1, 4] = 8
    assert "fire mostly on one token" not in said(one)
