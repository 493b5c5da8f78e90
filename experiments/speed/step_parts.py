"""The parts of a step that have several forms, at several sizes: what the defaults of
`StepForm` rest on.

    python -m experiments.speed.step_parts bench     # about 3 minutes
    python -m experiments.speed.step_parts tables    # write the page again

1. The three products of a code with weights, k-sparse and dense, in fp32 and bf16:
   `sparse_density` and `sparse_projection_density`.
2. Noise and selection, torch's own and ours: `partitions_by_numpy`.
3. Rows in a block: `block`.
"""

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import torch as t

from dictionary_learning_ext.trainers.kernels.codes import DenseCode, SparseCode
from dictionary_learning_ext.trainers.kernels.row_blocks import map_row_blocks
from dictionary_learning_ext.trainers.kernels.scratch import keep_freed_memory
from dictionary_learning_ext.trainers.kernels.selection import (
    MeanSelection,
    draw_code,
    normal_noise,
    top_k,
)
from dictionary_learning_ext.trainers.kernels.step_form import StepForm
from experiments import raw_results
from experiments.pages import table
from experiments.raw_results import RESULTS
from experiments.speed.timing import SEED, header, medians
from experiments.stages import Stages

BATCH, D, F = 2048, 512, 2048
FORM = StepForm.of(t.device("cpu"))
PRODUCT_KS, SELECTION_KS = (16, 32, 64, 128, 256, 512), (64, 512)
Code = SparseCode | DenseCode


def randn(*shape: int) -> t.Tensor:
    return t.randn(*shape, generator=t.Generator().manual_seed(SEED))


def products(k: int, dtype: t.dtype) -> dict[str, float]:
    """Each product of each form."""
    weight_FD, rows_BD = randn(F, D), randn(BATCH, D)
    values_BK, indices_BK = randn(BATCH, F).topk(k)
    forms: dict[str, Callable[[], Code]] = {
        "sparse": lambda: SparseCode(indices_BK, F, dtype),
        "mixed": lambda: SparseCode(indices_BK, F, dtype, projects_densely=True),
        "dense": lambda: DenseCode(indices_BK, F, dtype, "code"),
    }

    def step(make: Callable[[], Code]) -> None:
        code = make()  # as in a step: the reconstruction, its gradients, the encoder's
        code.combine(values_BK, weight_FD)
        code.project(rows_BD)
        code.outer(values_BK, rows_BD)
        code.outer(values_BK, rows_BD)

    return medians({name: lambda make=make: step(make) for name, make in forms.items()})


def selection(k: int) -> dict[str, float]:
    """Noise and the K largest of all rows."""
    mu_BF, noise_BF, sigma = randn(BATCH, F), t.empty(BATCH, F), t.tensor(1.0)
    generator = t.Generator().manual_seed(SEED)

    def in_blocks(function) -> list:
        return map_row_blocks(function, BATCH, F, generator, FORM.block)

    return medians(
        {
            "noise: torch's normal_": lambda: noise_BF.normal_(generator=generator),
            "noise: table, blocks": lambda: in_blocks(
                lambda r, g: normal_noise(mu_BF[r], sigma, g)
            ),
            "K largest: torch's topk": lambda: mu_BF.topk(k, sorted=False),
            "K largest: numpy, one thread": lambda: np.argpartition(mu_BF.numpy(), -k, axis=1),
            "K largest: blocks": lambda: in_blocks(lambda r, _: top_k(mu_BF[r], k, FORM)),
            "what the mean selects: blocks": lambda: in_blocks(
                lambda r, _: MeanSelection.of_means(mu_BF[r], k, FORM)
            ),
        }
    )


def block_sizes(k: int) -> dict[str, float]:
    """Noise, the K largest and what the mean selects, in blocks of 2^16 to 2^21 numbers."""
    mu_BF, sigma = randn(BATCH, F), t.tensor(1.0)
    generator = t.Generator().manual_seed(SEED)

    def draw(rows: slice, own: t.Generator | None) -> None:
        draw_code(mu_BF[rows], sigma, k, "both", 1.0, own, FORM)
        MeanSelection.of_means(mu_BF[rows], k, FORM)

    def with_block(size: int) -> None:
        map_row_blocks(draw, BATCH, F, generator, size)

    return medians({f"2^{n}": lambda n=n: with_block(2**n) for n in range(16, 22)})


def measure(_: argparse.Namespace) -> None:
    t.set_num_threads(2)
    keep_freed_memory()
    setting = f"B={BATCH} D={D} F={F}, seed {SEED}, milliseconds, medians of 20, in turns"
    content = {
        "header": header(setting, "numpy"),
        "products": {
            str(dtype).removeprefix("torch."): {str(k): products(k, dtype) for k in PRODUCT_KS}
            for dtype in (t.float32, t.bfloat16)
        },
        "selection": {str(k): selection(k) for k in SELECTION_KS},
        "blocks": {str(k): block_sizes(k) for k in SELECTION_KS},
    }
    raw_results.write(RESULTS / "benchmark_parts.json", content)


def tables(content: dict[str, Any]) -> list[str]:
    """The page, from the raw results alone."""
    lines = [content["header"]]
    for dtype, by_k in content["products"].items():
        rows = {
            f"k={k} (k/F = 1/{F // int(k)})": [f"{value:.1f}" for value in times.values()]
            for k, times in by_k.items()
        }
        forms = list(next(iter(by_k.values())))
        lines += ["", *table(f"four products, {dtype}", rows, forms)]
    for title, name in (("noise and selection", "selection"), ("numbers in a block", "blocks")):
        by_k = content[name]
        rows = {
            part: [f"{times[part]:.1f}" for times in by_k.values()]
            for part in next(iter(by_k.values()))
        }
        lines += ["", *table(title, rows, [f"k={k}" for k in by_k])]
    return lines


STAGES = Stages("speed.step_parts", {"bench": measure}, tables)

if __name__ == "__main__":
    STAGES.run()
