"""Do more features of SmolLM2-135M come back with the preset than with TopK? Row 12 of PROTOCOL_FADING.md.

    pip install gguf accelerate
    python -m experiments.language_models.smollm2 runs/smollm2-135m
    vsae cache runs/smollm2_blocks1 --model runs/smollm2-135m --hook blocks.1.hook_resid_post \
      --tokens 2000000 --text-passes 2 --eval-tokens 60000
    python -m experiments.fading.smollm2 train     # continues where it was stopped
    python -m experiments.fading.smollm2 tables    # write the page's tables again

Three SAEs of a seed and rate are trained at once, from one buffer. Their rows are written when both seeds of a pair are measured.
"""

import argparse
import math
import time
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any
from unittest.mock import patch

import torch as t

from dictionary_learning_ext import ProbabilisticTopKTrainer, RunConfig, preset
from dictionary_learning_ext.activations.stored import open_stored
from dictionary_learning_ext.config.architectures import TRAINED
from dictionary_learning_ext.config.sae import SAEConfig
from dictionary_learning_ext.evaluation.folders import open_folders
from dictionary_learning_ext.features.agreement import CODE_MEASURES
from dictionary_learning_ext.features.reproducibility import reproducibility
from dictionary_learning_ext.trainers.kernels.select import top_k
from dictionary_learning_ext.trainers.probabilistic_top_k import GatedCode
from experiments import raw_results
from experiments.pages import table
from experiments.raw_results import RESULTS, about, about_line
from experiments.stages import Page, Stages
from experiments.trained_saes import metrics_of, run_settings, sae_config, train_missing

RAW, CACHE, RUNS = RESULTS / "fading_smollm2.json", "runs/smollm2_blocks1", Path("runs/fading")
HOOK = "blocks.1.hook_resid_post"
DICT_SIZE, K, STEPS, BATCH = 4 * 576, 64, 8_000, 256
LRS = (9.5e-4, 1.9e-3)
"""Half of the preset's rate for this size, and the rate itself."""
PAIRS = ((9210, 9211), (9212, 9213))
HELD_OUT, DOCUMENTS = 50_000, 64
TOP_K, VSAE, GATES_OFF = "TopK", "vSAE, the preset", "Probabilistic TopK, gates off"
SHOWN = {
    "as_direction": "as a direction",
    "direction_selections": "selections",
    "in_function": "in what they do",
    "in_function_selections": "selections",
    "near_dead_0.1": "near-dead < 0.1",
    "fve": "FVE",
    "loss_added": "loss added (nats)",
}
Row = dict[str, Any]


class GatesOffTrainer(ProbabilisticTopKTrainer):
    """Probabilistic TopK whose second half of training is upstream's TopK: every gate is open, and none is drawn."""

    def _code(self, pre_BF: t.Tensor, temperature: float, generator: t.Generator) -> GatedCode:
        start, end = self.settings.temperature_start, self.settings.temperature_end
        if temperature > math.sqrt(start * end):  # which it has halfway
            return super()._code(pre_BF, temperature, generator)
        _, indices_BK = top_k(pre_BF.detach(), self.k)
        values_BK = pre_BF.gather(1, indices_BK).relu()
        features_BF = t.zeros_like(pre_BF).scatter(1, indices_BK, values_BK)
        return GatedCode(features_BF, values_BK, t.ones_like(values_BK))


def gates_off() -> AbstractContextManager[Any]:
    """Inside, Probabilistic TopK is trained by `GatesOffTrainer`."""
    path = f"{GatesOffTrainer.__module__}:{GatesOffTrainer.__name__}"
    row = replace(TRAINED["probabilistic_top_k"], trainer=path)
    return patch.dict(TRAINED, {"probabilistic_top_k": row})


def arms(lr: float, seed: int) -> dict[str, SAEConfig]:
    """The three SAEs of a seed. They have the preset's schedule and AuxK's default threshold, 100 F/k tokens."""
    shared = {"dict_size": DICT_SIZE, "k": K, "lr": lr, "seed": seed}
    vsae = replace(preset("recommended", STEPS).sae, **shared)
    gated = {"architecture": "probabilistic_top_k", "temperature_start": 1.0}
    return {
        TOP_K: sae_config(architecture="top_k", **shared),
        VSAE: vsae,
        GATES_OFF: sae_config(**gated, **shared),
    }


def run_config(folder: Path, seed: int) -> RunConfig:
    """The run of a seed's SAEs: its data order is the seed's too."""
    known = open_stored(CACHE).settings  # the language model, its text and contexts
    run = run_settings(
        data_seed=seed,
        text_passes=2,
        max_norm_multiple=10.0,
        steps=STEPS,
        batch_size=BATCH,
        eval_tokens=HELD_OUT,
        eval_documents=DOCUMENTS,
        save_every="10m",
        save_dir=str(folder),
    )
    return replace(run, **known | {"hook": HOOK})


def train(_: argparse.Namespace) -> None:
    with gates_off():
        for lr in LRS:
            for seeds in PAIRS:
                train_pair(lr, seeds)


def read() -> Row:
    return raw_results.read_or(RAW, {"parts": {}, "rows": []})


def train_pair(lr: float, seeds: tuple[int, int]) -> None:
    """Train and measure a pair of seeds of every arm at a rate, unless it has its rows."""
    part = part_name(lr, seeds)
    if part in read()["parts"]:
        return
    began, folders = time.monotonic(), []
    for seed in seeds:
        place = RUNS / f"smollm2_lr{lr:g}_seed{seed}"
        named = {name.replace(", ", "_").replace(" ", "-"): s for name, s in arms(lr, seed).items()}
        folders.append([*train_missing(run_config(place, seed), place, named).values()])
    rows = [
        {"part": part, "arm": name} | measured(*two)
        for name, two in zip((TOP_K, VSAE, GATES_OFF), zip(*folders, strict=True), strict=True)
    ]
    content = read()
    content["rows"] += rows
    content["parts"][part] = about(began)
    raw_results.write(RAW, content)


def part_name(lr: float, seeds: tuple[int, int]) -> str:
    return f"lr {lr:g}, seeds {seeds[0]}, {seeds[1]}"


def measured(one: Path, other: Path) -> Row:
    """What comes back between two seeds' SAEs, and the metrics of each."""
    codes = open_folders([one, other], keep=False).codes(HELD_OUT)
    found = reproducibility({name: own.directions_FD for name, own in codes.items()}, codes)
    measures = {measure.key: found.pair.measures[measure.key] for measure in CODE_MEASURES}
    metrics = ("fve", "near_dead_0.1", "near_dead_0.5", "alive", "l0")
    losses = ("loss_original", "loss_reconstructed")
    saes = [metrics_of(folder, (*metrics, *losses)) for folder in (one, other)]
    for sae in saes:
        sae["loss_added"] = sae.pop("loss_reconstructed") - sae.pop("loss_original")
    return measures | {"as_direction": found.as_direction(str(one)), "saes": saes}


def tables(content: Row) -> list[str]:
    lines = [
        f"SmolLM2-135M-Instruct, {HOOK}, F = {DICT_SIZE:,}, k = {K}, {STEPS:,} steps of {BATCH}. One pair of seeds a row: the mean "
        "of its two SAEs.",
        "",
    ]
    for part, own in content["parts"].items():
        rows = {}
        for row in (row for row in content["rows"] if row["part"] == part):
            means = {n: mean(sae[n] for sae in row["saes"]) for n in row["saes"][0]}
            rows[row["arm"]] = [f"{(row | means)[n]:.4f}" for n in SHOWN]
        lines += [f"## {part}", "", *table("", rows, [*SHOWN.values()]), ""]
        lines += [f"{about_line(own)}.", ""]
    return lines


STAGES = Stages("fading.smollm2", {"train": train}, {"fading_smollm2": Page(tables)})

if __name__ == "__main__":
    STAGES.run()
