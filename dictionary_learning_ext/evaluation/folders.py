"""Run folders of one language model: opened together, and evaluated again."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dictionary_learning.dictionary import Dictionary
from nnsight import LanguageModel

from ..activations.language_models import HookPoint
from ..activations.run_inputs import MEASURED_ON, held_out, measured_on, open_model
from ..config.checks import require
from ..config.run_config import RunConfig
from ..errors import CheckpointError
from ..run_folder.names import METRICS
from ..run_folder.reading import require_folders
from ..run_folder.trained_on import run_of
from ..run_folder.weights import load_dictionary
from ..run_folder.writing import write_json
from .measure import evaluate


def evaluate_folders(
    folders: Sequence[str | Path],
    *,
    tokens: int = 100_000,
    model: str | None = None,
    hook: str | None = None,
    data: str | None = None,
    device: str = "cpu",
) -> dict[str, dict[str, Any]]:
    """Evaluate run folders on the same held-out text, and write each one's metrics.json.

    Arguments:
        folders: all trained on one language model and hook point.
        model, hook, data: as in the run's config.json by default. Needed for folders that upstream's
            `trainSAE` wrote.

    Raises: CheckpointError if a folder is damaged or belongs to another model or hook.
    """
    require(tokens > 0, "tokens", tokens, "above 0")
    opened = open_folders(folders, model=model, hook=hook, data=data, device=device)
    run = opened.run
    dictionaries = {
        name: (dictionary, config["trainer"].get("norm_factor", 1.0))
        for name, (dictionary, config) in opened.saes.items()
    }
    buffer_and_documents = held_out(run, opened.language_model, opened.hook_point, tokens)
    results = {
        name: metrics | {"measured_on": measured_on(run)}
        for name, metrics in evaluate(dictionaries, *buffer_and_documents, tokens).items()
    }
    for name, metrics in results.items():
        write_json(Path(name) / METRICS, metrics)
    return results


class OpenedFolders(NamedTuple):
    """Run folders of one language model and hook point, loaded."""

    run: RunConfig
    saes: dict[str, tuple[Dictionary, dict[str, Any]]]
    """Each folder's SAE and config.json."""
    language_model: LanguageModel
    hook_point: HookPoint


def open_folders(
    folders: Sequence[str | Path],
    *,
    model: str | None = None,
    hook: str | None = None,
    data: str | None = None,
    device: str = "cpu",
) -> OpenedFolders:
    """Load run folders and the language model they share; see `evaluate_folders`."""
    require_folders(folders)
    runs: dict[str, RunConfig] = {}
    for folder in folders:
        runs[str(folder)] = run_of(Path(folder), model, hook, data, device)
    first_name, run = next(iter(runs.items()))
    for name, other in runs.items():
        for what in MEASURED_ON:
            if getattr(other, what) != getattr(run, what):
                raise CheckpointError(
                    f"{name}: its run has {what}={getattr(other, what)!r}, but {first_name} has "
                    f"{getattr(run, what)!r}; evaluate folders with different settings separately"
                )
    saes = {name: load_dictionary(name, device) for name in runs}
    language_model, hook_point = open_model(run)
    for name, (dictionary, _) in saes.items():
        hook_point.require_width(name, dictionary.activation_dim, run.model)
    return OpenedFolders(run, saes, language_model, hook_point)
