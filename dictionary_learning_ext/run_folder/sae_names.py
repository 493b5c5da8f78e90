"""The names that users give to SAEs, and the folders for their results. Imports no torch.

runs/NAME                    a folder on this machine, of any format in `foreign.RECOGNISED`
OWNER/REPOSITORY/FOLDER      a folder on the hub; sparsify names FOLDER after the module
RELEASE/ID                   an SAE in SAELens's table of releases, if SAELens is installed
"""

import hashlib
import re
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from ..config.checks import require_type
from ..errors import CheckpointError, ConfigError, HubError, first_line
from .files import (
    CONFIG,
    RESULTS,
    RUNS,
    WEIGHTS,
    checkpoint,
    hash_of_files,
    read_json,
    sha256_of,
    target_of,
)
from .foreign import (
    FOREIGN_CONFIG,
    RECOGNISED,
    SAE_FILES,
    SPARSIFY_ABOUT,
    WEIGHTS_OF,
    format_of,
)
from .schema import CONFIG_JSON

_HUB_NAME = re.compile(r"\w[\w.-]*(/[\w.:=-]+)+/?")
EXPECTED = "expected a run folder, e.g. runs/NAME"


class SAELocation(NamedTuple):
    """An SAE's folder on this machine, and settings that override those in its files."""

    folder: Path
    overrides: dict[str, Any]
    """See `foreign_config`."""


def location_of(name: str | Path) -> SAELocation:
    """The folder of an SAE, which is fetched from the hub if necessary. A folder on this machine may be missing.

    Raises: HubError if the hub can't be reached, or has no such SAE; CheckpointError if the name is a file's;
    ConfigError if it is neither text nor a path.
    """
    require_type("folder", name, str | Path)
    here = Path(name)
    if here.is_file():
        raise CheckpointError(f"{name}: a file", instead=f"give its folder, {here.parent}")
    return _fetched(here.as_posix()) if _is_on_hub(name) else SAELocation(here, {})


def require_different(names: Sequence[str | Path]) -> None:
    """Raise a ConfigError if two names are of the same SAE."""
    seen: set[Path] = set()
    for name in names:
        if (path := target_of(location_of(name).folder)) in seen:
            raise ConfigError(f"{name} is given twice", instead="remove it once")
        seen.add(path)


def require_own(name: str | Path, command: str) -> None:
    """Raise a CheckpointError unless an SAE is in a folder of this package or of upstream, on this machine.

    Arguments:
        command: the command that takes no other SAEs.
    """
    if _is_on_hub(name):
        raise CheckpointError(f"{name}: no such folder; `vsae {command}` takes run folders here")
    if (form := format_of(location_of(name).folder)) is not None:
        raise CheckpointError(
            f"{name}: an SAE of {form}; `vsae {command}` takes run folders, and those of dictionary_learning"
        )


# --- results


def results_folder(name: str | Path, out: str | Path | None = None) -> Path:
    """The folder for an SAE's results: its own folder for a run of this package, results/NAME for other SAEs.

    NAME is made of the last two parts of its path and eight characters of its weights' hash, as many folders have the
    same name, e.g. trainer_0 from `trainSAE`. The folder is not created.

    Arguments:
        out: put results into out/NAME instead, also for runs of this package.

    Raises: CheckpointError if there is no such folder, or it holds no weights; HubError.
    """
    folder = location_of(name).folder
    if not folder.is_dir():
        raise CheckpointError(f"{name}: no such folder; {EXPECTED}")
    is_here = not _is_on_hub(name)
    if out is None and is_here and format_of(folder) is None and not _is_upstreams(folder):
        return folder
    path = target_of(folder) if is_here else Path(name)
    parts = [re.sub(r"[^\w.=-]", "-", part) for part in path.parts[-2:]]
    return Path(out or RESULTS) / "_".join([*parts, _hash_of_weights(folder)[:8]])


def _is_upstreams(folder: Path) -> bool:
    """Whether upstream's `trainSAE` wrote a folder."""
    if not all((folder / name).is_file() for name in (CONFIG, WEIGHTS)):
        return False
    config = read_json(folder / CONFIG, CONFIG_JSON)
    return "trainer" in config and "run" not in config


def hash_of_sae(name: str | Path, step: int | None = None) -> str:
    """A hash of an SAE's weights, and of another library's settings for them, of 16 characters. Torch isn't needed.

    Arguments:
        step: of a checkpoint. Default: the final weights.
    """
    folder = location_of(name).folder
    digest = _hash_of_weights(folder, step)
    if format_of(folder) is not None:
        settings = [folder / one for one in (FOREIGN_CONFIG, SPARSIFY_ABOUT, CONFIG)]
        digest = hashlib.sha256(
            (digest + hash_of_files(path for path in settings if path.is_file())).encode()
        ).hexdigest()
    return digest[:16]


def _hash_of_weights(folder: Path, step: int | None = None) -> str:
    form = format_of(folder)
    path = folder / (WEIGHTS if form is None else WEIGHTS_OF[form])
    path = path if step is None else checkpoint(folder, step)
    if not path.is_file():
        raise CheckpointError(f"{folder}: expected a file {path.name}")
    stat = path.stat()
    return _hash_of_file(path, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size)


@cache
def _hash_of_file(path: Path, *version: int) -> str:
    """A file's SHA-256, computed once for each version of the file, as weights may be large."""
    return sha256_of(path)


# --- the hub


def _is_on_hub(name: str | Path) -> bool:
    """Whether a name can be of an SAE on the hub, and its first part is no folder on this machine."""
    text = (
        name.as_posix() if isinstance(name, Path) else name
    )  # "./x" is a folder, x may be on the hub
    first = text.partition("/")[0]
    return (
        _HUB_NAME.fullmatch(text) is not None
        and ".." not in text.split("/")
        and first != RUNS.name
        and not Path(first).exists()
    )


@cache
def _fetched(name: str) -> SAELocation:
    """Download an SAE from the hub into huggingface_hub's cache."""
    import huggingface_hub
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
    )

    # The bases of HfHubHTTPError are the errors of the HTTP library, which depends on the version.
    unreachable: Any = (OSError, ValueError, *HfHubHTTPError.__bases__)
    repo, inside, overrides = _hub_place(name)
    within = f"{inside}/" if inside else ""
    files = [f"{within}{file}" for file in SAE_FILES]
    beside = Path(inside).parent / CONFIG  # where sparsify's trainer writes it
    try:
        snapshot = huggingface_hub.snapshot_download(
            repo, allow_patterns=[*files, beside.as_posix()]
        )
    except GatedRepoError as error:
        raise HubError(
            f"{name}: the hub's repository {repo} is gated",
            instead="ask for access on its page, and log in with `hf auth login`",
        ) from error
    except unreachable as error:
        has_none = isinstance(error, RepositoryNotFoundError)
        why = f"has no repository {repo}" if has_none else f"can't be read ({first_line(error)})"
        or_install = "" if _releases() else ", or install sae-lens for the names of its releases"
        raise HubError(
            f"{name}: no such folder here, and the hub {why}",
            instead=f"give a folder, or OWNER/REPOSITORY/FOLDER{or_install}",
        ) from error
    folder = Path(snapshot) / inside
    if not folder.is_dir():
        what = f"has no folder {inside!r}" if inside else "holds no SAE outside its folders"
        give = "OWNER/REPOSITORY/FOLDER of one: " + RECOGNISED
        raise HubError(f"{name}: the repository {repo} {what}", instead=f"give {give}")
    return SAELocation(folder, overrides)


def _hub_place(name: str) -> tuple[str, str, dict[str, Any]]:
    """The repository, the folder in it ("" for its root), and the overrides in SAELens's table of releases."""
    release, _, sae = name.strip("/").partition("/")
    if (table := _releases().get(release)) is None:
        owner, repository, *inside = name.strip("/").split("/")
        repo, path = f"{owner}/{repository}", "/".join(inside)
        of_repo = (row for row in _releases().values() if row["repo_id"] == repo)
        at_path = (
            (row, sae_row) for row in of_repo for sae_row in row["saes"] if sae_row["path"] == path
        )
        return repo, path, next((_overrides(*rows) for rows in at_path), {})
    entries = {str(entry["id"]): entry for entry in table["saes"]}
    if sae not in entries:
        shown = ", ".join([*entries][:5]) + (", …" if len(entries) > 5 else "")
        raise HubError(f"{name}: SAELens's release {release} has no {sae!r}; expected {shown}")
    if (form := table.get("conversion_func")) not in (None, "sae_lens", "sparsify", "gemma_2"):
        raise CheckpointError(
            f"{name}: SAELens's release {release} is stored in the format {form!r}, which can't be read; "
            "load it in SAELens, and save it with its save_model"
        )
    return table["repo_id"], str(entries[sae]["path"]), _overrides(table, entries[sae])


def _overrides(release: dict[str, Any], sae: dict[str, Any]) -> dict[str, Any]:
    """The settings in SAELens's table of releases that override those in an SAE's files."""
    factor = {key: sae[key] for key in ("norm_scaling_factor",) if key in sae}
    return (release.get("config_overrides") or {}) | factor


@cache
def _releases() -> dict[str, Any]:
    """SAELens's table of releases, read without importing SAELens, which is slow; empty if it isn't installed."""
    import yaml

    spec = find_spec("sae_lens")
    places = spec.submodule_search_locations if spec else None
    path = Path(places[0]) / "pretrained_saes.yaml" if places else None
    if path is None or not path.is_file():
        return {}
    with path.open("rb") as file:
        return yaml.load(file, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
