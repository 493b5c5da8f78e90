"""The data of a run: training batches, held-out activations, and contexts of tokens with their activations.

    inputs = open_inputs(settings, [settings.hook])
    batches = inputs.training_batches()
    x_BD = batches.next()[settings.hook]

The data comes from a language model that reads a text, or from stored activations.
Training, evaluation, reports and exports all get it here.

Shapes: B contexts or rows, L = ctx_len tokens, D = activation_dim.
"""

import hashlib
import json
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch as t

from ..config.checks import changed
from ..config.hooks import sides_of
from ..config.run import RunConfig, Split, evaluation_batch
from ..devices import chosen_device
from ..errors import ActivationsError, LanguageModelError
from ..run_folder.cache_manifest import DOCUMENTS, HELD_OUT, CacheManifest
from ..run_folder.identity import require_alike
from .batches import Batches, BatchSource
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
from .positions import CONTEXTS_PER_MEDIAN, PositionRule, leaving_out
from .rows import ActivationReader, ContextBatch
from .stored import UNKNOWN, StoredActivations, layer_of, open_stored
from .stored_rows import StoredRows, pieces_of, read_contexts
from .text import text_of
from .tokens import (
    ONE_RANK,
    ContextBatches,
    Ranks,
    SharedTokenizer,
    contexts_of,
    held_out_documents,
    no_context,
    require_held_out,
)

logger = logging.getLogger(__name__)

_DOCUMENTS_AT_ONCE = 16
_ROWS_AT_ONCE = 2048
"""The largest batch of held-out activations, in rows."""


class HeldOut(NamedTuple):
    """The data on which the SAEs of one hook point are measured. It can be read once."""

    tokens: int
    """The number of tokens that were asked for. There may be fewer."""
    batches: Iterator[t.Tensor]
    """Raw activations, (B, D), in float32 and in reading order. Of a pair of hook points (B, 2D)."""
    reader: ActivationReader | None
    """Reads the language model at the hook point; None if its loss can't be measured."""
    documents: ContextBatches | None
    """The documents on which the language model's loss is measured, one in each context."""
    no_loss: str = ""
    """The reason why the loss can't be measured."""


class Inputs(ABC):
    """The data of a run at some hook points.

    Attributes:
        widths: D of each hook point, by its name.
        hooks: the hook points by name, once `load` was called. Without a language model they have no submodule.
        language_model: None if there is none, or the loss won't be measured.
        no_language_model: the reason why there is none, or empty.
    """

    widths: dict[str, int]
    hooks: dict[str, HookPoint]
    language_model: CausalLM | None
    no_language_model: str = ""
    can_resume = True
    """Whether another process can continue the training batches from the middle."""

    def __init__(
        self,
        settings: RunConfig,
        hooks: Iterable[str],
        before_batch: Callable[[], None] | None,
        group: Ranks,
        language_model: CausalLM | None,
    ):
        self._settings, self._before_batch, self._group = settings, before_batch, group
        self._has_logged_sinks = settings.max_norm_multiple is not None
        self.language_model = language_model
        self._find(list(hooks))

    @abstractmethod
    def _find(self, hooks: list[str]) -> None:
        """Find the hook points' widths, and check the settings before a language model is loaded."""

    def load(self, hooks: Collection[str]) -> None:
        """Load the language model, if there is one, and find the hook points.

        Arguments:
            hooks: the names of those at which this process trains or measures SAEs. Processes that share the
                language model's passes find all.
        """
        self.hooks = {
            name: HookPoint(name, layer_of(name), "out", None, self.widths[name]) for name in hooks
        }

    def require_held_out(self) -> None:  # noqa: B027 - a caller's own batches hold out none
        """Raise a TextError or an ActivationsError if there are too few held-out tokens to evaluate on."""

    def require_language_model(self, what: str, instead: str) -> CausalLM:
        """The language model. Raises an ActivationsError if there is none.

        Arguments:
            what: why it is needed, the first words of the message: "a report shows tokens".
            instead: what to do without it.
        """
        if self.language_model is None:
            raise ActivationsError(f"{what}, but {self.no_language_model}", instead=instead)
        return self.language_model

    @abstractmethod
    def hashes(self) -> dict[str, str]:
        """Hashes of the language model and its tokenizer, which must not change before a run resumes."""

    def data_hashes(self) -> dict[str, str]:
        """SHA-256 of each data source, by kind: "text", or "activations". Empty for a caller's own batches."""
        return {}

    def training_batches(self) -> Batches:
        """The training batches of all hook points, from the beginning."""
        return Batches(self._settings, {name: self._source(name) for name in self.hooks})

    @abstractmethod
    def _source(self, hook: str) -> BatchSource:
        """The training batches of a hook point."""

    def held_out(self, hook: str, tokens: int) -> HeldOut:
        """The held-out data on which the SAEs of a hook point are measured. It doesn't depend on the run's seeds."""
        rows = in_batches(self.contexts(hook, "heldout", tokens))
        batches = (x_BD.to(self._settings.device) for x_BD in rows)
        reader, documents = self._documents(hook) or (None, None)
        return HeldOut(tokens, batches, reader, documents, self.no_language_model)

    def _documents(self, hook: str) -> tuple[ActivationReader, ContextBatches] | None:
        """The reader and the documents of a `HeldOut`; None without a language model."""
        return None

    def contexts(self, hook: str, split: Split, tokens: int) -> Iterator[ContextBatch]:
        """The first contexts of a split, cut as in training, in reading order.

        All measurements on held-out text are on the wanted tokens of these contexts. Attention sinks are not
        wanted, see `RunConfig.sink_multiple`.

        Arguments:
            tokens: the number of wanted tokens in all. If the text ends earlier, there are fewer.

        Raises: TextError if the text has no whole context, ActivationsError if there are no stored activations
            of this split, or no tokens; NonFiniteError if an activation is NaN or infinite.
        """
        if not self._has_logged_sinks:
            self._has_logged_sinks = True
            logger.info(
                "tokens whose norm is over %g times the median (attention sinks) are left out of what is measured;"
                " max_norm_multiple sets another number",
                self._settings.sink_multiple,
            )
        n_read = 0
        medians = math.ceil(tokens / (CONTEXTS_PER_MEDIAN * self._settings.ctx_len))
        at_once = min(self._settings.lm_batch_size, CONTEXTS_PER_MEDIAN * medians)
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

    def _contexts(self, hook: str, split: Split, at_once: int) -> Iterator[ContextBatch]:
        """All contexts of a split. A language model reads `at_once` contexts in a batch."""
        raise ActivationsError(f"there are no tokens to read, as {self.no_language_model}")


def open_inputs(
    settings: RunConfig, hooks: Iterable[str], *, language_model: CausalLM | None = None
) -> Inputs:
    """`find_inputs`, loaded. With stored activations, the language model is loaded only if eval_tokens > 0."""
    inputs = find_inputs(settings, hooks, language_model=language_model)
    inputs.load(inputs.widths)
    return inputs


def find_inputs(
    settings: RunConfig,
    hooks: Iterable[str],
    before_batch: Callable[[], None] | None = None,
    group: Ranks = ONE_RANK,
    *,
    language_model: CausalLM | None = None,
) -> Inputs:
    """Find the data of a run: that of a language model, or stored activations.

    The language model is not loaded before `Inputs.load`.

    Arguments:
        hooks: the names of the hook points. They share the language model's forward passes. Each has
            its own buffer, so its batches are the same as in a run on this hook point alone.
        before_batch: called in training before each batch of the language model, or each read. It may raise.
        group: the processes that train together. They share the language model's passes.
        language_model: the run's language model, if it is already loaded.

    Raises: a UserError if there is no such model, text or hook point, contexts are too long, or the stored
        activations have another model, text or hook point.
    """
    settings = changed(settings, device=chosen_device(settings.device))
    kind = _ModelInputs if settings.activations is None else _StoredInputs
    return kind(settings, hooks, before_batch, group, language_model)


def open_model(settings: RunConfig) -> tuple[CausalLM, HookPoint]:
    """A run's language model and hook point. Raises: as `load_model`."""
    model = load_model(settings)
    return model, find_hook(model, settings.site)


class _ModelInputs(Inputs):
    """A language model reads the run's text."""

    language_model: CausalLM

    def _find(self, hooks: list[str]) -> None:
        self._found = None
        if self.language_model is None:
            self._found = Pretrained(self._settings.model)
        module: Any = self._found.empty() if self._found else self.language_model.module
        require_positions(self._settings.ctx_len, self._settings.model, module)
        for name in hooks:
            for side in sides_of(name):
                require_hook(module, side)
        width: int = module.config.get_text_config().hidden_size
        self.widths = dict.fromkeys(hooks, width)

    def load(self, hooks: Collection[str]) -> None:
        if self._found is not None:
            self.language_model = load_model(self._settings, self._found)
        # Before it is used: a fast tokenizer keeps its last truncation, which is hashed too.
        self._tokenizer_hash = settings_hash(self.language_model)
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
            "tokenizer": self._tokenizer_hash,
        }

    def data_hashes(self) -> dict[str, str]:
        texts = [text_of(self._settings)]
        if self._settings.eval_tokens:
            texts.append(text_of(self._settings, "heldout"))
        fingerprints = json.dumps([text.state_dict()["fingerprint"] for text in texts])
        return {"text": hashlib.sha256(fingerprints.encode()).hexdigest()}

    def _source(self, hook: str) -> BatchSource:
        from .buffer import ResidualBuffer

        settings = self._settings
        return ResidualBuffer(
            text_of(settings, passes=settings.text_passes),
            self._trained_on,
            self.hooks[hook],
            n_ctxs=settings.n_ctxs,
            ctx_len=settings.ctx_len,
            refresh_batch_size=settings.lm_batch_size,
            out_batch_size=settings.batch_size,
            device=settings.device,
            packing=settings.text_packing,
            **leaving_out(settings),
            seed=settings.data_seed,
            before_batch=self._before_batch,
            shared=self._shared,
        )

    def _documents(self, hook: str) -> tuple[ActivationReader, ContextBatches]:
        settings, model = self._settings, self.language_model
        rule = PositionRule.of_measuring(settings, model.tokenizer)
        documents = held_out_documents(settings, model.tokenizer).batches(_DOCUMENTS_AT_ONCE)
        return ActivationReader(model, self.hooks[hook].place, rule), documents

    def _contexts(self, hook: str, split: Split, at_once: int) -> Iterator[ContextBatch]:
        settings, model = self._settings, self.language_model
        contexts = contexts_of(settings, split, model.tokenizer).batches(at_once)
        return with_activations(contexts, settings, model, self.hooks[hook])


class _StoredInputs(Inputs):
    """Stored activations are read."""

    def _find(self, hooks: list[str]) -> None:
        settings = self._settings
        assert settings.activations is not None
        self._stored = stored = open_stored(settings.activations)
        stored.require_fit(settings, hooks)
        tokenizer = stored.manifest and stored.manifest.settings
        self._rule = PositionRule.of_measuring(settings, tokenizer)
        self._training_rule = PositionRule.of(settings, tokenizer)
        self.widths = {name: stored.width(name) for name in hooks}
        if stored.manifest is None:
            self.language_model = None
            self.no_language_model = f"{stored.place} doesn't record its language model or text"
            logger.info(
                "%s. Metrics are measured on the last twentieth of its rows, which is held out.",
                self.no_language_model,
            )

    def load(self, hooks: Collection[str]) -> None:
        settings, stored = self._settings, self._stored
        is_measured = settings.eval_tokens and hooks
        if self.language_model is None and stored.manifest is not None and is_measured:
            self.language_model = _cached_model(settings, stored, stored.manifest)
            there = stored.manifest.settings.eval_documents
            if there < settings.eval_documents:
                logger.warning(
                    "%s has %d of the eval_documents=%d: the language model's loss is measured on fewer "
                    "tokens. For all, write another cache with eval_documents=%d",
                    *(stored.place, there, settings.eval_documents, settings.eval_documents),
                )
        if self.language_model is not None:
            self.hooks = {name: find_hook(self.language_model, name) for name in hooks}
        else:
            super().load(hooks)

    def require_held_out(self) -> None:
        needed = evaluation_batch(self._settings.eval_tokens)
        if (there := self._stored.held_out_tokens) < needed:
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

    def data_hashes(self) -> dict[str, str]:
        return {"activations": self._stored.digest}

    def _source(self, hook: str) -> BatchSource:
        settings = self._settings
        return StoredRows(
            self._stored,
            hook,
            self._training_rule,
            size=settings.n_ctxs * settings.ctx_len,
            out_batch_size=settings.batch_size,
            device=settings.device,
            passes=settings.text_passes,
            seed=settings.data_seed,
            # Each of several processes reads when it needs to, and would wait for the others.
            before_read=self._before_batch if self._group.count == 1 else None,
        )

    def _documents(self, hook: str) -> tuple[ActivationReader, ContextBatches] | None:
        if self.language_model is None or self._stored.manifest is None:
            return None
        reader = ActivationReader(self.language_model, self.hooks[hook].place, self._rule)
        return reader, cached_documents(self._stored, self._settings.eval_documents)

    def _contexts(self, hook: str, split: Split, at_once: int) -> Iterator[ContextBatch]:
        for piece in pieces_of(self._stored.parts[split], self._stored.ctx_len):
            batch = read_contexts(piece, hook, self._rule)
            yield batch._replace(x_BLD=batch.x_BLD.float())


def _cached_model(run: RunConfig, stored: StoredActivations, manifest: CacheManifest) -> CausalLM:
    """The language model of a cache, in the dtype in which the cache was written.

    Raises: LanguageModelError if the run's model is not the cache's.
    """
    settings = manifest.settings
    dtype: Any = settings.lm_dtype
    model = load_model(replace(run, dtype=dtype))
    now = {"language_model": identity(model.module), "tokenizer": settings_hash(model)}
    both = {f"the language model {run.model!r}": now, f"the cache {stored.place}": vars(settings)}
    require_alike(both, LanguageModelError, "give the language model that was cached")
    return model


def cached_documents(stored: StoredActivations, number: int) -> ContextBatches:
    """The first `number` held-out documents of a cache."""
    ids = np.load(Path(stored.place) / HELD_OUT / DOCUMENTS, allow_pickle=False)
    ids_NL = t.from_numpy(ids[:number].astype(np.int64))
    for ids_BL in ids_NL.split(_DOCUMENTS_AT_ONCE):
        yield ids_BL.clamp(min=0), (ids_BL >= 0).long()


def in_batches(contexts: Iterable[ContextBatch]) -> Iterator[t.Tensor]:
    """The activations of the wanted tokens, (2048, D), in float32 and in reading order. The last batch may be smaller."""
    parts = ((batch.wanted_ND.float(),) for batch in contexts)
    return (rows_ND for (rows_ND,) in _regrouped(parts, _ROWS_AT_ONCE))


def _regrouped(parts: Iterable[tuple[t.Tensor, ...]], size: int) -> Iterator[tuple[t.Tensor, ...]]:
    """Regroup tuples of tensors into tuples with `size` rows each. The last may have fewer."""
    rest: tuple[t.Tensor, ...] | None = None
    for part in parts:
        joined = part if rest is None else tuple(map(t.cat, zip(rest, part, strict=True)))
        groups = list(zip(*(tensor.split(size) for tensor in joined), strict=True))
        rest = groups.pop() if len(groups[-1][0]) < size else None
        yield from groups
    if rest is not None and len(rest[0]):
        yield rest


def first_tokens(batches: Iterator[ContextBatch], tokens: int) -> Iterator[ContextBatch]:
    """Batches with `tokens` wanted tokens in all. In the last batch, the tokens after these are marked unwanted."""
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
    """Contexts with a language model's activations at a hook point.

    Arguments:
        contexts: batches as the language model reads them.
        settings: say which tokens are left out, see `Inputs.contexts`.

    Returns: batches of CONTEXTS_PER_MEDIAN contexts.

    Raises: NonFiniteError if an activation is NaN or infinite.
    """
    rule = PositionRule.of_measuring(settings, model.tokenizer)
    reader = ActivationReader(model, hook.place, rule)
    all_read = ((ids_BL, mask_BL, reader.run(ids_BL, mask_BL)) for ids_BL, mask_BL in contexts)
    for input_ids_BL, mask_BL, x_BLD in _regrouped(all_read, CONTEXTS_PER_MEDIAN):
        by_token_BL = reader.rule.by_token(input_ids_BL, mask_BL)
        wanted_BL, non_finite = reader.without_outliers(x_BLD, by_token_BL)
        reader.require_finite(non_finite)
        ids_BL = input_ids_BL.masked_fill(mask_BL == 0, -1)
        yield ContextBatch(ids_BL, wanted_BL, x_BLD.float(), by_token_BL & ~wanted_BL)
