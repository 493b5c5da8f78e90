"""What a step would take on a GPU is counted as torch counts, and the page's counts are the code's."""

import pytest
import torch as t
from torch.utils.flop_counter import FlopCounterMode

from dictionary_learning_ext import VariationalTopKTrainer
from dictionary_learning_ext.trainers.kernels.products import StepForm
from experiments import raw_results
from experiments.raw_results import RESULTS
from experiments.speed import gpu_on_paper as paper
from experiments.speed.counting import SELECTION, Count, as_on_a_gpu
from experiments.speed.timing import trainer_arguments

SMALL = 4096


def on_meta(*shape, dtype=t.float32):
    return t.empty(*shape, dtype=dtype, device="meta")


@pytest.fixture(scope="module")
def steps():
    """The subjects' steps with a small dictionary."""
    return {name: paper.counted(subject, SMALL) for name, subject in paper.SUBJECTS.items()}


def test_flops_are_those_of_torchs_own_counter(steps):
    for name, subject in paper.SUBJECTS.items():
        arguments = trainer_arguments(paper.D, SMALL, paper.K) | {"device": "meta"}
        with as_on_a_gpu(), Count(answer=paper.K) as count, t.device("meta"):
            trainer = subject.trainer(**arguments, **subject.options)
            count.answer = 0
            with FlopCounterMode(display=False) as torchs:
                trainer.update(paper.STEP, on_meta(paper.B, paper.D))
        total = sum(part.flops for part in steps[name].parts.values())
        assert total == torchs.get_total_flops()


def test_our_step_takes_five_dense_products_and_the_kl_and_upstreams_six(steps):
    dense = 2 * paper.B * paper.D * SMALL
    found = {
        name: {
            part: counts.flops / dense
            for part, counts in step.parts.items()
            if counts.flops > 0.01 * dense
        }
        for name, step in steps.items()
    }
    ours = {paper.ENCODE: 1, paper.DECODE: 1, paper.BACKWARD: 3}
    for name in (paper.OURS_BF16, paper.OURS_FP32):
        assert found[name].pop(paper.KL) == pytest.approx(paper.D / paper.B + paper.D / SMALL)
        assert found[name] == pytest.approx(ours, abs=0.001)
    assert found[paper.UPSTREAM] == pytest.approx(ours | {paper.BACKWARD: 4}, abs=0.001)


def test_the_path_is_that_of_a_gpu_and_waits_for_nothing(steps):
    with as_on_a_gpu():
        arguments = trainer_arguments(8, 32, 2) | {"device": "meta"}
        with Count(answer=2), t.device("meta"):
            trainer = VariationalTopKTrainer(**arguments)
    assert trainer.form == StepForm.of(t.device("cuda"), 8 * 32)
    assert steps[paper.OURS_BF16].reads == 0
    assert steps[paper.UPSTREAM].reads > 0
    assert t.Generator().device.type == "cpu"
    assert not t.zeros(1).is_cuda


def test_the_floor_selects_in_the_encoders_kernel_which_never_writes_its_means(steps, monkeypatch):
    monkeypatch.setitem(paper.PEAKS, "bf16", float("inf"))
    floor = paper.floors(SMALL)
    step = steps[paper.OURS_BF16]
    assert floor.keys() == step.parts.keys() - {paper.ENCODE}
    in_two = step.floor_bytes[paper.ENCODE] + step.floor_bytes[SELECTION]
    means = paper.B * SMALL * 2  # bytes in bf16
    in_one = floor[SELECTION] * paper.BYTES_PER_SECOND / 1000
    assert in_one <= in_two - 2 * means


def test_the_pages_counts_are_the_codes():
    content = raw_results.read(RESULTS / "gpu_on_paper.json")
    dict_size = paper.SIZES[0]
    for name, subject in paper.SUBJECTS.items():
        written = content["subjects"][name][str(dict_size)][paper.EARLY]
        found = paper.summary(subject, dict_size)
        for counts in ("flops", "bytes", "operations", "tensors", "peak", "reads"):
            assert found[counts] == written[counts], (
                f"{name}: its step has changed; type: python -m experiments.speed.gpu_on_paper bench"
            )


def test_the_largest_dictionary_fits_and_no_larger_one(monkeypatch):
    monkeypatch.setattr(paper, "MEMORY", 12e9)
    subject = paper.SUBJECTS[paper.UPSTREAM]
    found = paper.largest(subject)
    assert paper.counted(subject, found).peak <= 12e9 < paper.counted(subject, found + 1024).peak
