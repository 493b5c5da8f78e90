"""Resume points: all that a run needs to resume, bit-identical to a run that was not stopped.

    FOLDER/resume/step_<N>.pt    weights, optimiser, counters, generators, and the place in the text

A point is written to a file of another name, which is then renamed. The last two are kept.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import CheckpointError, first_line, in_shell
from .files import RESUME, WEIGHTS, remove, resume_point, sync, writing
from .reading import steps_of
from .weights import read_tensors, save_tensors

KEPT = 2


class ResumePoint(NamedTuple):
    """A resume point, read and checked."""

    step: int
    """How many updates were made before it."""
    trainer: dict[str, Any]
    """For `load_trainer_state`."""
    rest: dict[str, Any]
    """What the run needs besides the trainer."""


def save_point(folder: Path, step: int, trainer: Any, rest: dict[str, Any]) -> None:
    """Write a resume point, and delete all but the last two.

    Raises: CheckpointError if the disk refuses. The earlier points are kept.
    """
    path = resume_point(folder, step)
    save_tensors(path, {"step": step, "trainer": trainer, "run": rest})
    with writing(path):
        sync(path.parent)
        for old in steps_of(folder)[:-KEPT]:
            remove(resume_point(folder, old))


def forget_after(folder: Path, step: int) -> None:
    """Delete the points after `step`. A run that resumes there writes them again."""
    for later in steps_of(folder):
        if later > step:
            remove(resume_point(folder, later))


def load_point(folder: Path, step: int) -> ResumePoint:
    """Read a point, on the CPU. Raises CheckpointError if its file is missing or damaged."""
    path = resume_point(folder, step)
    try:
        state = read_tensors(path)
        return ResumePoint(step, state["trainer"], state["run"])
    except Exception as error:  # bytes of any content raise anything
        raise CheckpointError(
            f"{path}: incomplete or damaged resume point ({type(error).__name__}:"
            f" {first_line(error)[:200]})"
        ) from error


def newest_points(folders: Iterable[Path]) -> tuple[dict[Path, ResumePoint], list[str]]:
    """The newest points that all folders have of one step, and what was wrong with newer ones.

    Folders of one run are written one after the other. A run that was killed in between resumes
    from the previous point. A run that was killed before every folder had its first point has none:
    it starts from scratch, and its checkpoints are written again. Finished weights are never
    overwritten.

    Raises: CheckpointError if there are points and none can be used.
    """
    there = {folder: steps_of(folder) for folder in folders}
    for folder, steps in there.items():
        if not steps:
            _require_no_former(folder)
    problems: list[str] = []
    common = set.intersection(*map(set, there.values()))
    for step in sorted(common, reverse=True):
        try:
            return {folder: load_point(folder, step) for folder in there}, problems
        except CheckpointError as error:
            problems.append(str(error))
    had_at_most_one = min(map(len, there.values())) == 0 and max(map(len, there.values())) <= 1
    has_weights = any((folder / WEIGHTS).exists() for folder in there)
    if had_at_most_one and not problems and not has_weights:
        return {}, []
    steps_there = (f"{f} has {', '.join(map(str, steps)) or 'none'}" for f, steps in there.items())
    found = "; ".join(problems) or "; ".join(steps_there)
    raise CheckpointError(
        f"no step to resume from: expected a resume point of one step in every folder ({found}); "
        "what is trained is kept: measure it with `vsae eval FOLDER`"
    )


def _require_no_former(folder: Path) -> None:
    """Raise a CheckpointError if a folder's points are of version 0.2, which wrote a folder for each."""
    if any(path.is_dir() for path in (folder / RESUME).glob("step_*")):
        where = in_shell(folder)
        raise CheckpointError(
            f"{folder}: its resume points are of an earlier version, which this one can't read",
            instead="continue it with that version, or start it again with `vsae train --config "
            f"{where} --save-dir {where} --overwrite`",
        )
