"""Step time against the dictionary's size F and against k, with fitted exponents.

    python -m experiments.speed.step_scaling     # about 5 minutes

time = b x^p, fitted to the logarithms: p at most 1 means no worse than linear. Ours in bf16 with noise
on both, upstream's TopK in fp32, B = 1024, D = 512. In k one power law is only a summary: from
k/F = 1/16 on our products are dense. So the local slopes, d log(time) / d log(x), stand beside.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch as t
from dictionary_learning.trainers.top_k import TopKTrainer

from dictionary_learning_ext import VariationalTopKTrainer
from experiments.pages import RESULTS, table, write
from experiments.speed.step_time import update
from experiments.speed.timing import header, medians

BATCH, D, SEED = 1024, 512, 0
SIZES = [1024, 2048, 4096, 8192, 16_384, 32_768, 65_536]  # at k = 64
KS = [32, 64, 128, 256, 512, 1024]  # at F = 8192
UPSTREAM_UP_TO = 32_768


def milliseconds(dict_size: int, k: int) -> dict[str, float]:
    arguments = {
        "steps": 10**6,
        "activation_dim": D,
        "dict_size": dict_size,
        "k": k,
        "layer": 0,
        "lm_name": "none",
        "warmup_steps": 10,
        "seed": SEED,
        "device": "cpu",
    }
    x_BD = t.randn(BATCH, D, generator=t.Generator().manual_seed(SEED))
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


def main() -> None:
    t.set_num_threads(2)
    by_size = {size: milliseconds(size, 64) for size in SIZES}
    by_k = {k: milliseconds(8192, k) for k in KS}
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6))
    lines = [
        "`python -m experiments.speed.step_scaling`",
        "",
        header(
            f"B={BATCH} D={D}, ours bf16, seed {SEED}, medians of 8", "dictionary-learning", "numpy"
        ),
    ]
    for axis, (title, results) in zip(
        axes, {"F, at k = 64": by_size, "k, at F = 8,192": by_k}.items(), strict=True
    ):
        rows, fitted = {}, []
        for name in ("vSAE", "upstream"):
            points = {x: values[name] for x, values in results.items() if name in values}
            rows[name] = [f"{points[x]:.0f}" if x in points else "" for x in results]
            p = exponent(list(points), list(points.values()))
            fitted.append(f"{name} {p:.2f}")
            axis.loglog(points.keys(), points.values(), "o-", label=f"{name}: exponent {p:.2f}")
        axis.set(xlabel=title, ylabel="ms a step")
        axis.legend()
        lines += ["", *table(f"ms, by {title}", rows, [f"{x:,}" for x in results])]
        slopes = [f"{slope:.2f}" for slope in local_slopes(results)]
        lines += [
            "",
            f"Fitted exponents: {', '.join(fitted)}. Ours, local slopes: {', '.join(slopes)}.",
        ]
    figure.tight_layout()
    RESULTS.mkdir(exist_ok=True)
    figure.savefig(RESULTS / "benchmark_scaling.png", dpi=110)
    lines += ["", "![Step time](benchmark_scaling.png)"]
    write("benchmark_scaling.md", lines)


if __name__ == "__main__":
    main()
