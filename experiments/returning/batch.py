"""Is the vSAE over BatchTopK ahead, and should it be the preset? See PROTOCOL_BATCH.md, which says what cache it needs.

python -m experiments.returning.batch train [STEP …]   # 1 to 5, default: all; continues where it was stopped
python -m experiments.returning.batch measure          # what is trained and has no rows
python -m experiments.returning.batch tables           # write the pages' tables again
"""

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import replace
from statistics import mean
from typing import Any

import torch as t

from experiments.pages import table
from experiments.raw_results import RESULTS
from experiments.returning import rules, truth
from experiments.returning.arms import COMPARED, GATED, OVER_BATCH, TUNED, Arm
from experiments.returning.study import (
    BLOCKS_2,
    DENSE,
    PLACES,
    Content,
    Part,
    means,
    measure_parts,
    read,
    tables_of,
    train_arms,
)
from experiments.stages import Page, Stages
from experiments.trained_saes import metrics_of

RAW, TRUTH = RESULTS / "batch_top_k.json", RESULTS / "batch_top_k_truth.json"
TUNING_SEEDS, RATE_SEED, SEEDS, LONG_SEEDS = (
    (9400, 9401),
    9402,
    (9410, 9411, 9412, 9413),
    (9410, 9411),
)
TRUTH_SEED, LENGTHS = 9414, (1, 2)
LRS, PACKAGES_LR, LR_AHEAD, LEVEL = (2e-3, 4e-3, 8e-3), 4e-3, 0.001, 0.01
TODAY = "vSAE as today's preset"
LONG = replace(BLOCKS_2, times=4)


def tuning() -> list[Part]:
    """Step 1."""
    return [Part("noise and penalty", place, TUNING_SEEDS, TUNED) for place in (BLOCKS_2, DENSE)]


def chosen() -> str:
    """What step 1 chooses, by the name in TUNED."""
    content, by_name = read(RAW), {}
    for name in TUNED:
        found = [means(content, part.name, name) for part in tuning()]
        by_name[name] = [
            mean(one[number] for one in found) for number in ("in_function_fve", "fve")
        ]
    most = max(back for back, _ in by_name.values())
    level = {name: fve for name, (back, fve) in by_name.items() if back >= most - LEVEL}
    return max(level, key=lambda name: level[name])


def rates() -> Part:
    """Step 2."""
    arms = COMPARED | {OVER_BATCH: TUNED[chosen()]}
    at_rates = {f"{name}, {lr:g}": replace(arm, lr=lr) for name, arm in arms.items() for lr in LRS}
    return Part("rates", BLOCKS_2, (RATE_SEED,), at_rates)


def compared() -> dict[str, Arm]:
    """The arms of steps 3 to 5, each at the rate that step 2 chooses."""
    part, arms = rates(), {}
    for name, arm in (COMPARED | {OVER_BATCH: TUNED[chosen()]}).items():
        fve = {}
        for lr in LRS:
            (folder,) = part.folders(f"{name}, {lr:g}")
            fve[lr] = metrics_of(folder, ("fve",))["fve"]
        best = max(fve, key=lambda lr: fve[lr])
        is_ahead = fve[best] >= fve[PACKAGES_LR] + LR_AHEAD
        arms[name] = replace(arm, lr=best if is_ahead else PACKAGES_LR)
    return arms | ({} if arms["vSAE"].lr == PACKAGES_LR else {TODAY: COMPARED["vSAE"]})


def confirmation(arms: Mapping[str, Arm]) -> list[Part]:
    """Step 3. The rival's are parts of their own, which are trained last."""
    parts = [Part("compared", place, SEEDS, arms) for place in PLACES]
    return parts + [Part("rival", place, SEEDS, GATED) for place in PLACES]


def long_runs(arms: Mapping[str, Arm]) -> Part:
    """Step 5."""
    return Part(
        "four times the tokens", LONG, LONG_SEEDS, {n: a for n, a in arms.items() if n != TODAY}
    )


def planned() -> Iterator[Part]:
    """The parts, in the protocol's order, as far as those before them say what they are."""
    yield from tuning()
    if all(part.name in read(RAW)["parts"] for part in tuning()):
        yield rates()
        if rates().is_trained:
            yield from confirmation(compared())
            yield long_runs(compared())


def train(arguments: argparse.Namespace) -> None:
    t.set_num_threads(1)
    steps = arguments.steps or [1, 2, 3, 4, 5]
    if 1 in steps:
        for part in tuning():
            _train(part)
            measure_parts([part], RAW, "compared")
    if 2 in steps:
        _train(rates())
    if 3 in steps:
        for part in confirmation(compared()):
            _train(part)
    if 4 in steps:
        for times in LENGTHS:
            truth.train(compared(), times, TRUTH, TRUTH_SEED)
    if 5 in steps:
        _train(long_runs(compared()))


def _train(part: Part) -> None:
    train_arms(part.place, part.seeds, part.arms)


def measure(_: argparse.Namespace) -> None:
    measure_parts(planned(), RAW, "compared")


# --- what is shown


def by_the_rule(content: Content) -> list[str]:
    """What the rule says, once its rows are whole."""
    parts = {place.name: f"compared: {place.name}" for place in PLACES}
    mcc: dict[str, dict[str, float]] = {}
    for row in truth.read(TRUTH)["rows"]:
        mcc.setdefault(row["part"], {})[row["arm"]] = row["mcc"]
    if not {*parts.values()} <= content["parts"].keys() or len(mcc) < len(LENGTHS):
        return ["The rule's rows aren't whole, so the preset stays.", ""]
    arms = dict.fromkeys(row["arm"] for row in content["pairs"] if row["part"] in parts.values())
    places = {
        place: {arm: means(content, part, arm) for arm in arms} for place, part in parts.items()
    }
    preset = TODAY if TODAY in arms else "vSAE"
    fails = rules.over_batch_fails(places, mcc, {p.name: p.k for p in PLACES}, OVER_BATCH, preset)
    names = [arm for arm in arms if "loss_added" in places[BLOCKS_2.name][arm]]
    rows = {arm: _means_over(places, arm, [*mcc.values()]) for arm in names}
    shown = ["FVE of what comes back", "FVE", "loss added (nats)", "MCC, 3.1M", "MCC, 6.1M"]
    return [
        "## By the rule",
        "",
        f"The preset becomes the {OVER_BATCH}: {'no' if fails else 'yes'}.",
        f"Conditions that fail: {'; '.join(fails) or 'none'}.",
        "",
        *table("Mean over places", rows, shown),
        "",
    ]


def _means_over(places: rules.ByPlace, arm: str, mcc: list[dict[str, float]]) -> list[str]:
    numbers: Any = [
        [of[arm][n] for of in places.values()] for n in ("in_function_fve", "fve", "loss_added")
    ]
    cells = [f"{mean(own):.4f}" for own in numbers]
    return cells + [f"{own[arm]:.4f}" if arm in own else "" for own in mcc]


def tables(content: Content) -> list[str]:
    return by_the_rule(content) + tables_of(content)


def add_steps(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("steps", nargs="*", type=int, help="of the protocol, 1 to 5")


STAGES = Stages(
    "returning.batch",
    {"train": train, "measure": measure},
    {"batch_top_k": Page(tables), "batch_top_k_truth": Page(truth.tables)},
    add_steps,
)

if __name__ == "__main__":
    STAGES.run()
