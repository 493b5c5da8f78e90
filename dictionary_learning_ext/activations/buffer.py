"""The buffer: text in, the language model's shuffled activations out.

A fill reads contexts, runs the language model as far as the hook point and writes one row a token
into one preallocated tensor. The rows are then handed out in a random order, each once, and the
next fill writes into the same memory.

Nothing is lost between fills, and a restore is exact, because a fill is a whole number of
batches: it ends inside a context as a rule, and the next fill begins with that context again, at
the first token not yet used. So a fill is a function of the text's position, that one context and
the generator, which is all that `state_dict` holds.
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

from ..config.options import Packing
from ..errors import ConfigError, NonFiniteError, TextError
from .activation_reader import ActivationReader
from .rows import ActivationRows
from .tokens import ContextStream

_log = logging.getLogger(__name__)


class ResidualBuffer(ActivationBuffer):
    """Batches of a language model's activations, (out_batch_size, d_submodule), without end.

    Its iteration never ends silently: it raises TextError when the text does not give another
    batch. A batch is a fresh tensor that its receiver may change.

    Arguments:
        data: documents, an iterator of str. A `TextStream` can be resumed.
        model: the language model.
        submodule: nnsight's envoy of the module to read, as `find_hook(...).submodule`.
        d_submodule: width of a row; the model's hidden size unless told.
        io: "out" or "in", which side of the submodule to read.
        n_ctxs: how many contexts of ctx_len tokens are shuffled together; the buffer holds
            n_ctxs * ctx_len rows rounded down to whole batches.
        ctx_len: tokens in a context.
        refresh_batch_size: contexts in a batch of the language model's.
        out_batch_size: rows in a batch handed out.
        device: where the rows are kept.
        remove_bos: leave out every position whose token is the tokenizer's beginning-of-text
            token, wherever it stands. Where that is the end-of-text token too (GPT-NeoX, GPT-2),
            this leaves out the separators of packed text.
        seed: of the order of the rows.
        packing: how documents become contexts, see `ContextStream`.
        max_norm_multiple: leave out rows whose norm is more than this many times the median norm
            in their batch of the language model's (attention sinks; 10 is a good value).
        dtype: of the rows; the model's unless told.
        before_batch: called before each batch of the language model's; it may raise, and
            `state_dict` is then good to go on with.

    Attributes:
        activations: the rows, (n, d_submodule); only for looking.
        tokens_seen: rows handed out.
        fills: how often the buffer was filled.

    Raises:
        ConfigError: a setting is out of range or does not fit the others.
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
    ):
        # Upstream's own __init__ is not called: it sets up the storage that this class replaces.
        if isinstance(data, str):
            raise ConfigError(f"data is the string {data!r}: open it with open_text({data!r})")
        tokenizer: Any = model.tokenizer
        self.data = iter(data)
        self.contexts = ContextStream(self.data, tokenizer, ctx_len, packing=packing)
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
        self.seed = seed
        self.packing: Packing = packing
        self.max_norm_multiple = max_norm_multiple
        self._check()
        reader = ActivationReader(
            model, submodule, io, remove_bos=remove_bos, max_norm_multiple=max_norm_multiple
        )
        batches = self.n_ctxs * ctx_len // out_batch_size
        self.activation_buffer_size = batches * out_batch_size
        shape = (self.activation_buffer_size, self.d_submodule)
        row_dtype: Any = model.dtype if dtype is None else dtype
        self.activations = torch.empty(shape, dtype=row_dtype, device=device)
        self.tokens_seen = 0
        self.fills = 0
        self._rows = ActivationRows(
            self.contexts, reader, batch_size=refresh_batch_size, before_batch=before_batch
        )
        self._generator = torch.Generator().manual_seed(seed)  # on the CPU, for any device
        self._order = torch.empty(0, dtype=torch.int32)  # of the rows, as they are handed out
        self._given = 0  # how many of them were
        self._fill_start: dict[str, Any] | None = None

    @property
    def dropped_tokens(self) -> int:
        """How many rows max_norm_multiple left out."""
        return self._rows.dropped

    def __next__(self) -> Tensor:
        """The next batch, (out_batch_size, d_submodule).

        Raises:
            TextError: the text can't be read, or is too short for another batch.
            NonFiniteError: an activation is NaN or infinite.
        """
        if self._given + self.out_batch_size > len(self._order):
            self.refresh()
        rows = self._order[self._given : self._given + self.out_batch_size]
        self._given += self.out_batch_size
        self.tokens_seen += self.out_batch_size
        return self.activations.index_select(0, rows)

    def refresh(self) -> None:
        """Fill the buffer and draw a new order. Raises as `__next__` does."""
        self._fill_start = self._position()
        left = len(self._order) - self._given  # some only if the text ended in the last fill
        self._order, self._given = (
            self._order[:0],
            0,
        )  # so state_dict() holds if a fill is broken off
        self.fills += 1
        try:
            filled = self._rows.fill(self.activations)
        except NonFiniteError as error:
            raise NonFiniteError(f"fill {self.fills} of the buffer failed: {error}") from error
        if filled < self.out_batch_size:
            raise self._too_short(left + filled)
        if filled < self.activation_buffer_size:
            _log.warning(
                "%s ended: its last %d tokens are shuffled among themselves, not among %d",
                self._text_name(),
                filled,
                self.activation_buffer_size,
            )
        order = torch.randperm(filled, generator=self._generator, dtype=torch.int32)
        self._order = order.to(self.device)
        self._given = 0

    def mean_squared_norm(self) -> float:
        """E||x||^2 over the rows of the present fill (the first, if none was yet), none handed out.

        Raises as `__next__` does.
        """
        if len(self._order) == 0:
            self.refresh()
        rows = self.activations[: len(self._order)].split(1 << 14)
        return sum(float(part.float().square().sum()) for part in rows) / len(self._order)

    def _position(self) -> dict[str, Any]:
        """All that the next fill depends on."""
        return {
            "rows": self._rows.state_dict(),
            "generator": self._generator.get_state().numpy().tobytes().hex(),
            "fills": self.fills,
        }

    def state_dict(self) -> dict[str, Any]:
        """What it takes to go on with the same batches; fit for JSON.

        It holds where the last fill began and how many batches were handed out since.

        Raises:
            TextError: the data is an iterator without a state.
        """
        self.contexts.state_dict()  # raises
        return {
            "fill": self._fill_start or self._position(),
            "batches": self._given // self.out_batch_size,
            "tokens_seen": self.tokens_seen,
            "config": self._settings(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken: fill again and skip the batches handed out since.

        Raises:
            ConfigError: `state` is of a buffer with other settings.
            TextError: it is of another text.
        """
        now = self._settings()
        if differ := [key for key in now if state["config"].get(key) != now[key]]:
            was = ", ".join(f"{key}={state['config'].get(key)!r}" for key in differ)
            given = ", ".join(f"{key}={now[key]!r}" for key in differ)
            raise ConfigError(f"a run whose buffer had {was} can't go on with {given}: give {was}")
        start = state["fill"]
        self._rows.load_state_dict(start["rows"])
        generator = torch.frombuffer(bytearray.fromhex(start["generator"]), dtype=torch.uint8)
        self._generator.set_state(generator)
        self.fills = start["fills"]
        self._order, self._given = self._order[:0], 0
        self._fill_start = None
        if state["batches"]:
            self.refresh()
            self._given = state["batches"] * self.out_batch_size
        self.tokens_seen = state["tokens_seen"]

    def text_batch(self, batch_size: int | None = None) -> list[str]:
        """The next documents of the stream, raw; they are then gone from it.

        Raises:
            TextError: fewer are left.
        """
        n = self.refresh_batch_size if batch_size is None else batch_size
        texts = list(islice(self.data, n))
        if len(texts) < n:
            raise TextError(
                f"{self._text_name()} ended: {n} documents were needed and {len(texts)} were left;"
                " give more text, a smaller batch, or read it again with --text-passes 2"
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
        for name in ("n_ctxs", "refresh_batch_size", "out_batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: give 1 or more")
        if self.n_ctxs * self.ctx_len < self.out_batch_size:
            raise ConfigError(
                f"a buffer of {self.n_ctxs} contexts of {self.ctx_len} tokens holds fewer than the"
                f" {self.out_batch_size} of a batch: give n_ctxs"
                f" {math.ceil(self.out_batch_size / self.ctx_len)} or more, or smaller batches"
            )

    def _text_name(self) -> str:
        return f"the text {getattr(self.data, 'name', type(self.data).__name__)!r}"

    def _too_short(self, found: int) -> TextError:
        if not self.contexts.tokens_read:
            return TextError(
                f"{self._text_name()} holds no text: give one that does (where a text has no"
                " held-out part, it is every 20th document)"
            )
        return TextError(
            f"{self._text_name()} ended after {self.tokens_seen} tokens were handed out: the next"
            f" batch needs {self.out_batch_size} and {found} were found; give more text, fewer"
            " steps, or read it again with --text-passes 2"
        )
