"""Run a wandb sweep file on this machine, without wandb's server.

Runs that share the language model, the text and the training settings are trained together: a `chunks.Chunk`. As many
as memory allows are trained at once, in this process or in one process per device. Each run is bit-identical to the
same run alone. sweep.json says which sweep a folder holds. Rerunning an interrupted sweep continues it.
"""

import contextlib
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from signal import SIGINT
from typing import Any

from ..config.run import TrainConfig, require_same
from ..errors import ConfigError, Interrupted, TrainingError, UserError, first_line
from ..run_folder.files import (
    CONFIG,
    FAILED,
    SWEEP,
    is_disk_full,
    read_json,
    remove,
    require_inside,
    write_json,
    writing,
)
from ..run_folder.reading import is_finished, load_config
from ..run_folder.schema import Object
from ..training.plan import fitting_at_once
from .chunks import Chunk, chunks_of
from .devices import train_on

logger = logging.getLogger(__name__)

_ANOTHER_SWEEP = "to continue that sweep, give {former}; for another, choose another save_dir"


def run_sweep(
    configs: dict[str, TrainConfig],
    save_dir: Path,
    at_once: int | None = None,
    *,
    devices: Sequence[str] = (),
    name: str | None = None,
    command: str | None = None,
    on_begin: Callable[[int], None] = lambda at_once: None,
) -> dict[str, Path]:
    """Train the runs of a sweep that are not finished.

    Arguments:
        configs: the settings of each run, by the name of its folder.
        save_dir: the folder for the run folders.
        at_once: the number of runs to train together (default: as many as memory allows, and with
            several devices at most each one's share).
        devices: train in one process for each of these (default: in this process, on the runs' device).
        name: the sweep's name, by which wandb groups its runs.
        command: the command that continues the sweep, for messages.
        on_begin: called with the number of runs that are trained together, before training starts.

    Returns: the run folders, by name.

    Raises: ConfigError if save_dir holds another sweep, or there is no such device; other UserErrors that would end
    all runs, e.g. a full disk; TrainingError after the other runs have ended, if any failed; Interrupted after a
    signal. A sweep that could start no run leaves no folder.
    """
    from ..devices import chosen_device

    for device in devices:
        chosen_device(device, "devices")
    own_devices = [] if devices else [chosen_device(one.run.device) for one in configs.values()]
    for folder, config in ((save_dir / name, config) for name, config in configs.items()):
        with writing(folder):  # its name may be too long
            is_begun = (folder / CONFIG).is_file()
        if is_begun:
            was, now = load_config(folder).to_dict(), config.to_dict()
            # Where these differ, they are all that is named: others follow from them.
            length = ("steps", "batch_size")
            require_same(was, now, str(folder), typed=length, advice=_ANOTHER_SWEEP)
    done, failed = _ended(configs, save_dir)
    ended = done + failed
    for chunk in chunks_of(configs, save_dir, name, len(configs), ended):
        chunk.prepare()
    fitting = fitting_at_once(list(configs.values()), devices or own_devices[:1])
    if at_once is None:
        at_once = min(math.ceil(len(configs) / max(1, len(devices))), fitting)
    chunks = list(chunks_of(configs, save_dir, name, at_once, ended))
    settings = {name: config.to_dict() for name, config in configs.items()}
    manifest = Manifest(sorted(configs), settings, name, command)
    _begin(manifest, save_dir)
    on_begin(at_once)
    failures = [
        f"{name} failed earlier (see {save_dir / name / FAILED}; to train it again, delete its folder)"
        for name in failed
    ]
    try:
        if failures := failures + _train(chunks, devices, at_once):
            raise TrainingError("; ".join(failures))
    except (KeyboardInterrupt, UserError) as stop:
        done, _ = _ended(configs, save_dir)
        so_far = f"{len(done)} of {len(configs)} runs are finished; {manifest.how_to_continue}"
        if not _has_begun(manifest, save_dir):
            so_far = "no run was begun"
            remove(save_dir / SWEEP)
            if not any(save_dir.iterdir()):
                remove(save_dir)
        if isinstance(stop, UserError):
            raise
        signal = stop.signal if isinstance(stop, Interrupted) else SIGINT
        raise Interrupted(signal, f"stopped by {signal.name}; {so_far}") from stop
    return {name: save_dir / name for name in configs}


def _train(chunks: list[Chunk], devices: Sequence[str], at_once: int) -> list[str]:
    """Train the chunks. Returns a line for each one that failed."""
    if devices and chunks:
        if (idle := len(devices) - len(chunks)) > 0:
            fact = "%d of the %d devices have nothing to do (--at-once is %d)"
            logger.warning(fact, idle, len(devices), at_once)
        return train_on(devices, chunks)
    failures = []
    for chunk in chunks:
        try:
            chunk.train()
        except TrainingError as error:  # names its SAEs
            failures.append(str(error))
        except UserError as error:
            if len(chunks) == 1 or _hits_all(error):
                raise
            failures.append(f"{chunk}: {error}")
            logger.error("%s", failures[-1])
    return failures


def _hits_all(error: UserError) -> bool:
    """Whether an error would end the other runs too: the disk is full, or another process writes there."""
    return is_disk_full(error.__cause__) or isinstance(error.__cause__, BlockingIOError)


# --- sweep.json


@dataclass(frozen=True)
class Manifest:
    """The content of sweep.json."""

    runs: list[str]
    """The names of the run folders."""
    settings: dict[str, dict[str, Any]]
    """The settings of each run, by its name."""
    name: str | None
    """The sweep's name, by which wandb groups its runs."""
    command: str | None
    """The command that started the sweep. None: it was started in Python."""

    @property
    def how_to_continue(self) -> str:
        """A sentence that says how to continue after an interruption."""
        if self.command is None:
            return "run the same `vsae sweep` command again to continue"
        return f"run `{self.command}` again to continue"


def _read(save_dir: Path) -> Manifest | None:
    """Read a folder's sweep.json; None if there is none. Raises ConfigError if it is damaged."""
    path = save_dir / SWEEP
    if not path.is_file():
        return None
    try:
        manifest = Manifest(**read_json(path, Object()))
        for name in manifest.runs:
            require_inside(name)
        return manifest
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"{path}: damaged ({first_line(error)}); delete it and rerun the sweep's command to continue"
        ) from error


def _begin(wanted: Manifest, save_dir: Path) -> None:
    """Write sweep.json. It may replace that of another sweep without run folders.

    Raises: ConfigError if the folder holds another sweep.
    """
    former = _read(save_dir)
    if former and former.runs != wanted.runs and _has_begun(former, save_dir):
        raise ConfigError(
            f"{save_dir}: holds another sweep of {len(former.runs)} runs, e.g. {former.runs[0]}",
            instead="choose another save_dir",
        )
    write_json(save_dir / SWEEP, asdict(wanted))


def chunk_in(save_dir: Path, names: Sequence[str], device: str) -> Chunk:
    """A chunk with some runs of a folder's sweep, to be trained on a device."""
    manifest = _read(save_dir)
    assert manifest is not None
    on_device = {name: manifest.settings[name] | {"device": device} for name in names}
    configs = {name: TrainConfig().with_settings(each, name) for name, each in on_device.items()}
    return Chunk(configs, save_dir, manifest.name)


def _has_begun(manifest: Manifest, save_dir: Path) -> bool:
    """Whether any run of a sweep has a folder."""
    return any((save_dir / name).exists() for name in manifest.runs)


def _ended(names: Iterable[str], save_dir: Path) -> tuple[list[str], list[str]]:
    """The names of the finished runs and of the failed ones. A run with a damaged config.json is neither."""
    done, failed = [], []
    for name in names:
        folder = save_dir / name
        if (folder / FAILED).is_file():
            failed.append(name)
        elif (folder / CONFIG).is_file():
            with contextlib.suppress(ConfigError):
                if is_finished(folder, load_config(folder).run):
                    done.append(name)
    return done, failed


def progress(save_dir: Path) -> str | None:
    """How many runs of a folder's sweep are finished, and how to continue; None if all are finished."""
    manifest = _read(save_dir)
    if manifest is None:
        return None
    done, failed = _ended(manifest.runs, save_dir)
    parts = []
    if failed:
        parts.append(f"{len(failed)} failed, see {FAILED} in {', '.join(failed)}")
    if len(done) + len(failed) < len(manifest.runs):
        parts.append(manifest.how_to_continue)
    finished = f"{len(done)} of {len(manifest.runs)} runs are finished"
    return "; ".join([finished, *parts]) if parts else None
