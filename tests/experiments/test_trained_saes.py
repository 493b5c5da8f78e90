"""The SAEs that several experiments train: those that their pages name, with the settings of then."""

import re
from pathlib import Path

import numpy as np
import pytest
from interrupted_runs import assert_equal, results, sae_of, stopped_at

from dictionary_learning_ext.errors import Interrupted
from experiments.raw_results import RESULTS
from experiments.robustness.synthesis_reach import FOLDERS
from experiments.trained_saes import agreement, top_k_and_two_vsaes, train_missing


@pytest.mark.parametrize("page", ["quickstart_seeds", "bench_embedded", "synthesis_reach"])
def test_a_page_shows_the_saes_that_its_experiment_trains(page):
    text = (RESULTS / f"{page}.md").read_text(encoding="utf-8")
    trained = [*top_k_and_two_vsaes(0)]
    if page == "synthesis_reach":
        trained = [folder.rpartition("/")[2] for folder in FOLDERS]
    assert not [name for name in trained if not re.search(rf"\b{name}\b", text)]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("top_k", {"architecture": "top_k"}),
        (
            "vsae_paper",
            {
                "posterior": "fixed",
                "noise_on": "both",
                "kl_scope": "all",
                "beta": 1.0,
                "sigma": 1.0,
            },
        ),
        (
            "vsae_annealed_selection",
            {
                "noise_on": "selection",
                "noise_to_signal": 1 / 32,
                "noise_anneal": 0.5,
                "beta": 0.0,
            },
        ),
    ],
)
def test_their_settings_are_those_that_the_quickstart_had(name, settings):
    sae = top_k_and_two_vsaes(3)[name].resolve(1000, 1024)
    shared = {"k": 16, "dict_size": 512, "lr": 2e-3, "decay_start": 0.75, "seed": 3}
    assert {key: getattr(sae, key) for key in shared | settings} == shared | settings


def test_a_stopped_run_is_continued_and_a_finished_one_is_not_trained_again(
    run, monkeypatch, caplog
):
    folder, saes = Path(run.save_dir), {"a": sae_of(), "b": sae_of(seed=1)}
    whole = train_missing(run, folder / "whole", saes)
    stopped_at(15, monkeypatch)
    with pytest.raises(Interrupted):
        train_missing(run, folder / "stopped", saes)
    with caplog.at_level("INFO"):
        found = train_missing(run, folder / "stopped", saes)
    assert "step 15" in caplog.text
    for name in saes:
        assert_equal(results(found[name]), results(whole[name]), name)
    monkeypatch.setattr("experiments.trained_saes.train", None)
    assert train_missing(run, folder / "stopped", saes) == found


def test_agreement_matches_one_to_one_and_signs_matter():
    """Both of one dictionary are nearest to the same of the other, which only one of them gets."""
    one = np.array([[1.0, 0.0], [1.0, 0.1]])
    other = np.array([[0.0, 1.0], [3.0, 0.0]])
    assert agreement(one, other) == pytest.approx((1 + 0.1 / np.hypot(1, 0.1)) / 2)
    assert agreement(one, -one) < 0
