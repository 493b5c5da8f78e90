"""Where stderr is no terminal, a command writes a line a minute."""

import sys

import pytest
from tqdm import tqdm

from dictionary_learning_ext.progress import progress


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    return now


def test_a_log_file_gets_a_line_a_minute(clock, capsys):
    with progress(1000, "tok", initial=100, desc="caching", unit_scale=True) as bar:
        for second in range(1, 151):
            clock[0] = second
            bar.update(5)
            bar.set_postfix_str("FVE 0.9")
            bar.clear()
            bar.refresh()
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("caching:  40%")
    assert "400/1.00k [01:00<02:00, 5.00tok/s, FVE 0.9]" in first
    assert second.startswith("caching:  70%")


def test_a_bar_that_is_switched_off_writes_nothing(clock, capsys):
    with progress(10, "tok", disable=True) as bar:
        clock[0] = 100
        bar.update(5)
    assert capsys.readouterr().err == ""


def test_a_terminal_has_a_bar(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress(10, "tok", leave=False) as bar:
        assert isinstance(bar, tqdm)
