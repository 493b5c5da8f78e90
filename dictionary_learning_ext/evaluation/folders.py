"""Run folders of one language model: opened together, and evaluated again."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from dictionary_learning.dictionary import Dictionary
from nnsight import LanguageModel

from ..activations.hook_points import HookPoint
from ..activations.inputs import Inputs, open_inputs
from ..config.checks import require
from ..config.run import RunConfig
from ..errors import CheckpointError
from ..run_folder.evaluation_files import MEASURED_ON, evaluation_file, measured_on
from ..run_folder.matching import require_one_setting
from ..run_folder.reading import require_folders
from ..run_folder.trained_on import run_of
from ..run_folder.weights import load_dictionary
from ..run_folder.writing import write_json
from .measure import measure


def evaluate_folders(
    folders: Sequence[str | Path],
    *,
    tokens: int | None = None,
    step: int | None = None,
    model: str | None = None,
    hook: str | None = None,
    data: str | None = None,
    activations: str | None = None,
    device: str = "cpu",
    max_norm_multiple: float | None = None,
    remove_bos: bool | None = None,
    on_written: Callable[[Path], None] = lambda path: None,
) -> dict[str, dict[str, Any]]:
    """Evaluate run folders on the same held-out text, and write each one's metrics.json.

    An evaluation of a checkpoint, or at other settings than that in metrics.json, is written beside
    it, to evaluations/.

    Arguments:
        folders: all trained on one language model. Those of one hook point are measured together.
        tokens: held-out tokens. Default: as many as the runs' own evaluations (the largest).
        step: of the checkpoint to evaluate. Default: the final weights.
        model, hook, data: as in the run's config.json by default. Folders that upstream's `trainSAE`
            wrote need them, unless their submodule_name is a hook point's.
        activations: a folder of stored activations to measure on, as in the run's config.json by
            default. "none": the language model's.
        max_norm_multiple, remove_bos: which tokens to leave out; as in training by default.
        on_written: called with each file once it is written.

    Raises: CheckpointError if a folder is damaged or belongs to another model or hook.
    """
    require(tokens is None or tokens > 0, "tokens", tokens, "above 0")
    require_folders(folders)
    where = {
        "model": model,
        "hook": hook,
        "data": data,
        "activations": activations,
        "device": device,
        "max_norm_multiple": max_norm_multiple,
        "remove_bos": remove_bos,
    }
    runs = {str(folder): run_of(Path(folder), step=step, **where) for folder in folders}
    require_one_setting(runs, [n for n in MEASURED_ON if n != "hook"], CheckpointError)
    tokens = _own_tokens(runs) if tokens is None else tokens
    of_hook: dict[str, list[str]] = {}
    for name, run in runs.items():
        of_hook.setdefault(run.hook, []).append(name)
    results = {}
    for names in of_hook.values():
        opened = _opened({name: runs[name] for name in names}, step)
        results |= _evaluated(opened, tokens, step, on_written)
    return {name: results[name] for name in runs}


def _evaluated(
    opened: "OpenedFolders", tokens: int, step: int | None, on_written: Callable[[Path], None]
) -> dict[str, dict[str, Any]]:
    """Measure the SAEs of one hook point, and write each one's metrics."""
    run = opened.run
    dictionaries = {
        name: (dictionary, config["trainer"].get("norm_factor", 1.0))
        for name, (dictionary, config) in opened.saes.items()
    }
    held_out = opened.inputs.held_out(run.hook, tokens)
    of_step = {} if step is None else {"step": step}
    results = {
        name: of_step | metrics | {"measured_on": measured_on(run)}
        for name, metrics in measure(dictionaries, held_out, tokens).items()
    }
    for name, metrics in results.items():
        path = evaluation_file(Path(name), opened.saes[name][1], run, tokens, metrics)
        write_json(path, metrics)
        on_written(path)
    return results


class OpenedFolders(NamedTuple):
    """Run folders of one language model and hook point, loaded."""

    run: RunConfig
    saes: dict[str, tuple[Dictionary, dict[str, Any]]]
    """Each folder's SAE and config.json."""
    inputs: Inputs
    own_tokens: int
    """On how many tokens their own evaluations measure: the largest number among them."""

    @property
    def language_model(self) -> LanguageModel | None:
        """None if the folder of activations doesn't say which it is, or the model is synthetic."""
        return self.inputs.language_model

    @property
    def hook_point(self) -> HookPoint:
        """The one that all were trained on."""
        return self.inputs.hooks[self.run.hook]


def open_folders(
    folders: Sequence[str | Path], *, step: int | None = None, **where: Any
) -> OpenedFolders:
    """Load run folders and the language model they share; see `evaluate_folders`.

    Arguments:
        where: model, hook, data, activations, device, max_norm_multiple and remove_bos.
    """
    require_folders(folders)
    return _opened(
        {str(folder): run_of(Path(folder), step=step, **where) for folder in folders}, step
    )


def _opened(runs: dict[str, RunConfig], step: int | None) -> OpenedFolders:
    """Load the folders of these runs, and their language model."""
    require_one_setting(runs, MEASURED_ON, CheckpointError)
    run = next(iter(runs.values()))
    saes = {name: load_dictionary(name, run.device, step=step) for name in runs}
    own_tokens = _own_tokens(runs)
    inputs = open_inputs(replace(run, eval_tokens=own_tokens), [run.hook])
    opened = OpenedFolders(run, saes, inputs, own_tokens)
    for name, (dictionary, _) in saes.items():
        opened.hook_point.require_width(name, dictionary.activation_dim, run.model)
    return opened


def _own_tokens(runs: dict[str, RunConfig]) -> int:
    return max(run.eval_tokens for run in runs.values()) or RunConfig.eval_tokens
