"""What the training loop asks of a trainer, and what our trainers share.

The loop asks a `Trainer` to take a step, for a batch's metrics, whether all numbers are finite, and for
what a resume point must hold (`state.py`). Our trainers inherit most of it from `SamplingTrainer`.
`upstream.UpstreamTrainer` wraps upstream's trainers so that they offer it too. Callers ask what a trainer
can do, never which class it is.
"""

import logging
from abc import ABC, abstractmethod
from typing import Any, NamedTuple, Protocol

import torch as t
from dictionary_learning.trainers.top_k import AutoEncoderTopK, TopKTrainer, geometric_median
from dictionary_learning.trainers.trainer import get_lr_schedule

from ..config.checks import require
from ..errors import ConfigError
from .optimizers import GuardedAdam, UnitNormAdam
from .parts import WHOLE, Part

logger = logging.getLogger(__name__)


class Trainer(Protocol):
    """What the training loop asks of a trainer."""

    ae: Any
    """The dictionary; of a split one, this process's part."""
    part: Part
    """Which features of the dictionary `ae` has. With several, every part calls the same methods with the same
    arguments."""
    scheduler: Any
    starts_trained: bool
    """Whether its weights are a trained SAE's. The first batch then leaves b_dec as it is."""

    @property
    def config(self) -> dict[str, Any]:
        """Upstream's keys and its own: enough to rebuild the trainer."""
        ...

    def update(self, step: int, x: t.Tensor) -> Any:
        """Take one training step on activations (B, D), in training units."""
        ...

    def metrics(self, step: int, x: t.Tensor) -> dict[str, float]:
        """What is logged about activations (B, D), often a part of a step's batch.

        Changes no state and advances no generator.
        """
        ...

    def check(self, step: int) -> "Failure | None":
        """The failure, if a loss, gradient or weight has not been finite since the run began.

        It may keep a copy of the weights, for `restore_last_finite`.
        """
        ...

    def restore_last_finite(self) -> None:
        """Put back the last weights that `check` found finite."""
        ...

    def state_holder(self) -> Any:
        """The object that holds everything a resume point must hold, as attributes that are tensors,
        generators, optimisers, schedules or plain numbers; see `state.trainer_state`."""
        ...


class Failure(NamedTuple):
    """Why an SAE's training has to stop."""

    step: int
    """the step at which it failed, or was found to have failed"""
    what: str


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
    is_on_BF = f_BF.ne(0)
    alive = is_on_BF.any(0).float().mean()
    return metrics_of_code(x_BD, x_hat_BD - x_BD, is_on_BF.sum(-1), alive)


def metrics_of_code(
    x_BD: t.Tensor, error_BD: t.Tensor, n_on_B: t.Tensor, share_alive: t.Tensor
) -> dict[str, float]:
    """`batch_metrics`, from x_hat - x, each row's number of nonzero features, and the share that is nonzero in some row."""
    residual, total = error_BD.square().sum(), (x_BD - x_BD.mean(0)).square().sum()
    return {
        "fve": float(1 - residual / total),
        "l0": float(n_on_B.float().mean()),
        "alive_in_batch": float(share_alive),
    }


class SamplingTrainer(ABC):
    """What our trainers share: the noise generator, b_dec's initial value, the log and the check.

    Each trainer has a noise generator of its own. So a run depends neither on what else runs in the
    process nor on how often it is logged. A subclass sets the attributes below, calls
    `_start_training`, and defines `_terms` and `_logged`.
    """

    ae: Any
    part: Part = WHOLE
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
    """Whether the noise's seed is drawn from the trainer's seed, so that the noise does not repeat the
    numbers of the initial weights."""

    def _dict_class(self, given: Any, ours: type) -> type:
        """The class of the dictionary to train: `ours`, or a subclass of it.

        Upstream's examples pass AutoEncoderTopK, which stands for `ours`.

        Raises: ConfigError for any other.
        """
        if given is None or given is ours:
            return ours
        if given is AutoEncoderTopK:
            logger.warning(
                "dict_class=AutoEncoderTopK: %s trains a %s instead; leave out dict_class",
                type(self).__name__,
                ours.__name__,
            )
            return ours
        fits = isinstance(given, type) and issubclass(given, ours)
        expected = f"{ours.__name__} or a subclass of it"
        require(fits, "dict_class", given, expected, instead="leave it out")
        return given

    def _class_names(self) -> dict[str, str]:
        """The classes, as config.json names them."""
        return {"trainer_class": type(self).__name__, "dict_class": type(self.ae).__name__}

    def _start_training(self, optimizer: GuardedAdam) -> None:
        """Make the learning-rate schedule and the noise's generator.

        The generator is seeded with the trainer's seed. Default: torch's initial seed.
        """
        self.optimizer = optimizer
        schedule = get_lr_schedule(self.steps, self.warmup_steps, decay_start=self.decay_start)
        self.scheduler = t.optim.lr_scheduler.LambdaLR(optimizer, lr_lambda=schedule)
        seed = t.initial_seed() if self.seed is None else self.seed
        self.generator = t.Generator(self.device).manual_seed(seed)
        if self.draws_noise_seed:
            drawn: Any = {"generator": self.generator, "device": self.device}
            self.generator.manual_seed(int(t.randint(2**63 - 1, (1,), **drawn)))

    def _prepared(self, x: t.Tensor) -> t.Tensor:
        """Activations (B, D), in the dtype and on the device of the dictionary's b_dec.

        Raises: ConfigError for another shape, a width that is not D, or an empty batch.
        """
        b_dec, source = self.ae.b_dec, self.submodule_name or "the buffer"
        if x.dim() != 2 or len(x) == 0 or x.shape[1] != len(b_dec):
            raise ConfigError(
                f"activations of shape {tuple(x.shape)} from {source}",
                expected=f"(batch, activation_dim={len(b_dec)!r}), at least one row",
            )
        return x.to(b_dec)

    @t.no_grad()
    def _start_decoder_bias(self, x: t.Tensor) -> None:
        """Set b_dec to the geometric median of the first batch, as upstream's TopKTrainer does."""
        if not self.starts_trained:
            set_to_median(self.ae.b_dec, x)

    @abstractmethod
    def _terms(self, x: t.Tensor, step: int, generator: t.Generator) -> Any:
        """The loss of `_prepared` activations and its parts; `.loss` is differentiable."""

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
        losses = self._losses(x, step)
        with t.no_grad():
            x_hat, f = self.ae(x, output_features=True)
        return LossLog(x, x_hat, f, losses)

    def metrics(self, step: int, x: t.Tensor) -> dict[str, float]:
        """See `Trainer`."""
        x = self._prepared(x)
        losses = self._losses(x, step)
        parameters: dict[str, Any] = self.get_logging_parameters()  # pyright: ignore
        parameters = {name: float(value) for name, value in parameters.items()}
        with t.no_grad():
            return losses | parameters | self._reconstruction(x, step)

    def _losses(self, x: t.Tensor, step: int) -> dict[str, float]:
        """What is logged of the loss of `_prepared` activations. Its noise is from a copy of the generator."""
        generator = t.Generator(self.device)
        generator.set_state(self.generator.get_state())
        with t.no_grad():
            losses = self._logged(self._terms(x, step, generator), x)
        return {name: value.item() for name, value in losses.items()}

    def _reconstruction(self, x: t.Tensor, step: int) -> dict[str, float]:
        """`batch_metrics` of `_prepared` activations, by the mean."""
        x_hat, f = self.ae(x, output_features=True)
        return batch_metrics(x, x_hat, f)

    def check(self, step: int) -> Failure | None:
        """See `Trainer`. The optimiser skips every step that is not finite."""
        if skipped := int(self.optimizer.skipped_steps):
            what = f"not finite; {skipped} steps were skipped, so the weights are finite"
            return Failure(int(self.optimizer.first_skipped_step), what)
        return None

    def restore_last_finite(self) -> None:
        """See `Trainer`."""
        return  # the weights are always finite

    def state_holder(self) -> Any:
        """See `Trainer`."""
        return self


class KAnnealing(NamedTuple):
    """How many features per token a step of training keeps.

        k_t = floor(D + (k - D) t/A),  k from t = A on

    D is activation_dim, as on upstream's main branch, or dict_size if that is less. (If neither is above
    k, every step keeps k.) Only the steps themselves keep more than k: logs, checkpoints and evaluation
    keep k throughout.
    """

    k: int
    start: int
    steps: int
    """A"""

    @classmethod
    def of(cls, k: int, activation_dim: int, dict_size: int, steps: int | None) -> "KAnnealing":
        """For a dictionary whose last k is given. With None, k stays."""
        return cls(k, max(k, min(activation_dim, dict_size)), steps or 0)

    def at(self, step: int) -> int:
        """k_t at a step."""
        if step >= self.steps:
            return self.k
        return self.k + (self.start - self.k) * (self.steps - step) // self.steps

    def threshold_start(self, start_step: int) -> int:
        """The step after which the running threshold follows the selection: that of k features."""
        return max(start_step, self.steps - 1)


@t.no_grad()
def set_to_median(b_dec: t.Tensor, x: t.Tensor) -> None:
    """Set b_dec to the geometric median of activations (B, D). One that is not finite is left out."""
    median = geometric_median(x)
    b_dec.copy_(t.where(median.isfinite().all(), median, b_dec))


LOOK_EVERY = 100
"""Steps between two looks of a `DeadWatch`, at least."""


class DeadWatch:
    """Says when AuxK can be left out, without reading a number in every step, for which a GPU's host waits.

    A feature dies when it has not fired for a number of tokens. So a look at the feature that is nearest to
    that tells for how many tokens none can die. The next look comes after these, and LOOK_EVERY steps after
    the last one. In between AuxK is computed. Without dead features it adds 0, so no weight depends on when
    a look was taken: a run that resumes begins with one.
    """

    def __init__(self):
        self._none_until = self._looked_at = 0
        self._step: int | None = None
        """The last one."""

    def may_be_dead(
        self,
        step: int,
        before: int,
        after: int,
        since_fired_F: t.Tensor,
        threshold: int,
        part: Part = WHOLE,
    ) -> bool:
        """Whether a feature can be dead at the end of a step. The same in all parts.

        Arguments:
            before, after: tokens trained on when the step begins and ends.
            since_fired_F: tokens since each feature fired, when it begins.
            threshold: tokens without firing after which a feature is dead.
            part: whose features these are.
        """
        if self._step is None or step != self._step + 1:  # another state was loaded
            self._none_until, self._looked_at = 0, step - LOOK_EVERY
        self._step = step
        if after >= self._none_until and step - self._looked_at >= LOOK_EVERY:
            self._none_until = before + threshold - int(part.max(since_fired_F.max()))
            self._looked_at = step
        return after >= self._none_until


class SamplingTopKTrainer(SamplingTrainer, TopKTrainer):
    """What our trainers of SAEs with a k share: k's annealing, dead features and the running threshold."""

    ae: Any
    settings: Any
    optimizer: UnitNormAdam
    dead_features: Any

    def _start_top_k(self) -> None:
        """`_start_training`, once upstream's trainer is set up."""
        dead_feature_threshold = self.settings.dead_feature_threshold
        assert dead_feature_threshold is not None, "settings have their defaults"
        anneal_steps = self.settings.in_steps(self.steps)["k_anneal"]
        sizes = self.k, self.ae.activation_dim, self.settings.dict_size
        self.k_annealing = KAnnealing.of(*sizes, anneal_steps)
        self.threshold_start_step = self.k_annealing.threshold_start(self.threshold_start_step)
        self.dead_feature_threshold = dead_feature_threshold
        own = self.part.features(self.settings.dict_size)
        self.num_tokens_since_fired = self.num_tokens_since_fired[own].to(self.device)
        self.tokens_trained, self._dead_watch = 0, DeadWatch()
        self._start_training(UnitNormAdam(self.ae, self.lr, self.part))

    def _has_auxk(self, step: int, x: t.Tensor) -> bool:
        """Whether AuxK may add to the loss of a step."""
        trained = self.tokens_trained + len(x)
        counts = self.tokens_trained, trained, self.num_tokens_since_fired
        threshold, may_be_dead = self.dead_feature_threshold, self._dead_watch.may_be_dead
        return self.auxk_alpha > 0 and may_be_dead(step, *counts, threshold, self.part)

    def _metrics_of_code(
        self, x: t.Tensor, decoded_BD: t.Tensor, indices_BK: t.Tensor, values_BK: t.Tensor
    ) -> dict[str, float]:
        """`batch_metrics`, of a sparse code of these features and what the decoder makes of it, without b_dec."""
        error_BD = self.part.sum(decoded_BD) + self.ae.b_dec - x
        is_on_BK = values_BK.ne(0)
        n_on_F = x.new_zeros(self.ae.dict_size)
        n_on_F.index_add_(0, indices_BK.flatten(), is_on_BK.flatten().to(x.dtype))
        n_on_B, share_alive = self.part.sum(is_on_BK.sum(-1)), (n_on_F > 0).float().mean()
        return metrics_of_code(x, error_BD, n_on_B, self.part.mean(share_alive))

    @t.no_grad()
    def _finish_step(self, step: int, x: t.Tensor, terms: Any) -> None:
        """Move the weights by their gradients, and count what upstream's TopKTrainer counts.

        If the step is not finite, neither weights nor counts change.

        Arguments:
            terms: the batch's loss, and what the mean selects: see `step.LossTerms`.
        """
        is_finite = self.optimizer.constrained_step(terms.loss, step)
        self.scheduler.step()
        self.tokens_trained += len(x)
        self.num_tokens_since_fired = t.where(
            is_finite, terms.tokens_since_fired_F, self.num_tokens_since_fired
        )
        is_dead_F = self.num_tokens_since_fired >= self.dead_feature_threshold
        self.dead_features = self.part.sum(is_dead_F.sum())
        if step > self.threshold_start_step:
            old, mean_threshold = self.ae.threshold, terms.mean_threshold
            running = self.threshold_beta * old + (1 - self.threshold_beta) * mean_threshold
            updated = t.where(old < 0, mean_threshold, running)
            self.ae.threshold = t.where(is_finite & (mean_threshold > 0), updated, old)
