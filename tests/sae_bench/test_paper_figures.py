"""The paper's figures of a small comparison."""

import pytest

pytest.importorskip("sae_bench", reason="needs the extra: pip install -e '.[saebench]'")

from dictionary_learning_ext.sae_bench.paper_figures import write_figures


def test_figures_are_drawn(benched, tmp_path):
    paths = write_figures(benched, tmp_path)
    assert [path.name for path in paths] == [
        "figure_3_reconstruction.png",
        "figure_4_scr.png",
        "figure_5_tpp.png",
    ]
    assert all(path.stat().st_size > 10_000 for path in paths)
