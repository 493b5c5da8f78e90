"""Resume points: all that a run needs to go on as if it had not been stopped, to the bit.

    FOLDER/resume/step_<N>/
        tensors.safetensors    weights, optimiser, counters, generators
        state.json             everything else
        complete.json          the hashes of both, written last: without it there is no point

A point is written in a folder of another name and then moved to its place. The last two are kept.
"""

import hashlib
import json
import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch as t
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..errors import CheckpointError
from .names import (
    CHECKPOINTS,
    RESUME,
    RESUME_COMPLETE,
    RESUME_LOGGED,
    RESUME_STATE,
    RESUME_TENSORS,
    WEIGHTS,
    resume_point,
)
from .writing import remove, sync, write_json, writing

logger = logging.getLogger(__name__)

KEPT = 2
_TENSOR = "__tensor__"


class ResumePoint(NamedTuple):
    """A resume point that was read and found whole."""

    step: int
    """updates that were made before it"""
    trainer: dict[str, Any]
    """for `load_trainer_state`"""
    run: dict[str, Any]
    """what the loop needs beside the trainer"""


def save_point(folder: Path, step: int, trainer: Any, run: dict[str, Any]) -> None:
    """Write a resume point, and delete all but the last two.

    Raises: CheckpointError if the disk refuses; the former points are still there.
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
            save_file(tensors, temporary / RESUME_TENSORS)
            (temporary / RESUME_STATE).write_text(json.dumps(state), encoding="utf-8")
            hashes = {name: _hash(temporary / name) for name in (RESUME_TENSORS, RESUME_STATE)}
            for name in hashes:
                sync(temporary / name)
            (temporary / RESUME_COMPLETE).write_text(json.dumps(hashes), encoding="utf-8")
            sync(temporary / RESUME_COMPLETE)
            sync(temporary)
            _forget(final)  # one without its marker
            temporary.rename(final)
            sync(resume)
        except SafetensorError as error:
            raise OSError(str(error)) from error
        finally:
            remove(temporary)
        for old in steps_of(folder)[:-KEPT]:
            _forget(resume_point(folder, old))


def steps_of(folder: Path) -> list[int]:
    """The steps of a run folder's complete points, rising."""
    matches = (re.fullmatch(r"step_(\d+)", path.name) for path in (folder / RESUME).glob("*"))
    steps = sorted(int(match[1]) for match in matches if match)
    return [step for step in steps if (resume_point(folder, step) / RESUME_COMPLETE).is_file()]


def note_logged(folder: Path, step: int) -> int:
    """The last step that any process of this run logged, `step` or a later one noted before."""
    path = folder / RESUME / RESUME_LOGGED
    if path.is_file():
        step = max(step, json.loads(path.read_text(encoding="utf-8")))
    write_json(path, step)
    return step


def forget_after(folder: Path, step: int) -> None:
    """Delete the points after `step`: a run that goes on from there makes them anew."""
    for later in (folder / RESUME).glob("step_*"):
        if later.name > resume_point(folder, step).name:
            _forget(later)


def load_point(folder: Path, step: int) -> ResumePoint:
    """Read a point. Raises CheckpointError if a file of it is missing or changed."""
    path = resume_point(folder, step)
    try:
        hashes = json.loads((path / RESUME_COMPLETE).read_text(encoding="utf-8"))
        for name in (RESUME_TENSORS, RESUME_STATE):
            if _hash(path / name) != hashes[name]:
                raise CheckpointError(f"{path / name}: changed since it was written")
        state = json.loads((path / RESUME_STATE).read_text(encoding="utf-8"))
        trainer = _with_tensors(state["trainer"], load_file(path / RESUME_TENSORS))
        return ResumePoint(state["step"], trainer, state["run"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{path}: not a whole resume point ({type(error).__name__}: {error})"
        ) from error


def newest_points(folders: Iterable[Path]) -> tuple[dict[Path, ResumePoint], list[str]]:
    """The newest points of one step that are whole in all folders, and what was wrong with newer.

    Folders of one run are written one after the other: where it ended in between, the last step
    that all hold is the one before. Where it ended before all had their first, there is none, and
    the run is to begin anew.

    Raises: CheckpointError if there were points and none can be used.
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
    trained = [
        folder / name
        for folder in there
        for name in (WEIGHTS, CHECKPOINTS)
        if (folder / name).exists()
    ]
    if had_at_most_one and not problems and not trained:
        return {}, []
    found = "; ".join(problems) or ", ".join(f"{f} has {steps}" for f, steps in there.items())
    kept = f"; {trained[0]} is kept" if trained else ""
    raise CheckpointError(
        f"no resume point of one step to go on from ({found}{kept}): resume folders one by one, "
        "measure what is trained with `vsae eval FOLDER`, or start another run with --config FOLDER"
    )


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _forget(path: Path) -> None:
    """Delete a point, its marker first, so that no half of it counts."""
    (path / RESUME_COMPLETE).unlink(missing_ok=True)
    remove(path)


def _without_tensors(value: Any, name: str, tensors: dict[str, t.Tensor]) -> Any:
    """`value` with each tensor moved to `tensors`, under a name that stands in its place."""
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
    """What `_without_tensors` was given."""
    if isinstance(value, dict):
        if value.keys() == {_TENSOR}:
            return tensors[value[_TENSOR]]
        return {k: _with_tensors(v, tensors) for k, v in value.items()}
    if isinstance(value, list):
        return [_with_tensors(v, tensors) for v in value]
    return value
