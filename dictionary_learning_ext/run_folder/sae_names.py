"""What an SAE can be named by: its folder, its place on the hub, or the folder of its results. Imports no torch.

    runs/NAME                    a folder here, of any format in `foreign.RECOGNISED`
    OWNER/REPOSITORY/FOLDER      the same on the hub, where sparsify names FOLDER after the module
    RELEASE/ID                   an SAE in SAELens's table of releases, if SAELens is installed
    RESULTS                      what `vsae eval SAE --out RESULTS` wrote: stands for that SAE

Results of an SAE go to its folder if this package wrote it, and else to `--out`.
"""

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from ..config.checks import require_type
from ..errors import CheckpointError, ConfigError, HubError, Setting, Template, first_line
from .files import CONFIG, METRICS, RUNS, WEIGHTS, require_writable, target_of
from .foreign import FILES, RECOGNISED, format_of
from .json_files import read_json, readable

_OF_THE_HUB = re.compile(r"\w[\w.-]*(/[\w.:=-]+)+/?")
EXPECTED = "expected a run folder, e.g. runs/NAME"
STANDS_FOR = "sae"
"""In the metrics.json of a folder of results: the SAE's name, or its folder's absolute path."""
_AGAIN = "delete it, and run `vsae eval SAE --out DIR` again"
_OUT = Setting("out", "DIR")


class Place(NamedTuple):
    """Where an SAE is on this machine."""

    folder: Path
    results: Path | None
    """The folder of its results; None if these aren't written to the SAE's own."""
    overrides: dict[str, Any]
    """See `foreign_config`."""

    @property
    def metrics(self) -> Path | None:
        """Its metrics.json, if it was evaluated; None for another library's folder, which has none."""
        if self.results is not None:
            return self.results / METRICS
        return self.folder / METRICS if format_of(self.folder) is None else None


@readable()
def place_of(name: str | Path) -> Place:
    """Where a named SAE is. It is fetched from the hub if need be. A folder that isn't there is no error.

    Raises: HubError if the hub can't be reached, or has no such SAE; CheckpointError for a file; ConfigError
    for what is no name.
    """
    require_type("folder", name, str | Path)
    here = Path(name)
    if here.is_file():
        raise CheckpointError(f"{name}: a file", instead=f"give its folder, {here.parent}")
    if _is_of_the_hub(name):
        return _fetched(here.as_posix())
    if (sae := _stands_for(here)) is not None:
        if _stands_for(Path(sae)) is not None:
            what = f"{here / METRICS}: its SAE is {sae}, which holds results, and no SAE"
            raise CheckpointError(what, instead=_AGAIN)
        return place_of(sae)._replace(results=here)
    return Place(here, here if format_of(here) is None else None, {})


def _stands_for(folder: Path) -> str | None:
    """The SAE whose results are in a folder; None for any other folder."""
    others = (folder / name for name in FILES if name != METRICS)
    if not (folder / METRICS).is_file() or any(path.exists() for path in others):
        return None
    return read_json(folder / METRICS, {STANDS_FOR: str}, _AGAIN).get(STANDS_FOR)


def lasting_name(name: str | Path) -> str:
    """What names the same SAE from any working directory."""
    if _is_of_the_hub(name):
        return Path(name).as_posix()
    return _stands_for(Path(name)) or str(target_of(name))


# --- where results go


def require_own(name: str | Path, command: str) -> None:
    """Raise a CheckpointError unless it is an SAE in a folder of ours or upstream's.

    Arguments:
        command: that takes no others.
    """
    if _is_of_the_hub(name):
        raise CheckpointError(f"{name}: no such folder; `vsae {command}` takes run folders here")
    place = place_of(name)
    if place.folder != place.results:
        form = format_of(place.folder)
        what = f"an SAE of {form}" if form else "results of an SAE that is elsewhere"
        raise CheckpointError(
            f"{name}: {what}; `vsae {command}` takes run folders, and those of dictionary_learning"
        )


@readable()
def results_folder(
    name: str | Path,
    out: str | Path | None = None,
    give: Setting = _OUT,
) -> Path:
    """Where the results of an SAE go: `out`, or its own folder if that is one of ours.

    Arguments:
        give: the setting that says where, for messages.

    Raises: CheckpointError if it is no folder; ConfigError if it has none, or `out` holds an SAE or another one's results.
    """
    if out is None:
        place = place_of(name)
        library = _library_of(place.folder)
        if place.results is not None and (library is None or place.results != place.folder):
            if not place.results.is_dir():
                raise CheckpointError(f"{name}: no such folder; {EXPECTED}")
            return place.results
        what = "comes from the hub" if _is_of_the_hub(name) else f"is {library}'s"
        raise ConfigError(
            f"{name}: its folder {what}, and nothing is written into it",
            instead=Template("say where the results go with {give}", give=give),
        )
    out = Path(out)
    other = _stands_for(out)
    if other != lasting_name(name) and any((out / file).exists() for file in FILES):
        what = f"the results of {other}" if other else "an SAE"
        raise ConfigError(
            f"holds {what}", name="out", value=str(out), instead="give another folder"
        )
    return out


def _library_of(folder: Path) -> str | None:
    """Which other library wrote an SAE's folder; None for ours, and for any other folder."""
    if (form := format_of(folder)) is not None:
        return form
    if not all((folder / name).is_file() for name in (CONFIG, WEIGHTS)):
        return None
    config = read_json(folder / CONFIG, dict)
    return "dictionary_learning" if "trainer" in config and "run" not in config else None


def require_results_at(path: Path, setting: Setting) -> None:
    """Raise an error before anything is measured if a file of results can't be written.

    Arguments:
        setting: the one that says where.

    Raises: ConfigError for a path in another library's folder; CheckpointError if the disk refuses.
    """
    require_not_foreign(path, setting)
    require_writable(path, setting)


def require_not_foreign(path: Path, setting: Setting) -> None:
    """Raise a ConfigError for a path in the folder of another library's SAE, or for that folder."""
    whole = target_of(path)
    for folder in (whole, *whole.parents):
        library = _library_of(folder)
        if library == "Gemma Scope" and folder not in (whole, whole.parent):
            continue  # further up, a params.npz may be anyone's
        if library is not None:
            raise ConfigError(
                Template(
                    "{setting}: {folder} holds an SAE of {library}, and nothing is written into that folder",
                    setting=setting,
                    folder=folder,
                    library=library,
                ),
                name=setting.name,
                instead="give another place",
            )


# --- the hub


def _is_of_the_hub(name: str | Path) -> bool:
    """Whether a name has the form of a place on the hub, and its first part is no folder here."""
    text = name.as_posix() if isinstance(name, Path) else name  # ./x isn't x
    first = text.partition("/")[0]
    return (
        _OF_THE_HUB.fullmatch(text) is not None
        and ".." not in text.split("/")
        and first != RUNS.name
        and not Path(first).exists()
    )


@cache
def _fetched(name: str) -> Place:
    """An SAE's folder in the hub's cache on this machine."""
    import huggingface_hub
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
    )

    # HfHubHTTPError's bases are the errors of the HTTP library, which has been requests, httpx and httpx2.
    unreachable: Any = (OSError, ValueError, *HfHubHTTPError.__bases__)
    repo, inside, overrides = _place_on_the_hub(name)
    within = f"{inside}/" if inside else ""
    files = [f"{within}{file}" for file in FILES]
    beside = Path(inside).parent / CONFIG  # sparsify's
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
    return Place(folder, None, overrides)


def _place_on_the_hub(name: str) -> tuple[str, str, dict[str, Any]]:
    """The repository, the folder in it ("" for its root), and what SAELens's table has in place of settings."""
    release, _, sae = name.strip("/").partition("/")
    if (found := _releases().get(release)) is None:
        owner, repository, *inside = name.strip("/").split("/")
        repo, path = f"{owner}/{repository}", "/".join(inside)
        of_repo = (each for each in _releases().values() if each["repo_id"] == repo)
        at_path = ((each, own) for each in of_repo for own in each["saes"] if own["path"] == path)
        return repo, path, next((_overrides(*found) for found in at_path), {})
    entries = {str(entry["id"]): entry for entry in found["saes"]}
    if sae not in entries:
        shown = ", ".join([*entries][:5]) + (", …" if len(entries) > 5 else "")
        raise HubError(f"{name}: SAELens's release {release} has no {sae!r}; expected {shown}")
    if (form := found.get("conversion_func")) not in (None, "sae_lens", "sparsify", "gemma_2"):
        raise CheckpointError(
            f"{name}: SAELens's release {release} is stored in the format {form!r}, which can't be read; "
            "load it in SAELens, and save it with its save_model"
        )
    return found["repo_id"], str(entries[sae]["path"]), _overrides(found, entries[sae])


def _overrides(release: dict[str, Any], sae: dict[str, Any]) -> dict[str, Any]:
    """What SAELens's table has in place of an SAE's settings."""
    factor = {key: sae[key] for key in ("norm_scaling_factor",) if key in sae}
    return (release.get("config_overrides") or {}) | factor


@cache
def _releases() -> dict[str, Any]:
    """SAELens's table of releases; empty if it isn't installed. SAELens itself takes long to import."""
    import yaml

    spec = find_spec("sae_lens")
    places = spec.submodule_search_locations if spec else None
    path = Path(places[0]) / "pretrained_saes.yaml" if places else None
    if path is None or not path.is_file():
        return {}
    with path.open("rb") as file:
        return yaml.load(file, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
