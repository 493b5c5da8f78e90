"""The arms on activations whose features are known: truth of PROTOCOL_RETURNING.md. The activations are those of the study
of the dose (experiments/dose/PROTOCOL_DOSE.md).

A length that has its rows is not trained again.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch as t
from scipy.optimize import linear_sum_assignment

from dictionary_learning_ext.config.run import UNKNOWN, RunConfig, TrainConfig
from dictionary_learning_ext.trainers.build import build_trainer
from experiments import raw_results
from experiments.pages import table
from experiments.raw_results import RESULTS, about, about_line
from experiments.returning.arms import Arm

RAW = RESULTS / "whose_features_truth.json"
TRUE, WIDTH, PARENTS, K, BATCH = 2048, 192, 256, 16, 512
SAMPLES, MEASURED, FIRST_FILL = 3_072_000, 40_000, 65_536
DICT_SIZE, SEED, LR = TRUE // 2, 9307, 2e-3
SHOWN = {"mcc": "MCC", "f1": "F1", "fve": "FVE", "near_dead": "near-dead < 0.1"}


@dataclass(frozen=True)
class Truth:
    """Activations whose features are known: sums of unit directions, three quarters of which fire only with a parent.

    Rates fall as a power of the rank. A row has K features on average.
    """

    directions_TD: t.Tensor
    rates_T: t.Tensor
    """of a root: how often it fires. Of a child: how often, where its parent fires"""
    parent_T: t.Tensor
    """each child's parent; a root's own number"""

    @classmethod
    def drawn(cls, seed: int = 0) -> "Truth":
        generator = t.Generator().manual_seed(seed)
        directions_TD = t.nn.functional.normalize(t.randn(TRUE, WIDTH, generator=generator), dim=1)
        roots = TRUE // 4
        parent_T = t.arange(TRUE)
        parent_T[roots:] = t.randint(PARENTS, (TRUE - roots,), generator=generator)
        rates_T = t.empty(TRUE)
        rates_T[:roots] = (1 + t.randperm(roots, generator=generator)).float() ** -0.5
        rates_T[roots:] = 0.4 * (1 + t.rand(TRUE - roots, generator=generator) * 63) ** -0.5
        frequent = rates_T[:roots]
        per_root = 1 + t.bincount(parent_T[roots:], rates_T[roots:], minlength=roots)
        rates_T[:roots] = frequent * (K / (frequent * per_root).sum())
        return cls(directions_TD, rates_T.clamp(max=0.5), parent_T)

    def sample(self, n: int, generator: t.Generator) -> tuple[t.Tensor, t.Tensor]:
        """n rows (n, D), and which features fire (n, T)."""
        on_BT = t.rand(n, TRUE, generator=generator) < self.rates_T
        on_BT &= on_BT[:, self.parent_T]
        strength_BT = (1 + 0.3 * t.randn(n, TRUE, generator=generator)).clamp_(min=0.2) * on_BT
        return strength_BT @ self.directions_TD, on_BT


def train(arms: Mapping[str, Arm], times: int, raw: Path = RAW, seed: int = SEED) -> None:
    """Train the arms on the same samples, `times` SAMPLES, and add their rows."""
    part = f"F = {DICT_SIZE:,}, {times * SAMPLES / 1e6:.1f}M samples, seed {seed}"
    if part in read(raw)["parts"]:
        return
    began, truth, steps = time.monotonic(), Truth.drawn(), times * SAMPLES // BATCH
    samples = t.Generator().manual_seed(seed)
    held_out = truth.sample(MEASURED, t.Generator().manual_seed(seed + 10**6))
    run = RunConfig(steps=steps, model=UNKNOWN, hook=UNKNOWN)
    factor = float(held_out[0].square().sum(1).mean() / WIDTH) ** 0.5
    held_out[0].div_(factor)
    first_fill = truth.sample(FIRST_FILL, t.Generator().manual_seed(seed + 2 * 10**6))[0]
    trainers = {
        name: build_trainer(
            TrainConfig(sae := replace(arm, lr=LR).sae(K, DICT_SIZE, seed), run).resolved,
            energy=float(WIDTH),
            activation_dim=WIDTH,
            layer=0,
            device="cpu",
            name="",
            first_fill=first_fill if sae.start == "data" else None,
        )
        for name, arm in arms.items()
    }
    for step in range(steps):
        x_BD = truth.sample(BATCH, samples)[0].div_(factor)
        for trainer in trainers.values():
            trainer.update(step, x_BD)
    content = read(raw)
    content["rows"] += [
        {"part": part, "arm": name} | measured(trainer.ae, truth, *held_out)
        for name, trainer in trainers.items()
    ]
    content["parts"][part] = about(began)
    raw_results.write(raw, content)


@t.no_grad()
def measured(ae: Any, truth: Truth, x_ND: t.Tensor, on_NT: t.Tensor) -> dict[str, float]:
    """How an SAE reconstructs samples, and how its features match the true ones, one to one by absolute cosine.

    F1 is of a true feature's firing and its match's, the mean over the matched pairs.
    """
    directions_FD = t.nn.functional.normalize(ae.decoder.weight.t(), dim=1)
    cosine_FT = (directions_FD @ truth.directions_TD.t()).abs()
    features, true = linear_sum_assignment(cosine_FT.numpy(), maximize=True)
    fired_F = t.zeros(len(directions_FD))
    both_M, mine_M, theirs_M = t.zeros(3, len(features))
    residual = 0.0
    for x_BD, on_BT in zip(x_ND.split(2000), on_NT.split(2000), strict=True):
        f_BF = ae.encode(x_BD)
        is_on_BF = f_BF != 0
        fired_F += is_on_BF.sum(0)
        mine_BM, theirs_BM = is_on_BF[:, features], on_BT[:, true]
        both_M += (mine_BM & theirs_BM).sum(0)
        mine_M += mine_BM.sum(0)
        theirs_M += theirs_BM.sum(0)
        residual += float((x_BD - ae.decode(f_BF)).square().sum())
    total = float((x_ND - x_ND.mean(0)).square().sum())
    return {
        "mcc": float(cosine_FT[features, true].mean()),
        "f1": float((2 * both_M / (mine_M + theirs_M).clamp(min=1)).mean()),
        "fve": 1 - residual / total,
        "near_dead": float((fired_F / MEASURED < 0.1 * K / len(fired_F)).float().mean()),
    }


def read(raw: Path = RAW) -> dict[str, Any]:
    return raw_results.read_or(raw, {"parts": {}, "rows": []})


def tables(content: dict[str, Any]) -> list[str]:
    lines = [
        f"{TRUE:,} true features, k = {K}, batches of {BATCH}, rate {LR:g}. One SAE a row.",
        "",
    ]
    for part, own in content["parts"].items():
        rows = {
            row["arm"]: [f"{row[name]:.3f}" for name in SHOWN]
            for row in content["rows"]
            if row["part"] == part
        }
        lines += [f"## {part}", "", *table("", rows, [*SHOWN.values()]), ""]
        lines += [f"{about_line(own)}.", ""]
    return lines
