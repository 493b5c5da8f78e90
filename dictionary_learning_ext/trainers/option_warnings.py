"""Warnings about a vSAE's options: those without an effect, and noise that drowns the activations."""

import logging
import math
from dataclasses import asdict

import torch as t

from ..config.sae import (
    MUCH_NOISE,
    UNUSED_BY,
    ObjectiveOptions,
    PosteriorOptions,
)

logger = logging.getLogger(__name__)


def warn_of_noise(
    ratio: t.Tensor, posterior: PosteriorOptions, objective: ObjectiveOptions, steps: int
) -> None:
    """Warn if a `noise_to_signal` is large and stays in a run of `steps`.

    Waits for the device, so call it once.
    """
    drowned, goal = float(ratio), 0.1
    if not MUCH_NOISE < drowned < math.inf or objective.noise_anneal_steps is not None:
        return
    if posterior.posterior == "learned":
        instead = f"log_var_init={posterior.log_var_init + math.log(goal / drowned):.3g}"
    else:
        instead = f"sigma={(posterior.sigma or 1.0) * math.sqrt(goal / drowned):.3g}"
    logger.warning(
        f"noise_to_signal={drowned:.3g}: noise that stays to the end drowns the activations above "
        f"{MUCH_NOISE}; set {instead} (noise_to_signal={goal}), or let it fade away by "
        f"noise_anneal_steps={max(1, steps // 2)}"
    )


def warn_of_unused(posterior: PosteriorOptions, objective: ObjectiveOptions, steps: int) -> None:
    """Warn of options that have a value of their own and no effect."""
    given = asdict(posterior) | asdict(objective)
    defaults = asdict(PosteriorOptions(sigma=1.0)) | asdict(ObjectiveOptions().with_warmup(steps))
    of_schedule = ("kl_warmup_steps",) if objective.kl_schedule == "constant" else ()
    unused = (*UNUSED_BY[posterior.posterior], *of_schedule)
    if posterior.rectify and posterior.select_by == "magnitude":
        logger.warning(
            "select_by='magnitude' with rectify=True: after the ReLU no mean is negative, so the SAE "
            "encodes as with select_by='value'; leave out one of them"
        )
    for name in unused:
        if name in given and given[name] != defaults[name]:
            choice = "posterior" if name in UNUSED_BY[posterior.posterior] else "kl_schedule"
            logger.warning(f"{name}={given[name]!r}: {choice}={given[choice]} does not use it")
