"""What is wrong with a trained SAE, by its metrics, and which flag to change. Imports no torch.

To add a symptom, add a row. Advice names only flags that the SAE's architecture has.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..config.architectures import TRAINED
from ..config.options import LOG_VAR_LIMITS, MUCH_NOISE, AuxKOptions
from ..config.presets import DEFAULT_PRESET, preset
from ..config.run_config import TrainConfig
from ..config.sae_config import SAEConfig

_FEWEST_SELECTIONS = 10
"""How often the average feature must have been selected for `alive` to say anything."""
_LITTLE_NOISE = 0.1
"""The noise_to_signal to go down to."""
_FREE_NOISE = 0.02
"""A noise_to_signal that costs no reconstruction, even if it stays."""
_IN_UNITS = {"beta", "noise_to_signal"}
"""Options whose value in the preset is for its own --normalize."""
_FACTORS = {"k": 2, "l1_penalty": 0.5, "target_l0": 2, "beta": 0.1}
"""By the option that holds activations down: what to multiply it by to let more through."""


@dataclass(frozen=True)
class Symptom:
    """One row."""

    metric: str
    """Its key in metrics.json."""
    is_there: Callable[[Mapping[str, Any], SAEConfig], bool]
    """Looks at metrics.json, where the metric is not null."""
    meaning: str
    """What is wrong. {value} stands for the metric's value."""
    advice: Callable[[TrainConfig, Mapping[str, Any]], list[str]]
    """What to change, one thing or another, given the run and metrics.json."""


def _is_much_noise(metrics: Mapping[str, Any], sae: SAEConfig) -> bool:
    can_end = "noise_anneal_steps" in TRAINED[sae.architecture].option_names
    stays = can_end and sae.noise_anneal_steps is None
    return stays and metrics["noise_to_signal"] > MUCH_NOISE


def _are_few_alive(metrics: Mapping[str, Any], sae: SAEConfig) -> bool:
    at_once = sae.dict_size if TRAINED[sae.architecture].is_whole_dictionary else sae.k
    at_once = at_once or metrics.get("l0") or 1
    enough = _FEWEST_SELECTIONS * sae.dict_size / at_once
    return metrics["alive"] <= 0.75 and metrics.get("tokens", enough) >= enough


def _less_noise(config: TrainConfig, metrics: Mapping[str, Any]) -> list[str]:
    sae, lower = _resolved(config), f"--noise-to-signal {_LITTLE_NOISE}"
    ratio = metrics["noise_to_signal"]
    if config.run.normalize == "none":  # --noise-to-signal needs it
        if sae.posterior == "learned" and sae.log_var_init is not None:
            at = max(LOG_VAR_LIMITS[0], sae.log_var_init + math.log(_LITTLE_NOISE / ratio))
            lower = f"--log-var-init {at:.3g}"
        elif sae.sigma is not None:
            lower = f"--sigma {sae.sigma * math.sqrt(_LITTLE_NOISE / ratio):.3g}"
    elif sae.posterior != "fixed":
        lower = f"--posterior fixed {lower}"
    fading = _preset_for(config).sae.noise_anneal_steps
    return [f"use {lower}", f"let the noise fade away by --noise-anneal-steps {fading}"]


def _better_fit(config: TrainConfig, metrics: Mapping[str, Any]) -> list[str]:
    found, changes = _more_steps(config), _as_in_the_preset(config, metrics)
    if changes:
        flags = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in changes.items())
        found.append(f"use {flags} (as --preset {DEFAULT_PRESET})")
    for name, factor in _FACTORS.items():
        given = getattr(_resolved(config), name)
        if given and name in TRAINED[config.sae.architecture].option_names and name not in changes:
            changed = min(given * factor, config.sae.dict_size) if name == "k" else given * factor
            if changed != given:
                shown = changed if isinstance(changed, int) else f"{changed:.4g}"
                way = "raise" if factor > 1 else "lower"
                found.append(f"{way} --{name.replace('_', '-')} to {shown}")
    return found


def _as_in_the_preset(config: TrainConfig, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The options by which a poor fit becomes the default preset's, as far as they differ. A posterior
    without noise gets none.
    """
    was, start = _resolved(config), _preset_for(config)
    now = start.sae
    if was.architecture != now.architecture:
        return {}
    noise = was.noise_to_signal or metrics.get("noise_to_signal") or 0.0
    if was.posterior == "point":
        noise = 0.0
    is_other_unit = config.run.normalize != start.run.normalize
    changes: dict[str, Any] = {}
    if was.noise_on != now.noise_on and noise > _FREE_NOISE:
        changes["noise_on"] = now.noise_on
    if was.kl_scope != now.kl_scope and was.beta:
        changes["kl_scope"] = now.kl_scope
    if noise > (now.noise_to_signal or 0):
        if was.posterior == "learned":
            changes["posterior"] = "fixed"
        changes["noise_to_signal"] = now.noise_to_signal
    if was.noise_anneal_steps is None and noise > _FREE_NOISE:
        changes["noise_anneal_steps"] = now.noise_anneal_steps
    if was.beta and (is_other_unit or was.beta > (now.beta or 0)):
        changes["beta"] = now.beta
    if config.run.normalize == "none" or (is_other_unit and _IN_UNITS & changes.keys()):
        changes["normalize"] = start.run.normalize
    return changes


def _better_fit_of_the_model(config: TrainConfig, metrics: Mapping[str, Any]) -> list[str]:
    leave_out = "leave out attention sinks by --max-norm-multiple 10"
    return _better_fit(config, metrics) + (
        [leave_out] if config.run.max_norm_multiple is None else []
    )


def _more_alive(config: TrainConfig, metrics: Mapping[str, Any]) -> list[str]:
    sae, found = _resolved(config), []
    if (fewer := config.sae.dict_size // 2) >= max(1, sae.k or 1):
        found.append(f"lower --dict-size to {fewer}")
    found.append(f"lower --lr to {sae.lr / 2:.4g}" if sae.lr else "lower --lr")
    found += _more_steps(config)
    if sae.auxk_alpha is not None:
        found.append(f"raise --auxk-alpha to {2 * sae.auxk_alpha or AuxKOptions.auxk_alpha:.4g}")
    return found


def _more_steps(config: TrainConfig) -> list[str]:
    steps = max(2 * config.run.steps, preset(DEFAULT_PRESET).run.steps)
    return [f"raise --steps to {steps}"]


def _resolved(config: TrainConfig) -> SAEConfig:
    return config.sae.resolve(config.run.steps, config.run.batch_size)


def _preset_for(config: TrainConfig) -> TrainConfig:
    return preset(DEFAULT_PRESET, config.run.steps)


_ROWS = (
    Symptom(
        "noise_to_signal",
        _is_much_noise,
        "the noise has {value:.2f} of the activations' energy, and stays to the end",
        _less_noise,
    ),
    Symptom(
        "fve",
        lambda metrics, sae: metrics["fve"] < 0.5,
        "FVE is {value:.2f}: the reconstruction explains less than half of the variance",
        _better_fit,
    ),
    Symptom(
        "frac_recovered",
        lambda metrics, sae: metrics["frac_recovered"] < 0.5,
        "CE recovered is {value:.2f}: replacing this layer with the reconstruction loses more than "
        "half of its contribution to the language model",
        _better_fit_of_the_model,
    ),
    Symptom(
        "alive",
        _are_few_alive,
        "only {value:.0%} of the features were selected in the held-out tokens",
        _more_alive,
    ),
)


def symptoms(metrics: Mapping[str, Any], config: TrainConfig) -> list[str]:
    """Two sentences on everything that is wrong; empty for a good SAE."""
    found = []
    for row in _ROWS:
        value = metrics.get(row.metric)
        if value is not None and row.is_there(metrics, config.sae):
            *others, last = row.advice(config, metrics)
            advice = f"{', '.join(others)} or {last}" if others else last
            meaning = row.meaning.format(value=value)
            found.append(f"{_sentence(meaning)} {_sentence(advice)}")
    return found


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
