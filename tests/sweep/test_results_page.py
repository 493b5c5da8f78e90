"""The results page: its tables, and which figures there are."""

import plotly.graph_objects as go

from dictionary_learning_ext.evaluation.metrics import METRICS
from dictionary_learning_ext.sweep.groups import best_of_each_k, grouped
from dictionary_learning_ext.sweep.results_page import _figures, _heat_map, page

SHOWN = [METRICS[key] for key in ("fve", "frac_recovered", "near_dead_0.1", "description_length")]


def result(k, beta, length, **settings):
    metrics = {"fve": 0.51239, "frac_recovered": 0.9, "description_length": length}
    settings = {"k": k, "beta": beta, "lr": 1e-3, **settings}
    return {"run": f"<k{k}>", "settings": settings, "metrics": metrics}


def drawn(results):
    groups = grouped(results)
    return page("tiny", results, groups, best_of_each_k(groups), SHOWN)


RESULTS = [result(8, 0.0, 3.0), result(8, 0.5, 2.0), result(16, 0.0, None)]


def test_the_tables_have_every_run_with_a_dash_for_what_was_not_measured():
    html = drawn(RESULTS)
    assert html.count("<td>&lt;k8&gt;</td>") == 3, "two runs, and the best again"
    assert "<td>0.5124</td>" in html
    row = html[html.index("<td>&lt;k16&gt;</td>") :]
    assert row[: row.index("</tr>")].split("<td>")[-1].startswith("-</td>")
    assert "<script src" not in html, "it needs no network"
    assert "n = 1" in html
    assert "3 runs. The best" in html
    assert ">1 run. The best" in drawn(RESULTS[:1])


def test_with_seeds_there_is_a_row_for_each_setting_and_n():
    html = drawn([result(8, 0.0, 3.0, seed=0), result(8, 0.0, 4.0, seed=1), result(8, 1.0, 9.0)])
    for heading in ("Best setting for each k", "All settings", "All runs"):
        assert f"<h2>{heading}</h2>" in html
    assert html.count("<td>3.5000 ± 0.7071</td>") == 2, "the best, and among all settings"
    best = html[html.index("Best setting") : html.index("All settings")]
    assert "<th>n</th>" in best
    assert "<td>2</td>" in best
    assert "<th>seed</th>" not in best
    assert "<th>seed</th>" in html[html.index("All runs") :]


def test_the_figures_are_those_of_the_settings_that_differ():
    titles = ("FVE against k", "CE recovered against k", "near-dead &lt; 0.1 against beta")
    html = drawn(RESULTS).replace("\\u003c", "&lt;")
    assert all(title in html for title in titles)
    assert "description length, k = 8" not in html, "lr is the same in all"
    html = drawn([*RESULTS, result(8, 0.0, 1.0, lr=2e-3)])
    assert "description length, k = 8" in html
    html = drawn([result(8, 0.0, 1.0), result(8, 0.0, 1.0, lr=2e-3)])
    assert not any(title in html for title in titles)


def test_parallel_coordinates_need_two_columns_of_numbers():
    def kinds(*metrics):
        runs = [{"run": name, "settings": {}, "metrics": dict(metrics)} for name in ("a", "b")]
        figures = _figures(runs, grouped(runs), [], {name: name for name, _ in metrics})
        return [type(figure.data[0]) for figure in figures]

    assert kinds(("fve", 0.5), ("l0", 8.0)) == [go.Parcoords]
    assert kinds(("fve", 0.5), ("l0", None)) == []
    assert kinds(("fve", None), ("l0", None)) == []


def test_the_heat_map_has_lr_across_and_beta_upwards():
    lrs, betas = (1e-3, 2e-3, 3e-3), (0.0, 0.5)
    results = [
        result(8, beta, 10 * i + j, lr=lr)
        for i, lr in enumerate(lrs)
        for j, beta in enumerate(betas)
    ]
    (heat,) = _heat_map(grouped(results), 8).data
    assert tuple(heat.x) == ("0.001", "0.002", "0.003")
    assert tuple(heat.y) == ("0.0", "0.5")
    assert [list(row) for row in heat.z] == [[0, 10, 20], [1, 11, 21]]


def test_a_cell_of_the_heat_map_is_the_lowest_mean_of_its_settings():
    results = [
        result(8, 0.0, 5.0, scope="a", seed=0),
        result(8, 0.0, 7.0, scope="a", seed=1),
        result(8, 0.0, 2.0, scope="b", seed=0),
        result(8, 0.0, 18.0, scope="b", seed=1),
        result(8, 0.5, None),
    ]
    (heat,) = _heat_map(grouped(results), 8).data
    assert [list(row) for row in heat.z] == [[6.0]]
