"""The guide's plots of settings: each varies one setting, and its caption stands below it."""

import statistics

import pytest

from experiments import settings_plots
from experiments.better_vsae.candidates import CANDIDATES, selection
from experiments.settings_plots import IMAGES, PLOTS, draw, read

PAGE = IMAGES.parent / "settings.md"


@pytest.mark.parametrize("plot", PLOTS, ids=lambda plot: plot.name)
def test_its_curves_have_every_seed_and_metric(plot):
    for points in plot.curves().values():
        assert len(points) >= 3
        n_seeds = {len(rows) for rows in points.values()}
        assert len(n_seeds) == 1
        assert n_seeds.pop() >= 2
        for row in (row for rows in points.values() for row in rows):
            assert all(isinstance(row[metric], float) for metric in plot.metrics)


@pytest.mark.parametrize("plot", PLOTS, ids=lambda plot: plot.name)
def test_it_is_on_the_page_with_its_caption(plot):
    page = PAGE.read_text(encoding="utf-8")
    assert (IMAGES / f"{plot.name}.png").exists()
    assert f"](img/{plot.name}.png)\n\n*{plot.caption()}*\n" in page


def test_beta_is_all_that_changes_along_its_curve():
    for points in settings_plots.beta().values():
        for value, rows in points.items():
            assert CANDIDATES[rows[0]["model"]] == selection(0.03, beta=value)


def test_noise_is_placed_at_its_ratio():
    """noise_to_signal = k sigma^2 / D, of k = 16 and D = 128."""
    for points in settings_plots.noise_by_place().values():
        assert len(points) == 6
        for ratio, rows in points.items():
            assert ratio == pytest.approx(16 * rows[0]["sigma"] ** 2 / 128, rel=0.03)
    raw = [
        r for r in read("selection_churn")["rows"] if (r["noise_on"], r["sigma"]) == ("both", 1.6)
    ]
    worst = settings_plots.noise_by_place()["both"]
    assert worst[max(worst)] == raw


def test_scopes_are_those_of_the_papers_code():
    (_, narrow), _ = settings_plots.kl_scope().items()
    assert [rows[0]["model"] for rows in narrow.values()][1:] == [
        "code, beta 1",
        "code, KL on selected, beta 1",
    ]
    assert statistics.mean(row["fve"] for row in narrow[2]) == pytest.approx(0.958, abs=5e-4)


def test_a_plot_is_drawn(tmp_path):
    draw(PLOTS[-1], tmp_path / "img" / "plot.png")
    assert (tmp_path / "img" / "plot.png").stat().st_size > 10_000
