"""Run folders of one language model: opened together, and evaluated again."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from dictionary_learning.dictionary import Dictionary
from nnsight import LanguageModel

from ..activations.cached_run import cached_model, stored_hook_point
from ..activations.held_out import HeldOut, held_out_stored, held_out_text, require_held_out
from ..activations.hook_points import HookPoint, find_hook
from ..activations.run_inputs import open_model
from ..activations.stored_activations import StoredActivations, open_stored
from ..activations.synthetic_run import held_out_synthetic, synthetic_hook_point
from ..activations.synthetic_source import draw_model
from ..config.checks import require
from ..config.run import RunConfig
from ..config.synthetic_models import is_synthetic, require_synthetic_run
from ..errors import CheckpointError
from ..run_folder.files import write_json
from ..run_folder.matching import (
    MEASURED_ON,
    evaluation_file,
    measured_on,
    require_one_setting,
    run_of,
)
from ..run_folder.reading import require_folders
from ..run_folder.weights import load_dictionary
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
    inputs = opened.held_out(tokens)
    of_step = {} if step is None else {"step": step}
    results = {
        name: of_step | metrics | {"measured_on": measured_on(run)}
        for name, metrics in measure(dictionaries, inputs, tokens).items()
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
    language_model: LanguageModel | None
    """None if the folder of activations doesn't say which it is, or the model is synthetic."""
    hook_point: HookPoint
    own_tokens: int
    """On how many tokens their own evaluations measure: the largest number among them."""
    stored: StoredActivations | None
    """Where activations are read from, if not from the language model."""
    drawn: Any = None
    """The synthetic model, if they are drawn from one."""

    def held_out(self, tokens: int) -> HeldOut:
        """What to measure on, for `tokens` tokens."""
        if self.drawn is not None:
            return held_out_synthetic(self.run, self.drawn, tokens)
        if self.stored is None:
            assert self.language_model is not None
            return held_out_text(self.run, self.language_model, self.hook_point, tokens)
        require_held_out(replace(self.run, eval_tokens=tokens), self.stored)
        return held_out_stored(self.run, self.stored, self.run.hook, tokens, self.language_model)


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
    stored, language_model, drawn = None, None, None
    if is_synthetic(run.model):
        require_synthetic_run(run)
        drawn = draw_model(run.model)
    elif run.activations is not None:
        stored = open_stored(run.activations)
        stored.require_fit(run, [run.hook])
        language_model = cached_model(run, stored)
    if drawn is not None:
        hook_point = synthetic_hook_point(run)
    elif stored is None:
        language_model, hook_point = open_model(run)
    elif language_model is not None:
        hook_point = find_hook(language_model, run.hook)
    else:
        hook_point = stored_hook_point(stored, run.hook)
    for name, (dictionary, _) in saes.items():
        hook_point.require_width(name, dictionary.activation_dim, run.model)
    return OpenedFolders(run, saes, language_model, hook_point, _own_tokens(runs), stored, drawn)


def _own_tokens(runs: dict[str, RunConfig]) -> int:
    return max(run.eval_tokens for run in runs.values()) or RunConfig.eval_tokens
