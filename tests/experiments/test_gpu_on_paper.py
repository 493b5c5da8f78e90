"""What a step would take on a GPU is counted as torch counts."""

import pytest
import torch as t
from torch.utils.flop_counter import FlopCounterMode

from experiments.speed import gpu_on_paper as paper
from experiments.speed.timing import trainer_arguments

SMALL = 4096


@pytest.mark.parametrize("name", [paper.OURS, paper.UPSTREAM])
def test_flops_are_those_of_torchs_own_counter(name):
    kind, options = paper.SUBJECTS[name]
    arguments = trainer_arguments(paper.D, SMALL, paper.K) | {"device": "meta"}
    with paper.as_on_a_gpu(), paper.Count() as count, t.device("meta"):
        trainer = kind(**arguments, **options)
        count.answer = 0
        count.known[id(trainer.ae.k)] = paper.K
        with FlopCounterMode(display=False) as torchs:
            trainer.update(paper.STEP, t.empty(paper.B, paper.D))
    assert paper.summary(paper.counted(name, SMALL))["flops"] == torchs.get_total_flops() > 0


def test_a_topk_reads_its_input_five_times_and_a_gather_what_it_takes():
    with paper.Count() as count:
        x, index = t.empty(8, 1000, device="meta"), t.empty(8, 3, dtype=t.long, device="meta")
        count.start()
        x.topk(3)
        x.gather(1, index)
        x.t()
    topk, gather = count.parts[paper.REST]
    assert topk.bytes == 5 * 4 * 8000 + (4 + 8) * 24
    assert gather.bytes == (4 + 8 + 4) * 24
    assert count.peak >= count.live > 0


@pytest.mark.parametrize("are_dead", [False, True])
def test_our_step_never_waits_for_the_gpu(are_dead):
    """But to look whether a feature is dead, every hundred steps."""
    found = paper.counted(paper.OURS, SMALL, are_dead=are_dead)
    assert found.waits == 0
    assert ("AuxK" in found.parts) == are_dead
