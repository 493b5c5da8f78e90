"""The parts of a step that have several forms, at several sizes: what the defaults of
`StepForm` rest on.

    python -m experiments.speed.step_parts bench     # about 3 minutes
    python -m experiments.speed.step_parts tables    # write the page's tables again

1. The three products of a code with weights, k-sparse and dense, in fp32 and bf16:
   `sparse_density` and `sparse_projection_density`.
2. Noise, the K largest, and what the mean alone selects: compiled, and by torch.
3. The encoder and all of these, by how many rows a thread works through at a time: `rows_at_once`.
4. The products of AuxK's code: over the whole dictionary, and over the dead features alone.
"""

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import torch as t

from dictionary_learning_ext.trainers.kernels.encode import BatchMeans
from dictionary_learning_ext.trainers.kernels.memory import keep_freed_memory
from dictionary_learning_ext.trainers.kernels.products import (
    Code,
    DenseCode,
    SparseCode,
    StepForm,
    SubsetCode,
    top_k_code,
)
from dictionary_learning_ext.trainers.kernels.select import Draw, draw_batch, draw_code, top_k
from experiments.pages import table
from experiments.raw_results import RESULTS
from experiments.speed.timing import (
    SEED,
    header,
    medians,
    page_by_cpu,
    write_for_this_cpu,
)
from experiments.stages import Page, Stages

BATCH, D, F = 2048, 512, 2048
FORM = StepForm.of(t.device("cpu"), F * D)
PRODUCT_KS, SELECTION_KS = (16, 32, 64, 128, 256, 512), (64, 512)
DEAD_COUNTS, TOP_K_AUX = (16, 64, 256, 512, 1024), D // 2


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

    return four_products(forms, values_BK, weight_FD, rows_BD)


def auxk_products(n_dead: int, dtype: t.dtype) -> dict[str, float]:
    """The products of each row's TOP_K_AUX largest features of those that are dead, or of all of these."""
    weight_FD, rows_BD = randn(F, D), randn(BATCH, D)
    dead = t.randperm(F, generator=t.Generator().manual_seed(SEED))[:n_dead]
    values_BK, places_BK = randn(BATCH, n_dead).topk(min(TOP_K_AUX, n_dead))
    forms: dict[str, Callable[[], Code]] = {
        "whole dictionary": lambda: top_k_code(dead[places_BK], F, dtype, FORM, "aux_code"),
        "dead alone": lambda: SubsetCode(places_BK, dead, F, dtype, FORM, "aux_code"),
    }
    return four_products(forms, values_BK, weight_FD, rows_BD)


def four_products(
    forms: dict[str, Callable[[], Code]],
    values_BK: t.Tensor,
    weight_FD: t.Tensor,
    rows_BD: t.Tensor,
) -> dict[str, float]:
    """As in a step: the reconstruction, its gradients, the encoder's."""

    def step(make: Callable[[], Code]) -> None:
        code = make()
        code.combine(values_BK, weight_FD)
        code.project(rows_BD)
        code.outer(values_BK, rows_BD)
        code.outer(values_BK, rows_BD)

    return medians({name: lambda make=make: step(make) for name, make in forms.items()})


def draw(x_BD: t.Tensor, weight_FD: t.Tensor, k: int, dtype: t.dtype, rows: int) -> object:
    """The encoder, noise, the K largest, and what the mean alone selects."""
    means = BatchMeans(
        x_BD,
        weight_FD,
        weight_FD.new_zeros(F),
        rectify=False,
        matmul_dtype=dtype,
        keep=False,
        means_at_once=FORM.means_at_once,
    )
    sigma = weight_FD.new_ones(())
    how = Draw(k, "both", 1.0, t.Generator().manual_seed(SEED))
    return draw_batch(means, sigma, None, how, rows)


def selection(k: int) -> dict[str, float]:
    """Noise and the K largest of all rows."""
    mu_BF, sigma = randn(BATCH, F), t.tensor(1.0)
    x_BD, weight_FD = randn(BATCH, D), randn(F, D)
    generator = t.Generator().manual_seed(SEED)

    def by_torch() -> None:
        mu_BF = x_BD @ weight_FD.t()
        draw_code(mu_BF, sigma, Draw(k, "both", 1.0, generator))
        mu_BF.topk(k, sorted=False)

    return medians(
        {
            "the K largest: torch's topk": lambda: mu_BF.topk(k, sorted=False),
            "the K largest: numpy, one thread": lambda: np.argpartition(mu_BF.numpy(), -k, axis=1),
            "the K largest: compiled": lambda: top_k(mu_BF, k, FORM.rows_at_once),
            "the encoder alone, fp32": lambda: x_BD @ weight_FD.t(),
            "encoder, noise, the sample's and the mean's K largest: torch": by_torch,
            "the same, compiled": lambda: draw(x_BD, weight_FD, k, t.float32, FORM.rows_at_once),
            "the same, compiled, bf16": lambda: draw(
                x_BD, weight_FD, k, t.bfloat16, FORM.rows_at_once
            ),
        }
    )


def rows_at_once(k: int) -> dict[str, float]:
    """The encoder in bf16, noise, the K largest and what the mean selects."""
    x_BD, weight_FD = randn(BATCH, D), randn(F, D)
    sizes = (32, 64, 128, 256, 512, 1024)
    return medians({str(n): lambda n=n: draw(x_BD, weight_FD, k, t.bfloat16, n) for n in sizes})


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
        "rows": {str(k): rows_at_once(k) for k in SELECTION_KS},
        "auxk": {
            str(dtype).removeprefix("torch."): {
                str(n): auxk_products(n, dtype) for n in DEAD_COUNTS
            }
            for dtype in (t.float32, t.bfloat16)
        },
    }
    write_for_this_cpu(RESULTS / "benchmark_parts.json", content)


def tables(content: dict[str, Any]) -> list[str]:
    lines = [content["header"]]
    for dtype, by_k in content["products"].items():
        rows = {
            f"k={k} (k/F = 1/{F // int(k)})": [f"{value:.1f}" for value in times.values()]
            for k, times in by_k.items()
        }
        forms = list(next(iter(by_k.values())))
        lines += ["", *table(f"four products, {dtype}", rows, forms)]
    for dtype, by_count in content.get("auxk", {}).items():
        rows = {
            f"{n} dead": [f"{value:.1f}" for value in times.values()]
            for n, times in by_count.items()
        }
        forms = list(next(iter(by_count.values())))
        lines += ["", *table(f"AuxK's four products, {dtype}", rows, forms)]
    for title, name in (("noise and selection", "selection"), ("rows at once", "rows")):
        if name not in content:  # another kind of CPU measured the products alone
            continue
        by_k = content[name]
        rows = {
            part: [f"{times[part]:.1f}" for times in by_k.values()]
            for part in next(iter(by_k.values()))
        }
        lines += ["", *table(title, rows, [f"k={k}" for k in by_k])]
    return lines


STAGES = Stages(
    "speed.step_parts", {"bench": measure}, {"benchmark_parts": Page(page_by_cpu(tables))}
)

if __name__ == "__main__":
    STAGES.run()
