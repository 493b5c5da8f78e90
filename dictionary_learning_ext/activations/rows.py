"""Rows of activations of one hook point: one row per token, each token once, in reading order.

`RowStream` is what a buffer shuffles. `ModelRows` runs a language model on contexts of tokens;
stored_rows.py reads activations from the disk. Whatever looks at whole contexts, an evaluation or a
report, reads by `ActivationReader` too, so one rule of which tokens count holds everywhere.

Shapes: B contexts, L = ctx_len tokens, N rows, D = the width of a row.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

import torch
from einops import rearrange
from torch import Tensor

from ..errors import ConfigError, NonFiniteError, TextError
from .hook_points import Change, Place, hooked, input_device
from .language_models import CausalLM
from .passes import SharedPasses
from .positions import GROUP, PositionRule, at, norms
from .tokens import ContextStream


class RowStream(Protocol):
    """The rows of one hook point. A few numbers say where the next one is, so reading resumes there."""

    width: int
    """D."""
    origin: dict[str, Any]
    """What the rows come from, fit for JSON."""

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def passes(self) -> int:
        """How many passes over the data were begun before this one."""
        ...

    def fill(self, out_ND: Tensor) -> Iterator[int]:
        """Write the next rows into a tensor, step by step: after each batch of the language model, or read.

        Yields how many rows there are so far. At the end they are fewer than N if nothing is left.

        Raises:
            NonFiniteError: an activation is NaN or infinite.
            TextError, ActivationsError: something can't be read.
        """
        ...

    def order(self, n: int, fill: int) -> Tensor:
        """The order in which the n rows of a fill are handed out, int32.

        Arguments:
            fill: its number, from 1.
        """
        ...

    def position(self) -> dict[str, Any]:
        """Everything that the next rows and orders depend on, fit for JSON."""
        ...

    def seek(self, position: Mapping[str, Any]) -> None:
        """Continue at a position. Raises TextError if the text has changed."""
        ...

    def keep_to(self, settings: Mapping[str, Any]) -> None:
        """Read no more than a stream did that had these settings."""
        ...

    def settings(self) -> dict[str, Any]:
        """What the rows and their order depend on, fit for JSON."""
        ...

    def ended(self, needed: int, found: int, given: int) -> TextError:
        """What to raise where `found` of the `needed` next rows are left, `given` rows being used."""
        ...


def drawn_seed(*what: object) -> int:
    """A seed of its own for each random order, or batch, that these say."""
    digest = hashlib.sha256(" ".join(map(str, what)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


class ContextBatch(NamedTuple):
    """Some contexts of tokens, with their activations at a hook point."""

    input_ids_BL: Tensor
    """Token ids, int64, -1 at padding; 0 where they aren't known."""
    wanted_BL: Tensor
    """False at padding and at tokens that are left out."""
    x_BLD: Tensor
    """In float32; a `StoredReader`'s are in the dtype of the disk."""
    is_sink_BL: Tensor
    """True at tokens that are left out for their norm."""

    @property
    def wanted_ND(self) -> Tensor:
        """The activations of the wanted tokens, (N, D)."""
        return self.x_BLD[self.wanted_BL.to(self.x_BLD.device)]


class Activations(NamedTuple):
    """Activations of some contexts."""

    x_BLD: Tensor
    """In the model's dtype and on its device."""
    wanted_BL: Tensor
    """False at the tokens that are left out. On the CPU."""
    non_finite: Tensor
    """How many wanted tokens have an activation that is NaN or infinite. A number on the model's
    device: reading it synchronises with the GPU."""


class ActivationReader:
    """Reads a language model's activations at a place, where a rule wants them.

    An activation that is NaN or infinite is an error, unless its token is left out.

    Arguments:
        shared: reads the place together with others. Default: on its own.
    """

    def __init__(
        self,
        model: CausalLM,
        place: Place,
        rule: PositionRule,
        shared: SharedPasses | None = None,
    ):
        self.place, self.rule = place, rule
        self._model = model.module
        self.passes = shared or SharedPasses(model, [place])

    def run(self, input_ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """Run the language model as far as the place.

        Arguments:
            input_ids_BL: int64.
            mask_BL: 0 at padding.

        Returns: the activations, (B, L, D), in the model's dtype and on its device.
        """
        return self.passes.read(self.place, [(input_ids_BL, mask_BL)])[0]

    def judge(self, x_BLD: Tensor, wanted_BL: Tensor) -> Activations:
        """The activations of a group of contexts, with outliers among the wanted ones found.

        Arguments:
            wanted_BL: what `rule.by_token` returns, or a subset. Outliers are found among these.

        Raises: NonFiniteError, if `max_norm_multiple` is given. Otherwise see `require_finite`.
        """
        norms_BL = norms(x_BLD)
        non_finite = (~at(norms_BL, wanted_BL).isfinite()).sum()
        if self.rule.max_norm_multiple is not None:
            self.require_finite(non_finite)  # a NaN median would leave out every token
        return Activations(x_BLD, self.rule.by_norm(norms_BL, wanted_BL), non_finite)

    @torch.no_grad()
    def logits_with(self, input_ids_BL: Tensor, mask_BL: Tensor, change: Change) -> Tensor:
        """Run the language model to its end with changed activations at the place.

        Arguments:
            input_ids_BL: int64. Padding must be on the right: the model counts positions from the left.
            mask_BL: 0 at padding.

        Returns: the logits, (B, L, V) of V tokens in the vocabulary, in the model's dtype.
        """
        device = input_device(self._model)
        with hooked(self.place, change):
            return self._model(
                input_ids=input_ids_BL.to(device),
                attention_mask=mask_BL.to(device),
                use_cache=False,
            ).logits

    def require_finite(self, non_finite: Tensor | int) -> None:
        """Raise NonFiniteError unless `non_finite` activations, of one or several reads, are 0."""
        if number := int(non_finite):
            raise NonFiniteError(
                f"{number} activations of the language model at the {self.place.io}put of"
                f" {self.place.path} are NaN or infinite",
                expected="finite numbers",
                instead="load the model in float32, or check its weights",
            )


class _ContextsToRead(NamedTuple):
    input_ids_BL: Tensor
    mask_BL: Tensor
    """0 at padding."""
    wanted_BL: Tensor
    """False at tokens that are left out or already have a row. Outliers are not known yet."""


class ModelRows:
    """The activations of the tokens of a stream of contexts, as a `RowStream`.

    A fill may end inside a context. The next one then runs the language model on that context again
    and continues after the last row handed out. So no row has to be kept: a position is the text's,
    that one context's ids and the state of the generator that draws the orders.

    Arguments:
        batch_size: contexts per batch of the language model. It changes no row: outliers are found in
            groups of GROUP contexts.
        seed: seeds the orders.
        before_batch: called before each batch of the language model. It may raise.
    """

    def __init__(
        self,
        contexts: ContextStream,
        reader: ActivationReader,
        *,
        width: int,
        dtype: torch.dtype,
        batch_size: int,
        seed: int = 0,
        before_batch: Callable[[], None] | None = None,
    ):
        self.contexts, self.reader = contexts, reader
        self.width, self.dtype = width, dtype
        self.origin: dict[str, Any] = {"text": getattr(contexts.text, "name", None)}
        self._batch_size = batch_size
        self._before_batch = before_batch
        self._seed = seed
        self._generator = torch.Generator().manual_seed(seed)  # on the CPU, for any device
        self._partial: _ContextsToRead | None = None  # the context that the last fill ended in

    @property
    def passes(self) -> int:
        return self.contexts.passes

    def fill(self, out_ND: Tensor) -> Iterator[int]:
        """Yields after each batch of the language model, and each group of contexts."""
        filled, number = 0, self.passes
        non_finite: Tensor | int = 0
        needed = math.ceil(len(out_ND) / self.contexts.ctx_len)  # contexts, if no token is left out
        read: list[list[Tensor]] = []  # by the last passes, and not looked at
        ahead: list[Tensor] = []  # of contexts that were read and not used: ids, mask, wanted, x
        while filled < len(out_ND):
            # So few contexts that all of them are used.
            limit = math.ceil((len(out_ND) - filled) / self.contexts.ctx_len)
            n_ahead = len(ahead[0]) if ahead else 0
            if n_ahead < min(GROUP, limit):
                if not read:
                    if self._before_batch is not None:
                        self._before_batch()
                    read = self._read(min(self._batch_size, limit - n_ahead), needed)
                    needed -= sum(len(each[0]) for each in read)
                if not read and not ahead:
                    break
                if read:
                    new = read.pop(0)
                    ahead = (
                        [torch.cat(both) for both in zip(ahead, new, strict=True)] if ahead else new
                    )
                    if len(ahead[0]) < min(GROUP, limit):
                        yield filled
                        continue
            *group, x_BLD = (tensor[:GROUP] for tensor in ahead)
            ahead = [tensor[GROUP:] for tensor in ahead] if len(ahead[0]) > GROUP else []
            contexts = _ContextsToRead(*group)
            rows_ND, n_non_finite = self._rows_of(contexts, x_BLD, len(out_ND) - filled)
            out_ND[filled : filled + len(rows_ND)] = rows_ND
            filled += len(rows_ND)
            non_finite = non_finite + n_non_finite
            yield filled
            if not filled and self.passes > number + 1:
                break  # all tokens of a pass are left out
        self.reader.require_finite(non_finite)  # once per fill: an accelerator has to wait for it

    def _read(self, n: int, needed: int) -> list[list[Tensor]]:
        """The next passes: one of n contexts, and with several processes as many full ones as are sure to be used.

        Arguments:
            needed: contexts that this fill uses at least.

        Returns: ids, mask, wanted and activations of each; fewer at the end of the text.
        """
        full = min(self.reader.passes.at_once - 1, (needed - n) // self._batch_size)
        sizes = [n] + [self._batch_size] * full
        found = [one for size in sizes if (one := self._next_contexts(size)) is not None]
        if not found:
            return []
        all_x = self.reader.passes.read(
            self.reader.place, [(one.input_ids_BL, one.mask_BL) for one in found]
        )
        return [[*one, x_BLD] for one, x_BLD in zip(found, all_x, strict=True)]

    def _next_contexts(self, n: int) -> _ContextsToRead | None:
        """The next n contexts, or as many as there are; None at the end."""
        parts = [] if self._partial is None else [self._partial]
        self._partial = None
        if n > len(parts):
            with suppress(StopIteration):
                input_ids_BL, mask_BL = self.contexts.next_batch(n - len(parts))
                wanted_BL = self.reader.rule.by_token(input_ids_BL, mask_BL)
                parts.append(_ContextsToRead(input_ids_BL, mask_BL, wanted_BL))
        if not parts:
            return None
        return _ContextsToRead(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))

    def _rows_of(
        self, contexts: _ContextsToRead, x_BLD: Tensor, limit: int
    ) -> tuple[Tensor, Tensor]:
        """At most `limit` rows of a group of contexts, and how many are not finite."""
        if x_BLD.shape[-1] != self.width:
            place = self.reader.place
            raise ConfigError(
                f"the {place.io}put of {place.path} is {x_BLD.shape[-1]} wide",
                name="d_submodule",
                value=self.width,
                expected=str(x_BLD.shape[-1]),
            )
        read = self.reader.judge(x_BLD, contexts.wanted_BL)
        rows_ND = rearrange(read.x_BLD, "b l d -> (b l) d")
        place_N = rearrange(read.wanted_BL, "b l -> (b l)").nonzero().squeeze(1)
        if len(place_N) < len(rows_ND):
            rows_ND = rows_ND[place_N.to(rows_ND.device)]
        if len(rows_ND) > limit:  # the end of the last context is for the next fill
            later = rearrange(contexts.wanted_BL, "b l -> (b l)").clone()
            later[: int(place_N[limit - 1]) + 1] = False
            later_BL = rearrange(later, "(b l) -> b l", l=self.contexts.ctx_len)
            self._partial = _ContextsToRead(
                contexts.input_ids_BL[-1:], contexts.mask_BL[-1:], later_BL[-1:]
            )
            rows_ND = rows_ND[:limit]
        return rows_ND, read.non_finite

    def order(self, n: int, fill: int) -> Tensor:
        """One generator draws them all, fill after fill."""
        return torch.randperm(n, generator=self._generator, dtype=torch.int32)

    def position(self) -> dict[str, Any]:
        """Without the text's place if it has none."""
        return {
            "rows": {
                "contexts": self.contexts.state_dict() if self.contexts.resumable else None,
                "partial": self._partial and [part.int().tolist() for part in self._partial],
            },
            "generator": self._generator.get_state().numpy().tobytes().hex(),
        }

    def seek(self, position: Mapping[str, Any]) -> None:
        rows = position["rows"]
        self.contexts.load_state_dict(rows["contexts"])
        self._partial = None
        if rows["partial"] is not None:
            input_ids_BL, mask_BL, wanted_BL = map(torch.tensor, rows["partial"])
            self._partial = _ContextsToRead(input_ids_BL.long(), mask_BL.long(), wanted_BL.bool())
        generator = torch.frombuffer(bytearray.fromhex(position["generator"]), dtype=torch.uint8)
        self._generator.set_state(generator)

    def keep_to(self, settings: Mapping[str, Any]) -> None:
        """A text that has grown is another one, see `TextStream`."""

    def settings(self) -> dict[str, Any]:
        return {
            "io": self.reader.place.io,
            "ctx_len": self.contexts.ctx_len,
            "remove_bos": self.reader.rule.skip_token_id is not None,
            "seed": self._seed,
            "packing": self.contexts.packing,
            "max_norm_multiple": self.reader.rule.max_norm_multiple,
            "dtype": str(self.dtype).removeprefix("torch."),
            "submodule": self.reader.place.path,
        }

    def ended(self, needed: int, found: int, given: int) -> TextError:
        text = self.contexts.text
        name = f"the text {getattr(text, 'name', type(text).__name__)!r}"
        if not self.contexts.tokens_read:
            return TextError(
                f"{name} has no documents: expected at least one (a text without a held-out part"
                " holds out every 20th document); use another text"
            )
        if not given + found:
            return TextError(
                f"all tokens of {name} are left out",
                instead="use another text, or a larger max_norm_multiple",
            )
        return TextError(
            f"{name} ended after {given} tokens: expected {needed} for the next batch, found {found}",
            instead="use a longer text, or more text_passes",
        )
