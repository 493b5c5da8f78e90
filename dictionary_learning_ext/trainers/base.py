"""What trainers and dictionaries must offer to the rest of the package, and what ours share.

- The training loop asks a `Trainer` to take a step, for a batch's metrics, whether all numbers are
  finite, and for what a resume point must hold. Our trainers inherit most of it from
  `SamplingTrainer`. `upstream.UpstreamTrainer` wraps upstream's trainers so that they offer it too.
- Evaluation asks a dictionary for its `posterior`, if it has one (`HasPosterior`). It gets each
  feature's KL and standard deviation (`FeaturePosterior`).
- `load_dictionary` asks our dictionaries to rebuild themselves from `ae.pt` alone (`FromState`).

Callers ask what an object can do, never which class it is.
"""

import logging
import math
from abc import ABC, abstractmethod
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import torch as t
from dictionary_learning.dictionary import Dictionary
from dictionary_learning.trainers.top_k import AutoEncoderTopK, geometric_median
from dictionary_learning.trainers.trainer import get_lr_schedule

from ..config.checks import likely, require
from ..errors import CheckpointError, ConfigError, Setting
from .optimizers import GuardedAdam
from .ranks import ALONE, Ranks

logger = logging.getLogger(__name__)


class Failure(NamedTuple):
    """Why an SAE's training has to stop."""

    step: int
    """the step at which it failed, or was found to have failed"""
    what: str


class Trainer(Protocol):
    """What the training loop asks of a trainer."""

    ae: Any
    scheduler: Any
    starts_trained: bool
    """Whether its weights are a trained SAE's. The first batch then leaves b_dec as it is."""

    def join(self, ranks: Ranks) -> None:
        """Train with other ranks, from rank 0's weights. Each gives `update` its share of the batch."""
        ...

    @property
    def config(self) -> dict[str, Any]:
        """Upstream's keys and its own: enough to rebuild the trainer."""
        ...

    def update(self, step: int, x: t.Tensor) -> Any:
        """Take one training step on activations (B, D), in training units."""
        ...

    def metrics(self, step: int, x: t.Tensor) -> dict[str, float]:
        """What is logged about a batch. Changes no state and advances no generator."""
        ...

    def check(self, step: int) -> Failure | None:
        """The failure, if a loss, gradient or weight has not been finite since the run began."""
        ...

    def restore_last_finite(self) -> None:
        """Put back the last weights that `check` found finite."""
        ...

    def state(self) -> Any:
        """The object whose attributes are everything a resume point must hold."""
        ...


class FeaturePosterior(Protocol):
    """Each feature's distribution, for some tokens."""

    @property
    def kl(self) -> t.Tensor:
        """KL divergence from the prior in nats, (…, F)."""
        ...

    @property
    def std(self) -> t.Tensor:
        """Standard deviation, (…, F) or 0-dim."""
        ...

    @property
    def noise_variance(self) -> t.Tensor | None:
        """sigma^2, if sampling adds k sigma^2 of energy to a reconstruction; otherwise None."""
        ...


@runtime_checkable
class HasPosterior(Protocol):
    """A dictionary whose features are distributions."""

    def posterior(self, x: t.Tensor) -> FeaturePosterior:
        """The distribution of each feature of activations (…, D)."""
        ...


def selects_top_k(dictionary: Dictionary) -> bool:
    """Whether it keeps each token's k largest features, and its `encode` can return which."""
    return "return_topk" in signature(dictionary.encode).parameters


class LossLog(NamedTuple):
    """What upstream's `log_stats` unpacks."""

    x: t.Tensor
    x_hat: t.Tensor
    f: t.Tensor
    losses: dict[str, float]


def batch_metrics(x_BD: t.Tensor, x_hat_BD: t.Tensor, f_BF: t.Tensor) -> dict[str, float]:
    """How well a batch is reconstructed, and with how many features.

    Returns: `fve` (1 - residual / total variance), `l0` (nonzero features per row, averaged) and
    `alive_in_batch` (the share of features that are nonzero in some row).
    """
    residual, total = (x_BD - x_hat_BD).square().sum(), (x_BD - x_BD.mean(0)).square().sum()
    is_on_BF = f_BF.ne(0)
    return {
        "fve": float(1 - residual / total),
        "l0": float(is_on_BF.sum(-1, dtype=t.float32).mean()),
        "alive_in_batch": float(is_on_BF.any(0).float().mean()),
    }


_OTHER_NAMES = {
    "noise_to_signal": (
        "sigma",
        "`vsae train` makes sigma of it; here give sigma = sqrt(noise_to_signal E||x||^2 / k), or "
        "take the arguments from trainer_options(...)",
    ),
    "kl_coeff": ("beta", "it is called 'beta'"),
    "kl_anneal_steps": ("kl_warmup_steps", "it is called 'kl_warmup_steps'"),
}
"""By what an argument of ours is called elsewhere: its name, and what to type."""


class Named:
    """A class that says which of its arguments a misspelt one may stand for."""

    if not TYPE_CHECKING:  # checkers read the signature of __init__

        def __new__(cls, *args, **kwargs):
            known = [name for name in signature(cls.__init__).parameters if name != "self"]
            for name in kwargs:
                if name not in known:
                    instead = _instead_of(name, known)
                    raise ConfigError(f"{cls.__name__} has no option {name!r}", instead=instead)
            return super().__new__(cls)


def _instead_of(name: str, known: list[str]) -> str:
    """What to type for an argument that there is not."""
    ours, advice = _OTHER_NAMES.get(name, ("", ""))
    if ours in known:
        return advice
    if close := likely(name, known):
        return f"did you mean {' or '.join(map(repr, close))}?"
    return f"expected one of {', '.join(known)}"


class SamplingTrainer(Named, ABC):
    """What our trainers share: the noise generator, b_dec's initial value, the log and the check.

    Each trainer has a noise generator of its own. So a run depends neither on what else runs in the
    process nor on how often it is logged. A subclass sets `ae`, `device` and the settings below, calls
    `_start_training`, and defines `_terms` and `_logged`.
    """

    ae: Any
    starts_trained: bool = False
    optimizer: GuardedAdam
    device: Any
    steps: int
    warmup_steps: int
    decay_start: int | None
    seed: int | None
    submodule_name: str | None
    generator: t.Generator
    draws_noise_seed: bool = False
    """Whether the noise's seed is drawn from the trainer's, from which the initial weights came too."""
    ranks: Ranks = ALONE

    def _dict_class(self, given: Any, ours: type) -> type:
        """The class of the dictionary to train: `ours`, or a subclass of it.

        Upstream's examples pass AutoEncoderTopK, which stands for `ours`.

        Raises: ConfigError for any other.
        """
        if given is ours:
            return ours
        if given is AutoEncoderTopK:
            logger.warning(
                "dict_class=AutoEncoderTopK: %s trains a %s instead; leave out dict_class",
                type(self).__name__,
                ours.__name__,
            )
        elif given is not None:
            is_ours = isinstance(given, type) and issubclass(given, ours)
            name = getattr(given, "__name__", repr(given))
            if not is_ours:
                raise ConfigError(
                    (Setting("dict_class"), f" of a {type(self).__name__} is {name}"),
                    name="dict_class",
                    value=given,
                    expected=f"{ours.__name__} or a subclass of it",
                    instead="leave it out",
                )
            return given
        return ours

    def _class_names(self) -> dict[str, str]:
        """The classes, as config.json names them."""
        return {"trainer_class": type(self).__name__, "dict_class": type(self.ae).__name__}

    def _start_training(self, optimizer: GuardedAdam) -> None:
        """Make the learning-rate schedule and the noise's generator."""
        self.optimizer = optimizer
        schedule = get_lr_schedule(self.steps, self.warmup_steps, decay_start=self.decay_start)
        self.scheduler = t.optim.lr_scheduler.LambdaLR(optimizer, lr_lambda=schedule)
        self._start_noise()

    def _start_noise(self) -> None:
        """Make the generator, seeded with the trainer's seed. Default: torch's initial seed."""
        seed = t.initial_seed() if self.seed is None else self.seed
        self.generator = t.Generator(self.device).manual_seed(seed)
        if self.draws_noise_seed:
            self.generator.manual_seed(int(self._drawn_seeds(1)))

    def join(self, ranks: Ranks) -> None:
        """See `Trainer`. Each rank draws its own noise; rank 0's is that of a single process."""
        self.ranks = ranks
        self.optimizer.join(ranks)
        ranks.copy_first_(self.ae.state_dict().values())
        if ranks.rank > 0:
            self.generator.manual_seed(int(self._drawn_seeds(ranks.rank)[-1]))

    def _drawn_seeds(self, n: int) -> t.Tensor:
        drawn: Any = {"generator": self.generator, "device": self.device}
        return t.randint(2**63 - 1, (n,), **drawn)

    def _prepared(self, x: t.Tensor) -> t.Tensor:
        """Activations (B, D), in the dtype and on the device of the dictionary's b_dec.

        Raises: ConfigError for another shape, a width that is not D, or an empty batch.
        """
        b_dec, source = self.ae.b_dec, self.submodule_name or "the buffer"
        if x.dim() != 2:
            raise ConfigError(
                f"activations of shape {tuple(x.shape)} from {source}: expected (batch, "
                f"activation_dim={len(b_dec)}); give x.reshape(-1, {len(b_dec)})"
            )
        if x.shape[-1] != len(b_dec):
            raise ConfigError(
                f"activations of width {x.shape[-1]} from {source}",
                expected=(Setting("activation_dim", len(b_dec)),),
                instead=("build the trainer with ", Setting("activation_dim", x.shape[-1])),
            )
        if len(x) == 0:
            raise ConfigError(f"empty batch from {source}: expected at least one row")
        return x.to(b_dec)

    @t.no_grad()
    def _start_decoder_bias(self, x: t.Tensor) -> None:
        """Set b_dec to the geometric median of the first batch, as upstream's TopKTrainer does.

        Of the batches of all ranks, if there are several.
        """
        if self.starts_trained:
            return
        median, b_dec = geometric_median(self.ranks.gather(x).flatten(0, 1)), self.ae.b_dec.data
        b_dec.copy_(t.where(median.isfinite().all(), median, b_dec))

    @abstractmethod
    def _terms(self, x: t.Tensor, step: int, generator: t.Generator) -> Any:
        """The loss of activations (B, D) and its parts; `.loss` is differentiable."""

    @abstractmethod
    def _logged(self, terms: Any, x: t.Tensor) -> dict[str, t.Tensor]:
        """What is logged about a batch's terms."""

    def loss(self, x: t.Tensor, step: int, logging: bool = False) -> Any:
        """The loss of activations (B, D) at `step`: a 0-dim tensor, differentiable.

        With `logging`, a `LossLog` instead: x, its reconstruction and its features by the mean,
        and the loss's terms. Noise comes from a copy of the generator, so nothing changes.
        """
        x = self._prepared(x)
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
        """See `Trainer`. The optimiser skips every step that is not finite."""
        if skipped := int(self.optimizer.skipped_steps):
            what = f"not finite; {skipped} steps were skipped, so the weights are finite"
            return Failure(int(self.optimizer.first_skipped_step), what)
        return None

    def restore_last_finite(self) -> None:
        """See `Trainer`. Nothing to do: the weights are always finite."""

    def state(self) -> Any:
        """See `Trainer`."""
        return self


def require_scale(scale: float) -> None:
    """Raise a ConfigError unless the units of activations can be multiplied by `scale`."""
    hint = "; trainSAE gives 0 if all activations are 0" if scale == 0 else ""
    require(0 < scale < math.inf, "scale", scale, f"above 0 and finite{hint}")


class FromState(Named):
    """A dictionary that can be rebuilt from its state dict alone."""

    in_state: tuple[str, ...]
    """Keys that tell its state dict from another class's."""

    @classmethod
    def _built_as(cls, state: dict[str, t.Tensor]) -> dict[str, Any]:
        """The constructor's arguments that `state` holds, beyond activation_dim and dict_size."""
        return {}

    @classmethod
    def from_pretrained(
        cls, path: str | Path, k: int | None = None, device: str | None = None
    ) -> Any:
        """Load an SAE from its `ae.pt`. No other file is needed.

        Raises: CheckpointError if the file holds another class; ConfigError if `k` is given and
        differs from the file's.
        """
        state = t.load(path, map_location=device or "cpu", weights_only=True)
        if missing := sorted(set(cls.in_state) - set(state)):
            raise CheckpointError(
                f"{path}: expected a {cls.__name__}, but {', '.join(missing)} is missing; "
                "load_dictionary(FOLDER) loads any class"
            )
        try:
            arguments: dict[str, Any] = cls._built_as(state)
        except CheckpointError as error:
            raise error.within(str(path)) from error
        saved_k = arguments.get("k")
        require(k in (None, saved_k), "k", k, f"{saved_k}, as in {path}", instead="leave it out")
        dict_size, activation_dim = state["encoder.weight"].shape
        sae: Any = cls(activation_dim, dict_size, **arguments)  # pyright: ignore[reportCallIssue]
        sae = sae.to(state["encoder.weight"])  # its device and dtype
        sae.load_state_dict(state)
        return sae
