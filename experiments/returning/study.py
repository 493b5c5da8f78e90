"""Whose features come back, at which architecture, start and dose? See PROTOCOL_RETURNING.md, which says what cache it needs.

    python -m experiments.returning.study train     # in the protocol's order; continues where it was stopped
    python -m experiments.returning.study measure   # what is trained and has no rows
    python -m experiments.returning.study tables    # write the pages' tables again

An SAE whose run folder is finished is not trained again.
"""

import argparse
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch as t

from dictionary_learning_ext import RunConfig
from dictionary_learning_ext.activations.inputs import in_batches
from dictionary_learning_ext.activations.stored import open_stored
from dictionary_learning_ext.codes.codes import Codes, encode
from dictionary_learning_ext.evaluation.folders import OpenedFolders, open_folders
from dictionary_learning_ext.evaluation.metrics import fve_of
from dictionary_learning_ext.features.agreement import RETURNING_COSINES, is_used, of_one_token
from dictionary_learning_ext.features.random_tokens import random_token_saes
from dictionary_learning_ext.features.reproducibility import reproducibility
from dictionary_learning_ext.run_folder.files import EVALUATION
from dictionary_learning_ext.run_folder.sae_folder import read_metrics
from experiments import raw_results
from experiments.pages import save_plot, table
from experiments.raw_results import RESULTS, about, about_line
from experiments.returning import rules, truth
from experiments.returning.arms import ARCHITECTURES, DOSES, FIRST, FROZEN, GATES, RATES, Arm
from experiments.stages import Page, Stages
from experiments.trained_saes import metrics_of, run_settings, train_missing

CACHE, RUNS = "runs/returning/embedded", Path("runs/returning")
RANDOM_TOKENS, FIT_ON = "random tokens, untrained", 40_000
TOKENS, DICT_SIZE, HELD_OUT, DOCUMENTS = 2_048_000, 512, 50_000, 64
RAW = RESULTS / "whose_features.json"
LENGTHS = (1, 2)
"""Of truth, in 3.1M samples."""
SEEDS, DOSE_SEEDS, RATE_SEED = (9302, 9303, 9304, 9305), (9300, 9301), 9306

OF_CODES = ("in_function_fve", "direction_fve", "in_function_selections", "direction_selections")
SHARES = {
    "function_0.7": "in what they do",
    "direction_0.7": "as a direction",
    "others_function_0.7": "others, in what they do",
    "others_direction_0.7": "others, as a direction",
    "one_token": "of one token's kind",
    "near_dead_0.1": "near-dead < 0.1",
}
OF_SAES = {"fve": ".4f", "l0": ".2f", "loss_added": ".4f"}
Content = dict[str, Any]


@dataclass(frozen=True)
class Place:
    hook: str
    k: int
    times: int = 1
    """of TOKENS"""

    @property
    def name(self) -> str:
        block, kind = self.hook.split(".hook_")
        where = block if kind == "resid_post" else kind
        tokens = f", {self.times * TOKENS / 1e6:.1f}M tokens" if self.times > 1 else ""
        return f"{where}, k/F = 1/{DICT_SIZE // self.k}{tokens}"


BLOCKS_2, MLP_OUT, BLOCKS_0, DENSE = PLACES = (
    Place("blocks.2.hook_resid_post", 16),
    Place("blocks.2.hook_mlp_out", 16),
    Place("blocks.0.hook_resid_post", 16),
    Place("blocks.2.hook_resid_post", 64),
)


def folder_of(place: Place, seed: int, name: str, arm: Arm) -> Path:
    """An SAE's run folder: of the arm with this name, at this rate."""
    own = f"{name}, lr {arm.lr:g}".replace(", ", "_").replace(" ", "-")
    return RUNS / place.name.replace(", k/F = 1/", "_").replace(", ", "_") / str(seed) / own


def train_arms(place: Place, seeds: Iterable[int], arms: Mapping[str, Arm]) -> None:
    """Train the arms that are missing. Those of a seed share one buffer, but for arms with a trainer or batches of their own."""
    shared = {name: arm for name, arm in arms.items() if not arm.trainer and arm.batch_size == 256}
    alone = [{name: arm} for name, arm in arms.items() if name not in shared]
    for seed in seeds:
        for group in filter(None, [shared, *alone]):
            saes = {
                folder_of(place, seed, name, arm): arm.sae(place.k, DICT_SIZE, seed)
                for name, arm in group.items()
            }
            first = next(iter(group.values()))
            parent = next(iter(saes)).parent
            run = run_config(place, seed, first.batch_size)
            with first.in_place():
                train_missing(run, parent, {folder.name: sae for folder, sae in saes.items()})


def run_config(place: Place, seed: int, batch_size: int) -> RunConfig:
    known = open_stored(CACHE).settings  # the language model, its text and contexts
    run = run_settings(
        data_seed=seed,
        normalize="sqrt_d",
        max_norm_multiple=10.0,
        steps=place.times * TOKENS // batch_size,
        batch_size=batch_size,
        n_ctxs=512,
        dtype="float32",
        eval_tokens=HELD_OUT,
        eval_documents=DOCUMENTS,
        save_every="10m",
    )
    return replace(run, **known | {"hook": place.hook})


def best_rates() -> dict[str, Arm]:
    """Each architecture at the rate with the highest FVE. JumpReLU's rates with more than 20 features a token don't count,
    unless all have."""
    found = {}
    for name, lrs in RATES.items():
        at_rates = [replace(ARCHITECTURES[name], lr=lr) for lr in lrs]
        metrics = [read_metrics(folder_of(BLOCKS_2, RATE_SEED, name, arm)) for arm in at_rates]
        sparse = [i for i, each in enumerate(metrics) if each["l0"] <= 20]
        best = max(sparse or range(len(lrs)), key=lambda i: metrics[i]["fve"])
        found[name] = at_rates[best]
    return found


def train(_: argparse.Namespace) -> None:
    t.set_num_threads(1)
    for place in PLACES:
        train_arms(place, SEEDS, FIRST)
    for times in LENGTHS:
        truth.train(FIRST, times)
    train_arms(MLP_OUT, DOSE_SEEDS, DOSES)
    for place in PLACES:
        train_arms(place, SEEDS, GATES)
    for name, lrs in RATES.items():
        for lr in lrs:
            train_arms(BLOCKS_2, [RATE_SEED], {name: replace(ARCHITECTURES[name], lr=lr)})
    for place in (BLOCKS_2, BLOCKS_0, MLP_OUT):
        train_arms(place, SEEDS, best_rates() | FROZEN)


# --- measures


@dataclass(frozen=True)
class Part:
    """SAEs that are measured together: arms at a place, from some seeds."""

    title: str
    place: Place
    seeds: tuple[int, ...]
    arms: Mapping[str, Arm]

    @property
    def name(self) -> str:
        return f"{self.title}: {self.place.name}"

    def folders(self, name: str) -> list[Path]:
        return [folder_of(self.place, seed, name, self.arms[name]) for seed in self.seeds]

    @property
    def is_trained(self) -> bool:
        folders = [folder for name in self.arms for folder in self.folders(name)]
        return all((folder / EVALUATION).exists() for folder in folders)


def planned() -> Iterator[Part]:
    """The parts, in the protocol's order."""
    yield from (Part("start", place, SEEDS, FIRST) for place in PLACES)
    yield Part("dose", MLP_OUT, DOSE_SEEDS, DOSES)
    yield from (Part("gates off", place, SEEDS, GATES) for place in PLACES)
    at_rates = [
        Part("", BLOCKS_2, (RATE_SEED,), {name: replace(ARCHITECTURES[name], lr=lr)})
        for name, lrs in RATES.items()
        for lr in lrs
    ]
    if all(part.is_trained for part in at_rates):
        arms = best_rates() | FROZEN
        yield from (
            Part("architectures", place, SEEDS, arms) for place in (BLOCKS_2, BLOCKS_0, MLP_OUT)
        )


def read(raw: Path = RAW) -> Content:
    return raw_results.read_or(raw, {"parts": {}, "saes": [], "pairs": []})


def measure(_: argparse.Namespace) -> None:
    measure_parts(planned(), RAW, "start")


def measure_parts(parts: Iterable[Part], raw: Path, with_null: str) -> None:
    """Measure the parts that are trained and have no rows. Those of this title get random tokens beside them."""
    t.set_num_threads(1)
    for part in parts:
        if part.name in read(raw)["parts"] or not part.is_trained:
            continue
        began, content = time.monotonic(), read(raw)
        opened = open_folders(part.folders(next(iter(part.arms))))
        for name, arm in part.arms.items():
            known = {"part": part.name, "arm": name, "lr": arm.lr}
            saes, pairs = measured(part.folders(name))
            content["saes"] += [known | row for row in saes]
            content["pairs"] += [known | row for row in pairs]
        if part.title == with_null:
            known = {"part": part.name, "arm": RANDOM_TOKENS}
            saes, pairs = random_tokens(opened, part.place.k)
            content["saes"] += [known | row for row in saes]
            content["pairs"] += [known | row for row in pairs]
        content["parts"][part.name] = about(began)
        raw_results.write(raw, content)


def measured(folders: list[Path]) -> tuple[list[Content], list[Content]]:
    """A row of each SAE, and of each pair of them."""
    by_seed = {folder.parent.name: folder for folder in folders}
    found = open_folders(folders, keep=False).codes(HELD_OUT)
    codes = {seed: found[str(folder)] for seed, folder in by_seed.items()}
    saes = []
    for seed, folder in by_seed.items():
        row = metrics_of(folder, ("fve", "near_dead_0.1", "near_dead_0.5", "l0"))
        losses = metrics_of(folder, ("loss_original", "loss_reconstructed"))
        row["loss_added"] = losses["loss_reconstructed"] - losses["loss_original"]
        saes.append({"seed": seed, "one_token": one_token(codes[seed])} | row)
    return saes, pairs_of(codes, {seed: own.directions_FD for seed, own in codes.items()})


def random_tokens(opened: OpenedFolders, k: int) -> tuple[list[Content], list[Content]]:
    """The same of untrained dictionaries of random tokens, as many as there are seeds. As directions, the tokens' are compared."""
    x_ND = t.cat([*in_batches(opened.contexts("train", FIT_ON))])
    dictionaries = random_token_saes(x_ND, [(DICT_SIZE, k)] * len(SEEDS))
    found = encode(dictionaries, opened.contexts("heldout", HELD_OUT))
    names = [f"draw {i}" for i in range(len(found))]
    saes = [
        {
            "seed": name,
            "one_token": one_token(own),
            "fve": fve_of(own),
            "near_dead_0.1": 1 - float(is_used(own).mean()),
        }
        for name, own in zip(names, found, strict=True)
    ]
    tokens = {n: each.encoder.weight.detach() for n, each in zip(names, dictionaries, strict=True)}
    return saes, pairs_of(dict(zip(names, found, strict=True)), tokens)


def one_token(codes: Codes) -> float:
    return float(of_one_token(codes).mean())


def pairs_of(codes: Mapping[str, Codes], directions: Mapping[str, t.Tensor]) -> list[Content]:
    """A row of each pair."""
    if len(codes) < 2:
        return []
    rows = []
    for (a, b), pair in reproducibility(directions, codes).pairs.items():
        assert pair.correlations is not None
        others = [~of_one_token(codes[name]) for name in (a, b)]
        row = {"seeds": [a, b]} | {name: pair.measures[name] for name in OF_CODES}
        for least in RETURNING_COSINES:
            for kind, two in {"function": pair.correlations, "direction": pair.cosines}.items():
                row[f"{kind}_{least:g}"] = shared(two, least)
                row[f"others_{kind}_{least:g}"] = shared(two, least, others)
        rows.append(row)
    return rows


def shared(matches: Sequence[Any], least: float, among: Sequence[Any] | None = None) -> float:
    """The share of two SAEs' features, or of these among them, whose match is at least so close."""
    kept = matches if among is None else [m[is_in] for m, is_in in zip(matches, among, strict=True)]
    return float(np.mean(np.concatenate(list(kept)) >= least))


# --- what is shown


def means(content: Content, part: str, arm: str) -> dict[str, Any]:
    """The mean of an arm's SAEs and pairs, and the range of what decides."""
    found: dict[str, Any] = {}
    for rows in (content["saes"], content["pairs"]):
        own = [row for row in rows if (row["part"], row["arm"]) == (part, arm)]
        if not own:
            continue
        numbers = [n for n, value in own[0].items() if isinstance(value, float)]
        found |= {n: mean(row[n] for row in own) for n in numbers}
        for name in {"in_function_fve", "loss_added"} & {*numbers}:
            found[f"{name}_range"] = min(row[name] for row in own), max(row[name] for row in own)
    return found


def by_the_rules(content: Content) -> list[str]:
    """What the rules say, once their rows are whole."""
    parts = {place.name: f"start: {place.name}" for place in PLACES}
    mcc: dict[str, dict[str, float]] = {}
    for row in truth.read()["rows"]:
        mcc.setdefault(row["part"], {})[row["arm"]] = row["mcc"]
    if not {*parts.values()} <= content["parts"].keys() or len(mcc) < len(LENGTHS):
        return ["The rules' rows aren't whole, so no default changes.", ""]
    places = {
        place: {arm: means(content, part, arm) for arm in FIRST} for place, part in parts.items()
    }
    return rules.verdict(places, mcc) + instead(content, mcc)


def instead(content: Content, mcc: rules.Truth) -> list[str]:
    """What the rules say of row 6. Each arm's name has its rate: truth is of those at their own."""
    parts = {place.name: f"architectures: {place.name}" for place in (BLOCKS_2, BLOCKS_0, MLP_OUT)}
    lrs = {row["arm"]: row["lr"] for row in content["saes"] if row["part"] in parts.values()}
    if not {*parts.values()} <= content["parts"].keys():
        return []
    names = {arm: f"{arm}, lr {lr:g}" for arm, lr in lrs.items()}
    places = {
        place: {names[arm]: means(content, part, arm) for arm in names}
        | {rules.TODAY: means(content, f"start: {place}", rules.TODAY)}
        for place, part in parts.items()
    }
    own = {arm: name for arm, name in names.items() if arm in FIRST and FIRST[arm].lr == lrs[arm]}
    truth_of = {n: {own[arm]: found[arm] for arm in own} for n, found in mcc.items()}
    highest = [names[arm] for arm, tried in RATES.items() if lrs[arm] == max(tried)]
    return rules.in_its_place(places, truth_of, highest, names["TopK"])


def tables(content: Content) -> list[str]:
    return by_the_rules(content) + tables_of(content)


def tables_of(content: Content) -> list[str]:
    """What is measured, and a table of each part."""
    lines = [
        f"The embedded model, F = {DICT_SIZE}, {TOKENS / 1e6:.1f}M tokens, {HELD_OUT:,} held-out tokens. Means over the "
        "SAEs and over all pairs of them. *Others*: features that aren't of one token's kind.",
        "",
    ]
    for part, own in content["parts"].items():
        rows = {}
        for arm in dict.fromkeys(row["arm"] for row in content["saes"] if row["part"] == part):
            found = means(content, part, arm)
            cells = ["", *[""] * len(SHARES)]
            if "in_function_fve_range" in found:
                low, high = found["in_function_fve_range"]
                cells = [f"{found['in_function_fve']:.3f} ({low:.3f} to {high:.3f})"]
                cells += [f"{100 * found[n]:.1f}%" for n in SHARES]
            others = [f"{found[n]:{form}}" if n in found else "" for n, form in OF_SAES.items()]
            rows[arm] = cells + others
        columns = ["FVE of what comes back", *SHARES.values(), "FVE", "L0", "loss added (nats)"]
        lines += [f"## {part}", "", *table("", rows, columns), "", f"{about_line(own)}.", ""]
    return lines


def draw(content: Content, page: Path) -> None:
    """The FVE of what comes back over FVE, a panel a place: each arm's mean, and the range of its pairs."""
    import matplotlib.pyplot as plt

    by_place = {
        place.name: [part for part in content["parts"] if part.endswith(f": {place.name}")]
        for place in PLACES
    }
    by_place = {name: parts for name, parts in by_place.items() if parts}
    figure, axes = plt.subplots(
        1, len(by_place), figsize=(3.6 * len(by_place) + 2.5, 3.6), squeeze=False
    )
    arms = [*dict.fromkeys(row["arm"] for row in content["pairs"])]
    styles = {arm: (f"C{i % 10}", "osD^"[i // 10]) for i, arm in enumerate(arms)}
    for axis, (name, parts) in zip(axes[0], by_place.items(), strict=True):
        for part, arm in dict.fromkeys((row["part"], row["arm"]) for row in content["pairs"]):
            if part not in parts:
                continue
            found, (colour, marker) = means(content, part, arm), styles[arm]
            low, high = found["in_function_fve_range"]
            axis.plot([found["fve"]] * 2, [low, high], color=colour, alpha=0.4)
            axis.plot(found["fve"], found["in_function_fve"], marker, color=colour)
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("FVE")
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("FVE of what comes back")
    for arm, (colour, marker) in styles.items():
        axes[0, -1].plot([], [], marker, color=colour, label=arm)
    axes[0, -1].legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8)
    save_plot(figure, page.with_suffix(".png"), dpi=110)


STAGES = Stages(
    "returning.study",
    {"train": train, "measure": measure},
    {"whose_features": Page(tables, draw), "whose_features_truth": Page(truth.tables)},
)

if __name__ == "__main__":
    STAGES.run()
