"""Resume points: all that a run needs to end bit-identical to a run that was not stopped.

    FOLDER/resume/step_<N>.pt    weights, optimiser, counters, generators, and the place in the text
    FOLDER/resume/step_<N>.parts/    of a split SAE: what each part has of weights, optimiser and counters

A point is written to a file of another name, which is then renamed. The last two are kept.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import CheckpointError
from .files import RESUME, WEIGHTS, divided, remove, resume_point, sync, writing
from .reading import steps_of
from .tensors import read_tensors, save_tensors

KEPT = 2


@dataclass(frozen=True)
class ResumePoint:
    """All that an SAE's run needs to resume."""

    step: int
    """The number of updates made so far."""
    settings: dict[str, Any]
    """The settings of the run and of its SAE, as flags have them."""
    trainer: dict[str, Any]
    """Weights, optimiser, schedules, counters and generators, for `load_trainer_state`."""
    norm_factor: float
    """The number that raw activations are divided by in training."""
    batches: dict[str, Any]
    """The place in the training data: a `BatchSource.state_dict`."""
    hashes: dict[str, str]
    """Hashes of what the batches depend on, see `Inputs.hashes`."""
    versions: dict[str, Any]
    """Versions of the packages, and the number of threads: what decides the last digits of a result."""
    metrics_bytes: int
    """The length of metrics.jsonl in bytes, where it is cut when the run resumes."""
    wandb_id: str | None
    """wandb's run, if there is one."""
    parts: dict[str, int] | None = None
    """The size in bytes of each file that holds a part of a split SAE, by name."""


def save_point(folder: Path, point: ResumePoint) -> None:
    """Write a resume point, and delete all but the last two.

    Raises: CheckpointError if the disk refuses. The earlier points are kept.
    """
    path = resume_point(folder, point.step)
    save_tensors(path, vars(point))
    with writing(path):
        sync(path.parent)
        for old in steps_of(folder)[:-KEPT]:
            _remove(folder, old)


def sizes(folder: Path) -> dict[str, int]:
    """The files in a folder, and their bytes."""
    return {path.name: path.stat().st_size for path in folder.glob("*")}


def _remove(folder: Path, step: int) -> None:
    remove(resume_point(folder, step))
    remove(divided(folder, step))


def forget_after(folder: Path, step: int) -> None:
    """Delete the points after `step`, and what is left of one that wasn't finished. A run that resumes there writes
    them again."""
    for later in steps_of(folder):
        if later > step:
            _remove(folder, later)
    for parts in (folder / RESUME).glob("*.parts"):
        if not parts.with_suffix(".pt").exists():
            remove(parts)


def load_point(folder: Path, step: int) -> ResumePoint:
    """Read a point, on the CPU. Raises CheckpointError if its file is missing or damaged."""
    point = ResumePoint(**read_tensors(resume_point(folder, step)))
    parts = divided(folder, step)
    if point.parts is not None and sizes(parts) != point.parts:
        raise CheckpointError(f"{parts}: incomplete", instead="copy it again or train again")
    return point


class NewestPoints(NamedTuple):
    """What a run resumes from."""

    step: int | None
    """None: from scratch, as there are no points yet."""
    points: dict[Path, ResumePoint]
    """The points of that step, by their folders."""
    problems: list[str]
    """What was wrong with newer ones."""


def newest_points(
    folders: Iterable[Path],
    own: Collection[Path] | None = None,
    are_all: Callable[[bool], bool] = bool,
) -> NewestPoints:
    """The newest points that all folders have of one step.

    Folders of one run are written one after the other. A run that was killed in between resumes
    from the previous point. A run that was killed before every folder had its first point has none:
    it starts from scratch, and its checkpoints are written again. Finished weights are never
    overwritten.

    Arguments:
        own: the folders whose points are loaded: those of one of several processes (default: all).
        are_all: whether something is so in all of the processes, each of which must call it.

    Raises: CheckpointError if there are points and none can be used.
    """
    there = {folder: steps_of(folder) for folder in folders}
    problems: list[str] = []
    common = set.intersection(*map(set, there.values()))
    for step in sorted(common, reverse=True):
        points, wanted = {}, list(there if own is None else own)
        try:
            points = {folder: load_point(folder, step) for folder in wanted}
        except CheckpointError as error:
            problems.append(str(error))
        if are_all(len(points) == len(wanted)):
            return NewestPoints(step, points, problems)
    had_at_most_one = min(map(len, there.values())) == 0 and max(map(len, there.values())) <= 1
    has_weights = any((folder / WEIGHTS).exists() for folder in there)
    if had_at_most_one and not problems and not has_weights:
        return NewestPoints(None, {}, [])
    steps_there = (f"{f} has {', '.join(map(str, steps)) or 'none'}" for f, steps in there.items())
    found = "; ".join(problems) or "; ".join(steps_there)
    raise CheckpointError(
        f"no step to resume from: expected a resume point of one step in every folder ({found}); "
        "what is trained is kept: measure it with `vsae eval FOLDER`"
    )
