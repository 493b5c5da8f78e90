"""The names of run folders.

vsae_k16_F512_seed0_344f4b      a run: its architecture, k, F and seed, and a hash of the settings that change the result
vsae_k16_lr0.002                a run of a sweep on this machine: what differs between its runs
seed0, top_k_seed0              a run of `vsae train --seeds`, and one beside SAEs of other kinds
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from .architectures import TRAINED
from .run import NOT_THE_RESULT, TrainConfig
from .sae import SAEConfig

POINT = "point"
"""The vSAE's own baseline beside it: the same without noise."""
LONGEST_IN_SWEEP = 80
"""The most characters of a name that is made of what differs in a sweep."""


def automatic_name(config: TrainConfig) -> str:
    """The name of a run's folder, the same whenever its settings give the same result."""
    sae = config.sae
    k = [f"k{vars(sae)['k']}"] if "k" in vars(sae) else []
    sizes = [*k, f"F{sae.dict_size}", f"seed{sae.seed}"]
    return "_".join([_in_folders(sae.architecture), *sizes, config.digest[:6]])


def kind(sae: SAEConfig) -> str:
    """What an SAE is called beside others: its architecture, or point for a vSAE without noise."""
    if vars(sae).get("posterior") == "point":
        return POINT
    return _kind_of(sae.architecture)


def _kind_of(architecture: str) -> str:
    # In automatic names, these two differ in whether there is a k.
    return "pure_vsae" if architecture == "vsae" else _in_folders(architecture)


def is_of_seeds(name: str) -> bool:
    """Whether a run folder was named by `vsae train --seeds` or --beside: seedN, KIND_seedN."""
    kinds = "|".join([POINT, *map(_kind_of, TRAINED)])
    return bool(re.fullmatch(rf"(({kinds})_)?seed\d+", name))


def is_automatic(name: str) -> bool:
    """Whether a folder's name was made by us or by upstream's `trainSAE`, and not chosen by a user."""
    return bool(re.fullmatch(r".+_seed\d+_[0-9a-f]{6}|trainer_\d+", name))


def names_in_sweep(
    assignments: Sequence[Mapping[str, Any]], configs: Sequence[TrainConfig]
) -> list[str]:
    """The names of a sweep's run folders: the architecture and the swept settings that differ.

    A run gets its automatic name if that would be too long, or the same for several runs.

    Arguments:
        assignments: the swept settings of each run.
        configs: all settings of each run.
    """
    differing = [
        name
        for name in assignments[0]
        if name not in ("architecture", *NOT_THE_RESULT)
        and len({repr(assignment[name]) for assignment in assignments}) > 1
    ]
    names = []
    for assignment, config in zip(assignments, configs, strict=True):
        values = {**assignment, **config.to_dict()}
        parts = [_part(name, values[name]) for name in differing]
        names.append("_".join([_in_folders(config.sae.architecture), *parts]))
    times = Counter(names)
    return [
        name if times[name] == 1 and len(name) <= LONGEST_IN_SWEEP else automatic_name(config)
        for name, config in zip(names, configs, strict=True)
    ]


def _in_folders(architecture: str) -> str:
    row = TRAINED[architecture]
    return row.name_in_folders or row.name


def _part(name: str, value: Any) -> str:
    """A setting and its value as a part of a name, e.g. lr0.002. Of a path, its last part; of a hook point, its name."""
    text = f"{value:.3g}".replace("+", "") if isinstance(value, float) else str(value)
    text = text.rstrip("/").rpartition("/")[2]
    return re.sub(r"[^\w.-]", "-", text if name == "hook" else f"{name}{text}")
