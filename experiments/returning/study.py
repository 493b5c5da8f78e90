"""Whose features come back, at which architecture, start and dose? See PROTOCOL_RETURNING.md, which says what cache it needs.

    python -m experiments.returning.study train     # in the protocol's order; continues where it was stopped

An SAE whose run folder is finished is not trained again.
"""

import argparse
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch as t

from dictionary_learning_ext import RunConfig
from dictionary_learning_ext.activations.stored import open_stored
from dictionary_learning_ext.run_folder.reading import read_metrics
from experiments.returning import truth
from experiments.returning.arms import ARCHITECTURES, DOSES, FIRST, FROZEN, GATES, RATES, Arm
from experiments.stages import Page, Stages
from experiments.trained_saes import train_missing

CACHE, RUNS = "runs/returning/embedded", Path("runs/returning")
TOKENS, DICT_SIZE, HELD_OUT, DOCUMENTS = 2_048_000, 512, 50_000, 64
SEEDS, DOSE_SEEDS, RATE_SEED = (9302, 9303, 9304, 9305), (9300, 9301), 9306


@dataclass(frozen=True)
class Place:
    hook: str
    k: int

    @property
    def name(self) -> str:
        block, kind = self.hook.split(".hook_")
        where = block if kind == "resid_post" else kind
        return f"{where}, k/F = 1/{DICT_SIZE // self.k}"


BLOCKS_2, MLP_OUT, BLOCKS_0, DENSE = PLACES = (
    Place("blocks.2.hook_resid_post", 16),
    Place("blocks.2.hook_mlp_out", 16),
    Place("blocks.0.hook_resid_post", 16),
    Place("blocks.2.hook_resid_post", 64),
)


def folder_of(place: Place, seed: int, name: str, arm: Arm) -> Path:
    """An SAE's run folder: of the arm with this name, at this rate."""
    own = f"{name}, lr {arm.lr:g}".replace(", ", "_").replace(" ", "-")
    return RUNS / place.name.replace(", k/F = 1/", "_") / str(seed) / own


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
    run = RunConfig(
        data_seed=seed,
        normalize="sqrt_d",
        max_norm_multiple=10.0,
        steps=TOKENS // batch_size,
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
    for times in (1, 2):
        truth.train(FIRST, times)
    train_arms(MLP_OUT, DOSE_SEEDS, DOSES)
    for place in PLACES:
        train_arms(place, SEEDS, GATES)
    for name, lrs in RATES.items():
        for lr in lrs:
            train_arms(BLOCKS_2, [RATE_SEED], {name: replace(ARCHITECTURES[name], lr=lr)})
    for place in (BLOCKS_2, BLOCKS_0, MLP_OUT):
        train_arms(place, SEEDS, best_rates() | FROZEN)


STAGES = Stages("returning.study", {"train": train}, {"whose_features_truth": Page(truth.tables)})

if __name__ == "__main__":
    STAGES.run()
