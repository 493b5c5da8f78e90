"""Where a run resumes: its newest resume points, checked against what the run is now."""

import logging
from pathlib import Path
from typing import Any

from ..config.run_config import TrainConfig, require_same
from ..errors import LanguageModelError
from ..run_folder.resume_points import ResumePoint, newest_points

logger = logging.getLogger(__name__)


def checked_points(
    configs: dict[str, TrainConfig],
    folders: dict[str, Path],
    inputs: dict[str, Any],
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
        require_same(point.run["settings"], config.to_dict(), str(folder))
        for part, what in (("language_model", "weights"), ("tokenizer", "tokenizer or config")):
            if point.run[part] != inputs[part]:
                raise LanguageModelError(
                    f"{folder}: the language model {config.run.model!r} has changed since the run was "
                    f"interrupted: the SHA-256 of its {what} was {point.run[part][:12]}, not "
                    f"{inputs[part][:12]}; put the original back, or start "
                    "another run with --config"
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
