"""Memory that is used again."""

import ctypes
import os
import resource
import threading
from types import SimpleNamespace

import pytest
import torch as t
from forks import ended, forked

from dictionary_learning_ext.devices import SWITCH, keep_freed_memory
from dictionary_learning_ext.trainers.kernels.memory import scratch


def test_a_name_gets_its_memory_again_and_more_when_it_asks_for_more():
    first = scratch("a test's", (4, 5), t.float32).fill_(7)
    again = scratch("a test's", (2, 5), t.float32)
    assert again.data_ptr() == first.data_ptr()
    assert again.eq(7).all()
    larger = scratch("a test's", (40, 50), t.bfloat16)
    assert (larger.shape, larger.dtype) == ((40, 50), t.bfloat16)
    assert first.eq(7).all(), "a tensor that is still held keeps its memory"


def test_names_and_threads_do_not_share_memory():
    one, other = (scratch(name, (3,), t.float32) for name in ("one test's", "other test's"))
    one.fill_(1)
    other.fill_(2)
    assert one.eq(1).all()
    thread = threading.Thread(target=lambda: scratch("one test's", (3,), t.float32).fill_(3))
    thread.start()
    thread.join()
    assert one.eq(1).all()


SETS_IT = ("MALLOC_", "GLIBC_", SWITCH)
"""How variables begin by which a user sets the allocator."""
with_mallopt = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallopt"), reason="another allocator"
)


def page_faults(folder):
    """Counts those of large blocks before and after `keep_freed_memory`."""
    faults = []
    for keeps in (False, True):
        if keeps:
            keep_freed_memory()
        for _ in range(3):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            t.zeros(2**24)  # 64 MB
            faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    (folder / "faults").write_text(" ".join(map(str, faults)))


@pytest.mark.commands
@with_mallopt
def test_a_freed_block_is_used_again_without_new_pages(tmp_path, monkeypatch):
    """Few faults are those of huge pages."""
    for name in [name for name in os.environ if name.startswith(SETS_IT)]:
        monkeypatch.delenv(name)
    printed = tmp_path / "printed"
    assert ended(forked(page_faults, tmp_path, printed=printed)) == [0], printed.read_text()
    faults = [int(n) for n in (tmp_path / "faults").read_text().split()]
    new_pages = min(faults[:4])
    assert new_pages >= 32
    assert max(faults[4:]) < new_pages / 2


@with_mallopt
@pytest.mark.parametrize(
    ("given", "is_set"), [({}, True), ({"MALLOC_ARENA_MAX": "4"}, False), ({SWITCH: "0"}, False)]
)
def test_the_allocator_is_left_alone_where_the_user_sets_it(given, is_set, monkeypatch):
    for name in [name for name in os.environ if name.startswith(SETS_IT)]:
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    calls = []
    allocator = SimpleNamespace(mallopt=lambda *setting: calls.append(setting))
    monkeypatch.setattr(ctypes, "CDLL", lambda *_: allocator)
    keep_freed_memory()
    assert bool(calls) == is_set
