"""The buffer: text in, the language model's shuffled activations out.

A fill reads contexts, runs the language model as far as the hook point and writes one row per token
into one preallocated tensor. The rows are then handed out in a random order, each once. The next
fill writes into the same memory.

A fill is a whole number of batches, so nothing is lost between fills. It usually ends inside a
context, and the next fill starts with that context again, at the first token not yet used. So a
fill depends on the text's position, that one context and the generator only. `state_dict` holds
these, and a resumed buffer continues bit for bit.
"""

import logging
import math
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Literal

import torch
from dictionary_learning.buffer import ActivationBuffer
from nnsight import LanguageModel
from torch import Tensor

from ..config.checks import require_at_least_one
from ..config.run import Packing
from ..errors import ConfigError, NonFiniteError, Setting, TextError
from .activation_reader import ActivationReader
from .outliers import NormRecord, Outliers
from .resumed_settings import require_same_settings
from .rows import ActivationRows
from .shared_pass import SharedPass, in_step
from .tokens import WHOLE, ContextStream, Share

_log = logging.getLogger(__name__)


class ResidualBuffer(ActivationBuffer):
    """Endless batches of a language model's activations, (out_batch_size, d_submodule).

    Iteration never ends silently: it raises TextError when the text is too short for another batch.
    A batch is a fresh tensor, which its receiver may change.

    Arguments:
        data: documents, an iterator of str. A `TextStream` can be resumed.
        model: the language model.
        submodule: nnsight's envoy of the module to read, e.g. `find_hook(...).submodule`.
        d_submodule: width of a row. Default: the model's hidden size.
        io: "out" or "in", the side of the submodule to read.
        n_ctxs: contexts shuffled together. The buffer holds n_ctxs * ctx_len rows, rounded down to
            whole batches.
        ctx_len: tokens in a context.
        refresh_batch_size: contexts per batch of the language model.
        out_batch_size: rows in a batch handed out.
        device: where the rows are kept.
        remove_bos: leave out beginning-of-text tokens, see `PositionRule`.
        seed: seeds the order of the rows.
        packing: how documents become contexts, see `ContextStream`.
        max_norm_multiple: leave out outliers (attention sinks; 10 is a good value), see
            `PositionRule`. The median is over a batch of the language model.
        dtype: dtype of the rows. Default: the model's.
        before_batch: called before each batch of the language model. It may raise, and
            `state_dict` is then still valid.
        shared: reads the hook point together with others, see `refreshing`. Default: on its own.
        share: which of the text's contexts it reads.

    Attributes:
        activations: the rows, (n, d_submodule). For inspection only.
        tokens_seen: rows handed out.
        fills: how often the buffer was filled.
        reader: reads the activations and says which tokens are left out.
        order_matters: whether a warning says that the text's last rows were shuffled on their own.

    Raises:
        ConfigError: a setting is out of range or contradicts another.
    """

    def __init__(
        self,
        data: Iterator[str],
        model: LanguageModel,
        submodule: Any,
        d_submodule: int | None = None,
        io: Literal["in", "out"] = "out",
        n_ctxs: int = 2_500,
        ctx_len: int = 128,
        refresh_batch_size: int = 32,
        out_batch_size: int = 2_048,
        device: str = "cpu",
        remove_bos: bool = False,
        *,
        seed: int = 0,
        packing: Packing = "pack",
        max_norm_multiple: float | None = None,
        dtype: torch.dtype | None = None,
        before_batch: Callable[[], None] | None = None,
        shared: SharedPass | None = None,
        share: Share = WHOLE,
    ):
        # Upstream's own __init__ is not called: it sets up the storage that this class replaces.
        if isinstance(data, str):
            raise ConfigError(
                f"data is the string {data!r}: expected documents; use open_text({data!r})"
            )
        tokenizer: Any = model.tokenizer
        self.data = iter(data)
        self.contexts = ContextStream(self.data, tokenizer, ctx_len, packing=packing, share=share)
        self.model = model
        self.submodule = submodule
        hidden_size: Any = model.config.get_text_config().hidden_size
        self.d_submodule: int = hidden_size if d_submodule is None else d_submodule
        self.io: Literal["in", "out"] = io
        self.n_ctxs = int(n_ctxs)
        self.ctx_len = ctx_len
        self.refresh_batch_size = refresh_batch_size
        self.out_batch_size = out_batch_size
        self.device = device
        self.remove_bos = remove_bos
        # What upstream's methods read in its main branch, `tokenized_batch` for one.
        self.add_special_tokens = packing == "truncate"
        self.remove_high_norm = max_norm_multiple
        self.seed = seed
        self.packing: Packing = packing
        self.max_norm_multiple = max_norm_multiple
        self.order_matters = True
        self._check()
        self.reader = ActivationReader(
            model,
            submodule,
            io,
            remove_bos=remove_bos,
            max_norm_multiple=max_norm_multiple,
            shared=shared,
        )
        batches = self.n_ctxs * ctx_len // out_batch_size
        self.activation_buffer_size = batches * out_batch_size
        shape = (self.activation_buffer_size, self.d_submodule)
        row_dtype: Any = model.dtype if dtype is None else dtype
        self.activations = torch.empty(shape, dtype=row_dtype, device=device)
        self.tokens_seen = 0
        self.fills = 0
        self._rows = ActivationRows(
            self.contexts, self.reader, batch_size=refresh_batch_size, before_batch=before_batch
        )
        self._generator = torch.Generator().manual_seed(seed)  # on the CPU, for any device
        self._order = torch.empty(0, dtype=torch.int32)  # in which the rows are handed out
        self._given = 0  # rows of this fill handed out
        self._fill_start: dict[str, Any] | None = None
        self._outliers: Outliers | None = None

    @property
    def dropped_tokens(self) -> int:
        """Rows left out because of `max_norm_multiple`."""
        return self._rows.dropped

    def __next__(self) -> Tensor:
        """The next batch, (out_batch_size, d_submodule).

        Raises:
            TextError: the text can't be read, or is too short for another batch.
            NonFiniteError: an activation is NaN or infinite.
        """
        if self.is_used_up:
            self.refresh()
        rows = self._order[self._given : self._given + self.out_batch_size]
        self._given += self.out_batch_size
        self.tokens_seen += self.out_batch_size
        return self.activations.index_select(0, rows)

    @property
    def is_used_up(self) -> bool:
        """Whether the next batch needs another fill."""
        return self._given + self.out_batch_size > len(self._order)

    def refresh(self) -> None:
        """Fill the buffer and draw a new order. Raises what `__next__` raises."""
        in_step([self.refreshing()])

    def refreshing(self) -> Iterator[None]:
        """`refresh`, a batch of the language model at a time.

        Buffers of several hook points that go in step share each forward pass (`shared`).
        """
        self._fill_start = self._position()
        left = len(self._order) - self._given  # not 0 only if the text ended in the last fill
        self._order, self._given = self._order[:0], 0  # so state_dict() holds if the fill fails
        self.fills += 1
        if self.fills == 1 and self.max_norm_multiple is None:
            self._rows.record = NormRecord()
        try:
            filled = 0
            for n in self._rows.filling(self.activations):
                filled = n
                yield
        except NonFiniteError as error:
            raise error.within(f"fill {self.fills} of the buffer failed") from error
        if self._rows.record is not None:
            self._outliers = self._rows.record.outliers(self.model.tokenizer)
            self._rows.record = None
        if filled < self.out_batch_size:
            raise self._too_short(left + filled)
        if filled < self.activation_buffer_size and self.order_matters:
            _log.warning(
                "%s ended: its last %d tokens were shuffled on their own, expected %d",
                self._text_name(),
                filled,
                self.activation_buffer_size,
            )
        order = torch.randperm(filled, generator=self._generator, dtype=torch.int32)
        self._order = order.to(self.device)
        self._given = 0

    def mean_squared_norm(self) -> float:
        """E||x||^2 over the rows of the current fill. Fills the buffer first if it is empty.

        It hands out no rows. Raises what `__next__` raises.
        """
        if len(self._order) == 0:
            self.refresh()
        rows = self.activations[: len(self._order)].split(1 << 14)
        return sum(float(part.float().square().sum()) for part in rows) / len(self._order)

    def outliers(self) -> Outliers | None:
        """The tokens of the first fill whose norms are far above the median, if there are any.

        None with `max_norm_multiple`. Fills the buffer first if it is empty; hands out no rows.
        """
        if not self.fills:
            self.refresh()
        return self._outliers

    def _position(self) -> dict[str, Any]:
        """Everything that the next fill depends on."""
        return {
            "rows": self._rows.state_dict(),
            "generator": self._generator.get_state().numpy().tobytes().hex(),
            "fills": self.fills,
        }

    def state_dict(self) -> dict[str, Any]:
        """What is needed to continue with the same batches, fit for JSON.

        It holds where the last fill started and how many batches were handed out since.

        Raises:
            TextError: the text can't be resumed.
        """
        self.contexts.state_dict()  # raises
        return {
            "fill": self._fill_start or self._position(),
            "batches": self._given // self.out_batch_size,
            "tokens_seen": self.tokens_seen,
            "config": self._settings(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken: fill again and skip the batches handed out since.

        Raises what `loading` does.
        """
        in_step([self.loading(state)])

    def loading(self, state: dict[str, Any]) -> Iterator[None]:
        """`load_state_dict`, a batch of the language model at a time.

        Raises:
            ConfigError: `state` is of a buffer with other settings.
            TextError: `state` is of another text, or the text has changed.
        """
        require_same_settings(state["config"], self._settings())
        start = state["fill"]
        self._rows.load_state_dict(start["rows"])
        generator = torch.frombuffer(bytearray.fromhex(start["generator"]), dtype=torch.uint8)
        self._generator.set_state(generator)
        self.fills = start["fills"]
        self._order, self._given = self._order[:0], 0
        self._fill_start = None
        if state["batches"]:
            yield from self.refreshing()
            self._given = state["batches"] * self.out_batch_size
        self.tokens_seen = state["tokens_seen"]

    def text_batch(self, batch_size: int | None = None) -> list[str]:
        """Take the next raw documents from the stream.

        Raises:
            TextError: fewer are left.
        """
        n = self.refresh_batch_size if batch_size is None else batch_size
        texts = list(islice(self.data, n))
        if len(texts) < n:
            raise TextError(
                f"{self._text_name()} ended: expected {n} more documents, found {len(texts)}; use a"
                " longer text"
            )
        return texts

    @property
    def config(self) -> dict[str, Any]:
        """The settings, fit for JSON."""
        text = getattr(self.data, "name", None)
        return {**self._settings(), "device": str(self.device), "text": text}

    def _settings(self) -> dict[str, Any]:
        """The settings that decide what the batches hold."""
        return {
            "d_submodule": self.d_submodule,
            "io": self.io,
            "n_ctxs": self.n_ctxs,
            "ctx_len": self.ctx_len,
            "refresh_batch_size": self.refresh_batch_size,
            "out_batch_size": self.out_batch_size,
            "remove_bos": self.remove_bos,
            "seed": self.seed,
            "packing": self.packing,
            "max_norm_multiple": self.max_norm_multiple,
            "dtype": str(self.activations.dtype).removeprefix("torch."),
            "submodule": self.submodule.path.removeprefix("."),
        }

    def _check(self) -> None:
        require_at_least_one(self, "n_ctxs", "refresh_batch_size", "out_batch_size")
        if self.n_ctxs * self.ctx_len < self.out_batch_size:
            least = math.ceil(self.out_batch_size / self.ctx_len)
            raise ConfigError(
                f"a buffer of {self.n_ctxs} contexts of {self.ctx_len} tokens is smaller than a batch",
                expected=f"at least {self.out_batch_size} tokens",
                instead=("use ", Setting("n_ctxs", least), " or more"),
            )

    def _text_name(self) -> str:
        return f"the text {getattr(self.data, 'name', type(self.data).__name__)!r}"

    def _too_short(self, found: int) -> TextError:
        if not self.contexts.tokens_read:
            return TextError(
                f"{self._text_name()} has no documents: expected at least one (a text without a"
                " held-out part holds out every 20th document); use another text"
            )
        return TextError(
            f"{self._text_name()} ended after {self.tokens_seen} tokens: expected"
            f" {self.out_batch_size} for the next batch, found {found}",
            instead=("use a longer text, or more ", Setting("text_passes")),
        )
