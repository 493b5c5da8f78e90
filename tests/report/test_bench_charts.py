"""SAE Bench's results as charts, and damaged ones."""

import pytest
from report_runs import write_bench_result

from dictionary_learning_ext.errors import CheckpointError
from dictionary_learning_ext.report.bench_charts import bench_charts


def test_sae_bench_results_are_charted(tmp_path):
    core = {
        "model_performance_preservation": {"ce_loss_score": 0.9},
        "reconstruction_quality": {"cossim": 0.8, "explained_variance_legacy": 0.7},
        "misc_metrics": {"frac_alive": 1.0, "note": "text"},
    }
    write_bench_result(tmp_path / "a", "core", core)
    scr = {f"scr_metric_threshold_{n}": n / 100 for n in (10, 2, 5)} | {"scr_dir1_threshold_2": 9}
    write_bench_result(tmp_path / "a", "scr", {"scr_metrics": scr})
    write_bench_result(tmp_path / "b", "scr", {"scr_metrics": {"scr_metric_threshold_5": 0.5}})
    charts = bench_charts({"a": tmp_path / "a", "b": tmp_path / "b", "c": tmp_path / "c"})
    assert [chart.title for chart in charts] == ["Core", "Spurious correlation removal"]
    assert charts[0].x == ["CE loss score", "explained variance", "cosine", "alive"]
    assert charts[0].values == {"a": [0.9, 0.7, 0.8, 1.0]}
    assert charts[1].x == ["2", "5", "10"]
    assert charts[1].values == {"a": [0.02, 0.05, 0.1], "b": [None, 0.5, None]}
    assert bench_charts({"c": tmp_path / "c"}) == []


def test_a_damaged_sae_bench_result_is_one_line(tmp_path):
    write_bench_result(tmp_path, "core", {}).write_text("{")
    with pytest.raises(CheckpointError, match="not an SAE Bench result"):
        bench_charts({"a": tmp_path})
