"""The table of SAE Bench's metrics and ours."""

import pytest
from bench_saes import K

pytest.importorskip("sae_bench", reason="needs the extra: pip install -e '.[saebench]'")

from dictionary_learning_ext.sae_bench.comparison_table import rows_of, table


def test_our_metrics_stand_beside_theirs(benched):
    rows = rows_of(benched.results["top_k"])
    assert rows["FVE (ours)"] <= 1
    assert rows["L0"] == pytest.approx(K, abs=0.01)
    assert rows_of(benched.results["identity"])["FVE (ours)"] == pytest.approx(1)
    assert "top_k" in table(benched)
