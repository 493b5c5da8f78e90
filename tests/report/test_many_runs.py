"""Runs grouped by setting, and the best setting for each k."""

import statistics

import pytest

from dictionary_learning_ext.evaluation.metrics import METRICS
from dictionary_learning_ext.report.many_runs import (
    Group,
    RunResult,
    best_of_each_k,
    differing,
    grouped,
)


def row(k, length, **settings):
    metrics = {"description_length": length, "fve": 0.5}
    return RunResult(f"k{k}_{length}", {"k": k, **settings}, metrics)


def test_the_lowest_is_the_best_for_each_k():
    groups = grouped(
        [row(16, None), row(16, 5.0, lr=1), row(8, 3.0, lr=1), row(8, 2.0, lr=2), row(8, 4.0, lr=3)]
    )
    best = best_of_each_k(groups)
    assert [[one.name for one in group.runs] for group in best] == [["k8_2.0"], ["k16_5.0"]]


def test_each_hook_point_has_its_own_best():
    early, late = {"hook": "blocks.0.hook_mlp_out"}, {"hook": "blocks.1.hook_mlp_out"}
    runs = [row(8, 3.0, **late), row(8, 1.0, lr=1, **early), row(8, 2.0, lr=2, **early)]
    best = best_of_each_k(grouped([*runs, row(4, 9.0, **late)]))
    assert [group.runs[0].name for group in best] == ["k8_1.0", "k4_9.0", "k8_3.0"]


def test_the_mean_counts_and_not_the_luckiest_run():
    lucky = [row(8, 1.0, lr=1, seed=0), row(8, 9.0, lr=1, seed=1)]
    steady = [row(8, 3.0, lr=2, seed=0), row(8, 3.5, lr=2, seed=1)]
    (best,) = best_of_each_k(grouped(lucky + steady))
    assert best.settings == {"k": 8, "lr": 2}
    assert best.mean("description_length") == 3.25


def test_only_seeds_and_places_do_not_make_a_group():
    groups = grouped(
        [
            row(8, 1.0, lr=2, seed=0, save_dir="a", save_every="10m", log_steps=100),
            row(8, 2.0, lr=1, seed=0, save_dir="b"),
            row(8, 3.0, lr=2, seed=1, save_dir="c", data_seed=4, save_every="5m", log_steps=7),
        ]
    )
    assert [(one.n, one.settings["lr"]) for one in groups] == [(1, 1), (2, 2)]
    assert not {"seed", "data_seed"} & groups[1].settings.keys()


def test_groups_are_in_the_order_of_their_numbers():
    groups = grouped([row(k, 1.0, scope=s) for k in (16, 8, 128) for s in ("b", None, "a")])
    assert [(one.settings["k"], one.settings["scope"]) for one in groups[:4]] == [
        (8, None),
        (8, "a"),
        (8, "b"),
        (16, None),
    ]


def test_the_spread_is_the_standard_deviation_of_the_sample():
    lengths = [15.0, 16.5, 15.6]
    group = Group([row(8, length) for length in lengths])
    assert group.spread("description_length") == statistics.stdev(lengths)
    assert group.text(METRICS["description_length"]) == "15.7 ± 0.8"
    assert group.spread("fve") == 0
    assert group.text(METRICS["fve"]) == "0.5000 ± 0.0000"


@pytest.mark.parametrize("runs", [[row(8, 2.0)], [row(8, 2.0), row(8, None)]])
def test_one_run_has_no_spread_and_what_one_seed_lacks_has_no_mean(runs):
    group = Group(runs)
    assert group.spread("description_length") is None
    assert group.text(METRICS["description_length"]) == ("2.0000" if len(runs) == 1 else "-")


def test_settings_in_which_runs_differ():
    assert differing([row(8, 1.0, lr=1, save_dir="a"), row(8, 1.0, lr=2, save_dir="b")]) == ["lr"]


def test_an_option_that_one_architecture_lacks_is_not_swept():
    assert differing([row(8, 1.0, beta=0.1), row(8, 1.0)]) == []
    assert differing([row(8, 1.0, beta=0.1), row(8, 1.0), row(8, 1.0, beta=0.2)]) == ["beta"]
