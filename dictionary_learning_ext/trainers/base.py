"""The interface between the training loop and trainers, and the base classes of our trainers.

A `Trainer` takes steps, measures batches, says whether all numbers are finite, and exposes the state that a
resume point must hold. Our trainers inherit most of this from `SamplingTrainer`;
`upstream.UpstreamTrainer` adds it to upstream's trainers. Callers never check a trainer's class.
"""

import copy
import functools
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from types import NoneType
from typing import Any, NamedTuple, Protocol, TypeVar, get_args

import torch as t
from dictionary_learning.trainers.top_k import AutoEncoderTopK, TopKTrainer, geometric_median
from dictionary_learning.trainers.trainer import SAETrainer, get_lr_schedule
from tqdm.contrib.logging import logging_redirect_tqdm

from ..config.architectures import TRAINED
from ..config.checks import annotations_of, require, require_choice, require_sizes
from ..config.run import Dtype
from ..config.sae import SAEConfig, energy_of_default_units, require_option, rescaled
from ..devices import chosen_device
from ..errors import ConfigError
from .data_start import start_from_data
from .dictionaries import is_transcoder, sides
from .kernels import compiled
from .optimizers import Guarded, UnitNorm, adam
from .parts import WHOLE, Part, Selection, built_in_part
from .step import decode

logger = logging.getLogger(__name__)
_Config = TypeVar("_Config", bound=SAEConfig)


class Trainer(Protocol):
    """What the training loop needs from a trainer."""

    ae: Any
    """The dictionary, or this process's part of a split one."""
    part: Part
    """Which features of the dictionary `ae` has. Every part's process calls the same methods with the same
    arguments."""
    scheduler: Any
    starts_trained: bool
    """Whether it continues from a trained SAE. Then the first batch doesn't set b_dec."""

    @property
    def config(self) -> dict[str, Any]:
        """Upstream's keys and its own: enough to rebuild the trainer."""
        ...

    def update(self, step: int, x: t.Tensor) -> Any:
        """Take one training step on activations (B, D), in training units."""
        ...

    def metrics(self, step: int, x: t.Tensor) -> dict[str, float]:
        """The metrics to log for activations (B, D). Changes no state and advances no generator."""
        ...

    def check(self, step: int) -> "NotFinite | None":
        """The failure, if a loss, gradient or weight was not finite at any step so far.

        May copy the weights for `restore_last_finite`.
        """
        ...

    def restore_last_finite(self) -> None:
        """Restore the last weights that `check` found finite."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that changes in a step, as tensors and plain numbers, and nothing that is a setting.

        "ae", "optimizer" and "scheduler" are state dicts; "generator" is the state of `generator`, if there is one.
        """
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a `state_dict` of a trainer with the same settings. Tensors are copied."""
        ...


class NotFinite(NamedTuple):
    """Why an SAE's training has to stop."""

    step: int
    """the step at which it failed, or at which the failure was noticed"""
    what: str


class LossLog(NamedTuple):
    """A loss with its parts, as upstream's `log_stats` unpacks it."""

    x: t.Tensor
    x_hat: t.Tensor
    f: t.Tensor
    losses: dict[str, float]


def batch_metrics(x_BD: t.Tensor, x_hat_BD: t.Tensor, f_BF: t.Tensor) -> dict[str, float]:
    """`fve` (1 - residual / total variance), `l0` (mean number of nonzero features per row) and
    `alive_in_batch` (the share of features that are nonzero in some row).
    """
    dtype = t.promote_types(x_BD.dtype, t.float32)
    is_on_BF = f_BF.ne(0)
    alive = is_on_BF.any(0).float().mean()
    return metrics_of_code(x_BD.to(dtype), x_hat_BD.to(dtype), is_on_BF.sum(-1), alive)


def metrics_of_code(
    x_BD: t.Tensor, x_hat_BD: t.Tensor, n_on_B: t.Tensor, share_alive: t.Tensor
) -> dict[str, float]:
    """`batch_metrics` from each row's number of nonzero features, and the share alive in the batch."""
    residual, total = (x_hat_BD - x_BD).square().sum(), (x_BD - x_BD.mean(0)).square().sum()
    return {
        "fve": float(1 - residual / total),
        "l0": float(n_on_B.float().mean()),
        "alive_in_batch": float(share_alive),
    }


class SamplingTrainer(SAETrainer, ABC):
    """Base class of our trainers: construction, noise generator, initial b_dec, step, logging and the check for finite numbers.

    A subclass names its settings and its dictionary, and defines `_terms`. Its constructor has the arguments that upstream's
    trainers have, in their order. Each trainer draws noise from its own generator, so a run depends neither on what else runs
    in the process nor on how often it is logged.

    Arguments:
        dict_class: `dictionary_class` or a subclass. Upstream's AutoEncoderTopK is replaced, with a warning.
        dtype: "float32", or "bfloat16" for matmuls in bf16.
        seed: of the weights and the noise. None: torch's.
        first_fill: activations (N, D) to start from, see `start_from_data`. None: random weights.
        options: those of `settings_class`, in units of the activations. None: the default, except where none is a value.
    """

    settings_class: type[SAEConfig]
    dictionary_class: type
    starts_at_median: bool = True
    """Whether b_dec starts at the first batch's geometric median."""
    draws_noise_seed: bool = False
    """Whether to seed the noise with a number drawn from the trainer's seed, so that it doesn't repeat the random
    numbers of the initial weights."""
    counts: tuple[str, ...] = ()
    """The attributes that change in a step, beside the dictionary, the optimiser, the schedule and the generator."""

    ae: Any
    settings: Any
    """resolved"""
    mean_squared_norm: float = 1.0
    """E||x||^2 of the activations"""
    part: Part = WHOLE
    starts_trained: bool = False
    optimizer: Guarded
    generator: t.Generator

    def __init__(
        self,
        steps: int,
        activation_dim: int,
        layer: int,
        lm_name: str,
        dict_class: type | None = None,
        *,
        dtype: Dtype = "float32",
        seed: int | None = None,
        device: str | None = None,
        wandb_name: str | None = None,
        submodule_name: str | None = None,
        first_fill: t.Tensor | None = None,
        **options: Any,
    ):
        require_sizes(steps=steps, activation_dim=activation_dim)
        require_choice("dtype", dtype, Dtype)
        energy = energy_of_default_units(self.mean_squared_norm, activation_dim)
        settings = resolved(self.settings_class, options, steps, energy)
        SAETrainer.__init__(self, seed)
        self.settings, self.dtype = settings, dtype
        # Attributes of upstream's trainers, which callers read.
        self.lr, self.warmup_steps = settings.lr, settings.warmup_steps
        self.decay_start = settings.decay_start
        self.steps, self.layer, self.lm_name = steps, layer, lm_name
        self.submodule_name = submodule_name
        self.wandb_name = wandb_name or type(self).__name__.removesuffix("Trainer")
        self.device = chosen_device(device)
        if seed is not None:
            t.manual_seed(seed)
        self.ae = self._dictionary(self._dict_class(dict_class), activation_dim).to(self.device)
        self.optimizer = self._optimizer()
        schedule = get_lr_schedule(steps, settings.warmup_steps, settings.decay_start)
        self.scheduler = t.optim.lr_scheduler.LambdaLR(self.optimizer.optimizer, lr_lambda=schedule)
        own_seed = t.initial_seed() if seed is None else seed
        self.generator = t.Generator(self.device).manual_seed(own_seed)
        if self.draws_noise_seed:
            drawn: Any = {"generator": self.generator, "device": self.device}
            self.generator.manual_seed(int(t.randint(2**63 - 1, (1,), **drawn)))
        if first_fill is not None:
            start_from_data(self, first_fill, settings.dict_size, own_seed)

    def _dictionary(self, dict_class: type, activation_dim: int) -> Any:
        """The dictionary at its random start."""
        return dict_class(activation_dim, self.settings.dict_size, **self._built_with())

    def _built_with(self) -> dict[str, Any]:
        """What the dictionary is built with, beside its sizes."""
        return {}

    def _optimizer(self) -> Guarded:
        return Guarded(adam(self.ae.parameters(), self.settings.lr))

    def _dict_class(self, given: Any) -> type:
        """The class of the dictionary to train: `given` if it is ours or a subclass of it, ours by default.

        Upstream's examples pass its own class; it is replaced by ours, with a warning.

        Raises: ConfigError for any other class.
        """
        ours = self.dictionary_class
        if given is None or given is ours:
            return ours
        if given in (AutoEncoderTopK, *ours.__bases__):
            logger.warning(
                "dict_class=%s: %s trains a %s instead; leave out dict_class",
                given.__name__,
                type(self).__name__,
                ours.__name__,
            )
            return ours
        fits = isinstance(given, type) and issubclass(given, ours)
        expected = f"{ours.__name__} or a subclass of it"
        require(fits, "dict_class", given, expected, instead="leave it out")
        return given

    def _prepared(self, x: t.Tensor) -> t.Tensor:
        """Activations (B, D), cast to the dtype and device of b_dec. Of a transcoder (B, 2D).

        Raises: ConfigError for another shape.
        """
        b_dec, source = self.ae.b_dec, self.submodule_name or "the buffer"
        times = 2 if is_transcoder(self.ae) else 1
        if x.dim() != 2 or x.shape[1] != times * len(b_dec):
            raise ConfigError(
                f"activations of shape {tuple(x.shape)} from {source}",
                expected=f"(batch, {'2 * ' * (times - 1)}activation_dim={len(b_dec)!r})",
            )
        return x.to(b_dec)

    @t.no_grad()
    def _start_decoder_bias(self, x: t.Tensor) -> None:
        """Set b_dec to the geometric median of the first batch, as upstream's TopKTrainer does."""
        if not self.starts_trained:
            set_to_median(self.ae.b_dec, sides(self.ae, x)[1])

    def update(self, step: int, x: t.Tensor) -> t.Tensor:
        """Take one training step on activations (B, D). Returns the loss, without waiting for it."""
        x = self._prepared(x)
        if step == 0 and self.starts_at_median:
            with (
                logging_redirect_tqdm()
            ):  # a warning gets a line of its own, above trainSAE's progress bar
                self._start_decoder_bias(x)
        vars(self).update(self._scheduled(step))
        self.part.start_step(step, self.seed, self.generator)
        with self._own_dtypes():
            terms = self._backward(x, step)
        is_finite = self.optimizer.step(terms.loss, step)
        self.scheduler.step()
        self._count(step, x, terms, is_finite)
        return terms.loss.detach()

    @property
    def _matmul_dtype(self) -> t.dtype:
        """The dtype of the loss's matmuls."""
        return t.bfloat16 if self.dtype == "bfloat16" else self.ae.b_dec.dtype

    def _own_dtypes(self) -> AbstractContextManager[Any]:
        """Turns off a caller's autocast: the dtype option decides alone."""
        return t.autocast(self.ae.b_dec.device.type, enabled=False)

    def _backward(self, x: t.Tensor, step: int) -> Any:
        """The `_terms` of a batch. Leaves the loss's gradients at the parameters."""
        self.optimizer.zero_grad()  # of gradients from a caller's own `loss(...).backward()`
        terms = self._terms(x, step, self.generator)
        terms.loss.backward()
        return terms

    def _count(self, step: int, x: t.Tensor, terms: Any, is_finite: t.Tensor) -> None:
        """Update `counts` after a step. If it is not finite (0-dim bool), none of them changes."""

    @property
    def config(self) -> dict:
        """Upstream's keys and ours: enough to rebuild the trainer."""
        names = ("steps", "seed", "device", "layer", "lm_name")
        ours = ("dtype", "wandb_name", "submodule_name")
        return {
            **self.settings.trainer_arguments(),
            "trainer_class": type(self).__name__,
            "dict_class": type(self.ae).__name__,
            "activation_dim": self.ae.activation_dim,
            **{name: getattr(self, name) for name in (*names, *ours)},
        }

    @abstractmethod
    def _terms(self, x: t.Tensor, step: int, generator: t.Generator) -> Any:
        """The loss of a batch (see `_prepared`) and its parts, a NamedTuple. `.loss` is differentiable."""

    def _logged(self, terms: Any, x: t.Tensor) -> dict[str, t.Tensor]:
        """The numbers to log, from a batch's `_terms`: those that are a loss."""
        return {name: value for name, value in terms._asdict().items() if name.endswith("loss")}

    def loss(self, x: t.Tensor, step: int, logging: bool = False) -> Any:
        """The loss of activations (B, D) at `step`: a 0-dim tensor, differentiable.

        With `logging`, returns a `LossLog`: x, its reconstruction and features without noise, and the loss's
        parts. Noise then comes from a copy of the generator, so nothing changes.
        """
        x = self._prepared(x)
        with self._own_dtypes():
            if not logging:
                return self._terms(x, step, self.generator).loss
            losses = self._losses(x, step)
            with t.no_grad():
                f = self._encoded(x)
                x_hat = self.ae.decode(f)
        return LossLog(sides(self.ae, x)[1], x_hat, f, losses)

    def metrics(self, step: int, x: t.Tensor) -> dict[str, float]:
        """See `Trainer`."""
        x = self._prepared(x)
        parameters = self.get_logging_parameters() | self._scheduled(step)
        with self._own_dtypes(), t.no_grad():
            losses, found = self._losses(x, step), self._reconstruction(x, step)
        return losses | {n: float(v) for n, v in parameters.items()} | found

    def _scheduled(self, step: int) -> dict[str, float]:
        """The numbers to log that follow from the step."""
        return {}

    def _losses(self, x: t.Tensor, step: int) -> dict[str, float]:
        """The logged parts of a batch's loss, with noise from a copy of the generator."""
        generator = t.Generator(self.device)
        generator.set_state(self.generator.get_state())
        with t.no_grad():
            losses = self._logged(self._terms(x, step, generator), x)
        return {name: value.item() for name, value in losses.items()}

    def _reconstruction(self, x: t.Tensor, step: int) -> dict[str, float]:
        """`batch_metrics` of a batch, encoded without noise."""
        f = self._encoded(x)
        return batch_metrics(sides(self.ae, x)[1], self.ae.decode(f), f)

    def _encoded(self, x: t.Tensor) -> t.Tensor:
        """The features that logs of training show: (B, D) -> (B, F)."""
        return self.ae.encode(sides(self.ae, x)[0])

    def check(self, step: int) -> NotFinite | None:
        """See `Trainer`. The optimiser skips every step that is not finite."""
        if skipped := int(self.optimizer.skipped_steps):
            what = f"not finite; {skipped} steps were skipped, so the weights are finite"
            return NotFinite(int(self.optimizer.first_skipped_step), what)
        return None

    def restore_last_finite(self) -> None:
        """See `Trainer`. They are always finite."""

    def state_dict(self) -> dict[str, Any]:
        """See `Trainer`."""
        return state_of(self, self.counts) | {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Trainer`. Without a generator's state, the generator stays as it is."""
        load_state(self, state)
        if "generator" in state:
            self.generator.set_state(state["generator"])


def state_of(trainer: Any, counts: Iterable[str]) -> dict[str, Any]:
    """The state dicts of a trainer's dictionary, optimiser and schedule, and these attributes."""
    parts = ("ae", "optimizer", "scheduler")
    state: dict[str, Any] = {name: dict(getattr(trainer, name).state_dict()) for name in parts}
    return state | {"counts": {name: getattr(trainer, name) for name in counts}}


def load_state(trainer: Any, state: dict[str, Any]) -> None:
    """Restore `state_of`. Tensors are copied."""
    trainer.ae.load_state_dict(state["ae"])
    trainer.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
    trainer.scheduler.load_state_dict(state["scheduler"])
    for name, value in state["counts"].items():
        is_tensor = isinstance(value, t.Tensor)
        setattr(trainer, name, value.to(trainer.device, copy=True) if is_tensor else value)


def resolved(
    cls: type[_Config], options: Mapping[str, Any], steps: int, energy: float = 1.0
) -> _Config:
    """The settings that a trainer was given by name, for a run of `steps`. None stands for a default, except where it is a
    value. Warns of options that have no effect.

    Arguments:
        energy: the factor from the units of the defaults to the trainer's, see `rescaled`.

    Raises: ConfigError for an unknown option, a wrong value, or one that doesn't fit the run.
    """
    architecture = options.get("architecture", cls.architecture)
    require_choice("architecture", architecture, TRAINED)
    if architecture != cls.architecture:
        own, other = (TRAINED[name].trainer_class for name in (cls.architecture, architecture))
        raise ConfigError(
            f"these are options of {other}, which trains {architecture}",
            expected=f"those of {own}: trainer_options(…, architecture={cls.architecture!r})",
            instead=f"or trainer={other}",
        )
    for name in options:
        require_option(name, cls)
    hints = annotations_of(cls)
    may_be_none = {name for name, (hint, _) in hints.items() if NoneType in get_args(hint)}
    given: dict[str, Any]
    given = {n: v for n, v in options.items() if v is not None or n in may_be_none}
    start_from = given.pop("init_from", None)
    expected = "nothing, as only `vsae train` and `train` start from the weights of another SAE"
    require(start_from is None, "init_from", start_from, expected)
    expected = "first_fill=ACTIVATIONS in its place"
    require(given.get("start") != "data", "start", "data", expected)
    settings = cls(**given)
    if defaults := {n: v for n, v in rescaled(settings, energy).items() if n not in given}:
        settings = replace(settings, **defaults)
    for name, value, choice in settings.given_in_vain():
        logger.warning("%s=%r: %s does not use it", name, value, choice)
    return settings.without_unused().resolve(steps)


@t.no_grad()
def set_to_median(b_dec: t.Tensor, x: t.Tensor) -> None:
    """Set b_dec to the geometric median of activations (B, D), unless that isn't finite."""
    median = geometric_median(x)
    b_dec.copy_(t.where(median.isfinite().all(), median, b_dec))


LOOK_EVERY = 100
"""The least number of steps between two looks of a `DeadWatch`."""


class DeadWatch:
    """Tells in which steps AuxK can be skipped, without making the host wait for a GPU in every step.

    A feature is dead after a number of tokens without firing. The longest-silent feature bounds when any can die.
    AuxK is skipped until then. From then on it is computed until the next look, at least LOOK_EVERY steps after the
    last one. Without dead features AuxK is 0, so the weights don't depend on when it looks. A resumed run begins with
    a look.
    """

    def __init__(self):
        self._tokens_left = self._looked_at = 0
        """Tokens after the step's begin until one can be dead, and the step of the last look."""
        self._step, self._batch = -2, 0
        """The last step, none so far, and its tokens."""

    def may_be_dead(
        self, step: int, batch: int, since_fired_F: t.Tensor, threshold: int, part: Part = WHOLE
    ) -> bool:
        """Whether a feature of any part can be dead at the end of a step.

        Arguments:
            batch: the step's tokens.
            since_fired_F: tokens since each feature fired, at the step's begin.
            threshold: tokens without firing after which a feature is dead.
        """
        if step == self._step + 1:
            self._tokens_left -= self._batch
        elif step != self._step:  # another state was loaded
            self._tokens_left, self._looked_at = 0, step - LOOK_EVERY
        self._step, self._batch = step, batch
        if self._tokens_left <= batch and step - self._looked_at >= LOOK_EVERY:
            self._tokens_left = threshold - int(part.max(since_fired_F.max()))
            self._looked_at = step
        return self._tokens_left <= batch


class SamplingTopKTrainer(SamplingTrainer, TopKTrainer):
    """Base class of our TopK trainers: dead features and the running threshold. Its dictionary may be split.

    Arguments beyond those of `SamplingTrainer`:
        threshold_beta, threshold_start_step: of the running threshold, as upstream's.
        mean_squared_norm: E||x||^2 of the activations.
        part: the features of a split dictionary that this process trains; see `split.py`.
    """

    counts = ("num_tokens_since_fired", "dead_features")
    optimizer: UnitNorm
    dead_features: Any

    def __init__(
        self,
        steps: int,
        activation_dim: int,
        dict_size: int,
        k: int,
        layer: int,
        lm_name: str,
        dict_class: type | None = None,
        lr: float | None = None,
        *,
        threshold_beta: float = 0.999,
        threshold_start_step: int = 1000,
        mean_squared_norm: float = 1.0,
        part: Part = WHOLE,
        **options: Any,
    ):
        self.k, self.part, self.mean_squared_norm = k, part, mean_squared_norm
        self.threshold_beta, self.threshold_start_step = threshold_beta, threshold_start_step
        options |= {"dict_size": dict_size, "k": k, "lr": lr}
        super().__init__(steps, activation_dim, layer, lm_name, dict_class, **options)
        self.auxk_alpha = self.settings.auxk_alpha * mean_squared_norm
        self.dead_feature_threshold = self.settings.dead_feature_threshold
        self.top_k_aux = max(1, activation_dim // 2)  # as upstream: B.1 of Gao et al.
        self.dead_features, self._dead_watch = -1, DeadWatch()
        self.logging_parameters = [*self._scheduled(0), "dead_features"]
        vars(self).update(self._scheduled(0))
        own_F = range(dict_size)[part.features(dict_size)]
        self.num_tokens_since_fired = t.zeros(len(own_F), dtype=t.long, device=self.device)
        for products in (t.float32, getattr(t, self.dtype)):
            compiled.is_available(
                self.ae.encoder.weight, products
            )  # compiles now, before a progress bar

    def _dictionary(self, dict_class: type, activation_dim: int) -> Any:
        build = functools.partial(dict_class, **self._built_with())
        return built_in_part(self.part, build, activation_dim, self.settings.dict_size, self.k)

    def _optimizer(self) -> UnitNorm:
        return UnitNorm(adam(self.ae.parameters(), self.settings.lr), self.ae, self.part)

    def _start_decoder_bias(self, x: t.Tensor) -> None:
        """See `SamplingTrainer`. Warns of activations of another size than `mean_squared_norm`. Waits for the device."""
        super()._start_decoder_bias(x)
        energy = float(sides(self.ae, x)[1].square().sum(-1).mean())
        told = self.mean_squared_norm
        if not told / 2 <= energy <= told * 2:
            logger.warning(
                f"the first batch has a mean ||x||^2 of {energy:.4g}, and the options are made for {told:.4g}: give "
                f"mean_squared_norm={energy:.4g}, to trainer_options if it makes them, or scale the activations "
                "(normalize_activations=True of trainSAE)"
            )

    @property
    def config(self) -> dict:
        """See `SamplingTrainer`. auxk_alpha is in the activations' units."""
        own = ("k", "auxk_alpha", "threshold_beta", "threshold_start_step")
        return super().config | {name: getattr(self, name) for name in own}

    def _auxk_weight(self, step: int, x: t.Tensor) -> float:
        """auxk_alpha, or 0 in a step that can't have dead features."""
        now = step, len(x), self.num_tokens_since_fired, self.dead_feature_threshold, self.part
        has_auxk = self.auxk_alpha > 0 and self._dead_watch.may_be_dead(*now)
        return self.auxk_alpha if has_auxk else 0.0

    def _metrics_of_code(
        self, x: t.Tensor, selection: Selection, values_BK: t.Tensor
    ) -> dict[str, float]:
        """`batch_metrics` of a sparse code of this part's features, without a dense one."""
        decoded_BD = decode(selection, values_BK, self.ae.decoder.weight, x.dtype)
        x_hat_BD = self.part.sum(decoded_BD) + self.ae.b_dec
        is_on_BK = values_BK.ne(0)
        n_on_F = x.new_zeros(self.ae.dict_size)
        n_on_F.index_add_(0, selection.indices.flatten(), is_on_BK.flatten().to(x.dtype))
        n_on_B, share_alive = self.part.sum(is_on_BK.sum(-1)), (n_on_F > 0).float().mean()
        _, y = sides(self.ae, x)
        return metrics_of_code(y, x_hat_BD, n_on_B, self.part.mean(share_alive))

    @t.no_grad()
    def _count(self, step: int, x: t.Tensor, terms: Any, is_finite: t.Tensor) -> None:
        """See `SamplingTrainer`. As upstream's TopKTrainer, with its running threshold.

        Arguments:
            terms: the batch's loss and what the mean selects; see `step.LossTerms`.
        """
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
