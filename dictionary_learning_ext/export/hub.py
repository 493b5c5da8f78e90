"""Push run folders to the Hugging Face hub, in the layout that SAE Bench reads, with a model card.

    README.md                                   the model card
    NAME/ae.pt, config.json, metrics.json       one folder per SAE
    NAME/return_scores.csv                      where `vsae reproduce` wrote it
    NAME/explanations.json                      where `vsae explain` wrote it
    NAME/cfg.json, sae_weights.safetensors      if asked for: SAELens's `SAE.from_pretrained(REPO, NAME)`
    NAME/MODULE/cfg.json, sae.safetensors, …    likewise: sparsify's
                                                `SparseCoder.load_from_hub(REPO, "NAME/MODULE")`

A repository is private by default. Local paths are cut to their last names, here and in every export,
see `local_paths`.
"""

import inspect
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import huggingface_hub
from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..activations.hook_points import block_of_output
from ..activations.stored import UNKNOWN
from ..config.architectures import BY_DICT_CLASS
from ..config.checks import require_choice
from ..errors import CheckpointError, ConfigError, HubError, Template, UserError, first_line
from ..evaluation.metrics import shown_in
from ..evaluation.tables import markdown_table, table
from ..features.explanations import read_explanations
from ..features.return_score import copy_scores
from ..run_folder.comparing import measured_differently
from ..run_folder.files import (
    CONFIG,
    EXPLANATIONS,
    METRICS,
    RETURN_SCORES,
    WEIGHTS,
    target_of,
    write_json,
)
from ..run_folder.foreign import SAE_LENS_WEIGHTS, SPARSIFY_WEIGHTS
from ..run_folder.reading import read_metrics_if_any, run_folders_in
from ..run_folder.sae_names import require_own
from ..run_folder.settings import own_settings
from ..run_folder.weights import load_dictionary
from .exporter import export
from .formats import SAE_BENCH_TRAINERS
from .local_paths import without_local_paths

PushFormat = Literal["sae-lens", "sparsify"]

# HfHubHTTPError's bases are the errors of the HTTP library under huggingface_hub, which has been
# requests, httpx and httpx2.
_UNREACHABLE: Any = (OSError, *HfHubHTTPError.__bases__)
CARD = "README.md"
_TAGS = ("sparse-autoencoder", "dictionary_learning", "interpretability")
_TAG_OF: dict[PushFormat, str] = {"sae-lens": "saelens", "sparsify": "sparsify"}
_LOADING: dict[PushFormat, str] = {
    "sae-lens": """
In SAELens:

```python
from sae_lens import SAE

sae = SAE.from_pretrained({repo!r}, {place!r})
```
""",
    "sparsify": """
In sparsify:

```python
from sparsify import SparseCoder

sae = SparseCoder.load_from_hub({repo!r}, hookpoint={place!r})
```
""",
}
"""How a card says to load an SAE in other libraries."""
_WEIGHTS: dict[PushFormat, str] = {"sae-lens": SAE_LENS_WEIGHTS, "sparsify": SPARSIFY_WEIGHTS}
_TAKEN = (WEIGHTS, CONFIG, METRICS, RETURN_SCORES, EXPLANATIONS)
"""What is read of a run folder. All but the weights is written anew."""
_UNINTERESTING = ("device", "wandb_name", "trainer_class", "lm_name", "submodule_name", "layer")


@dataclass(frozen=True)
class Pushed:
    """What was uploaded to the hub, or would be in a dry run.

    Attributes:
        files: sizes in bytes, by name in the repository.
        card: the model card, README.md in the repository.
        left_out: why an SAE isn't there in a format that was asked for, by its name and the format.
        unfinished: the run folders inside that have no SAE yet, which are left out.
        cut_paths: the settings whose local paths were cut to their last names.
        url: the commit's; None for a dry run, as is `is_private`.
    """

    repo: str
    files: dict[str, int]
    card: str
    cut_paths: list[str]
    left_out: dict[tuple[str, PushFormat], UserError]
    unfinished: list[str]
    url: str | None = None
    is_private: bool | None = None


def push(
    folder: str | Path,
    repo: str,
    *,
    formats: Sequence[PushFormat] = (),
    public: bool = False,
    dry_run: bool = False,
    **export_options: Any,
) -> Pushed:
    """Upload a run folder, or each run folder in a folder, in one commit.

    Arguments:
        folder: a run folder (or an export for dictionary_learning), or a folder of such folders.
        repo: OWNER/NAME, created if it does not exist. Its README.md is replaced.
        formats: those of other libraries to add, each SAE in those that can hold it. They are exported
            anew, so the language model is needed.
        public: create a public repository, or allow pushing to one.
        dry_run: return what would be uploaded; needs neither token nor network.
        of_export: arguments of `export` for the formats: allow_inexact, tokens, model, ….

    Raises: ConfigError for an argument of `export` without a format; HubError for a bad name, a folder of another kind, a missing token, no network, a refusal by
    the hub, or a public repository without `public`; CheckpointError if a folder is damaged or has a link
    that leads out of it, or no SAE can be exported in one of the formats.
    """
    _require_name(repo)
    for form in formats:
        require_choice("format", form, PushFormat)
    if not formats:
        _require_default(export_options)
    with tempfile.TemporaryDirectory(prefix="push.") as name:
        staged = Path(name)
        folders = _run_folders(Path(folder))
        cut_paths, missing = _stage(folders, repo, staged, formats, export_options)
        inside = run_folders_in(folder)
        unfinished = [one.name for one in inside if not (one / WEIGHTS).exists()]
        paths = sorted(path for path in staged.rglob("*") if path.is_file())
        files = {path.relative_to(staged).as_posix(): path.stat().st_size for path in paths}
        text = (staged / CARD).read_text(encoding="utf-8")
        if dry_run:
            return Pushed(repo, files, text, cut_paths, missing, unfinished)
        _require_token(repo)
        with _reaching_the_hub(repo):
            huggingface_hub.create_repo(repo, private=not public, exist_ok=True)
            is_private = bool(huggingface_hub.repo_info(repo).private)
            if not (public or is_private):
                raise HubError(
                    f"{repo} already exists and is public; nothing was uploaded",
                    instead=Template("to push to a public repository, give {public=True}"),
                )
            names = sorted({name.split("/")[0] for name in files if "/" in name})
            commit = huggingface_hub.upload_folder(
                repo_id=repo, folder_path=staged, commit_message=f"Add {', '.join(names)}"
            )
    return Pushed(
        repo, files, text, cut_paths, missing, unfinished, str(commit.commit_url), is_private
    )


def _require_name(repo: str) -> None:
    problem = "" if repo.count("/") == 1 else "it must contain one slash"
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        problem = problem or first_line(error)
    if problem:
        raise HubError(f"{repo!r}: expected OWNER/NAME, e.g. jane/my-saes ({problem})")


def _require_default(export_options: Mapping[str, Any]) -> None:
    """Raise a ConfigError if an argument of `export` is given."""
    signature = inspect.signature(export)
    signature.bind("", "", **export_options)  # a TypeError for an argument that it doesn't have
    for name, value in export_options.items():
        if value != signature.parameters[name].default:
            wanted = Template("{format} too: without it, no SAE is exported")
            raise ConfigError(name=name, value=value, expected=wanted)


def _require_token(repo: str) -> None:
    token = huggingface_hub.get_token()
    # The HTTP library would refuse a malformed token in a message that shows it.
    if token is None or not re.fullmatch("[!-~]+", token):
        what = "no token for the hub" if token is None else "the hub's token is malformed"
        raise HubError(
            f"push to {repo}: {what}; log in with `hf auth login`, or set HF_TOKEN to a token with "
            "write access"
        )


@contextmanager
def _reaching_the_hub(repo: str) -> Iterator[None]:
    """Turn errors of the hub or the network into a HubError, without the request's details."""
    try:
        yield
    except _UNREACHABLE as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            raise HubError(
                f"push to {repo}: the hub refused the token ({status}); log in with `hf auth login` "
                f"to an account that may write to {repo.split('/')[0]}, or set HF_TOKEN"
            ) from error
        raise HubError(
            f"push to {repo}: the hub can't be reached, or refused the request ({first_line(error)}); "
            "check the network and HF_HUB_OFFLINE, and push again"
        ) from error


def _run_folders(folder: Path) -> list[Path]:
    """The folder itself, or the folders in it that hold an SAE. A link to one of these is left out."""
    inside = sorted(path.parent for path in folder.glob(f"*/{WEIGHTS}"))
    if not inside or (folder / WEIGHTS).exists():
        return [folder]
    own = {target_of(one) for one in inside if not one.is_symlink()}
    folders = [one for one in inside if not one.is_symlink() or target_of(one) not in own]
    for one in folders:
        _require_no_way_out(one, folder)
    return folders


def _require_no_way_out(path: Path, folder: Path) -> None:
    """Raise a CheckpointError for a link in a folder that leads out of it."""
    if not (to := target_of(path)).is_relative_to(target_of(folder)):
        raise CheckpointError(
            f"{path}: a link to {to}, which is not in {folder}",
            instead="copy it, or delete the link",
        )


def _stage(
    folders: list[Path],
    repo: str,
    staged: Path,
    formats: Sequence[PushFormat],
    export_options: Mapping[str, Any],
) -> tuple[list[str], dict[tuple[str, PushFormat], UserError]]:
    """Lay out the repository in `staged`; return the settings whose paths were cut, and what is missing."""
    missing: dict[tuple[str, PushFormat], UserError] = {}
    configs: dict[str, dict[str, Any]] = {}
    metrics: dict[str, dict[str, Any]] = {}
    all_cut: set[str] = set()
    for folder in folders:
        require_own(folder, "push")
        for name in _TAKEN:
            _require_no_way_out(folder / name, folder)
        dictionary, config = load_dictionary(folder)  # raises if it is damaged
        name = folder.name if len(folders) > 1 else folder.resolve().name
        measured = read_metrics_if_any(folder)
        settings = own_settings(config)
        if settings.get("model") != UNKNOWN:
            settings["activations"] = None  # a cache on this disk: elsewhere the model is run
        (configs[name], measured), cut = without_local_paths((config, measured))
        all_cut |= set(cut)
        (staged / name).mkdir()
        (staged / name / WEIGHTS).symlink_to((folder / WEIGHTS).resolve())
        if (scores := folder / RETURN_SCORES).is_file():
            copy_scores(scores, staged / name / RETURN_SCORES)
        if explained := read_explanations(folder, dictionary):
            settings, cut = without_local_paths(explained.settings)
            all_cut |= set(cut)
            replace(explained, settings=settings).write(staged / name / EXPLANATIONS)
        write_json(staged / name / CONFIG, configs[name])
        if measured is not None:
            metrics[name] = measured
            write_json(staged / name / METRICS, measured)
        for form in formats:
            try:
                with tempfile.TemporaryDirectory(prefix="export.") as temporary:
                    export(folder, form, temporary, **export_options)
                    shutil.copytree(temporary, staged / name, dirs_exist_ok=True)
            except CheckpointError as error:
                missing[name, form] = error
    for form in formats:
        if all((name, form) in missing for name in configs):
            raise missing[next(iter(configs)), form]
    other_formats: dict[PushFormat, str] = {
        form: min(staged.rglob(_WEIGHTS[form])).parent.relative_to(staged).as_posix()
        for form in sorted(formats)
    }
    text = card(repo, configs, metrics, other_formats)
    (staged / CARD).write_text(text, encoding="utf-8")
    return sorted(all_cut), missing


def card(
    repo: str,
    configs: dict[str, dict[str, Any]],
    metrics: dict[str, dict[str, Any]],
    other_formats: Mapping[PushFormat, str],
) -> str:
    """The model card: settings and metrics of each SAE, and how to load one.

    Arguments:
        configs, metrics: the content of config.json and metrics.json by folder name, of those that
            have one.
        of_others: for each format of another library, the place of an SAE in it.
    """
    data = _card_data(repo, configs, metrics, other_formats)
    trainers = {name: config["trainer"] for name, config in configs.items()}
    first = next(iter(trainers))
    names = [n for trainer in trainers.values() for n in trainer if n not in _UNINTERESTING]
    rows = {n: [str(trainer.get(n, "")) for trainer in trainers.values()] for n in names}
    settings = markdown_table(["", *trainers], [[name, *rows[name]] for name in rows])
    places = {f"{_where(t)} of {t.get('lm_name')}" for t in trainers.values()}
    if metrics:
        results = f"On held-out text, using the posterior's mean:\n\n```\n{table(metrics)}\n```"
        if differ := measured_differently(metrics):
            results += f"\n\nThese were measured on different {', '.join(differ)}."
    else:
        results = "Not measured."
    is_known = all(  # SAE Bench's loader takes an SAE to be at its layer's output
        t.get("trainer_class") in SAE_BENCH_TRAINERS
        and (not _where(t).startswith("blocks.") or block_of_output(_where(t)) == t.get("layer"))
        for t in trainers.values()
    )
    for name, config in configs.items():
        if words := _left_out_of(config):
            what = "" if len(configs) == 1 else f" of {name}"
            results += f"\n\nThe training{what} left out {words}."
    others = "".join(
        _LOADING[form].format(repo=repo, place=place) for form, place in other_formats.items()
    )
    bench = (
        "SAE Bench's `run_all_evals_dictionary_learning_saes` can read this repository as it is."
        if is_known
        else "SAE Bench's own runner can't read all of these as they are. `vsae export FOLDER --format "
        "sae-bench` converts an SAE for it, or says why it can't."
    )
    return "\n".join(
        [
            f"---\n{data.to_yaml()}\n---",
            f"# {repo.split('/')[1]}\n",
            f"Sparse autoencoders for {', '.join(sorted(places))}, in dictionary_learning's format "
            "(they take raw activations).\n",
            f"## Metrics\n\n{results}\n",
            "## Settings\n",
            settings,
            "\n## Loading\n",
            "```python",
            "from huggingface_hub import snapshot_download",
            "from dictionary_learning_ext import load_dictionary\n",
            f"sae, config = load_dictionary(snapshot_download({repo!r}) + {'/' + first!r})",
            "features = sae.encode(x)  # (B, D) -> (B, F): raw activations of "
            f"{_where(trainers[first])}",
            f"reconstruction = sae.decode(features)\n```\n{others}\n{bench}\n",
        ]
    )


def _left_out_of(config: dict[str, Any]) -> str:
    """The tokens that training left out, in words."""
    settings = own_settings(config) or config.get("buffer", {})
    words = ["beginning-of-text tokens"] if settings.get("remove_bos") else []
    if (multiple := settings.get("max_norm_multiple")) is not None:
        words.append(f"tokens whose activation has a norm over {multiple} times the median")
    return " and ".join(words)


def _where(trainer: dict[str, Any]) -> str:
    return str(trainer.get("submodule_name") or f"layer {trainer.get('layer')}")


def _card_data(
    repo: str,
    configs: dict[str, dict[str, Any]],
    metrics: dict[str, dict[str, Any]],
    other_formats: Collection[PushFormat],
) -> ModelCardData:
    """A card's metadata: library, tags (with the other libraries that read it), language models, texts and
    metrics.

    The metrics make the card's model-index, from which the hub shows them. They are those that
    `vsae compare` shows. Where there are several SAEs, a metric's name ends in its SAE's.
    """
    trainers = [config["trainer"] for config in configs.values()]
    models = {str(trainer.get("lm_name")) for trainer in trainers}
    classes = {trainer.get("dict_class") for trainer in trainers}
    architectures = sorted(BY_DICT_CLASS[name].name for name in classes & BY_DICT_CLASS.keys())
    texts = {name: _text(config) for name, config in configs.items()}
    results: list[EvalResult] = []
    for name, measured in metrics.items():
        text = str(measured.get("measured_on", {}).get("data", texts[name]))
        is_one_of_several = len(configs) > 1
        results += [
            EvalResult(
                task_type="feature-extraction",
                task_name="Sparse reconstruction of activations",
                dataset_type=text,
                dataset_name=f"{text}, held out",
                dataset_split="heldout",
                metric_type=metric.key,
                metric_name=f"{metric.label} ({name})" if is_one_of_several else metric.label,
                metric_value=measured[metric.key],
                metric_config=name if is_one_of_several else None,
            )
            for metric in shown_in("compare")
            if measured.get(metric.key) is not None
        ]
    return ModelCardData(
        library_name="dictionary_learning_ext",
        base_model=sorted(name for name in models if "/" in name) or None,
        datasets=sorted({text for text in texts.values() if text.count("/") == 1}) or None,
        tags=[*_TAGS, *architectures, *(_TAG_OF[form] for form in other_formats)],
        model_name=repo.split("/")[1],
        eval_results=results or None,
    )


def _text(config: dict[str, Any]) -> str:
    """The text that an SAE was trained on: embedded, a hub's name, or a file's."""
    return str(
        own_settings(config).get("data") or config.get("buffer", {}).get("text") or "unknown"
    )
