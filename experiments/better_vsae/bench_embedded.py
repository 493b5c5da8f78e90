"""SAE Bench on the embedded model: a TopK SAE and two vSAEs between a random and an identity SAE.

    pip install -e '.[saebench]'
    python -m experiments.better_vsae.bench_embedded train
    python -m experiments.better_vsae.bench_embedded bench     # the wall time is in the results
    python -m experiments.better_vsae.bench_embedded tables    # write the page's tables again

Runs every evaluation that this model can do, with the size-matched control, and draws the paper's
figures 3 to 5 beside the page.
"""

import argparse
import time
from pathlib import Path
from typing import Any

from dictionary_learning_ext import RunConfig
from experiments import raw_results
from experiments.pages import table
from experiments.raw_results import RESULTS
from experiments.stages import Page, Stages
from experiments.trained_saes import FIRST_HOOK, top_k_and_two_vsaes, train_missing

STEPS, SEED = 1000, 0
RAW, RUNS = RESULTS / "bench_embedded.json", Path("runs/bench_embedded")
TRAINED = "top_k"
LESS_IS_MORE = ("near-dead", "absorption")


def train_three(_: argparse.Namespace) -> None:
    saes = top_k_and_two_vsaes(SEED)
    train_missing(RunConfig(hook=FIRST_HOOK, steps=STEPS), RUNS, saes, finished="ae.pt")


def measure(_: argparse.Namespace) -> None:
    """Bench what was trained, and draw the paper's figures: they need all of SAE Bench's results."""
    from dictionary_learning_ext.sae_bench.evaluations import EVALUATIONS
    from dictionary_learning_ext.sae_bench.results import rows_of
    from experiments.better_vsae.bench_figures import write_figures
    from experiments.size_matched import bench_size_matched

    folders = [RUNS / name for name in top_k_and_two_vsaes(SEED)]
    outcome, controls = bench_size_matched(folders, tuple(EVALUATIONS), floor=True)
    seconds: dict[str, float] = {}
    for results in outcome.results.values():
        for name, result in results.items():
            own = result["eval_result_unstructured"]["wall_seconds"]
            seconds[name] = seconds.get(name, 0.0) + own
    content = {
        "settings": {"date": time.strftime("%Y-%m-%d"), "wall_seconds": seconds},
        "columns": {label: rows_of(own) for label, own in outcome.results.items()},
        "controls": controls,
        "failures": outcome.failure_lines(),
    }
    raw_results.write(RAW, content)
    write_figures(outcome, controls.values(), RAW.with_suffix(""))


def is_measure(name: str) -> bool:
    """Whether a metric that the bench shows says how good an SAE is, not what the language model does."""
    return not (name.startswith(("L0", "alive")) or name.endswith(", language model"))


def verdicts(columns: dict[str, dict[str, float]]) -> dict[str, list[str]]:
    """For each measure, the three numbers, and whether identity > TopK > random."""
    random = next(label for label in columns if label.startswith("random"))
    rows = {}
    for name, trained in columns[TRAINED].items():
        floor, ceiling = columns[random].get(name), columns["identity"].get(name)
        if not is_measure(name) or floor is None or ceiling is None:
            continue
        sign = -1 if name.startswith(LESS_IS_MORE) else 1
        above = sign * (trained - floor) > 0
        below = sign * (ceiling - trained) > 0
        says = {
            (True, True): "identity > TopK > random",
            (True, False): "TopK > random, and above the identity: it is no ceiling here",
            (False, True): "**can't tell TopK from random here**",
            (False, False): "**orders neither as it should here**",
        }[above, below]
        rows[name] = [f"{floor:.3f}", f"{trained:.3f}", f"{ceiling:.3f}", says]
    return rows


def tables(content: dict[str, Any]) -> list[str]:
    settings, columns = content["settings"], content["columns"]
    seconds = ", ".join(f"{name} {own:.0f} s" for name, own in settings["wall_seconds"].items())
    controls = [f"`{control}` is `{label}`" for label, control in content["controls"].items()]
    names = dict.fromkeys(name for own in columns.values() for name in own)
    cells = {
        name: [f"{own[name]:.3f}" if name in own else "-" for own in columns.values()]
        for name in names
    }
    return [
        f"{settings['date']}; embedded model, blocks.0.hook_resid_post, D = 128, F = 512, "
        f"k = 16, {STEPS} steps of 1,024 tokens, seed {SEED}; SAE Bench 0.6.0 on the embedded "
        f"books. Wall time on 2 shared cores, all SAEs: {seconds}.",
        "",
        *table("", cells, list(columns)),
        "",
        f"Masked to equally many features: {'; '.join(controls) or 'none'}.",
        "",
        "## What each measure can tell apart at this size",
        "",
        *table("measure", verdicts(columns), ["random", "TopK", "identity", ""]),
        "",
        *(f"Couldn't be measured: {line}." for line in content["failures"]),
    ]


STAGES = Stages(
    "better_vsae.bench_embedded",
    {"train": train_three, "bench": measure},
    {"bench_embedded": Page(tables)},
)

if __name__ == "__main__":
    STAGES.run()
