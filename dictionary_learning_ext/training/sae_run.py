"""One SAE in training: its trainer, its folder, its logs, and whether its numbers are still finite."""

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch as t
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE

from ..config.run_config import RunConfig, TrainConfig
from ..config.sae_config import SAEConfig
from ..errors import CheckpointError, ConfigError
from ..run_folder import resume_points as resume
from ..run_folder.names import (
    CHECKPOINTS,
    CONFIG,
    FAILED,
    HISTORY,
    METRICS,
    RUN_FILES,
    WEIGHTS,
    checkpoint,
)
from ..run_folder.weights import save_weights
from ..run_folder.writing import remove, sync, write_json, writing
from ..trainers.build import OURS
from ..trainers.state import load_trainer_state, trainer_state
from .wandb_log import WandbLog

logger = logging.getLogger(__name__)


class Trainee:
    """A trainer and where its results go.

    Arguments:
        name: among the SAEs of the run.
        sae: its resolved configuration.
        trainer: ours or upstream's.
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
        trainer: Any,
        folder: Path,
        run: RunConfig,
        norm_factor: float,
    ):
        self.name, self.sae, self.trainer, self.folder = name, sae, trainer, folder
        self.run, self.norm_factor = run, norm_factor
        self.failure: str | None = None
        self._wandb: WandbLog | None = None
        self._last_good: dict[str, t.Tensor] | None = None

    def start(self, config: dict[str, Any]) -> None:
        """Write config.json and clear a former run's other files."""
        write_json(self.folder / CONFIG, config)
        with writing(self.folder):
            for name in RUN_FILES:
                if name != CONFIG:
                    remove(self.folder / name)
            self._clear_temporaries()

    def restore(self, point: resume.ResumePoint) -> None:
        """Have the trainer where a point of this folder has it; nothing on the disk is changed."""
        load_trainer_state(self.trainer, point.trainer)
        self._remember()
        log, length = self.folder / HISTORY, point.run["metrics_bytes"]
        if (log.stat().st_size if log.exists() else 0) < length:
            raise CheckpointError(
                f"{log}: shorter than when the resume point of step {point.step} was written "
                f"({length} bytes); put the former back or start again with --config"
            )

    def go_on(self, point: resume.ResumePoint, group: str) -> None:
        """Cut off what was logged after a point, forget later points, and go on in wandb."""
        log = self.folder / HISTORY
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
        for temporary in self.folder.glob(f"{CHECKPOINTS}/.ae_*"):
            remove(temporary)

    def save_point(self, step: int, shared: dict[str, Any]) -> None:
        """Write a resume point, unless the numbers are no longer finite or it is there already.

        Arguments:
            shared: what the loop needs to go on.
        """
        self.check(step)
        if self.failure is not None or step in resume.steps_of(self.folder):
            return
        log = self.folder / HISTORY
        with writing(log):
            log.touch()
            sync(log)
            length = log.stat().st_size
        own = {"metrics_bytes": length, "wandb_id": self._wandb and self._wandb.id}
        own["settings"] = TrainConfig(self.sae, self.run).to_dict()
        own["norm_factor"] = self.norm_factor
        resume.save_point(self.folder, step, trainer_state(self.trainer), shared | own)

    def update(self, step: int, x_BD: t.Tensor) -> None:
        """One training step on activations in training units."""
        with self._failing_alone(step):
            self._update(step, x_BD)

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
            self._restore()
            self._fail(step, step, f"{type(error).__name__}: {error}")

    def _update(self, step: int, x_BD: t.Tensor) -> None:
        is_upstreams = not isinstance(self.trainer, OURS)
        in_bf16 = is_upstreams and self.run.dtype == "bfloat16"
        with t.autocast(x_BD.device.type, dtype=t.bfloat16, enabled=in_bf16):
            self.trainer.update(step, x_BD)

    @t.no_grad()
    def metrics(self, step: int, x_BD: t.Tensor) -> dict[str, float]:
        """What is logged at `step`, of a batch. Changes nothing: upstream's `loss` would."""
        metrics: dict[str, Any] = {
            "step": step,
            "tokens": step * self.run.batch_size,
            "lr": self.trainer.scheduler.get_last_lr()[0],
        }
        if isinstance(self.trainer, OURS):
            log = self.trainer.loss(x_BD, step, logging=True)
            x_hat_BD, f_BF, losses = log.x_hat, log.f, log.losses
            metrics |= losses | self.trainer.get_logging_parameters()
        else:
            ae: Any = self.trainer.ae
            by_batch = isinstance(ae, BatchTopKSAE | MatryoshkaBatchTopKSAE)
            f_BF: Any = ae.encode(x_BD, use_threshold=False) if by_batch else ae.encode(x_BD)
            x_hat_BD = ae.decode(f_BF)
            metrics["l2_loss"] = (x_BD - x_hat_BD).square().sum(-1).mean()
        residual, total = (x_BD - x_hat_BD).square().sum(), (x_BD - x_BD.mean(0)).square().sum()
        is_on_BF = f_BF.ne(0)
        metrics |= {
            "fve": 1 - residual / total,
            "l0": is_on_BF.sum(-1, dtype=t.float32).mean(),
            "alive_in_batch": is_on_BF.any(0).float().mean(),
        }
        return {name: float(value) for name, value in metrics.items()}

    def log(self, metrics: dict[str, float]) -> None:
        """Append a line to metrics.jsonl, and the same to wandb."""
        path = self.folder / HISTORY
        with writing(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(metrics) + "\n")
        if self._wandb is not None:
            self._wandb.log(metrics)

    def check(self, step: int) -> None:
        """Fail if a loss, gradient or weight was not finite since the last check."""
        if self.failure is not None:
            return
        if isinstance(self.trainer, OURS):
            optimizer = self.trainer.optimizer
            if skipped := int(optimizer.skipped_steps):
                what = f"not finite; {skipped} steps were left out, the weights are without them"
                self._fail(int(optimizer.first_skipped_step), step, what)
        elif all(value.isfinite().all() for value in self.trainer.ae.state_dict().values()):
            self._remember()
        else:
            self._restore()
            self._fail(step, step, "not finite; the weights are the last that were finite")

    def _remember(self) -> None:
        """Upstream's trainers take every step: keep the last weights that were finite."""
        if not isinstance(self.trainer, OURS):
            state = self.trainer.ae.state_dict()
            self._last_good = {name: value.clone() for name, value in state.items()}

    def _restore(self) -> None:
        if self._last_good is not None:
            self.trainer.ae.load_state_dict(self._last_good)

    def _fail(self, at: int, now: int, what: str) -> None:
        """Mark the SAE as failed by step `at`, and save the weights that it has now."""
        self.failure = f"{self.name}: failed by step {at}: {what}"
        path = self._checkpoint(now)
        try:
            save_weights(path, self.trainer.ae, self.norm_factor)
            found = {"step": at, "what": what, "weights": str(path.relative_to(self.folder))}
            write_json(self.folder / FAILED, found)
        except CheckpointError as error:  # the other SAEs go on all the same
            self.failure += f" ({error})"
        logger.error("%s", self.failure)

    def _checkpoint(self, step: int) -> Path:
        return checkpoint(self.folder, step)

    def save_checkpoint(self, step: int) -> None:
        """Write checkpoints/ae_<step>.pt, for raw activations, if the weights are finite."""
        self.check(step)
        if self.failure is None:
            save_weights(self._checkpoint(step), self.trainer.ae, self.norm_factor)

    def save_final(self) -> None:
        """Write ae.pt, for raw activations."""
        save_weights(self.folder / WEIGHTS, self.trainer.ae, self.norm_factor)

    def record(self, figures: dict[str, Any]) -> None:
        """Write the final evaluation."""
        write_json(self.folder / METRICS, figures)
        if self._wandb is not None:
            self._wandb.summarize(figures)

    def close(self, code: int) -> None:
        """Close the logs; `code` is the run's exit code."""
        if self._wandb is not None:
            if self.run.wandb_artifacts and code == 0 and self.failure is None:
                names = (WEIGHTS, CONFIG, METRICS)
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
    figures = folder / METRICS
    if figures.is_file():
        log.summarize(json.loads(figures.read_text(encoding="utf-8")))
    log.close(0)


def _replay(log: WandbLog, folder: Path) -> None:
    """Log again what metrics.jsonl has."""
    lines = folder / HISTORY
    if lines.exists():
        for line in lines.read_text(encoding="utf-8").splitlines():
            log.log(json.loads(line))


def _step_of(line: bytes) -> int:
    """The step of a line of metrics.jsonl; -1 of one that was broken off."""
    try:
        return int(json.loads(line)["step"])
    except ValueError:
        return -1
