"""How long one training step takes: ours against upstream's TopKTrainer, in one process.

    python experiments/benchmark_step.py

Interleaved, the median of `REPEATS` after a warm-up, on random activations: B = 2048, D = 512,
F = 2048, 2 threads. Also the three products of a code with a decoder, k-sparse and dense, which set
`trainers.codes.SPARSE_DENSITY`. Prints the tables and writes them to results/benchmark_step.md.
"""

import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch as t
from dictionary_learning.trainers.top_k import TopKTrainer

from dictionary_learning_ext import VariationalTopKTrainer
from dictionary_learning_ext.trainers.codes import DenseCode, SparseCode

BATCH, D, F, REPEATS, WARM_UP, SEED = 2048, 512, 2048, 20, 3, 0
RESULTS = Path(__file__).parent / "results" / "benchmark_step.md"


def medians(functions: dict[str, Callable[[int], object]]) -> dict[str, float]:
    """Milliseconds of each function, called in turn."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for repeat in range(WARM_UP + REPEATS):
        for name, function in functions.items():
            started = time.perf_counter()
            function(repeat)
            times[name].append(1000 * (time.perf_counter() - started))
    return {name: statistics.median(values[WARM_UP:]) for name, values in times.items()}


def steps(k: int) -> dict[str, float]:
    """Milliseconds of one update of upstream's TopK and of the vSAEs."""
    common = {
        "steps": 1000,
        "activation_dim": D,
        "dict_size": F,
        "k": k,
        "layer": 0,
        "lm_name": "none",
        "warmup_steps": 10,
        "threshold_start_step": 0,
        "seed": SEED,
        "device": "cpu",
    }
    generator = t.Generator().manual_seed(SEED)
    x_BD = t.randn(BATCH, D, generator=generator)
    upstream = TopKTrainer(**common)
    trainers = {
        "fixed, noise on both": VariationalTopKTrainer(**common),
        "fixed, noise on values": VariationalTopKTrainer(noise_on="values", **common),
        "point": VariationalTopKTrainer(posterior="point", **common),
        "learned, noise on both": VariationalTopKTrainer(posterior="learned", **common),
    }
    functions = {"upstream TopK": lambda step: upstream.update(step, x_BD)}
    for name, trainer in trainers.items():
        functions[name] = lambda step, trainer=trainer: trainer.update(step, x_BD)
    return medians(functions)


def products(k: int) -> dict[str, float]:
    """Milliseconds of decoding and both its gradients, k-sparse and dense."""
    generator = t.Generator().manual_seed(SEED)
    weight_DF = t.randn(F, D, generator=generator).t()
    grad_BD = t.randn(BATCH, D, generator=generator)
    values_BK, indices_BK = t.randn(BATCH, F, generator=generator).topk(k)

    def run(code) -> None:
        code.decode()
        code.backward(grad_BD)

    return medians(
        {
            "sparse": lambda _: run(SparseCode(indices_BK, values_BK, weight_DF)),
            "dense": lambda _: run(DenseCode(indices_BK, values_BK, weight_DF, t.float32)),
        }
    )


def main():
    t.set_num_threads(2)
    lines = [
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {t.get_num_threads()} threads, torch "
        f"{t.__version__}, {t.backends.cpu.get_cpu_capability()}; B={BATCH} D={D} F={F}, fp32, "
        f"seed {SEED}, median of {REPEATS}, milliseconds",
        "",
        "| one update | k=64 | / upstream | k=512 | / upstream |",
        "|---|---|---|---|---|",
    ]
    at_64, at_512 = steps(64), steps(512)
    for name in at_64:
        cells = []
        for result in (at_64, at_512):
            cells += [f"{result[name]:.0f}", f"{result[name] / result['upstream TopK']:.2f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "| products of a code | sparse | dense |", "|---|---|---|"]
    for k in (32, 64, 128, 256, 512):
        result = products(k)
        lines.append(
            f"| k={k} (k/F = 1/{F // k}) | {result['sparse']:.0f} | {result['dense']:.0f} |"
        )
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
