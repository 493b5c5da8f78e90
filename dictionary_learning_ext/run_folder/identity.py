"""What a measurement is of: the SAE's weights, the text and the language model, and the definitions. Imports no torch.

metrics.json and an SAE's codes hold it, as hashes. What measures makes them again where one differs; what only reads says so.
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import HFValidationError
from huggingface_hub.file_download import repo_folder_name

from ..errors import ActivationsError
from .cache_manifest import read_manifest
from .comparing import STORED
from .files import OF, at_home, hash_of_files
from .sae_folder import SAEFolder

_NOT_HELD_OUT = ("model", "data", "data_seed", "hooks", "eval_tokens", "eval_documents")
"""The settings of a cache that don't decide its held-out activations, or that are told by a hash beside them."""
_LENGTH = 16
"""The characters that a hash is cut to."""


def identity(sae: str, measured_on: Mapping[str, Any], definitions: str) -> dict[str, str | None]:
    """What a measurement is of.

    Arguments:
        sae: the SAE's `hash`.
        measured_on: the settings, see `comparing.measured_on`.
        definitions: see `hash_of_definitions`.
    """
    return {"weights": sae, **sources_of(measured_on), "definitions": definitions}


def changed(sae: SAEFolder, metrics: Mapping[str, Any], definitions: str) -> list[str] | None:
    """What of the `identity` in an SAE's metrics.json differs from now; None if there is none, as earlier versions wrote none.

    What can't be hashed here and now, e.g. a text that isn't on this machine, doesn't count.

    Arguments:
        definitions: those of now.
    """
    if (was := metrics.get(OF)) is None:
        return None
    now = identity(sae.hash, metrics.get("measured_on", {}), definitions)
    return [key for key, one in was.items() if one and now.get(key) not in (None, one)]


def hash_of_definitions(*sources: str) -> str:
    """A hash of source files that define what is measured, and of this package's version."""
    content = hash_of_files(map(Path, sources)) + version("dictionary-learning-ext")
    return _short(content)


def sources_of(measured_on: Mapping[str, Any]) -> dict[str, str | None]:
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
    try:
        repository = repo_folder_name(repo_id=str(name), repo_type="model")
    except HFValidationError:  # no name of the hub: a folder that isn't there
        return None
    path = Path(HF_HUB_CACHE, repository, "refs", "main")
    return path.read_text() if path.is_file() else None


def _short(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()[:_LENGTH]
