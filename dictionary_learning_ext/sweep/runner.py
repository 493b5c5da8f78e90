"""Run a wandb sweep file on this machine, without wandb's server.

Configurations that share the language model, text and training settings are trained in one process on
the same batches, or on the same text at several hook points: a `chunks.Chunk`. As many are trained at once as
memory allows: on this process's device, or on several with a process each. Each gets the same weights,
bit for bit, as it would in a run of its own. sweep.json says which sweep a folder holds: rerunning an
interrupted sweep continues it.
"""

import contextlib
import hashlib
import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from signal import SIGINT
from typing import Any, get_type_hints

from ..config.run import NOT_THE_RESULT, TrainConfig
from ..config.sae import DERIVED
from ..errors import ConfigError, Interrupted, Setting, TrainingError, UserError, first_line
from ..run_folder.files import (
    CONFIG,
    FAILED,
    SWEEP,
    is_of_a_full_disk,
    remove,
    require_inside,
    write_json,
)
from ..run_folder.json_files import read_json
from ..run_folder.reading import is_finished, load_config
from ..training.plan import fitting_at_once
from .chunks import chunks_of
from .devices import train_on

logger = logging.getLogger(__name__)

_MOST_SHOWN = 5
"""Values of a setting in a message."""


def run_sweep(
    configs: dict[str, TrainConfig],
    save_dir: Path,
    at_once: int | None = None,
    *,
    devices: Sequence[str] = (),
    name: str | None = None,
    command: str | None = None,
    on_begin: Callable[["Manifest"], None] = lambda manifest: None,
) -> dict[str, Path]:
    """Train every configuration, or those that an interrupted sweep has not finished.

    Arguments:
        configs: by the names of their run folders.
        save_dir: gets one run folder per configuration.
        at_once: how many to train together (default: as many as memory allows, and with several
            devices, at most each one's share).
        devices: train in a process for each of these (default: in this process, where the runs say).
        name: the sweep's, which groups its runs in wandb.
        command: what to type to continue.
        on_begin: called once it is certain which sweep save_dir holds, before anything is trained.

    Returns: the run folders, by name.

    Raises: ConfigError if save_dir holds another sweep, or there is no such device; other UserErrors
    for what no run can be trained with, e.g. a full disk; TrainingError, after all others have run, if
    any failed; Interrupted after a signal. A sweep that could begin no run leaves no folder.
    """
    from ..trainers.base import require_device

    for device in devices:
        require_device(device, "devices")
    for config in () if devices else configs.values():
        require_device(config.run.device)
    for chunk in chunks_of(configs, save_dir, name, len(configs), _ended(configs, save_dir)):
        chunk.prepare()
    fitting = fitting_at_once(
        list(configs.values()), devices or [next(iter(configs.values())).run.device]
    )
    memory_allows = min(math.ceil(len(configs) / max(1, len(devices))), fitting)
    wanted = _manifest(configs, memory_allows if at_once is None else at_once, name, command)
    manifest = _begin(wanted, save_dir, keep_at_once=at_once is None)
    on_begin(manifest)
    try:
        return _run(configs, save_dir, manifest, devices)
    except (KeyboardInterrupt, UserError) as stop:
        done = sum(is_done(save_dir / name) for name in configs)
        so_far = f"{done} of {len(configs)} runs are finished; {manifest.how_to_continue}"
        if not _has_begun(manifest, save_dir):
            so_far = "no run was begun"
            remove(save_dir / SWEEP)
            if not any(save_dir.iterdir()):
                remove(save_dir)
        if isinstance(stop, UserError):
            raise
        signal = stop.signal if isinstance(stop, Interrupted) else SIGINT
        raise Interrupted(signal, f"stopped by {signal.name}; {so_far}") from stop


def _run(
    configs: dict[str, TrainConfig], save_dir: Path, manifest: "Manifest", devices: Sequence[str]
) -> dict[str, Path]:
    failures = [
        f"{name} failed earlier (see {save_dir / name / FAILED}; to train it again, delete its folder)"
        for name in _failed(configs, save_dir)
    ]
    ended = _ended(configs, save_dir)
    chunks = list(chunks_of(configs, save_dir, manifest.name, manifest.at_once, ended))
    if devices and chunks:
        if (idle := len(devices) - len(chunks)) > 0:
            fact = "%d of the %d devices have nothing to do (--at-once is %d)"
            logger.warning(fact, idle, len(devices), manifest.at_once)
        failures += train_on(devices, chunks)
    else:
        for chunk in chunks:
            try:
                chunk.train()
            except TrainingError as error:  # names its SAEs
                failures.append(error.as_typed)
            except UserError as error:
                if len(chunks) == 1 or _hits_all(error):
                    raise
                failures.append(f"{chunk}: {error.as_typed}")
                logger.error("%s", failures[-1])
    if failures:
        raise TrainingError("; ".join(failures))
    return {name: save_dir / name for name in configs}


def _hits_all(error: UserError) -> bool:
    """Whether the other runs would end alike: the disk is full, or another process writes there."""
    cause = error.__cause__
    is_full = isinstance(cause, OSError) and is_of_a_full_disk(cause)
    return is_full or isinstance(cause, BlockingIOError)


def _failed(configs: dict[str, TrainConfig], save_dir: Path) -> list[str]:
    return [name for name in configs if (save_dir / name / FAILED).is_file()]


def _ended(configs: dict[str, TrainConfig], save_dir: Path) -> list[str]:
    """The runs that are finished or failed. Another is trained again once its folder is deleted."""
    done = [name for name in configs if is_done(save_dir / name)]
    return [*done, *_failed(configs, save_dir)]


# --- sweep.json


@dataclass(frozen=True)
class Manifest:
    """The content of sweep.json."""

    digest: str
    """Of the settings of all runs."""
    at_once: int
    """How many are trained together."""
    runs: list[str]
    """The names of the run folders."""
    name: str | None
    """The sweep's name, if it has one."""
    command: str | None
    """What was typed, if it was started by a command."""
    settings: dict[str, list[Any]]
    """The values of each setting in any of the runs."""

    @property
    def how_to_continue(self) -> str:
        """What to type after an interruption."""
        if self.command is None:
            return "run the same `vsae sweep` command again to continue"
        return f"run `{self.command}` again to continue"


def _read(save_dir: Path) -> Manifest | None:
    """The sweep that a folder holds, if any. Raises ConfigError if its file is damaged."""
    path = save_dir / SWEEP
    if not path.is_file():
        return None
    try:
        manifest = Manifest(**read_json(path, get_type_hints(Manifest)))
        for name in manifest.runs:
            require_inside(name)
        return manifest
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"{path}: damaged ({first_line(error)}); delete it and rerun the sweep's command to continue"
        ) from error


def _manifest(
    configs: dict[str, TrainConfig], at_once: int, name: str | None, command: str | None
) -> Manifest:
    """The manifest of a sweep, with its settings as JSON gives them back."""
    names, values = sorted(configs), {}
    for config in configs.values():
        for setting, value in json.loads(json.dumps(config.to_dict())).items():
            if setting not in NOT_THE_RESULT and value not in values.setdefault(setting, []):
                values[setting].append(value)
    digests = sorted(config.digest for config in configs.values())
    digest = hashlib.sha256(json.dumps(digests).encode()).hexdigest()
    return Manifest(digest, at_once, names, name, command, values)


def _begin(wanted: Manifest, save_dir: Path, *, keep_at_once: bool) -> Manifest:
    """Record a sweep in `save_dir`, or return what is recorded there of the same sweep.

    Another sweep that has written no run yet gives way.

    Arguments:
        keep_at_once: a recorded sweep continues with its own `at_once`.

    Raises: ConfigError if the folder holds another sweep, or the same one with a lower `at_once`.
    """
    former = _read(save_dir)
    if former is None or not (former.digest == wanted.digest or _has_begun(former, save_dir)):
        write_json(save_dir / SWEEP, asdict(wanted))
        return wanted
    if former.digest != wanted.digest:
        raise ConfigError(
            (
                f"{save_dir}: holds another sweep of {len(former.runs)} runs",
                *_difference(former, wanted.settings),
            ),
            instead=("choose another ", Setting("save_dir")),
        )
    at_once = former.at_once if keep_at_once else wanted.at_once
    if at_once > former.at_once:
        raise ConfigError(
            f"this sweep was started with {former.at_once}",
            name="at_once",
            value=wanted.at_once,
            instead="leave it out to continue the sweep, or lower it",
        )
    manifest = replace(former, at_once=at_once)  # lower, e.g. after memory ran out
    write_json(save_dir / SWEEP, asdict(manifest))
    return manifest


def _difference(former: Manifest, settings: dict[str, list[Any]]) -> tuple[str | Setting, ...]:
    """In which settings the runs of two sweeps differ, but for those that follow from others."""
    was = former.settings
    differing = [
        name
        for name, values in settings.items()
        if name in was and sorted(map(repr, was[name])) != sorted(map(repr, values))
    ]
    differing = [name for name in differing if name not in DERIVED] or differing
    if not differing:
        return (f", e.g. {former.runs[0]}",)
    changes = [
        part
        for name in differing
        for part in (" and ", Setting(name, _shown(was[name])), f", not {_shown(settings[name])}")
    ]
    return (" with ", *changes[1:])


def _shown(values: list[Any]) -> str:
    more = ["…"] if len(values) > _MOST_SHOWN else []
    return ",".join([*map(str, values[:_MOST_SHOWN]), *more])


def _has_begun(manifest: Manifest, save_dir: Path) -> bool:
    return any((save_dir / name).exists() for name in manifest.runs)


def is_done(folder: Path) -> bool:
    """Whether a run of a sweep is trained and, if its settings say so, evaluated."""
    return (folder / CONFIG).is_file() and is_finished(folder, load_config(folder).run)


def progress(save_dir: Path) -> str | None:
    """What is missing in a sweep's folder, and how to continue; None if nothing is.

    A run whose config.json is damaged isn't finished.
    """
    manifest = _read(save_dir)
    if manifest is None:
        return None
    failed, done = [], []
    for name in manifest.runs:
        if (save_dir / name / FAILED).is_file():
            failed.append(name)
            continue
        with contextlib.suppress(ConfigError):
            if is_done(save_dir / name):
                done.append(name)
    parts = []
    if failed:
        parts.append(f"{len(failed)} failed, see {FAILED} in {', '.join(failed)}")
    if len(done) + len(failed) < len(manifest.runs):
        parts.append(manifest.how_to_continue)
    finished = f"{len(done)} of {len(manifest.runs)} runs are finished"
    return "; ".join([finished, *parts]) if parts else None
