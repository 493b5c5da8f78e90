"""Writes a cache of activations, file by file. It can be stopped at any moment and continued.

Every file is written under a temporary name and renamed once it is whole, and the manifest follows
it. So a stop costs at most the file that was being written.

Shapes: B contexts, L = ctx_len tokens, D = a hook point's width.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch as t
from nnsight import LanguageModel
from torch import Tensor
from tqdm import tqdm

from ..config.checks import require
from ..config.run import RunConfig, Split, evaluation_batch
from ..errors import ConfigError, Setting, TextError
from ..run_folder.writing import locked, remove, replacing, write_json
from .cache_folder import SPARE, filled_share, plan, so_far
from .cache_manifest import (
    DOCUMENTS,
    FOLDER,
    HELD_OUT,
    MANIFEST,
    UNFINISHED,
    CachedHook,
    CacheDtype,
    CacheFile,
    CacheManifest,
    CacheSettings,
    sha256_of,
)
from .cached_files import write_contexts, write_dataset_files
from .enough_text import tokens_to_cache
from .hook_points import HookPoint, SharedPass, find_hook
from .language_models import load_model, settings_hash, weights_hash
from .rows import ActivationReader
from .text import open_text
from .tokens import ContextStream

logger = logging.getLogger(__name__)

_CONTEXTS_AT_ONCE = 32
"""In a batch of the language model, or fewer where so many don't fit into a file."""


class _Contexts(NamedTuple):
    """What becomes a file."""

    x_BLD: dict[str, np.ndarray]
    """By hook point."""
    ids_BL: np.ndarray
    """-1 at padding."""

    @property
    def tokens(self) -> int:
        return int((self.ids_BL >= 0).sum())


def write_cache(
    folder: Path,
    run: RunConfig,
    hooks: Sequence[str],
    tokens: int,
    *,
    dtype: CacheDtype = "float32",
    data_seed: int = 0,
    file_bytes: int = 64_000_000,
    on_plan: Callable[[str], None] = lambda plan: None,
    before_batch: Callable[[], None] = lambda: None,
) -> CacheManifest:
    """Cache a language model's activations at some hook points, or continue to.

    Arguments:
        folder: the cache. If it holds an unfinished cache of the same settings, this continues it.
            A finished one grows to `tokens`.
        run: the language model, its dtype, the text, how often it is read, packing, ctx_len, device,
            and how much held-out text to cache (eval_tokens, eval_documents).
        tokens: for training, rounded up to whole contexts. Padding doesn't count.
        dtype: of the activations on the disk.
        data_seed: seeds the text's order, where it has one.
        file_bytes: the largest size of a file, about. It holds at least one context.
        on_plan: called with what will be written, before anything is.
        before_batch: called before each batch of the language model. It may raise.

    Raises:
        ConfigError: a setting is out of range, the disk is too small, an activation is beyond
            float16's range, or another process is writing there.
        ActivationsError: the folder holds something else.
        CheckpointError: the disk refuses. What was written can be continued.
        LanguageModelError, TextError, NonFiniteError: as in training.
    """
    require(tokens >= 1, "tokens", tokens, "at least 1")
    with locked([folder], FOLDER):
        model = load_model(run)
        points = {name: find_hook(model, name) for name in hooks}
        text = open_text(run.data, seed=data_seed)
        settings = CacheSettings(
            model=run.model,
            language_model=weights_hash(model),
            tokenizer=settings_hash(model),
            lm_dtype=run.dtype,
            bos_token_id=cast(Any, model.tokenizer).bos_token_id,
            data=run.data,
            text=text.state_dict()["fingerprint"],
            data_seed=data_seed,
            text_packing=run.text_packing,
            ctx_len=run.ctx_len,
            hooks={name: CachedHook(p.layer, p.activation_dim) for name, p in points.items()},
            dtype=dtype,
            eval_tokens=run.eval_tokens,
            eval_documents=run.eval_documents if run.eval_tokens else 0,
        )
        manifest = so_far(folder, settings)
        written = 0 if manifest is None else sum(file.bytes for file in manifest.all_files)
        there = tokens_to_cache(run, model.tokenizer, tokens)
        if there:
            logger.warning(
                "the text %r has %s tokens%s, not %s: all of them will be cached; use a longer text for"
                " more, or let a training read these more than once (--text-passes)",
                run.data,
                f"{there:,}",
                f" in {run.text_passes} passes" if run.text_passes > 1 else "",
                f"{tokens:,}",
            )
        filled = filled_share(text, model.tokenizer, settings)
        on_plan(plan(folder, settings, there or tokens, written, filled))
        writer = _Writer(folder, settings, run, model, points, file_bytes, before_batch)
        if manifest is None:
            manifest = writer.held_out_part()
        return writer.training_part(manifest, tokens)


class _Writer:
    """Reads contexts, runs the language model and writes files."""

    def __init__(
        self,
        folder: Path,
        settings: CacheSettings,
        run: RunConfig,
        model: LanguageModel,
        points: dict[str, HookPoint],
        file_bytes: int,
        before_batch: Callable[[], None],
    ):
        self._folder, self._settings, self._run = folder, settings, run
        self._model, self._before_batch = model, before_batch
        shared = SharedPass(model, [point.place for point in points.values()])
        self._readers = {
            name: ActivationReader(model, *p.place, shared=shared) for name, p in points.items()
        }
        widths = [hook.width for hook in settings.hooks.values()]
        of_context = settings.ctx_len * sum(widths) * np.dtype(settings.dtype).itemsize
        most = min(file_bytes // of_context, (2**31 - 1) // (settings.ctx_len * max(widths)))
        self._at_once = max(1, min(_CONTEXTS_AT_ONCE, most))
        self._contexts_per_file = max(1, most // self._at_once) * self._at_once

    def held_out_part(self) -> CacheManifest:
        """Write the held-out part, and the first manifest."""
        settings, run, folder = self._settings, self._run, self._folder
        files, documents = [], None
        if run.eval_tokens:
            batch = evaluation_batch(run.eval_tokens)
            enough = int(SPARE * math.ceil(run.eval_tokens / batch) * batch)
            stream = self._stream("heldout")
            for number, contexts in enumerate(self._read(stream, enough, 0, "held-out")):
                files.append(self._write(f"{HELD_OUT}/data-{number:05d}.arrow", contexts))
            if not files:
                raise _no_context(run, "held-out")
            write_dataset_files(folder / HELD_OUT, settings, files)
            documents = self._documents()
        manifest = CacheManifest(settings, (), tuple(files), documents, None)
        write_json(folder / UNFINISHED, manifest.to_dict(), FOLDER)
        return manifest

    def training_part(self, manifest: CacheManifest, tokens: int) -> CacheManifest:
        """Write the files that are missing, and the manifest."""
        folder, settings = self._folder, self._settings
        stream = self._stream("train")
        if manifest.position is not None:
            stream.load_state_dict(manifest.position)
        for contexts in self._read(stream, tokens, manifest.tokens, "caching"):
            file = self._write(f"data-{len(manifest.files):05d}.arrow", contexts)
            manifest = replace(
                manifest, files=(*manifest.files, file), position=stream.state_dict()
            )
            write_json(folder / UNFINISHED, manifest.to_dict(), FOLDER)
        if not manifest.files:
            raise _no_context(self._run, "training")
        if manifest.tokens < tokens:
            logger.warning(
                "the text %r ended: cached %s tokens, not %s; a training can read these more than once"
                " (--text-passes)",
                settings.data,
                f"{manifest.tokens:,}",
                f"{tokens:,}",
            )
        write_dataset_files(folder, settings, manifest.files)
        write_json(folder / MANIFEST, manifest.to_dict(), FOLDER)
        remove(folder / UNFINISHED)
        return manifest

    def _stream(self, split: Split) -> ContextStream:
        run, passes = self._run, self._run.text_passes if split == "train" else 1
        seed = self._settings.data_seed if split == "train" else 0  # the same for every data seed
        text = open_text(run.data, split=split, seed=seed, passes=passes)
        return ContextStream(text, self._model.tokenizer, run.ctx_len, packing=run.text_packing)

    def _read(
        self, stream: ContextStream, tokens: int, found: int, label: str
    ) -> Iterator[_Contexts]:
        """What becomes a file, until there are `tokens` tokens, `found` of which there are before.

        When it yields, the stream stands after the contexts that it yields.
        """
        bar = tqdm(
            total=tokens, initial=found, desc=label, unit="tok", unit_scale=True, mininterval=1
        )
        with bar:
            parts: list[_Contexts] = []
            while found < tokens:
                self._before_batch()
                n = min(self._at_once, math.ceil((tokens - found) / stream.ctx_len))
                try:
                    parts.append(self._activations(*stream.next_batch(n)))
                except StopIteration:
                    break
                found += parts[-1].tokens
                bar.update(parts[-1].tokens)
                if sum(len(part.ids_BL) for part in parts) >= self._contexts_per_file:
                    yield _joined(parts)
                    parts = []
            if parts:
                yield _joined(parts)

    def _activations(self, input_ids_BL: Tensor, mask_BL: Tensor) -> _Contexts:
        found = {}
        for name, reader in self._readers.items():
            read = reader.read(input_ids_BL, mask_BL, mask_BL.bool())
            reader.require_finite(read.non_finite)
            x_BLD = t.where(mask_BL.bool().unsqueeze(-1), read.x_BLD.float().cpu(), 0.0)
            if self._settings.dtype == "float16":
                _require_range(x_BLD, name)
                x_BLD = x_BLD.half()
            found[name] = x_BLD.numpy()
        return _Contexts(found, t.where(mask_BL.bool(), input_ids_BL, -1).int().numpy())

    def _write(self, name: str, contexts: _Contexts) -> CacheFile:
        path = self._folder / name
        with replacing(path, FOLDER) as temporary:
            write_contexts(temporary, contexts.x_BLD, contexts.ids_BL)
        return _described(self._folder, path, len(contexts.ids_BL), contexts.tokens)

    def _documents(self) -> CacheFile:
        """Write the held-out documents' tokens, cut to ctx_len."""
        run, path = self._run, self._folder / HELD_OUT / DOCUMENTS
        documents = islice(open_text(run.data, split="heldout"), run.eval_documents)
        stream = ContextStream(documents, self._model.tokenizer, run.ctx_len, packing="truncate")
        try:
            ids_BL, mask_BL = stream.next_batch(run.eval_documents)
        except StopIteration as end:
            raise _no_context(run, "held-out") from end
        ids_BL = t.where(mask_BL.bool(), ids_BL, -1).int().numpy()
        with replacing(path, FOLDER) as temporary, temporary.open("wb") as file:
            np.save(file, ids_BL)
        return _described(self._folder, path, len(ids_BL), int((ids_BL >= 0).sum()))


def _joined(parts: list[_Contexts]) -> _Contexts:
    x_BLD = {name: np.concatenate([part.x_BLD[name] for part in parts]) for name in parts[0].x_BLD}
    return _Contexts(x_BLD, np.concatenate([part.ids_BL for part in parts]))


def _described(folder: Path, path: Path, contexts: int, tokens: int) -> CacheFile:
    name = path.relative_to(folder).as_posix()
    return CacheFile(name, path.stat().st_size, sha256_of(path), contexts, tokens)


def _require_range(x_BLD: Tensor, hook: str) -> None:
    """Raise a ConfigError for an activation that float16 can't hold."""
    limit = t.finfo(t.float16).max
    size_BLD = x_BLD.abs()
    if (largest := float(size_BLD.max())) > limit:
        raise ConfigError(
            f"{int((size_BLD > limit).sum()):,} activations at {hook} are beyond its range, which ends"
            f" at {limit:,.0f} (the largest is {largest:,.0f})",
            name="dtype",
            value="float16",
            instead=("use ", Setting("dtype", "float32")),
        )


def _no_context(run: RunConfig, part: str) -> TextError:
    return TextError(
        f"its {part} text has no whole context of {run.ctx_len} tokens",
        name="data",
        value=run.data,
        expected="at least one",
        instead=("use a longer text or a smaller ", Setting("ctx_len")),
    )
