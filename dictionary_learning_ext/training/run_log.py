"""What one SAE logs: metrics.jsonl, and wandb if it is asked for."""

import json
import logging
import math
import os
from pathlib import Path
from typing import Any

from ..config.run import TrainConfig
from ..errors import CheckpointError, ConfigError
from ..run_folder.names import CONFIG, HISTORY, METRICS, WANDB, WEIGHTS
from ..run_folder.reading import read_history, read_metrics_if_any
from ..run_folder.resume_points import ResumePoint, note_logged
from ..run_folder.writing import remove, sync, writing
from .wandb_log import WandbLog

logger = logging.getLogger(__name__)


class RunLog:
    """The logs of an SAE.

    Arguments:
        folder: its run folder.
        config: its settings.
        norm_factor: what raw activations are divided by.
    """

    def __init__(self, folder: Path, config: TrainConfig, norm_factor: float):
        self.folder, self.config, self.norm_factor = folder, config, norm_factor
        self._history = folder / HISTORY
        self._wandb: WandbLog | None = None
        self._former_id: str | None = None  # the resume point's, for when wandb starts again

    def open_wandb(self, group: str, id: str | None = None, logged: int = -1) -> None:
        """Start a run in wandb, or resume `id`, if it is asked for; see `WandbLog`.

        Raises: ConfigError if wandb can't start.
        """
        if self.config.run.wandb != "disabled":
            settings = self.config.to_dict() | {"norm_factor": self.norm_factor}
            self._wandb = _opened(self.folder, self.config, settings, group, id, logged)

    def clear_former(self) -> None:
        """Delete wandb's files of a run that is overwritten, so that `wandb sync` finds this one alone."""
        own = self._wandb and self._wandb.id
        for former in (self.folder / WANDB).glob("*run-*"):
            if not former.name.endswith(f"-{own}"):
                remove(former)

    def require_up_to(self, point: ResumePoint) -> None:
        """Raise a CheckpointError if metrics.jsonl has less than when `point` was written."""
        length = point.run["metrics_bytes"]
        if (self._history.stat().st_size if self._history.exists() else 0) < length:
            raise CheckpointError(
                f"{self._history}: shorter than when the resume point of step {point.step} was "
                f"written ({length} bytes); put the original back"
            )

    def resume(self, point: ResumePoint, group: str) -> None:
        """Cut off what was logged after `point`, and resume the run in wandb."""
        with writing(self._history):
            lines = self._history.read_bytes().splitlines() if self._history.exists() else []
            # Earlier processes may have handed wandb more than the point has.
            logged = note_logged(self.folder, max(map(_step_of, lines), default=-1))
            with self._history.open("ab") as file:
                file.truncate(point.run["metrics_bytes"])
        self._former_id = point.run["wandb_id"]
        try:
            self.open_wandb(group, self._former_id, logged)
        except ConfigError as error:  # e.g. without a network
            logger.warning("%s: continues without wandb: %s", self.folder, error)
        if self._wandb is not None:  # it may miss what an earlier process could not log
            _replay(self._wandb, self.folder)

    def state(self) -> dict[str, Any]:
        """What a resume point needs of the logs, which are on the disk once this returns."""
        with writing(self._history):
            self._history.touch()
            sync(self._history)
            length = self._history.stat().st_size
        wandb_id = self._former_id if self._wandb is None else self._wandb.id
        return {"metrics_bytes": length, "wandb_id": wandb_id}

    def log(self, metrics: dict[str, float]) -> None:
        """Append a line to metrics.jsonl, and log the same in wandb.

        What is not finite, as the FVE of activations without variance, is null in the file.
        """
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        with writing(self._history), self._history.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite, allow_nan=False) + "\n")
        if self._wandb is not None:
            self._wandb.log(metrics)

    def summarize(self, metrics: dict[str, Any]) -> None:
        """Put the final evaluation into wandb's summary."""
        if self._wandb is not None:
            self._wandb.summarize(metrics)

    def close(self, code: int) -> None:
        """Close the run in wandb. 0 is success: the SAE is then uploaded if that is asked for."""
        if self._wandb is not None:
            if self.config.run.wandb_artifacts and code == 0:
                files = [self.folder / name for name in (WEIGHTS, CONFIG, METRICS)]
                self._wandb.upload([file for file in files if file.is_file()])
            self._wandb.close(exit_code=code)


def report_finished(folder: Path, config: TrainConfig) -> None:
    """Log the results of a finished run again, for a sweep's agent that was started again."""
    if "WANDB_SWEEP_ID" not in os.environ or config.run.wandb == "disabled":
        return
    log = _opened(folder, config, config.to_dict(), group="")
    _replay(log, folder)
    if metrics := read_metrics_if_any(folder):
        log.summarize(metrics)
    log.close(0)


def _opened(
    folder: Path,
    config: TrainConfig,
    settings: dict[str, Any],
    group: str,
    id: str | None = None,
    logged: int = -1,
) -> WandbLog:
    assert config.run.wandb != "disabled"
    return WandbLog(
        folder,
        mode=config.run.wandb,
        project=config.run.wandb_project,
        group=group,
        settings=settings,
        tags=config.tags,
        id=id,
        logged=logged,
    )


def _replay(log: WandbLog, folder: Path) -> None:
    """Log again what metrics.jsonl has."""
    for metrics in read_history(folder):
        log.log(metrics)


def _step_of(line: bytes) -> int:
    """The step of a line of metrics.jsonl; -1 for one that was broken off."""
    try:
        return int(json.loads(line)["step"])
    except ValueError:
        return -1
