"""Who returns most once training has converged, with every arm tuned alike? See PROTOCOL_CONVERGENCE.md.

    python -m experiments.reproducibility.convergence train     # tune, confirm: about 15 hours
    python -m experiments.reproducibility.convergence tables    # write the page's tables again

    ... tune
    ... confirm --setting "embedded, blocks.0"                  # settings whose name begins so
    ... confirm --first 3 --pairs 2                             # the fourth and fifth pair of seeds

It can be stopped at any time: a pair of seeds that has its rows is not run again. Two processes may run
different pairs at the same time.
"""

import argparse
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch as t

from experiments.pages import LABELS, save_plot, table
from experiments.paired_tests import sign_flip
from experiments.raw_results import RESULTS, about_line
from experiments.reproducibility import parts
from experiments.reproducibility.decisions import PRIMARY, Row, means, paired, parts_of
from experiments.reproducibility.page import SHOWN, arm_cells
from experiments.reproducibility.settings import CONFIRM, Options, Setting
from experiments.stages import Page, Stages

RAW = RESULTS / "convergence.json"
TOP_K, NOISE, BOTH, PROBABILISTIC = ARMS = (
    "TopK",
    "noise alone",
    "noise and penalty",
    "Probabilistic TopK",
)
SETTINGS = (
    "embedded, blocks.2, F = 4D, k/F = 1/32",
    "embedded, blocks.0, F = 4D, k/F = 1/32",
    "embedded, blocks.2, F = 4D, k/F = 1/8",
)
IN_FLOAT32 = SETTINGS[2]
"""Trained on a CPU without bf16 instructions; the others' products are in bf16."""
TUNING_SEEDS = (920, 921)
PAIRS = tuple((seed, seed + 1) for seed in range(4000, 4014, 2))
LONGER = 4
"""How much longer the confirmation is than the tuning."""
FVE_KEPT = 0.001
COLOURS: dict[str, str] = dict(zip(ARMS, ("black", "teal", "crimson", "grey"), strict=True))
MEASURES = {name: SHOWN[name] for name in SHOWN if name not in ("frac_recovered", "sae_probes")}

_KNOBS: dict[str, tuple[Options, str, tuple[float, ...]]] = {
    TOP_K: ({"architecture": "top_k"}, "batch", (512, 1024, 2048)),
    NOISE: ({}, "noise", (0.1, 0.3, 0.6)),
    BOTH: ({"noise": 0.3}, "penalty", (0.01, 0.03, 0.1)),
    PROBABILISTIC: (
        {"architecture": "probabilistic_top_k"},
        "temperature_start",
        (0.5, 1.0, 2.0),
    ),
}


def _candidates(arm: str, batch: int | None, lrs: tuple[float, ...]) -> dict[str, Options]:
    """An arm's, by name.

    Arguments:
        batch: of the run. None: the setting's, or TopK's own knob.
    """
    own, knob, values = _KNOBS[arm]
    named = {f"{knob.removesuffix('_start')} {value:g}, ": {knob: value} for value in values}
    if batch is not None:
        named = {} if knob == "batch" else named
        named = {
            f"{start}batch {batch}, ": one | {"batch": batch}
            for start, one in (named or {"": {}}).items()
        }
    return {
        f"{arm}, {start}lr {lr:g}": own | one | {"lr": lr}
        for start, one in named.items()
        for lr in lrs
    }


CANDIDATES = {
    arm: _candidates(arm, None, (1e-3, 2e-3, 4e-3)) | _candidates(arm, 512, (4e-3, 8e-3))
    for arm in ARMS
}
"""By arm and name, of both rounds of the tuning. `batch` is the run's, not the SAE's."""


def tune(arguments: argparse.Namespace) -> None:
    t.set_num_threads(arguments.threads)
    every = {name: one for own in CANDIDATES.values() for name, one in own.items()}
    _run("tuning", "tuning", CONFIRM[SETTINGS[0]], every, TUNING_SEEDS)


def confirm(arguments: argparse.Namespace) -> None:
    t.set_num_threads(arguments.threads)
    found = chosen(parts.read(RAW))
    if found is None:
        raise SystemExit(
            f"no candidates are chosen: expected the rows of all of them in {RAW.name}; type: "
            "python -m experiments.reproducibility.convergence tune"
        )
    arms = {arm: CANDIDATES[arm][name] for arm, name in found.items()}
    for name in (name for name in SETTINGS if name.startswith(arguments.setting)):
        setting = longer(CONFIRM[name])
        if name == IN_FLOAT32:
            setting = replace(setting, dtype="float32")
        for seeds in PAIRS[arguments.first :][: arguments.pairs]:
            _run("convergence", name, setting, arms, seeds)


def longer(setting: Setting) -> Setting:
    """The same with four times the steps. The cache is read as often as that needs."""
    return replace(setting, steps=LONGER * setting.steps, passes=13)


def _run(
    stage: str, name: str, setting: Setting, arms: dict[str, Options], seeds: tuple[int, int]
) -> None:
    """Train and measure the arms, those of one batch size from one buffer, at equal tokens."""
    tokens = setting.steps * setting.batch
    batches = {arm: int(options.get("batch", setting.batch)) for arm, options in arms.items()}
    for batch in sorted(set(batches.values())):
        own = {
            arm: {knob: value for knob, value in options.items() if knob != "batch"}
            for arm, options in arms.items()
            if batches[arm] == batch
        }
        sized = replace(setting, batch=batch, steps=tokens // batch)
        parts.run_part(stage, name, sized, own, seeds, RAW)


def train(arguments: argparse.Namespace) -> None:
    tune(arguments)
    confirm(arguments)


# --- what decides


def tuned(content: dict[str, Any]) -> list[Row]:
    return parts_of(content, "tuning", "tuning")


def confirmed(content: dict[str, Any], name: str) -> list[Row]:
    return parts_of(content, "convergence", name)


def chosen(content: dict[str, Any]) -> dict[str, str] | None:
    """Each arm's candidate; None before all have been tuned."""
    rows = tuned(content)
    if not {name for own in CANDIDATES.values() for name in own} <= {row["arm"] for row in rows}:
        return None

    def of(name: str, measure: str) -> float:
        return statistics.mean(means(rows, name, measure))

    best = max(of(name, "fve") for name in CANDIDATES[TOP_K])
    found: dict[str, str] = {}
    for arm, own in CANDIDATES.items():
        fve = of(found[TOP_K], "fve") if TOP_K in found else best
        kept = [name for name in own if of(name, "fve") >= fve - FVE_KEPT]
        measure = PRIMARY if kept else "fve"
        found[arm] = max(kept or own, key=lambda name: of(name, measure))
    return found


def keeps_fve(rows: list[Row], arm: str) -> bool:
    """Whether an arm's FVE is at most 0.001 below TopK's, on average."""
    return statistics.mean(paired(rows, arm, TOP_K, "fve")) >= -FVE_KEPT


def winner(rows: list[Row], arms: tuple[str, ...] = ARMS) -> str | None:
    """The arm that keeps FVE and returns more than every other one that does, in all seven pairs; None if
    there is none, or before all pairs are there."""
    if any(len(means(rows, arm, PRIMARY)) < len(PAIRS) for arm in arms):
        return None
    kept = [arm for arm in arms if keeps_fve(rows, arm)]
    for arm in kept:
        if all(min(paired(rows, arm, other, PRIMARY)) > 0 for other in kept if other != arm):
            return arm
    return None


# --- the page


def tables(content: dict[str, Any]) -> list[str]:
    found = chosen(content) or {}
    lines = ["Chosen: " + ("; ".join(found.values()) or "not yet") + ".", ""]
    for name in SETTINGS:
        if rows := confirmed(content, name):
            lines += [f"## {name}, 16,384,000 tokens", "", *_setting(rows), ""]
    rows = tuned(content)
    there = {row["arm"] for row in rows}
    for arm, own in CANDIDATES.items():
        shown = {
            f"**{name}**" if name in found.values() else name: arm_cells(rows, name, MEASURES)
            for name in own
            if name in there
        }
        lines += [f"## Tuning: {arm}", "", *table("", shown, list(MEASURES.values())), ""]
    told = (f"- {part}: {about_line(own)}" for part, own in sorted(content["parts"].items()))
    return [*lines, "## Parts", "", *told]


def _setting(rows: list[Row]) -> list[str]:
    shown = {arm: arm_cells(rows, arm, MEASURES) for arm in ARMS}
    over = {
        f"{arm} over {other}": [
            *(_differences(paired(rows, arm, other, measure)) for measure in (PRIMARY, "fve")),
            f"{sign_flip(paired(rows, arm, other, PRIMARY)):.3f}",
        ]
        for arm, other in (
            (NOISE, TOP_K),
            (BOTH, TOP_K),
            (PROBABILISTIC, TOP_K),
            (NOISE, BOTH),
            (NOISE, PROBABILISTIC),
            (BOTH, PROBABILISTIC),
        )
    }
    pairs = len(means(rows, TOP_K, PRIMARY))
    kept = [arm for arm in ARMS if keeps_fve(rows, arm)]
    verdict = (
        f"Keep FVE: {', '.join(kept)}. Wins: {winner(rows) or 'nobody'}. Among the vSAEs and TopK: "
        f"{winner(rows, (TOP_K, NOISE, BOTH)) or 'nobody'}."
        if pairs == len(PAIRS)
        else f"{pairs} of {len(PAIRS)} pairs: not whole."
    )
    return [
        verdict,
        "",
        *table("", shown, list(MEASURES.values())),
        "",
        *table("", over, [SHOWN[PRIMARY], SHOWN["fve"], "p, returns more"]),
    ]


def _differences(values: list[float]) -> str:
    return f"{statistics.mean(values):+.4f} ({min(values):+.4f} to {max(values):+.4f})"


def draw(content: dict[str, Any], page: Path) -> None:
    """First every candidate of the tuning, then every pair of each setting."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(11, 8.4))
    first, *others = axes.flat
    rows, found = tuned(content), chosen(content) or {}
    there = {row["arm"] for row in rows}
    for arm, own in CANDIDATES.items():
        named = [name for name in own if name in there]
        at = {n: (means(rows, n, "fve")[0], means(rows, n, PRIMARY)[0]) for n in named}
        first.scatter(*zip(*at.values(), strict=True), c=COLOURS[arm], s=28, label=arm)
        if (name := found.get(arm)) is not None:
            first.plot(*at[name], "o", markersize=11, fillstyle="none", color=COLOURS[arm])
    first.set(title="Tuning: one pair each, the choice circled")
    for axis, name in zip(others, SETTINGS, strict=True):
        rows = confirmed(content, name)
        for arm in ARMS:
            points = means(rows, arm, "fve"), means(rows, arm, PRIMARY)
            axis.plot(*points, "o", color=COLOURS[arm], markersize=5, alpha=0.7, label=arm)
        axis.set(title=f"{name}, four times as long")
    for axis in axes.flat:
        axis.set(xlabel=LABELS["fve"], ylabel=SHOWN[PRIMARY])
        axis.legend(fontsize=8)
    save_plot(figure, page.with_suffix(".png"), dpi=110)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--setting", default="", help="the start of a setting's name")
    parser.add_argument("--first", type=int, default=0, help="the first pair of seeds, from 0")
    parser.add_argument("--pairs", type=int, default=len(PAIRS), help="how many pairs of seeds")
    parser.add_argument("--threads", type=int, default=1, help="of torch")


STAGES = Stages(
    "reproducibility.convergence",
    {"train": train, "tune": tune, "confirm": confirm},
    {"convergence": Page(tables, draw)},
    options,
)

if __name__ == "__main__":
    STAGES.run()
