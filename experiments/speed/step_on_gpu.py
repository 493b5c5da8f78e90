"""A training step on a GPU: tokens/s beside other libraries', peak memory, syncs, and the CPU's result.

    python -m experiments.speed.step_on_gpu bench     # about 3 minutes on one GPU
    python -m experiments.speed.step_on_gpu tables    # write the page's tables again

It ends at once where there is no GPU. SAELens and sparsify are measured where they are installed, as in
`step_time.py`. The rows of each size take turns. A step's syncs are counted in a profiler's trace: the
times that the host waits for the device. Without noise the same steps are taken on the CPU, and the
losses compared.
"""

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch as t
from dictionary_learning.trainers.top_k import TopKTrainer

from dictionary_learning_ext import VariationalTopKTrainer
from experiments import raw_results
from experiments.pages import table
from experiments.raw_results import RESULTS
from experiments.speed import step_time
from experiments.speed.timing import (
    SEED,
    Step,
    activations,
    equations,
    header,
    trainer_arguments,
    update,
)
from experiments.stages import Page, Stages

D, K = 768, 64
SIZES = ((4096, 16_384), (4096, 65_536))  # B, F
CALLS, ROUNDS = 10, 5
OURS: dict[str, dict[str, Any]] = {
    f"{name}, {dtype}": equations(dtype=dtype, **options)
    for dtype in ("float32", "bfloat16")
    for name, options in {
        "fixed, noise on both": {},
        "fixed, noise on selection": {"noise_on": "selection"},
        "learned, noise on both": {"posterior": "learned"},
    }.items()
}


def arguments(dict_size: int, device: str = "cuda") -> dict[str, Any]:
    return trainer_arguments(D, dict_size, K) | {"threshold_start_step": 0, "device": device}


def makers(batch: int, dict_size: int) -> dict[str, Callable[[], Step]]:
    """What makes each row's step."""
    x_BD = activations(batch, D).cuda()
    given = arguments(dict_size)
    made: dict[str, Callable[[], Step]] = {
        "upstream TopK, float32": lambda: update(TopKTrainer(**given), x_BD)
    }
    made |= step_time.other_libraries(K, x_BD, dict_size)
    for name, options in OURS.items():
        made[name] = lambda options=options: update(
            VariationalTopKTrainer(**given, **options), x_BD
        )
    return made


def peak_mib(make: Callable[[], Step]) -> float:
    """The peak of a step's memory, with weights and optimiser."""
    gc.collect()
    t.cuda.empty_cache()
    before = t.cuda.memory_allocated()
    step = make()
    step()
    t.cuda.reset_peak_memory_stats()
    step()
    return (t.cuda.max_memory_allocated() - before) / 2**20


def syncs(make: Callable[[], Step]) -> float:
    """How often the host waits for the device in a step, in the trace of ten."""
    step = make()
    for _ in range(3):
        step()
    t.cuda.synchronize()
    activities = [t.profiler.ProfilerActivity.CPU, t.profiler.ProfilerActivity.CUDA]
    with t.profiler.profile(activities=activities) as trace:
        for _ in range(10):
            step()
    names = ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaDeviceSynchronize")
    counts = {event.key: event.count for event in trace.key_averages()}
    # The profiler itself waits once, at its end.
    return max(0, sum(counts.get(name, 0) for name in names) - 1) / 10


def milliseconds(made: dict[str, Callable[[], Step]]) -> dict[str, float]:
    """The median time of a step of each, of turns of several steps."""
    steps = {name: make() for name, make in made.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(ROUNDS + 1):
        for name, step in steps.items():
            t.cuda.synchronize()
            began = time.perf_counter()
            for _ in range(CALLS):
                step()
            t.cuda.synchronize()
            if round_:
                times[name].append(1000 * (time.perf_counter() - began) / CALLS)
    return {name: statistics.median(values) for name, values in times.items()}


def differences_from_the_cpu() -> dict[str, float]:
    """The largest relative difference of a loss in ten steps, without noise, from the same weights."""
    batch, dict_size, found = 512, 4096, {}
    for name, options in OURS.items():
        shared = options | {"noise_anneal_steps": 1, "kl_schedule": "constant"}
        cpu, gpu = (
            VariationalTopKTrainer(**arguments(dict_size, device), **shared)
            for device in ("cpu", "cuda")
        )
        gpu.ae.load_state_dict(cpu.ae.state_dict())
        worst = 0.0
        for step in range(1, 11):
            x_BD = t.randn(batch, D, generator=t.Generator().manual_seed(step))
            one, other = cpu.update(step, x_BD).item(), gpu.update(step, x_BD.cuda()).item()
            worst = max(worst, abs(one - other) / abs(one))
        found[name] = worst
    return found


def measure(_: argparse.Namespace) -> None:
    if not t.cuda.is_available():
        raise SystemExit(
            "no GPU: torch.cuda.is_available() is False. "
            "python -m experiments.speed.step_time bench measures a CPU."
        )
    t.manual_seed(SEED)
    sizes = {}
    for batch, dict_size in SIZES:
        made = makers(batch, dict_size)
        sizes[f"{batch} x {dict_size}"] = {
            "batch": batch,
            "milliseconds": milliseconds(made),
            "peak": {name: peak_mib(make) for name, make in made.items()},
            "syncs": {name: syncs(make) for name, make in made.items()},
        }
    setting = f"{t.cuda.get_device_name()}; D={D} k={K}, seed {SEED}, medians of {ROUNDS} turns"
    content = {
        "header": header(setting, "dictionary-learning"),
        "sizes": sizes,
        "differences": differences_from_the_cpu(),
    }
    raw_results.write(RESULTS / "benchmark_gpu.json", content)


def tables(content: dict[str, Any]) -> list[str]:
    lines = [content["header"]]
    for size, part in content["sizes"].items():
        times, reference = part["milliseconds"], "upstream TopK, float32"
        rows = {
            name: [
                f"{value:.1f}",
                f"{1000 * part['batch'] / value:,.0f}",
                f"{value / times[reference]:.2f}",
                f"{part['peak'][name]:,.0f}",
                f"{part['syncs'][name]:.1f}",
            ]
            for name, value in times.items()
        }
        columns = ["ms", "tokens/s", "/ upstream", "peak MiB", "syncs a step"]
        lines += ["", *table(f"B x F = {size}", rows, columns)]
    differences = {name: [f"{value:.1e}"] for name, value in content["differences"].items()}
    title = "without noise, ten steps from the same weights"
    return [*lines, "", *table(title, differences, ["largest relative difference from the CPU"])]


STAGES = Stages("speed.step_on_gpu", {"bench": measure}, {"benchmark_gpu": Page(tables)})

if __name__ == "__main__":
    STAGES.run()
