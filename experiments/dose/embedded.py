"""Which dose brings features back, at which reconstruction, on the embedded model? See PROTOCOL_DOSE.md.

    python -m experiments.dose.embedded train      # search, then confirm; continues where it was stopped
    python -m experiments.dose.embedded tables     # write the page's tables again

    ... search --setting "blocks.2, k/F = 1/32"    # one setting
    ... confirm --setting "blocks.2, k/F = 1/32" --pairs 1

It needs the cache of experiments/reproducibility/PROTOCOL.md. An arm that has its rows for a pair of seeds is not run again.
"""

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch as t

from dictionary_learning_ext.config.sae import SAEConfig
from dictionary_learning_ext.evaluation.folders import open_folders
from dictionary_learning_ext.features.agreement import AgreementOfCodes
from dictionary_learning_ext.features.reproducibility import reproducibility
from experiments.dose import truth
from experiments.dose.arms import ARMS, KEPT, RIVAL, TOP_K, Options, sae_of
from experiments.pages import table
from experiments.raw_results import RESULTS, about_line
from experiments.reproducibility import parts
from experiments.reproducibility.settings import Setting
from experiments.stages import Page, Stages

RAW = RESULTS / "dose_embedded.json"
CODE_TOKENS, AT_ONCE = 50_000, 3
SEARCH_SEEDS = (9000, 9001)
PAIRS = [(first, first + 1) for first in range(9010, 9018, 2)]
FVE_KEPT = 0.0005


@dataclass(frozen=True)
class DoseSetting(Setting):
    m: float = 0.0
    """AuxK's threshold, in F/k tokens"""

    def sae(self, options: Options, seed: int) -> SAEConfig:
        own = {"lr": self.lr} | options
        lr = own.pop("lr")
        return sae_of(own, k=self.k, dict_size=self.dict_size, seed=seed, lr=lr, m=self.m)


_SHARED: dict[str, Any] = {"cache": "embedded", "activation_dim": 128, "dict_size": 512}
_SHARED |= {"batch": 256, "steps": 16_000, "passes": 4, "dtype": "float32", "eval_documents": 16}
SETTINGS = {
    "blocks.2, k/F = 1/32": DoseSetting(hook="blocks.2.hook_resid_post", k=16, **_SHARED),
    "blocks.2, k/F = 1/8": DoseSetting(hook="blocks.2.hook_resid_post", k=64, **_SHARED),
    "blocks.0, k/F = 1/32": DoseSetting(hook="blocks.0.hook_resid_post", k=16, **_SHARED),
}
LRS = dict(zip(SETTINGS, ((4e-3, 2e-3, 8e-3), (2e-3, 4e-3), (4e-3, 8e-3)), strict=True))
PLANNED = dict(zip(SETTINGS, (4, 2, 2), strict=True))
"""Pairs of the confirmation."""
LONGER = 2
"""The confirmation's tokens are so many times the search's."""


def measure(one: Path, other: Path) -> dict[str, Any]:
    """What comes back between two seeds' SAEs, as a direction and in what it does, and the survival that the first
    SAE's log has: (step, reached, target) of each line."""
    folders = [str(one), str(other)]
    opened = open_folders(folders)
    codes = opened.codes(CODE_TOKENS, keep=False)
    measured = reproducibility({folder: each.directions_FD for folder, each in codes.items()})
    (found,) = AgreementOfCodes(codes, measured).pairs.values()
    log = [json.loads(line) for line in (one / "metrics.jsonl").read_text().splitlines()]
    logged = [
        [line[n] for n in ("step", "survival", "survival_target")]
        for line in log
        if "survival_target" in line
    ]
    return {**found, "same": found["in_function"], "survival": logged}


def _run(stage: str, name: str, setting: Setting, arms: dict[str, Options], seeds: Any) -> None:
    names = list(arms)
    for first in range(0, len(names), AT_ONCE):
        some = {arm: arms[arm] for arm in names[first : first + AT_ONCE]}
        parts.run_part(stage, name, setting, some, seeds, RAW, measure)


def arms_of(name: str) -> dict[str, Options]:
    """A setting's arms, see the protocol's end."""
    rival = (RIVAL,) if name == "blocks.2, k/F = 1/32" else ()
    return {arm: ARMS[arm] for arm in (*KEPT, *rival)}


def search(arguments: argparse.Namespace) -> None:
    """The arms at each learning rate, one pair of seeds."""
    t.set_num_threads(1)
    m = truth.chosen_m(truth.read())
    for name, setting in SETTINGS.items():
        if not name.startswith(arguments.setting):
            continue
        for lr in LRS[name]:
            own = arms_of(name).items()
            arms = {f"{arm}, lr {lr:g}": options | {"lr": lr} for arm, options in own}
            _run("search", name, replace(setting, m=m), arms, SEARCH_SEEDS)


def confirm(arguments: argparse.Namespace) -> None:
    """The arms at their rates, twice as long, on pairs of fresh seeds."""
    t.set_num_threads(1)
    m, content = truth.chosen_m(truth.read()), parts.read(RAW)
    for name, setting in SETTINGS.items():
        if not name.startswith(arguments.setting):
            continue
        lrs = chosen_lrs(content, name)
        arms = {arm: options | {"lr": lrs[arm]} for arm, options in arms_of(name).items()}
        longer = replace(setting, m=m, steps=LONGER * setting.steps, passes=LONGER * setting.passes)
        for seeds in PAIRS[: PLANNED[name]][: arguments.pairs]:
            _run("confirm", name, longer, arms, seeds)


def chosen_lrs(content: dict[str, Any], name: str) -> dict[str, float]:
    """Each arm's learning rate: of those whose FVE is within 0.0005 of the arm's best, the one whose features come back
    most in what they do."""
    found: dict[str, dict[float, tuple[float, float]]] = {}
    part = parts.part_name("search", name, SEARCH_SEEDS)
    for row in (row for row in content["pairs"] if row["part"] == part):
        arm, _, lr = row["arm"].rpartition(", lr ")
        of_saes = [r["fve"] for r in content["saes"] if (r["part"], r["arm"]) == (part, row["arm"])]
        found.setdefault(arm, {})[float(lr)] = (sum(of_saes) / len(of_saes), row["same"])
    chosen = {}
    for arm, rates in found.items():
        best = max(fve for fve, _ in rates.values())
        kept = [lr for lr, (fve, _) in rates.items() if fve >= best - FVE_KEPT]
        chosen[arm] = max(kept, key=lambda lr: rates[lr][1])
    if TOP_K not in chosen:
        raise SystemExit(
            f"{name} has not been searched: type python -m experiments.dose.embedded search"
        )
    return chosen


def train(arguments: argparse.Namespace) -> None:
    search(arguments)
    confirm(arguments)


SHOWN = {
    "same": "in what they do",
    "returning_0.7": "as a direction",
    "fve": "FVE",
    "near_dead_0.1": "near-dead < 0.1",
    "frac_recovered": "CE recovered",
    "less_null": "PW-MCC less null",
}


def tables(content: dict[str, Any]) -> list[str]:
    lines = ["One pair of seeds a row: the mean of its two SAEs.", ""]
    for part, own in content["parts"].items():
        rows = {}
        for pair in (row for row in content["pairs"] if row["part"] == part):
            saes = [r for r in content["saes"] if (r["part"], r["arm"]) == (part, pair["arm"])]
            means = {n: sum(r[n] for r in saes) / len(saes) for n in SHOWN if n in saes[0]} | pair
            rows[pair["arm"]] = [f"{means[n]:.4f}" if n in means else "" for n in SHOWN]
        lines += [f"## {part}", "", *table("", rows, list(SHOWN.values())), ""]
        lines += [f"{about_line(own)}.", ""]
    return lines


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--setting", default="", help="those whose name begins so")
    parser.add_argument("--pairs", type=int, default=4, help="at most, of each setting")


STAGES = Stages(
    "dose.embedded",
    {"train": train, "search": search, "confirm": confirm},
    {"dose_embedded": Page(tables)},
    options,
)

if __name__ == "__main__":
    STAGES.run()
