"""What a run reads: training batches, held-out activations, and contexts of tokens to look at.

    inputs = open_inputs(settings, [settings.hook])
    batches = inputs.training_batches()
    x_BD = batches.next()[settings.hook]

A language model runs, stored activations are read, or a synthetic model draws: which one is chosen
here. Training, evaluation, reports and exports all read through it. What can be checked of a run before
any of them is loaded is in training/plan.py.

Shapes: B contexts or rows, L = ctx_len tokens, D = activation_dim.
"""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch as t

from ..config.run import RunConfig, Split, evaluation_batch
from ..config.synthetic_models import is_synthetic, require_synthetic_run, synthetic_settings
from ..devices import chosen_device
from ..errors import ActivationsError, LanguageModelError
from .buffer import Batches, BatchSource, ResidualBuffer, ShuffledRows
from .cache_manifest import CacheManifest
from .hook_points import HookPoint, find_hook, require_hook
from .language_models import (
    CausalLM,
    Pretrained,
    identity,
    load_model,
    require_positions,
    settings_hash,
)
from .passes import SharedPasses
from .positions import GROUP, PositionRule
from .rows import ActivationReader, ContextBatch
from .stored import UNKNOWN, StoredActivations, open_stored
from .stored_rows import StoredReader, StoredRows
from .synthetic import SyntheticSource, draw_model, model_hash
from .text import text_of
from .tokens import (
    ONE_PROCESS,
    ContextBatches,
    ContextStream,
    Group,
    SharedTokenizer,
    no_context,
    require_held_out,
)

logger = logging.getLogger(__name__)

_DOCUMENTS_AT_ONCE = 16
_ROWS_AT_ONCE = 2048
"""Held-out activations in a batch, at most."""


class Truth(Protocol):
    """The true features of synthetic activations. T features, B rows."""

    vectors_TD: t.Tensor
    """Their directions."""

    @property
    def firing_BT(self) -> t.Tensor:
        """Their magnitudes in the batch handed out last, 0 where one doesn't fire."""
        ...


class HeldOut(NamedTuple):
    """What SAEs of one hook point are measured on. It can be read once."""

    tokens: int
    """How many were asked for."""
    batches: Iterator[t.Tensor]
    """Their raw activations, (B, D), in float32 and in reading order. Fewer if the text ends."""
    reader: ActivationReader | None
    """At the hook point of a language model; None if its loss can't be measured."""
    documents: ContextBatches | None
    """What its loss is measured on: a document per context."""
    no_loss: str = ""
    """Why not."""
    truth: Truth | None = None
    """What is known of the rows; of a synthetic model's only."""


class Inputs(ABC):
    """What a run reads at some hook points.

    Attributes:
        widths: D of each hook point, by its name.
        hooks: the hook points, by name, once it is loaded. Without a submodule if there is no language
            model.
        language_model: None if the loss won't be measured, or there is none.
        no_language_model: why there is none; empty if there is.
    """

    widths: dict[str, int]
    hooks: dict[str, HookPoint]
    language_model: CausalLM | None
    no_language_model: str = ""
    can_resume = True
    """Whether the batches can be continued from the middle, in another process."""

    def __init__(
        self,
        settings: RunConfig,
        hooks: Iterable[str],
        before_batch: Callable[[], None] | None,
        group: Group,
        language_model: CausalLM | None,
    ):
        self._settings, self._before_batch, self._group = settings, before_batch, group
        self._has_said_multiple = settings.max_norm_multiple is not None
        self.language_model = language_model
        self._find(list(hooks))

    @abstractmethod
    def _find(self, hooks: list[str]) -> None:
        """Find the hook points' widths, and check all that can be before a language model is loaded."""

    def load(self, needed: Collection[str] | None = None) -> None:
        """Find the hook points, in a language model that was given or is loaded now.

        Arguments:
            needed: those that this process trains SAEs at (default: all). Processes that share a language
                model's passes read all.
        """
        self._load(list(self.widths if needed is None else needed))

    @abstractmethod
    def _load(self, needed: list[str]) -> None: ...

    @abstractmethod
    def require_held_out(self) -> None:
        """Raise a TextError or an ActivationsError if there is too little held out to evaluate on."""

    def require_language_model(self, what: str, instead: str) -> CausalLM:
        """The language model. Raises an ActivationsError if there is none.

        Arguments:
            what: what needs it, the first words of the message: "a report shows tokens".
            instead: what to do without it.
        """
        if self.language_model is None:
            raise ActivationsError(f"{what}, but {self.no_language_model}", instead=instead)
        return self.language_model

    @abstractmethod
    def hashes(self) -> dict[str, str]:
        """Hashes of what the batches depend on, which must not change before a resume."""

    def training_batches(self) -> Batches:
        """The batches to train on, from the first."""
        return Batches(self._settings, {name: self._source(name) for name in self.hooks})

    @abstractmethod
    def _source(self, hook: str) -> BatchSource:
        """The training batches of a hook point."""

    def held_out(self, hook: str, tokens: int) -> HeldOut:
        """What the SAEs of a hook point are measured on: the tokens of `contexts`, and documents.

        It is the same whatever the run's seeds are.
        """
        rows = in_batches(self.contexts(hook, "heldout", tokens))
        batches = (x_BD.to(self._settings.device) for x_BD in rows)
        return HeldOut(tokens, batches, *self._documents(hook))

    @abstractmethod
    def _documents(self, hook: str) -> tuple[ActivationReader | None, ContextBatches | None, str]:
        """What the language model's loss is measured with and on, or why not; see `HeldOut`."""

    def contexts(self, hook: str, split: Split, tokens: int) -> Iterator[ContextBatch]:
        """The first `tokens` wanted tokens of a split, in the contexts that training has, in order.

        This is the one reading of held-out text: whatever is said of an SAE is of these tokens. Attention
        sinks are not wanted, see `RunConfig.sink_multiple`.

        Arguments:
            tokens: wanted tokens in all. A text that ends earlier is read to its end.

        Raises: TextError if the text has no whole context, ActivationsError if stored activations have
            none; NonFiniteError if an activation is NaN or infinite.
        """
        if not self._has_said_multiple and self._settings.sink_multiple is not None:
            self._has_said_multiple = True
            logger.info(
                "tokens whose norm is over %g times the median (attention sinks) are left out of what is measured;"
                " max_norm_multiple sets another number",
                self._settings.sink_multiple,
            )
        n_read = 0
        groups = math.ceil(tokens / (GROUP * self._settings.ctx_len))
        at_once = min(self._settings.lm_batch_size, GROUP * groups)
        for batch in first_tokens(self._contexts(hook, split, at_once), tokens):
            n_read += int(batch.wanted_BL.sum())
            yield batch
        if n_read == 0:
            settings = self._settings
            if settings.activations is not None:
                raise ActivationsError(
                    f"{settings.activations} has no {'held-out' if split == 'heldout' else split} tokens",
                    instead="give activations='none' to run the language model",
                )
            raise no_context(settings, split)

    @abstractmethod
    def _contexts(self, hook: str, split: Split, at_once: int) -> Iterator[ContextBatch]:
        """All contexts of a split, of which a language model reads some at once."""


def open_inputs(
    settings: RunConfig,
    hooks: Iterable[str],
    before_batch: Callable[[], None] | None = None,
    *,
    language_model: CausalLM | None = None,
) -> Inputs:
    """`find_inputs`, loaded.

    With stored activations, the language model is loaded if its loss will be measured: where
    eval_tokens is above 0.
    """
    inputs = find_inputs(settings, hooks, before_batch, language_model=language_model)
    inputs.load()
    return inputs


def find_inputs(
    settings: RunConfig,
    hooks: Iterable[str],
    before_batch: Callable[[], None] | None = None,
    group: Group = ONE_PROCESS,
    *,
    language_model: CausalLM | None = None,
) -> Inputs:
    """What a run reads: a language model and its text, stored activations, or a synthetic model.

    Its language model is not loaded before `load`.

    Arguments:
        hooks: the names of the hook points. They share the language model's forward passes. Each has
            its own buffer, so its batches are those of a run of its own.
        before_batch: called before each batch of the language model, or each read, in training; it
            may raise.
        group: the processes that train together. They share the language model's passes.
        language_model: the run's, if it is loaded already.

    Raises: a UserError if there is no such model, text or hook point, contexts are too long, or stored
        activations are of others than the run's.
    """
    settings = replace(settings, device=chosen_device(settings.device))
    if is_synthetic(settings.model):
        kind = _Synthetic
    else:
        kind = _OfLanguageModel if settings.activations is None else _Stored
    return kind(settings, hooks, before_batch, group, language_model)


def open_model(settings: RunConfig) -> tuple[CausalLM, HookPoint]:
    """A run's language model and hook point. Raises what `load_model` does."""
    model = load_model(settings)
    return model, find_hook(model, settings.hook)


class _OfLanguageModel(Inputs):
    """A language model reads the run's text."""

    language_model: CausalLM

    def _find(self, hooks: list[str]) -> None:
        self._found = self._fresh_hash = None
        if self.language_model is None:
            self._found = Pretrained(self._settings.model)
        module: Any = self._found.empty() if self._found else self.language_model.module
        require_positions(self._settings, module)
        for name in hooks:
            require_hook(module, name)
        width: int = module.config.get_text_config().hidden_size
        self.widths = dict.fromkeys(hooks, width)

    def _load(self, needed: list[str]) -> None:
        if self._found is not None:
            self.language_model = load_model(self._settings, self._found)
            # Before it is used: a fast tokenizer keeps its last truncation, which is hashed too.
            self._fresh_hash = settings_hash(self.language_model)
        self.hooks = {name: find_hook(self.language_model, name) for name in self.widths}
        places = [hook.place for hook in self.hooks.values()]
        self._shared = SharedPasses(self.language_model, places, self._group)
        tokenizer = SharedTokenizer(self.language_model.tokenizer, len(places))
        self._trained_on = self.language_model._replace(tokenizer=tokenizer)

    def require_held_out(self) -> None:
        require_held_out(self._settings, self.language_model.tokenizer)

    def hashes(self) -> dict[str, str]:
        return {
            "language_model": identity(self.language_model.module),
            "tokenizer": self._fresh_hash or settings_hash(self.language_model),
        }

    def _source(self, hook: str) -> BatchSource:
        settings, point = self._settings, self.hooks[hook]
        return ResidualBuffer(
            text_of(settings, seed=settings.data_seed, passes=settings.text_passes),
            self._trained_on,
            point.submodule,
            d_submodule=point.activation_dim,
            io=point.io,
            n_ctxs=settings.n_ctxs,
            ctx_len=settings.ctx_len,
            refresh_batch_size=settings.lm_batch_size,
            out_batch_size=settings.batch_size,
            device=settings.device,
            remove_bos=settings.remove_bos,
            packing=settings.text_packing,
            max_norm_multiple=settings.max_norm_multiple,
            seed=settings.data_seed,
            before_batch=self._before_batch,
            shared=self._shared,
        )

    def _documents(self, hook: str) -> tuple[ActivationReader, ContextBatches, str]:
        settings, model = self._settings, self.language_model
        documents = islice(text_of(settings, split="heldout"), settings.eval_documents)
        stream = ContextStream(documents, model.tokenizer, settings.ctx_len, packing="truncate")
        rule = _reading_rule(settings, model.tokenizer)
        reader = ActivationReader(model, self.hooks[hook].place, rule)
        return reader, stream.batches(_DOCUMENTS_AT_ONCE), ""

    def _contexts(self, hook: str, split: Split, at_once: int) -> Iterator[ContextBatch]:
        settings, model = self._settings, self.language_model
        seed = settings.data_seed if split == "train" else 0
        text = text_of(settings, split=split, seed=seed)
        stream = ContextStream(
            text, model.tokenizer, settings.ctx_len, packing=settings.text_packing
        )
        return with_activations(stream.batches(at_once), settings, model, self.hooks[hook])


class _Stored(Inputs):
    """Stored activations are read."""

    def _find(self, hooks: list[str]) -> None:
        settings = self._settings
        assert settings.activations is not None
        self._stored = stored = open_stored(settings.activations, copies_gb=settings.cache_dir_size)
        stored.require_fit(settings, hooks)
        tokenizer = stored.manifest and stored.manifest.settings
        self._rule = _reading_rule(settings, tokenizer)
        self._training_rule = PositionRule(
            tokenizer, remove_bos=settings.remove_bos, max_norm_multiple=settings.max_norm_multiple
        )
        self.widths = {name: stored.hook(name).width for name in hooks}
        if stored.manifest is None:
            self.language_model = None
            self.no_language_model = (
                f"{stored.place} doesn't say which language model its activations are of"
            )
        elif self.language_model is not None:
            require_positions(settings, self.language_model.module)

    def _load(self, needed: list[str]) -> None:
        settings, stored = self._settings, self._stored
        is_measured = settings.eval_tokens and needed
        if self.language_model is None and stored.manifest is not None and is_measured:
            self.language_model = _cached_model(settings, stored, stored.manifest)
        if self.language_model is not None:
            self.hooks = {name: find_hook(self.language_model, name) for name in needed}
        else:
            self.hooks = {
                name: HookPoint(name, stored.hook(name).layer, "out", None, self.widths[name])
                for name in needed
            }

    def require_held_out(self) -> None:
        needed = evaluation_batch(self._settings.eval_tokens)
        if (there := self._stored.tokens["heldout"]) < needed:
            raise ActivationsError(
                f"{self._stored.place} has {there:,} held-out tokens",
                expected=f"at least {needed:,} to evaluate on",
                instead="use eval_tokens=0",
            )

    def hashes(self) -> dict[str, str]:
        if (manifest := self._stored.manifest) is None:
            return {"language_model": UNKNOWN, "tokenizer": UNKNOWN}
        settings = manifest.settings
        return {"language_model": settings.language_model, "tokenizer": settings.tokenizer}

    def _source(self, hook: str) -> BatchSource:
        settings = self._settings
        rows = StoredRows(
            self._stored,
            hook,
            self._training_rule,
            passes=settings.text_passes,
            seed=settings.data_seed,
            before_read=self._before_batch,
        )
        return ShuffledRows(
            rows, settings.n_ctxs * settings.ctx_len, settings.batch_size, settings.device
        )

    def _documents(self, hook: str) -> tuple[ActivationReader | None, ContextBatches | None, str]:
        stored, model = self._stored, self.language_model
        if model is None or stored.manifest is None:
            return None, None, self.no_language_model
        reader = ActivationReader(model, self.hooks[hook].place, self._rule)
        number = self._settings.eval_documents
        return reader, cached_documents(stored, number), ""

    def _contexts(self, hook: str, split: Split, at_once: int) -> Iterator[ContextBatch]:
        reader = StoredReader(self._stored, hook, self._rule)
        for part in self._stored.parts[split]:
            for piece in reader.cut(part):
                batch = reader.read(piece)
                yield batch._replace(x_BLD=batch.x_BLD.float())


def _cached_model(run: RunConfig, stored: StoredActivations, manifest: CacheManifest) -> CausalLM:
    """The language model of a cache, in the dtype in which it was cached.

    Raises: LanguageModelError if the run's is another one.
    """
    settings = manifest.settings
    dtype: Any = settings.lm_dtype
    model = load_model(replace(run, dtype=dtype))
    for what, was, now in (
        ("weights", settings.language_model, identity(model.module)),
        ("tokenizer or config", settings.tokenizer, settings_hash(model)),
    ):
        if was != now:
            raise LanguageModelError(
                f"the cache {stored.place} is of another language model than {run.model!r}: the"
                f" SHA-256 or commit of its {what} is {was[:12]}, not {now[:12]}",
                instead="give the model that was cached",
            )
    return model


def cached_documents(stored: StoredActivations, number: int) -> ContextBatches:
    """The first `number` held-out documents of a cache. If there are fewer, that is logged."""
    assert stored.documents is not None, "written with the held-out tokens"
    if stored.copies is not None:
        stored.copies.fetch(stored.documents)
    ids_NL = np.load(stored.documents, allow_pickle=False)
    if len(ids_NL) < number:
        logger.warning(
            "%s has %d held-out documents: the language model's loss is measured on these, not on %d",
            stored.place,
            len(ids_NL),
            number,
        )
    ids_NL = t.from_numpy(ids_NL[:number].astype(np.int64))
    for ids_BL in ids_NL.split(_DOCUMENTS_AT_ONCE):
        yield ids_BL.clamp(min=0), (ids_BL >= 0).long()


class _Synthetic(Inputs):
    """A synthetic model draws. Its only hook point is NO_HOOK.

    Raises: ConfigError if the run has settings that a synthetic model has no use for.
    """

    def _find(self, hooks: list[str]) -> None:
        settings = self._settings
        require_synthetic_run(settings)
        self.language_model = None
        self.no_language_model = f"{settings.model} is not a language model"
        self.widths = dict.fromkeys(hooks, synthetic_settings(settings.model).width)

    def _load(self, needed: list[str]) -> None:
        self._drawn = draw_model(self._settings.model)
        self.hooks = {name: HookPoint(name, 0, "out", None, self.widths[name]) for name in needed}

    def require_held_out(self) -> None:
        """It draws as many as are asked for."""

    def hashes(self) -> dict[str, str]:
        return {"language_model": model_hash(self._settings.model), "tokenizer": UNKNOWN}

    def _source(self, hook: str) -> BatchSource:
        settings = self._settings
        return SyntheticSource(
            settings.model,
            self._drawn,
            out_batch_size=settings.batch_size,
            seed=settings.data_seed,
            device=settings.device,
        )

    def held_out(self, hook: str, tokens: int) -> HeldOut:
        settings, size = self._settings, evaluation_batch(tokens)
        rows = SyntheticSource(
            settings.model,
            self._drawn,
            stream="heldout",
            out_batch_size=size,
            device=settings.device,
        )
        batches = islice(rows, math.ceil(tokens / size))
        return HeldOut(tokens, batches, None, None, self.no_language_model, truth=rows)

    def _documents(self, hook: str) -> tuple[None, None, str]:
        return None, None, self.no_language_model

    def _contexts(self, hook: str, split: Split, at_once: int) -> Iterator[ContextBatch]:
        raise ActivationsError(
            f"{self._settings.model} has no tokens", expected="a language model's text"
        )


def _reading_rule(settings: RunConfig, tokenizer: Any) -> PositionRule:
    """Which tokens are left out of what is measured."""
    return PositionRule(
        tokenizer, remove_bos=settings.remove_bos, max_norm_multiple=settings.sink_multiple
    )


def in_batches(contexts: Iterable[ContextBatch], size: int = _ROWS_AT_ONCE) -> Iterator[t.Tensor]:
    """The activations of the wanted tokens, (B, D), in float32 and in reading order.

    Arguments:
        size: B. The last batch may have fewer rows.
    """
    parts = ((batch.wanted_ND.float(),) for batch in contexts)
    return (rows_ND for (rows_ND,) in _regrouped(parts, size))


def _regrouped(parts: Iterable[tuple[t.Tensor, ...]], size: int) -> Iterator[tuple[t.Tensor, ...]]:
    """Tensors that belong together, by their rows: `size` rows at a time, and fewer at the end."""
    rest: tuple[t.Tensor, ...] | None = None
    for part in parts:
        joined = part if rest is None else tuple(map(t.cat, zip(rest, part, strict=True)))
        groups = list(zip(*(tensor.split(size) for tensor in joined), strict=True))
        rest = groups.pop() if len(groups[-1][0]) < size else None
        yield from groups
    if rest is not None and len(rest[0]):
        yield rest


def first_tokens(batches: Iterator[ContextBatch], tokens: int) -> Iterator[ContextBatch]:
    """Batches until `tokens` tokens are wanted in all. Later ones of the last batch are not wanted."""
    left = tokens
    while left > 0 and (batch := next(batches, None)) is not None:
        number_BL = batch.wanted_BL.flatten().cumsum(0).view_as(batch.wanted_BL)
        is_read_BL = number_BL <= left
        wanted_BL, is_sink_BL = batch.wanted_BL & is_read_BL, batch.is_sink_BL & is_read_BL
        left -= int(wanted_BL.sum())
        yield batch._replace(wanted_BL=wanted_BL, is_sink_BL=is_sink_BL)


def with_activations(
    contexts: ContextBatches, settings: RunConfig, model: CausalLM, hook: HookPoint
) -> Iterator[ContextBatch]:
    """Contexts, with the activations that a language model has there.

    Arguments:
        contexts: a batch is what the language model reads at once.
        settings: which tokens are left out, see `Inputs.contexts`.

    Returns: groups of GROUP contexts.

    Raises: NonFiniteError if an activation is NaN or infinite.
    """
    reader = ActivationReader(model, hook.place, _reading_rule(settings, model.tokenizer))
    all_read = ((ids_BL, mask_BL, reader.run(ids_BL, mask_BL)) for ids_BL, mask_BL in contexts)
    for input_ids_BL, mask_BL, x_BLD in _regrouped(all_read, GROUP):
        by_token_BL = reader.rule.by_token(input_ids_BL, mask_BL)
        read = reader.judge(x_BLD, by_token_BL)
        reader.require_finite(read.non_finite)
        ids_BL = input_ids_BL.masked_fill(mask_BL == 0, -1)
        is_sink_BL = by_token_BL & ~read.wanted_BL
        yield ContextBatch(ids_BL, read.wanted_BL, read.x_BLD.float(), is_sink_BL)
