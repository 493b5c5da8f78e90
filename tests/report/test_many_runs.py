"""Many runs: read from folders and wandb, grouped by setting; the best for each k, and how seeds agree."""

import json
import shutil
import statistics
from pathlib import Path

import numpy as np
import pytest

from dictionary_learning_ext import load_dictionary
from dictionary_learning_ext.evaluation.metrics import METRICS
from dictionary_learning_ext.features.directions import decoder_directions
from dictionary_learning_ext.features.reproducibility import reproducibility
from dictionary_learning_ext.report.many_runs import (
    Group,
    RunResult,
    SeedScores,
    best_of_each_k,
    differing,
    grouped,
    most_returning_of_each_k,
    with_seed_scores,
)
from dictionary_learning_ext.run_folder.sae_folder import SAEFolder, find_sae


def row(k, length, **settings):
    name, metrics = f"k{k}_{length}", {"description_length": length, "fve": 0.5}
    return RunResult(name, {"k": k, **settings}, metrics, SAEFolder(name, Path(name), {}))


EARLY, LATE = "blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out"


@pytest.mark.parametrize(
    ("runs", "best"),
    [
        (
            [row(16, None), row(16, 5.0, lr=1), row(8, 3.0), row(8, 2.0, lr=2), row(8, 4.0, lr=3)],
            ["k8_2.0", "k16_5.0"],
        ),
        (
            [
                *(row(8, 3.0, hook=LATE), row(8, 1.0, lr=1, hook=EARLY)),
                *(row(8, 2.0, lr=2, hook=EARLY), row(4, 9.0, hook=LATE)),
            ],
            ["k8_1.0", "k4_9.0", "k8_3.0"],
        ),
    ],
)
def test_the_lowest_is_the_best_for_each_k_at_each_hook_point(runs, best):
    found = best_of_each_k(grouped(runs))
    assert [one.name for group in found for one in group.runs] == best


def test_the_mean_counts_and_not_the_luckiest_run():
    lucky = [row(8, 1.0, lr=1, seed=0), row(8, 9.0, lr=1, seed=1)]
    steady = [row(8, 3.0, lr=2, seed=0), row(8, 3.5, lr=2, seed=1)]
    (best,) = best_of_each_k(grouped(lucky + steady))
    assert best.settings == {"k": 8, "lr": 2}
    assert best.mean("description_length") == 3.25


def test_only_seeds_do_not_make_a_group():
    groups = grouped(
        [
            row(8, 1.0, lr=2, seed=0),
            row(8, 2.0, lr=1, seed=0),
            row(8, 3.0, lr=2, seed=1, data_seed=4),
        ]
    )
    assert [(one.n, one.settings["lr"]) for one in groups] == [(1, 1), (2, 2)]
    assert not {"seed", "data_seed"} & groups[1].settings.keys()


@pytest.mark.parametrize(
    ("lengths", "spread", "text"),
    [
        ([15.0, 16.5, 15.6], statistics.stdev([15.0, 16.5, 15.6]), "15.7 ± 0.8"),
        ([2.0, 2.0], 0, "2.0000 ± 0.0000"),
        ([2.0], None, "2.0000"),
        ([2.0, None], None, "-"),  # what one seed lacks has no mean
    ],
)
def test_the_spread_is_the_standard_deviation_of_the_sample(lengths, spread, text):
    group = Group([row(8, length) for length in lengths])
    assert group.spread("description_length") == spread
    assert group.text(METRICS["description_length"]) == text


def test_settings_in_which_runs_differ():
    """An option that one architecture lacks is not swept."""
    assert differing([row(8, 1.0, lr=1), row(8, 1.0, lr=2)]) == ["lr"]
    assert differing([row(8, 1.0, beta=0.1), row(8, 1.0)]) == []
    assert differing([row(8, 1.0, beta=0.1), row(8, 1.0), row(8, 1.0, beta=0.2)]) == ["beta"]


# --- what comes back between the seeds of a setting


def seed_scores(folders):
    """What comes back between runs of one setting; None if that is not measured."""
    saes = {str(one): find_sae(one) for one in folders}
    results = [RunResult(name, sae.trained_as, {}, sae) for name, sae in saes.items()]
    (group,) = with_seed_scores(grouped(results))
    return group.scores


def test_they_are_means_over_all_pairs(seeds):
    scores = seed_scores(seeds)
    assert scores is not None
    found = reproducibility(
        {one.name: decoder_directions(load_dictionary(one)[0]) for one in seeds}
    )
    shares = [np.mean(cosines >= 0.7) for pair in found.pairs.values() for cosines in pair.cosines]
    assert scores.values["as_direction"] == pytest.approx(np.mean(shares))
    assert not scores.share_batches


def test_copies_are_one_sae_and_one_is_nothing_to_compare(seeds, tmp_path, caplog):
    copied = tmp_path / "copy"
    shutil.copytree(seeds[0], copied)
    assert with_seed_scores([]) == []
    assert seed_scores(seeds[:1]) is None
    assert seed_scores([seeds[0], copied]) is None
    both, all_three = seed_scores(seeds[:2]), seed_scores([seeds[0], copied, seeds[1]])
    assert both == all_three
    assert not [one for one in caplog.records if one.levelname == "WARNING"]


@pytest.mark.parametrize(("data_seed", "share_batches"), [(0, True), (None, False)])
def test_seeds_of_one_data_seed_share_batches(data_seed, share_batches, seeds, tmp_path):
    """None: folders of upstream's, which name no seeds."""
    for name, one in zip("ab", seeds, strict=False):
        config = json.loads((shutil.copytree(one, tmp_path / name) / "config.json").read_text())
        if data_seed is None:
            del config["run"]
        else:
            config["run"]["settings"]["data_seed"] = data_seed
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    scores = seed_scores([tmp_path / "a", tmp_path / "b"])
    assert scores is not None
    assert scores.share_batches == share_batches


@pytest.mark.parametrize("has_codes", [True, False])
def test_the_setting_of_which_most_comes_back_is_among_those_of_the_best_fve(has_codes):
    def run(k, beta, fve):
        return RunResult(
            f"{k}{beta}",
            {"k": k, "beta": beta},
            {"fve": fve},
            SAEFolder(f"{k}{beta}", Path(f"{k}{beta}"), {}),
        )

    def group(k, beta, fve, function, direction):
        known = function if has_codes else None
        scores = SeedScores({"in_function_fve": known, "as_direction": direction}, False)
        return Group([run(k, beta, fve)], scores)

    groups = [
        group(4, 0.0, 0.800, 0.3, 0.5),
        group(4, 0.1, 0.799, 0.5, 0.4),
        group(4, 1.0, 0.797, 0.9, 0.9),  # too far from the best FVE
        group(8, 0.0, 0.900, 0.2, 0.2),
        Group([run(8, 0.1, 0.8999)]),  # one seed
    ]
    found = [(one.settings["k"], one.settings["beta"]) for one in most_returning_of_each_k(groups)]
    assert found == [(4, 0.1 if has_codes else 0.0), (8, 0.0)]
