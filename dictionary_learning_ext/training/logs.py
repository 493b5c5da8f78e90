"""The logs of an SAE in training: metrics.jsonl, and wandb if asked for.

Errors of wandb are logged as warnings and never stop training.
"""

import contextlib
import json
import logging
import math
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

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
    """The log of an SAE: metrics.jsonl in its run folder, and a run in wandb if the settings ask for one.

    Attributes:
        wandb_id: the run in wandb, also if it can't be reached now; None: there is none.
    """

    def __init__(self, folder: Path, config: TrainConfig, norm_factor: float):
        self.folder, self.config, self.norm_factor = folder, config, norm_factor
        self.wandb_id: str | None = None
        self._history = folder / HISTORY
        self._wandb: Any = None  # wandb's run, unless it is not asked for or has failed
        self._told = -1
        """The last step that wandb knows."""

    def open_wandb(self, group: str | None, id: str | None = None) -> None:
        """Start or resume the run in wandb, if the settings ask for wandb. It has the run folder's name.

        Arguments:
            group: the name by which wandb groups the runs of one training (default: that of the folder that holds the run
                folder).
            id: the run to resume; None: a new run. A sweep's agent sets its own.

        Raises: ConfigError if wandb can't start.
        """
        settings, mode = self.config.run, self.config.run.wandb
        if mode == "disabled":
            return
        import wandb

        if mode == "online":
            mode = os.environ.get("WANDB_MODE", mode)
        group = group or self.folder.resolve().parent.name
        agents = os.environ.get("WANDB_RUN_ID") if "WANDB_SWEEP_ID" in os.environ else None
        try:
            self._wandb = wandb.init(
                project=settings.wandb_project,
                name=self.folder.name,
                group=os.environ.get("WANDB_SWEEP_ID", group),
                config=self.config.to_dict() | {"norm_factor": self.norm_factor},
                mode=cast(Any, mode),
                dir=self.folder,
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
        self.wandb_id = self._wandb.id
        # The server knows the last step of a resumed run. Offline, there is no server to ask.
        self._told = self._wandb.summary.get("step", -1)
        self._try(lambda run: run.define_metric("*", step_metric="step"))

    def clear_former(self) -> None:
        """Delete wandb's files of an overwritten run, so that `wandb sync` finds only the new one."""
        for former in (self.folder / WANDB).glob("*run-*"):
            if not former.name.endswith(f"-{self.wandb_id}"):
                remove(former)

    def resume(self, point: ResumePoint, group: str | None) -> None:
        """Cut off the lines that were logged after a resume point, and resume the run in wandb."""
        with writing(self._history):
            content = self._history.read_bytes() if self._history.exists() else b""
            with self._history.open("ab") as file:  # which may have been deleted, or shortened
                file.truncate(content.rfind(b"\n", 0, point.metrics_bytes) + 1)
        self.wandb_id = point.wandb_id
        try:
            self.open_wandb(group, point.wandb_id)
        except ConfigError as error:  # e.g. without a network
            logger.warning("%s: continues without wandb: %s", self.folder, error)
        self.tell_again()  # offline, each process's file has the whole run

    def state(self) -> dict[str, Any]:
        """The state of the log for a resume point. Waits until the log is on the disk."""
        with writing(self._history):
            self._history.touch()
            sync(self._history)
            length = self._history.stat().st_size
        return {"metrics_bytes": length, "wandb_id": self.wandb_id}

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
        self._tell(metrics)

    def _tell(self, metrics: Mapping[str, float | None]) -> None:
        """Log the finite metrics in wandb, unless its server has this step already."""
        known = {name: v for name, v in metrics.items() if v is not None and math.isfinite(v)}
        if known["step"] > self._told:
            self._try(lambda run: run.log(known))

    def tell_again(self) -> None:
        """Log the lines of metrics.jsonl in wandb."""
        if self._wandb is None:
            return
        try:
            for metrics in read_history(self.folder):
                self._tell(metrics)
        except CheckpointError as error:
            logger.warning("%s; what it holds is not logged to wandb again", error)

    def summarize(self, metrics: dict[str, Any]) -> None:
        """Add the numbers of the final evaluation to wandb's summary, as eval/<name>."""
        known = {f"eval/{n}": v for n, v in metrics.items() if isinstance(v, int | float)}
        self._try(lambda run: run.summary.update(known))

    def close(self, code: int) -> None:
        """Close the run in wandb. After success, upload the SAE if the settings ask for it.

        A sweep's run that SIGTERM has ended is marked as pre-empted, so that wandb gives it to an agent again.

        Arguments:
            code: the exit code, 0 for success.
        """
        if self.config.run.wandb_artifacts and code == 0:
            self._try(self._upload)
        if "WANDB_SWEEP_ID" in os.environ and code == 128 + signal.SIGTERM:
            self._try(lambda run: run.mark_preempting())
        self._try(lambda run: run.finish(exit_code=code))

    def _upload(self, run: Any) -> None:
        """Upload the SAE as an artifact of type "model", named after the run."""
        import wandb

        artifact = wandb.Artifact(f"{self.wandb_id}-sae", type="model")
        for file in (self.folder / name for name in (WEIGHTS, CONFIG, EVALUATION)):
            if file.is_file():
                artifact.add_file(str(file))
        run.log_artifact(artifact)

    def _try(self, call: Callable[[Any], object]) -> None:
        """Call a function with wandb's run, if there is one. If that fails, warn and stop logging to wandb."""
        if self._wandb is None:
            return
        try:
            call(self._wandb)
        except Exception as error:
            self._wandb = None
            if isinstance(error, ConnectionError):  # else wandb ends the program with a traceback
                import wandb

                with contextlib.suppress(Exception):
                    wandb.teardown()
            logger.warning(
                "%s: wandb failed (%s); training continues, and metrics.jsonl has all the metrics",
                self.folder.name,
                first_line(error),
            )


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
    if "WANDB_SWEEP_ID" in os.environ:
        sae = find_sae(folder)
        log = RunLog(folder, config, sae.config["trainer"]["norm_factor"])
        log.open_wandb(None)
        log.tell_again()
        log.summarize(sae.metrics or {})
        log.close(0)
