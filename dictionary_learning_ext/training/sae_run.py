"""An SAE in training: its trainer, its run folder, and whether it has failed."""

import importlib.metadata
import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch as t

from ..config.run import MAY_MOVE
from ..errors import CheckpointError
from ..evaluation.measure import Sample
from ..evaluation.metrics import with_identity
from ..run_folder import resume_points
from ..run_folder.files import (
    CHECKPOINTS,
    CONFIG,
    EVALUATION,
    FAILED,
    HELD_OUT_PREFIX,
    RESUME,
    RUN_FILES,
    WEIGHTS,
    checkpoint,
    divided,
    read_json,
    remove,
    remove_left_behind,
    write_json,
    writing,
)
from ..run_folder.resume_points import ResumePoint, Scale
from ..run_folder.sae_folder import SAEFolder, find_sae
from ..run_folder.schema import CONFIG_JSON
from ..run_folder.weights import for_raw_activations, load_sae, save_weights
from ..trainers.base import Trainer
from .logs import RunLog
from .plan import Job

logger = logging.getLogger(__name__)

LOGGED_ROWS = 256
"""The number of rows of a batch on which metrics are computed: the first ones."""


_CORRECT_TRAINER = (
    "correct the trainer (the traceback is above), then train again with overwrite=True"
)


class Failure(NamedTuple):
    """Why the training of an SAE has ended early."""

    said: str
    remedy: str | None
    """What the user can do. None: resume, as only memory was short."""


class SAERun:
    """An SAE in training. The processes of a split SAE all call the same methods, and the first one writes.

    Arguments:
        scale: the size of its activations.
        sample: the held-out activations to measure on during training; None: no measurements.
        point: the resume point from which it continues, without the weights; None: it starts.

    Attributes:
        failure: why training has ended early; None if it has not.
    """

    def __init__(
        self,
        job: Job,
        trainer: Trainer,
        scale: Scale,
        sample: Sample | None = None,
        point: ResumePoint | None = None,
    ):
        self.name, self.config, self.folder = job.name, job.config, job.folder
        self.hook, self.settings, self.trainer = job.hook, job.config.run, trainer
        self.scale, self.norm_factor = scale, scale.norm_factor
        self.part = trainer.part
        self.point, self._sample = point, sample
        self.failure: Failure | None = None
        self.log = RunLog(self.folder, self.config, self.norm_factor)

    def begin(self, buffer: dict[str, Any], wandb_group: str | None) -> None:
        """Start the run folder, or delete from it what was written after the resume point.

        Arguments:
            buffer: the settings of the batches, fit for JSON.
            wandb_group: see `RunLog.open_wandb`.
        """
        if not self.part.is_first:
            return
        with writing(self.folder):  # what killed processes left
            for folder in (self.folder, self.folder / CHECKPOINTS, self.folder / RESUME):
                remove_left_behind(folder)
        if self.point is None:
            self._start(buffer)
        else:
            self._resume(self.point, wandb_group)

    def _start(self, buffer: dict[str, Any]) -> None:
        """Delete the files of a former run and write config.json.

        config.json is replaced last, so that results never lie beside the settings of another run.
        """
        with writing(self.folder):
            for name in (EVALUATION, WEIGHTS, *RUN_FILES):
                if name != CONFIG:
                    remove(self.folder / name)
            self.log.clear_former()
        factors = {"norm_factor": self.norm_factor}
        if (input_factor := self.scale.input_factor) is not None:
            factors["input_factor"] = input_factor
        config = {  # upstream's "trainer" and "buffer", and all that is needed to train it again
            "trainer": self.trainer.config | factors,
            "buffer": buffer,
            "run": {
                "settings": self.config.to_dict(),
                **factors,
                "date": time.strftime("%Y-%m-%d"),
                "versions": package_versions(),
            },
        }
        write_json(self.folder / CONFIG, config)

    def _resume(self, point: ResumePoint, wandb_group: str | None) -> None:
        """Delete what was written after the point. Write another device, number of parts and places of moved folders into
        config.json."""
        with writing(self.folder):
            resume_points.forget_after(self.folder, point.step)
        config = read_json(self.folder / CONFIG, CONFIG_JSON)
        settings, now = config["run"]["settings"], self.config.to_dict()
        names = ("device", "split", *MAY_MOVE)
        moved = {name: now[name] for name in names if settings.get(name) != now[name]}
        if moved:
            settings |= moved
            write_json(self.folder / CONFIG, config)
        self.log.resume(point, wandb_group)

    def update(self, step: int, x_BD: t.Tensor) -> None:
        """Take one training step on activations in training units, (B, D)."""
        with self._failing_alone(step):
            self.trainer.update(step, x_BD)

    def check_and_log(self, step: int, x_BD: t.Tensor) -> dict[str, float] | None:
        """Log the metrics of a batch and return them; None if the SAE has failed. Changes nothing in the trainer.

        They are computed on the first LOGGED_ROWS rows. If a measurement is due, those on held-out activations are
        added as heldout/<key>.
        """
        metrics = None
        with self._failing_alone(step):
            self.check(step)
            if self.failure is None:
                metrics = {
                    "step": float(step),
                    "tokens": float(step * self.settings.batch_size),
                    "lr": float(self.trainer.scheduler.get_last_lr()[0]),
                } | self.trainer.metrics(step, x_BD[:LOGGED_ROWS])
        if metrics is not None:
            if self._sample is not None and self.settings.is_measured(step):
                held_out = self._sample.metrics(self._for_raw_activations())
                metrics |= {f"{HELD_OUT_PREFIX}{key}": value for key, value in held_out.items()}
            if self.part.is_first:
                self.log.log(metrics)
        return metrics

    @contextmanager
    def _failing_alone(self, step: int) -> Iterator[None]:
        """Turn an error of the trainer inside into a failure of this SAE alone. With a split SAE the error is raised,
        as other processes may not have it."""
        try:
            yield
        except CheckpointError:
            raise
        except Exception as error:
            if self.part.count > 1:
                raise
            logger.error("%s: its trainer raised at step %d", self.name, step, exc_info=True)
            self.trainer.restore_last_finite()
            remedy = None if _is_out_of_memory(error) else _CORRECT_TRAINER
            self._fail(step, step, f"{type(error).__name__}: {error}", remedy)

    def check(self, step: int) -> None:
        """End the SAE's training if a loss, gradient or weight has not been finite since the run began."""
        if self.failure is None and (failure := self.trainer.check(step)):
            self._fail(failure.step, step, failure.what, "lower lr")

    def _fail(self, at: int, now: int, what: str, remedy: str | None) -> None:
        """End the SAE's training and save its last finite weights. Write failed.json if there is a remedy.

        Arguments:
            at: the step at or before which it failed.
            now: the present step, which names the checkpoint.
        """
        self.failure = Failure(f"{self.name}: failed at or before step {at}: {what}", remedy)
        path = checkpoint(self.folder, now)
        try:
            self._save_weights(path)
            if remedy is not None and self.part.is_first:
                found = {"step": at, "what": what, "weights": str(path.relative_to(self.folder))}
                write_json(self.folder / FAILED, found)
        except CheckpointError as error:  # the other SAEs continue
            self.failure = Failure(f"{self.failure.said} ({error})", remedy)
        logger.error("%s", self.failure.said)

    def save_checkpoint(self, step: int) -> None:
        """Write checkpoints/ae_<step>.pt, which takes raw activations, unless the SAE has failed."""
        self.check(step)
        if self.failure is None:
            self._require_folder()
            self._save_weights(checkpoint(self.folder, step))

    def write_resume_point(
        self, step: int, batches: dict[str, Any], hashes: dict[str, str]
    ) -> None:
        """Write a resume point, unless it exists already or the SAE has failed.

        Arguments:
            batches, hashes: see `ResumePoint`.
        """
        self.check(step)
        is_there = self.part.any(step in resume_points.steps_of(self.folder))
        if self.failure is not None or is_there:
            return
        self._require_folder()
        state, parts = self.trainer.state_dict(), None
        if self.part.is_split:
            from ..trainers.split import write_divided

            state = write_divided(self.trainer, state, folder := divided(self.folder, step))
            if not self.part.is_first:
                return
            parts = resume_points.sizes(folder)
        point = ResumePoint(
            step=step,
            settings=self.config.to_dict(),
            trainer=state,
            parts=parts,
            scale=self.scale,
            batches=batches,
            hashes=hashes,
            versions=versions(),
            **self.log.state(),
        )
        resume_points.save_point(self.folder, point)

    def save_final(self) -> None:
        """Write ae.pt, which takes raw activations."""
        self._require_folder()
        self._save_weights(self.folder / WEIGHTS)

    def _save_weights(self, path: Path) -> None:
        save_weights(path, self._for_raw_activations(), part=self.part)

    def _for_raw_activations(self) -> Any:
        factors = self.norm_factor, self.scale.input_factor
        return for_raw_activations(self.trainer.ae, *factors)

    def trained(self) -> Any:
        """The trained dictionary, for raw activations. A split one is read from ae.pt."""
        if self.part.is_split:
            return load_sae(find_sae(self.folder), self.settings.device)
        return self._for_raw_activations()

    def record(self, metrics: dict[str, Any], sae: SAEFolder) -> None:
        """Write the final evaluation. `sae`: this SAE as it is saved."""
        metrics = with_identity(metrics, sae.hash, self.settings)
        write_json(self.folder / EVALUATION, metrics)
        self.log.summarize(metrics)

    def close(self, code: int) -> None:
        """Close the logs; `code` is the run's exit code."""
        if self.part.is_first:
            self.log.close(1 if self.failure is not None else code)

    def _require_folder(self) -> None:
        """Raise a CheckpointError if the run folder was moved or deleted."""
        if not (self.folder / CONFIG).is_file():
            raise CheckpointError(
                f"{self.folder}: was moved or deleted during training; `vsae train --resume` continues it where it is now"
            )


def _is_out_of_memory(error: Exception) -> bool:
    """Whether memory was short. torch's error on a CPU has no class of its own."""
    said = r"out of memory|not enough memory|allocate memory"
    return isinstance(error, MemoryError) or re.search(said, str(error)) is not None


def versions() -> dict[str, Any]:
    """The versions of packages and the number of threads, which decide the last digits of a result."""
    return package_versions() | {"threads": t.get_num_threads()}


def package_versions() -> dict[str, str]:
    """The versions of the packages that decide results."""
    packages = (
        "dictionary-learning-ext",
        "dictionary-learning",
        "numpy",
        "torch",
        "transformers",
        "nnsight",
    )
    return {name: importlib.metadata.version(name) for name in packages}
