"""One SAE in training: its trainer, its folder, its logs, and whether its numbers are still finite."""

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch as t

from ..config.run_config import RunConfig, TrainConfig
from ..config.sae_config import SAEConfig
from ..errors import CheckpointError, ConfigError
from ..run_folder import resume_points as resume
from ..run_folder.weights import save_weights
from ..run_folder.writing import remove, sync, write_json, writing
from ..trainers.base import Trainer
from .wandb_log import WandbLog

logger = logging.getLogger(__name__)

RUN_FILES = (
    "ae.pt",
    "config.json",
    "metrics.jsonl",
    "metrics.json",
    resume.FAILED,
    "checkpoints",
    "exports",
    "eval_results",
    ".bench_cache",
    "report.html",
    "report_files",
    resume.FOLDER,
)
"""What a run and the commands about it write; gone when another run takes its place."""


class Trainee:
    """A trainer and where its results go.

    Arguments:
        name: among the SAEs of the run.
        sae: its resolved configuration.
        trainer: ours, or upstream's in the same form.
        folder: its run folder.
        run: what it shares with the others.
        norm_factor: what raw activations are divided by.

    Attributes:
        failure: what went wrong, or None; a trainee that failed is not trained further.
    """

    def __init__(
        self,
        name: str,
        sae: SAEConfig,
        trainer: Trainer,
        folder: Path,
        run: RunConfig,
        norm_factor: float,
    ):
        self.name, self.sae, self.trainer, self.folder = name, sae, trainer, folder
        self.run, self.norm_factor = run, norm_factor
        self.failure: str | None = None
        self._wandb: WandbLog | None = None

    def start(self, config: dict[str, Any]) -> None:
        """Write config.json and clear a former run's other files."""
        write_json(self.folder / "config.json", config)
        with writing(self.folder):
            for name in RUN_FILES:
                if name != "config.json":
                    remove(self.folder / name)
            self._clear_temporaries()

    def restore(self, point: resume.Point) -> None:
        """Have the trainer where a point of this folder has it; nothing on the disk is changed."""
        resume.load_trainer_state(self.trainer.state(), point.trainer)
        self.trainer.check(point.step)
        log, length = self.folder / "metrics.jsonl", point.run["metrics_bytes"]
        if (log.stat().st_size if log.exists() else 0) < length:
            raise CheckpointError(
                f"{log}: shorter than when the resume point of step {point.step} was written "
                f"({length} bytes); put the former back or start again with --config"
            )

    def go_on(self, point: resume.Point, group: str) -> None:
        """Cut off what was logged after a point, forget later points, and go on in wandb."""
        log = self.folder / "metrics.jsonl"
        with writing(log):
            self._clear_temporaries()
            resume.forget_after(self.folder, point.step)
            lines = log.read_bytes().splitlines() if log.exists() else []
            # Former processes may have handed wandb more than the point has.
            logged = resume.note_logged(
                self.folder, max((_step_of(line) for line in lines), default=-1)
            )
            with log.open("ab") as file:
                file.truncate(point.run["metrics_bytes"])
        try:
            self.open_wandb(group, point.run["wandb_id"], logged)
        except ConfigError as error:  # as without a network
            logger.warning("%s: goes on without wandb: %s", self.folder, error)
        if self._wandb is not None and self._wandb.is_new:
            _replay(self._wandb, self.folder)

    def open_wandb(self, group: str, id: str | None = None, logged: int = -1) -> None:
        """Begin a run in wandb, or go on with `id`, if it is asked for; see `WandbLog`.

        Raises: ConfigError if wandb can't begin.
        """
        if self.run.wandb != "disabled":
            config = TrainConfig(self.sae, self.run)
            self._wandb = WandbLog(
                self.folder,
                mode=self.run.wandb,
                project=self.run.wandb_project,
                group=group,
                settings=config.to_dict() | {"norm_factor": self.norm_factor},
                tags=config.tags,
                id=id,
                logged=logged,
            )

    def _clear_temporaries(self) -> None:
        """Delete what a process that was killed was writing."""
        for name in RUN_FILES:
            for temporary in self.folder.glob(f".{name}.*"):
                remove(temporary)
        for temporary in self.folder.glob("checkpoints/.ae_*"):
            remove(temporary)

    def save_point(self, step: int, shared: dict[str, Any]) -> None:
        """Write a resume point, unless the numbers are no longer finite or it is there already.

        Arguments:
            shared: what the loop needs to go on.
        """
        self.check(step)
        if self.failure is not None or step in resume.steps_of(self.folder):
            return
        log = self.folder / "metrics.jsonl"
        with writing(log):
            log.touch()
            sync(log)
            length = log.stat().st_size
        own = {"metrics_bytes": length, "wandb_id": self._wandb and self._wandb.id}
        own["settings"] = TrainConfig(self.sae, self.run).to_dict()
        own["norm_factor"] = self.norm_factor
        resume.save_point(
            self.folder, step, resume.trainer_state(self.trainer.state()), shared | own
        )

    def update(self, step: int, x_BD: t.Tensor) -> None:
        """One training step on activations in training units."""
        with self._failing_alone(step):
            self.trainer.update(step, x_BD)

    def check_and_log(self, step: int, x_BD: t.Tensor) -> dict[str, float] | None:
        """Log the numbers of a batch and return them, unless they are not finite."""
        with self._failing_alone(step):
            self.check(step)
            if self.failure is None:
                metrics = self.metrics(step, x_BD)
                self.log(metrics)
                return metrics
        return None

    @contextmanager
    def _failing_alone(self, step: int) -> Iterator[None]:
        """What the trainer raises inside is this SAE's failure, not the run's."""
        try:
            yield
        except CheckpointError:
            raise
        except Exception as error:
            logger.exception("%s: its trainer raised at step %d", self.name, step)
            self.trainer.restore_last_finite()
            self._fail(step, step, f"{type(error).__name__}: {error}")

    def metrics(self, step: int, x_BD: t.Tensor) -> dict[str, float]:
        """What is logged at `step`, of a batch. Changes nothing."""
        return {
            "step": float(step),
            "tokens": float(step * self.run.batch_size),
            "lr": float(self.trainer.scheduler.get_last_lr()[0]),
        } | self.trainer.metrics(step, x_BD)

    def log(self, metrics: dict[str, float]) -> None:
        """Append a line to metrics.jsonl, and the same to wandb."""
        path = self.folder / "metrics.jsonl"
        with writing(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(metrics) + "\n")
        if self._wandb is not None:
            self._wandb.log(metrics)

    def check(self, step: int) -> None:
        """Fail if a loss, gradient or weight was not finite since the last check."""
        if self.failure is None and (failure := self.trainer.check(step)):
            self._fail(failure.step, step, failure.what)

    def _fail(self, at: int, now: int, what: str) -> None:
        """Mark the SAE as failed by step `at`, and save the weights that it has now."""
        self.failure = f"{self.name}: failed by step {at}: {what}"
        path = self._checkpoint(now)
        try:
            save_weights(path, self.trainer.ae, self.norm_factor)
            found = {"step": at, "what": what, "weights": str(path.relative_to(self.folder))}
            write_json(self.folder / resume.FAILED, found)
        except CheckpointError as error:  # the other SAEs go on all the same
            self.failure += f" ({error})"
        logger.error("%s", self.failure)

    def _checkpoint(self, step: int) -> Path:
        return self.folder / "checkpoints" / f"ae_{step}.pt"

    def save_checkpoint(self, step: int) -> None:
        """Write checkpoints/ae_<step>.pt, for raw activations, if the weights are finite."""
        self.check(step)
        if self.failure is None:
            save_weights(self._checkpoint(step), self.trainer.ae, self.norm_factor)

    def save_final(self) -> None:
        """Write ae.pt, for raw activations."""
        save_weights(self.folder / "ae.pt", self.trainer.ae, self.norm_factor)

    def record(self, figures: dict[str, Any]) -> None:
        """Write the final evaluation."""
        write_json(self.folder / "metrics.json", figures)
        if self._wandb is not None:
            self._wandb.summarize(figures)

    def close(self, code: int) -> None:
        """Close the logs; `code` is the run's exit code."""
        if self._wandb is not None:
            if self.run.wandb_artifacts and code == 0 and self.failure is None:
                names = ("ae.pt", "config.json", "metrics.json")
                there = [self.folder / name for name in names if (self.folder / name).is_file()]
                self._wandb.upload(there)
            self._wandb.close(exit_code=1 if self.failure is not None else code)


def report_finished(folder: Path, config: TrainConfig) -> None:
    """Give a sweep's agent that is started again the results of a run that is finished."""
    if "WANDB_SWEEP_ID" not in os.environ or config.run.wandb == "disabled":
        return
    log = WandbLog(
        folder,
        mode=config.run.wandb,
        project=config.run.wandb_project,
        group="",
        settings=config.to_dict(),
        tags=config.tags,
    )
    _replay(log, folder)
    figures = folder / "metrics.json"
    if figures.is_file():
        log.summarize(json.loads(figures.read_text(encoding="utf-8")))
    log.close(0)


def _replay(log: WandbLog, folder: Path) -> None:
    """Log again what metrics.jsonl has."""
    lines = folder / "metrics.jsonl"
    if lines.exists():
        for line in lines.read_text(encoding="utf-8").splitlines():
            log.log(json.loads(line))


def _step_of(line: bytes) -> int:
    """The step of a line of metrics.jsonl; -1 of one that was broken off."""
    try:
        return int(json.loads(line)["step"])
    except ValueError:
        return -1


def require_free(folder: Path, overwrite: bool) -> None:
    """Raise a ConfigError if `folder` already holds a run, unless it may be overwritten."""
    there = [name for name in RUN_FILES if (folder / name).exists()]
    if there and not overwrite:
        raise ConfigError(
            f"save_dir={folder}: already holds a run ({', '.join(there)}); choose another "
            "--save-dir, or write over it with --overwrite True"
        )
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"save_dir={folder}: is a file; choose a folder")
