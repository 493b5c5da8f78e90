"""Push run folders to the Hugging Face hub, in the layout that SAE Bench reads, with a model card.

    README.md                                   the model card
    NAME/ae.pt, config.json, metrics.json       one folder per SAE
    NAME/features.csv                           if `vsae reproduce` wrote it
    NAME/cfg.json, sae_weights.safetensors      if requested, for SAELens's `SAE.from_pretrained(REPO, NAME)`
    NAME/MODULE/cfg.json, sae.safetensors, …    if requested, for sparsify's
                                                `SparseCoder.load_from_hub(REPO, "NAME/MODULE")`

Nothing else is uploaded. A repository is private by default. Local paths are cut to their last parts, see `local_paths`.
"""

import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.utils import validate_repo_id

from ..config.architectures import BY_DICT_CLASS, PushFormat
from ..config.checks import require_choice
from ..config.run import UNKNOWN
from ..errors import CheckpointError, HubError, UserError, first_line, hub_errors
from ..evaluation.tables import markdown_table, metrics_as_now, table
from ..run_folder.files import (
    CONFIG,
    EVALUATION,
    FEATURES,
    WEIGHTS,
    is_disk_full,
    write_json,
)
from ..run_folder.reading import run_folders_in
from ..run_folder.sae_folder import find_run
from ..run_folder.weights import load_sae
from .exporter import export
from .formats import FORMATS
from .local_paths import without_local_paths

CARD = "README.md"
_TAGS = ("sparse-autoencoder", "dictionary_learning", "interpretability")
_NOT_IN_THE_CARD = ("device", "wandb_name", "trainer_class", "lm_name", "submodule_name", "layer")
_TEMPLATE = """\
---
{{ card_data }}
---

# {{ model_name }}

Sparse autoencoders for {{ places }}, in dictionary_learning's format. They take raw activations.

## Metrics
{% if metrics %}
On held-out text, using the posterior's mean:

```
{{ metrics }}
```
{% else %}
Not measured.
{% endif %}
## Settings

{{ settings }}

## Loading

```python
from huggingface_hub import snapshot_download
from dictionary_learning_ext import load_dictionary

sae, config = load_dictionary(snapshot_download({{ repo }}) + {{ folder }})
features = sae.encode(x)  # (B, D) -> (B, F)
reconstruction = sae.decode(features)
```
{% if sae_lens %}
In SAELens:

```python
from sae_lens import SAE

sae = SAE.from_pretrained({{ repo }}, {{ sae_lens }})
```
{% endif %}{% if sparsify %}
In sparsify:

```python
from sparsify import SparseCoder

sae = SparseCoder.load_from_hub({{ repo }}, hookpoint={{ sparsify }})
```
{% endif %}
For SAE Bench's own runner, convert one with `vsae export FOLDER --format sae-bench`.
"""


@dataclass(frozen=True)
class Pushed:
    """What was uploaded to the hub, or would be in a dry run.

    Attributes:
        files: their sizes in bytes, by name in the repository.
        card: the model card, README.md in the repository.
        left_out: why an SAE couldn't be exported, by its name and the format.
        unfinished: the run folders without an SAE, which are left out.
        url: of the commit; None for a dry run.
        is_private: whether the repository is private; None for a dry run.
    """

    repo: str
    files: dict[str, int]
    card: str
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
        folder: a run folder (or a folder of dictionary_learning's), or a folder of such folders.
        repo: OWNER/NAME, created if it does not exist. Its README.md is replaced.
        formats: formats of other libraries to add, for the SAEs that they can hold. The SAEs are exported, which needs the
            language model.
        public: create a public repository, or allow pushing to one.
        dry_run: return what would be uploaded. It needs neither a token nor the network.
        export_options: arguments of `export` for these formats: allow_inexact, tokens, model, ….

    Raises: HubError for a bad name, a missing token, no network, a refusal by the hub, or a public repository without
    `public`; CheckpointError if a folder holds no SAE or is damaged, or no SAE can be exported in one of the formats.
    """
    try:
        validate_repo_id(repo)
        _, _ = repo.split("/")
    except ValueError as error:  # HFValidationError is one, too
        raise HubError(f"{repo!r}: expected OWNER/NAME, e.g. jane/my-saes") from error
    for form in formats:
        require_choice("format", form, PushFormat)
    with tempfile.TemporaryDirectory(prefix="push.") as name:
        staged = Path(name)
        inside = run_folders_in(folder)
        folders = [one for one in inside if (one / WEIGHTS).exists()] or [Path(folder)]
        unfinished = [one.name for one in inside if one not in folders]
        card, left_out = _stage(folders, repo, staged, formats, export_options)
        paths = sorted(path for path in staged.rglob("*") if path.is_file())
        files = {path.relative_to(staged).as_posix(): path.stat().st_size for path in paths}
        pushed = Pushed(repo, files, card, left_out, unfinished)
        if dry_run:
            return pushed
        if huggingface_hub.get_token() is None:
            raise HubError(
                f"push to {repo}: no token for the hub; log in with `hf auth login`, or set HF_TOKEN to a token with "
                "write access"
            )
        with _as_hub_errors(repo):
            huggingface_hub.create_repo(repo, private=not public, exist_ok=True)
            is_private = bool(huggingface_hub.repo_info(repo).private)
            if not (public or is_private):
                raise HubError(
                    f"{repo} already exists and is public; nothing was uploaded",
                    instead="to push to a public repository, give public=True",
                )
            names = sorted({name.split("/")[0] for name in files if "/" in name})
            commit = huggingface_hub.upload_folder(
                repo_id=repo, folder_path=staged, commit_message=f"Add {', '.join(names)}"
            )
    return replace(pushed, url=str(commit.commit_url), is_private=is_private)


@contextmanager
def _as_hub_errors(repo: str) -> Iterator[None]:
    """Turn errors of the hub or the network into a HubError, without the request's details."""
    try:
        yield
    except hub_errors() as error:
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


def _stage(
    folders: list[Path],
    repo: str,
    staged: Path,
    formats: Sequence[PushFormat],
    export_options: Mapping[str, Any],
) -> tuple[str, dict[tuple[str, PushFormat], UserError]]:
    """Put the repository together in `staged`. Returns its card, and the reasons why SAEs couldn't be exported."""
    left_out: dict[tuple[str, PushFormat], UserError] = {}
    configs: dict[str, dict[str, Any]] = {}
    metrics: dict[str, dict[str, Any]] = {}
    for folder in folders:
        sae = find_run(folder, "push")
        load_sae(sae)  # raises if it is damaged
        name = folder.name if len(folders) > 1 else folder.resolve().name
        config = sae.config
        if sae.is_run and sae.settings.get("model") != UNKNOWN:
            published = sae.settings | {"activations": None}  # not from this disk: the model is run
            config = config | {"run": config["run"] | {"settings": published}}
        configs[name] = without_local_paths(config)
        (staged / name).mkdir()
        (staged / name / WEIGHTS).symlink_to((folder / WEIGHTS).resolve())
        write_json(staged / name / CONFIG, configs[name])
        if (measured := metrics_as_now(sae)) is not None:
            metrics[name] = without_local_paths(measured)
            write_json(staged / name / EVALUATION, metrics[name])
        if (sae.results / FEATURES).is_file():
            shutil.copy(sae.results / FEATURES, staged / name)
        for form in formats:
            try:
                with tempfile.TemporaryDirectory(prefix="export.") as temporary:
                    export(sae, form, temporary, **export_options)
                    shutil.copytree(temporary, staged / name, dirs_exist_ok=True)
            except CheckpointError as error:
                if is_disk_full(error.__cause__):
                    raise
                left_out[name, form] = error
    for form in formats:
        if all((name, form) in left_out for name in configs):
            raise left_out[next(iter(configs)), form]
    places: dict[PushFormat, str] = {
        form: min(staged.rglob(FORMATS[form].weights)).parent.relative_to(staged).as_posix()
        for form in sorted(formats)
    }
    card = card_of(repo, configs, metrics, places)
    (staged / CARD).write_text(card, encoding="utf-8")
    return card, left_out


def card_of(
    repo: str,
    configs: dict[str, dict[str, Any]],
    metrics: dict[str, dict[str, Any]],
    places: Mapping[PushFormat, str],
) -> str:
    """The model card: settings and metrics of each SAE, and how to load one.

    Arguments:
        configs, metrics: the content of each config.json and metrics.json, by folder name.
        places: for each format of another library, where in the repository one of the SAEs is.
    """
    trainers = {name: config["trainer"] for name, config in configs.items()}
    names = [n for trainer in trainers.values() for n in trainer if n not in _NOT_IN_THE_CARD]
    rows = [[n, *(str(one.get(n, "")) for one in trainers.values())] for n in dict.fromkeys(names)]
    hooks = {
        f"{one.get('submodule_name') or one.get('layer')} of {one.get('lm_name')}"
        for one in trainers.values()
    }
    card = ModelCard.from_template(
        _card_data(configs, places),
        template_str=_TEMPLATE,
        model_name=repo.split("/")[1],
        places=", ".join(sorted(hooks)),
        metrics=table(metrics) if metrics else None,
        settings=markdown_table(["", *trainers], rows),
        repo=repr(repo),
        folder=repr("/" + next(iter(trainers))),
        **{form.replace("-", "_"): repr(place) for form, place in places.items()},
    )
    return str(card)


def _card_data(
    configs: dict[str, dict[str, Any]], formats: Collection[PushFormat]
) -> ModelCardData:
    """A card's metadata: library, tags (also for the other libraries), language models and texts."""
    trainers = [config["trainer"] for config in configs.values()]
    models = {str(trainer.get("lm_name")) for trainer in trainers}
    classes = {trainer.get("dict_class") for trainer in trainers}
    architectures = sorted(BY_DICT_CLASS[name].name for name in classes & BY_DICT_CLASS.keys())
    texts = {
        config.get("run", {}).get("settings", {}).get("data")
        or config.get("buffer", {}).get("text")
        for config in configs.values()
    }
    return ModelCardData(
        library_name="dictionary_learning_ext",
        base_model=sorted(name for name in models if "/" in name) or None,
        datasets=sorted(text for text in texts if text and text.count("/") == 1) or None,
        tags=[*_TAGS, *architectures, *(FORMATS[form].tag for form in formats)],
    )
