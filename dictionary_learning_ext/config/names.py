"""The automatic names of run folders, computed from all settings.

    vsae_k16_F512_beta0.1_seed0_344f4b

The architecture, k, F, what differs from the preset `recommended` as far as it fits, the seed, and a hash of
the settings that change the result. All else is in config.json.
"""

import re
from typing import Any

from .architectures import ARCHITECTURES
from .presets import DEFAULT_PRESET, preset
from .run import NOT_THE_RESULT, TrainConfig
from .synthetic_models import NO_HOOK

LONGEST = 40
"""Characters of an automatic name."""
NAMED_FIRST = (
    "architecture",
    "k",
    "dict_size",
    "hook",
    "beta",
    "lr",
    "noise_to_signal",
    "sigma",
    "noise_on",
    "posterior",
    "kl_scope",
    "data_seed",
    "model",
    "data",
)
"""The settings that are named before others, if they differ; in labels, too."""
_IN_NAMES = {"noise_to_signal": "noise", "kl_scope": "kl"} | dict.fromkeys(
    ("hook", "model", "noise_on", "posterior", "data"), ""
)
"""What stands before a setting's value, where it is not the setting's name."""


def automatic_name(config: TrainConfig) -> str:
    """A run folder's name. Settings that were not resolved are named as they are given.

    Returns: at most LONGEST characters, fit for a file's name.
    """
    flat = config.sae.to_flat()
    row = ARCHITECTURES[config.sae.architecture]
    start = [row.name_in_folders or row.name]
    start += [f"k{flat['k']}"] if flat["k"] is not None else []
    start += [f"F{config.sae.dict_size}"]
    end = [f"seed{config.sae.seed}", config.digest[:6]]
    chosen: list[str] = []
    for part in _differences(config):
        if len("_".join([*start, *chosen, part, *end])) <= LONGEST:
            chosen.append(part)
    return "_".join([*start, *chosen, *end])


def is_automatic(name: str) -> bool:
    """Whether a folder has a name that nobody chose: one of ours, of any version, or of upstream's
    `trainSAE`."""
    return bool(re.fullmatch(r".+_seed\d+(_.+)?_[0-9a-f]{6}|trainer_\d+", name))


def _differences(config: TrainConfig) -> list[str]:
    """The settings that differ from the preset's, or from its architecture's defaults, as parts of a name."""
    of_preset, steps = preset(DEFAULT_PRESET), config.run.steps
    sae = of_preset.for_steps(steps).sae.changed_to(architecture=config.sae.architecture)
    usual = TrainConfig(sae.resolve(steps, config.run.batch_size), of_preset.run).to_dict()
    named = {"architecture", "k", "dict_size", "seed", *NOT_THE_RESULT}
    given = {
        name: value
        for name, value in config.to_dict().items()
        if name not in named and value not in (None, NO_HOOK, usual[name])
    }
    order = [*(name for name in NAMED_FIRST if name in given), *given]
    return list(dict.fromkeys(_part(name, given[name]) for name in order))


def _part(name: str, value: Any) -> str:
    if name == "hook":
        value = re.sub(r"blocks\.(\d+)\.hook_resid_post", r"b\1", value)  # always there, so short
    elif name == "device":  # a run may be continued on another of the kind
        value = value.partition(":")[0]
    elif isinstance(value, float):
        value = f"{value:.3g}"
    text = str(value).rstrip("/").rpartition("/")[2]  # of a path, its last part
    return re.sub(r"[^\w.-]", "-", f"{_IN_NAMES.get(name, name.replace('_', '-'))}{text}")
