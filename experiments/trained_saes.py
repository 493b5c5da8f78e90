"""Training the SAEs of an experiment, and what is read from them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch as t
from sklearn.preprocessing import normalize

from dictionary_learning_ext import RunConfig, load_dictionary
from dictionary_learning_ext.activations.inputs import Inputs, find_inputs
from dictionary_learning_ext.config.run import TrainConfig, require_same
from dictionary_learning_ext.config.sae import (
    CONFIGS,
    UNUSED_BY,
    SAEConfig,
    follows,
    option_names,
    share_of_run,
    upstreams_lr,
)
from dictionary_learning_ext.features.matching import matching
from dictionary_learning_ext.run_folder.reading import load_config, steps_of
from dictionary_learning_ext.run_folder.sae_folder import read_metrics
from dictionary_learning_ext.training.loop import carry_out
from dictionary_learning_ext.training.plan import plan

FIRST_HOOK = "blocks.0.hook_resid_post"
"""Where `vsae train` read by default when the first experiments ran, and where the paper reads."""
TEXTS = 240, 120  # in SAE Bench's training and test sets, of each class


def folder_name(model: str, *rest: object) -> str:
    """A folder's name: the model as a table shows it, and what tells its runs apart."""
    return "_".join([model.replace(", ", "_").replace(" ", ""), *map(str, rest)])


_RUN_DEFAULTS = {"steps": 1200, "batch_size": 1024, "max_norm_multiple": None}
_SAE_DEFAULTS = {
    **{"dict_size": 1024, "k": 32, "lr": follows(upstreams_lr), "decay_start": None},
    **{"sigma": 1.0, "noise_on": "both", "noise_anneal_steps": None},
    **{"beta": 1.0, "kl_scope": "all"},
}
"""The package's defaults when these experiments were made, where they differ from today's."""


def run_settings(**settings: Any) -> RunConfig:
    """The settings of a run. The others are the defaults of when these experiments were made."""
    return TrainConfig().with_settings(_RUN_DEFAULTS | settings, "run_settings").run


def sae_settings(**settings: Any) -> SAEConfig:
    """The same of an SAE."""
    cls = CONFIGS[settings.get("architecture", SAEConfig.architecture)]
    unused = {*UNUSED_BY[settings.get("posterior", "fixed")]}
    if "noise_to_signal" in settings:
        unused.add("sigma")
    names = {*option_names(cls)} - unused
    own = {name: value for name, value in _SAE_DEFAULTS.items() if name in names} | settings
    return TrainConfig().with_settings(own, "sae_settings").sae


def sae_config(**settings: Any) -> SAEConfig:
    """What the experiments share unless `settings` says otherwise: lr, falling in the last quarter."""
    return sae_settings(**{"lr": 2e-3, "decay_start": share_of_run(0.75)} | settings)


def train_missing(
    run: RunConfig,
    folder: Path,
    saes: Mapping[str, SAEConfig],
    finished: str = "metrics.json",
    find: Callable[..., Inputs] = find_inputs,
) -> dict[str, Path]:
    """Train the SAEs whose folder has no `finished` file yet, all from one buffer. A run that a signal stopped is
    continued.

    Arguments:
        find: finds the run's inputs, see `carry_out`.

    Returns:
        Every SAE's run folder, by its name.

    Raises:
        ConfigError: a finished SAE was trained with other settings.
    """
    folders = {name: folder / name for name in saes}
    missing = {name: sae for name, sae in saes.items() if not (folders[name] / finished).exists()}
    for name in saes.keys() - missing.keys():
        asked = TrainConfig(saes[name], run).resolved
        was = load_config(folders[name])
        remedy = f"to train it again, delete {folders[name]}"
        require_same(was.to_dict(), asked.to_dict(), str(folders[name]), advice=remedy)
    if missing:
        place = folder if len(missing) > 1 else folder / next(iter(missing))
        stopped = all(steps_of(folders[name]) for name in missing)
        own = replace(run, save_dir=str(place), overwrite=not stopped)
        carry_out(plan(own, missing, resume=stopped), find=find)
    return folders


def metrics_of(folder: Path, names: Iterable[str]) -> dict[str, Any]:
    """Those of these metrics that the SAE has."""
    metrics = read_metrics(folder)
    return {name: metrics[name] for name in names if name in metrics}


def directions_of(folder: Path) -> np.ndarray:
    """Unit decoder directions of all features, dead ones too: (F, D)."""
    sae: Any = load_dictionary(folder)[0]
    return t.nn.functional.normalize(sae.decoder.weight.detach().t().float(), dim=1).numpy()


def agreement(directions_FD: np.ndarray, others_FD: np.ndarray) -> float:
    """Mean signed cosine between the directions of two SAEs, matched one to one to maximise it."""
    one, other = normalize(directions_FD), normalize(others_FD)
    return float(matching(one, other, signed=True, exact_up_to=len(one))[1].mean())
