"""What the studies of whose features come back train: the arms, by name, and trainers that the package doesn't have.
See PROTOCOL_RETURNING.md and PROTOCOL_BATCH.md."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import torch as t
from dictionary_learning.trainers.top_k import TopKTrainer

from dictionary_learning_ext.config.architectures import TRAINED
from dictionary_learning_ext.config.sae import SAEConfig, share_of_run
from experiments.fading.smollm2 import GatesOffTrainer
from experiments.trained_saes import sae_config

L2_WEIGHT = 1e-3


class AlignedTrainer(TopKTrainer):
    """TopK whose encoder and decoder have an inner product of 1 for every feature (after arXiv 2605.18629)."""

    def update(self, step: int, x: t.Tensor) -> Any:
        found = super().update(step, x)
        w_FD, d_FD = self.ae.encoder.weight.data, self.ae.decoder.weight.data.T
        w_FD += (1 - (w_FD * d_FD).sum(1, keepdim=True)) * d_FD
        return found


class L2Trainer(TopKTrainer):
    """TopK with a penalty on the encoder's squared weights (after arXiv 2603.04198)."""

    def loss(self, x: t.Tensor, step: int | None = None, logging: bool = False) -> Any:
        found = super().loss(x, step, logging)
        return found if logging else found + L2_WEIGHT * self.ae.encoder.weight.square().sum()


class FrozenDecoderTrainer(TopKTrainer):
    """TopK whose decoder stays as it was drawn."""

    def update(self, step: int, x: t.Tensor) -> Any:
        drawn_DF = self.ae.decoder.weight.detach().clone()
        found = super().update(step, x)
        self.ae.decoder.weight.data.copy_(drawn_DF)
        return found


@dataclass(frozen=True)
class Arm:
    options: dict[str, Any]
    """Of the architecture's settings. All that a default may change is given: see `sae`."""
    trainer: type | None = None
    """In place of the package's."""
    lr: float = 4e-3
    batch_size: int = 256

    def sae(self, k: int, dict_size: int, seed: int) -> SAEConfig:
        shared = {"dict_size": dict_size, "seed": seed, "lr": self.lr, "start": "random"}
        if self.options["architecture"] != "jump_relu":
            shared |= {"k": k, "auxk_alpha": 1 / 32, "dead_feature_threshold": 100 * dict_size // k}
        shared |= {"warmup_steps": share_of_run(0.1), "decay_start": share_of_run(0.75)}
        return sae_config(**shared | self.options)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, its architecture is trained by its own trainer."""
        if self.trainer is None:
            yield
            return
        name = self.options["architecture"]
        row = replace(TRAINED[name], trainer=f"{self.trainer.__module__}:{self.trainer.__name__}")
        with patch.dict(TRAINED, {name: row}):
            yield


DATA = {"start": "data"}
TOP_K = {"architecture": "top_k"}


def vsae(noise_to_signal: float = 0.3, until: float = 0.5) -> dict[str, Any]:
    return {
        "architecture": "vsae_top_k",
        "posterior": "fixed",
        "noise_on": "selection",
        "noise_to_signal": noise_to_signal,
        "noise_anneal_steps": share_of_run(until),
        "select_by": "value",
        "rectify": False,
        "beta": 0.01,
        "kl_scope": "selected",
        "kl_schedule": "linear",
        "kl_warmup_steps": share_of_run(0.1),
        "prior_std": 1.0,
    }


def gated(temperature: float) -> dict[str, Any]:
    temperatures = {"temperature_start": temperature, "temperature_end": 1e-3}
    return {"architecture": "probabilistic_top_k", **temperatures}


FIRST = {
    "TopK": Arm(TOP_K),
    "TopK, from the data": Arm(TOP_K | DATA),
    "vSAE": Arm(vsae()),
    "vSAE, from the data": Arm(vsae() | DATA),
    "vSAE until 0.25, from the data": Arm(vsae(until=0.25) | DATA),
}
GATES = {
    "gates off": Arm(gated(1.0), GatesOffTrainer),
    "gates off, from the data": Arm(gated(1.0) | DATA, GatesOffTrainer),
}
DOSES = {
    f"vSAE {noise:g} until {until:g}": Arm(vsae(noise, until))
    for noise in (0.1, 0.3, 1.0)
    for until in (0.25, 0.5)
}
ARCHITECTURES = {
    "TopK": FIRST["TopK"],
    "vSAE": FIRST["vSAE"],
    "BatchTopK": Arm({"architecture": "batch_top_k"}),
    "Matryoshka": Arm(
        {
            "architecture": "matryoshka",
            "group_fractions": (1 / 16, 1 / 16, 1 / 8, 1 / 4, 1 / 2),
        }
    ),
    "Probabilistic TopK": Arm(gated(5.0), batch_size=512),
    "aligned": Arm(TOP_K, AlignedTrainer),
    "L2": Arm(TOP_K, L2Trainer),
    "JumpReLU": Arm(
        {
            "architecture": "jump_relu",
            "target_l0": 16.0,
            "sparsity_penalty": 1.0,
            "sparsity_warmup_steps": share_of_run(0.2),
        }
    ),
}
FROZEN = {"frozen decoder": Arm(TOP_K, FrozenDecoderTrainer)}
RATES = {name: (2e-3, 4e-3, 8e-3) for name in ARCHITECTURES} | {"JumpReLU": (5e-4, 1e-3, 2e-3)}


# --- the vSAE over BatchTopK: PROTOCOL_BATCH.md


def over_batch(noise_to_signal: float, beta: float) -> Arm:
    options = vsae(noise_to_signal)
    del options["select_by"], options["rectify"]
    return Arm(options | {"architecture": "vsae_batch_top_k", "beta": beta})


TUNED = {
    f"noise {noise:g}, penalty {beta:g}": over_batch(noise, beta)
    for noise in (0.1, 0.3)
    for beta in (0.0, 0.01, 0.03)
}
_POINT = {"posterior": "point", "beta": 0.0}
OVER_BATCH = "vSAE over BatchTopK"
COMPARED = {
    "TopK": Arm({"architecture": "vsae_top_k", "rectify": True} | _POINT),
    "vSAE": Arm(vsae()),
    "BatchTopK": Arm({"architecture": "vsae_batch_top_k"} | _POINT),
}
"""Beside the vSAE over BatchTopK, which the first step chooses among TUNED."""
GATED = {"Probabilistic TopK": Arm(gated(5.0), lr=8e-3, batch_size=512)}
"""The rival, at the rate that the study before chose."""
