"""The arguments of trainers, from settings and from presets. Imports no torch."""

import math
from dataclasses import replace
from typing import Any

from .architectures import TRAINED
from .checks import require, require_sizes, require_type
from .option_groups import names_of
from .options import AuxKOptions, training_energy
from .presets import DEFAULT_PRESET, preset
from .sae_config import SAEConfig


def trainer_options(
    name: str = DEFAULT_PRESET,
    *,
    activation_dim: int,
    dict_size: int,
    k: int,
    steps: int,
    mean_squared_norm: float = 1.0,
) -> dict[str, Any]:
    """A preset of vSAEs as arguments of `VariationalTopKTrainer`, for upstream's `trainSAE`.

    What is relative in the preset becomes absolute: sigma follows from its noise-to-signal ratio,
    sigma, prior_std and beta are in the units of the activations that the trainer will see, and
    the schedules in `steps`. The four sizes are among the arguments returned. Of AuxK, only
    upstream's defaults are used, as in upstream's TopKTrainer. Presets also leave out attention
    sinks, which is the buffer's job: `ResidualBuffer(..., max_norm_multiple=10)`.

        config = dict(trainer=VariationalTopKTrainer, layer=3, lm_name="…", device="cuda", seed=0)
        config |= trainer_options(
            "recommended", activation_dim=512, dict_size=2048, k=32, steps=10_000
        )
        trainSAE(buffer, [config], steps=10_000, normalize_activations=True, …)

    Arguments:
        name: recommended, quickstart, paper or paper-as-run.
        activation_dim: D, the width of the activations.
        dict_size: F, the number of features.
        k: features kept per token. The preset's own k and dict_size are not used.
        steps: of the whole training.
        mean_squared_norm: E||x||^2 of the activations (B, D) that the trainer sees, e.g.
            `float(x.square().sum(-1).mean())` of a batch. Default: 1, which `normalize_activations=True`
            makes. Without it, give that of the raw activations.

    Raises: ConfigError for an unknown preset, or a number that is not possible.
    """
    sizes = {"activation_dim": activation_dim, "dict_size": dict_size, "k": k, "steps": steps}
    require_sizes(**sizes)
    require_type("mean_squared_norm", mean_squared_norm, float)
    require(mean_squared_norm > 0, "mean_squared_norm", mean_squared_norm, "above 0")
    config = preset(name, steps)
    run, sae = config.run, replace(config.sae, dict_size=dict_size, k=k)
    sae = sae.resolve(steps, run.batch_size).with_sigma(activation_dim, run.normalize)
    sae = _in_units(sae, mean_squared_norm / training_energy(run.normalize, activation_dim))
    left_out = ("seed", *names_of(AuxKOptions))
    return sizes | {n: v for n, v in arguments_of(sae, steps).items() if n not in left_out}


def arguments_of(sae: SAEConfig, steps: int) -> dict[str, Any]:
    """The arguments that a resolved configuration gives its trainer, for a run of `steps`."""
    row = TRAINED[sae.architecture]
    arguments: dict[str, Any] = {
        "dict_size": sae.dict_size,
        "warmup_steps": sae.warmup_steps,
        "decay_start": sae.decay_start,
        "seed": sae.seed,
    }
    if sae.lr is not None:
        arguments["lr"] = sae.lr
    for option in row.option_names:
        value = getattr(sae, option)
        if value is not None:
            arguments[option] = list(value) if isinstance(value, tuple) else value
    arguments.pop("noise_to_signal", None)  # already resolved to sigma
    if row.is_whole_dictionary:
        arguments["k"] = sae.dict_size
    if "k" in arguments:  # upstream's 1000 is past the end of a short run
        arguments["threshold_start_step"] = min(1000, steps // 2)
    return arguments


def _in_units(sae: SAEConfig, energy: float) -> SAEConfig:
    """The same vSAE for activations whose E||x||^2 is `energy` times as large.

    The squared error grows by `energy`, and the KL must not change: so beta grows like the error,
    sigma and prior_std like the activations.
    """
    factors = {"beta": energy, "sigma": math.sqrt(energy), "prior_std": math.sqrt(energy)}
    given = {name: getattr(sae, name) for name in factors}
    return replace(sae, **{n: v * factors[n] for n, v in given.items() if v is not None})
