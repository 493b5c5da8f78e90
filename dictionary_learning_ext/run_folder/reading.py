"""Read a run folder: its settings and metrics, whether it is finished, and the run to resume.

weights.py reads the weights, resume_points.py the resume points. Imports no torch.
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..config.architectures import ARCHITECTURES
from ..config.run import RunConfig, TrainConfig, require_same, with_former_defaults
from ..config.sae import SAEConfig
from ..errors import CheckpointError, ConfigError, in_shell
from .files import (
    CHECKPOINTS,
    CONFIG,
    EVALUATION,
    FAILED,
    HISTORY,
    NOT_MEASURED,
    RESUME,
    WEIGHTS,
    at_home,
    checkpoint,
    read_json,
)
from .foreign import RECOGNISED, foreign_config, format_of
from .sae_names import EXPECTED, location_of, results_folder
from .schema import CONFIG_JSON, METRICS_JSON
from .settings import architecture_of, compared_settings, required_run_settings

logger = logging.getLogger(__name__)


def require_folders(folders: Sequence[str | Path]) -> None:
    """Raise a ConfigError if no folder is given, or one that isn't in a list."""
    if isinstance(folders, str | Path):
        raise ConfigError(f"folders={folders!r}: expected a list, e.g. ['runs/NAME']")
    if not folders:
        raise ConfigError(f"no folder given: {EXPECTED}, or several")


def read_config(folder: str | Path, step: int | None = None) -> dict[str, Any]:
    """The config.json of an SAE. For another library's folder it is made from its settings, see `foreign_config`.

    Arguments:
        folder: a folder, or a place on the hub, see sae_names.py.
        step: the step of a checkpoint. Default: the final weights.

    Raises: CheckpointError if the folder or a file in it is missing or damaged, or the run is not finished.
    """
    folder, overrides = location_of(folder)
    path = folder / CONFIG
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; {EXPECTED}")
    if (form := format_of(folder)) is not None:
        if step is not None:
            what = f"{folder}: an SAE of {form}, which has no checkpoints"
            raise CheckpointError(what, instead="leave out step")
        return foreign_config(folder, form, overrides)
    if not path.is_file():
        raise _missing_error(folder, CONFIG)
    repair = "copy it again or train again"
    config = read_json(path, CONFIG_JSON, repair)
    if "dict_class" not in config.get("trainer", {}):
        what = f"{path}: expected an object with trainer.dict_class; {repair}"
        raise _holds_saes_error(folder) or CheckpointError(what)
    if step is None:
        if not (folder / WEIGHTS).is_file():
            can_continue = bool(steps_of(folder)) or not (folder / EVALUATION).is_file()
            is_begun = "run" in config and can_continue
            raise _unfinished_error(folder, config) if is_begun else _missing_error(folder, WEIGHTS)
    elif not checkpoint(folder, step).is_file():
        there = checkpoint_steps(folder)
        raise CheckpointError(
            f"{folder}: no checkpoint of step {step}" + ("" if there else "; there are none"),
            expected=f"one of {', '.join(map(str, there))}" if there else "",
            instead="" if there else "train with save_steps",
        )
    return config


def _holds_saes_error(folder: Path) -> CheckpointError | None:
    """The error for a folder that holds folders of SAEs; None for other folders."""
    for inside in sorted(folder.glob("[!.]*")):
        if format_of(inside) or (inside / WEIGHTS).is_file():
            return CheckpointError(
                f"{folder}: holds the folders of SAEs and is not one; give one of them, e.g. {inside}"
            )
    return None


def _missing_error(folder: Path, name: str) -> CheckpointError:
    if name == CONFIG and (error := _holds_saes_error(folder)) is not None:
        return error
    there = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    more = f" and {len(there) - 5} more" if len(there) > 5 else ""
    names = (", ".join(path.name for path in there[:5]) or "nothing") + more
    is_unknown = name == CONFIG and not (folder / WEIGHTS).exists()
    return CheckpointError(
        f"{folder}: expected a file {name}, but it holds {names}",
        instead=f"give {RECOGNISED}" if is_unknown else "",
    )


def _unfinished_error(folder: Path, config: dict[str, Any]) -> CheckpointError:
    if (folder / FAILED).is_file():
        return CheckpointError(
            f"{folder}: its training failed, see {FAILED} there",
            instead="train again, or load a checkpoint with step",
        )
    reached = max(steps_of(folder), default=0)
    steps = required_run_settings(config, folder / CONFIG).get("steps")
    return CheckpointError(
        f"{folder}: not finished (step {reached} of {steps}); continue it with "
        f"`vsae train --resume {in_shell(folder)}`"
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
    """The settings in a run's config.json, to start another run with. Needs no weights.

    Arguments:
        path: the file, or its folder.
        name: the setting that gave the path, for messages, e.g. "config".

    Raises: ConfigError if there is no such file, or it has no settings or wrong ones.
    """
    path = at_home(path)
    try:
        if path.is_dir() and not (path / CONFIG).is_file():
            raise _missing_error(path, CONFIG)
        path = path / CONFIG if path.is_dir() else path
        settings = required_run_settings(read_json(path, CONFIG_JSON), path)
    except OSError as error:
        what = f"{path}: {str(error.strerror).lower()}; {EXPECTED}, or its {CONFIG}"
        raise ConfigError(what, name=name) from error
    except CheckpointError as error:
        raise ConfigError(str(error), name=name) from error
    where = ("save_dir", "overwrite")  # a new run goes elsewhere and overwrites nothing
    own = {name: value for name, value in settings.items() if name not in where}
    return TrainConfig().with_settings(with_former_defaults(own), str(path))


def read_metrics(folder: str | Path) -> dict[str, Any]:
    """An SAE's final evaluation, the content of metrics.json. Raises CheckpointError if there is none."""
    read_config(folder)
    path = results_folder(folder) / EVALUATION
    command = f"run `vsae eval {in_shell(folder)}`"
    try:
        return read_json(path, METRICS_JSON, command)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: not measured yet; {command}") from error


def read_metrics_if_any(folder: str | Path) -> dict[str, Any] | None:
    """`read_metrics`, or None if the SAE was not evaluated."""
    return read_metrics(folder) if (results_folder(folder) / EVALUATION).exists() else None


def former_evaluation(results: Path) -> dict[str, Any]:
    """The metrics.json in a folder of results. Empty if there is none or it is damaged, as it will be written again."""
    try:
        return read_json(results / EVALUATION, METRICS_JSON)
    except (CheckpointError, FileNotFoundError):
        return {}


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
    """The run folders in a folder, or one level below it, where several seeds of several hook points are."""
    inside = [run for parent in sorted(folder.glob("*")) for run in run_folders_in(parent)]
    return run_folders_in(folder) or inside


def saes_in(names: Sequence[str]) -> list[str]:
    """The names of SAEs, with the finished runs in it for a folder that holds run folders: vSAEs first, then in the order of
    ARCHITECTURES. A warning names the others.

    Raises: ConfigError if no run in such a folder is finished.
    """
    found: list[str] = []
    for name in names:
        folder = at_home(name)
        if (folder / CONFIG).is_file() or not (inside := runs_in(folder)):
            found.append(name)
            continue
        finished = [run for run in inside if (run / WEIGHTS).is_file()]
        if not finished:
            raise ConfigError(f"{name}: no run in it is finished")
        if left := [str(run) for run in inside if run not in finished]:
            logger.warning("left out, as not finished: %s", ", ".join(left))
        found += map(str, sorted(finished, key=_place))
    return found


def _place(folder: Path) -> tuple[int, bool]:
    """The place of an SAE's kind among others: a vSAE without noise comes after those with noise."""
    config = read_config(folder)
    architecture, rows = architecture_of(config), list(ARCHITECTURES)
    place = rows.index(architecture) if architecture in rows else len(rows)
    return place, compared_settings(config).get("posterior") == "point"


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
            asdict(other.run) | {"hook": first.run.hook},
            f"--resume {folder}: holds different runs ({first_name} and {name} differ)",
            advice=f"resume each by itself, e.g. --resume {in_shell(folder / first_name)}",
        )
    is_one = (folder / CONFIG).is_file()
    only = folder if is_one or others else folder / first_name
    run = replace(first.run, save_dir=str(only))
    saes = {name: settings.sae for name, settings in runs.items()}
    return run, saes, {name: settings.run.hook for name, settings in runs.items()}
