"""The logs of an SAE in training: metrics.jsonl, and wandb if asked for.

Errors of wandb are logged as warnings and never stop training.
"""

import contextlib
import json
import logging
import math
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..config.run import TrainConfig
from ..errors import CheckpointError, ConfigError, first_line
from ..run_folder.files import (
    CONFIG,
    EVALUATION,
    HISTORY,
    NOT_MEASURED,
    WANDB,
    WEIGHTS,
    remove,
    sync,
    writing,
)
from ..run_folder.reading import read_history
from ..run_folder.resume_points import ResumePoint
from ..run_folder.sae_folder import find_sae

logger = logging.getLogger(__name__)


class RunLog:
    """The log of an SAE, in its run folder and in wandb."""

    def __init__(self, folder: Path, config: TrainConfig, norm_factor: float):
        self.folder, self.config, self.norm_factor = folder, config, norm_factor
        self._history = folder / HISTORY
        self._wandb: WandbLog | None = None
        self._former_id: str | None = None  # the resume point's, for when wandb starts again

    def open_wandb(self, group: str | None, id: str | None = None) -> None:
        """Start or resume the run in wandb, if the settings ask for wandb.

        Arguments:
            group: see `WandbLog` (default: the name of the folder that holds the run folder).
            id: see `WandbLog`.

        Raises: ConfigError if wandb can't start.
        """
        if self.config.run.wandb != "disabled":
            settings = self.config.to_dict() | {"norm_factor": self.norm_factor}
            group = group or self.folder.resolve().parent.name
            self._wandb = WandbLog(self.folder, self.config, settings, group, id)

    def clear_former(self) -> None:
        """Delete wandb's files of an overwritten run, so that `wandb sync` finds only the new one."""
        own = self._wandb and self._wandb.id
        for former in (self.folder / WANDB).glob("*run-*"):
            if not former.name.endswith(f"-{own}"):
                remove(former)

    def resume(self, point: ResumePoint, group: str | None) -> None:
        """Cut off the lines that were logged after a resume point, and resume the run in wandb."""
        with writing(self._history):
            content = self._history.read_bytes() if self._history.exists() else b""
            with self._history.open("ab") as file:  # which may have been deleted, or shortened
                file.truncate(content.rfind(b"\n", 0, point.metrics_bytes) + 1)
        self._former_id = point.wandb_id
        try:
            self.open_wandb(group, self._former_id)
        except ConfigError as error:  # e.g. without a network
            logger.warning("%s: continues without wandb: %s", self.folder, error)
        if self._wandb is not None:  # offline, each process's file has the whole run
            _replay(self._wandb, self.folder)

    def state(self) -> dict[str, Any]:
        """The state of the log for a resume point. Waits until the log is on the disk."""
        with writing(self._history):
            self._history.touch()
            sync(self._history)
            length = self._history.stat().st_size
        wandb_id = self._former_id if self._wandb is None else self._wandb.id
        return {"metrics_bytes": length, "wandb_id": wandb_id}

    def log(self, metrics: dict[str, float]) -> None:
        """Append a line to metrics.jsonl, and log the same metrics in wandb.

        A value that isn't finite, e.g. the FVE of activations without variance, is null in the file.
        """
        line: dict[str, Any] = {n: v if math.isfinite(v) else None for n, v in metrics.items()}
        if missing := [name for name, value in line.items() if value is None]:
            why = "not finite in this batch, e.g. because its activations have no variance"
            line[NOT_MEASURED] = dict.fromkeys(missing, why)
        with writing(self._history), self._history.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")
        if self._wandb is not None:
            self._wandb.log(metrics)

    def summarize(self, metrics: dict[str, Any]) -> None:
        """Add the final evaluation to wandb's summary."""
        if self._wandb is not None:
            self._wandb.summarize(metrics)

    def close(self, code: int) -> None:
        """Close the run in wandb. After success, upload the SAE if the settings ask for it.

        Arguments:
            code: the exit code, 0 for success.
        """
        if self._wandb is not None:
            if self.config.run.wandb_artifacts and code == 0:
                files = [self.folder / name for name in (WEIGHTS, CONFIG, EVALUATION)]
                self._wandb.upload([file for file in files if file.is_file()])
            self._wandb.close(exit_code=code)


def open_all(logs: Sequence[RunLog], group: str | None) -> None:
    """Start all logs in wandb, or none of them if one can't start. Raises what `RunLog.open_wandb` does."""
    try:
        for log in logs:
            log.open_wandb(group)
    except ConfigError:
        for log in logs:
            log.close(1)
        raise


def report_finished(folder: Path, config: TrainConfig) -> None:
    """Log a finished run to wandb again, if a sweep's agent has started it again."""
    if "WANDB_SWEEP_ID" not in os.environ or config.run.wandb == "disabled":
        return
    log = WandbLog(folder, config, config.to_dict(), group="")
    _replay(log, folder)
    if metrics := find_sae(folder).metrics:
        log.summarize(metrics)
    log.close(0)


def _replay(log: "WandbLog", folder: Path) -> None:
    """Log the lines of metrics.jsonl to wandb."""
    try:
        history = read_history(folder)
    except CheckpointError as error:
        logger.warning("%s; what it holds is not logged to wandb again", error)
        return
    for metrics in history:
        log.log(metrics)


# --- wandb


class WandbLog:
    """A run in wandb.

    Arguments:
        folder: the run folder, whose name the run gets. wandb's files are written there.
        settings: wandb's config.
        group: the name by which wandb groups the runs of one training.
        id: the run to resume; None: a new run. A sweep's agent sets its own.

    Raises: ConfigError if wandb can't start.
    """

    def __init__(
        self,
        folder: Path,
        config: TrainConfig,
        settings: dict[str, Any],
        group: str,
        id: str | None = None,
    ):
        import wandb

        self._is_agents = "WANDB_SWEEP_ID" in os.environ
        agents = os.environ.get("WANDB_RUN_ID") if self._is_agents else None
        mode: Any = config.run.wandb
        if mode == "online":
            mode = os.environ.get("WANDB_MODE", mode)
        self._name = folder.name
        try:
            self._run: Any = wandb.init(
                project=config.run.wandb_project,
                name=folder.name,
                group=os.environ.get("WANDB_SWEEP_ID", group),
                config=settings,
                mode=mode,
                dir=folder,
                id=agents or id,
                resume="allow" if mode == "online" else None,
                reinit="create_new",
                settings=wandb.Settings(quiet=True),  # else each run of a sweep fills a screen
            )
        except Exception as error:  # of many kinds: usage, login, network, its own process
            raise ConfigError(
                f"wandb can't start ({first_line(error)})",
                name="wandb",
                value=mode,
                instead="log in with `wandb login`, or use wandb='offline'",
            ) from error
        self.id: str = self._run.id
        # The server knows the last step of a resumed run. Offline, there is no server to ask.
        self._logged: int = self._run.summary.get("step", -1)
        self._try(lambda run: run.define_metric("*", step_metric="step"))

    def log(self, metrics: Mapping[str, float | None]) -> None:
        """Log the finite metrics, unless wandb's server has this step already."""
        known = {name: v for name, v in metrics.items() if v is not None and math.isfinite(v)}
        if known["step"] > self._logged:
            self._try(lambda run: run.log(known))

    def summarize(self, metrics: dict[str, Any]) -> None:
        """Add the metrics that are numbers to the run's summary, as eval/<name>."""
        known = {f"eval/{n}": v for n, v in metrics.items() if isinstance(v, int | float)}
        self._try(lambda run: run.summary.update(known))

    def upload(self, files: Sequence[Path]) -> None:
        """Upload files as an artifact of type "model", named after the run."""
        import wandb

        def upload(run: Any) -> None:
            artifact = wandb.Artifact(f"{self.id}-sae", type="model")
            for file in files:
                artifact.add_file(str(file))
            run.log_artifact(artifact)

        self._try(upload)

    def close(self, exit_code: int) -> None:
        """End the run with an exit code.

        A sweep's run that SIGTERM has ended is marked as pre-empted, so that wandb gives it to an agent again.
        """
        if self._is_agents and exit_code == 128 + signal.SIGTERM:
            self._try(lambda run: run.mark_preempting())
        self._try(lambda run: run.finish(exit_code=exit_code))

    def _try(self, call: Any) -> None:
        """Call a function with wandb's run. If that fails, warn and stop logging to wandb."""
        if self._run is None:
            return
        try:
            call(self._run)
        except Exception as error:
            self._run = None
            if isinstance(error, ConnectionError):  # else wandb ends the program with a traceback
                import wandb

                with contextlib.suppress(Exception):
                    wandb.teardown()
            logger.warning(
                "%s: wandb failed (%s); training continues, and metrics.jsonl has all the metrics",
                self._name,
                first_line(error),
            )
