"""What the study of the fading trains: the arms, by name, as options of their settings. See PROTOCOL_FADING.md."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import patch

import torch as t

from dictionary_learning_ext import ProbabilisticTopKTrainer
from dictionary_learning_ext.config.architectures import TRAINED
from dictionary_learning_ext.config.sae import share_of_run
from dictionary_learning_ext.trainers.kernels.select import top_k
from dictionary_learning_ext.trainers.probabilistic_top_k import GatedCode
from experiments.dose.arms import ARMS as OF_DOSE
from experiments.dose.arms import NOISE, RIVAL, TOP_K, Options

FIXED: Options = NOISE | {"noise_to_signal": 0.3, "beta": 0.01}
LIGHT: Options = NOISE | {"survival": 0.6, "beta": 0.0}
SURVIVAL: Options = NOISE | {"survival": 0.25, "beta": 0.0}
RECOMMENDED, GATES_OFF = "survival 0.6 until 0.5", f"{RIVAL}, gates off"
NEW: dict[str, Options] = {
    "fixed 0.3 until 0.25": FIXED | {"noise_anneal_steps": share_of_run(0.25, least=1)},
    "fixed 0.3 until 0.5": FIXED,
    "survival 0.25 until 0.25": SURVIVAL | {"noise_anneal_steps": share_of_run(0.25, least=1)},
    "survival 0.25 until 0.5": SURVIVAL,
}
"""What may become the preset. `until`: the share of the run over which the noise fades linearly."""
ARMS: dict[str, Options] = {
    TOP_K: OF_DOSE[TOP_K],
    RECOMMENDED: LIGHT,
    **NEW,
    GATES_OFF: OF_DOSE[RIVAL],
}


class GatesOffTrainer(ProbabilisticTopKTrainer):
    """Probabilistic TopK whose second half of training is upstream's TopK: every gate is open, and none is drawn."""

    def _code(
        self, pre_BF: t.Tensor, k: int, temperature: float, generator: t.Generator
    ) -> GatedCode:
        start, end = self.settings.temperature_start, self.settings.temperature_end
        if temperature > math.sqrt(start * end):  # which it has halfway
            return super()._code(pre_BF, k, temperature, generator)
        _, indices_BK = top_k(pre_BF.detach(), k)
        values_BK = pre_BF.gather(1, indices_BK).relu()
        features_BF = t.zeros_like(pre_BF).scatter(1, indices_BK, values_BK)
        return GatedCode(features_BF, values_BK, t.ones_like(values_BK))


@contextmanager
def gates_off() -> Iterator[None]:
    """Inside, Probabilistic TopK is trained by `GatesOffTrainer`."""
    path = f"{GatesOffTrainer.__module__}:{GatesOffTrainer.__name__}"
    row = replace(TRAINED["probabilistic_top_k"], trainer=path)
    with patch.dict(TRAINED, {"probabilistic_top_k": row}):
        yield
