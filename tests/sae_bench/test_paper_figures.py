"""The paper's figures of a small comparison."""

import pytest

pytest.importorskip("sae_bench", reason="needs the extra: pip install -e '.[saebench]'")

from dictionary_learning_ext.sae_bench.paper_figures import _figure_3, write_figures


def test_figures_are_drawn(benched, tmp_path):
    paths = write_figures(benched, tmp_path)
    assert [path.name for path in paths] == [
        "figure_3_reconstruction.png",
        "figure_4_scr.png",
        "figure_5_tpp.png",
    ]
    assert all(path.stat().st_size > 10_000 for path in paths)


def test_reconstruction_is_drawn_over_l0_which_sparsity_without_a_k_has_too(benched):
    figure = _figure_3(benched)
    assert figure.get_suptitle().startswith(("L0 = ", "by L0"))
    assert {ax.get_xlabel() for ax in figure.axes} <= {"L0", ""}
