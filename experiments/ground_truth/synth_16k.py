"""How much of SynthSAEBench-16k's truth do TopK, BatchTopK and vSAEs find, at a tenth of its protocol?

    python -m experiments.ground_truth.synth_16k train                     # train, measure, write the page
    python -m experiments.ground_truth.synth_16k tables                    # write the page's tables again

    ... train --arms TopK BatchTopK --seeds 0 1                            # these rows alone
    ... train --samples 200000000                                          # the benchmark's length: for a GPU

PROTOCOL_SYNTH_16K.md was written before. Needs [sae-lens]. The SAEs of a seed are trained side by side. It can be stopped at any
time: a row that is there is not made again, and the training that was stopped is continued.
"""

import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch as t

from dictionary_learning_ext import load_dictionary
from dictionary_learning_ext.config.sae import share_of_run
from dictionary_learning_ext.features.directions import decoder_directions
from dictionary_learning_ext.run_folder.files import WEIGHTS
from experiments import raw_results
from experiments.ground_truth.synthetic import BENCH_16K, SyntheticModel
from experiments.pages import table
from experiments.raw_results import RESULTS, about, about_line
from experiments.speed.timing import cpu
from experiments.stages import Page, Stages
from experiments.trained_saes import sae_config, train_missing

WIDTH, K, BATCH, LR = 4096, 25, 1024, 3e-4
SAMPLES, HELD_OUT, HELD_OUT_BATCH = 20_000_000, 102_400, 1024
RUNS, RAW = Path("runs/synth_16k"), RESULTS / "synth_16k.json"
NOISE: dict[str, Any] = {
    "noise_to_signal": 0.3,
    "noise_on": "selection",
    "noise_anneal_steps": share_of_run(0.5, least=1),
    "kl_scope": "selected",
}
ARMS: dict[str, dict[str, Any]] = {
    "TopK": {"posterior": "point", "beta": 0.0, "rectify": True},
    "BatchTopK": {"architecture": "batch_top_k"},
    "recommended until 2026-11-29": NOISE | {"beta": 0.03},
    "recommended": NOISE | {"beta": 0.01},
    "Matryoshka": {
        "architecture": "matryoshka",
        "group_fractions": (1 / 32, 3 / 32, 12 / 32, 16 / 32),
    },
}
SHOWN = {
    "f1_score": "F1",
    "mcc": "MCC",
    "explained_variance": "explained variance",
    "uniqueness": "uniqueness",
    "precision": "precision",
    "recall": "recall",
    "sae_l0": "L0",
    "dead_latents": "dead",
}
DIGITS = {"sae_l0": 1, "dead_latents": 0}
PUBLISHED = {
    "BatchTopK": (0.7316, 0.7574, 0.7923, 0.9837),
    "Matryoshka": (0.8793, 0.7927, 0.7792, 0.9987),
    "JumpReLU": (0.7317, 0.7527, 0.7951, 0.9885),
    "Standard L1": (0.5562, 0.6039, 0.7654, 0.8976),
    "Matching Pursuit": (0.4464, 0.6930, 0.8351, 0.8281),
}
"""The first four of SHOWN, on SAELens's page of the benchmark: means of five seeds, 200 million samples."""


def trained(model: SyntheticModel, arms: Sequence[str], seed: int, samples: int) -> dict[str, Path]:
    """The run folders of a seed's SAEs, by arm. Those that aren't finished are trained or continued, all on the
    same samples, which are drawn once."""
    steps = samples // BATCH
    run = model.run(
        data_seed=seed,
        steps=steps,
        batch_size=BATCH,
        dtype="bfloat16",
        log_steps=max(1, steps // 100),
        overwrite=True,
    )
    sizes: dict[str, Any] = {"k": K, "dict_size": WIDTH, "lr": LR, "decay_start": None}
    names = {arm: arm.replace(" ", "-") for arm in arms}
    saes = {names[arm]: sae_config(seed=seed, **sizes, **ARMS[arm]) for arm in arms}
    folders = train_missing(run, RUNS / str(samples) / str(seed), saes, WEIGHTS, model.inputs)
    return {arm: folders[name] for arm, name in names.items()}


class _HeldOut:
    """Held-out samples, as SAELens's evaluation asks its generator and its feature dictionary for them."""

    def __init__(self, model: SyntheticModel):
        self._rows = model.rows("heldout", HELD_OUT_BATCH)
        self.feature_vectors = self._rows.vectors_TD

    def sample(self, batch_size: int) -> t.Tensor:
        assert batch_size == HELD_OUT_BATCH
        self._x_BD = next(self._rows)
        return self._rows.firing_BT()

    def __call__(self, firing_BT: t.Tensor) -> t.Tensor:
        return self._x_BD


class _SAE:
    """An SAE of ours, as SAELens's evaluation asks for it."""

    def __init__(self, folder: Path):
        self._sae: Any = load_dictionary(folder)[0]
        self.W_dec = decoder_directions(self._sae)
        self.encode, self.decode = self._sae.encode, self._sae.decode

    def eval(self) -> None:
        self._sae.eval()


def measured(model: SyntheticModel, folder: Path) -> dict[str, float]:
    """SAELens's own measures of an SAE, on samples that nothing was trained on."""
    from sae_lens.synthetic import (  # pyright: ignore[reportMissingImports]
        eval_sae_on_synthetic_data,
    )

    held_out: Any = _HeldOut(model)
    sae: Any = _SAE(folder)
    found = eval_sae_on_synthetic_data(sae, held_out, held_out, HELD_OUT, HELD_OUT_BATCH).to_dict()
    return found.pop("classification") | found


def train(arguments: Namespace) -> None:
    t.set_num_threads(arguments.threads)
    model = SyntheticModel.of(BENCH_16K)
    for seed in arguments.seeds:
        part = f"seed {seed}, {arguments.samples:,} samples"
        rows = {arm: f"{arm}, {part}" for arm in arguments.arms}
        missing = [arm for arm in arguments.arms if rows[arm] not in read()["rows"]]
        if not missing:
            continue
        began = time.monotonic()
        try:
            for arm, folder in trained(model, missing, seed, arguments.samples).items():
                content = read()
                content["rows"][rows[arm]] = measured(model, folder)
                raw_results.write(RAW, content)
        finally:  # the minutes of a training that is stopped count, too
            content = read()
            about_it = about(began, content["parts"].get(part))
            content["parts"][part] = about_it | {"cpu": cpu(), "threads": arguments.threads}
            raw_results.write(RAW, content)


def read() -> dict[str, Any]:
    return raw_results.read_or(RAW, {"parts": {}, "rows": {}})


def tables(content: dict[str, Any]) -> list[str]:
    rows = {
        name: [f"{row[key]:.{DIGITS.get(key, 4)}f}" for key in SHOWN]
        for name, row in content["rows"].items()
    }
    for arm, numbers in PUBLISHED.items():
        cells = [f"{number:.4f}" for number in numbers]
        rows[f"published: {arm}, 200,000,000 samples"] = [*cells, "", "", "25", ""]
    lines = table("", rows, list(SHOWN.values()))
    made = [
        f"- {name}: {about_line(own)}, {own['cpu']}, {own['threads']} threads."
        for name, own in content["parts"].items()
    ]
    return [*lines, "", *made] if made else lines


def options(parser: ArgumentParser) -> None:
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=[*ARMS][:4])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--samples", type=int, default=SAMPLES, help="each SAE sees this many")
    parser.add_argument("--threads", type=int, default=1, help="of torch")


STAGES = Stages("ground_truth.synth_16k", {"train": train}, {"synth_16k": Page(tables)}, options)

if __name__ == "__main__":
    STAGES.run()
