"""What the study of the dose trains: the arms, by name, as options of their settings, and trainers that the package doesn't
have. See PROTOCOL_DOSE.md."""

from dataclasses import replace
from typing import Any

import torch as t

from dictionary_learning_ext import VariationalTopKTrainer
from dictionary_learning_ext.config.sae import share_of_run
from dictionary_learning_ext.trainers.step import StepObjective
from experiments.trained_saes import sae_config

Options = dict[str, Any]
SURVIVAL = (0.6, 0.25, 0.4, 0.8)
NOISE: Options = {
    "noise_on": "selection",
    "noise_anneal_steps": share_of_run(0.5, least=1),
    "kl_scope": "selected",
}
TOP_K, RIVAL = "TopK", "Probabilistic TopK"
ARMS: dict[str, Options] = {
    TOP_K: {"architecture": "top_k"},
    "fixed 0.3 and penalty": NOISE | {"noise_to_signal": 0.3, "beta": 0.01},
    **{f"survival {s:g}": NOISE | {"survival": s, "beta": 0.0} for s in SURVIVAL},
    "fixed 0.3": NOISE | {"noise_to_signal": 0.3, "beta": 0.0},
    RIVAL: {"architecture": "probabilistic_top_k", "temperature_start": 1.0},
}
"""The second is the preset `recommended` of 2026-11-30."""
KEPT = (TOP_K, "fixed 0.3 and penalty", "survival 0.6", "survival 0.25", "survival 0.4")
"""What is trained after the first rate of the search, see the protocol's end."""


def sae_of(
    options: Options, *, k: int, dict_size: int, seed: int, lr: float, m: float | None
) -> Any:
    """An SAE of an arm.

    Arguments:
        m: AuxK's threshold, in dict_size / k tokens. None: no AuxK.
    """
    auxk: Options = {"auxk_alpha": 0.0}
    if m is not None:
        auxk = {"dead_feature_threshold": round(m * dict_size / k)}
    return sae_config(k=k, dict_size=dict_size, seed=seed, lr=lr, **auxk, **options)


class TokenNormTrainer(VariationalTopKTrainer):
    """`survival`, with sigma in units of each token's ||x - b_dec||."""

    def _objective(self, x: t.Tensor, *given: Any, **options: Any) -> StepObjective:
        objective = super()._objective(x, *given, **options)
        norm_B1 = t.linalg.vector_norm((x - self.ae.b_dec).detach(), dim=1, keepdim=True)
        return replace(objective, sigma=objective.sigma * norm_B1)


class LargestMeansTrainer(VariationalTopKTrainer):
    """`survival`, with sigma in units of the root mean square of each token's k largest means."""

    def _objective(self, x: t.Tensor, *given: Any, **options: Any) -> StepObjective:
        objective = super()._objective(x, *given, **options)
        with t.no_grad():
            mu_BK = self.ae.encoder(x - self.ae.b_dec).topk(objective.k, sorted=False).values
        scale_B1 = mu_BK.square().mean(1, keepdim=True).sqrt()
        return replace(objective, sigma=objective.sigma * scale_B1)


SCALES = {
    "one for all": VariationalTopKTrainer,
    "token's norm": TokenNormTrainer,
    "k largest means": LargestMeansTrainer,
}
"""What the controlled number is multiplied by, and the trainer that does."""
