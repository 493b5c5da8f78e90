"""Builds the trainer of any architecture."""

from typing import Any

import torch as t

from ..config.architectures import TRAINED, import_class
from ..config.sae import AuxKOptions, SAEConfig
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
    is_transcoder: bool = False,
    part: Part = WHOLE,
    first_fill: t.Tensor | None = None,
) -> Trainer:
    """Build the trainer of a resolved configuration, with initial weights drawn from `sae.seed`.

    The weights of a trained SAE (`sae.init_from`) are loaded later, by `training.resuming.start_from`.

    Arguments:
        energy: E||x||^2 of the activations that it will reconstruct.
        is_transcoder: whether these are others than those that it reads.
        part: the features that it trains.
        first_fill: activations to start from, see `start_from_data`. None: random weights.
    """
    row = TRAINED[sae.architecture]
    trainer_class = import_class(row.trainer or "")
    place: dict[str, Any] = {
        **{"steps": steps, "activation_dim": activation_dim, "layer": layer, "lm_name": lm_name},
        **{"submodule_name": hook, "device": device, "wandb_name": name, "seed": sae.seed},
    }
    if isinstance(sae, AuxKOptions):  # upstream's threshold starts past the end of a short run
        place["threshold_start_step"] = min(1000, steps // 2)
        if row.function == "jump_relu":  # and would lag behind what these encode by
            place["threshold_beta"] = 1 - 1 / min(1000, max(1, steps // 100))
    if row.is_adapted:
        t.manual_seed(sae.seed)  # JumpReluTrainer does not seed itself
        trainer = UpstreamTrainer(trainer_class, sae, energy, place, in_bf16=dtype == "bfloat16")
        if first_fill is not None:
            start_from_data(trainer, first_fill, sae.dict_size, sae.seed)
    else:
        if isinstance(sae, AuxKOptions):
            place |= {"mean_squared_norm": energy, "part": part}
        place |= {"dtype": dtype, "first_fill": first_fill}
        if is_transcoder:
            place["dict_class"] = import_class(row.transcoder or "")
        trainer = trainer_class(**sae.trainer_arguments() | place)
    trainer.starts_trained = sae.init_from is not None
    return trainer
