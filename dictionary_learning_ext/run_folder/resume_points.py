"""Resume points: all that a run needs to resume, bit-identical to a run that was not stopped.

    FOLDER/resume/step_<N>/
        tensors.safetensors    weights, optimiser, counters, generators
        state.json             everything else
        complete.json          the hashes of both, written last: a point without it doesn't count

A point is written to a folder of another name, which is then renamed. The last two are kept.
"""

import contextlib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch as t
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..errors import CheckpointError
from .files import (
    RESUME,
    RESUME_COMPLETE,
    RESUME_LOGGED,
    RESUME_STATE,
    RESUME_TENSORS,
    WEIGHTS,
    remove,
    resume_point,
    sha256_of,
    sync,
    usual_mode,
    write_json,
    writing,
)
from .json_files import read_json
from .reading import steps_of

KEPT = 2
_TENSOR = "__tensor__"


class ResumePoint(NamedTuple):
    """A resume point, read and checked."""

    step: int
    """How many updates were made before it."""
    trainer: dict[str, Any]
    """For `load_trainer_state`."""
    run: dict[str, Any]
    """What the loop needs besides the trainer."""


def save_point(folder: Path, step: int, trainer: Any, run: dict[str, Any]) -> None:
    """Write a resume point, and delete all but the last two.

    Raises: CheckpointError if the disk refuses. The earlier points are kept.
    """
    resume = folder / RESUME
    tensors: dict[str, t.Tensor] = {}
    state = {"step": step, "run": run, "trainer": _without_tensors(trainer, "", tensors)}
    final = resume_point(folder, step)
    temporary = resume / f".{final.name}"
    with writing(temporary):
        for broken_off in resume.glob(".step_*"):
            remove(broken_off)
        try:
            temporary.mkdir(parents=True)
            with usual_mode(temporary / RESUME_TENSORS):
                save_file(tensors, temporary / RESUME_TENSORS)
            (temporary / RESUME_STATE).write_text(json.dumps(state), encoding="utf-8")
            hashes = {name: sha256_of(temporary / name) for name in (RESUME_TENSORS, RESUME_STATE)}
            for name in hashes:
                sync(temporary / name)
            (temporary / RESUME_COMPLETE).write_text(json.dumps(hashes), encoding="utf-8")
            sync(temporary / RESUME_COMPLETE)
            sync(temporary)
            _forget(final)  # one without its marker
            temporary.rename(final)
            sync(resume)
        except SafetensorError as error:
            raise _of_the_disk(error) from error
        finally:
            remove(temporary)
        for old in steps_of(folder)[:-KEPT]:
            _forget(resume_point(folder, old))


def note_logged(folder: Path, step: int) -> int:
    """Note that `step` was logged; return the last step that any process of this run logged.

    A damaged note counts as none: steps that only it knew of are then logged to wandb twice.
    """
    path = folder / RESUME / RESUME_LOGGED
    with contextlib.suppress(FileNotFoundError, CheckpointError):
        step = max(step, read_json(path, int))
    write_json(path, step)
    return step


def forget_after(folder: Path, step: int) -> None:
    """Delete the points after `step`. A run that resumes there writes them again."""
    for later in (folder / RESUME).glob("step_*"):
        if later.name > resume_point(folder, step).name:
            _forget(later)


def load_point(folder: Path, step: int) -> ResumePoint:
    """Read a point. Raises CheckpointError if a file of it is missing or changed."""
    path = resume_point(folder, step)
    try:
        hashes = read_json(path / RESUME_COMPLETE, dict[str, str])
        for name in (RESUME_TENSORS, RESUME_STATE):
            if sha256_of(path / name) != hashes[name]:
                raise CheckpointError(f"{path / name}: changed since it was written")
        state = json.loads((path / RESUME_STATE).read_text(encoding="utf-8"))
        trainer = _with_tensors(state["trainer"], load_file(path / RESUME_TENSORS))
        return ResumePoint(step, trainer, state["run"])
    except (OSError, KeyError) as error:
        raise CheckpointError(
            f"{path}: incomplete resume point ({type(error).__name__}: {error})"
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


def _forget(path: Path) -> None:
    """Delete a point, its marker first, so that what is left of it never counts."""
    with contextlib.suppress(NotADirectoryError):  # a file of a point's name
        (path / RESUME_COMPLETE).unlink(missing_ok=True)
    remove(path)


def _of_the_disk(error: SafetensorError) -> OSError:
    """The error of the disk that safetensors only quotes: (os error 28), or Os { code: 28, …."""
    code = re.search(r"(?:os error|code:) (\d+)", str(error))
    return OSError(int(code[1]), os.strerror(int(code[1]))) if code else OSError(str(error))


def _without_tensors(value: Any, name: str, tensors: dict[str, t.Tensor]) -> Any:
    """`value` with each tensor moved to `tensors` and replaced by its name there."""
    if isinstance(value, t.Tensor):
        # A copy: safetensors takes neither shared memory nor other strides.
        tensors[name] = value.detach().cpu().clone(memory_format=t.contiguous_format)
        return {_TENSOR: name}
    if isinstance(value, dict):
        return {
            k: _without_tensors(v, f"{name}.{k}" if name else k, tensors) for k, v in value.items()
        }
    if isinstance(value, list | tuple):
        return [_without_tensors(v, f"{name}.{i}", tensors) for i, v in enumerate(value)]
    return value


def _with_tensors(value: Any, tensors: dict[str, t.Tensor]) -> Any:
    """The inverse of `_without_tensors`."""
    if isinstance(value, dict):
        if value.keys() == {_TENSOR}:
            return tensors[value[_TENSOR]]
        return {k: _with_tensors(v, tensors) for k, v in value.items()}
    if isinstance(value, list):
        return [_with_tensors(v, tensors) for v in value]
    return value
