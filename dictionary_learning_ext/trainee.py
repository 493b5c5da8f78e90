"""One SAE in training: its trainer, its folder, its logs, and whether its numbers are still finite."""

import json
import logging
from pathlib import Path
from typing import Any

import torch as t
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE

from .checkpoint import save_weights
from .config import RunConfig
from .errors import ConfigError
from .files import remove, write_json, writing
from .sae_config import SAEConfig
from .trainers.variational_top_k import VariationalTopKTrainer

logger = logging.getLogger(__name__)

RUN_FILES = ("ae.pt", "config.json", "metrics.jsonl", "metrics.json", "checkpoints")


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
        self._wandb: Any = None
        self._last_good: dict[str, t.Tensor] | None = None

    def start(self, config: dict[str, Any], group: str) -> None:
        """Clear a former run's files, write config.json and open the logs."""
        with writing(self.folder):
            for name in RUN_FILES:
                remove(self.folder / name)
        write_json(self.folder / "config.json", config)
        if self.run.wandb != "disabled":
            import wandb

            self._wandb = wandb.init(
                project=self.run.wandb_project,
                name=self.folder.name,
                group=group,
                config=config["run"]["settings"] | {"norm_factor": self.norm_factor},
                mode=self.run.wandb,
                dir=self.folder,
                reinit="create_new",
            )

    def update(self, step: int, x_BD: t.Tensor) -> None:
        """One training step on activations in training units."""
        is_upstreams = not isinstance(self.trainer, VariationalTopKTrainer)
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
        if isinstance(self.trainer, VariationalTopKTrainer):
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
        path = self.folder / "metrics.jsonl"
        with writing(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(metrics) + "\n")
        if self._wandb is not None:
            self._wandb.log(metrics, step=int(metrics["step"]))

    def check(self, step: int) -> None:
        """Fail if a loss, gradient or weight was not finite since the last check."""
        if isinstance(self.trainer, VariationalTopKTrainer):
            optimizer = self.trainer.optimizer
            if skipped := int(optimizer.skipped_steps):
                first = int(optimizer.first_skipped_step)
                self._fail(first, f"{skipped} steps were left out; the weights are without them")
            return
        state = self.trainer.ae.state_dict()
        if all(value.isfinite().all() for value in state.values()):
            self._last_good = {name: value.clone() for name, value in state.items()}
            return
        if self._last_good is not None:  # there is one from step 0 on
            self.trainer.ae.load_state_dict(self._last_good)
        self._fail(step, "the weights are the last that were finite")

    def _fail(self, step: int, what: str) -> None:
        self.failure = f"{self.name}: loss or weights not finite at step {step}; {what}"
        logger.error("%s", self.failure)

    def save_checkpoint(self, step: int) -> None:
        """Write checkpoints/ae_<step>.pt, for raw activations, of the last finite weights."""
        if self.failure is None:
            self.check(step)
        path = self.folder / "checkpoints" / f"ae_{step}.pt"
        save_weights(path, self.trainer.ae, self.norm_factor)

    def save_final(self) -> None:
        """Write ae.pt, for raw activations."""
        save_weights(self.folder / "ae.pt", self.trainer.ae, self.norm_factor)

    def record(self, figures: dict[str, Any]) -> None:
        """Write the final evaluation."""
        write_json(self.folder / "metrics.json", figures)
        if self._wandb is not None:
            known = {name: v for name, v in figures.items() if isinstance(v, int | float)}
            self._wandb.summary.update({f"eval/{name}": value for name, value in known.items()})

    def close(self, succeeded: bool) -> None:
        """Close the logs."""
        if self._wandb is not None:
            self._wandb.finish(exit_code=0 if succeeded and self.failure is None else 1)


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
