"""Where a run resumes: its newest resume points, checked against what the run is now."""

import logging
from pathlib import Path
from typing import Any

import torch as t

from ..config.run import TrainConfig, require_same
from ..errors import ConfigError, LanguageModelError, in_shell
from ..run_folder.reading import without_deleted
from ..run_folder.resume_points import ResumePoint, newest_points
from ..trainers.base import Trainer
from .processes import Processes

logger = logging.getLogger(__name__)


def checked_points(
    configs: dict[str, TrainConfig],
    folders: dict[str, Path],
    inputs: dict[str, Any],
    processes: Processes,
) -> dict[Path, ResumePoint]:
    """The newest resume points, checked against what the run is now; empty if there are none yet.

    Raises a UserError.
    """
    points, problems = newest_points(folders.values())
    for problem in problems:
        logger.warning("%s: skipped", problem)
    if not points:
        where = next(iter(configs.values())).run.save_dir
        logger.info("%s: no resume point yet; starting from scratch", where)
        return {}
    for name, config in configs.items():
        folder = folders[name]
        point = points[folder]
        require_same(without_deleted(point.run["settings"]), config.to_dict(), str(folder))
        _require_as_many(point, processes, folder)
        for part, what in (("language_model", "weights"), ("tokenizer", "tokenizer or config")):
            if point.run[part] != inputs[part]:
                raise LanguageModelError(
                    f"{folder}: the language model {config.run.model!r} has changed since the run was "
                    f"interrupted: the SHA-256 of its {what} was {point.run[part][:12]}, not "
                    f"{inputs[part][:12]}; put the original back"
                )
        if point.run["versions"] != inputs["versions"]:
            logger.warning(
                "%s: started with %s, resumes with %s: the result may not be bit-identical",
                folder,
                point.run["versions"],
                inputs["versions"],
            )
    step = next(iter(points.values())).step
    logger.info("resuming from step %d of %s", step, ", ".join(map(str, folders.values())))
    return points


def _require_as_many(point: ResumePoint, processes: Processes, folder: Path) -> None:
    """Refuse another number of processes: each has its place in the text, and its own noise."""
    was = len(point.run.get("ranks", [None]))
    if was != processes.count:
        command = Processes(count=was, local_count=was // point.run.get("machines", 1)).command
        raise ConfigError(
            f"{folder}: the run was started with {was} process{'es' if was > 1 else ''}, not "
            f"{processes.count}; continue with `{command} train --resume {in_shell(folder)}`"
        )


def state_for_resume(trainer: Trainer, source: dict[str, Any]) -> dict[str, Any]:
    """What each process has of its own: its place in the text, and its noise. Fit for JSON."""
    generators = {
        name: value.get_state().numpy().tobytes().hex()
        for name, value in vars(trainer.state()).items()
        if isinstance(value, t.Generator)
    }
    return {"buffer": source, "generators": generators}


def shared_state(of_ranks: list[dict[str, Any]], processes: Processes) -> dict[str, Any]:
    """What a resume point holds of every process's `state_for_resume`, and of their number."""
    one_process = {"buffer": of_ranks[0]["buffer"]}
    if not processes.are_several:
        return one_process
    return one_process | {"ranks": of_ranks, "machines": processes.machines}


def state_of_rank(point: ResumePoint, rank: int) -> dict[str, Any]:
    """The `state_for_resume` of a process. Of one process alone, the trainer has the generators."""
    return point.run["ranks"][rank] if "ranks" in point.run else {"buffer": point.run["buffer"]}


def restore_generators(trainer: Trainer, point: ResumePoint, rank: int) -> None:
    """Put a process's noise where a point has it."""
    for name, state in state_of_rank(point, rank).get("generators", {}).items():
        state = t.frombuffer(bytearray.fromhex(state), dtype=t.uint8)
        getattr(trainer.state(), name).set_state(state)
