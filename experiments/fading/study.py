"""Does noise that ends in time bring features back at the default length, and cost nothing? See PROTOCOL_FADING.md.

    python -m experiments.fading.study train     # in the protocol's order; continues where it was stopped
    python -m experiments.fading.study tables    # write the page's tables again

It needs the cache of experiments/reproducibility/PROTOCOL.md. An arm that has its rows is not run again.
"""

import argparse
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch as t

from dictionary_learning_ext.evaluation.folders import open_folders
from dictionary_learning_ext.features.agreement import AgreementOfCodes
from dictionary_learning_ext.features.reproducibility import reproducibility
from experiments.dose import embedded, truth
from experiments.dose.arms import TOP_K, Options
from experiments.fading.arms import ARMS, FIXED, NEW, RECOMMENDED, gates_off
from experiments.pages import table
from experiments.raw_results import RESULTS, about_line
from experiments.reproducibility import parts
from experiments.stages import Page, Stages

RAW = RESULTS / "fading_embedded.json"
RAW_TRUTH = RESULTS / "fading_truth.json"
M = 100.0
"""AuxK's threshold in F/k tokens: what the study of the dose chose, and the package's default."""
SEARCHED = "blocks.2, k/F = 1/32"
CONFIRMED = (SEARCHED, "blocks.0, k/F = 1/32", "blocks.2, k/F = 1/8")
SEARCH_SEEDS = (9000, 9001)
PAIRS = ((9210, 9211), (9212, 9213))
TRUTH_SEEDS = (9220, 9221)
LRS = (4e-3,)
"""Better than 2e-3 by every arm's FVE in the search of the study of the dose; see the protocol's end."""
TRUTH_LR = 2e-3
"""The best rate of every arm in the study of the dose."""
STEPS = {"1.0M": 4_000, "2.0M": 8_000, "4.1M": 16_000}
"""Training steps by tokens; a batch has 256 tokens."""
FIRST = (TOP_K, RECOMMENDED, "fixed 0.3 until 0.25")
FVE_BELOW, TRUTH_BELOW, AHEAD = 0.0005, 0.01, 0.05
NOISY, AFTER = 1_000, (0, 3_000, 9_000)
SHOWN = {
    "in_function": "in what they do",
    "returning_0.7": "as a direction",
    "in_function_selections": "selections, in what they do",
    "direction_selections": "selections, as a direction",
    "fve": "FVE",
    "loss_added": "loss added (nats)",
    "near_dead_0.1": "near-dead < 0.1",
    "less_null": "PW-MCC less null",
}
Row = dict[str, Any]


def measure(one: Path, other: Path) -> Row:
    """How the codes of two seeds' SAEs agree."""
    opened = open_folders([str(one), str(other)])
    codes = opened.codes(embedded.CODE_TOKENS, keep=False)
    directions = {folder: own.directions_FD for folder, own in codes.items()}
    (found,) = AgreementOfCodes(codes, reproducibility(directions)).pairs.values()
    return found


def run(
    stage: str, name: str, steps: int, arms: dict[str, Options], seeds: tuple[int, int]
) -> None:
    """Train arms at a setting, three at once, from one buffer, and add their rows."""
    setting = replace(embedded.SETTINGS[name], m=M, steps=steps, eval_documents=64)
    setting = replace(setting, passes=max(4, 2 * steps // 8_000))
    names = list(arms)
    for first in range(0, len(names), 3):
        some = {arm: arms[arm] for arm in names[first : first + 3]}
        parts.run_part(f"fading {stage}", name, setting, some, seeds, RAW, measure)


def at_rate(arms: Iterable[str], lrs: dict[str, float]) -> dict[str, Options]:
    return {arm: ARMS[arm] | {"lr": lrs[arm]} for arm in arms}


# --- the protocol's stages


def search() -> None:
    for lr in LRS:
        arms = at_rate(ARMS, dict.fromkeys(ARMS, lr))
        run(f"search 1.0M, lr {lr:g}", SEARCHED, STEPS["1.0M"], arms, SEARCH_SEEDS)


def search_at(length: str) -> None:
    """Every arm at its rate, for longer than 1.0M tokens."""
    arms = at_rate(ARMS, chosen_lrs(parts.read(RAW)))
    run(f"search {length}", SEARCHED, STEPS[length], arms, SEARCH_SEEDS)


def leading(content: Row) -> list[str]:
    """TopK, the preset of today, the pilot's best, and of NEW the one that leads the search at the default length."""
    best = max(NEW, key=lambda arm: searched(content, default_length(content), arm)["in_function"])
    return [*dict.fromkeys([*FIRST, best])]


def known(arms: Iterable[str], dict_size: int, times: int, seeds: Iterable[int]) -> None:
    """Samples with known features, `times` the 3.1M of the study of the dose."""
    given = {arm: {"options": ARMS[arm], "lr": TRUTH_LR, "m": M} for arm in arms}
    for seed in seeds:
        part = truth.Part("fading", dict_size, seed, given, times * truth.SAMPLES)
        truth.run_part(part, RAW_TRUTH)


def confirm(arms: Iterable[str], pairs: Iterable[tuple[int, int]]) -> None:
    content = parts.read(RAW)
    lrs, length = chosen_lrs(content), default_length(content)
    for seeds in pairs:
        for name in CONFIRMED:
            run(f"confirm {length}", name, STEPS[length], at_rate(arms, lrs), seeds)


def mechanism() -> None:
    """The noise fades over NOISY steps, and training goes on for so many more. Then forks: two SAEs from one that was
    trained while the noise faded, on other data."""
    fixed = "fixed 0.3"
    for after in AFTER:
        steps = NOISY + after
        arms = {TOP_K: ARMS[TOP_K], fixed: FIXED | {"noise_anneal_steps": NOISY}}
        arms = {arm: options | {"lr": LRS[0]} for arm, options in arms.items()}
        run(f"mechanism, {after} after", SEARCHED, steps, arms, SEARCH_SEEDS)
    base = parts.seed_folder(f"fading mechanism, {AFTER[0]} after", SEARCHED, SEARCH_SEEDS[0])
    forks: dict[str, Options] = {
        f"fork of {TOP_K}": {"architecture": "top_k"},
        f"fork of {fixed}": {"posterior": "point", "kl_scope": "selected", "beta": 0.0},
    }
    for arm, options in forks.items():
        of = base / parts.arm_folder_name(arm.removeprefix("fork of "))
        forks[arm] = options | {"init_from": str(of), "lr": LRS[0]}
    run("mechanism, fork", SEARCHED, AFTER[1], forks, (9002, 9003))


def all_stages() -> None:
    """In the protocol's order. What has its rows is skipped."""
    search()
    if default_length(parts.read(RAW)) == "2.0M":
        search_at("2.0M")
    leaders, half = leading(parts.read(RAW)), truth.TRUE // 2
    confirm(leaders, PAIRS[:1])
    known(leaders, half, 2, TRUTH_SEEDS[:1])
    confirm(leaders, PAIRS[1:])
    known(leaders, half, 2, TRUTH_SEEDS[1:])
    known(leaders, half, 1, TRUTH_SEEDS[:1])
    search_at("4.1M")
    known(leaders, half, 1, TRUTH_SEEDS[1:])
    mechanism()
    confirm(ARMS, PAIRS)
    known(ARMS, half, 2, TRUTH_SEEDS)
    known(leaders, truth.TRUE // 4, 1, TRUTH_SEEDS[:1])
    known(leaders, truth.TRUE, 2, TRUTH_SEEDS[:1])


def train(_: argparse.Namespace) -> None:
    t.set_num_threads(1)
    with gates_off():
        all_stages()


# --- what the rules choose


def rows_of(content: Row, stage: str, name: str, arm: str) -> list[Row]:
    """A row a pair: how it agrees, and the mean of its two SAEs' metrics, with `loss_added`."""
    rows = []
    for pair in content["pairs"]:
        if pair["part"].startswith(f"fading {stage}: {name}: ") and pair["arm"] == arm:
            saes = [r for r in content["saes"] if (r["part"], r["arm"]) == (pair["part"], arm)]
            added = [r["loss_reconstructed"] - r["loss_original"] for r in saes]
            means = {n: mean(r[n] for r in saes) for n in ("fve", "near_dead_0.1", "near_dead_0.5")}
            rows.append(pair | means | {"loss_added": mean(added), "losses_added": added})
    return rows


def chosen_lrs(content: Row) -> dict[str, float]:
    """Each arm's rate: the one with the highest FVE in the search at 1.0M tokens."""

    def fve(arm: str, lr: float) -> float:
        (row,) = rows_of(content, f"search 1.0M, lr {lr:g}", SEARCHED, arm)
        return row["fve"]

    return {arm: max(LRS, key=lambda lr: fve(arm, lr)) for arm in ARMS}


def searched(content: Row, length: str, arm: str) -> Row:
    """An arm's row of the search, at its rate."""
    rate = f", lr {chosen_lrs(content)[arm]:g}" if length == "1.0M" else ""
    (row,) = rows_of(content, f"search {length}{rate}", SEARCHED, arm)
    return row


def default_length(content: Row) -> str:
    """1.0M tokens, if there one of NEW is ahead of TopK by AHEAD in what it does, at its FVE; otherwise 2.0M."""
    top_k = searched(content, "1.0M", TOP_K)
    for arm in NEW:
        row = searched(content, "1.0M", arm)
        keeps = row["fve"] >= top_k["fve"] - FVE_BELOW
        if keeps and row["in_function"] >= top_k["in_function"] + AHEAD:
            return "1.0M"
    return "2.0M"


def verdict(content: Row, on_truth: Row) -> list[str]:
    """The protocol's rule: each condition for each arm that has all its rows, and the preset that follows."""
    length, rows, passed = default_length(content), {}, {}
    for arm in (RECOMMENDED, *NEW):
        conditions: dict[str, bool] = {}
        comes_back = []
        for name in CONFIRMED:
            own, top_k = (rows_of(content, f"confirm {length}", name, n) for n in (arm, TOP_K))
            if not own or len(own) != len(top_k):
                continue
            means = [{n: mean(r[n] for r in each) for n in SHOWN} for each in (own, top_k)]
            losses = [added for row in top_k for added in row["losses_added"]]
            most = means[1]["loss_added"] + max(losses) - min(losses)
            conditions[f"FVE, {name}"] = means[0]["fve"] >= means[1]["fve"] - FVE_BELOW
            conditions[f"loss added, {name}"] = means[0]["loss_added"] <= most
            comes_back.append(means[0]["in_function"])
        place = f"fading: F = 1,024, {2 * truth.SAMPLES / 1e6:.1f}M"
        mcc = {
            n: [r["mcc"] for r in on_truth["rows"] if r["part"].startswith(place) and r["arm"] == n]
            for n in (arm, TOP_K)
        }
        if len(comes_back) < len(CONFIRMED) or not mcc[arm] or len(mcc[arm]) != len(mcc[TOP_K]):
            continue
        conditions["MCC"] = mean(mcc[arm]) >= mean(mcc[TOP_K]) - TRUTH_BELOW
        if all(conditions.values()):
            passed[arm] = mean(comes_back)
        failed = "; ".join(n for n, holds in conditions.items() if not holds) or "none"
        rows[arm] = [f"{100 * mean(comes_back):.1f}%", failed]
    if not rows:
        return []
    best = max(passed, key=lambda arm: passed[arm]) if passed else f"none, {RECOMMENDED} stays"
    lines = ["## By the rule", "", f"Default length: {STEPS[length]:,} steps.", ""]
    lines += table("", rows, ["in what they do, mean over the settings", "conditions that fail"])
    return [*lines, "", f"The preset: {best}.", ""]


def tables(content: Row) -> list[str]:
    on_truth = truth.read(RAW_TRUTH)
    lines = verdict(content, on_truth) if len(content["parts"]) > len(LRS) else []
    lines += ["One pair of seeds a row: the mean of its two SAEs.", ""]
    for part, own in content["parts"].items():
        stage, _, rest = part.removeprefix("fading ").partition(": ")
        name = rest.rpartition(": ")[0]
        seeds = rest.rpartition(": ")[2]
        rows = {}
        for arm in dict.fromkeys(r["arm"] for r in content["pairs"] if r["part"] == part):
            (row,) = (r for r in rows_of(content, stage, name, arm) if r["part"] == part)
            rows[arm] = [f"{row[n]:.4f}" for n in SHOWN]
        lines += [f"## {stage}: {name}, seeds {seeds}", "", *table("", rows, [*SHOWN.values()])]
        lines += ["", f"{about_line(own)}.", ""]
    return lines


STAGES = Stages(
    "fading.study",
    {"train": train},
    {"fading_embedded": Page(tables), "fading_truth": Page(truth.tables)},
)

if __name__ == "__main__":
    STAGES.run()
