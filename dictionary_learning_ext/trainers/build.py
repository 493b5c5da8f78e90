"""Builds the trainer of any architecture."""

from inspect import signature

import torch as t

from ..config.architectures import TRAINED, import_class
from ..config.sae import SAEConfig
from .base import Trainer
from .data_start import start_from_data
from .parts import WHOLE, Part
from .upstream import UpstreamTrainer


def build_trainer(
    sae: SAEConfig,
    *,
    energy: float,
    steps: int,
    activation_dim: int,
    layer: int,
    lm_name: str,
    hook: str,
    device: str,
    dtype: str,
    name: str,
    part: Part = WHOLE,
    first_fill: t.Tensor | None = None,
) -> Trainer:
    """Build the trainer of a resolved configuration, with initial weights drawn from `sae.seed`.

    The weights of a trained SAE (`sae.init_from`) are loaded later, by `training.resuming.start_from`.

    Arguments:
        energy: E||x||^2 of the activations that it will see.
        part: the features that it trains.
        first_fill: activations to start from, see `start_from_data`. None: random weights.
    """
    arguments = sae.trainer_arguments() | {
        "steps": steps,
        "activation_dim": activation_dim,
        "layer": layer,
        "lm_name": lm_name,
        "submodule_name": hook,
        "device": device,
        "wandb_name": name,
    }
    t.manual_seed(sae.seed)  # JumpReluTrainer does not seed itself
    trainer_class = import_class(TRAINED[sae.architecture].trainer or "")
    parameters = signature(trainer_class).parameters
    if "threshold_start_step" in parameters:
        arguments["threshold_start_step"] = min(
            1000, steps // 2
        )  # upstream's is past the end of a short run
    if hasattr(trainer_class, "restore_last_finite"):  # a `Trainer` of ours
        if "mean_squared_norm" in parameters:
            arguments["mean_squared_norm"] = energy
        if part.is_split:
            arguments["part"] = part
        trainer = trainer_class(**arguments, dtype=dtype)
    else:
        if "auxk_alpha" in arguments:
            arguments["auxk_alpha"] *= energy  # its loss has no unit, and the squared error has
        # Upstream's TopK trainers have this as an attribute, not as an argument.
        threshold = arguments.pop("dead_feature_threshold", None)
        inner = trainer_class(**arguments)
        if threshold is not None:
            inner.dead_feature_threshold = threshold
        trainer = UpstreamTrainer(inner, in_bf16=dtype == "bfloat16")
    if first_fill is not None:
        start_from_data(trainer, first_fill, sae.dict_size, sae.seed)
    trainer.starts_trained = sae.init_from is not None
    return trainer
