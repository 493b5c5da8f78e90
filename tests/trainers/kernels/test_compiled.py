"""The compiled form's machinery: blocks of rows on several threads, and what happens without numba."""

import logging
import os
import signal
import sys

import numba
import pytest
import torch as t
from forks import ended, forked
from numba.core import caching
from numba.core.errors import NumbaError
from recorded_ops import RecordedOps

from dictionary_learning_ext import VariationalTopKTrainer
from dictionary_learning_ext.trainers.kernels import compiled
from dictionary_learning_ext.trainers.kernels.compiled import map_row_blocks
from dictionary_learning_ext.trainers.kernels.select import top_k


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


def printed_by(function, folder):
    """What a function prints and logs in a process of its own, which has compiled nothing."""
    printed = folder / "printed"
    statuses = ended(forked(logging_to_stdout, function, printed=printed))
    assert statuses == [0], printed.read_text()
    return printed.read_text().splitlines()


def logging_to_stdout(function):
    logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(message)s", force=True)
    logging.getLogger("dictionary_learning_ext").setLevel(logging.INFO)
    function()


def test_where_numba_cannot_compile_torch_takes_over_with_one_warning(monkeypatch, caplog):
    def fails(*arguments):
        raise NumbaError("no such instruction")

    compiled._compiles.cache_clear()
    monkeypatch.setattr(compiled._kernels(), "draw_rows", fails)
    try:
        with caplog.at_level(logging.WARNING), RecordedOps() as ops:
            for _ in range(2):
                values_BK, _ = top_k(t.arange(10.0).repeat(2, 1), 3)
    finally:
        compiled._compiles.cache_clear()
    assert values_BK.sort(descending=True).values.tolist() == [[9, 8, 7]] * 2
    assert ops.counts["topk"] == 2
    (line,) = caplog.messages
    assert "no such instruction" in line


def compile_without_a_folder_for_the_cache():
    numba.config.CACHE_DIR = ""  # which NUMBA_CACHE_DIR may have set
    for locator in caching.CacheImpl._locator_classes:
        if "UserProvided" not in locator.__name__:
            locator.from_function = classmethod(lambda *_: None)
    trainer = VariationalTopKTrainer(10, 4, 8, 2, 0, "none", warmup_steps=0, device="cpu")
    print("built")
    print(compiled.is_available(trainer.ae.encoder.weight))


@pytest.mark.slow
def test_that_it_compiles_is_said_before_the_first_step_and_a_folder_for_its_cache_is_made(
    tmp_path,
):
    """In a process whose home and whose copy of the package can't be written to."""
    warning, information, *built = printed_by(compile_without_a_folder_for_the_cache, tmp_path)
    assert warning.startswith("WARNING ")
    assert "NUMBA_CACHE_DIR" in warning
    assert information.startswith("INFO ")
    assert built == ["built", "True"]


def read_a_kernel():
    print(compiled.is_available(t.zeros(2, 4)))


@pytest.mark.commands
def test_a_cached_kernel_is_read_without_a_word(tmp_path):
    """It was compiled before the first test, see conftest.py."""
    assert printed_by(read_a_kernel, tmp_path) == ["True"]
