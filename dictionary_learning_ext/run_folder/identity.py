"""What a thing is, as named parts, and in which of them two things differ: `differences`. Imports no torch.

A part is a setting, or what a name stands for, `Named`. Measurements, codes, trainings and caches are compared by them.
"""

import hashlib
import json
import os
from collections.abc import Collection, Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from ..config.hooks import RESID_POST, RESID_PRE, HookName, hook_name
from ..config.run import RunConfig
from ..config.sae import SCHEDULES
from ..errors import ActivationsError, UserError, shown
from .cache_manifest import read_manifest
from .files import at_home, hash_of_files

Parts = Mapping[str, Any]
"""What a thing is: its parts by their names."""
LEAVING_OUT = ("remove_bos", "max_norm_multiple")
"""The settings that leave out tokens. A command can set them for all folders."""
STORED = "activations"
"""The setting that names a folder of stored activations."""
PLACE = ("hook", "target")
"""The settings that say where activations are read."""
CONTEXTS = ("text_packing", "ctx_len", "dtype")
"""The settings that say how a text is cut into contexts, and in which precision the language model reads it."""
MEASURED_ON = ("model", *PLACE, "data", "text_column", *CONTEXTS, *LEAVING_OUT)
"""The settings that SAEs must share to be measured together."""
_NOT_HELD_OUT = ("model", "data", "data_seed", "hooks", "eval_tokens", "eval_documents")
"""The settings of a cache that don't decide its held-out activations, or that are told by a hash beside them."""
_LENGTH = 16
"""The characters that a hash is cut to."""


class Named(NamedTuple):
    """A part whose content is hashed: weights, a text, a language model, stored activations, definitions."""

    name: str | None
    content: str

    def __str__(self) -> str:
        return str(self.name)


def parts_of(settings: Parts, content: Mapping[str, str | None]) -> dict[str, Any]:
    """Settings, and hashes of what some of them name, or of more. Stored activations that are hashed stand for their text and
    language model. None as a hash: it isn't known."""
    hashed = {name: Named(settings.get(name), one) for name, one in content.items() if one}
    stands_for = ("data", "model") if STORED in hashed else ()
    return {name: own for name, own in settings.items() if name not in stands_for} | hashed


def differences(*things: Parts, ignoring: Collection[str] = ()) -> list[str]:
    """The parts in which things differ, in their order. A part is not compared with what lacks it. A schedule that is the same
    share of runs of different lengths doesn't count."""
    differing = []
    for name in dict.fromkeys(name for parts in things for name in parts if name not in ignoring):
        first, *others = (parts for parts in things if name in parts)
        if not all(_same_in(name, first, other) for other in others):
            differing.append(name)
    return differing


def _same_in(name: str, one: Parts, other: Parts) -> bool:
    """Whether two things have equivalent values of a part, or may have the same share of the run, rounded down."""
    runs: list[Any] = [one.get("steps"), other.get("steps")]
    if name in SCHEDULES and None not in (one[name], other[name], *runs):
        return abs(one[name] * runs[1] - other[name] * runs[0]) < max(runs)
    return same_part(name, one[name], other[name])


def same_part(name: str, one: Any, other: Any) -> bool:
    """Whether two values of a part are equivalent: the content counts where both are hashed."""
    if not (isinstance(one, Named) and isinstance(other, Named)):
        one, other = (each.name if isinstance(each, Named) else each for each in (one, other))
    return known_by(name, one) == known_by(name, other)


def known_by(name: str, part: Any) -> Any:
    """What a part is known by: its content; the last part of a language model's name, whose folder may have moved; the path of a
    folder; and for the output of a block the next one's input."""
    if isinstance(part, Named):
        return part.content
    if name == "model":
        return Path(str(part)).name
    if name == STORED and part is not None:
        return os.path.abspath(at_home(part))
    named = hook_name(str(part)) if name == "hook" else None
    if named is not None and named.kind == RESID_POST:
        return str(HookName(named.block + 1, RESID_PRE))
    return part


def key_of(parts: Parts, ignoring: Collection[str] = ()) -> str:
    """A text that things have in common whose parts are known by the same."""
    known = {name: known_by(name, part) for name, part in parts.items() if name not in ignoring}
    return json.dumps(known, sort_keys=True, default=str)


def require_alike(
    things: Mapping[str, Parts],
    error: type[UserError],
    advice: str = "",
    ignoring: Collection[str] = (),
) -> None:
    """Raise an error, with the parts in which they differ, unless all things are like the first.

    Arguments:
        things: by what the message calls them.
        advice: what to do; {name} stands for the first part that differs. Default: how SAEs of other settings are measured.
    """
    (first_name, first), *others = things.items()
    for called, parts in others:
        if not (names := differences(first, parts, ignoring=ignoring)):
            continue
        own, its = (
            " and ".join(f"{name}={_in_short(of[name])}" for name in names) for of in (parts, first)
        )
        instead = advice or "evaluate folders with different settings separately"
        if not advice and (name := names[0]) in LEAVING_OUT:
            instead = f"give {name}={first[name] or parts[name]} to measure both the same way"
        raise error(
            f"{called} has {own}, but {first_name} has {its}", instead=instead.format(name=names[0])
        )


def _in_short(value: Any) -> str:
    """A part's value; of hook points the names, and of a hash the first digits."""
    is_hash = isinstance(value, str) and len(value) >= 40 and value.isalnum()
    return ",".join(value) if isinstance(value, dict) else shown(value[:12] if is_hash else value)


# --- what a measurement is of


def measured_on(settings: RunConfig) -> dict[str, Any]:
    """The settings that determine the held-out activations that an SAE is measured on.

    The folder of a cache is one of them, as a cache may hold other held-out tokens than the text. The target is that of a
    transcoder alone.
    """
    names = [n for n in (*MEASURED_ON, STORED) if n != "target" or settings.target is not None]
    own = {name: getattr(settings, name) for name in names}
    return own | {"max_norm_multiple": settings.sink_multiple}


def hash_of_definitions(*sources: str) -> str:
    """A hash of source files that define what is measured, and of this package's version."""
    content = hash_of_files(map(Path, sources)) + version("dictionary-learning-ext")
    return _short(content)


def sources_of(measured_on: Parts) -> dict[str, str | None]:
    """A hash of each thing that activations come from: a text and a language model, or stored activations.

    None for what isn't on this machine, for a data set of the hub, as streaming leaves no commit, and for what is shipped with the
    package. Files are hashed by `fingerprint_of`, a cache by its settings, which hold hashes of its text and language model;
    a language model of the hub by its commit.
    """
    if (stored := measured_on.get(STORED)) is not None:
        return {STORED: _held_out_content(stored)}
    model = measured_on.get("model")
    return {
        "data": _content_at(measured_on.get("data")),
        "model": _content_at(model) or _commit_of(model),
    }


def _held_out_content(stored: str) -> str | None:
    """The hash of what decides the held-out activations of a cache, or else of its files."""
    with suppress(ActivationsError):
        if (manifest := read_manifest(at_home(stored))) is not None:
            content = {n: v for n, v in vars(manifest.settings).items() if n not in _NOT_HELD_OUT}
            return _short(json.dumps(content, sort_keys=True))
    return _content_at(stored)


def _content_at(name: str | None) -> str | None:
    """The hash of a file, or of the files in a folder but hidden ones; None if there is none."""
    if name in (None, "embedded") or not (path := at_home(name)).exists():
        return None
    inside = sorted(one for one in path.rglob("*") if one.is_file() and not _is_hidden(one, path))
    return hash_of_files([path] if path.is_file() else inside)[:_LENGTH]


def _is_hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def _commit_of(name: str | None) -> str | None:
    """The commit of a language model in the hub's cache."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.file_download import repo_folder_name

    try:
        repository = repo_folder_name(repo_id=str(name), repo_type="model")
    except HFValidationError:  # no name of the hub: a folder that isn't there
        return None
    path = Path(HF_HUB_CACHE, repository, "refs", "main")
    return path.read_text() if path.is_file() else None


def _short(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()[:_LENGTH]
