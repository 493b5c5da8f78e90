"""SAE Bench's results as charts, and damaged ones."""

import json
import math
from pathlib import Path

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


@pytest.mark.parametrize("content", ["{", "[]", '{"eval_result_metrics": []}', "\x00"])
def test_a_damaged_sae_bench_result_is_one_line(content, tmp_path):
    write_bench_result(tmp_path, "core", {}).write_text(content)
    with pytest.raises(CheckpointError, match="not an SAE Bench result"):
        bench_charts({"a": tmp_path})


def test_a_metric_that_is_not_finite_is_left_out(tmp_path):
    scr = {f"scr_metric_threshold_{n}": value for n, value in ((2, 0.1), (5, math.nan))}
    write_bench_result(tmp_path, "scr", {"scr_metrics": scr})
    (chart,) = bench_charts({"a": tmp_path})
    assert (chart.x, chart.values) == (["2"], {"a": [0.1]})


def test_floors_and_controls_beside_an_sae_are_not_shown_as_it(tmp_path, caplog):
    """The labels of these sort before and after its own."""
    folder = tmp_path / "top_k"
    path = write_bench_result(folder, "scr", {"scr_metrics": {"scr_metric_threshold_5": 0.5}})
    for label in ("identity", "top_k_top493", "top_k"):
        value = 0.5 if label == "top_k" else 0.9
        metrics = {"eval_result_metrics": {"scr_metrics": {"scr_metric_threshold_5": value}}}
        other = path.with_name(f"{label}_custom_sae_eval_results.json")
        other.write_text(json.dumps(metrics))
    path.unlink()
    (chart,) = bench_charts({"a": folder})
    assert chart.values == {"a": [0.5]}
    (path.with_name("top_k_custom_sae_eval_results.json")).rename(tmp_path / "own.json")
    folder.rename(tmp_path / "renamed")
    assert bench_charts({"a": tmp_path / "renamed"}) == []
    (tmp_path / "renamed/eval_results/scr/identity_custom_sae_eval_results.json").unlink()
    assert bench_charts({"a": tmp_path / "renamed"}) == [], "a control alone is not the SAE"
    assert "none of the 2 results is named after the folder" in caplog.text


def test_the_folder_one_is_in_has_results(tmp_path, monkeypatch):
    path = write_bench_result(tmp_path / "a", "scr", {"scr_metrics": {"scr_metric_threshold_5": 1}})
    path.with_name("identity_custom_sae_eval_results.json").write_text("{}")
    path.rename(path.with_name("a_custom_sae_eval_results.json"))
    monkeypatch.chdir(tmp_path / "a")
    (chart,) = bench_charts({"a": Path(".")})
    assert chart.values == {"a": [1]}


def test_two_kinds_of_probing_are_two_charts(tmp_path):
    for name, value in (("sparse_probing", 0.9), ("sae_probes", 0.6)):
        metrics = {"sae": {"sae_top_1_test_accuracy": value}}
        write_bench_result(tmp_path / "a", name, metrics)
    charts = bench_charts({"a": tmp_path / "a"})
    assert [chart.values for chart in charts] == [{"a": [0.9]}, {"a": [0.6]}]
