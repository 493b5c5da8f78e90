"""What is shown of several processes, and what stays."""

import io
import sys

from dictionary_learning_ext.sweep.progress_lines import ProgressLine


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_without_a_terminal_only_finished_lines_are_shown(capsys):
    with ProgressLine("cpu #1", 0) as line:
        for piece in ("\r 0%", "\r 50%", "\r 100%\nWARN", "ING: old\n", "\n\r 3%"):
            line.write(piece)
    assert capsys.readouterr().err == "cpu #1:  100%\ncpu #1: WARNING: old\n"


def test_a_terminals_line_shows_what_came_last_and_fits(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "30")
    with ProgressLine("cuda:1", 0) as line:
        line.write("\r 10%\r 20%")
        assert terminal.getvalue().endswith("cuda:1:  20%")
        line.write(" and so on" * 5)
        last = terminal.getvalue().rpartition("\r")[2]
        assert last == "cuda:1:  20% and so on and so"
    assert terminal.getvalue().rpartition("\r")[2].strip() == "", "nothing is left of it"


def test_a_long_run_does_not_fill_the_memory(capsys):
    line = ProgressLine("cpu", 0)
    for step in range(2000):
        line.write(f"\r step {step}")
    assert len(line._text) < 20
    line.write("\n")
    assert capsys.readouterr().err == "cpu:  step 1999\n"
