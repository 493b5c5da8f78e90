"""A training step on an H100, on paper: FLOPs, bytes, operations and memory, counted on the meta device.

    python -m experiments.speed.gpu_on_paper bench     # about 5 minutes; it needs no GPU
    python -m experiments.speed.gpu_on_paper tables    # write the page's tables again

The trainers' own steps run, ours and upstream's, on tensors without numbers (`counting.py`). Each
operation is taken to run as fast as the GPU's peak allows: its FLOPs at the peak of their dtype, or its
bytes at the memory's, whichever takes longer. Nothing overlaps. So a real step takes longer.

The floor is that of the same step, if each of its parts were one kernel that reads its inputs once and writes
its outputs once.
"""

import argparse
import time
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Any

import torch as t
from dictionary_learning.trainers import top_k as upstreams
from dictionary_learning.trainers.top_k import TopKTrainer

from dictionary_learning_ext import VariationalTopKTrainer
from dictionary_learning_ext.trainers.kernels import step as step_module
from dictionary_learning_ext.trainers.kernels.encode import BatchLogVariance, BatchMeans
from dictionary_learning_ext.trainers.kernels.products import DenseCode, SparseCode
from dictionary_learning_ext.trainers.optimizers import UnitNormAdam
from experiments import raw_results
from experiments.pages import table
from experiments.raw_results import RESULTS
from experiments.speed.counting import REST, SELECTION, Count, Part, Places, as_on_a_gpu
from experiments.speed.timing import trainer_arguments
from experiments.stages import Page, Stages

B, D, K = 4096, 2304, 64
SIZES = (65_536, 2**20)  # F
BYTES_PER_SECOND, MEMORY = 3.35e12, 80e9
PEAKS = {"bf16": 989e12, "TF32": 495e12, "fp32": 67e12}
"""FLOP/s of the H100 SXM without structured sparsity, from NVIDIA's data sheet."""
STEP = 2000  # after the warm-ups, and one at which ours looks at how many features are dead
TOKENS = 10_000_000  # after as many a feature can be dead

ENCODE, DECODE, BACKWARD, KL = "encode", "decode", "backward", "KL of all features"
WEIGHTS = "weight passes and Adam"
PARTS = (ENCODE, SELECTION, KL, DECODE, BACKWARD, WEIGHTS, REST)
OURS: Places = {
    ENCODE: [(BatchMeans, "__init__"), (BatchMeans, "of"), (BatchLogVariance, "of")],
    SELECTION: [(step_module, "draw_batch")],
    KL: [(BatchMeans, "moments")],
    DECODE: [(DenseCode, "combine"), (SparseCode, "combine")],
    BACKWARD: [(step_module, "_gradients")],
    WEIGHTS: [(UnitNormAdam, "constrained_step")],
}


def places_of_upstream(trainer: TopKTrainer) -> Places:
    return {
        ENCODE: [(trainer.ae.encoder, "forward")],
        SELECTION: [(trainer.ae, "encode")],
        DECODE: [(trainer.ae, "decode")],
        BACKWARD: [(t.Tensor, "backward")],
        WEIGHTS: [
            (upstreams, "remove_gradient_parallel_to_decoder_directions"),
            (t.nn.utils, "clip_grad_norm_"),
            (trainer.optimizer, "step"),
            (upstreams, "set_decoder_norm_to_unit_norm"),
        ],
    }


@dataclass(frozen=True)
class Subject:
    """A trainer and how its products are taken."""

    trainer: type
    products: tuple[str, ...]
    """keys of PEAKS: the dtypes that the tensor cores or the others can take them in"""
    options: dict[str, Any] = field(default_factory=dict)


SELECTING = {"noise_on": "selection"}  # as vsae train does
BF16 = {"dtype": "bfloat16"}
OURS_BF16, OURS_FP32, UPSTREAM = "vSAE, bf16", "vSAE, fp32", "upstream TopK, fp32"
SUBJECTS = {
    OURS_BF16: Subject(VariationalTopKTrainer, ("bf16",), BF16 | SELECTING),
    OURS_FP32: Subject(VariationalTopKTrainer, ("TF32", "fp32"), SELECTING),
    UPSTREAM: Subject(TopKTrainer, ("TF32", "fp32")),
}
OTHER_SETTINGS = {
    name: Subject(VariationalTopKTrainer, ("bf16",), BF16 | options)
    for name, options in {
        "noise on both": {"noise_on": "both"},
        "noise on values": {"noise_on": "values"},
        "select_by magnitude": SELECTING | {"select_by": "magnitude"},
        "learned posterior": SELECTING | {"posterior": "learned"},
        "rectified": SELECTING | {"rectify": True},
        "without KL": SELECTING | {"beta": 0.0},
    }.items()
}
CASES = {
    "no feature can be dead yet": {},
    "none is dead": {"tokens": TOKENS},
    "many are dead": {"tokens": TOKENS, "answer": 2 * TOKENS},
}
"""AuxK's, with the arguments of `counted`."""
EARLY, NONE_DEAD, DEAD = CASES


@dataclass(frozen=True)
class Counted:
    """What a step was found to take."""

    parts: dict[str, Part]
    floor_bytes: dict[str, int]
    """of each part, as one kernel"""
    peak: int
    """bytes"""
    reads: int
    """how often the host waits for the device"""


def counted(
    subject: Subject,
    dict_size: int,
    *,
    tokens: int = 0,
    answer: int = 0,
    places: Places | None = None,
) -> Counted:
    """The second step of a trainer.

    Arguments:
        tokens: on how many it has been trained.
        answer: what the host gets when it asks how many features are dead, or how long one has been.
        places: of its parts. Default: its own.
    """
    with as_on_a_gpu(), Count(answer=K) as count:
        arguments = trainer_arguments(D, dict_size, K) | {"device": "meta"}
        with t.device("meta"):  # upstream's trainer makes its weights on the default device
            trainer = subject.trainer(**arguments, **subject.options)
        trainer.tokens_trained = tokens
        count.answer = answer
        count.known[id(trainer.ae.k)] = K  # which upstream reads in each step
        x_BD = t.empty(B, D, device="meta")
        trainer.update(STEP, x_BD)
        if places is None:
            is_ours = subject.trainer is VariationalTopKTrainer
            places = OURS if is_ours else places_of_upstream(trainer)
        count.start()
        with count.by_part(places):
            trainer.update(STEP + 1, x_BD)
        floor_bytes = count.bytes_between_parts()
    return Counted(dict(count.parts), floor_bytes, count.peak, count.reads)


def seconds(part: Part, products: str) -> float:
    """The sum over its operations, each at the peak."""
    return sum(
        max(flops / PEAKS["bf16" if dtype == t.bfloat16 else products], moved / BYTES_PER_SECOND)
        for flops, dtype, moved in part.costs
    )


def summary(subject: Subject, dict_size: int, **case: Any) -> dict[str, Any]:
    """What is kept of a count; the milliseconds under the name of the products' dtype."""
    found = counted(subject, dict_size, **case)
    parts = {
        name: {
            "flops": part.flops,
            "bytes": part.bytes,
            "operations": len(part.costs),
            "tensors": part.tensors,
            **{by: 1000 * seconds(part, by) for by in subject.products},
        }
        for name, part in found.parts.items()
    }
    names = ("flops", "bytes", "operations", "tensors", *subject.products)
    total = {name: sum(part[name] for part in parts.values()) for name in names}
    return total | {"peak": found.peak, "reads": found.reads, "parts": parts}


def floors(dict_size: int) -> dict[str, float]:
    """The milliseconds of each part as one kernel. The encoder's selects, too."""
    in_one = dict(OURS)
    in_one[SELECTION] = [*in_one.pop(ENCODE), *OURS[SELECTION]]
    found = counted(SUBJECTS[OURS_BF16], dict_size, places=in_one)
    return {
        name: 1000 * max(part.flops / PEAKS["bf16"], found.floor_bytes[name] / BYTES_PER_SECOND)
        for name, part in found.parts.items()
    }


def largest(subject: Subject, **case: Any) -> int:
    """The largest F whose step fits into MEMORY, a multiple of 1,024.

    The peak grows linearly but for the blocks of rows, so it is near what two sizes say.
    """

    def peak(dict_size: int) -> int:
        return counted(subject, dict_size, **case).peak

    low, high = 2**17, 2**18
    slope = (peak(high) - peak(low)) / (high - low)
    guess = int(high + (MEMORY - peak(high)) / slope) // 1024
    near = [1024 * n for n in range(guess - 8, guess + 8)]
    return near[bisect_right(near, MEMORY, key=peak) - 1]


def measure(_: argparse.Namespace) -> None:
    began = time.monotonic()
    content = {
        "subjects": {
            name: {
                str(dict_size): {
                    case: summary(subject, dict_size, **arguments)
                    for case, arguments in CASES.items()
                }
                for dict_size in SIZES
            }
            for name, subject in SUBJECTS.items()
        },
        "floors": {str(dict_size): floors(dict_size) for dict_size in SIZES},
        "largest": {
            name: {case: largest(subject, **CASES[case]) for case in (EARLY, DEAD)}
            for name, subject in SUBJECTS.items()
        },
        "settings": {name: summary(subject, SIZES[0]) for name, subject in OTHER_SETTINGS.items()},
    }
    raw_results.write(RESULTS / "gpu_on_paper.json", raw_results.about(began) | content)


def giga(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:,.1f}"


def table_of_parts(
    dict_size: int, found: dict[str, Any], products: str, floor: dict[str, float] | None = None
) -> list[str]:
    """A row for each part of a step, and one for all."""

    def row(part: dict[str, Any], floor_ms: float) -> list[str]:
        return [
            f"{part['flops'] / 1e12:.2f}",
            f"{part['flops'] / (2 * B * D * dict_size):.2f}",
            giga(part["bytes"]),
            f"{part['bytes'] / (B * dict_size):.0f}",
            f"{part['bytes'] / (dict_size * D):.0f}",
            f"{part['operations']:,}",
            f"{part['tensors']:,}",
            f"{part[products]:.1f}",
            *([f"{floor_ms:.1f}" if floor_ms else ""] if floor else []),
        ]

    least = floor or {}
    rows = {
        name: row(found["parts"][name], least.get(name, 0.0))
        for name in PARTS
        if name in found["parts"]
    }
    rows["all"] = row(found, sum(least.values()))
    columns = ["TFLOP", "/ 2BDF", "GB", "bytes / BF", "bytes / FD", "operations", "tensors", "ms"]
    return table(f"F = {dict_size:,}", rows, [*columns, "floor, ms"] if floor else columns)


def savings(content: dict[str, Any]) -> list[tuple[str, list[float]]]:
    """What each change would save of a step of the vSAE in bf16, in ms at each size; the most first."""
    found: dict[str, list[float]] = {}
    for dict_size in map(str, SIZES):
        cases, floor = content["subjects"][OURS_BF16][dict_size], content["floors"][dict_size]
        part = {name: counts["bf16"] for name, counts in cases[EARLY]["parts"].items()}
        saved = {
            "encoder, noise and selection in one kernel": part[ENCODE]
            + part[SELECTION]
            - floor[SELECTION],
            "weight passes and Adam in one kernel": part[WEIGHTS] - floor[WEIGHTS],
            "the KL's moments in one kernel": part[KL] - floor[KL],
            "decode and backward in one kernel each": part[DECODE]
            + part[BACKWARD]
            - floor[DECODE]
            - floor[BACKWARD],
        }
        for name, ms in saved.items():
            found.setdefault(name, []).append(ms)
    return sorted(found.items(), key=lambda item: -item[1][0])


def tables(content: dict[str, Any]) -> list[str]:
    subjects, floor = content["subjects"], content["floors"]
    small, large = map(str, SIZES)
    peaks = {name: [f"{flops / 1e12:.0f} TFLOP/s"] for name, flops in PEAKS.items()}
    peaks |= {"memory": [f"{BYTES_PER_SECOND / 1e12} TB/s, {MEMORY / 1e9:.0f} GB"]}
    by_products = [
        (name.replace("fp32", products), name, products)
        for name, subject in SUBJECTS.items()
        for products in subject.products
    ]
    steps = {
        label: [
            f"{subjects[name][small][EARLY][products]:.1f}",
            giga(subjects[name][small][EARLY]["peak"]),
            f"{subjects[name][large][EARLY][products]:.0f}",
            giga(subjects[name][large][EARLY]["peak"]),
            *(f"{content['largest'][name][case]:,}" for case in (EARLY, DEAD)),
            f"{subjects[name][small][EARLY]['operations']:,}",
            f"{subjects[name][small][EARLY]['reads']}",
        ]
        for label, name, products in by_products
    }
    least = [f"{sum(floor[dict_size].values()):.1f}" for dict_size in (small, large)]
    steps["floor, bf16"] = [least[0], "", least[1], *[""] * 5]
    columns = [
        *(column for F in SIZES for column in (f"F = {F:,}: ms", "GB at the peak")),
        *("largest F", "while features are dead", "operations", "waits for the GPU"),
    ]
    lines = [
        f"{raw_results.about_line(content)}; B = {B:,}, D = {D:,}, k = {K}",
        "",
        *table("H100 SXM", peaks, ["peak"]),
        "",
        "## A step",
        "",
        *table("", steps, columns),
    ]
    for label, name, products in by_products:
        if products == "fp32":
            continue
        lines += ["", f"## The parts: {label}"]
        for dict_size in SIZES:
            of_ours = floor[str(dict_size)] if name == OURS_BF16 else None
            found = subjects[name][str(dict_size)][EARLY]
            lines += ["", *table_of_parts(dict_size, found, products, of_ours)]
    added = {
        f"{label}, F = {int(dict_size):,}": [
            *(
                cell
                for case in (NONE_DEAD, DEAD)
                for cell in (
                    f"{(found[case]['flops'] - found[EARLY]['flops']) / 1e12:.1f}",
                    f"{found[case][products] - found[EARLY][products]:.1f}",
                )
            ),
            giga(found[DEAD]["peak"]),
        ]
        for label, name, products in by_products
        if products != "fp32"
        for dict_size, found in subjects[name].items()
    }
    columns = [f"{NONE_DEAD}: TFLOP", "ms", f"{DEAD}: TFLOP", "ms", "GB at the peak"]
    lines += ["", "## What AuxK adds, after 10 million tokens", "", *table("", added, columns)]
    others = {
        name: [
            f"{found['bf16']:.1f}",
            f"{found['flops'] / 1e12:.1f}",
            *(giga(found[what]) for what in ("bytes", "peak")),
        ]
        for name, found in content["settings"].items()
    }
    columns = ["ms", "TFLOP", "GB", "GB at the peak"]
    lines += ["", "## Other settings", ""]
    lines += table(f"{OURS_BF16}, F = {SIZES[0]:,}", others, columns)
    saved = {name: [f"{ms:.1f}" for ms in by_size] for name, by_size in savings(content)}
    lines += ["", "## What each change would save", ""]
    return lines + table("ms of a step", saved, [f"F = {dict_size:,}" for dict_size in SIZES])


STAGES = Stages("speed.gpu_on_paper", {"bench": measure}, {"gpu_on_paper": Page(tables)})

if __name__ == "__main__":
    STAGES.run()
