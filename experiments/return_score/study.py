"""Does a score from a single training say which features will come back? PROTOCOL.md is what was written
down before the tests.

    python -m experiments.return_score.study train    # fit and test
    python -m experiments.return_score.study tables   # write the page's tables again

    ... fit                                           # choose signals, write the package's coefficients
    ... test                                          # the coefficients as they are, at every setting
    ... codes                                         # how the codes of pairs agree
    ... cost --threads 2                              # what a score takes, beside an evaluation
    ... test --setting "embedded, blocks.0"           # settings whose name begins so; all if left out

It can be stopped at any time. An SAE whose folder is finished is not trained again, and a group of seeds that has
its rows in results/return_score.json is not measured again.
"""

import argparse
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch as t
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from sklearn.preprocessing import normalize

from dictionary_learning_ext import load_dictionary
from dictionary_learning_ext.evaluation.measure import Measurement
from dictionary_learning_ext.features.directions import decoder_directions
from dictionary_learning_ext.features.reproducibility import RETURNING, matching
from dictionary_learning_ext.features.reproducibility_of_folders import reproduce as of_pair
from dictionary_learning_ext.features.return_score import (
    COEFFICIENTS,
    SIGNALS,
    Fit,
    SignalCollector,
)
from dictionary_learning_ext.run_folder.files import write_text
from experiments import raw_results
from experiments.raw_results import RESULTS, about
from experiments.return_score import page
from experiments.return_score.candidates import TOKENS, measured
from experiments.return_score.fitting import (
    Labelled,
    alone,
    auc,
    eliminated,
    fit,
    smallest,
)
from experiments.return_score.settings import (
    ARMS,
    CODES,
    FIT,
    RECOMMENDED,
    TESTS,
    Group,
    train_group,
)
from experiments.stages import Page, Stages
from experiments.trained_saes import metrics_of

RAW = RESULTS / "return_score.json"
FITTED = RESULTS / "return_score_fit.npz"
"""The signals and labels of the fit: its coefficients follow from them."""
COST_BATCHES = 10
FITS = {
    "without_noise": [arm for arm in ARMS if arm != RECOMMENDED],
    "with_noise": [RECOMMENDED],
}
NO_CANDIDATES = ("size",)
"""Signals that are no candidates, see PROTOCOL.md, "Added later"."""


def read() -> dict[str, Any]:
    return raw_results.read_or(RAW, {"parts": {}, "fit": {}, "tests": []})


def matches(folders: Mapping[int, Path]) -> dict[int, dict[int, np.ndarray]]:
    """Of the SAE of each seed and each other seed: the cosines of its features with their matches there."""
    unit: dict[int, Any] = {
        seed: normalize(decoder_directions(load_dictionary(folder)[0]).numpy())
        for seed, folder in folders.items()
    }
    found: dict[int, dict[int, np.ndarray]] = {seed: {} for seed in folders}
    for a, b in combinations(folders, 2):
        matched_F, match_F = matching(unit[a], unit[b], signed=False)
        found[a][b] = match_F
        found[b][a] = np.empty_like(match_F)
        found[b][a][matched_F] = match_F
    return found


def labelled(group: Group) -> list[Labelled]:
    """The SAEs of the fit, trained and measured."""
    folders, saes = train_group(group), []
    collectors = measured([folder for own in folders.values() for folder in own.values()])
    for arm, of_seed in folders.items():
        match = matches(of_seed)
        for seed, folder in of_seed.items():
            returns_SF = np.stack([one >= RETURNING[0] for one in match[seed].values()])
            saes.append(Labelled(arm, seed, collectors[folder].signals(), returns_SF))
    return saes


def save(saes: list[Labelled], path: Path) -> None:
    arrays = {}
    for sae in saes:
        own: dict[str, Any] = {n: value_F.astype(np.float32) for n, value_F in sae.signals.items()}
        own["returns"] = np.packbits(sae.returns_SF, axis=1)
        arrays |= {f"{sae.arm}/{sae.seed}/{name}": value for name, value in own.items()}
    np.savez_compressed(path, **arrays)


def load(path: Path) -> list[Labelled]:
    content: dict[tuple[str, int], dict[str, np.ndarray]] = {}
    with np.load(path) as arrays:
        for key in arrays.files:
            arm, seed, name = key.split("/")
            content.setdefault((arm, int(seed)), {})[name] = arrays[key]
    saes = []
    for (arm, seed), own in content.items():
        packed = own.pop("returns")
        n = len(own["firing_rate"])
        returns_SF = np.unpackbits(packed, axis=1, count=n).astype(bool)
        signals = {name: value_F.astype(np.float64) for name, value_F in own.items()}
        saes.append(Labelled(arm, seed, signals, returns_SF))
    return saes


def refit(saes: Sequence[Labelled], chosen: Mapping[str, list[str]]) -> dict[str, Fit]:
    """The fits on chosen signals."""
    return {
        name: fit([sae for sae in saes if sae.arm in arms], chosen[name])
        for name, arms in FITS.items()
    }


def run_fit(arguments: argparse.Namespace) -> None:
    """From FITTED, if it is there: delete it to train and measure the fitting seeds again."""
    began = time.monotonic()
    t.set_num_threads(arguments.threads)
    if not FITTED.exists():
        save(labelled(FIT), FITTED)
    saes, content = load(FITTED), read()
    signals_alone = {arm: alone([sae for sae in saes if sae.arm == arm]) for arm in ARMS}
    paths = {}
    for name, arms in FITS.items():
        own = [sae for sae in saes if sae.arm in arms]
        paths[name] = eliminated(own, [n for n in own[0].signals if n not in NO_CANDIDATES])
    chosen = {name: smallest(path) for name, path in paths.items()}
    fitted = refit(saes, chosen)
    content["fit"] = {
        "alone": signals_alone,
        "paths": {name: [step._asdict() for step in path] for name, path in paths.items()},
        "chosen": chosen,
        "returning": {
            arm: float(np.mean([s.returns_SF.mean() for s in saes if s.arm == arm])) for arm in ARMS
        },
    }
    content["parts"]["fit"] = about(began, content["parts"].get("fit"))
    raw_results.write(RAW, content)
    unknown = {name for names in chosen.values() for name in names} - set(SIGNALS)
    if unknown:
        raise SystemExit(f"{', '.join(sorted(unknown))}: expected signals of the package; add them")
    coefficients = {
        "fitted_at": {
            "setting": FIT.name,
            "steps": FIT.setting.steps,
            "seeds": list(FIT.seeds),
            "architectures": FITS,
            "command": "python -m experiments.return_score.study fit",
        },
        "fits": {name: asdict(each) for name, each in fitted.items()},
    }
    write_text(Path(str(COEFFICIENTS)), json.dumps(coefficients, indent=2) + "\n")


def test(arguments: argparse.Namespace) -> None:
    """Groups without rows, and those whose rows are of other coefficients than the package's."""
    t.set_num_threads(arguments.threads)
    coefficients = hashlib.sha256(COEFFICIENTS.read_bytes()).hexdigest()[:12]
    for name, groups in TESTS.items():
        if not name.startswith(arguments.setting):
            continue
        for group in groups:
            part = f"{name}: {', '.join(map(str, group.seeds))}"
            content = read()
            if content["parts"].get(part, {}).get("coefficients") == coefficients:
                continue
            began = time.monotonic()
            rows = rows_of(group, content["fit"]["alone"])
            content = read()
            others = [row for row in content["tests"] if row["part"] != part]
            new = [{"part": part, "setting": name} | row for row in rows]
            content["tests"] = others + new
            content["parts"][part] = about(began) | {"coefficients": coefficients}
            raw_results.write(RAW, content)


def rows_of(group: Group, signals_alone: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each SAE and each other seed of its group."""
    folders, rows = train_group(group), []
    collectors = measured([folder for own in folders.values() for folder in own.values()])
    for arm, of_seed in folders.items():
        match = matches(of_seed)
        for seed, folder in of_seed.items():
            signals, scores = collectors[folder].signals(), collectors[folder].scores()
            known = {name: sign * signals[name] for name, (sign, _) in signals_alone[arm].items()}
            for other, match_F in match[seed].items():
                returns_F = match_F >= RETURNING[0]
                rows.append(
                    {
                        "arm": arm,
                        "seed": seed,
                        "other": other,
                        "auc": auc(scores.score_F, returns_F[None]),
                        "alone": {name: auc(each, returns_F[None]) for name, each in known.items()},
                        "returning": float(returns_F.mean()),
                        "fifths": scores.shares(returns_F),
                        "counts": scores.counts,
                        **metrics_of(folder, ("fve", "near_dead_0.1")),
                    }
                )
    return rows


def codes(arguments: argparse.Namespace) -> None:
    """What `vsae reproduce` measures on held-out tokens, of disjoint pairs."""
    t.set_num_threads(arguments.threads)
    for group in CODES:
        for arm, folders in train_group(group).items():
            part = f"codes, {group.name}, {arm}: {', '.join(map(str, group.seeds))}"
            if part in (content := read())["parts"]:
                continue
            began = time.monotonic()
            found = of_pair([str(folder) for folder in folders.values()], TOKENS)
            (measures,) = found.pairs.values()
            content = read()
            row = {"setting": group.name, "arm": arm, "seeds": group.seeds, **measures}
            content["codes"] = [*content.get("codes", []), row]
            content["parts"][part] = about(began)
            raw_results.write(RAW, content)


def cost(arguments: argparse.Namespace) -> None:
    """Seconds of a score and of an evaluation's metrics of activations, alternating; of a large SAE with random
    weights, on random activations."""
    began = time.monotonic()
    t.set_num_threads(arguments.threads)
    sae = AutoEncoderTopK(512, 16_384, 64)
    x_ND = t.randn(2048, 512)
    seconds: dict[str, list[float]] = {"evaluation": [], "score": []}
    for _ in range(3):
        evaluation, score = Measurement(sae), SignalCollector(sae)
        for name, collector, finish in (
            ("evaluation", evaluation, evaluation.metrics),
            ("score", score, score.scores),
        ):
            start = time.monotonic()
            for _ in range(COST_BATCHES):
                collector.add(x_ND)
            finish()
            seconds[name].append(time.monotonic() - start)
    content = read()
    content["cost"] = {"tokens": COST_BATCHES * len(x_ND), "seconds": seconds}
    content["parts"]["cost"] = about(began)
    raw_results.write(RAW, content)


def train(arguments: argparse.Namespace) -> None:
    for stage in (run_fit, test, codes):
        stage(arguments)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--setting", default="", help="the start of a setting's name")
    parser.add_argument("--threads", type=int, default=1, help="of torch")


STAGES = Stages(
    "return_score.study",
    {"train": train, "fit": run_fit, "test": test, "codes": codes, "cost": cost},
    {"return_score": Page(page.tables)},
    options,
)

if __name__ == "__main__":
    STAGES.run()
