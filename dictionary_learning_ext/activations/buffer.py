"""Batches of activations: the rows of a hook point, shuffled.

A fill writes rows into one preallocated tensor. They are then handed out in a random order, each once.
The next fill writes into the same memory. It holds a whole number of batches, so no row is lost between
fills. `state_dict` holds where the last fill started in the data, and how many batches were handed out
since. A resumed buffer repeats that fill and skips those batches, so it continues bit for bit.

Shapes: B rows in a batch, D = the width of a row.
"""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from itertools import zip_longest
from typing import Any, Literal

import torch
from dictionary_learning.buffer import ActivationBuffer
from nnsight import LanguageModel
from torch import Tensor

from ..config.checks import require_sizes
from ..config.run import Packing, RunConfig
from ..config.sae import training_energy
from ..devices import chosen_device
from ..errors import ActivationsError, ConfigError, NonFiniteError
from .hook_points import HookPoint, Place, find_hook, place_of
from .language_models import CausalLM, require_positions, unwrapped
from .passes import SharedPasses
from .positions import PositionRule
from .rows import ActivationReader, ModelRows, RowStream
from .tokens import ContextStream

logger = logging.getLogger(__name__)


class BatchSource(ABC):
    """Hands out batches of activations of one hook point. Reading can be resumed."""

    d_submodule: int
    """D."""
    out_batch_size: int
    """B."""
    tokens_seen: int
    """Rows handed out."""

    @property
    def config(self) -> dict[str, Any]:
        """The settings, as JSON can hold them."""
        return {}

    @property
    def passes(self) -> int:
        """How many passes over the data are complete."""
        return 0

    @property
    def is_used_up(self) -> bool:
        """Whether the next batch needs another fill. False for a source without a buffer."""
        return False

    def refreshing(self) -> Iterator[None]:
        """Fill the buffer step by step. Yields after each batch of the language model, or each read."""
        return iter(())

    @abstractmethod
    def __next__(self) -> Tensor:
        """The next batch, (B, D), in memory of its own. Raises TextError if the data ends before it is full."""

    @abstractmethod
    def first_rows(self) -> Tensor:
        """The rows of the first fill, (N, D), which are still handed out afterwards. They aren't copied."""

    def require_finite(self) -> None:
        """Raise a NonFiniteError if a batch was handed out that is not finite. May wait for the device."""
        return  # by default, rows are checked before they are handed out

    def mean_squared_norm(self) -> float:
        """E||x||^2 of the first rows."""
        rows = self.first_rows()
        return sum(float(part.float().square().sum()) for part in rows.split(1 << 14)) / len(rows)

    def state_dict(self) -> dict[str, Any]:
        """The position in the data, as JSON can hold it."""
        raise NotImplementedError("see Inputs.can_resume")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict` of a source with the same settings."""
        raise NotImplementedError("see Inputs.can_resume")


def in_step(parts: Iterable[Iterator[object]]) -> None:
    """Exhaust iterators round-robin."""
    for _ in zip_longest(*parts):
        pass


class Batches:
    """The training batches of all hook points of a run, in the same token order.

    Sources that are used up are filled in step, so that they share each pass of the language model.

    Attributes:
        by_hook: the source of each hook point, by its name.
    """

    def __init__(self, settings: RunConfig, sources: Mapping[str, BatchSource]):
        self._settings, self.by_hook = settings, sources
        self._passes = 0  # passes over the data that are complete

    def next(self) -> dict[str, Tensor]:
        """The next batch of each hook point, (B, D)."""
        self._refill()
        return {name: next(source) for name, source in self.by_hook.items()}

    def _refill(self) -> None:
        """Fill the sources that are used up.

        No source has handed out its next batch yet. So if this is interrupted, all resume at the same batch.
        """
        while used_up := [source for source in self.by_hook.values() if source.is_used_up]:
            in_step(source.refreshing() for source in used_up)
            before, self._passes = self._passes, self._passes_done()
            if self._passes > before and self._passes != self._settings.text_passes:
                logger.info("the training data is read again: pass %d", self._passes + 1)

    def _passes_done(self) -> int:
        return max((source.passes for source in self.by_hook.values()), default=0)

    def mean_squared_norms(self) -> dict[str, float]:
        """E||x||^2 of each hook point's first rows. Raises ActivationsError if they are all zero."""
        self._refill()
        found = {name: source.mean_squared_norm() for name, source in self.by_hook.items()}
        if zero := [name for name, squared in found.items() if squared == 0]:
            raise ActivationsError(
                f"{zero[0]}: the first activations are all zero, which no SAE can learn",
                instead="check what wrote them, or read another hook point",
            )
        return found

    def norm_factors(self, mean_squared_norms: Mapping[str, float]) -> dict[str, float]:
        """The number that each hook point's raw activations are divided by in training."""
        normalize = self._settings.normalize
        if normalize == "none":
            return dict.fromkeys(mean_squared_norms, 1.0)
        return {
            name: math.sqrt(squared / training_energy(normalize, self.by_hook[name].d_submodule))
            for name, squared in mean_squared_norms.items()
        }

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Each hook point's `BatchSource.state_dict`."""
        return {name: source.state_dict() for name, source in self.by_hook.items()}

    def load_state_dict(self, states: Mapping[str, dict[str, Any]]) -> None:
        """Continue from each hook point's `state_dict`."""
        for name, state in states.items():
            self.by_hook[name].load_state_dict(state)
        self._passes = self._passes_done()

    def require_finite(self) -> None:
        """See `BatchSource`."""
        for source in self.by_hook.values():
            source.require_finite()

    def tokens_seen(self) -> set[int]:
        """How many rows each source has handed out: one number, except in the middle of `next`."""
        return {source.tokens_seen for source in self.by_hook.values()}


class ShuffledRows(BatchSource):
    """Shuffled batches of a stream of rows, as a `BatchSource`. They have the dtype of the stream.

    Arguments:
        size: the number of rows that are shuffled together, rounded down to whole batches.
        out_batch_size: B.
        device: where the rows are kept.

    Attributes:
        fills: how often the buffer was filled.

    Raises: ConfigError if the size is below a batch.
    """

    def __init__(self, stream: RowStream, size: int, out_batch_size: int, device: str = "cpu"):
        if size < out_batch_size:
            raise ConfigError(
                f"a buffer of {size} rows is smaller than a batch",
                expected=f"at least {out_batch_size}",
                instead="use more n_ctxs",
            )
        self._stream = stream
        self.d_submodule = stream.width
        self.out_batch_size = out_batch_size
        self.device = device
        self.activation_buffer_size = size // out_batch_size * out_batch_size
        self.tokens_seen = 0
        self.fills = 0
        self._order = torch.empty(0, dtype=torch.int32)  # row numbers, in the order of the batches
        self._given = 0  # rows of this fill that were handed out
        self._skipped = 0  # rows of the next fill that were handed out before a resume
        self._fill_start: dict[str, Any] | None = None

    @cached_property
    def activations(self) -> Tensor:
        """The buffer's memory, (n, D). For inspection only."""
        shape = (self.activation_buffer_size, self.d_submodule)
        return torch.empty(shape, dtype=self._stream.dtype, device=self.device)

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        """The next batch, (out_batch_size, D).

        Raises:
            TextError: the text can't be read, or too few rows are left for another batch.
            NonFiniteError: an activation is NaN or infinite.
            ActivationsError: a file of activations is damaged.
        """
        while self.is_used_up:
            self.refresh()
        rows = self._order[self._given : self._given + self.out_batch_size]
        self._given += self.out_batch_size
        self.tokens_seen += self.out_batch_size
        return self.activations.index_select(0, rows)

    @property
    def passes(self) -> int:
        """See `BatchSource`."""
        return self._stream.passes

    @property
    def is_used_up(self) -> bool:
        """Whether the next batch needs another fill."""
        return self._given + self.out_batch_size > len(self._order)

    def refresh(self) -> None:
        """Fill the buffer and draw a new order. Raises: as `__next__`."""
        in_step([self.refreshing()])

    def refreshing(self) -> Iterator[None]:
        """See `BatchSource`."""
        self._fill_start = self._position()
        left = len(self._order) - self._given  # not 0 only if the rows ended in the last fill
        self._order, self._given = self._order[:0], 0  # so state_dict() holds if the fill fails
        self.fills += 1
        filled = 0
        try:
            for n in self._stream.fill(self.activations):
                filled = n
                yield
        except NonFiniteError as error:
            raise error.within(f"fill {self.fills} of the buffer failed") from error
        if filled < self.out_batch_size:
            raise self._stream.ended(self.out_batch_size, left + filled, self.tokens_seen)
        self._order = self._stream.order(filled, self.fills).to(self.device)
        self._given, self._skipped = self._skipped, 0

    def first_rows(self) -> Tensor:
        """See `BatchSource`."""
        if len(self._order) == 0:
            self.refresh()
        return self.activations[: len(self._order)]

    def _position(self) -> dict[str, Any]:
        """The position from which the next fill can be repeated."""
        return {**self._stream.state_dict(), "fills": self.fills}

    def state_dict(self) -> dict[str, Any]:
        """See `BatchSource`."""
        return {
            "fill": self._fill_start or self._position(),
            "batches": (self._given + self._skipped) // self.out_batch_size,
            "tokens_seen": self.tokens_seen,
            "config": self._settings(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict` of a buffer with the same settings.

        Raises: TextError or ConfigError if the text or the stored activations have changed since.
        """
        self._stream.restrict_to(state["config"])
        self._fill_start = dict(state["fill"])
        self._stream.load_state_dict(self._fill_start)
        self.fills = self._fill_start["fills"]
        self._order, self._given = self._order[:0], 0
        self._skipped = state["batches"] * self.out_batch_size
        self.tokens_seen = state["tokens_seen"]

    @property
    def config(self) -> dict[str, Any]:
        """The settings, as JSON can hold them."""
        return {**self._settings(), "device": str(self.device), **self._stream.origin}

    def _settings(self) -> dict[str, Any]:
        """The settings that the batches depend on."""
        return {
            "d_submodule": self.d_submodule,
            "rows": self.activation_buffer_size,
            "out_batch_size": self.out_batch_size,
            **self._stream.settings(),
        }


class ResidualBuffer(ShuffledRows, ActivationBuffer):
    """Shuffled batches of a language model's activations, (out_batch_size, d_submodule).

    It stands in for upstream's `ActivationBuffer`. Iteration never ends silently: it raises TextError
    when the text is too short for another batch. Each batch is a new tensor, which the caller may change.

    Arguments:
        data: documents, an iterator of str. Only a `TextStream` can be resumed.
        model: the language model.
        hook: the hook point to read, or its name.
        submodule: in place of a hook point, as upstream: the module to read, or nnsight's envoy of it.
        io: "out" or "in", the side of `submodule` to read.
        d_submodule: width of a row. Default: the model's hidden size.
        n_ctxs: the number of contexts that are shuffled together. The buffer holds n_ctxs * ctx_len rows,
            rounded down to whole batches.
        ctx_len: tokens in a context.
        refresh_batch_size: contexts in a batch of the language model.
        out_batch_size: rows in a batch of the buffer.
        device: where the rows are kept.
        remove_bos: leave out beginning-of-text tokens, see `PositionRule`.
        seed: seeds the order of the rows.
        packing: how documents become contexts, see `ContextStream`.
        max_norm_multiple: leave out outliers (attention sinks; 10 is a good value), see
            `PositionRule`.
        dtype: dtype of the rows. Default: the model's.
        before_batch: called before each batch of the language model. It may raise, and
            `state_dict` is then still valid.
        shared: the passes that several hook points share. Default: this hook point's own passes.

    Attributes:
        tokens_seen: rows handed out.
        fills: how often the buffer was filled.
        reader: the `ActivationReader` of the hook point.

    Raises:
        ConfigError: neither a hook point nor a submodule with its `io` is given, a batch is larger than the
            buffer, or a setting doesn't suit the tokenizer.
        LanguageModelError: the model doesn't have this hook point or submodule.
    """

    def __init__(
        self,
        data: Iterator[str],
        model: LanguageModel | CausalLM,
        hook: HookPoint | str | None = None,
        *,
        submodule: Any = None,
        io: Literal["in", "out"] | None = None,
        d_submodule: int | None = None,
        n_ctxs: int = 2_500,
        ctx_len: int = 128,
        refresh_batch_size: int = 32,
        out_batch_size: int = 2_048,
        device: str = "cpu",
        remove_bos: bool = False,
        seed: int = 0,
        packing: Packing = "pack",
        max_norm_multiple: float | None = None,
        dtype: torch.dtype | None = None,
        before_batch: Callable[[], None] | None = None,
        shared: SharedPasses | None = None,
    ):
        # Upstream's own __init__ is not called: it sets up the storage that this class replaces.
        lm = unwrapped(model)
        module, tokenizer = lm.module, lm.tokenizer
        sizes = {"refresh_batch_size": refresh_batch_size, "out_batch_size": out_batch_size}
        require_sizes(n_ctxs=int(n_ctxs), ctx_len=ctx_len, **sizes)
        require_positions(ctx_len, module.config.name_or_path or type(module).__name__, module)
        self.data = iter(data)
        self.contexts = ContextStream(self.data, tokenizer, ctx_len, packing=packing)
        self.model = model
        self.n_ctxs = int(n_ctxs)
        self.ctx_len = ctx_len
        self.refresh_batch_size = refresh_batch_size
        self.out_batch_size = out_batch_size
        # `tokenized_batch` of upstream's main branch reads it.
        self.add_special_tokens = packing == "truncate"
        rule = PositionRule(tokenizer, remove_bos=remove_bos, max_norm_multiple=max_norm_multiple)
        # Upstream's `evaluate` reads it.
        self.submodule, place = _place(model, hook, submodule, io)
        self.reader = ActivationReader(lm, place, rule, shared)
        hidden_size: int = module.config.get_text_config().hidden_size
        rows = ModelRows(
            self.contexts,
            self.reader,
            width=hidden_size if d_submodule is None else d_submodule,
            dtype=module.dtype if dtype is None else dtype,
            batch_size=refresh_batch_size,
            seed=seed,
            before_batch=before_batch,
        )
        super().__init__(rows, self.n_ctxs * ctx_len, out_batch_size, chosen_device(device))

    @property
    def config(self) -> dict[str, Any]:
        """The settings, as JSON can hold them."""
        return super().config | {"refresh_batch_size": self.refresh_batch_size}

    def state_dict(self) -> dict[str, Any]:
        """See `ShuffledRows.state_dict`. Raises TextError if the text can't be resumed."""
        self.contexts.state_dict()  # raises
        return super().state_dict()

    def close(self) -> None:
        """Does nothing. tqdm closes what it iterates over if TQDM_DISABLE is set, and upstream's `close` reads an
        attribute that this class doesn't have."""

    def _settings(self) -> dict[str, Any]:
        return {
            "d_submodule": self.d_submodule,
            "n_ctxs": self.n_ctxs,
            "out_batch_size": self.out_batch_size,
            **self._stream.settings(),
        }


def _place(
    model: LanguageModel | CausalLM,
    hook: HookPoint | str | None,
    submodule: Any,
    io: Literal["in", "out"] | None,
) -> tuple[Any, Place]:
    """The submodule and the place that a `ResidualBuffer` reads; see there."""
    if isinstance(hook, str):
        hook = find_hook(model, hook)
    module = unwrapped(model).module
    if isinstance(hook, HookPoint) and submodule is None and io is None:
        return hook.submodule, place_of(module, hook.place.module, hook.io)
    if hook is not None or submodule is None or io not in ("in", "out"):
        raise ConfigError(
            "expected a hook point to read, or a submodule and its side, io='in' or 'out'",
            instead="use e.g. ResidualBuffer(text, lm, find_hook(lm, 'blocks.0.hook_resid_post'))",
        )
    return submodule, place_of(module, submodule, io)
