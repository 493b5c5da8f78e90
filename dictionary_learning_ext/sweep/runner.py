"""Train several runs into one folder: those of `vsae sweep`, of `vsae train --seeds` and of `vsae quickstart`.

Runs that share the language model, the text and the training settings are trained together: a `chunks.Chunk`. As many
as memory allows are trained at once, in this process or in one process per device. Each run is bit-identical to the
same run alone. sweep.json says which sweep a folder holds. Rerunning an interrupted sweep continues it.
"""

import contextlib
import logging
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config.checks import Checked, require
from ..config.run import TrainConfig, require_same
from ..errors import ConfigError, TrainingError, UserError, first_line
from ..run_folder.files import (
    CONFIG,
    FAILED,
    RUN_FILES,
    SWEEP_MANIFEST,
    is_disk_full,
    locked,
    read_json,
    remove,
    require_folder_name,
    write_json,
    writing,
)
from ..run_folder.reading import is_finished, load_config
from ..run_folder.schema import Object
from ..training.plan import fitting_at_once
from ..training.processes import saying_how_to_continue
from .cached import SweepCache
from .chunks import Chunk, chunks_of
from .devices import train_on

SettingsByRun = dict[str, dict[str, Any]]
"""The settings of runs, by their names."""

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
    cache: SweepCache | None = None,
    metric: dict[str, str] | None = None,
    on_begin: Callable[[int], None] = lambda at_once: None,
) -> dict[str, Path]:
    """Train the runs of a sweep that are not finished. The folder may hold more runs.

    Arguments:
        configs: the settings of each run, by the name of its folder. With `overwrite` they start over.
        save_dir: the folder for the run folders.
        at_once: the number of runs to train together (default: as many as memory allows, and with
            several devices at most each one's share).
        devices: train in one process for each of these (default: in this process, on the runs' device).
        name: the sweep's name, by which wandb groups its runs.
        command: the command that continues the sweep, for messages (default: the same command).
        cache: a cache to write first, which the runs then read. If the disk is too small for it when the sweep begins,
            they run the language model.
        metric: see `Manifest`.
        on_begin: called after the checks, before the cache and the runs, with the number of runs that are trained
            together; 0 if all have ended.

    Returns: the run folders, by name.

    Raises: ConfigError if a run was begun with other settings, or there is no such device; other UserErrors that would
    end all runs, e.g. a full disk; TrainingError after the other runs have ended, if any failed; Interrupted after a
    signal.
    """
    from ..devices import chosen_device

    with writing(save_dir):
        is_run = (save_dir / CONFIG).is_file()
    expected = "a folder for run folders, and this one holds a run"
    require(not is_run, "save_dir", str(save_dir), expected, instead="choose another")
    first = next(iter(configs.values())).run
    own_devices = [chosen_device(one, "devices") for one in devices] or [
        chosen_device(first.device)
    ]
    overwrite = first.overwrite
    again, former = how_to_continue(overwrite, command), read_manifest(save_dir)
    begun = {} if overwrite else _begun(configs, save_dir)
    if any(was["activations"] is None for was in begun.values()):
        cache = None  # the disk was too small when they began
    reading = configs if cache is None else cache.read_by(configs)
    for run, was in begun.items():
        _require_same_run(save_dir / run, was, reading[run].to_dict(), cache is not None)
    done, failed = ([], []) if overwrite else _ended(configs, save_dir)
    left = list(chunks_of(configs, save_dir, name, len(configs), done + failed))
    for chunk in left:
        chunk.prepare()
    if at_once is None:
        fitting = fitting_at_once(list(configs.values()), own_devices)
        at_once = min(math.ceil(len(configs) / max(1, len(devices))), fitting)
    with saying_how_to_continue(lambda: f"{_finished(configs, save_dir)}; {again}"):
        if overwrite:
            _clear(save_dir / run for run in configs)
        on_begin(min(at_once, max((len(chunk.configs) for chunk in left), default=0)))
        if cache is not None and left:
            reading = cache.write(configs, is_read=bool(begun))
        manifest = Manifest(
            settings=former.settings | {run: config.to_dict() for run, config in reading.items()},
            name=name,
            advice=former.advice | dict.fromkeys(configs, again),
            metric=metric,
        )
        write_json(save_dir / SWEEP_MANIFEST, vars(manifest))
        chunks = list(chunks_of(reading, save_dir, name, at_once, done + failed))
        failures = train_on(devices, chunks) if devices else _train(chunks)
    earlier = "failed earlier (see {}; to train it again, delete its folder)"
    failures = [f"{run} {earlier.format(save_dir / run / FAILED)}" for run in failed] + failures
    if failures:
        raise TrainingError("; ".join(failures))
    return {run: save_dir / run for run in configs}


def how_to_continue(overwrite: bool = False, command: str | None = None) -> str:
    """What to do after an interruption: run the command again (default: the same one, as long as it deletes nothing)."""
    same = "the same command without --overwrite" if overwrite else "the same command"
    return f"run {f'`{command}`' if command else same} again to continue"


def _begun(configs: Iterable[str], save_dir: Path) -> SettingsByRun:
    """The settings with which runs were begun."""
    found = {}
    for run in configs:
        with writing(save_dir / run):  # its name may be too long
            if (save_dir / run / CONFIG).is_file():
                found[run] = load_config(save_dir / run).to_dict()
    return found


def _require_same_run(
    folder: Path, was: dict[str, Any], now: dict[str, Any], is_cached: bool
) -> None:
    """Raise a ConfigError if a run was begun with other settings. Its folder may have moved, with the sweep's cache."""
    read, reads = (Path(settings["activations"] or "").name for settings in (was, now))
    but = ("activations",) if is_cached and read == reads else ()
    require_same(was, now, str(folder), but=but, advice=_ANOTHER_SWEEP)


def _clear(folders: Iterable[Path]) -> None:
    """Delete runs. All before the first one starts, so that continuing needs no overwrite."""
    for folder in folders:
        with locked(folder), writing(folder):
            for file in sorted(RUN_FILES, key=CONFIG.__eq__):  # last: what is left still is a run's
                remove(folder / file)


def _train(chunks: list[Chunk]) -> list[str]:
    """Train the chunks in this process. Returns a line for each one that failed."""
    failures = []
    for chunk in chunks:
        try:
            chunk.train()
        except TrainingError as error:  # names its SAEs
            failures.append(str(error))
        except UserError as error:
            # A full disk, or another process that writes there, would end the others too.
            hits_all = is_disk_full(error.__cause__) or isinstance(error.__cause__, BlockingIOError)
            if len(chunks) == 1 or hits_all:
                raise
            failures.append(f"{chunk}: {error}")
            logger.error("%s", failures[-1])
    return failures


# --- sweep.json


@dataclass(frozen=True, kw_only=True)
class Manifest(Checked):
    """The content of sweep.json: the settings of the sweep's runs, and of others in the folder."""

    settings: SettingsByRun = field(default_factory=dict)
    name: str | None = None
    """The sweep's name, by which wandb groups its runs."""
    advice: dict[str, str] = field(default_factory=dict)
    """How to continue each run after an interruption, by its name."""
    metric: dict[str, str] | None = None
    """The name and the goal of the metric that ranks the runs, as the sweep's file has them."""


def read_manifest(save_dir: Path) -> Manifest:
    """A folder's sweep.json; empty if there is none. Raises ConfigError if it is damaged."""
    path = save_dir / SWEEP_MANIFEST
    if not path.is_file():
        return Manifest()
    try:
        manifest = Manifest(**read_json(path, Object()))
        for name in manifest.settings:
            require_folder_name(name, "run name")
        return manifest
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"{path}: damaged ({first_line(error)}); delete it and rerun the sweep's command to continue"
        ) from error


def chunk_in(save_dir: Path, names: Sequence[str], device: str) -> Chunk:
    """A chunk with some runs of a folder's sweep, to be trained on a device."""
    manifest = read_manifest(save_dir)
    on_device = {name: manifest.settings[name] | {"device": device} for name in names}
    configs = {name: TrainConfig().with_settings(each, name) for name, each in on_device.items()}
    return Chunk(configs, save_dir, manifest.name)


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


def _finished(names: Collection[str], save_dir: Path) -> str:
    return f"{len(_ended(names, save_dir)[0])} of {len(names)} runs are finished"


def progress(save_dir: Path) -> str | None:
    """How many runs of a folder's sweep are finished, and how to continue; None if all are finished."""
    manifest = read_manifest(save_dir)
    done, failed = _ended(manifest.settings, save_dir)
    parts = []
    if failed:
        parts.append(f"{len(failed)} failed, see {FAILED} in {', '.join(failed)}")
    left = [run for run in manifest.settings if run not in {*done, *failed}]
    parts += dict.fromkeys(manifest.advice[run] for run in left)
    return "; ".join([_finished(manifest.settings, save_dir), *parts]) if parts else None
