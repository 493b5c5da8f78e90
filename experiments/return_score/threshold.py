"""The return score on threshold SAEs, and on a real model. PROTOCOL_THRESHOLD.md is what was written down before.

    python -m experiments.return_score.threshold train                     # fit, then test
    python -m experiments.return_score.threshold tables                    # write the page's tables again

    ... fit                                                                # the margin, the one fit, the one signal
    ... test --setting "embedded, blocks.0" --arm JumpReLU --threads 2     # of some settings and architectures

It can be stopped at any time. An SAE whose folder is finished is not trained again. An architecture that has its rows
at a pair of seeds is not measured again: to do so, delete them from results/return_score_threshold.json.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch as t

from dictionary_learning_ext.config.sae import SAEConfig
from dictionary_learning_ext.evaluation.folders import open_folders
from dictionary_learning_ext.features.codes import CodeCollector, same_in_another
from dictionary_learning_ext.features.reproducibility import RETURNING
from dictionary_learning_ext.features.return_score import Fit, ranks
from experiments import raw_results
from experiments.raw_results import RESULTS, about
from experiments.reproducibility.parts import arm_folder_name, seed_folder
from experiments.reproducibility.settings import CONFIRM, Options, Setting
from experiments.return_score import study, threshold_page
from experiments.return_score.candidates import OWN_MARGIN, TOKENS, CandidateCollector
from experiments.return_score.fitting import Labelled, alone, auc, eliminated, fit, smallest
from experiments.return_score.settings import ARMS, FITTED_AT, RECOMMENDED
from experiments.stages import Page, Stages
from experiments.trained_saes import metrics_of, sae_config, train_missing

STAGE = "return_score_threshold"
RAW = RESULTS / "return_score_threshold.json"
FITTED = RESULTS / "return_score_threshold_fit.npz"
"""The signals and labels of FITTED_HERE's fitting seeds."""
NEW: dict[str, Options] = {
    "JumpReLU": {"architecture": "jump_relu", "lr": 1e-3},
    "Matryoshka": {"architecture": "matryoshka"},
}
ALL = ARMS | NEW
FITTED_HERE = NEW | {"BatchTopK": ARMS["BatchTopK"]}
"""Those with a threshold. The others' signals are those of the first study."""
REAL = {arm: ARMS[arm] for arm in ("TopK", "BatchTopK", RECOMMENDED)}
FIT_SEEDS = (3000, 3001, 3002, 3003)


@dataclass(frozen=True)
class Test:
    """A pair of seeds at a setting, and the architectures that are tested there."""

    setting: str
    arms: Mapping[str, Options]
    seeds: tuple[int, int] = (3100, 3101)


TESTS = (
    Test(FITTED_AT, ALL),
    Test(FITTED_AT, ALL, (3102, 3103)),
    Test("embedded, blocks.0, F = 4D, k/F = 1/32", ALL),
    Test("embedded, blocks.2, F = 4D, k/F = 1/8", ALL),
    Test("SmolLM2-135M, blocks.1, F = 4D, k = 64", REAL),
    Test("SmolLM2-135M, blocks.15, F = 4D, k = 64", REAL),
)


def read() -> dict[str, Any]:
    return raw_results.read_or(RAW, {"parts": {}, "fit": {}, "tests": []})


# --- training and measuring


def config_of(setting: Setting, options: Options, seed: int) -> SAEConfig:
    """An SAE at a setting; a JumpReLU aims at its k."""
    if options.get("architecture") != "jump_relu":
        return setting.sae(options, seed)
    aim = {"target_l0": float(setting.k), "dict_size": setting.dict_size, "seed": seed}
    return sae_config(**aim, **options)


def trained(name: str, arm: str, options: Options, seeds: Sequence[int]) -> dict[int, Path]:
    """An architecture's run folders at a setting, by seed. Those that are missing are trained."""
    setting, called = CONFIRM[name], arm_folder_name(arm)
    found = {}
    for seed in seeds:
        place = seed_folder(STAGE, name, seed)
        configs = {called: config_of(setting, options, seed)}
        found[seed] = train_missing(setting.run(place, seed), place, configs)[called]
    return found


class Measured:
    """What SAEs of one architecture and setting do on the same held-out tokens, by seed."""

    def __init__(self, folders: Mapping[int, Path]):
        opened = open_folders([*folders.values()])
        saes = {seed: opened.saes[str(folder)][0] for seed, folder in folders.items()}
        self.signals = {seed: CandidateCollector(sae) for seed, sae in saes.items()}
        coders = {seed: CodeCollector(sae) for seed, sae in saes.items()}
        for x_ND in opened.held_out(TOKENS):
            for collector in (*self.signals.values(), *coders.values()):
                collector.add(x_ND)
        self.codes = {seed: each.codes() for seed, each in coders.items()}
        self.match = study.matches(folders)


# --- what is fitted


def with_margin(signals: dict[str, np.ndarray], definition: str) -> dict[str, np.ndarray]:
    """The signals with the chosen definition of a threshold SAE's margin under that name.

    Arguments:
        definition: "margin", over the smallest that the token keeps, or OWN_MARGIN.
    """
    chosen = signals.get(definition, signals["margin"])
    return {n: v for n, v in signals.items() if n != OWN_MARGIN} | {"margin": chosen}


def choose_margin(saes: Sequence[Labelled]) -> tuple[str, dict[str, float]]:
    """The definition with the higher AUC by itself, the mean over the architectures that have both; and each one's."""
    mean = {}
    for name in ("margin", OWN_MARGIN):
        of_arms = [alone(own)[name][1] for own in by_arm(saes).values() if has_both(own)]
        mean[name] = float(np.mean(of_arms))
    return max(mean, key=lambda name: mean[name]), mean


def has_both(saes: Sequence[Labelled]) -> bool:
    return all(OWN_MARGIN in sae.signals for sae in saes)


def by_arm(saes: Sequence[Labelled]) -> dict[str, list[Labelled]]:
    found: dict[str, list[Labelled]] = {}
    for sae in saes:
        found.setdefault(sae.arm, []).append(sae)
    return found


def one_signal(saes: Sequence[Labelled], names: Sequence[str]) -> tuple[str, int, float]:
    """The signal with the highest mean AUC over the architectures, with one sign: its name, sign and AUC."""
    found = []
    for name in names:
        of_arms = [np.mean([s.auc(s.signals[name]) for s in own]) for own in by_arm(saes).values()]
        value = float(np.mean(of_arms))
        found.append((name, 1 if value >= 0.5 else -1, max(value, 1 - value)))
    return max(found, key=lambda each: each[2])


def shared(saes: Sequence[Labelled]) -> list[str]:
    """The candidates of the one fit: signals that all have."""
    names = [n for n in saes[0].signals if n not in study.NO_CANDIDATES]
    return [n for n in names if all(n in sae.signals for sae in saes)]


def fitting_saes() -> list[Labelled]:
    """Of all architectures. Trains and measures FITTED_HERE, unless FITTED is there."""
    if not FITTED.exists():
        found = []
        for arm, options in FITTED_HERE.items():
            own = Measured(trained(FITTED_AT, arm, options, FIT_SEEDS))
            for seed in FIT_SEEDS:
                returns_SF = np.stack([m >= RETURNING[0] for m in own.match[seed].values()])
                found.append(Labelled(arm, seed, own.signals[seed].signals(), returns_SF))
        study.save(found, FITTED)
    old = study.load(study.FITTED)
    new = study.load(FITTED)
    return [*(s for s in old if s.seed in FIT_SEEDS and s.arm not in FITTED_HERE), *new]


def run_fit(arguments: argparse.Namespace) -> None:
    began = time.monotonic()
    t.set_num_threads(arguments.threads)
    saes, content = fitting_saes(), read()
    content["fit"] = fitted(saes)
    content["parts"]["fit"] = about(began, content["parts"].get("fit"))
    raw_results.write(RAW, content)


def fitted(saes: Sequence[Labelled]) -> dict[str, Any]:
    """All that is chosen on the fitting seeds."""
    margin, of_margins = choose_margin(saes)
    saes = [Labelled(s.arm, s.seed, with_margin(s.signals, margin), s.returns_SF) for s in saes]
    names = shared(saes)
    path = eliminated(saes, names)
    return {
        "margin": margin,
        "margins": of_margins,
        "alone": {arm: alone(own) for arm, own in by_arm(saes).items()},
        "one_signal": one_signal(saes, names),
        "path": [step._asdict() for step in path],
        "chosen": smallest(path),
        "one_fit": asdict(fit(saes, smallest(path))),
        "returning": {
            arm: float(np.mean([s.returns_SF.mean() for s in own]))
            for arm, own in by_arm(saes).items()
        },
    }


# --- the tests


def test(arguments: argparse.Namespace) -> None:
    """Architectures without rows. A pair's two rows are added as soon as it is measured."""
    t.set_num_threads(arguments.threads)
    if not read()["fit"]:
        raise SystemExit("no fit yet: type: python -m experiments.return_score.threshold fit")
    for each in TESTS:
        if not each.setting.startswith(arguments.setting):
            continue
        for arm, options in each.arms.items():
            part = f"{each.setting}: {', '.join(map(str, each.seeds))}: {arm}"
            if not arm.startswith(arguments.arm) or part in (content := read())["parts"]:
                continue
            began = time.monotonic()
            folders = trained(each.setting, arm, options, each.seeds)
            rows = rows_of(folders, arm, content["fit"])
            content = read()
            about_it = {"part": part, "setting": each.setting, "arm": arm}
            content["tests"] += [about_it | row for row in rows]
            content["parts"][part] = about(began)
            raw_results.write(RAW, content)


def rows_of(folders: Mapping[int, Path], arm: str, chosen: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each of the two SAEs of a pair."""
    own = Measured(folders)
    a, b = folders
    same = dict(zip((a, b), same_in_another(own.codes[a], own.codes[b]), strict=True))
    one_fit, (signal, sign, _) = Fit(**chosen["one_fit"]), chosen["one_signal"]
    rows = []
    for seed, other in ((a, b), (b, a)):
        signals = with_margin(own.signals[seed].signals(), chosen["margin"])
        orders = {
            "today": own.signals[seed].scores().score_F,
            "one fit": one_fit.log_odds(ranks(signals)),
            "one signal": sign * signals[signal],
            **{n: s * signals[n] for n, (s, _) in chosen["alone"][arm].items()},
        }
        labels = {
            "direction": own.match[seed][other] >= RETURNING[0],
            "function": same[seed] >= RETURNING[0],
        }
        rows.append(
            {
                "seed": seed,
                "auc": {
                    label: {name: auc_if_any(order, is_F) for name, order in orders.items()}
                    for label, is_F in labels.items()
                },
                "returning": {label: float(is_F.mean()) for label, is_F in labels.items()},
                **metrics_of(folders[seed], ("fve", "l0", "near_dead_0.1")),
            }
        )
    return rows


def auc_if_any(order_F: np.ndarray, is_F: np.ndarray) -> float | None:
    """None if all features return, or none does."""
    return auc(order_F, is_F[None]) if 0 < is_F.sum() < len(is_F) else None


def train(arguments: argparse.Namespace) -> None:
    for stage in (run_fit, test):
        stage(arguments)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--setting", default="", help="the start of a setting's name")
    parser.add_argument("--arm", default="", help="the start of an architecture's name")
    parser.add_argument("--threads", type=int, default=1, help="of torch")


STAGES = Stages(
    "return_score.threshold",
    {"train": train, "fit": run_fit, "test": test},
    {"return_score_threshold": Page(threshold_page.tables)},
    options,
)

if __name__ == "__main__":
    STAGES.run()
