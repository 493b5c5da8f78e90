"""`vsae quickstart`: what it writes and prints."""

import re
from pathlib import Path


def test_quickstart_ends_with_the_table_and_what_to_try_next(quickstart_run):
    folder, out = quickstart_run
    for name in ("top_k", "vsae_paper", "vsae_annealed_selection"):
        assert (folder / "runs" / "quickstart" / name / "ae.pt").exists()
        assert re.search(rf"^{name} +-?0\.\d", out, re.M)
    assert "Open runs/quickstart/report.html in a browser" in out
    reported = (folder / "runs" / "quickstart" / "report.html").read_text().split()
    assert [Path(name).name for name in reported] == [
        "vsae_annealed_selection",
        "top_k",
        "vsae_paper",
    ]
    suggested = [line.split() for line in out.splitlines() if line.startswith("  vsae ")]
    assert [words[1] for words in suggested] == ["train", "compare", "train"]
