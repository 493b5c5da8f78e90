"""Push run folders to the Hugging Face hub, in the layout that SAE Bench reads, with a model card.

    README.md                               the card
    NAME/ae.pt, config.json, metrics.json   one folder an SAE

Private unless told. Nothing tells where files lay on this machine: local paths become names.
"""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import ModelCardData
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..errors import HubError, first_line
from ..evaluation.folders import table
from ..run_folder.names import CONFIG, METRICS, WEIGHTS
from ..run_folder.reading import differences, read_metrics_if_any
from ..run_folder.weights import load_dictionary
from ..run_folder.writing import write_json
from .formats import SAE_BENCH_TRAINERS
from .local_paths import without_local_paths

# HfHubHTTPError's bases are the errors of the HTTP library under huggingface_hub, which has been
# requests, httpx and httpx2.
_UNREACHABLE: Any = (OSError, *HfHubHTTPError.__bases__)
_UNINTERESTING = ("device", "wandb_name", "trainer_class", "lm_name", "submodule_name", "layer")


@dataclass(frozen=True)
class Pushed:
    """What went, or would go, to the hub.

    Attributes:
        repo: OWNER/NAME.
        files: name in the repository -> bytes.
        cut_paths: the settings that were local paths, of which only the last name goes.
        url: of the commit; None for a dry run.
        is_private: whether only its owner sees it; None for a dry run.
    """

    repo: str
    files: dict[str, int]
    cut_paths: list[str]
    url: str | None = None
    is_private: bool | None = None


def push(folder: str | Path, repo: str, *, public: bool = False, dry_run: bool = False) -> Pushed:
    """Upload a run folder, or each run folder in a folder, in one commit.

    Arguments:
        folder: of one SAE (an export for dictionary_learning too), or a folder of such folders.
        repo: OWNER/NAME; made if it is not there. Its README.md is replaced.
        public: let everyone see a repository that is made now.
        dry_run: only say what would go; needs neither token nor network.

    Raises: HubError for a bad name, no token, no network, or what the hub refuses, a public
    repository without `public` among it; CheckpointError if a folder is damaged.
    """
    _require_name(repo)
    with tempfile.TemporaryDirectory(prefix="push.") as name:
        staged = Path(name)
        cut_paths = _stage(_run_folders(Path(folder)), repo, staged)
        paths = sorted(path for path in staged.rglob("*") if path.is_file())
        files = {path.relative_to(staged).as_posix(): path.stat().st_size for path in paths}
        if dry_run:
            return Pushed(repo, files, cut_paths)
        _require_token(repo)
        with _reaching_the_hub(repo):
            huggingface_hub.create_repo(repo, private=not public, exist_ok=True)
            is_private = bool(huggingface_hub.repo_info(repo).private)
            if not (public or is_private):
                raise HubError(
                    f"{repo} is there and public: everyone would see this; say --public True, or "
                    "give another name. Nothing was uploaded"
                )
            commit = huggingface_hub.upload_folder(
                repo_id=repo, folder_path=staged, commit_message=f"Add {', '.join(_names(files))}"
            )
    return Pushed(repo, files, cut_paths, str(commit.commit_url), is_private)


def _require_name(repo: str) -> None:
    problem = "" if repo.count("/") == 1 else "one slash"
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        problem = problem or first_line(error)
    if problem:
        raise HubError(f"repo={repo!r}: expected OWNER/NAME, as jane/my-saes ({problem})")


def _require_token(repo: str) -> None:
    token = huggingface_hub.get_token()
    # An illegal one would be refused by the HTTP library in a message that shows it.
    if token is None or not re.fullmatch("[!-~]+", token):
        what = "no token for the hub" if token is None else "the hub's token is malformed"
        raise HubError(
            f"push to {repo}: {what}; log in with `hf auth login` or set HF_TOKEN to a token with "
            "write access, or look with --dry-run"
        )


@contextmanager
def _reaching_the_hub(repo: str) -> Iterator[None]:
    """Turn what the hub or the network refuse into a HubError, without the request's details."""
    try:
        yield
    except _UNREACHABLE as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            raise HubError(
                f"push to {repo}: the hub refused the token ({status}); log in with `hf auth "
                f"login` as one who may write to {repo.split('/')[0]}, or set HF_TOKEN"
            ) from error
        raise HubError(
            f"push to {repo}: the hub can't be reached or refused ({first_line(error)}); check the network "
            "and HF_HUB_OFFLINE, and push again"
        ) from error


def _run_folders(folder: Path) -> list[Path]:
    """The folder itself, or those in it that hold an SAE."""
    if folder.is_dir() and not (folder / WEIGHTS).exists():
        inside = sorted(path.parent for path in folder.glob(f"*/{WEIGHTS}"))
        if inside:
            return inside
    return [folder]


def _names(files: dict[str, int]) -> list[str]:
    return sorted({name.split("/")[0] for name in files if "/" in name})


def _stage(folders: list[Path], repo: str, staged: Path) -> list[str]:
    """Lay out the repository in `staged`; return the settings that were cut to a name."""
    configs: dict[str, dict[str, Any]] = {}
    metrics: dict[str, dict[str, Any]] = {}
    all_cut: set[str] = set()
    base_models: set[str] = set()
    for folder in folders:
        _, config = load_dictionary(folder)  # a damaged one is not uploaded
        name = folder.resolve().name
        figures = read_metrics_if_any(folder)
        (configs[name], figures), cut = without_local_paths((config, figures))
        all_cut |= set(cut)
        lm_name = str(configs[name]["trainer"].get("lm_name") or "")
        if "/" in lm_name and not Path(lm_name).exists():
            base_models.add(lm_name)
        (staged / name).mkdir()
        (staged / name / WEIGHTS).symlink_to((folder / WEIGHTS).resolve())
        write_json(staged / name / CONFIG, configs[name])
        if figures is not None:
            metrics[name] = figures
            write_json(staged / name / METRICS, figures)
    text = card(repo, configs, metrics, sorted(base_models))
    (staged / "README.md").write_text(text, encoding="utf-8")
    return sorted(all_cut)


def card(
    repo: str,
    configs: dict[str, dict[str, Any]],
    metrics: dict[str, dict[str, Any]],
    base_models: list[str],
) -> str:
    """The model card: settings and figures of each SAE, and how to load one.

    Arguments:
        configs, metrics: config.json and metrics.json by folder name; metrics may lack some.
        base_models: names on the hub.
    """
    data = ModelCardData(
        base_model=base_models or None,
        tags=["sparse-autoencoder", "dictionary_learning", "interpretability"],
    )
    trainers = {name: config["trainer"] for name, config in configs.items()}
    first = next(iter(trainers))
    names = [n for trainer in trainers.values() for n in trainer if n not in _UNINTERESTING]
    rows = {n: [str(trainer.get(n, "")) for trainer in trainers.values()] for n in names}
    settings = ["| | " + " | ".join(trainers) + " |", "|---" * (len(trainers) + 1) + "|"]
    settings += [f"| {name} | {' | '.join(values)} |" for name, values in rows.items()]
    places = {f"{_where(t)} of {t.get('lm_name')}" for t in trainers.values()}
    if metrics:
        figures = f"On held-out text, at the posterior's mean:\n\n```\n{table(metrics)}\n```"
        if differ := differences(metrics):
            figures += f"\n\nThese were measured on different {', '.join(differ)}."
    else:
        figures = "Not measured."
    is_known = all(
        t.get("trainer_class") in SAE_BENCH_TRAINERS and "resid_pre" not in _where(t)
        for t in trainers.values()
    )
    bench = (
        "SAE Bench's `run_all_evals_dictionary_learning_saes` reads this repository as it is."
        if is_known
        else "SAE Bench's own runner does not know each of these as it is: `vsae export FOLDER --format "
        "sae-bench` exports what it can read, and says what it can't."
    )
    return "\n".join(
        [
            f"---\n{data.to_yaml()}\n---",
            f"# {repo.split('/')[1]}\n",
            f"Sparse autoencoders for {', '.join(sorted(places))}, in dictionary_learning's format "
            "(they take raw activations).\n",
            f"## Figures\n\n{figures}\n",
            "## Settings\n",
            *settings,
            "\n## Loading\n",
            "```python",
            "from huggingface_hub import snapshot_download",
            "from dictionary_learning_ext import load_dictionary\n",
            f"sae, config = load_dictionary(snapshot_download({repo!r}) + {'/' + first!r})",
            f"```\n\n{bench}\n",
        ]
    )


def _where(trainer: dict[str, Any]) -> str:
    return str(trainer.get("submodule_name") or f"layer {trainer.get('layer')}")
