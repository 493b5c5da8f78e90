"""In which order a report is made, what its SAEs are called, and which values are starred."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch as t

from dictionary_learning_ext.activations.inputs import Inputs
from dictionary_learning_ext.config.run import ReportOptions
from dictionary_learning_ext.errors import (
    CheckpointError,
    ConfigError,
    LanguageModelError,
    ReproducibilityError,
)
from dictionary_learning_ext.evaluation.folders import open_folders
from dictionary_learning_ext.report import analysis as module
from dictionary_learning_ext.report.analysis import Analysis, analyse, headline
from dictionary_learning_ext.run_folder.sae_folder import find_saes, read_metrics

OPTIONS = ReportOptions(tokens=600, split="train")


def test_a_folder_given_twice_is_refused(runs):
    with pytest.raises(ConfigError, match=runs[0].name):
        analyse([runs[0], runs[0] / ".." / runs[0].name], OPTIONS)


def test_seeds_that_do_not_fit_are_refused_before_a_step_is_said(runs, seeds, tmp_path):
    other = shutil.copytree(seeds[1], tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["run"]["settings"]["hook"] = "blocks.1.hook_resid_post"
    (other / "config.json").write_text(json.dumps(config))
    said = []
    with pytest.raises(ReproducibilityError, match=r"blocks\.1"):
        analyse([seeds[0]], OPTIONS, seeds=[seeds[2], other], on_step=said.append)
    assert said == []


def test_each_seed_belongs_to_the_folder_of_its_setting(runs, seeds, tmp_path):
    """runs[0] has the setting of the seeds, runs[1] is a TopK SAE."""
    vsae, top_k = map(str, runs)
    of_top_k = shutil.copytree(runs[1], tmp_path / "top_k_seed1")
    config = json.loads((of_top_k / "config.json").read_text())
    config["run"]["settings"] |= {"seed": 1, "data_seed": 1}
    (of_top_k / "config.json").write_text(json.dumps(config))
    others = [str(seeds[1]), str(of_top_k), str(seeds[2])]
    expected = {top_k: [others[1]], vsae: [others[0], others[2]]}
    both, one, found = find_saes([top_k, vsae]), find_saes([top_k]), find_saes(others)
    assert module._seeds_of(both, found) == expected
    assert list(module._seeds_of(both, found)) == [top_k, vsae]
    first = find_saes(others[:1])
    assert module._seeds_of(one, first) == {top_k: others[:1]}, "where no setting fits"
    assert module._seeds_of(one, {}) == {}


def test_mistakes_come_up_before_the_text_is_read(runs, monkeypatch):
    monkeypatch.setattr(Inputs, "contexts", lambda *given: pytest.fail("text is read"))

    def fails(model):
        raise LanguageModelError("no final norm")

    monkeypatch.setattr(module, "LogitLens", fails)
    with pytest.raises(LanguageModelError):
        analyse([runs[0]], OPTIONS)


def test_seeds_are_matched_after_the_folders_are_opened(runs, monkeypatch):
    monkeypatch.setattr(module, "compare_saes", lambda *given, **more: pytest.fail("matched"))
    with pytest.raises(CheckpointError, match="128"):
        analyse([runs[0]], OPTIONS, seeds=[runs[1]], model="embedded")


def test_codes_of_seeds_are_compared_on_the_tokens_of_the_page(seeds):
    (analysis,) = analyse([seeds[0]], OPTIONS, seeds=[seeds[1], seeds[2]]).analyses
    assert analysis.metrics == read_metrics(seeds[0]), "its own, not a seed's"
    found = analysis.come_back
    assert found is not None
    opened = open_folders(seeds)
    contexts = opened.inputs.contexts(opened.run.hook, OPTIONS.split, OPTIONS.tokens)
    x_ND = t.cat([batch.wanted_ND for batch in contexts])
    for of, sae in zip(found.saes.values(), opened.saes.values(), strict=True):
        assert of.codes is not None
        own = of.codes.to_scipy().toarray()
        assert own == pytest.approx(sae.encode(x_ND).numpy(), abs=1e-5)


def test_that_the_text_ended_is_said_once(runs, caplog):
    few = replace(OPTIONS, tokens=100_000, split="heldout", logits=False)
    analyse(runs, few)
    assert caplog.text.count("text ended") == 1


# --- the table at the top


METRICS = {"fve": 0.9, "l0": 16.0, "tokens": 1000}


def analysis(label, metrics=None, seeds=()):
    """An SAE of a report, without its weights."""
    features: Any = SimpleNamespace(codes=SimpleNamespace(count_F=t.tensor([3, 0]), tokens=600))
    of_seeds = [METRICS | (metrics or {}), *(METRICS | each for each in seeds)]
    nothing: Any = None
    return Analysis(label, nothing, nothing, features, nothing, metrics_of_seeds=of_seeds)


def coming_back(one, share):
    numbers = {"in_function_fve": share / 4, "as_direction": share, "in_function": share / 2}
    found: Any = SimpleNamespace(numbers=lambda: numbers)
    return replace(one, come_back=found)


def stars(*analyses):
    """The labels of the starred SAEs, by row."""
    return {
        row.name: [one.label for one, best in zip(analyses, row.best, strict=True) if best]
        for row in headline(shown_with(*analyses))
    }


def shown_with(*analyses):
    comparison: Any = SimpleNamespace(analyses=list(analyses))
    return comparison


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
    assert found["Almost never used (near-dead < 0.1)"] == starred


def test_features_that_come_back_are_starred_where_several_saes_have_seeds():
    one, other, without = analysis("a"), analysis("b"), analysis("c")
    one, other = coming_back(one, 0.3), coming_back(other, 0.4)
    for what in ("as a direction", "in what they do"):
        row = f"Features that come back {what}"
        assert stars(one, other, without)[row] == ["b"]
        assert stars(one, without)[row] == []
        assert row not in stars(without)
    low = coming_back(analysis("b", {"fve": 0.1}), 0.4)
    assert stars(one, low)["Features that come back as a direction"] == []


def test_a_difference_within_the_spread_over_seeds_gets_no_star():
    one, other = analysis("a", {"fve": 0.90}, [{"fve": 0.92}]), analysis("b", {"fve": 0.905})
    assert stars(one, other)["Variance explained (FVE)"] == []
    (row,) = [row for row in headline(shown_with(one, other)) if "FVE" in row.name]
    assert row.cells == ["0.9100", "0.9050"]
    assert row.notes == ["± 0.0141", ""]
    far = analysis("b", {"fve": 0.88})
    assert stars(one, far)["Variance explained (FVE)"] == ["a"]


def test_equal_and_missing_values_get_no_star():
    one, other = analysis("a", {"near_dead_0.1": 0.5}), analysis("b", {"near_dead_0.1": None})
    assert stars(one, other)["Almost never used (near-dead < 0.1)"] == []
    assert stars(one, one)["Variance explained (FVE)"] == []
    unmeasured = replace(analysis("c"), metrics_of_seeds=[{}])
    assert not any(stars(unmeasured, unmeasured).values())
