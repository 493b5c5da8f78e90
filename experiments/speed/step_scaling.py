"""Step time against the dictionary's size F and against k, with fitted exponents.

    python -m experiments.speed.step_scaling bench     # about 5 minutes
    python -m experiments.speed.step_scaling tables    # write the page again

time = b x^p, fitted to the logarithms: p at most 1 means no worse than linear. Ours is in bf16 with
noise on both, upstream's TopK in fp32; B = 1024, D = 512. In k one power law is only a summary: from
k/F = 1/16 on our products are dense. So the page shows the local slopes, d log(time) / d log(x), too.
"""

import argparse
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch as t
from dictionary_learning.trainers.top_k import TopKTrainer

from dictionary_learning_ext import VariationalTopKTrainer
from experiments import raw_results
from experiments.pages import save_plot, table
from experiments.raw_results import RESULTS
from experiments.speed.timing import (
    SEED,
    activations,
    header,
    medians,
    trainer_arguments,
    update,
)
from experiments.stages import Stages

BATCH, D = 1024, 512
SIZES = [1024, 2048, 4096, 8192, 16_384, 32_768, 65_536]  # at k = 64
KS = [32, 64, 128, 256, 512, 1024]  # at F = 8192
UPSTREAM_UP_TO = 32_768


def milliseconds(dict_size: int, k: int) -> dict[str, float]:
    arguments, x_BD = trainer_arguments(D, dict_size, k), activations(BATCH, D)
    functions = {"vSAE": update(VariationalTopKTrainer(dtype="bfloat16", **arguments), x_BD)}
    if dict_size <= UPSTREAM_UP_TO:
        functions["upstream"] = update(TopKTrainer(**arguments), x_BD)
    return medians(functions, rounds=4)


def exponent(x: list[int], y: list[float]) -> float:
    """p of y = b x^p, fitted to the logarithms."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def local_slopes(results: dict[int, dict[str, float]]) -> list[float]:
    """Between neighbouring sizes, of ours."""
    times = [values["vSAE"] for values in results.values()]
    return list(np.diff(np.log(times)) / np.diff(np.log(list(results))))


def measure(_: argparse.Namespace) -> None:
    t.set_num_threads(2)
    setting = f"B={BATCH} D={D}, ours bf16, seed {SEED}, medians of 8"
    content = {
        "header": header(setting, "dictionary-learning", "numpy"),
        "F, at k = 64": {size: milliseconds(size, 64) for size in SIZES},
        "k, at F = 8,192": {k: milliseconds(8192, k) for k in KS},
    }
    raw_results.write(RESULTS / "benchmark_scaling.json", content)


def curves(content: dict[str, Any]) -> dict[str, dict[int, dict[str, float]]]:
    """By what grows, and its size (JSON's keys are text): the milliseconds of both."""
    return {
        title: {int(x): values for x, values in results.items()}
        for title, results in content.items()
        if title != "header"
    }


def tables(content: dict[str, Any]) -> list[str]:
    """The page, from the raw results alone."""
    lines = [content["header"]]
    for title, results in curves(content).items():
        rows, fitted = {}, []
        for name in ("vSAE", "upstream"):
            points = {x: values[name] for x, values in results.items() if name in values}
            rows[name] = [f"{points[x]:.0f}" if x in points else "" for x in results]
            fitted.append(f"{name} {exponent(list(points), list(points.values())):.2f}")
        slopes = ", ".join(f"{slope:.2f}" for slope in local_slopes(results))
        lines += [
            "",
            *table(f"ms, by {title}", rows, [f"{x:,}" for x in results]),
            "",
            f"Fitted exponents: {', '.join(fitted)}. Ours, local slopes: {slopes}.",
        ]
    return [*lines, "", "![Step time](benchmark_scaling.png)"]


def draw(content: dict[str, Any], page: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6))
    for axis, (title, results) in zip(axes, curves(content).items(), strict=True):
        for name in ("vSAE", "upstream"):
            points = {x: values[name] for x, values in results.items() if name in values}
            p = exponent(list(points), list(points.values()))
            axis.loglog(points.keys(), points.values(), "o-", label=f"{name}: exponent {p:.2f}")
        axis.set(xlabel=title, ylabel="ms a step")
        axis.legend()
    save_plot(figure, page.with_suffix(".png"), dpi=110)


STAGES = Stages("speed.step_scaling", {"bench": measure}, tables, draw)

if __name__ == "__main__":
    STAGES.run()
