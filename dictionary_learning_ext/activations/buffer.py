"""`ResidualBuffer`: shuffled batches of the activations of a language model that reads a text.

Shapes: B contexts, L = ctx_len tokens, N rows, D = the width of a row.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from dictionary_learning.buffer import ActivationBuffer
from einops import rearrange
from torch import Tensor

from ..config.checks import require_sizes
from ..config.run import Packing
from ..devices import chosen_device
from ..errors import ConfigError, TextError
from .hook_points import AnyPlace, HookPoint, find_hook, place_of
from .language_models import CausalLM, require_positions, unwrapped
from .passes import SharedPasses
from .positions import CONTEXTS_PER_MEDIAN, PositionRule
from .rows import ActivationReader
from .shuffled_rows import ShuffledRows
from .tokens import ContextStream

if TYPE_CHECKING:
    from nnsight import LanguageModel


class _Contexts(NamedTuple):
    """Contexts to read."""

    input_ids_BL: Tensor
    mask_BL: Tensor
    """0 at padding."""
    wanted_BL: Tensor
    """False at tokens that are left out, or were in an earlier fill. Outliers are not known yet."""


_Read = tuple[Tensor, Tensor, Tensor, Tensor]
"""Contexts after their forward pass: the three of `_Contexts`, and their activations, (B, L, D)."""


class ResidualBuffer(ShuffledRows, ActivationBuffer):
    """Shuffled batches of a language model's activations, (out_batch_size, d_submodule).

    It stands in for upstream's `ActivationBuffer`. Iteration never ends silently: it raises TextError
    when the text is too short for another batch. Each batch is a new tensor, which the caller may change.

    A fill may end inside a context. The next fill then runs the language model on that context again
    and continues after its last row. So a position needs no activations: it is the position in the text,
    that one context's ids, and the state of the generator that draws the orders.

    Arguments:
        data: documents, an iterator of str. Only a `TextStream` can be resumed.
        model: the language model.
        hook: the hook point to read, or its name.
        submodule: in place of a hook point, as upstream: the module to read, or nnsight's envoy of it.
        io: "out" or "in", the side of `submodule` to read.
        d_submodule: width of a side of a row. Default: the model's hidden size.
        n_ctxs: the number of contexts that are shuffled together. The buffer holds n_ctxs * ctx_len rows,
            rounded down to whole batches.
        ctx_len: tokens in a context.
        refresh_batch_size: contexts in a batch of the language model. It doesn't change which tokens are outliers:
            each CONTEXTS_PER_MEDIAN contexts of a fill share one median norm.
        out_batch_size: rows in a batch of the buffer.
        device: where the rows are kept.
        remove_bos: leave out beginning-of-text tokens, see `PositionRule`.
        seed: seeds the random orders of the rows.
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
        model: "LanguageModel | CausalLM",
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
        width: int = (
            module.config.get_text_config().hidden_size if d_submodule is None else d_submodule
        )
        # Upstream's `evaluate` reads `submodule`.
        self.submodule, place = _place(model, hook, submodule, io)
        self.sides = len(place.sides)
        width *= self.sides
        super().__init__(int(n_ctxs) * ctx_len, out_batch_size, width, chosen_device(device))
        self.data = iter(data)
        self.contexts = ContextStream(self.data, tokenizer, ctx_len, packing=packing)
        self.model = model
        self.n_ctxs = int(n_ctxs)
        self.ctx_len = ctx_len
        self.refresh_batch_size = refresh_batch_size
        # `tokenized_batch` of upstream's main branch reads it.
        self.add_special_tokens = packing == "truncate"
        rule = PositionRule(tokenizer, remove_bos=remove_bos, max_norm_multiple=max_norm_multiple)
        self.reader = ActivationReader(lm, place, rule, shared)
        self.dtype = module.dtype if dtype is None else dtype
        self._before_batch = before_batch
        self._seed = seed
        self._generator = torch.Generator().manual_seed(seed)  # on the CPU, for any device
        self._partial: _Contexts | None = None  # the context that the last fill ended in

    @property
    def passes(self) -> int:
        """See `BatchSource`."""
        return self.contexts.passes

    @property
    def config(self) -> dict[str, Any]:
        """The settings, as JSON can hold them."""
        return {
            "d_submodule": self.d_submodule,
            "n_ctxs": self.n_ctxs,
            "out_batch_size": self.out_batch_size,
            "io": self.reader.place.io,
            "ctx_len": self.ctx_len,
            **self.reader.rule.settings,
            "seed": self._seed,
            "packing": self.contexts.packing,
            "dtype": str(self.dtype).removeprefix("torch."),
            "submodule": self.reader.place.path,
            "device": str(self.device),
            "text": getattr(self.data, "name", None),
            "refresh_batch_size": self.refresh_batch_size,
        }

    def fill(self, out_ND: Tensor) -> Iterator[int]:
        """See `ShuffledRows`. Yields after each batch of the language model, and after each median."""
        queue: list[_Read] = []
        filled = n_queued = 0
        non_finite: Tensor | int = 0
        while filled < len(out_ND):
            # Lower bound on the contexts that this fill still uses: no token may be left out.
            missing = math.ceil((len(out_ND) - filled) / self.ctx_len)
            n_in_median = min(CONTEXTS_PER_MEDIAN, missing)
            while n_queued < n_in_median and (read := self._read(missing - n_queued)):
                queue += read
                n_queued += sum(len(mask_BL) for _, mask_BL, _, _ in read)
                yield filled
            if not queue:
                break  # the text has ended
            joined = queue[0] if len(queue) == 1 else map(torch.cat, zip(*queue, strict=True))
            parts = [(part[:n_in_median], part[n_in_median:]) for part in joined]
            contexts, rest = zip(*parts, strict=True)
            n_queued = len(rest[0])
            queue = [rest] if n_queued else []
            rows_ND, n_non_finite = self._rows_of(contexts, len(out_ND) - filled)
            out_ND[filled : filled + len(rows_ND)] = rows_ND
            filled += len(rows_ND)
            non_finite = non_finite + n_non_finite
            yield filled
        self.reader.require_finite(non_finite)  # once per fill, as it synchronises with the GPU

    def _read(self, n: int) -> list[_Read]:
        """Run the language model on a batch of the next contexts, at most n. Several processes read a full batch
        each, as long as all of them are among the n.

        Returns: the batches that were read; none at the end of the text.
        """
        if self._before_batch is not None:
            self._before_batch()
        passes = self.reader.forward_passes
        full = min(passes.at_once, n // self.refresh_batch_size)
        sizes = [self.refresh_batch_size] * full or [n]
        batches = [batch for size in sizes if len((batch := self._next_contexts(size)).mask_BL)]
        if not batches:
            return []
        all_x = passes.read(self.reader.place, [batch[:2] for batch in batches])
        return [
            (ids_BL, mask_BL, wanted_BL, x_BLD)
            for (ids_BL, mask_BL, wanted_BL), x_BLD in zip(batches, all_x, strict=True)
        ]

    def _next_contexts(self, n: int) -> _Contexts:
        """The next n contexts, or fewer at the end of the text."""
        partial, self._partial = self._partial, None
        ids_BL, mask_BL = self.contexts.next_batch(n if partial is None else n - 1)
        new = _Contexts(ids_BL, mask_BL, self.reader.rule.by_token(ids_BL, mask_BL))
        return (
            new if partial is None else _Contexts(*map(torch.cat, zip(partial, new, strict=True)))
        )

    def _rows_of(self, contexts: _Read, limit: int) -> tuple[Tensor, Tensor]:
        """The rows of contexts that share a median, at most `limit`, and how many of them are NaN or infinite."""
        input_ids_BL, mask_BL, by_token_BL, x_BLD = contexts
        if x_BLD.shape[-1] != self.d_submodule:
            place = self.reader.place
            raise ConfigError(
                f"{place} is {x_BLD.shape[-1]} wide",
                name="d_submodule",
                value=self.d_submodule,
                expected=str(x_BLD.shape[-1]),
            )
        wanted_BL, non_finite = self.reader.without_outliers(x_BLD, by_token_BL)
        rows_ND = rearrange(x_BLD, "b l d -> (b l) d")
        place_N = rearrange(wanted_BL, "b l -> (b l)").nonzero().squeeze(1)
        if len(place_N) < len(rows_ND):
            rows_ND = rows_ND[place_N.to(rows_ND.device)]
        if len(rows_ND) > limit:  # the rest of the last context goes into the next fill
            used = int(place_N[limit - 1]) % self.ctx_len + 1
            is_later_L = torch.arange(self.ctx_len) >= used
            last = by_token_BL[-1:] & is_later_L
            self._partial = _Contexts(input_ids_BL[-1:], mask_BL[-1:], last)
            rows_ND = rows_ND[:limit]
        return rows_ND, non_finite

    def random_order(self, n: int) -> Tensor:
        """See `ShuffledRows`. One generator draws all orders."""
        return torch.randperm(n, generator=self._generator, dtype=torch.int32)

    def row_state(self) -> dict[str, Any]:
        """See `ShuffledRows`. A text that can't be resumed has no position in it."""
        return {
            "rows": {
                "contexts": self.contexts.state_dict() if self.contexts.resumable else None,
                "partial": self._partial and [part.int().tolist() for part in self._partial],
            },
            "generator": self._generator.get_state().numpy().tobytes().hex(),
        }

    def load_row_state(self, state: Mapping[str, Any]) -> None:
        """See `ShuffledRows`."""
        rows = state["rows"]
        self.contexts.load_state_dict(rows["contexts"])
        self._partial = None
        if rows["partial"] is not None:
            input_ids_BL, mask_BL, wanted_BL = map(torch.tensor, rows["partial"])
            self._partial = _Contexts(input_ids_BL.long(), mask_BL.long(), wanted_BL.bool())
        generator = torch.frombuffer(bytearray.fromhex(state["generator"]), dtype=torch.uint8)
        self._generator.set_state(generator)

    def state_dict(self) -> dict[str, Any]:
        """See `BatchSource`. Raises TextError if the text can't be resumed."""
        self.contexts.state_dict()  # raises
        return super().state_dict()

    def ended(self, found: int) -> TextError:
        """See `ShuffledRows`."""
        name = getattr(self.data, "name", type(self.data).__name__)
        return TextError(
            f"the text {name!r} ended after {self.tokens_seen} tokens: expected {self.out_batch_size} for the next batch,"
            f" found {found}",
            instead="use a longer text, or more text_passes",
        )

    def close(self) -> None:
        """Does nothing. tqdm closes what it iterates over if TQDM_DISABLE is set, and upstream's `close` reads an
        attribute that this class doesn't have."""


def _place(
    model: "LanguageModel | CausalLM",
    hook: HookPoint | str | None,
    submodule: Any,
    io: Literal["in", "out"] | None,
) -> tuple[Any, AnyPlace]:
    """The submodule and the place that a `ResidualBuffer` reads; see there."""
    if isinstance(hook, str):
        hook = find_hook(model, hook)
    if isinstance(hook, HookPoint) and submodule is None and io is None:
        for side in hook.place.sides:
            place_of(
                unwrapped(model).module, side.module, side.io
            )  # raises if it is another model's
        return hook.submodule, hook.place
    if hook is not None or submodule is None or io not in ("in", "out"):
        raise ConfigError(
            "expected a hook point to read, or a submodule and its side, io='in' or 'out'",
            instead="use e.g. ResidualBuffer(text, lm, find_hook(lm, 'blocks.0.hook_resid_post'))",
        )
    return submodule, place_of(unwrapped(model).module, submodule, io)
