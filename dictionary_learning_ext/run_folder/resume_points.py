"""Resume points: a run that resumes from one is bit-identical to a run that was not stopped.

    FOLDER/resume/step_<N>.pt        weights, optimiser, counters, generators, and the position in the text
    FOLDER/resume/step_<N>.parts/    of a split SAE: each part's weights, optimiser and counters

A point is written under a temporary name and then renamed. The last two points are kept.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import CheckpointError, in_shell
from .files import REPAIR, RESUME, WEIGHTS, divided, remove, resume_point, sync, writing
from .reading import steps_of
from .tensors import read_tensors, save_tensors

KEPT = 2


class Scale(NamedTuple):
    """The size of the activations at a hook point, or at a pair of them."""

    norm_factor: float
    """the number that raw activations are divided by in training"""
    energy: float
    """E||x||^2 in training"""
    input_factor: float | None = None
    """the same number for what a transcoder reads; the others are of what it reconstructs"""

    @property
    def factors(self) -> list[float]:
        """What each side of raw activations is divided by in training."""
        return [each for each in (self.input_factor, self.norm_factor) if each is not None]


@dataclass(frozen=True)
class ResumePoint:
    """Everything that the run of one SAE needs to resume."""

    step: int
    """The number of updates so far."""
    settings: dict[str, Any]
    """The settings of the run and of its SAE, see `TrainConfig.to_dict`."""
    trainer: dict[str, Any]
    """The trainer's `state_dict`. Of a split SAE, only what its parts share."""
    scale: Scale
    batches: dict[str, Any]
    """The position in the training data, a `BatchSource.state_dict`, from which the buffer is filled again."""
    hashes: dict[str, str]
    """Hashes of the language model and its tokenizer, see `Inputs.hashes`."""
    versions: dict[str, Any]
    """The packages' versions and the number of threads, on which the last digits of a result depend."""
    metrics_bytes: int
    """The length of metrics.jsonl in bytes. A resumed run truncates the file to it."""
    wandb_id: str | None
    """The id of wandb's run, if there is one."""
    parts: dict[str, int] | None = None
    """The size in bytes of each file that holds a part of a split SAE, by name."""


def save_point(folder: Path, point: ResumePoint) -> None:
    """Write a resume point, and delete all but the last two.

    Raises: CheckpointError if the point can't be written. The earlier points are then kept.
    """
    path = resume_point(folder, point.step)
    save_tensors(path, vars(point) | {"scale": tuple(point.scale)})
    with writing(path):
        sync(path.parent)
        for old in steps_of(folder)[:-KEPT]:
            _remove(folder, old)


def sizes(folder: Path) -> dict[str, int]:
    """The size in bytes of each file in a folder, by name."""
    return {path.name: path.stat().st_size for path in folder.glob("*")}


def _remove(folder: Path, step: int) -> None:
    remove(resume_point(folder, step))
    remove(divided(folder, step))


def forget_after(folder: Path, step: int) -> None:
    """Delete the points after `step`, and the parts of an unfinished one. A run that resumes there writes them again."""
    for later in steps_of(folder):
        if later > step:
            _remove(folder, later)
    for parts in (folder / RESUME).glob("*.parts"):
        if not parts.with_suffix(".pt").exists():
            remove(parts)


def load_point(folder: Path, step: int) -> ResumePoint:
    """Read a resume point, on the CPU. Raises CheckpointError if its files are missing or damaged."""
    path = resume_point(folder, step)
    state = read_tensors(path)
    if state.keys() != {each.name for each in fields(ResumePoint)}:
        raise CheckpointError(
            f"{path}: written by another version of this package, so its run can't be continued",
            instead="measure what is trained with `vsae eval FOLDER`, or train again with overwrite",
        )
    point = ResumePoint(**state)
    point = replace(point, scale=Scale(*point.scale))
    parts = divided(folder, step)
    if point.parts is not None and sizes(parts) != point.parts:
        raise CheckpointError(f"{parts}: incomplete", instead=REPAIR)
    return point


class NewestPoints(NamedTuple):
    """The resume points of a run's folders, all of one step."""

    step: int | None
    """None if there are no points yet, so the run starts from scratch."""
    points: dict[Path, ResumePoint]
    """The points by folder."""
    problems: list[str]
    """Why newer points can't be used."""


def newest_points(
    folders: Iterable[Path],
    own: Collection[Path] | None = None,
    are_all: Callable[[bool], bool] = bool,
) -> NewestPoints:
    """Load the newest points of a step that all folders have.

    The folders of a run are written one after the other. A run that was killed in between resumes from the previous
    points. If it was killed before every folder had its first point, it starts from scratch and writes its
    checkpoints again. Finished weights are never overwritten.

    Arguments:
        own: the folders of this process, whose points are loaded. Default: all.
        are_all: returns whether its argument is true in all processes, each of which must call it.

    Raises: CheckpointError if there are points and none can be used.
    """
    steps = {folder: steps_of(folder) for folder in folders}
    own = list(steps if own is None else own)
    problems: list[str] = []
    for step in sorted(set.intersection(*map(set, steps.values())), reverse=True):
        points = {}
        for folder in own:
            try:
                points[folder] = load_point(folder, step)
            except CheckpointError as error:
                problems.append(error.problem)
        if are_all(len(points) == len(own)):
            return NewestPoints(step, points, problems)
    counts = [len(of_folder) for of_folder in steps.values()]
    has_weights = any((folder / WEIGHTS).exists() for folder in steps)
    if min(counts) == 0 and max(counts) <= 1 and not has_weights:
        return NewestPoints(None, {}, [])
    listed = (f"{f} has {', '.join(map(str, each)) or 'none'}" for f, each in steps.items())
    where = in_shell(next(iter(steps)))
    again = f"`vsae train --config {where} --save-dir {where} --overwrite`"
    raise CheckpointError(
        "no step to resume from: expected a resume point of one step in every folder "
        f"({'; '.join(problems) or '; '.join(listed)})",
        instead="what is trained is kept: measure it with `vsae eval FOLDER`"
        if has_weights
        else f"train it from scratch with {again}",
    )
