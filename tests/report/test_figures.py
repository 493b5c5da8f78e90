"""The report's figures."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch as t
from report_runs import write_bench_result

from dictionary_learning_ext.report import figures
from dictionary_learning_ext.report.bench_charts import bench_charts


def analysis_of(label, frequency, largest):
    frequency_F, max_F = t.tensor(frequency), t.tensor(largest)
    statistics = SimpleNamespace(
        frequency_F=frequency_F, max_F=max_F, alive_F=t.ones(len(max_F), dtype=t.bool)
    )
    return SimpleNamespace(label=label, statistics=statistics)


def test_no_two_labels_have_one_file_name():
    names = figures.file_names(["x/y", "x_y", "x_y_2", "x y", "z"])
    assert list(names.values()) == ["x_y", "x_y_2", "x_y_2_2", "x_y_3", "z"]


def test_lines_of_many_saes_differ():
    assert len({str(figures._line(index)) for index in range(36)}) == 36


def test_histograms_of_all_saes_have_the_same_bins():
    narrow = analysis_of("narrow", [0.01, 0.02, 0.03], [1.0, 1.1, 1.2])
    wide = analysis_of("wide", [0.001, 0.1, 0.9], [-9.0, 3.0, 20.0])
    for ax in figures._use([narrow, wide]).axes:
        corners = [np.asarray(patch.get_path().vertices) for patch in ax.patches]
        widths = [sorted(set(each[:, 0].round(5))) for each in corners]
        assert len(widths) == 2
        assert widths[0] == widths[1]


def test_metrics_without_an_order_are_bars_and_every_sae_is_in_the_legend(tmp_path):
    core = {"misc_metrics": {"frac_alive": 1.0}, "reconstruction_quality": {"cossim": 0.8}}
    scr = {"scr_metrics": {f"scr_metric_threshold_{n}": 0.1 for n in (2, 5)}}
    write_bench_result(tmp_path / "a", "core", core)
    for name in "ab":
        write_bench_result(tmp_path / name, "scr", scr)
    both = [analysis_of(name, [0.1], [1.0]) for name in "ab"]
    figure = figures._bench(both, bench_charts({name: tmp_path / name for name in "ab"}))
    bars, curves = figure.axes[:2]
    assert [patch.get_height() for patch in bars.patches] == pytest.approx([0.8, 1.0])
    assert not bars.lines
    assert len(curves.lines) == 2
    assert not curves.patches
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b"]
