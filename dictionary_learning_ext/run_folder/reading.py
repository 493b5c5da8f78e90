"""Read the folder of a run, finished or not: its settings, how far it has come, and the run to resume.

sae_folder.py reads a trained SAE, resume_points.py the resume points. Imports no torch.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..config.run import RunConfig, TrainConfig, require_same
from ..config.sae import SAEConfig
from ..errors import CheckpointError, ConfigError, in_shell
from .files import (
    CHECKPOINTS,
    CONFIG,
    EVALUATION,
    HISTORY,
    NOT_MEASURED,
    RESUME,
    WEIGHTS,
    at_home,
    read_json,
)
from .foreign import RECOGNISED, format_of
from .moved import as_here
from .schema import CONFIG_JSON, METRICS_JSON

EXPECTED = "expected a run folder, e.g. runs/NAME"


def train_config(
    config: dict[str, Any], path: Path, names: Collection[str] | None = None
) -> TrainConfig:
    """The settings in a config.json, to start another run with: all but where it was written, or those of `names`. Files that
    moved along with the run are where they are now.

    Raises: CheckpointError if there are none; ConfigError for an unknown name or a wrong value.
    """
    if not (settings := config.get("run", {}).get("settings", {})):
        raise CheckpointError(
            f"{path}: has no run.settings, which `vsae train` writes; {EXPECTED}, or its {CONFIG}"
        )
    settings = as_here(settings, path.parent)
    names = settings.keys() - {"save_dir", "overwrite"} if names is None else names
    own = {name: value for name, value in settings.items() if name in names}
    return TrainConfig().with_settings(own, str(path))


def holds_saes_error(folder: Path) -> CheckpointError | None:
    """The error for a folder that holds folders of SAEs; None for other folders."""
    for inside in sorted(folder.glob("[!.]*")):
        if format_of(inside) or (inside / WEIGHTS).is_file():
            return CheckpointError(
                f"{folder}: holds the folders of SAEs and is not one; give one of them, e.g. {inside}"
            )
    return None


def missing_error(folder: Path, name: str) -> CheckpointError:
    """The error for a folder without a file."""
    if name == CONFIG and (error := holds_saes_error(folder)) is not None:
        return error
    there = sorted(path.name for path in folder.glob("[!.]*"))
    names = ", ".join(there[:5] + ["…"] * (len(there) > 5)) or "nothing"
    is_unknown = name == CONFIG and not (folder / WEIGHTS).exists()
    return CheckpointError(
        f"{folder}: expected a file {name}, but it holds {names}",
        instead=f"give {RECOGNISED}" if is_unknown else "",
    )


def checkpoint_steps(folder: Path) -> list[int]:
    """The steps of a folder's checkpoints, in ascending order."""
    return _numbers(folder / CHECKPOINTS, r"ae_(\d+)\.pt")


def steps_of(folder: Path) -> list[int]:
    """The steps of a folder's resume points, in ascending order."""
    return _numbers(folder / RESUME, r"step_(\d+)\.pt")


def _numbers(folder: Path, pattern: str) -> list[int]:
    """The numbers in the names of the files that match a pattern, in ascending order."""
    matches = (re.fullmatch(pattern, path.name) for path in folder.glob("*"))
    return sorted(int(match[1]) for match in matches if match)


def load_config(path: str | Path, name: str | None = None) -> TrainConfig:
    """`train_config` of a run's config.json. Needs no weights.

    Arguments:
        path: the file, or its folder.
        name: the setting that gave the path, for messages, e.g. "config".

    Raises: ConfigError if there is no such file, or it has no settings or wrong ones.
    """
    path = at_home(path)
    try:
        if path.is_dir() and not (path / CONFIG).is_file():
            raise missing_error(path, CONFIG)
        path = path / CONFIG if path.is_dir() else path
        return train_config(read_json(path, CONFIG_JSON), path)
    except OSError as error:
        what = f"{path}: {str(error.strerror).lower()}; {EXPECTED}, or its {CONFIG}"
        raise ConfigError(what, name=name) from error
    except CheckpointError as error:
        raise ConfigError(str(error), name=name) from error


def read_history(folder: Path) -> list[dict[str, float | None]]:
    """The metrics of each logged step, empty if there are none. A value that was not finite is None.

    Raises: CheckpointError if a line is damaged.
    """
    path = folder / HISTORY
    if not path.exists():
        return []
    repair = "delete it to continue without the training curves"
    lines = [read_json(path, METRICS_JSON, repair, line) for line in path.read_bytes().splitlines()]
    return [{n: v for n, v in line.items() if n != NOT_MEASURED} for line in lines]


def is_finished(folder: Path, settings: RunConfig) -> bool:
    """Whether an SAE is trained, and evaluated if its run evaluates."""
    is_evaluated = not settings.eval_tokens or (folder / EVALUATION).is_file()
    return is_evaluated and (folder / WEIGHTS).is_file()


def by_resume_step(folders: Sequence[Path]) -> list[list[Path]]:
    """Run folders grouped by a resume point of the same step, the furthest first. Those without a point are the last.

    They differ where an SAE stopped alone, was continued alone, or was deleted to be trained again.
    """
    points = {folder: set(steps_of(folder)) or {-1} for folder in folders}
    groups: list[tuple[set[int], list[Path]]] = []
    for folder in sorted(folders, key=lambda folder: -max(points[folder])):
        for common, group in groups:
            if common & points[folder]:
                common &= points[folder]
                group.append(folder)
                break
        else:
            groups.append((points[folder], [folder]))
    return [group for _, group in groups]


def run_folders_in(folder: str | Path) -> list[Path]:
    """The run folders in a folder, finished or not, sorted by name. Empty if the folder is a run folder itself."""
    folder = Path(folder)
    if (folder / CONFIG).is_file():
        return []
    return sorted(path.parent for path in folder.glob(f"*/{CONFIG}"))


def runs_in(folder: Path) -> list[Path]:
    """The run folders in a folder, or one level below it, where several seeds of several hook points are. Empty if the
    folder is a run folder itself."""
    if (folder / CONFIG).is_file():
        return []
    inside = [run for parent in sorted(folder.glob("*")) for run in run_folders_in(parent)]
    return run_folders_in(folder) or inside


def run_folders(folder: Path) -> list[Path]:
    """`folder` itself if it holds a run, or else the folders in it that do.

    Raises: ConfigError if there is none.
    """
    if (folder / CONFIG).is_file():
        return [folder]
    if inside := run_folders_in(folder):
        return inside
    what = "holds no run" if folder.is_dir() else "no such folder"
    raise ConfigError(
        f"--resume {folder}: {what}; {EXPECTED}, or a folder that holds the run folders of one run"
    )


def read_run(folder: Path) -> tuple[RunConfig, dict[str, SAEConfig], dict[str, str]]:
    """The run to resume: the first three arguments of `train`, which are the shared settings, and each SAE's settings
    and hook point.

    Arguments:
        folder: a run folder, or the folder that holds the run folders of one run.

    Raises: ConfigError if there is no such run.
    """
    runs = {}
    for run_folder in run_folders(folder):
        # A link keeps its own name, by which the folder is found again.
        name = run_folder.name if run_folder.name not in ("", "..") else run_folder.resolve().name
        runs[name] = load_config(run_folder, "resume")
    (first_name, first), *others = runs.items()
    for name, other in others:
        require_same(
            asdict(first.run),
            asdict(other.run) | {"hook": first.run.hook, "target": first.run.target},
            f"--resume {folder}: holds different runs ({first_name} and {name} differ)",
            advice=f"resume each by itself, e.g. --resume {in_shell(folder / first_name)}",
        )
    is_one = (folder / CONFIG).is_file()
    only = folder if is_one or others else folder / first_name
    run = replace(first.run, save_dir=str(only))
    saes = {name: settings.sae for name, settings in runs.items()}
    return run, saes, {name: settings.run.site for name, settings in runs.items()}
