"""Trainers of the study of relative noise that the package doesn't have: its other scale, and a rival's control."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import patch

import torch as t

from dictionary_learning_ext import VariationalTopKTrainer
from dictionary_learning_ext.config.architectures import TRAINED
from dictionary_learning_ext.trainers.kernels.select import top_k
from dictionary_learning_ext.trainers.kernels.step import StepObjective
from dictionary_learning_ext.trainers.probabilistic_top_k import GatedCode, ProbabilisticTopKTrainer


class OwnNoiseTrainer(VariationalTopKTrainer):
    """A fixed posterior's noise, in units of the standard deviation of each token's means over its features."""

    def _objective(self, x: t.Tensor, step: int, generator: t.Generator) -> StepObjective:
        fixed = super()._objective(x, step, generator)
        with t.no_grad():
            means_BF = self.ae.encoder(x - self.ae.b_dec)
        return replace(fixed, sigma=fixed.sigma * means_BF.std(1, correction=0, keepdim=True))


class GatesOffTrainer(ProbabilisticTopKTrainer):
    """Probabilistic TopK whose second half of training is upstream's TopK: every gate is open, and none is drawn."""

    def _code(self, pre_BF: t.Tensor, k: int, generator: t.Generator) -> GatedCode:
        start, end = self.settings.temperature_start, self.settings.temperature_end
        if self.temperature > math.sqrt(start * end):  # which it has halfway
            return super()._code(pre_BF, k, generator)
        _, indices_BK = top_k(pre_BF.detach(), k, 128)
        values_BK = pre_BF.gather(1, indices_BK).relu()
        features_BF = t.zeros_like(pre_BF).scatter(1, indices_BK, values_BK)
        return GatedCode(features_BF, values_BK, t.ones_like(values_BK))


TRAINERS = {
    "own": ("vsae_top_k", OwnNoiseTrainer),
    "gates off": ("probabilistic_top_k", GatesOffTrainer),
}
"""By the name that an arm's options give as `trainer`: the architecture whose trainer it stands for."""


@contextmanager
def training_with(name: str | None) -> Iterator[None]:
    """Inside, the architecture is trained by the trainer of this name. None: by the package's own."""
    if name is None:
        yield
        return
    architecture, trainer = TRAINERS[name]
    row = replace(TRAINED[architecture], trainer=f"{trainer.__module__}:{trainer.__name__}")
    with patch.dict(TRAINED, {architecture: row}):
        yield
