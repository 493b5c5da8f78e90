"""The report's figures."""

import warnings
from types import SimpleNamespace

import matplotlib.image
import numpy as np
import pytest
import torch as t
from matplotlib.backends.backend_agg import FigureCanvasAgg

from dictionary_learning_ext.config.names import LONGEST
from dictionary_learning_ext.report import figures


def analysis_of(label, frequency, largest):
    frequency_F, max_F = t.tensor(frequency), t.tensor(largest)
    statistics = SimpleNamespace(
        frequency_F=frequency_F, max_F=max_F, alive_F=t.ones(len(max_F), dtype=t.bool)
    )
    return SimpleNamespace(label=label, statistics=statistics)


def test_a_name_that_begins_with_an_underscore_is_in_the_legend():
    made = figures._use([analysis_of(name, [0.01, 0.02], [1.0, 2.0]) for name in ("_try", "b")])
    (legend,) = made.legends
    assert [text.get_text().split()[0] for text in legend.get_texts()] == ["_try", "b"]


def test_no_two_labels_have_one_file_name():
    names = figures.file_names(["x/y", "x_y", "x_y_2", "x y", "z"])
    assert list(names.values()) == ["x_y", "x_y_2", "x_y_2_2", "x_y_3", "z"]


def test_what_was_measured_during_training_is_beside_the_training_curve():
    one, other = (analysis_of(name, [0.5], [1.0]) for name in "ab")
    one.history = [{"step": s, "fve": s / 9, "heldout/fve": s / 10} for s in (0, 5)]
    one.history.insert(1, {"step": 3, "fve": 0.2})
    other.history = [{"step": s, "fve": s / 8} for s in (0, 5)]
    panels = {
        ax.get_title(): [line.get_xydata().tolist() for line in ax.lines]
        for ax in figures._training([one, other]).axes
    }
    assert [*panels] == ["Variance explained (FVE)", "FVE, held out"]
    assert panels["Variance explained (FVE)"][0] == [[0, 0], [3, 0.2], [5, 5 / 9]]
    assert panels["FVE, held out"] == [[[0, 0], [5, 0.5]], []]


def test_six_of_the_longest_labels_cover_no_panel_and_nothing_is_cut_off():
    """Warnings are errors: matplotlib's constrained layout gives up with one."""
    analyses = [
        analysis_of(
            f"a_name_that_somebody_chose_for_an_sae_0{i}", [0.01, 0.02 + i / 99], [1.0, 1.5 + i]
        )
        for i in range(6)
    ]
    assert {len(one.label) for one in analyses} == {LONGEST}
    for number, one in enumerate(analyses):
        names = ("fve", "l2_loss", "alive_in_batch", "kl_loss")
        one.history = [{"step": s, **dict.fromkeys(names, 1.0 + s + number)} for s in range(3)]
    for made in (figures._training(analyses), figures._use(analyses)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            FigureCanvasAgg(made).draw()
        (legend,) = [one.get_window_extent() for one in made.legends]
        panels = [ax.get_tightbbox() for ax in made.axes]
        for box in (legend, *panels):
            assert made.bbox.x0 <= box.x0 < box.x1 <= made.bbox.x1 + 1
            assert made.bbox.y0 <= box.y0 < box.y1 <= made.bbox.y1 + 1
        assert not any(legend.overlaps(panel) for panel in panels)
        assert all(ax.get_window_extent().width > 0.25 * made.bbox.width for ax in made.axes)
        assert all(ax.get_window_extent().height > 150 for ax in made.axes)


@pytest.mark.parametrize("name", ["training", "use", "cosines", "returning"])
def test_the_pictures_of_six_long_names_are_not_blank(name, long_report):
    image = matplotlib.image.imread(long_report.with_name("long_files") / f"{name}.png")[..., :3]
    ink = (image < 0.9).any(-1)
    assert ink.any(0).mean() > 0.6
    assert ink.any(1).mean() > 0.5


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
