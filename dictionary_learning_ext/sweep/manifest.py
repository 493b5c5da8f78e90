"""sweep.json: which sweep a folder holds, and how far it is."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..config.run import NOT_THE_RESULT, TrainConfig
from ..config.sae import DERIVED
from ..errors import ConfigError, Setting
from ..run_folder.names import CONFIG, FAILED, SWEEP
from ..run_folder.reading import is_finished, load_config
from ..run_folder.writing import remove, write_json

_MOST_SHOWN = 5
"""Values of a setting in a message."""


@dataclass(frozen=True)
class Manifest:
    """The content of sweep.json."""

    digest: str
    """Of the runs' names, which say all settings."""
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


def read(save_dir: Path) -> Manifest | None:
    """The sweep that a folder holds, if any. Raises ConfigError if its file is damaged."""
    path = save_dir / SWEEP
    if not path.is_file():
        return None
    try:
        return Manifest(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"{path}: damaged; delete it and rerun the sweep's command to continue"
        ) from error


def begin(
    configs: dict[str, TrainConfig],
    save_dir: Path,
    *,
    at_once: int | None,
    memory_allows: int,
    name: str | None = None,
    command: str | None = None,
) -> Manifest:
    """Record a sweep in `save_dir`, unless it is there already.

    Another sweep that has written no run yet gives way.

    Arguments:
        configs: of the runs, by name.

    Raises: ConfigError if the folder holds another sweep, or the same one and `at_once` is higher than
    its own.
    """
    names, settings = sorted(configs), _values(configs)
    digest = hashlib.sha256(json.dumps(names).encode()).hexdigest()
    former = read(save_dir)
    if former is None or (former.digest != digest and not _has_begun(former, save_dir)):
        at_once = memory_allows if at_once is None else at_once
        manifest = Manifest(digest, at_once, names, name, command, settings)
        write_json(save_dir / SWEEP, asdict(manifest))
        return manifest
    if former.digest != digest:
        raise ConfigError(
            (
                f"{save_dir}: holds another sweep of {len(former.runs)} runs",
                *_difference(former, settings),
            ),
            instead=("choose another ", Setting("save_dir")),
        )
    if at_once in (None, former.at_once):
        return former
    if at_once > former.at_once:
        raise ConfigError(
            f"this sweep was started with {former.at_once}",
            name="at_once",
            value=at_once,
            instead="leave it out to continue the sweep, or lower it",
        )
    manifest = replace(former, at_once=at_once)  # e.g. after memory ran out
    write_json(save_dir / SWEEP, asdict(manifest))
    return manifest


def _values(configs: dict[str, TrainConfig]) -> dict[str, list[Any]]:
    """The values of each setting in any of the runs, as JSON gives them back."""
    values: dict[str, list[Any]] = {}
    for config in configs.values():
        for name, value in json.loads(json.dumps(config.to_dict())).items():
            if name not in NOT_THE_RESULT and value not in values.setdefault(name, []):
                values[name].append(value)
    return values


def _difference(former: Manifest, settings: dict[str, list[Any]]) -> tuple[str | Setting, ...]:
    """In which settings the runs of two sweeps differ, but for those that follow from others."""
    was = former.settings
    differing = [n for n in settings if n in was and _sorted(was[n]) != _sorted(settings[n])]
    differing = [name for name in differing if name not in DERIVED] or differing
    if not differing:
        return (f", e.g. {former.runs[0]}",)
    changes = [
        part
        for name in differing
        for part in (" and ", Setting(name, _shown(was[name])), f", not {_shown(settings[name])}")
    ]
    return (" with ", *changes[1:])


def _sorted(values: list[Any]) -> list[Any]:
    return sorted(values, key=repr)


def _shown(values: list[Any]) -> str:
    texts = [str(value) for value in values[:_MOST_SHOWN]]
    return ",".join(texts + ["…"] * (len(values) > _MOST_SHOWN))


def withdraw(manifest: Manifest, save_dir: Path) -> None:
    """Undo `begin` if no run has started."""
    if not _has_begun(manifest, save_dir):
        remove(save_dir / SWEEP)
        if save_dir.is_dir() and not any(save_dir.iterdir()):
            remove(save_dir)


def _has_begun(manifest: Manifest, save_dir: Path) -> bool:
    return any((save_dir / name).exists() for name in manifest.runs)


def is_done(folder: Path) -> bool:
    """Whether a run of a sweep is trained and, if its settings say so, evaluated."""
    return (folder / CONFIG).is_file() and is_finished(folder, load_config(folder).run)


def progress(save_dir: Path) -> str | None:
    """What is missing in a sweep's folder, and how to continue; None if nothing is."""
    manifest = read(save_dir)
    if manifest is None:
        return None
    failed = [name for name in manifest.runs if (save_dir / name / FAILED).is_file()]
    done = [n for n in manifest.runs if n not in failed and is_done(save_dir / n)]
    parts = []
    if failed:
        parts.append(f"{len(failed)} failed, see {FAILED} in {', '.join(failed)}")
    if len(done) + len(failed) < len(manifest.runs):
        parts.append(manifest.how_to_continue)
    return (
        "; ".join([f"{len(done)} of {len(manifest.runs)} runs are finished", *parts])
        if parts
        else None
    )
