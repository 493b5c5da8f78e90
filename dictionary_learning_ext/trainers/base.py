"""What the training loop asks of a trainer, what evaluation asks of a dictionary, and what our
trainers share. `upstream.py` gives upstream's trainers the same.

Code asks these protocols what an object can do, and never of which class it is.
"""

from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch as t
from dictionary_learning.dictionary import Dictionary
from dictionary_learning.trainers.top_k import geometric_median

from ..config.checks import require
from ..errors import CheckpointError, ConfigError
from .optimizers import GuardedAdam


class Failure(NamedTuple):
    """Why an SAE can't be trained on."""

    step: int
    """By which step it happened."""
    what: str


class Trainer(Protocol):
    """A trainer as the loop uses it. Ours are such; upstream's become one by `UpstreamTrainer`."""

    ae: Any
    scheduler: Any

    @property
    def config(self) -> dict[str, Any]:
        """Upstream's keys and its own: enough to build the trainer again."""
        ...

    def update(self, step: int, x: t.Tensor) -> Any:
        """One training step on activations (B, D), in training units."""
        ...

    def metrics(self, step: int, x: t.Tensor) -> dict[str, float]:
        """What is logged about a batch. Changes nothing, draws nothing."""
        ...

    def check(self, step: int) -> Failure | None:
        """What was not finite since the run began, if anything."""
        ...

    def restore_last_finite(self) -> None:
        """Put back the last weights that `check` found finite, where steps may spoil them."""
        ...

    def state(self) -> Any:
        """The trainer that holds everything a resume point needs as attributes."""
        ...


class FeaturePosterior(Protocol):
    """The distribution of each feature of some tokens."""

    @property
    def kl(self) -> t.Tensor:
        """KL to the prior in nats, (…, F)."""
        ...

    @property
    def std(self) -> t.Tensor:
        """Standard deviation, (…, F) or 0-dim."""
        ...

    @property
    def noise_variance(self) -> t.Tensor | None:
        """sigma^2, where k sigma^2 is the noise energy of a reconstruction; None elsewhere."""
        ...


@runtime_checkable
class HasPosterior(Protocol):
    """A dictionary whose features are distributions."""

    def posterior(self, x: t.Tensor) -> FeaturePosterior:
        """Of activations (…, D)."""
        ...


def selects_top_k(dictionary: Dictionary) -> bool:
    """Whether it keeps the k largest of each token, and `encode` can return which."""
    return "return_topk" in signature(dictionary.encode).parameters


class LossLog(NamedTuple):
    """What upstream's `log_stats` unpacks."""

    x: t.Tensor
    x_hat: t.Tensor
    f: t.Tensor
    losses: dict[str, float]


def batch_metrics(x_BD: t.Tensor, x_hat_BD: t.Tensor, f_BF: t.Tensor) -> dict[str, float]:
    """How well a batch is reconstructed, by how many features, and how many of them are in use."""
    residual, total = (x_BD - x_hat_BD).square().sum(), (x_BD - x_BD.mean(0)).square().sum()
    is_on_BF = f_BF.ne(0)
    return {
        "fve": float(1 - residual / total),
        "l0": float(is_on_BF.sum(-1, dtype=t.float32).mean()),
        "alive_in_batch": float(is_on_BF.any(0).float().mean()),
    }


class SamplingTrainer:
    """What our trainers share: their noise, b_dec's start, a log that changes nothing, the check.

    Noise comes from a generator of the trainer's own, so a run does not depend on what else runs
    beside it, nor on logging. A subclass sets `ae`, `optimizer` and `device`, and calls
    `_start_noise`.
    """

    ae: Any
    optimizer: GuardedAdam
    device: Any
    seed: int | None
    submodule_name: str | None
    generator: t.Generator

    def _start_noise(self) -> None:
        """Make the generator, seeded by the trainer's seed, or torch's if it has none."""
        seed = t.initial_seed() if self.seed is None else self.seed
        self.generator = t.Generator(self.device).manual_seed(seed)

    def _prepared(self, x: t.Tensor) -> t.Tensor:
        """Activations (B, D) in the dtype and on the device of the dictionary's b_dec.

        Raises: ConfigError if their width is another, or there are none.
        """
        b_dec, source = self.ae.b_dec, self.submodule_name or "the buffer"
        if x.shape[-1] != len(b_dec):
            raise ConfigError(
                f"activations of width {x.shape[-1]} from {source}: expected "
                f"activation_dim={len(b_dec)}; build the trainer with "
                f"activation_dim={x.shape[-1]} or choose another hook"
            )
        if len(x) == 0:
            raise ConfigError("an empty batch: expected at least one row of activations")
        return x.to(b_dec)

    @t.no_grad()
    def _start_decoder_bias(self, x: t.Tensor) -> None:
        """Set b_dec to the geometric median of the first batch, as upstream's TopKTrainer does."""
        median, b_dec = geometric_median(x), self.ae.b_dec.data
        b_dec.copy_(t.where(median.isfinite().all(), median, b_dec))

    def _terms(self, x: t.Tensor, step: int, generator: t.Generator) -> Any:
        """The loss of activations (B, D) and its parts; `.loss` is differentiable."""
        raise NotImplementedError

    def _logged(self, terms: Any, x: t.Tensor) -> dict[str, t.Tensor]:
        """What a log says about a batch's terms."""
        raise NotImplementedError

    def loss(self, x: t.Tensor, step: int, logging: bool = False) -> Any:
        """The loss of activations (B, D) at `step`: a 0-dim tensor, differentiable.

        With `logging`, a `LossLog` of x, its reconstruction and features by the mean, and the
        loss's terms, drawn from a copy of the generator: nothing changes.
        """
        if not logging:
            return self._terms(x, step, self.generator).loss
        generator = t.Generator(self.device)
        generator.set_state(self.generator.get_state())
        with t.no_grad():
            losses = self._logged(self._terms(x, step, generator), x)
            x_hat, f = self.ae(x, output_features=True)
        return LossLog(x, x_hat, f, {name: value.item() for name, value in losses.items()})

    def metrics(self, step: int, x: t.Tensor) -> dict[str, float]:
        """See `Trainer`."""
        log = self.loss(x, step, logging=True)
        parameters: dict[str, Any] = self.get_logging_parameters()  # pyright: ignore
        parameters = {name: float(value) for name, value in parameters.items()}
        with t.no_grad():
            return log.losses | parameters | batch_metrics(log.x, log.x_hat, log.f)

    def check(self, step: int) -> Failure | None:
        """See `Trainer`. The optimiser skips steps that are not finite: the weights always are."""
        if skipped := int(self.optimizer.skipped_steps):
            what = f"not finite; {skipped} steps were skipped, and the weights are without them"
            return Failure(int(self.optimizer.first_skipped_step), what)
        return None

    def restore_last_finite(self) -> None:
        """See `Trainer`: they are finite."""

    def state(self) -> Any:
        """See `Trainer`."""
        return self


class FromState:
    """A dictionary that is rebuilt from its state dict alone. A subclass says by what."""

    in_state: tuple[str, ...]
    """Names that tell its state dict from another class's."""

    @classmethod
    def _built_as(cls, state: dict[str, t.Tensor]) -> dict[str, Any]:
        """The arguments to build it with, beyond its widths."""
        return {}

    @classmethod
    def from_pretrained(
        cls, path: str | Path, k: int | None = None, device: str | None = None
    ) -> Any:
        """Load an SAE from an `ae.pt`, which holds all that it needs.

        Raises: CheckpointError if the file is not one of this class; ConfigError if `k` is given
        and differs from the file's.
        """
        state = t.load(path, map_location=device or "cpu", weights_only=True)
        if missing := sorted(set(cls.in_state) - set(state)):
            raise CheckpointError(
                f"{path}: expected a {cls.__name__}, but it lacks {', '.join(missing)}; "
                "load_dictionary(FOLDER) reads any class by its config.json"
            )
        arguments: dict[str, Any] = cls._built_as(state)
        saved_k = arguments.get("k")
        require(k in (None, saved_k), "k", k, f"{saved_k}, as in {path}, or not given")
        dict_size, activation_dim = state["encoder.weight"].shape
        sae: Any = cls(activation_dim, dict_size, **arguments)  # pyright: ignore[reportCallIssue]
        sae = sae.to(state["encoder.weight"])  # its device and dtype
        sae.load_state_dict(state)
        return sae
