"""From what a user gives in Python to an SAE, its language model and its hook point."""

from dataclasses import replace
from operator import index
from pathlib import Path
from typing import Any, NamedTuple

from dictionary_learning.dictionary import Dictionary
from nnsight import LanguageModel

from ..activations.hook_points import HookPoint
from ..activations.inputs import Inputs, open_inputs
from ..activations.language_models import with_weights
from ..config.run import RunConfig
from ..errors import ActivationsError, ConfigError, Setting
from ..run_folder.reading import read_config
from ..run_folder.trained_on import run_of
from ..run_folder.weights import load_dictionary

SAE = Dictionary | str | Path
"""A dictionary that takes raw activations, as `load_dictionary` returns it, or a run folder."""
Hook = HookPoint | str
"""A hook point, or its name."""


class OpenedSAE(NamedTuple):
    """An SAE, and the activations that it takes."""

    dictionary: Any
    language_model: LanguageModel
    hook_point: HookPoint
    run: RunConfig
    """The text, the contexts and the tokens that are left out: a run folder's, or the defaults."""
    inputs: Inputs
    """What such a run reads."""


def dictionary_of(sae: SAE, device: str = "cpu") -> Any:
    """The dictionary itself, or that of a run folder.

    Raises: ConfigError for anything else, CheckpointError for a folder that can't be read.
    """
    if isinstance(sae, str | Path):
        return load_dictionary(sae, device)[0]
    if not isinstance(sae, Dictionary):
        hint = "; load_dictionary returns a pair, give its first" if isinstance(sae, tuple) else ""
        raise ConfigError(
            f"sae is a {type(sae).__name__}: expected a dictionary or a run folder, e.g."
            f" 'runs/NAME'{hint}"
        )
    return sae


def open_sae(
    sae: SAE,
    lm: LanguageModel | str | Path | None,
    hook: Hook | None,
    *,
    device: str = "cpu",
    ctx_len: int | None = None,
    stored: bool = False,
) -> OpenedSAE:
    """Load what isn't loaded, and check that it fits together.

    Arguments:
        sae: see `SAE`.
        lm: the language model, its name or folder. None: the one in the run folder's config.json.
        hook: None: the one in the run folder's config.json.
        device: where to load what isn't loaded. A run folder's SAE goes to the device of a language
            model that is.
        ctx_len: None: the run's.
        stored: whether the activations that the run was trained on are read, if these are on disk.

    Raises: a UserError that says what to change.
    """
    if isinstance(lm, LanguageModel):
        device = str(with_weights(lm)._model.device)
    elif not isinstance(lm, str | Path | None):
        raise ConfigError(
            f"lm is a {type(lm).__name__}: expected an nnsight LanguageModel, or its name or folder",
            instead=("use e.g. ", Setting("lm", "embedded")),
        )
    dictionary = dictionary_of(sae, device)
    hook = hook.name if isinstance(hook, HookPoint) else hook
    if isinstance(sae, str | Path):
        run = _run_of_folder(Path(sae), lm, hook, device)
    elif lm is None or hook is None:
        raise ConfigError(
            "a dictionary doesn't say where its activations come from: expected a language model and"
            " a hook point; give lm and hook, or the run folder in the place of the dictionary"
        )
    else:
        run = RunConfig(model=_name_of(lm), hook=hook, device=device)
    run = run if ctx_len is None else replace(run, ctx_len=ctx_len)
    run = run if stored else replace(run, activations=None)
    loaded = lm if isinstance(lm, LanguageModel) else None
    inputs = open_inputs(replace(run, eval_tokens=1), [run.hook], language_model=loaded)
    if inputs.language_model is None:
        raise ActivationsError(
            inputs.no_language_model,
            expected="the tokens that its activations are of",
            instead=("give a text to read in their place, e.g. ", Setting("text", "embedded")),
        )
    point = inputs.hooks[run.hook]
    require_width(dictionary, point)
    return OpenedSAE(dictionary, inputs.language_model, point, run, inputs)


def require_width(dictionary: Any, hook: HookPoint) -> None:
    """Raise a ConfigError unless a dictionary is as wide as the activations of a hook point."""
    if dictionary.activation_dim != hook.activation_dim:
        raise ConfigError(
            f"the SAE takes {dictionary.activation_dim} dimensions, but {hook.name} of this language"
            f" model has {hook.activation_dim}: expected the same; give the language model that the"
            " SAE was trained on"
        )


def require_feature(feature: Any, dict_size: int) -> int:
    """A feature's number as an int. Raises ConfigError unless the SAE has it."""
    try:
        number = index(feature)
    except TypeError:
        number = -1
    if not 0 <= number < dict_size:
        raise ConfigError(
            f"feature {feature!r}: expected a whole number from 0 to {dict_size - 1}, as the SAE has"
            f" {dict_size} features"
        )
    return number


def _run_of_folder(folder: Path, lm: Any, hook: str | None, device: str) -> RunConfig:
    """A folder's run; of one that upstream's `trainSAE` wrote, as far as it is known."""
    is_loaded = isinstance(lm, LanguageModel)
    name = None if lm is None or (is_loaded and "run" in read_config(folder)) else _name_of(lm)
    return run_of(folder, name, hook, device=device)


def _name_of(lm: Any) -> str:
    return str(lm.config._name_or_path) if isinstance(lm, LanguageModel) else str(lm)
