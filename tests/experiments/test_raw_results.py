"""What made raw results is noted, of every part of a run."""

import time

from experiments import raw_results


def test_the_commits_and_minutes_of_earlier_parts_are_kept(monkeypatch):
    began = time.monotonic() - 120
    before = None
    for commit, expected in (("a1", "a1"), ("a1", "a1"), ("b2", "a1, b2"), ("a1", "a1, b2")):
        monkeypatch.setattr(raw_results, "commit", lambda commit=commit: commit)
        before = raw_results.about(began, before)
        assert before["commit"] == expected
    assert before is not None
    assert before["minutes"] == 8.0


def test_results_are_replaced_whole(tmp_path):
    """Whoever has the former file open still reads it to its end."""
    path = tmp_path / "results.json"
    raw_results.write(path, {"rows": [1]})
    with path.open() as former:
        raw_results.write(path, {"rows": [2]})
        assert "1" in former.read()
    assert raw_results.read(path) == {"rows": [2]}
