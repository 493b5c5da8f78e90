"""From a configuration to a trainer: ours, or one of upstream's."""

from typing import Any

import torch as t
from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
from dictionary_learning.trainers.jumprelu import JumpReluTrainer
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
from dictionary_learning.trainers.standard import StandardTrainer
from dictionary_learning.trainers.top_k import TopKTrainer
from dictionary_learning.trainers.trainer import SAETrainer

from ..config.sae_config import USES, SAEConfig
from .vaease import VAEaseTrainer
from .variational_top_k import VariationalTopKTrainer

TRAINERS: dict[str, type[SAETrainer]] = {
    "vsae_top_k": VariationalTopKTrainer,
    "vsae": VariationalTopKTrainer,
    "vaease": VAEaseTrainer,
    "top_k": TopKTrainer,
    "batch_top_k": BatchTopKTrainer,
    "relu": StandardTrainer,
    "jump_relu": JumpReluTrainer,
    "matryoshka": MatryoshkaBatchTopKTrainer,
}
OURS = (VariationalTopKTrainer, VAEaseTrainer)
"""Those that leave out steps that are not finite, log without a change, and take a `dtype`."""


def build_trainer(
    sae: SAEConfig,
    *,
    steps: int,
    activation_dim: int,
    layer: int,
    lm_name: str,
    hook: str,
    device: str,
    dtype: str,
    name: str,
) -> Any:
    """The trainer of a resolved configuration, its weights drawn from `sae.seed`."""
    arguments: dict[str, Any] = {
        "steps": steps,
        "activation_dim": activation_dim,
        "dict_size": sae.dict_size,
        "layer": layer,
        "lm_name": lm_name,
        "submodule_name": hook,
        "warmup_steps": sae.warmup_steps,
        "decay_start": sae.decay_start,
        "seed": sae.seed,
        "device": device,
        "wandb_name": name,
    }
    if sae.lr is not None:
        arguments["lr"] = sae.lr
    for option in USES[sae.architecture]:
        value = getattr(sae, option)
        if value is not None:
            arguments[option] = list(value) if isinstance(value, tuple) else value
    if sae.architecture == "vsae":
        arguments["k"] = sae.dict_size
    is_ours = issubclass(TRAINERS[sae.architecture], OURS)
    if is_ours:
        arguments["dtype"] = dtype
    if "k" in arguments:  # upstream's 1000 is past the end of a short run
        arguments["threshold_start_step"] = min(1000, steps // 2)
    # Upstream's TopK trainers take no such argument, but have the attribute.
    threshold = arguments.get("dead_feature_threshold")
    if not is_ours:
        arguments.pop("dead_feature_threshold", None)
    t.manual_seed(sae.seed)  # JumpReluTrainer does not seed itself
    trainer: Any = TRAINERS[sae.architecture](**arguments)
    if threshold is not None:
        trainer.dead_feature_threshold = threshold
    return trainer
