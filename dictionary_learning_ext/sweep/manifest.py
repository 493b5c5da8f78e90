"""sweep.json: which sweep a folder holds, and how far it is."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import ConfigError
from ..run_folder.names import CONFIG, FAILED, SWEEP
from ..run_folder.reading import is_finished, load_config
from ..run_folder.writing import write_json


@dataclass(frozen=True)
class Manifest:
    """The content of sweep.json."""

    digest: str
    """Of the runs' names, which say all settings."""
    at_once: int
    """How many are trained together: what a resume point holds."""
    runs: list[str]
    """The names of the run folders."""
    name: str | None = None
    """The sweep's name; None in older folders."""
    command: str | None = None
    """What was typed; None in older folders."""

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
    names: list[str],
    save_dir: Path,
    *,
    at_once: int | None,
    memory_allows: int,
    name: str | None = None,
    command: str | None = None,
) -> Manifest:
    """Record a sweep in `save_dir`, unless it is there already.

    Another sweep that has written no run yet gives way.

    Raises: ConfigError if the folder holds another sweep, or the same one with another at_once.
    """
    names = sorted(names)
    digest = hashlib.sha256(json.dumps(names).encode()).hexdigest()
    former = read(save_dir)
    if former is None or (former.digest != digest and not _has_begun(former, save_dir)):
        at_once = memory_allows if at_once is None else at_once
        manifest = Manifest(digest, at_once, names, name, command)
        write_json(save_dir / SWEEP, asdict(manifest))
        return manifest
    if former.digest != digest:
        raise ConfigError(
            f"{save_dir}: holds another sweep of {len(former.runs)} runs, e.g. {former.runs[0]}; "
            "choose another --save-dir"
        )
    if at_once not in (None, former.at_once):
        raise ConfigError(
            f"--at-once {at_once}: this sweep was started with {former.at_once}; leave out "
            "--at-once to continue it"
        )
    return former


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
