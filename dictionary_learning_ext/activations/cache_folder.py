"""The folder of a cache before it is written: what it holds already, and whether it has the space."""

import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..config.checks import in_words
from ..errors import ActivationsError, ConfigError, Setting
from ..run_folder.files import LOCK, remove
from .cache_manifest import (
    HELD_OUT,
    UNFINISHED,
    CacheManifest,
    CacheSettings,
    differences,
    read_manifest,
    require_sizes,
)
from .tokens import ContextStream

SPARE = 1.05
"""More held-out tokens than are measured on, as some may be left out."""
_SAMPLED = 256
"""Documents, to estimate the padding."""

_DATA, _RANDOM = r"data-\d{5,}\.arrow", r"\.[a-z0-9_]{8}"
_TEMPORARY = (
    rf"\.({_DATA}|documents\.npy|(manifest|manifest\.unfinished|state|dataset_info)\.json){_RANDOM}"
)
"""Names that a kill leaves of a file that isn't whole yet, see `replacing`."""
_LEFT = re.compile(rf"{_DATA}|{_TEMPORARY}")
"""Names that a kill leaves beside a manifest, which doesn't have them yet."""
_LEFT_IN_HELD_OUT = re.compile(rf"{_LEFT.pattern}|documents\.npy|(state|dataset_info)\.json")
"""Names that a kill leaves in the held-out part, which is written before the first manifest."""
_LEFT_FIRST = re.compile(rf"\.{re.escape(UNFINISHED)}{_RANDOM}")
"""Names that a kill leaves beside the held-out part before the first manifest."""


def so_far(folder: Path, settings: CacheSettings) -> CacheManifest | None:
    """What the folder holds of this cache. What a kill has left of it is deleted, and nothing else.

    Raises: ActivationsError if it holds something else.
    """
    found = read_manifest(folder, UNFINISHED) or read_manifest(folder)
    if found is None:
        left = list(_left_without_manifest(folder))
    elif differ := differences(found.settings, settings):
        raise ActivationsError(
            f"{folder}: the cache has {', '.join(differ)}; use the same settings to continue it, or"
            " choose another folder"
        )
    else:
        require_sizes(folder, found)
        files = [folder / file.name for file in found.files]
        left = [path for path in folder.iterdir() if _is_left(path, _LEFT) and path not in files]
    for path in left:
        remove(path)
    return found


def _left_without_manifest(folder: Path) -> Iterator[Path]:
    """All files of a folder without a manifest. Raises ActivationsError if one isn't ours."""
    held_out = folder / HELD_OUT
    inside = held_out.is_dir() and not held_out.is_symlink()
    left = [path for path in folder.iterdir() if _is_left(path, _LEFT_FIRST)]
    ours = {folder / LOCK, *left} | ({held_out} if inside else set())
    others = [path for path in folder.iterdir() if path not in ours]
    for path in held_out.iterdir() if inside else ():
        (left if _is_left(path, _LEFT_IN_HELD_OUT) else others).append(path)
    if others:
        names = sorted(path.relative_to(folder).as_posix() for path in others)
        raise ActivationsError(
            f"{folder}: holds no cache but other files ({', '.join(names[:5])}); choose an empty"
            " folder"
        )
    yield from left


def _is_left(path: Path, names: re.Pattern[str]) -> bool:
    return names.fullmatch(path.name) is not None and path.is_file()


def filled_share(text: Iterator[str], tokenizer: Any, settings: CacheSettings) -> float:
    """The share of stored positions that hold a token, of a text's first documents."""
    if settings.text_packing == "pack":
        return 1.0
    contexts = ContextStream(text, tokenizer, settings.ctx_len, packing="truncate")
    try:
        _, mask_BL = contexts.next_batch(_SAMPLED)
    except StopIteration:
        return 1.0
    return float(mask_BL.float().mean())


def plan(
    folder: Path, settings: CacheSettings, tokens: int, written: int, filled: float = 1.0
) -> str:
    """What will be written, in words. Raises ConfigError if the disk is too small.

    Arguments:
        written: bytes that are there.
        filled: the share of stored positions that hold a token; the rest is padding.
    """
    item = np.dtype(settings.dtype).itemsize
    per_position = 4 + sum(4 + item * hook.width for hook in settings.hooks.values())
    length = settings.ctx_len
    contexts = math.ceil(tokens / filled / length)
    held_out = math.ceil(SPARE * settings.eval_tokens / filled / length)
    needed = per_position * length * (contexts + held_out)
    free = shutil.disk_usage(folder).free
    if (missing := needed - written) > free:
        smaller = (" or ", Setting("dtype", "float16")) if item == 4 else ()
        raise ConfigError(
            f"{folder}: this cache needs {in_words(missing)}, and its disk has {in_words(free)} free",
            instead=("use fewer ", Setting("tokens"), *smaller),
        )
    there = f", of which {in_words(min(written, needed))} are there" if written else ""
    each = f"{per_position:,} bytes per token"
    if filled < 1:
        each += f", and as many at padding, which is about {1 - filled:.0%}"
    return (
        f"{tokens:,} tokens of {len(settings.hooks)} hook point{'s'[: len(settings.hooks) != 1]} in"
        f" {settings.dtype} need {'about ' if filled < 1 else ''}{in_words(needed)}{there} ({each});"
        f" the disk has {in_words(free)} free"
    )
