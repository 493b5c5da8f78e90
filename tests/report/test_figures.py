"""The report's figures."""

from types import SimpleNamespace

import numpy as np
import torch as t

from dictionary_learning_ext.report import figures


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
