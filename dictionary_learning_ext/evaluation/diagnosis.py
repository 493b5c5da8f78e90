"""What is wrong with a trained SAE, by its metrics, and which flag to change. Imports no torch.

To add a symptom, add a row. Advice names only flags that the SAE's architecture has.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..config.architectures import TRAINED
from ..config.options import MUCH_NOISE
from ..config.presets import DEFAULT_PRESET, preset
from ..config.run_config import TrainConfig
from ..config.sae_config import SAEConfig

_FEWEST_SELECTIONS = 10
"""How often the average feature must have been selected for `alive` to say anything."""
_SPARSITY = {
    "k": "raise --k",
    "l1_penalty": "lower --l1-penalty",
    "target_l0": "raise --target-l0",
    "beta": "lower --beta",
}
"""By the option that holds activations down: how to let more through."""


@dataclass(frozen=True)
class Symptom:
    """One row."""

    metric: str
    """Its key in metrics.json."""
    is_there: Callable[[Mapping[str, Any], SAEConfig], bool]
    """Looks at metrics.json, where the metric is not null."""
    meaning: str
    """What is wrong. {value} stands for the metric's value."""
    advice: Callable[[TrainConfig], list[str]]
    """What to change, one thing or another."""


def _is_much_noise(metrics: Mapping[str, Any], sae: SAEConfig) -> bool:
    can_end = "noise_anneal_steps" in TRAINED[sae.architecture].option_names
    stays = can_end and sae.noise_anneal_steps is None
    return stays and metrics["noise_to_signal"] > MUCH_NOISE


def _are_few_alive(metrics: Mapping[str, Any], sae: SAEConfig) -> bool:
    at_once = sae.dict_size if TRAINED[sae.architecture].is_whole_dictionary else sae.k
    at_once = at_once or metrics.get("l0") or 1
    enough = _FEWEST_SELECTIONS * sae.dict_size / at_once
    return metrics["alive"] <= 0.75 and metrics.get("tokens", enough) >= enough


def _less_noise(config: TrainConfig) -> list[str]:
    if config.run.normalize == "none":  # --noise-to-signal needs it
        lower = "lower --log-var-init" if config.sae.posterior == "learned" else "lower --sigma"
    else:
        lower = "use --posterior fixed with --noise-to-signal 0.1"
    return [lower, "anneal it by --noise-anneal-steps"]


def _better_fit(config: TrainConfig) -> list[str]:
    sae, found = config.sae, ["raise --steps"]
    for name in TRAINED[sae.architecture].option_names:
        is_at_its_end = getattr(sae, name) == {"k": sae.dict_size}.get(name, 0)
        if name in _SPARSITY and not is_at_its_end:
            found.append(_SPARSITY[name])
    recommended = preset(DEFAULT_PRESET).sae
    names = ("posterior", "noise_on", "noise_to_signal", "kl_scope", "beta")
    was = {n: getattr(sae.resolve(config.run.steps, config.run.batch_size), n) for n in names}
    now = {n: getattr(recommended.resolve(1000, 1024), n) for n in names}
    if sae.architecture == recommended.architecture and was != now:
        found.append(f"start from --preset {DEFAULT_PRESET}")
    return found


def _better_fit_of_the_model(config: TrainConfig) -> list[str]:
    leave_out = "leave out attention sinks by --max-norm-multiple 10"
    return _better_fit(config) + ([leave_out] if config.run.max_norm_multiple is None else [])


def _more_alive(config: TrainConfig) -> list[str]:
    found = ["lower --dict-size", "lower --lr", "raise --steps"]
    if "auxk_alpha" in TRAINED[config.sae.architecture].option_names:
        found.append("raise --auxk-alpha")
    return found


_ROWS = (
    Symptom(
        "noise_to_signal",
        _is_much_noise,
        "sampling adds noise with {value:.2f} of the activations' energy, and it is never annealed",
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
            *others, last = row.advice(config)
            advice = f"{', '.join(others)} or {last}" if others else last
            meaning = row.meaning.format(value=value)
            found.append(f"{_sentence(meaning)} {_sentence(advice)}")
    return found


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
