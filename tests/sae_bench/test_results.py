"""The table of SAE Bench's metrics and ours."""

import re

import pytest
from bench_saes import K

pytest.importorskip("sae_bench", reason="needs the extra: pip install -e '.[sae-bench]'")

from dictionary_learning_ext.sae_bench.results import BenchResults, differences, rows_of, table

pytestmark = pytest.mark.extra


def test_our_metrics_stand_beside_theirs(benched):
    rows = rows_of(benched.results["top_k"])
    assert rows["FVE (ours)"] <= 1
    assert rows["L0"] == pytest.approx(K, abs=0.01)
    assert "top_k" in table(benched)


def probing(accuracy):
    """What the table reads of a result of sparse probing."""
    metrics = {"sae": {"sae_top_1_test_accuracy": accuracy}, "llm": {"llm_test_accuracy": 0.9}}
    return {"sparse_probing": {"eval_config": {"k_values": [1]}, "eval_result_metrics": metrics}}


def cells_of(text, row):
    (line,) = [line for line in text.splitlines() if line.startswith(f"{row}  ")]
    return re.split(r"\s{2,}", line)[1:]


def test_differences_are_from_the_first_sae_and_leave_out_the_language_model():
    outcome = BenchResults(results={"a": probing(0.5), "b": probing(0.6)})
    assert cells_of(table(outcome), "probing, top 1") == ["0.500", "0.600"]
    shown = differences(outcome) or ""
    assert cells_of(shown, "probing, top 1") == ["+0.1000"]
    assert "language model" not in shown
    assert differences(BenchResults(results={"a": probing(0.5)})) is None
    assert differences(BenchResults()) is None, "all failed"
