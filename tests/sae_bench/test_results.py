"""The table of SAE Bench's metrics and ours."""

import re

import pytest
from bench_saes import K

pytest.importorskip("sae_bench", reason="needs the extra: pip install -e '.[sae-bench]'")

from dictionary_learning_ext.sae_bench.results import BenchResults, differences, rows_of, table


def test_our_metrics_stand_beside_theirs(benched):
    rows = rows_of(benched.results["top_k"])
    assert rows["FVE (ours)"] <= 1
    assert rows["L0"] == pytest.approx(K, abs=0.01)
    assert rows_of(benched.results["identity"])["FVE (ours)"] == pytest.approx(1)
    assert "top_k" in table(benched)


def probing(accuracy):
    """What the table reads of a result of sparse probing."""
    metrics = {"sae": {"sae_top_1_test_accuracy": accuracy}, "llm": {"llm_test_accuracy": 0.9}}
    return {"sparse_probing": {"eval_config": {"k_values": [1]}, "eval_result_metrics": metrics}}


def cells_of(text, row):
    (line,) = [line for line in text.splitlines() if line.startswith(f"{row}  ")]
    return re.split(r"\s{2,}", line)[1:]


def test_repeats_give_means_and_spreads_of_values_and_of_their_differences():
    """b is above a by 0.1 on every seed's texts, c by more on some and less on others."""
    texts = {42: 0.0, 43: 0.01, 44: -0.01}
    of_seed = {
        seed: {
            "a": probing(0.5 + extra),
            "b": probing(0.6 + extra + extra**2),
            "c": probing(0.5 - 10 * extra),
        }
        for seed, extra in texts.items()
    }
    outcome = BenchResults(results=of_seed.pop(42), repeats=of_seed)
    assert cells_of(table(outcome), "probing, top 1") == [
        "0.500 ±0.010",
        "0.600 ±0.010",
        "0.500 ±0.100",
    ]
    shown = differences(outcome)
    assert shown is not None
    assert cells_of(shown, "probing, top 1") == ["+0.1001 ±0.0001", "+0.0000 ±0.1100"]


def test_a_single_seed_has_no_spread_and_one_that_failed_is_left_out():
    outcome = BenchResults(results={"a": probing(0.5), "b": probing(0.6)})
    assert cells_of(table(outcome), "probing, top 1") == ["0.500", "0.600"]
    shown = differences(outcome) or ""
    assert cells_of(shown, "probing, top 1") == ["+0.1000"]
    assert "language model" not in shown
    repeats = {
        43: {"a": probing(0.4), "b": probing(0.6)},
        44: {"a": probing(0.5), "b": probing(0.8)},
    }
    outcome = BenchResults(results={"a": probing(0.3)}, repeats=repeats)
    cells = cells_of(table(outcome), "probing, top 1")
    assert cells == ["0.400 ±0.100", "0.700 ±0.141"]
    shown = differences(outcome) or ""
    assert cells_of(shown, "probing, top 1") == ["+0.2500 ±0.0707"]
    assert differences(BenchResults(results={"a": probing(0.5)})) is None
    assert differences(BenchResults()) is None, "all failed"
