"""Blocks of rows on several threads."""

import os
import signal
import subprocess
import sys

import pytest
import torch as t

from dictionary_learning_ext.trainers.kernels.compiled import map_row_blocks


@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_blocks_cover_the_rows_in_order(n_threads):
    before = t.get_num_threads()
    t.set_num_threads(n_threads)
    try:
        got = map_row_blocks(lambda rows: (rows, t.get_num_threads()), 22, 4)
        assert t.get_num_threads() == n_threads
    finally:
        t.set_num_threads(before)
    assert [rows.indices(22)[:2] for rows, _ in got] == [
        (0, 4), (4, 8), (8, 12), (12, 16), (16, 20), (20, 22),
    ]  # fmt: skip
    assert {threads for _, threads in got} == {1}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="only where processes fork")
def test_a_forked_child_has_threads_of_its_own():
    def work():
        map_row_blocks(lambda rows: None, 6, 1)

    work()
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        work()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_an_error_in_a_block_is_raised():
    def fail(rows):
        if rows.start == 3:
            raise ArithmeticError("row 3")

    with pytest.raises(ArithmeticError, match="row 3"):
        map_row_blocks(fail, 6, 1)


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads as Linux does")
def test_torch_has_more_threads_than_it_uses_so_that_they_sleep():
    """In a fresh process: torch's two, ours, and two that make OpenMP count more than cores."""
    program = """
import os, torch as t
from dictionary_learning_ext.trainers.kernels.compiled import map_row_blocks
t.set_num_threads(2)
t.zeros(2**17).add_(1)
before = len(os.listdir("/proc/self/task"))
map_row_blocks(lambda rows: None, 6, 1)
t.zeros(2**17).add_(1)
print(len(os.listdir("/proc/self/task")) - before, t.get_num_threads())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == ["4", "2"], done.stderr
