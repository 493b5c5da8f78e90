"""The script that fills pages with recomputed numbers; `make lint` runs it on the pages themselves."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from dictionary_learning_ext.evaluation.metrics import METRICS
from dictionary_learning_ext.features.agreement import (
    CODE_MEASURES,
    COME_BACK,
    DIRECTION_MEASURES,
)
from experiments import recompute

NUMBERS = {"a.share": 0.7178, "a.fve": 0.89453}


def test_numbers_in_sentences_and_tables_are_written_anew(monkeypatch):
    monkeypatch.setitem(recompute.TABLES, "one", "\n| {a.share} | {a.fve:.4f} |\n")
    page = "9%<!--=a.share--> and 1.0<!--=a.fve:.4f-->\n<!-- table: one -->\nold\n<!-- end of table -->\n"
    written = recompute.filled(page, NUMBERS)
    assert written == (
        "72%<!--=a.share--> and 0.8945<!--=a.fve:.4f-->\n"
        "<!-- table: one -->\n\n| 72% | 0.8945 |\n\n<!-- end of table -->\n"
    )
    assert recompute.filled(written, NUMBERS) == written


def test_a_name_that_there_is_not_ends_the_script():
    with pytest.raises(SystemExit, match=r"b\.share"):
        recompute.filled("1%<!--=b.share-->", NUMBERS)


def test_a_page_that_differs_is_shown_and_written_on_request(tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.md"
    page.write_text("9%<!--=a.share-->\n")
    monkeypatch.setattr(recompute, "ROOT", tmp_path)
    monkeypatch.setattr(recompute, "NUMBERS", tmp_path / "numbers.json")
    monkeypatch.setattr(recompute, "PAGES", (page,))
    monkeypatch.setattr(recompute, "SOURCES", (NUMBERS.items,))
    monkeypatch.setattr(recompute, "EXPERIMENTS", ())
    assert recompute.main([]) == 1
    assert "+72%<!--=a.share-->" in capsys.readouterr().out
    assert page.read_text() == "9%<!--=a.share-->\n"
    assert recompute.main(["--write"]) == 0
    assert recompute.main([]) == 0


def test_auc_is_sklearns():
    rng = np.random.default_rng(0)
    label_N, score_N = rng.random(50) < 0.3, rng.integers(0, 5, 50)
    assert recompute.auc(label_N, score_N) == pytest.approx(roc_auc_score(label_N, score_N))


def test_the_guide_defines_every_metric():
    page = (recompute.ROOT / "docs" / "metrics.md").read_text()
    for metric in (*METRICS.values(), *COME_BACK, *CODE_MEASURES, *DIRECTION_MEASURES):
        (line,) = (line for line in page.splitlines() if line.startswith(f"| `{metric.key}` |"))
        assert line.replace("\\|", "|").endswith(f"| {metric.definition} |")
