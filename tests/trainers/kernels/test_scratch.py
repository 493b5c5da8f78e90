"""Memory that is used again: the same for one name, of its own for each name and thread."""

import threading

import torch as t

from dictionary_learning_ext.trainers.kernels.products import scratch

CPU = t.device("cpu")


def test_a_name_gets_its_memory_again_and_more_when_it_asks_for_more():
    first = scratch("a test's", (4, 5), t.float32, CPU).fill_(7)
    again = scratch("a test's", (2, 5), t.float32, CPU)
    assert again.data_ptr() == first.data_ptr()
    assert again.eq(7).all()
    larger = scratch("a test's", (40, 50), t.bfloat16, CPU)
    assert (larger.shape, larger.dtype) == ((40, 50), t.bfloat16)
    assert first.eq(7).all(), "a tensor that is still held keeps its memory"


def test_names_and_threads_do_not_share():
    one, other = (scratch(name, (3,), t.float32, CPU) for name in ("one test's", "other test's"))
    one.fill_(1)
    other.fill_(2)
    assert one.eq(1).all()

    def elsewhere():
        scratch("one test's", (3,), t.float32, CPU).fill_(3)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert one.eq(1).all()
