"""Builds the trainer of any architecture."""

from typing import Any

import torch as t

from ..config.architectures import TRAINED, import_class
from ..config.run import TrainConfig
from ..config.sae import AuxKOptions
from .base import Trainer
from .data_start import start_from_data
from .parts import WHOLE, Part
from .upstream import UpstreamTrainer


def build_trainer(
    config: TrainConfig,
    *,
    energy: float,
    activation_dim: int,
    layer: int,
    name: str,
    device: str,
    part: Part = WHOLE,
    first_fill: t.Tensor | None = None,
) -> Trainer:
    """Build the trainer of an SAE, with initial weights drawn from its seed.

    The weights of a trained SAE (`init_from`) are loaded later, by `training.resuming.start_from`.

    Arguments:
        config: resolved.
        energy: E||x||^2 of the activations that it will reconstruct.
        device: that of this process.
        part: the features that it trains.
        first_fill: activations to start from, see `start_from_data`. None: random weights.
    """
    sae, run, row = config.sae, config.run, TRAINED[config.sae.architecture]
    trainer_class = import_class(row.trainer or "")
    arguments: dict[str, Any] = sae.trainer_arguments() | {
        **{"steps": run.steps, "activation_dim": activation_dim, "layer": layer},
        **{"lm_name": run.model, "submodule_name": run.site, "device": device},
        "wandb_name": name,
    }
    if isinstance(sae, AuxKOptions):  # upstream's threshold starts past the end of a short run
        arguments["threshold_start_step"] = min(1000, run.steps // 2)
        if row.function == "jump_relu":  # over a batch: a mean over 1,000 steps lags in a short run
            arguments["threshold_beta"] = 1 - 1 / min(1000, max(1, run.steps // 100))
    if row.is_adapted:
        t.manual_seed(sae.seed)  # JumpReluTrainer does not seed itself
        in_bf16 = run.dtype == "bfloat16"
        trainer = UpstreamTrainer(trainer_class, arguments, energy, in_bf16=in_bf16)
    else:
        if isinstance(sae, AuxKOptions):
            arguments |= {"mean_squared_norm": energy, "part": part}
        if run.target is not None:
            arguments["dict_class"] = import_class(row.transcoder or "")
        trainer = trainer_class(**arguments, dtype=run.dtype)
    if first_fill is not None:
        start_from_data(trainer, first_fill, sae.dict_size, sae.seed)
    trainer.starts_trained = sae.init_from is not None
    return trainer
