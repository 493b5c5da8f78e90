"""Writes a cache of activations, file by file. It can be stopped at any moment and continued.

Every file is written under a temporary name, renamed when it is complete, and then added to the manifest. So a
stop costs at most the file that was being written.

Several processes share the language model's passes, as in training, and the first one writes. So the cache doesn't
depend on the number of processes, which may change when it is continued.

Shapes: B contexts, L = ctx_len tokens, D = a hook point's width.
"""

import logging
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import torch as t
from torch import Tensor

from ..config.checks import require
from ..config.run import RunConfig, Split, evaluation_batch
from ..errors import ActivationsError, ConfigError, DiskError, UserError, bytes_shown
from ..progress import progress
from ..run_folder.files import (
    locked,
    remove,
    remove_left_behind,
    replacing,
    sha256_of,
    write_json,
)
from .cache_manifest import (
    DOCUMENTS,
    HELD_OUT,
    MANIFEST,
    TOKEN_IDS,
    UNFINISHED,
    CachedHook,
    CacheDtype,
    CacheFile,
    CacheManifest,
    CacheSettings,
    differences,
    read_manifest,
    require_sizes,
)
from .hook_points import HookPoint, find_hook
from .language_models import CausalLM, identity, load_model, settings_hash
from .passes import SharedPasses
from .positions import PositionRule
from .rows import ActivationReader
from .stored import INFO, STATE
from .text import text_of
from .tokens import ONE_RANK, ContextStream, Ranks, no_context

logger = logging.getLogger(__name__)
T = TypeVar("T")

_CONTEXTS = 32
"""The number of contexts in a file is a multiple of this, if so many fit into it."""
_SPARE = 1.05
"""Cache 5% more held-out tokens than the user asked for, as a run may leave some out."""
_SAMPLED = 256
"""The number of documents from which the share of padding is estimated."""


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
    elsewhere: str = "folder",
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
        on_plan: the first process calls it with a description of the cache before it writes.
        before_batch: called before each batch of the language model; several processes call it before the batches that
            they read at the same time. It may raise, on all processes or none.
        elsewhere: the name of the setting `folder`, for messages.
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
        _on_first_process(group, lambda: until_the_end.enter_context(locked(folder, elsewhere)))
        model = load_model(run)
        points = {name: find_hook(model, name) for name in hooks}
        text = text_of(run, seed=run.data_seed)
        settings = CacheSettings(
            model=run.model,
            language_model=identity(model.module),
            tokenizer=settings_hash(model),
            lm_dtype=run.dtype,
            bos_token_id=model.tokenizer.bos_token_id,
            data=run.data,
            text=text.state_dict()["fingerprint"],
            data_seed=run.data_seed,
            text_packing=run.text_packing,
            ctx_len=run.ctx_len,
            hooks={name: CachedHook(p.layer, p.activation_dim) for name, p in points.items()},
            dtype=dtype,
            eval_tokens=run.eval_tokens,
            eval_documents=run.eval_documents if run.eval_tokens else 0,
            text_column=run.text_column,
        )
        _require_alike(group.gather(settings))

        def planned() -> CacheManifest | None:
            manifest = _existing_cache(folder, settings, overwrite, elsewhere)
            written = 0 if manifest is None else sum(file.bytes for file in manifest.all_files)
            filled = _share_of_tokens(text, model.tokenizer, settings)
            free = shutil.disk_usage(folder).free
            on_plan(_plan(folder, settings, tokens, written, filled, free))
            return manifest

        manifest = _on_first_process(group, planned)
        writer = _Writer(
            folder, settings, run, model, points, file_bytes, before_batch, elsewhere, group
        )
        if manifest is None:
            manifest = writer.held_out_part()
        return writer.training_part(manifest, tokens)


def _on_first_process(group: Ranks, do: Callable[[], T]) -> T | None:
    """Call `do` in the first process, and return its result or raise its UserError in all processes."""
    found = error = None
    if group.rank == 0:
        try:
            found = do()
        except UserError as refused:
            error = refused
    found, error = group.gather((found, error))[0]
    if error is not None:
        raise error
    return found


def _require_alike(all_settings: list[CacheSettings]) -> None:
    """Raise an ActivationsError unless all processes have the same model and text."""
    for rank, settings in enumerate(all_settings):
        if differ := differences(settings, all_settings[0]):
            raise ActivationsError(
                f"rank {rank} has {', '.join(differ)} as rank 0",
                instead="copy the same files to every machine",
            )


def _existing_cache(
    folder: Path, settings: CacheSettings, overwrite: bool, elsewhere: str
) -> CacheManifest | None:
    """The manifest of the cache that is there so far; None for a new one.

    Deletes files that a killed process left half written and, with `overwrite`, a cache of other settings. A
    complete file that isn't in the manifest yet will be replaced.

    Raises: ActivationsError if the folder holds other files, or a cache of other settings.
    """
    found = read_manifest(folder, UNFINISHED) or read_manifest(folder)
    if found is None:
        names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
        if others := [name for name in names if name != HELD_OUT]:  # written before the manifest
            raise ActivationsError(
                f"{folder}: holds no cache but other files ({', '.join(others[:5])})",
                instead=f"choose an empty {elsewhere}",
            )
    elif (differ := differences(found.settings, settings)) and overwrite:
        known = (INFO, STATE, HELD_OUT, UNFINISHED, MANIFEST)
        for path in (*folder.glob("data-*.arrow"), *(folder / name for name in known)):
            remove(path)
        found = None
    elif differ:
        raise ActivationsError(
            f"{folder}: the cache has {', '.join(differ)}",
            instead=f"use the same settings to continue it, or choose another {elsewhere}",
        )
    else:
        require_sizes(folder, found)
    for part in (folder, folder / HELD_OUT):
        remove_left_behind(part)
    return found


def _share_of_tokens(text: Iterator[str], tokenizer: Any, settings: CacheSettings) -> float:
    """The share of positions that are not padding, in a text's first documents."""
    if settings.text_packing == "pack":
        return 1.0
    contexts = ContextStream(text, tokenizer, settings.ctx_len, packing="truncate")
    found = next(contexts.batches(_SAMPLED), None)
    return 1.0 if found is None else float(found[1].float().mean())


def _plan(
    folder: Path,
    settings: CacheSettings,
    tokens: int,
    written: int,
    filled: float,
    free: int,
) -> str:
    """Describe what will be written. Raises DiskError if the disk is too small.

    Arguments:
        written: how many bytes of it are already there.
        filled: the share of positions that are not padding.
        free: free bytes on the disk.
    """
    item = np.dtype(settings.dtype).itemsize
    per_position = 4 + sum(4 + item * hook.width for hook in settings.hooks.values())
    length = settings.ctx_len
    contexts = math.ceil(tokens / filled / length)
    held_out = math.ceil(_SPARE * settings.eval_tokens / filled / length)
    needed = per_position * length * (contexts + held_out)
    if (missing := needed - written) > free:
        smaller = " or dtype='float16'" if item == 4 else ""
        raise DiskError(
            f"{folder}: this cache needs {bytes_shown(missing)}, and its disk has {bytes_shown(free)} free",
            instead=f"use fewer tokens{smaller}",
        )
    there = f", of which {bytes_shown(min(written, needed))} are there" if written else ""
    each = f"{per_position:,} bytes per token"
    if filled < 1:
        each += f", and as many at padding, which is about {1 - filled:.0%}"
    n = len(settings.hooks)
    kept = f" and {held_out * length * filled:,.0f} held-out ones" if held_out else ""
    return (
        f"{tokens:,} tokens{kept} at {n} hook point{'s'[: n != 1]} in {settings.dtype} need"
        f" {'about ' if filled < 1 else ''}{bytes_shown(needed)}{there} ({each}); the disk has {bytes_shown(free)} free"
    )


_Columns = dict[str, np.ndarray]
"""The columns of a file: activations, (B, L, D), by hook point, and TOKEN_IDS, (B, L), int32."""
_Passes = list[tuple[Tensor, Tensor]]
"""The batches of the language model that become one file: ids and mask, each (B, L)."""


class _Writer:
    """Reads contexts, runs the language model and writes files."""

    def __init__(
        self,
        folder: Path,
        settings: CacheSettings,
        run: RunConfig,
        model: CausalLM,
        points: dict[str, HookPoint],
        file_bytes: int,
        before_batch: Callable[[], None],
        elsewhere: str,
        group: Ranks,
    ):
        self._elsewhere, self._group = elsewhere, group
        self._folder, self._settings, self._run = folder, settings, run
        self._tokenizer = model.tokenizer
        self._before_batch = before_batch
        self._passes = SharedPasses(model, [point.place for point in points.values()], group)
        self._readers = {
            name: ActivationReader(model, point.place, PositionRule(), self._passes)
            for name, point in points.items()
        }
        widths = [hook.width for hook in settings.hooks.values()]
        context_bytes = settings.ctx_len * sum(widths) * np.dtype(settings.dtype).itemsize
        # The offsets of Arrow's lists are int32.
        most = min(file_bytes // context_bytes, (2**31 - 1) // (settings.ctx_len * max(widths)))
        unit = max(1, min(_CONTEXTS, most))
        self._contexts_per_file = max(1, most // unit) * unit

    def held_out_part(self) -> CacheManifest:
        """Write the held-out part, and the first manifest."""
        settings, run = self._settings, self._run
        files: list[CacheFile] = []
        documents = None
        if run.eval_tokens:
            batch = evaluation_batch(run.eval_tokens)
            enough = int(_SPARE * math.ceil(run.eval_tokens / batch) * batch)
            stream = self._stream("heldout")
            files += self._files(stream, enough, [], HELD_OUT, "held-out")
            if not files:
                raise no_context(run, "heldout")
            self._write_dataset_files(HELD_OUT, files)
            documents = _on_first_process(self._group, self._documents)
        manifest = CacheManifest(settings, (), tuple(files), documents, None)
        self._write_manifest(UNFINISHED, manifest)
        return manifest

    def training_part(self, manifest: CacheManifest, tokens: int) -> CacheManifest:
        """Write the missing files to train on, and the final manifest."""
        stream = self._stream("train")
        if manifest.position is not None:
            stream.load_state_dict(manifest.position)
        for new in self._files(stream, tokens, manifest.files, "", "caching"):
            manifest = replace(manifest, files=(*manifest.files, new), position=stream.state_dict())
            self._write_manifest(UNFINISHED, manifest)
        if not manifest.files:
            raise no_context(self._run, "train")
        if manifest.tokens < tokens:
            logger.warning(
                "the text %r ended: cached %s tokens, not %s; a training reads these as often as it needs",
                self._settings.data,
                f"{manifest.tokens:,}",
                f"{tokens:,}",
            )
        require_sizes(self._folder, manifest)  # it may have been deleted in the meantime
        self._write_dataset_files("", manifest.files)
        self._write_manifest(MANIFEST, manifest)
        if self._group.rank == 0:
            remove(self._folder / UNFINISHED)
        self._group.gather(None)  # the other processes wait for it
        return manifest

    def _write_manifest(self, name: str, manifest: CacheManifest) -> None:
        if self._group.rank == 0:
            write_json(self._folder / name, manifest.to_dict(), self._elsewhere)

    def _write_dataset_files(self, part: str, files: Sequence[CacheFile]) -> None:
        """Write the files that `datasets.load_from_disk` reads beside the Arrow files in a folder of the cache."""
        if self._group.rank:
            return
        # As datasets 3 writes them. Later versions can read these, but version 3 can't read theirs.
        length = self._settings.ctx_len
        features: dict[str, Any] = {
            hook: {
                "shape": [length, cached.width],
                "dtype": self._settings.dtype,
                "_type": "Array2D",
            }
            for hook, cached in self._settings.hooks.items()
        }
        features[TOKEN_IDS] = {
            "feature": {"dtype": "int32", "_type": "Value"},
            "length": length,
            "_type": "Sequence",
        }
        state = {
            "_data_files": [{"filename": Path(file.name).name} for file in files],
            "_fingerprint": files[-1].sha256[:16],
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": None,
        }
        for name, content in ((INFO, {"features": features}), (STATE, state)):
            write_json(self._folder / part / name, content, self._elsewhere)

    def _entry(self, path: Path, ids_BL: np.ndarray) -> CacheFile:
        """A written file's entry in the manifest."""
        name, tokens = path.relative_to(self._folder).as_posix(), int((ids_BL >= 0).sum())
        return CacheFile(name, path.stat().st_size, sha256_of(path), len(ids_BL), tokens)

    def _stream(self, split: Split) -> ContextStream:
        run, passes = self._run, (self._run.text_passes or 1) if split == "train" else 1
        seed = run.data_seed if split == "train" else 0  # the same for every data seed
        text = text_of(run, split=split, seed=seed, passes=passes)
        return ContextStream(text, self._tokenizer, run.ctx_len, packing=run.text_packing)

    def _files(
        self,
        stream: ContextStream,
        tokens: int,
        before: Sequence[CacheFile],
        part: str,
        label: str,
    ) -> Iterator[CacheFile]:
        """Write files until there are `tokens` tokens.

        Yields each file. The stream is then at the end of its contexts.

        Arguments:
            before: the files that are already there.
            part: the folder of the files in the cache: "" or HELD_OUT.
        """
        found, number = sum(file.tokens for file in before), len(before)
        quiet: dict[str, Any] = {"disable": True} if self._group.rank else {}
        with progress(tokens, "tok", initial=found, desc=label, unit_scale=True, **quiet) as bar:
            while found < tokens and (passes := self._next_file(stream, tokens - found)):
                file = self._write(
                    self._folder / part / f"data-{number:05d}.arrow", passes, bar.update
                )
                found, number = found + file.tokens, number + 1
                yield file

    def _next_file(self, stream: ContextStream, tokens: int) -> _Passes:
        """The contexts of the next file, with `tokens` tokens at most. Empty at the end of the text."""
        passes: _Passes = []
        room = self._contexts_per_file
        while tokens > 0 and room:
            n = min(self._run.lm_batch_size, math.ceil(tokens / stream.ctx_len), room)
            try:
                ids_BL, mask_BL = stream.next_batch(n)
            except StopIteration:
                break
            passes.append((ids_BL, mask_BL))
            tokens -= int(mask_BL.sum())
            room -= len(ids_BL)
        return passes

    def _write(self, path: Path, passes: _Passes, on_tokens: Callable[[int], object]) -> CacheFile:
        """Run the language model on a file's contexts. The first process writes the file."""
        parts: list[_Columns] = []
        for start in range(0, len(passes), self._passes.at_once):
            self._before_batch()
            together = passes[start : start + self._passes.at_once]
            parts += self._columns(together)
            on_tokens(sum(int(mask_BL.sum()) for _, mask_BL in together))

        def written() -> CacheFile:
            columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            with replacing(path, self._elsewhere) as temporary:
                write_contexts(temporary, columns)
            return self._entry(path, columns[TOKEN_IDS])

        file = _on_first_process(self._group, written)
        assert file is not None, "the first process's"
        return file

    def _columns(self, passes: _Passes) -> list[_Columns]:
        """The columns of each batch."""
        found: list[_Columns] = [{} for _ in passes]
        for name, reader in self._readers.items():
            all_x = self._passes.read(reader.place, passes)
            for columns, (_, mask_BL), x_BLD in zip(found, passes, all_x, strict=True):
                read = reader.judge(x_BLD, mask_BL.bool())
                reader.require_finite(read.non_finite)
                x_BLD = t.where(mask_BL.bool().unsqueeze(-1), read.x_BLD.float().cpu(), 0.0)
                if self._settings.dtype == "float16":
                    x_BLD = _as_float16(x_BLD, name)
                columns[name] = x_BLD.numpy()
        for columns, contexts in zip(found, passes, strict=True):
            columns[TOKEN_IDS] = _marked_ids(*contexts)
        return found

    def _documents(self) -> CacheFile:
        """Write the tokens of the held-out documents, cut to ctx_len."""
        run, path = self._run, self._folder / HELD_OUT / DOCUMENTS
        documents = islice(text_of(run, split="heldout"), run.eval_documents)
        stream = ContextStream(documents, self._tokenizer, run.ctx_len, packing="truncate")
        try:
            ids_BL, mask_BL = stream.next_batch(run.eval_documents)
        except StopIteration as end:
            raise no_context(run, "heldout") from end
        marked_BL = _marked_ids(ids_BL, mask_BL)
        with replacing(path, self._elsewhere) as temporary, temporary.open("wb") as file:
            np.save(file, marked_BL)
        return self._entry(path, marked_BL)


def _marked_ids(ids_BL: Tensor, mask_BL: Tensor) -> np.ndarray:
    """Token ids in int32, with -1 at padding."""
    return t.where(mask_BL.bool(), ids_BL, -1).int().numpy()


def _as_float16(x_BLD: Tensor, hook: str) -> Tensor:
    """Finite activations in float16. Raises a ConfigError if one exceeds its range."""
    half_BLD = x_BLD.half()
    if number := int(half_BLD.isinf().sum()):
        raise ConfigError(
            f"{number:,} activations at {hook} are beyond its range, which ends at"
            f" {t.finfo(t.float16).max:,.0f} (the largest is {float(x_BLD.abs().max()):,.0f})",
            name="dtype",
            value="float16",
            instead="use dtype='float32'",
        )
    return half_BLD


def write_contexts(path: Path, columns: _Columns) -> None:
    """Write an Arrow file with one batch and the same columns as SAELens's caches."""
    from datasets.features.features import Array2DExtensionType

    n, length = columns[TOKEN_IDS].shape
    arrays = {}
    for name, column in columns.items():
        values = pa.array(column.reshape(-1))
        if name == TOKEN_IDS:
            arrays[name] = pa.FixedSizeListArray.from_arrays(values, length)
        else:
            width = column.shape[2]
            rows = pa.ListArray.from_arrays(_offsets(n * length, width), values)
            contexts = pa.ListArray.from_arrays(_offsets(n, length), rows)
            kind = Array2DExtensionType((length, width), str(column.dtype))
            arrays[name] = pa.ExtensionArray.from_storage(kind, contexts)
    batch = pa.RecordBatch.from_arrays(list(arrays.values()), names=list(arrays))
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)


def _offsets(n: int, step: int) -> pa.Array:
    return pa.array(np.arange(0, n * step + 1, step, dtype=np.int32))
