"""Writes a cache of activations, file by file. It can be stopped at any moment and continued.

The manifest is replaced after each file. A file that it doesn't name was left by a stop: it is deleted, and its
contexts are read again.

Several processes share the language model's passes, as in training, and the first one writes. So the cache doesn't
depend on the number of processes, which may change when it is continued.

Shapes: B contexts, L = ctx_len tokens, D = a hook point's width.
"""

import logging
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch as t
from torch import Tensor

from ..config.checks import require
from ..config.run import RunConfig, evaluation_batch
from ..errors import ActivationsError, DiskError, UserError, bytes_shown
from ..progress import progress
from ..run_folder.cache_manifest import (
    DOCUMENTS,
    HELD_OUT,
    MANIFEST,
    REPAIR,
    SPARE,
    TOKEN_IDS,
    CachedHook,
    CacheDtype,
    CacheFile,
    CacheManifest,
    CacheSettings,
    read_manifest,
    require_whole,
)
from ..run_folder.files import locked, remove, remove_left_behind, replacing, write_json
from ..run_folder.identity import differences, require_alike
from .hook_points import find_hook
from .language_models import identity, load_model, settings_hash
from .passes import Contexts, SharedPasses
from .positions import PositionRule
from .rows import ActivationReader
from .stored import INFO, MADE_HERE, STATE
from .text import text_of
from .tokens import ONE_RANK, ContextStream, Ranks, contexts_of, held_out_documents, no_context

logger = logging.getLogger(__name__)
T = TypeVar("T")

_FILES = "data-[0-9]*.arrow"
_CHANGED = "folder"
"""What the user changes to write to another place, for messages."""
_CONTEXTS = 32
"""The number of contexts in a file is a multiple of this, if so many fit into it."""


def write_cache(
    folder: Path | str,
    run: RunConfig,
    hooks: Sequence[str],
    tokens: int,
    *,
    dtype: CacheDtype = "float32",
    file_bytes: int = 64_000_000,
    overwrite: bool = False,
    on_plan: Callable[[str], None] = lambda plan: None,
    before_batch: Callable[[], None] = lambda: None,
    group: Ranks = ONE_RANK,
) -> CacheManifest:
    """Cache a language model's activations at some hook points, or continue an unfinished cache.

    Arguments:
        folder: the cache's folder. An unfinished cache of the same settings is continued, and a finished one grows to
            `tokens`.
        run: the language model, its dtype, the text, its order (data_seed), how often it is read,
            packing, ctx_len, device, and how much held-out text to cache (eval_tokens, eval_documents).
        tokens: the number of tokens to train on, without padding, rounded up to whole contexts.
        dtype: the dtype of the activations in the files.
        file_bytes: about the largest size of a file. It holds at least one context.
        overwrite: replace a cache of other settings.
        on_plan: the first process calls it with the space that the cache needs, before it writes.
        before_batch: called before each batch of the language model; several processes call it before the batches that
            they read at the same time. It may raise, on all processes or none.
        group: the processes that share the language model's passes. All must call this with the same arguments except
            for the device. Only the first one uses the folder.

    Raises:
        ConfigError: a setting is out of range, the disk is too small (DiskError), an activation exceeds
            float16's range, or another process is writing there.
        ActivationsError: the folder holds other files, or the processes read different models or texts.
        CheckpointError: a file can't be written. The cache can be continued.
        LanguageModelError, TextError, NonFiniteError: as in training.
    """
    require(tokens >= 1, "tokens", tokens, "at least 1")
    folder = Path(folder)
    with ExitStack() as until_the_end:
        _on_first_process(group, lambda: until_the_end.enter_context(locked(folder, _CHANGED)))
        writer = _Writer(folder, run, hooks, dtype, file_bytes, before_batch, group)

        def started() -> CacheManifest | None:
            manifest = _existing_cache(folder, writer.settings, overwrite)
            on_plan(_space(folder, writer.settings, tokens, manifest))
            return manifest

        manifest = _on_first_process(group, started) or writer.held_out_part()
        return writer.training_part(manifest, tokens)


def _on_first_process(group: Ranks, do: Callable[..., T], *given: Any) -> T:
    """Call `do` in the first process, and return its result or raise its UserError in all processes."""
    result = error = None
    if group.rank == 0:
        try:
            result = do(*given)
        except UserError as refused:
            error = refused
    result, error = group.gather((result, error))[0]
    if error is not None:
        raise error
    return result


def _existing_cache(folder: Path, settings: CacheSettings, overwrite: bool) -> CacheManifest | None:
    """The manifest of the cache that is there so far; None for a new one.

    Deletes the files that it doesn't name and, with `overwrite`, a cache of other settings.

    Raises: ActivationsError if the folder holds other files, or a cache of other settings.
    """
    manifest = read_manifest(folder)
    if manifest is not None and differences(vars(manifest.settings), vars(settings)):
        if not overwrite:
            both = {"this command": vars(settings), str(folder): vars(manifest.settings)}
            advice = "use the same settings to continue it, or choose another folder"
            require_alike(both, ActivationsError, advice)
        for name in (_FILES, INFO, STATE, HELD_OUT, MANIFEST):
            for path in folder.glob(name):
                remove(path)
        manifest = None
    if manifest is None:
        names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
        if others := [name for name in names if name != HELD_OUT]:  # written before the manifest
            raise ActivationsError(
                f"{folder}: holds no cache but other files ({', '.join(others[:5])})",
                instead="choose an empty folder",
            )
    else:
        require_whole(folder, manifest.all_files)
    named = {folder / file.name for file in manifest.all_files} if manifest else set[Path]()
    for path in {*folder.glob(_FILES), *folder.glob(f"{HELD_OUT}/{_FILES}")} - named:
        remove(path)
    for part in (folder, folder / HELD_OUT):
        remove_left_behind(part)
    return manifest


def _space(
    folder: Path, settings: CacheSettings, tokens: int, manifest: CacheManifest | None
) -> str:
    """Say how much space the cache needs. Raises DiskError if the disk is too small."""
    item = np.dtype(settings.dtype).itemsize
    # Arrow has 4 bytes for each token id, and for the place of each token's activations.
    of_token = 4 + sum(4 + item * hook.width for hook in settings.hooks.values())
    needed = of_token * (tokens + math.ceil(SPARE * settings.eval_tokens))
    there = 0 if manifest is None else sum(file.bytes for file in manifest.all_files)
    free = shutil.disk_usage(folder).free
    if (missing := needed - there) > free:
        raise DiskError(
            f"{folder}: this cache needs {bytes_shown(missing)}, and its disk has {bytes_shown(free)} free",
            instead="use fewer tokens" + (" or dtype='float16'" if item == 4 else ""),
        )
    at_least = "" if settings.text_packing == "pack" else "at least "  # padding takes space, too
    return f"{tokens:,} tokens need {at_least}{bytes_shown(needed)} on disk; {bytes_shown(free)} are free"


class _Writer:
    """Reads contexts, runs the language model and writes files. For its arguments see `write_cache`."""

    def __init__(
        self,
        folder: Path,
        run: RunConfig,
        hooks: Sequence[str],
        dtype: CacheDtype,
        file_bytes: int,
        before_batch: Callable[[], None],
        group: Ranks,
    ):
        self._folder, self._run, self._before_batch = folder, run, before_batch
        self._group = group
        model = load_model(run)
        self._tokenizer = model.tokenizer
        points = {name: find_hook(model, name) for name in hooks}
        self._passes = SharedPasses(model, [point.place for point in points.values()], group)
        self._readers = {
            name: ActivationReader(model, point.place, PositionRule(), self._passes)
            for name, point in points.items()
        }
        self.settings = CacheSettings(
            model=run.model,
            language_model=identity(model.module),
            tokenizer=settings_hash(model),
            lm_dtype=run.dtype,
            bos_token_id=model.tokenizer.bos_token_id,
            data=run.data,
            text=text_of(run).state_dict()["fingerprint"],
            data_seed=run.data_seed,
            text_packing=run.text_packing,
            ctx_len=run.ctx_len,
            hooks={name: CachedHook(p.layer, p.activation_dim) for name, p in points.items()},
            dtype=dtype,
            eval_tokens=run.eval_tokens,
            eval_documents=run.eval_documents if run.eval_tokens else 0,
            text_column=run.text_column,
        )
        of_ranks = {f"rank {n}": vars(own) for n, own in enumerate(group.gather(self.settings))}
        require_alike(of_ranks, ActivationsError, "copy the same files to every machine")
        row_lengths = [run.ctx_len * point.activation_dim for point in points.values()]
        context_bytes = sum(row_lengths) * np.dtype(dtype).itemsize
        # The offsets of Arrow's lists are int32.
        most = max(1, min(file_bytes // context_bytes, (2**31 - 1) // max(row_lengths)))
        self._contexts_per_file = most // _CONTEXTS * _CONTEXTS or most

    def held_out_part(self) -> CacheManifest:
        """Write the held-out part, and the first manifest."""
        run, files, documents = self._run, (), None
        if run.eval_tokens:
            batch = evaluation_batch(run.eval_tokens)
            enough = int(SPARE * math.ceil(run.eval_tokens / batch) * batch)
            files = tuple(
                self._files(contexts_of(run, "heldout", self._tokenizer), enough, (), HELD_OUT)
            )
            if not files:
                raise no_context(run, "heldout")
            documents = _on_first_process(self._group, self._write_documents)
        manifest = CacheManifest(self.settings, (), files, documents, None, 0)
        self._save(manifest, HELD_OUT if files else None)
        return manifest

    def training_part(self, manifest: CacheManifest, tokens: int) -> CacheManifest:
        """Write the missing files to train on. Returns the manifest of the finished cache."""
        passes = self._run.text_passes or 1
        stream = contexts_of(self._run, "train", self._tokenizer, passes=passes)
        if manifest.position is not None:
            try:
                stream.load_state_dict(manifest.position)
            except (KeyError, TypeError, IndexError) as error:
                where = f"{self._folder / MANIFEST}: damaged position"
                raise ActivationsError(where, instead=REPAIR) from error
        for new in self._files(stream, tokens, manifest.files, ""):
            manifest = replace(manifest, files=(*manifest.files, new), position=stream.state_dict())
            self._save(manifest)
        if not manifest.files:
            raise no_context(self._run, "train")
        if manifest.tokens < tokens:
            logger.warning(
                "the text %r ended: cached %s tokens, not %s; a training reads these as often as it needs",
                *(self.settings.data, f"{manifest.tokens:,}", f"{tokens:,}"),
            )
        finished = replace(manifest, finished=len(manifest.files))
        if finished != manifest:  # if not, codes of the cache stay valid, as its files' times do
            self._save(finished, "")
        return finished

    def _save(self, manifest: CacheManifest, complete: str | None = None) -> None:
        """Replace the manifest.

        Arguments:
            complete: the part that `datasets` can load from now on: "" or HELD_OUT.
        """

        def saved() -> None:
            new = manifest.files[-1:] if complete is None else manifest.all_files
            require_whole(self._folder, new)  # they may have been deleted in the meantime
            if complete is not None:
                self._make_loadable(complete, manifest)
            write_json(self._folder / MANIFEST, asdict(manifest), _CHANGED)

        _on_first_process(self._group, saved)

    def _make_loadable(self, part: str, manifest: CacheManifest) -> None:
        """Write what `datasets.load_from_disk` reads beside files. Its `save_to_disk` would write these again."""
        files = manifest.heldout if part else manifest.files
        state = {
            "_data_files": [{"filename": Path(file.name).name} for file in files],
            "_fingerprint": manifest.digest[:16],
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": None,
        }
        # Features are named in two ways, before version 4 and since. Without names, `datasets` takes the files' own.
        for name, content in ((INFO, {"description": MADE_HERE}), (STATE, state)):
            write_json(self._folder / part / name, content, _CHANGED)

    def _files(
        self, stream: ContextStream, tokens: int, before: Sequence[CacheFile], part: str
    ) -> Iterator[CacheFile]:
        """Write files until there are `tokens` tokens.

        Yields each file. The stream is then at the end of its contexts.

        Arguments:
            before: the files that are already there.
            part: the folder of the files in the cache: "" or HELD_OUT.
        """
        n_tokens, number = sum(file.tokens for file in before), len(before)
        quiet: dict[str, Any] = {"disable": True} if self._group.rank else {}
        label = "held-out" if part else "caching"
        with progress(tokens, "tok", initial=n_tokens, desc=label, unit_scale=True, **quiet) as bar:
            while passes := self._next_file(stream, tokens - n_tokens):
                columns = self._columns(passes, bar.update)
                path = self._folder / part / f"data-{number:05d}.arrow"
                file = _on_first_process(self._group, self._write, path, columns)
                n_tokens, number = n_tokens + file.tokens, number + 1
                yield file

    def _next_file(self, stream: ContextStream, tokens: int) -> list[Contexts]:
        """The contexts of the next file, with `tokens` tokens at most. Empty at the end of the text."""
        passes: list[Contexts] = []
        room = self._contexts_per_file
        while tokens > 0 and room:
            n = min(self._run.lm_batch_size, math.ceil(tokens / stream.ctx_len), room)
            ids_BL, mask_BL = stream.next_batch(n)
            if not len(ids_BL):
                break
            passes.append((ids_BL, mask_BL))
            tokens -= int(mask_BL.sum())
            room -= len(ids_BL)
        return passes

    def _columns(
        self, passes: list[Contexts], on_tokens: Callable[[int], object]
    ) -> dict[str, np.ndarray]:
        """Run the language model on the contexts of a file. Returns its columns, see `write_contexts`."""
        columns: dict[str, list[np.ndarray]] = {name: [] for name in (*self._readers, TOKEN_IDS)}
        for start in range(0, len(passes), self._passes.at_once):
            self._before_batch()
            together = passes[start : start + self._passes.at_once]
            for name, reader in self._readers.items():
                all_x = self._passes.read(reader.place, together)
                for (_, mask_BL), x_BLD in zip(together, all_x, strict=True):
                    reader.require_finite(reader.without_outliers(x_BLD, mask_BL.bool())[1])
                    x_BLD = t.where(mask_BL.bool().unsqueeze(-1), x_BLD.float().cpu(), 0.0)
                    if self.settings.dtype == "float16":
                        x_BLD = _as_float16(x_BLD, name)
                    columns[name].append(x_BLD.numpy())
            columns[TOKEN_IDS] += [_marked_ids(*contexts) for contexts in together]
            on_tokens(sum(int(mask_BL.sum()) for _, mask_BL in together))
        return {name: np.concatenate(arrays) for name, arrays in columns.items()}

    def _write(self, path: Path, columns: dict[str, np.ndarray]) -> CacheFile:
        with replacing(path, _CHANGED) as temporary:
            write_contexts(temporary, columns)
        return self._entry(path, columns[TOKEN_IDS])

    def _write_documents(self) -> CacheFile:
        """Write the tokens of the held-out documents, cut to ctx_len."""
        run, path = self._run, self._folder / HELD_OUT / DOCUMENTS
        documents = held_out_documents(run, self._tokenizer)
        marked_BL = _marked_ids(*documents.next_batch(run.eval_documents))
        if not len(marked_BL):
            raise no_context(run, "heldout")
        with replacing(path, _CHANGED) as temporary, temporary.open("wb") as file:
            np.save(file, marked_BL)
        return self._entry(path, marked_BL)

    def _entry(self, path: Path, ids_BL: np.ndarray) -> CacheFile:
        """A written file's entry in the manifest."""
        name, tokens = path.relative_to(self._folder).as_posix(), int((ids_BL >= 0).sum())
        return CacheFile(name, path.stat().st_size, len(ids_BL), tokens)


def _marked_ids(ids_BL: Tensor, mask_BL: Tensor) -> np.ndarray:
    """Token ids in int32, with -1 at padding."""
    return t.where(mask_BL.bool(), ids_BL, -1).int().numpy()


def _as_float16(x_BLD: Tensor, hook: str) -> Tensor:
    """Finite activations in float16. Raises a ConfigError if one exceeds its range."""
    largest, most = float(x_BLD.abs().max()), t.finfo(t.float16).max
    legal = f"activations up to {most:,.0f} (at {hook} the largest is {largest:,.0f})"
    require(largest <= most, "dtype", "float16", legal, instead="use dtype='float32'")
    return x_BLD.half()


def write_contexts(path: Path, columns: dict[str, np.ndarray]) -> None:
    """Write an Arrow file of one batch, with the columns of SAELens's caches.

    Arguments:
        columns: activations, (B, L, D), by hook point, and TOKEN_IDS, (B, L), int32.
    """
    from datasets import Array2D, Features, Sequence, Value
    from datasets.arrow_writer import ArrowWriter

    n, length = columns[TOKEN_IDS].shape
    features: dict[str, Any] = {
        name: Array2D(array.shape[1:], str(array.dtype))
        for name, array in columns.items()
        if name != TOKEN_IDS
    }
    features[TOKEN_IDS] = Sequence(Value("int32"), length=length)
    with ArrowWriter(path=str(path), features=Features(features), with_metadata=False) as writer:
        writer.write_batch(cast(Any, columns), writer_batch_size=n)
        writer.finalize()
