"""The results page: its tables, and which figures there are."""

from dictionary_learning_ext.evaluation.metrics import METRICS
from dictionary_learning_ext.sweep.results_page import page

SHOWN = [METRICS[key] for key in ("fve", "frac_recovered", "near_dead_0.1", "description_length")]


def result(k, beta, length):
    metrics = {"fve": 0.51239, "frac_recovered": 0.9, "description_length": length}
    return {"run": f"<k{k}>", "settings": {"k": k, "beta": beta, "lr": 1e-3}, "metrics": metrics}


RESULTS = [result(8, 0.0, 3.0), result(8, 0.5, 2.0), result(16, 0.0, None)]


def test_the_tables_have_every_run_with_a_dash_for_what_was_not_measured():
    html = page("tiny", RESULTS, ["beta", "k"], RESULTS[1:2], SHOWN)
    assert html.count("<td>&lt;k8&gt;</td>") == 3, "two runs, and the best again"
    assert "<td>0.5124</td>" in html
    row = html[html.index("<td>&lt;k16&gt;</td>") :]
    assert row[: row.index("</tr>")].split("<td>")[-1].startswith("-</td>")
    assert "<script src" not in html, "it needs no network"


def test_the_figures_are_those_of_the_settings_that_differ():
    titles = ("FVE against k", "CE recovered against k", "near-dead &lt; 0.1 against beta")
    html = page("tiny", RESULTS, ["beta", "k"], [], SHOWN).replace("\\u003c", "&lt;")
    assert all(title in html for title in titles)
    assert "description length, k = 8" not in html, "lr is the same in all"
    html = page("tiny", RESULTS, ["beta", "k", "lr"], [], SHOWN)
    assert "description length, k = 8" in html
    html = page("tiny", RESULTS, ["lr"], [], SHOWN)
    assert not any(title in html for title in titles)
