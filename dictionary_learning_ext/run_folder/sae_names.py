"""The names that users give to SAEs, and where they are. Imports no torch.

runs/NAME                    a folder on this machine, of any format in `foreign.RECOGNISED`
OWNER/REPOSITORY/FOLDER      a folder on the hub; sparsify names FOLDER after the module
RELEASE/ID                   an SAE in SAELens's table of releases, if SAELens is installed
"""

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..config.checks import require_type
from ..errors import CheckpointError, HubError, first_line, hub_errors
from .files import CONFIG, RUNS
from .foreign import RECOGNISED, SAE_FILES

_HUB_NAME = re.compile(r"\w[\w.-]*(/[\w.:=-]+)+/?")


def location_of(name: str | Path) -> tuple[Path, dict[str, Any]]:
    """The folder of an SAE on this machine, and settings that override those in its files (see `foreign_config`). It is
    fetched from the hub if necessary. A folder on this machine may be missing.

    Raises: HubError if the hub can't be reached, or has no such SAE; CheckpointError if the name is a file's;
    ConfigError if it is neither text nor a path.
    """
    require_type("folder", name, str | Path)
    here = Path(name)
    if here.is_file():
        raise CheckpointError(f"{name}: a file", instead=f"give its folder, {here.parent}")
    return _fetched(here.as_posix()) if is_on_hub(name) else (here, {})


# --- the hub


def is_on_hub(name: str | Path) -> bool:
    """Whether a name can be of an SAE on the hub, and its first part is no folder on this machine."""
    text = name.as_posix() if isinstance(name, Path) else name
    first, *rest = text.split("/")  # "./x" is a folder, x may be on the hub
    may_be = _HUB_NAME.fullmatch(text) is not None and ".." not in rest and first != RUNS.name
    return may_be and not Path(first).exists()


@cache
def _fetched(name: str) -> tuple[Path, dict[str, Any]]:
    """Download an SAE from the hub into huggingface_hub's cache."""
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

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
    except (ValueError, *hub_errors()) as error:
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
    return folder, overrides


def _hub_place(name: str) -> tuple[str, str, dict[str, Any]]:
    """The repository, the folder in it ("" for its root), and the overrides in SAELens's table of releases."""
    name = name.strip("/")
    release, _, sae = name.partition("/")
    if (table := _releases().get(release)) is None:
        owner, repository, *inside = name.split("/")
        repo, path = f"{owner}/{repository}", "/".join(inside)
        for table in _releases().values():
            for entry in table["saes"]:
                if (table["repo_id"], entry["path"]) == (repo, path):
                    return repo, path, _overrides(table, entry)
        return repo, path, {}
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
