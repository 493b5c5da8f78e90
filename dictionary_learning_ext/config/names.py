"""The automatic names of run folders, computed from all settings.

    vsae_k16_F512_beta0.1_seed0_344f4b

They hold the architecture, k, F, the settings that differ from the preset `recommended` (as many as fit), the seed, and
a hash of the settings that change the result. In a sweep on this machine they hold the settings that differ between
its runs: vsae_k16_lr0.002.
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from .architectures import ARCHITECTURES
from .hooks import RESID_POST, hook_name
from .presets import DEFAULT_PRESET, preset
from .run import NOT_THE_RESULT, TrainConfig

LONGEST = 40
"""The most characters of an automatic name."""
LONGEST_IN_SWEEP = 80
"""The most characters of a name in a sweep's folder, without a hash."""
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
"""The settings that come first in names and labels, if they differ."""
_IN_NAMES = {"dict_size": "F", "noise_to_signal": "noise", "kl_scope": "kl"} | dict.fromkeys(
    ("hook", "model", "noise_on", "posterior", "data"), ""
)
"""The text before a setting's value, where it is not the setting's name."""


def automatic_name(config: TrainConfig) -> str:
    """A run folder's name: at most LONGEST characters that a file's name may have."""
    row = ARCHITECTURES[config.sae.architecture]
    start = [row.name_in_folders or row.name]
    start += [f"k{k}"] if (k := vars(config.sae).get("k")) else []
    start += [f"F{config.sae.dict_size}"]
    end = [f"seed{config.sae.seed}", config.digest[:6]]
    return _fitting(start, _differences(config), end, LONGEST)


def names_in_sweep(
    assignments: Sequence[Mapping[str, Any]], configs: Sequence[TrainConfig]
) -> list[str]:
    """The names of a sweep's run folders: the architecture and the swept settings that differ, as many as fit.

    A hash of all settings follows where several runs would have the same name.

    Arguments:
        assignments: the swept settings of each run.
        configs: all settings of each run.
    """
    differing = [
        name
        for name in _in_order(assignments[0])
        if name not in ("architecture", *NOT_THE_RESULT)
        and len({repr(one[name]) for one in assignments}) > 1
    ]
    names = []
    for assignment, config in zip(assignments, configs, strict=True):
        row, values = (
            ARCHITECTURES[config.sae.architecture],
            {**assignment, **config.to_dict()},
        )
        parts = [_part(name, values[name]) for name in differing]
        names.append(_fitting([row.name_in_folders or row.name], parts, [], LONGEST_IN_SWEEP))
    times = Counter(names)
    return [
        name if times[name] == 1 else f"{name}_{config.digest[:6]}"
        for name, config in zip(names, configs, strict=True)
    ]


def _fitting(start: list[str], parts: list[str], end: list[str], longest: int) -> str:
    """A name of at most `longest` characters: start, as many parts as fit, and end."""
    chosen: list[str] = []
    for part in parts:
        if len("_".join([*start, *chosen, part, *end])) <= longest:
            chosen.append(part)
    return "_".join([*start, *chosen, *end])


def _in_order(names: Collection[str]) -> list[str]:
    """The same names, those of NAMED_FIRST first."""
    return list(dict.fromkeys([*(name for name in NAMED_FIRST if name in names), *names]))


def is_automatic(name: str) -> bool:
    """Whether a folder's name was made by us or by upstream's `trainSAE`, and not chosen by a user."""
    return bool(re.fullmatch(r".+_seed\d+(_.+)?_[0-9a-f]{6}|trainer_\d+", name))


def _differences(config: TrainConfig) -> list[str]:
    """Parts of a name: the settings that differ from the preset's, or from their architecture's defaults."""
    steps = config.run.steps
    preset_config = preset(DEFAULT_PRESET, steps)
    sizes = {n: v for n, v in vars(config.sae).items() if n in ("dict_size", "k")}
    sae = preset_config.sae.start_for(config.sae.architecture, **sizes)
    usual = TrainConfig(sae.resolve(steps), preset_config.run).to_dict()
    usual["steps"] = preset(DEFAULT_PRESET).run.steps
    named = {"architecture", "k", "dict_size", "seed", *NOT_THE_RESULT}
    given = {
        name: value
        for name, value in config.to_dict().items()
        if name not in named and value not in (None, usual.get(name))
    }
    return list(dict.fromkeys(_part(name, given[name]) for name in _in_order(given)))


def _short(hook: str) -> str:
    """A hook point's short name: b2 for blocks.2.hook_resid_post."""
    named = hook_name(hook)
    return f"b{named.block}" if named is not None and named.kind == RESID_POST else hook


def _part(name: str, value: Any) -> str:
    """A setting and its value as a part of a name, e.g. lr0.002."""
    if name == "hook":
        value = ",".join(map(_short, value.split(",")))  # always there, so short
    elif isinstance(value, float):
        value = f"{value:.3g}".replace("+", "")
    text = str(value).rstrip("/").rpartition("/")[2]  # of a path, its last part
    return re.sub(r"[^\w.-]", "-", f"{_IN_NAMES.get(name, name.replace('_', '-'))}{text}")
