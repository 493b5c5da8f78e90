"""The folder of a trained SAE, found by its name and checked once.

    sae = find_sae("runs/NAME")
    sae.settings, sae.metrics, sae.hash

weights.py loads its weights; trained_on.py says what it was trained on. Imports no torch.
"""

import hashlib
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from ..config.architectures import ARCHITECTURES, BY_DICT_CLASS, WITH_PENALTY
from ..config.hooks import hook_name
from ..config.run import NOT_THE_RESULT, RunConfig, TrainConfig
from ..config.sae import NOISES, OPTION_NAMES, dead_after
from ..errors import CheckpointError, ConfigError, in_shell
from . import foreign, reading
from .files import (
    CONFIG,
    EVALUATION,
    FAILED,
    REPAIR,
    RESULTS,
    WEIGHTS,
    at_home,
    checkpoint,
    hash_of_files,
    read_json,
    sha256_of,
    target_of,
)
from .identity import STORED, Named
from .moved import as_here
from .sae_names import is_on_hub, location_of
from .schema import CONFIG_JSON, METRICS_JSON

logger = logging.getLogger(__name__)

SEEDS = ("seed", "data_seed")
"""The settings that may differ between runs that are compared as seeds of one setting."""
_OF_BUFFER = ("ctx_len", "text_column", "remove_bos", "max_norm_multiple")
"""Settings that a buffer's config has under the names of a run's. Upstream's buffers only write ctx_len."""
_NOT_THE_TRAINING = {
    *NOT_THE_RESULT,
    *("architecture", "text_passes", "save_steps", "eval_tokens", "eval_documents"),
}


@dataclass(frozen=True)
class SAEFolder:
    """A trained SAE as it is on the disk. `find_sae` makes one."""

    name: str
    """As the user gave it, see sae_names.py."""
    path: Path
    """Its folder on this machine."""
    config: dict[str, Any]
    """The content of config.json. For another library's folder it is made from its settings, see `foreign_config`."""
    step: int | None = None
    """The step of a checkpoint; None: the final weights."""

    def __str__(self) -> str:
        return self.name

    @property
    def form(self) -> foreign.ForeignFormat | None:
        """The other library that wrote it; None for this package and upstream."""
        return self.config.get("foreign", {}).get("format")

    @property
    def is_on_hub(self) -> bool:
        """Whether it was fetched from the hub."""
        return self.path != Path(self.name)

    @property
    def is_run(self) -> bool:
        """Whether it is a run of this package."""
        return "run" in self.config

    @cached_property
    def run(self) -> RunConfig:
        """The settings that it shares with the other SAEs of its run.

        Raises: CheckpointError if it is no run of this package; ConfigError for a wrong value.
        """
        shared = {each.name for each in fields(RunConfig)}
        return reading.train_config(self.config, self.path / CONFIG, shared).run

    @cached_property
    def train_config(self) -> TrainConfig:
        """The settings of its run and its own, to start another run with. Raises the same."""
        return reading.train_config(self.config, self.path / CONFIG)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The settings that SAEs are compared by. For folders of upstream's `trainSAE` they are the trainer's own settings
        and its class."""
        if self.is_run:
            return dict(self.config["run"].get("settings", {}))
        names = ["trainer_class", *OPTION_NAMES, *(each.name for each in fields(RunConfig))]
        return {name: value for name, value in self.config["trainer"].items() if name in names}

    @cached_property
    def trained_as(self) -> dict[str, Any]:
        """Its architecture, and the settings that decide what was trained, without those that follow from others. For
        upstream's folders they include the trainer's class. A cache is known by its content."""
        settings = dict(self.settings)
        if settings.keys() & {*NOISES}:  # one takes the place of another
            settings = dict.fromkeys(NOISES) | settings
        size, k = settings.get("dict_size"), settings.get("k")
        if size and k and settings.get("dead_feature_threshold") == dead_after(size, k):
            settings["dead_feature_threshold"] = None  # follows from the two
        if (digest := self.config.get("buffer", {}).get("cache")) is not None:
            settings[STORED] = Named(settings.get(STORED), digest)
        deciding = {n: v for n, v in settings.items() if n not in _NOT_THE_TRAINING}
        return {"architecture": self.architecture} | deciding

    @cached_property
    def source(self) -> dict[str, Any]:
        """The model, the hook point and the text that its activations came from, and how the text was read, as settings of
        a run, where its files name them."""
        if self.is_run:
            return as_here(self.settings, self.path)
        trainer, buffer = self.config["trainer"], self.config.get("buffer", {})
        names_hook = hook_name(str(trainer.get("submodule_name"))) is not None
        is_certain = names_hook or self.form is not None  # upstream's lm_name may be any text
        found = {
            "model": trainer.get("lm_name") if is_certain else None,
            "hook": trainer["submodule_name"] if names_hook else None,
            "data": buffer.get("text"),
            "text_packing": buffer.get("packing"),
            **{name: buffer.get(name) for name in _OF_BUFFER},
        }
        return {name: value for name, value in found.items() if value is not None}

    @property
    def architecture(self) -> str:
        """Its architecture. For upstream's folders, or a name that isn't known, it follows from the class."""
        architecture = self.settings.get("architecture")
        if architecture in ARCHITECTURES:
            return architecture
        dict_class = self.config["trainer"]["dict_class"]
        row = BY_DICT_CLASS.get(dict_class)
        return row.name if row else dict_class

    @property
    def title(self) -> str:
        """The name of its kind in tables and prose, e.g. vSAE."""
        row = ARCHITECTURES[self.architecture]
        title = row.variants.get(self.settings.get("posterior", ""), row.title)
        return title.removesuffix(WITH_PENALTY) if self.settings.get("beta") == 0 else title

    @property
    def seeds(self) -> tuple[Any, ...]:
        """The values of SEEDS; None for a missing one."""
        return tuple(map(self.settings.get, SEEDS))

    @property
    def weights(self) -> Path:
        """The file of its weights."""
        if self.step is not None:
            return checkpoint(self.path, self.step)
        return self.path / (WEIGHTS if self.form is None else foreign.WEIGHTS_OF[self.form])

    @cached_property
    def hash(self) -> str:
        """A hash of its weights, and of another library's settings for them, of 16 characters."""
        digest = sha256_of(self.weights)
        if self.form is not None:
            settings = [
                self.path / one for one in (foreign.FOREIGN_CONFIG, foreign.SPARSIFY_ABOUT, CONFIG)
            ]
            digest += hash_of_files(path for path in settings if path.is_file())
            digest = hashlib.sha256(digest.encode()).hexdigest()
        return digest[:16]

    @cached_property
    def results(self) -> Path:
        """The folder for its results: its own for a run of this package, results/NAME for other SAEs, see `results_in`. It may
        be missing."""
        return self.path if self.is_run and not self.is_on_hub else self.results_in(RESULTS)

    def results_in(self, out: str | Path) -> Path:
        """The folder out/NAME for results.

        NAME is made of the last two parts of its path and eight characters of its weights' hash, as many folders have the
        same name, e.g. trainer_0 from `trainSAE`.
        """
        path = Path(self.name) if self.is_on_hub else target_of(self.path)
        parts = [re.sub(r"[^\w.=-]", "-", part) for part in path.parts[-2:]]
        final = self.path / WEIGHTS if self.step is not None else self.weights
        digest = sha256_of(final if final.is_file() else self.weights)
        return Path(out) / "_".join([*parts, digest[:8]])

    @cached_property
    def metrics(self) -> dict[str, Any] | None:
        """The content of metrics.json, its final evaluation; None if it was not evaluated. Raises CheckpointError if it is
        damaged."""
        try:
            return read_json(self.results / EVALUATION, METRICS_JSON, self._measure_it)
        except FileNotFoundError:
            return None

    @property
    def required_metrics(self) -> dict[str, Any]:
        """The same. Raises CheckpointError if it was not evaluated."""
        if self.metrics is None:
            path = self.results / EVALUATION
            raise CheckpointError(f"{path}: not measured yet; {self._measure_it}")
        return self.metrics

    @property
    def _measure_it(self) -> str:
        return f"run `vsae eval {in_shell(self.name)}`"


def find_sae(name: str | Path | SAEFolder, step: int | None = None) -> SAEFolder:
    """The SAE of a name.

    Arguments:
        name: a folder, or a place on the hub, see sae_names.py. An SAE that was found already stays at its step by default.
        step: the step of a checkpoint. Default: the final weights.

    Raises: CheckpointError if the folder or a file in it is missing or damaged, or the run is not finished; HubError.
    """
    if isinstance(name, SAEFolder):
        return name if step in (None, name.step) else find_sae(name.name, step)
    folder, overrides = location_of(name)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; {reading.EXPECTED}")
    config, form = {}, foreign.format_of(folder)
    if form is None:
        config = _config_in(folder)
        _require_weights(folder, config, step)
        form = "Baker & Li" if foreign.is_of_baker_li(config) else None
    if form is not None:
        if step is not None:
            what = f"{folder}: an SAE of {form}, which has no checkpoints"
            raise CheckpointError(what, instead="leave out step")
        config = foreign.foreign_config(folder, form, overrides, config)
    return SAEFolder(str(name), folder, config, step)


def find_saes(
    names: Sequence[str | Path | SAEFolder], step: int | None = None, *, different: bool = False
) -> dict[str, SAEFolder]:
    """`find_sae` of several, by their names.

    Arguments:
        different: raise a ConfigError if two names are of the same SAE.

    Raises: ConfigError if there is none, or `names` isn't a list.
    """
    if isinstance(names, str | Path | SAEFolder):
        raise ConfigError(f"folders={str(names)!r}: expected a list, e.g. ['runs/NAME']")
    if not names:
        raise ConfigError(f"no folder given: {reading.EXPECTED}, or several")
    saes = [find_sae(name, step) for name in names]
    places = [target_of(sae.path) for sae in saes]
    for i, sae in enumerate(saes):
        if different and places[i] in places[:i]:
            raise ConfigError(f"{sae.name} is given twice", instead="remove it once")
    return {sae.name: sae for sae in saes}


def find_run(name: str | Path | SAEFolder, command: str) -> SAEFolder:
    """`find_sae` in a folder of this package or of upstream, on this machine.

    Arguments:
        command: the command that takes no other SAEs, for the error.
    """
    if not isinstance(name, SAEFolder) and is_on_hub(name):
        raise CheckpointError(f"{name}: no such folder; `vsae {command}` takes run folders here")
    sae = find_sae(name)
    require_own(sae, command)
    return sae


def require_own(sae: SAEFolder, command: str) -> None:
    """Raise a CheckpointError for another library's SAE, which a command doesn't take."""
    if sae.form is not None:
        raise CheckpointError(
            f"{sae.name}: an SAE of {sae.form}; `vsae {command}` takes run folders, and those of dictionary_learning"
        )


def saes_in(names: Sequence[str]) -> list[SAEFolder]:
    """SAEs by their names, with the finished runs in it for a folder that holds run folders: vSAEs first, then in the order of
    ARCHITECTURES. A warning names the others.

    Raises: ConfigError if no run in such a folder is finished.
    """
    found: list[SAEFolder] = []
    for name in names:
        if not (inside := reading.runs_in(at_home(name))):
            found.append(find_sae(name))
            continue
        finished = [run for run in inside if (run / WEIGHTS).is_file()]
        if not finished:
            raise ConfigError(f"{name}: no run in it is finished")
        if left := [str(run) for run in inside if run not in finished]:
            logger.warning("left out, as not finished: %s", ", ".join(left))
        found += sorted(map(find_sae, finished), key=_place)
    return found


def _place(sae: SAEFolder) -> tuple[int, bool]:
    """The place of an SAE's kind among others: a vSAE without noise comes after those with noise."""
    rows = list(ARCHITECTURES)
    place = rows.index(sae.architecture) if sae.architecture in rows else len(rows)
    return place, sae.settings.get("posterior") == "point"


def read_metrics(folder: str | Path) -> dict[str, Any]:
    """An SAE's final evaluation, the content of metrics.json. Raises CheckpointError if there is none."""
    return find_sae(folder).required_metrics


def _config_in(folder: Path) -> dict[str, Any]:
    """The content of config.json in a folder of this package, of upstream or of Baker & Li."""
    path = folder / CONFIG
    if not path.is_file():
        raise reading.missing_error(folder, CONFIG)
    config = read_json(path, CONFIG_JSON, REPAIR)
    if "dict_class" not in config.get("trainer", {}):
        what = f"{path}: expected an object with trainer.dict_class; {REPAIR}"
        raise reading.holds_saes_error(folder) or CheckpointError(what)
    return config


def _require_weights(folder: Path, config: dict[str, Any], step: int | None) -> None:
    """Raise a CheckpointError if the weights are missing: those of a checkpoint, or of a run that isn't finished."""
    if step is not None:
        if checkpoint(folder, step).is_file():
            return
        what = f"{folder}: no checkpoint of step {step}"
        if there := reading.checkpoint_steps(folder):
            raise CheckpointError(what, expected=f"one of {', '.join(map(str, there))}")
        raise CheckpointError(f"{what}; there are none", instead="train with save_steps")
    if (folder / WEIGHTS).is_file():
        return
    can_continue = bool(reading.steps_of(folder)) or not (folder / EVALUATION).is_file()
    if "run" not in config or not can_continue:
        raise reading.missing_error(folder, WEIGHTS)
    if (folder / FAILED).is_file():
        raise CheckpointError(
            f"{folder}: its training failed, see {FAILED} there",
            instead="train again, or load a checkpoint with step",
        )
    reached = max(reading.steps_of(folder), default=0)
    steps = config["run"].get("settings", {}).get("steps")
    raise CheckpointError(
        f"{folder}: has no {WEIGHTS} yet (step {reached} of {steps})",
        instead=f"continue its run with `vsae train --resume {in_shell(folder)}`",
    )
