"""The parts of a step that have several forms, at several sizes: what the defaults of
`StepForm` rest on.

    python -m experiments.speed.parts     # about 3 minutes

1. The three products of a code with weights, k-sparse and dense, in fp32 and bf16:
   `sparse_density` and `sparse_projection_density`.
2. Noise and selection, torch's own and ours: `partitions_by_numpy`.
3. Rows in a block: `block`.
"""

from collections.abc import Callable

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
from experiments.pages import table, write
from experiments.speed.timing import header, medians

BATCH, D, F, SEED = 2048, 512, 2048, 0
FORM = StepForm.of(t.device("cpu"))
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


def main() -> None:
    t.set_num_threads(2)
    keep_freed_memory()
    lines = [
        "`python -m experiments.speed.parts`",
        "",
        header(
            f"B={BATCH} D={D} F={F}, seed {SEED}, milliseconds, medians of 20, in turns", "numpy"
        ),
    ]
    for dtype in (t.float32, t.bfloat16):
        rows = {}
        for k in (16, 32, 64, 128, 256, 512):
            result = products(k, dtype)
            rows[f"k={k} (k/F = 1/{F // k})"] = [f"{value:.1f}" for value in result.values()]
        title = f"four products, {str(dtype).removeprefix('torch.')}"
        lines += ["", *table(title, rows, list(result))]
    columns = {k: selection(k) for k in (64, 512)}
    rows = {name: [f"{columns[k][name]:.1f}" for k in columns] for name in columns[64]}
    lines += ["", *table("noise and selection", rows, [f"k={k}" for k in columns])]
    columns = {k: block_sizes(k) for k in (64, 512)}
    rows = {name: [f"{columns[k][name]:.1f}" for k in columns] for name in columns[64]}
    lines += ["", *table("numbers in a block", rows, [f"k={k}" for k in columns])]
    write("benchmark_parts.md", lines)


if __name__ == "__main__":
    main()
