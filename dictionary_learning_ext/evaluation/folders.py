"""Open SAEs with their activations, and evaluate them."""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex

from dictionary_learning.dictionary import Dictionary

from ..activations.hook_points import HookPoint, input_device
from ..activations.inputs import Inputs, open_inputs
from ..activations.language_models import (
    EMBEDDED_MODEL,
    CausalLM,
    is_nnsights,
    load_tokenizer,
    unwrapped,
)
from ..activations.rows import ContextBatch
from ..codes.codes import Codes, encode_each, keep_codes, kept_codes, text_key
from ..config.checks import require
from ..config.run import UNKNOWN, RunConfig, Split
from ..errors import (
    ActivationsError,
    CheckpointError,
    ConfigError,
    LanguageModelError,
    TextError,
)
from ..run_folder.comparing import evaluation_file, former_evaluation
from ..run_folder.files import EVALUATION, at_home, require_writable, write_json
from ..run_folder.identity import CONTEXTS, PLACE, STORED, measured_on, require_alike
from ..run_folder.moved import not_here
from ..run_folder.sae_folder import SAEFolder, find_sae, find_saes
from ..run_folder.trained_on import all_trained_on, trained_on
from ..run_folder.weights import load_sae
from .measure import measure, metrics_of, with_bar
from .metrics import changes_since, with_identity

if TYPE_CHECKING:
    from nnsight import LanguageModel

logger = logging.getLogger(__name__)

SAE = Dictionary | SAEFolder | str | Path
"""A dictionary that takes raw activations, as `load_dictionary` returns it, or the name of an SAE: a run folder, a folder of
SAELens or sparsify, or a place on the hub, see run_folder/sae_names.py."""
Hook = HookPoint | str
"""A hook point, or its name."""


def evaluate_folders(
    folders: Sequence[str | Path | SAEFolder],
    *,
    out: str | Path | None = None,
    tokens: int | None = None,
    step: int | None = None,
    keep: bool = True,
    on_written: Callable[[Path], None] = lambda path: None,
    **where: Any,
) -> dict[str, dict[str, Any]]:
    """Evaluate SAEs on the same held-out text, and write each one's metrics.json.

    Evaluations of a checkpoint, or with other settings than those of metrics.json, go to evaluations/ beside it.

    Arguments:
        folders: the names of the SAEs, all trained on one language model. Those of one hook point are measured together.
        out: where to write results, instead of the SAE's folder of results (see `SAEFolder.results`). Other commands won't
            find them there.
        tokens: held-out tokens. Default: as many as the runs' own evaluations (the largest).
        step: of the checkpoint to evaluate. Default: the final weights.
        keep: read the codes beside the SAEs, and keep new ones there.
        on_written: called with each file after it is written.
        where: any of
            - model, hook, data, text_column: default: as in the run's config.json. Folders of upstream's `trainSAE` need
              them, unless their submodule_name is a hook point's name;
            - activations: a folder of stored activations to measure on, or "none" to run the language model. Default: as in
              the run's config.json;
            - max_norm_multiple, remove_bos: which tokens to leave out. Default: as in training;
            - device, device_map: see `RunConfig`.

    Raises: CheckpointError, before anything is measured, if a folder is damaged or belongs to another model or hook point,
    or if results can't be written.
    """
    require(tokens is None or tokens > 0, "tokens", tokens, "above 0")
    found = find_saes(folders, step)
    results_of = {
        n: sae.results if out is None else sae.results_in(out) for n, sae in found.items()
    }
    for folder in results_of.values():
        require_writable(folder / EVALUATION, "out")
    runs = all_trained_on(found, **where)
    _require_measured_alike(runs, ignoring=PLACE)
    tokens = _own_tokens(runs) if tokens is None else tokens
    by_hook: dict[str, list[str]] = {}
    for name, run in runs.items():
        by_hook.setdefault(run.site, []).append(name)
    hashes = {name: sae.hash for name, sae in found.items()}  # of the weights that are loaded now
    results, language_model = {}, None
    keep = keep and out is None
    for names in by_hook.values():
        of_hook = {name: runs[name] for name in names}
        opened = _opened(found, of_hook, language_model=language_model, keep=keep)
        run = opened.run
        measured = evaluated(opened, tokens)
        if run.activations is None:
            language_model = opened.inputs.language_model
        for name, metrics in measured.items():
            sae, to = found[name], results_of[name]
            at_step = {} if sae.step is None else {"step": sae.step}
            results[name] = with_identity(at_step | metrics, hashes[name], run)
            former = former_evaluation(to)
            if changes_since(sae, former):
                former = {}  # of other weights, text or definitions: this one takes its place
            path = evaluation_file(sae, to, tokens, results[name], former)
            write_json(path, results[name], "out")
            on_written(path)
    return {name: results[name] for name in runs}


def evaluated(opened: "OpenedFolders", tokens: int) -> dict[str, dict[str, Any]]:
    """Every metric of opened SAEs on held-out text, by folder. The language model runs, to measure its loss."""
    held_out = opened.inputs.held_out(opened.run.site, tokens)
    factors = {
        n: one.config["trainer"].get("norm_factor", 1.0) for n, one in opened.folders.items()
    }
    dictionaries = {name: (sae, factors[name]) for name, sae in opened.saes.items()}
    if not opened.keep:
        return measure(dictionaries, held_out)
    saes = {}
    for name, codes in opened.each_codes(tokens, with_all=True):
        codes.totals.norm_factor = factors[name]
        saes[name] = (opened.saes[name], codes.totals)
    return metrics_of({name: saes[name] for name in dictionaries}, held_out)


# --- named SAEs


def open_folders(
    folders: Sequence[str | Path | SAEFolder],
    *,
    step: int | None = None,
    saes: Mapping[str, Dictionary] | None = None,
    keep: bool = True,
    **where: Any,
) -> "OpenedFolders":
    """Load SAEs and the language model they share; see `evaluate_folders`.

    All read the contexts of the first SAE's run. A warning names SAEs that were trained on other contexts.

    Arguments:
        saes: the SAEs by name, if they are loaded already.
        keep, where: see `evaluate_folders`.
    """
    found = find_saes(folders, step)
    runs = all_trained_on(found, **where)
    first_name, first = next(iter(runs.items()))
    contexts = {name: getattr(first, name) for name in CONTEXTS}
    for folder, run in runs.items():
        if replace(run, **contexts) != run:
            said = ", ".join(f"{name}={value}" for name, value in contexts.items())
            logger.warning("%s: read in the contexts of %s (%s)", folder, first_name, said)
            runs[folder] = replace(run, **contexts)
    return _opened(found, runs, saes, keep=keep)


@dataclass(eq=False)
class OpenedFolders:
    """SAEs of one language model and hook point. The language model is loaded where it is first needed."""

    run: RunConfig
    """The run whose activations they are measured on."""
    saes: dict[str, Dictionary]
    """Each SAE, by its name."""
    own_tokens: int
    """The number of tokens of the runs' own evaluations."""
    folders: dict[str, SAEFolder] = field(default_factory=dict)
    """Where each was found; empty for a dictionary that a caller gave."""
    language_model: CausalLM | None = None
    """The language model, if it was loaded already."""
    keep: bool = True
    """Whether codes of held-out text are read where they are kept beside an SAE, and new ones kept there."""

    @cached_property
    def is_without_cache(self) -> bool:
        """Whether the SAEs' own cache is gone, and its language model and text are known."""
        run = self.run
        if run.activations is None or at_home(run.activations).exists():
            return False
        own = [one.run.activations for one in self.folders.values() if one.is_run]
        return run.activations in own and run.model != UNKNOWN and run.data != run.activations

    @cached_property
    def inputs(self) -> Inputs:
        """The source of the SAEs' activations.

        Raises: a UserError if it can't be opened, or has another width.
        """
        run = replace(self.run, eval_tokens=self.own_tokens)
        if self.is_without_cache:
            logger.warning(
                "%s: no such folder; running the language model %s on %s instead. activations=FOLDER names another place.",
                *(run.activations, run.model, run.data),
            )
            run = replace(run, activations=None)
        try:
            inputs = open_inputs(run, [run.site], language_model=self.language_model)
        except ActivationsError as error:
            if error.name != STORED or error.instead:
                raise
            model = "give its path, or activations='none' to run the language model"
            raise error.within("", model) from error
        except (LanguageModelError, TextError) as error:
            is_of_run = any(
                one.is_run and one.run.model == run.model for one in self.folders.values()
            )
            if not is_of_run:
                raise
            raise not_here(error, "data" if isinstance(error, TextError) else "model") from error
        for name, dictionary in self.saes.items():
            inputs.hooks[self.run.site].require_width(
                name, dictionary.activation_dim, self.run.model
            )
        return inputs

    def codes(self, tokens: int | None = None, *, split: Split = "heldout") -> dict[str, Codes]:
        """The codes of each SAE on the first tokens of a split, by folder.

        Codes that are kept beside an SAE are read. The others are computed in one pass, and kept, unless they are of training
        text or of a checkpoint.

        Arguments:
            tokens: default: as many as the runs' own evaluations have.
        """
        codes = dict(self.each_codes(tokens, split=split))
        return {name: codes[name] for name in self.saes}

    def each_codes(
        self,
        tokens: int | None = None,
        *,
        split: Split = "heldout",
        with_all: bool = False,
    ) -> Iterator[tuple[str, Codes]]:
        """Like `codes`, but yields one SAE's codes at a time, kept ones first, so that the caller can free them.

        Arguments:
            with_all: see `Encoder`.
        """
        tokens = self.own_tokens if tokens is None else tokens
        keep = self.keep and split == "heldout"
        text, missing, read = text_key(self.run, tokens), {}, tokens
        for name, sae in self.saes.items():
            folder, codes = self.folders[name], None
            if keep and folder.step is None:
                codes = kept_codes(folder.results, sae, folder.hash, text, with_all=with_all)
            if codes is None:
                missing[name] = sae
            else:
                yield name, codes
        if not missing:
            return
        contexts = self.contexts(split, tokens)
        text = text_key(self.run, tokens)  # the language model may have been downloaded just now
        encoded = encode_each([*missing.values()], contexts, with_all=with_all)
        for name, codes in zip(missing, encoded, strict=True):
            folder = self.folders[name]
            codes = replace(codes, sae=folder.hash, text=text)
            if keep and folder.step is None:
                _keep(folder.results, codes)
            read = codes.tokens
            yield name, codes
        if read < tokens:
            which = "held-out" if split == "heldout" else "training"
            logger.warning("the %s text ended: measured on %d tokens, not %d", which, read, tokens)

    def contexts(self, split: Split, tokens: int) -> Iterator[ContextBatch]:
        """The first contexts of a split with their activations, see `Inputs.contexts`. Shows progress."""
        contexts = self.inputs.contexts(self.run.site, split, tokens)
        return with_bar(contexts, tokens, lambda batch: int(batch.wanted_BL.sum()))

    def tokenizer(self, what: str, instead: str) -> Any:
        """The language model's tokenizer. The model itself is not loaded for it.

        Arguments: see `Inputs.require_language_model`, whose errors it raises.
        """
        if (
            self.run.activations is None
            and self.language_model is None
            and "inputs" not in vars(self)
        ):
            return load_tokenizer(self.run.model)
        return self.inputs.require_language_model(what, instead).tokenizer

    @property
    def hook_point(self) -> HookPoint:
        """The hook point that these SAEs were trained on."""
        return self.inputs.hooks[self.run.site]


def _keep(folder: Path, codes: Codes) -> None:
    """Keep codes beside an SAE. Warns if that isn't possible."""
    try:
        path = keep_codes(folder, codes)
    except CheckpointError as error:
        logger.warning("the SAE's codes of these tokens are not kept: %s", error)
    else:
        size = path.stat().st_size / 1e6
        logger.info("the SAE's codes of these tokens are kept in %s (%.0f MB)", path, size)


def _opened(
    found: Mapping[str, SAEFolder],
    runs: dict[str, RunConfig],
    saes: Mapping[str, Dictionary] | None = None,
    language_model: CausalLM | None = None,
    *,
    keep: bool,
) -> OpenedFolders:
    """Load the SAEs of these runs, if they aren't loaded yet."""
    _require_measured_alike(runs)
    run = next(iter(runs.values()))
    folders = {name: found[name] for name in runs}
    if saes is None:
        saes = {name: load_sae(folder, run.device) for name, folder in folders.items()}
    return OpenedFolders(run, dict(saes), _own_tokens(runs), folders, language_model, keep)


def _require_measured_alike(runs: dict[str, RunConfig], ignoring: Collection[str] = ()) -> None:
    """Raise a CheckpointError unless these runs are measured with the same settings."""
    measured = {name: {"target": None} | measured_on(run) for name, run in runs.items()}
    require_alike(measured, CheckpointError, ignoring={STORED, *ignoring})


def _own_tokens(runs: dict[str, RunConfig]) -> int:
    """The number of tokens of the runs' own evaluations: the largest among them."""
    return max(run.eval_tokens for run in runs.values()) or RunConfig.eval_tokens


# --- one SAE, as Python gives it


def open_sae(
    sae: SAE,
    lm: "LanguageModel | str | Path | None",
    hook: Hook | None,
    *,
    device: str = RunConfig.device,
    ctx_len: int | None = None,
    stored: bool = False,
    keep: bool = True,
) -> OpenedFolders:
    """Open a single SAE, given as a dictionary or by its name.

    Arguments:
        lm: the language model, its name or its folder. Default: as in the run folder's config.json.
        hook: the hook point or its name. Default: as in the run folder's config.json.
        device: where to load the SAE and the language model, if neither is loaded yet.
        stored: whether to read the stored activations that the run was trained on, if there are any.
        keep: see `OpenedFolders`. With a language model that is given as an object, codes are never kept.

    Raises: a UserError that says what to change.
    """
    loaded = unwrapped(lm) if is_nnsights(lm) else None
    if loaded is not None:
        device = str(input_device(loaded.module))
    elif isinstance(sae, Dictionary):
        device = str(next(sae.parameters()).device)
    if loaded is None and not isinstance(lm, str | Path | None):
        raise ConfigError(
            f"lm is a {type(lm).__name__}: expected an nnsight LanguageModel, or its name or folder",
            instead="use e.g. lm='embedded'",
        )
    name = str(lm if loaded is None else loaded.module.config._name_or_path)
    name = "embedded" if Path(name) == EMBEDDED_MODEL else name
    hook = hook.name if isinstance(hook, HookPoint) else hook
    found, dictionary = named_or_given(sae, device)
    if found is not None:
        is_named = lm is None or (loaded is not None and found.is_run)
        run = trained_on(found, None if is_named else name, hook, device=device)
    elif lm is None or hook is None:
        raise ConfigError(
            "a dictionary doesn't say where its activations come from: expected a language model and"
            " a hook point; give lm and hook, or the run folder instead of the dictionary"
        )
    else:
        run = RunConfig(model=name, hook=hook, device=device)
    run = run if ctx_len is None else replace(run, ctx_len=ctx_len)
    run = run if stored else replace(run, activations=None)
    called = "the dictionary" if found is None else found.name
    folders = {} if found is None else {called: found}
    own_tokens = _own_tokens({called: run})
    keep = keep and loaded is None
    return OpenedFolders(run, {called: dictionary}, own_tokens, folders, loaded, keep)


def named_or_given(sae: SAE, device: str = "cpu") -> tuple[SAEFolder | None, Dictionary]:
    """An SAE's dictionary, and where it was found if it is named.

    Raises: ConfigError for anything else, CheckpointError for a folder that can't be read.
    """
    if isinstance(sae, str | Path | SAEFolder):
        found = find_sae(sae)
        return found, load_sae(found, device)
    if not isinstance(sae, Dictionary):
        is_pair = isinstance(sae, tuple)
        hint = "; load_dictionary returns a pair, give its first element" if is_pair else ""
        raise ConfigError(
            f"sae is a {type(sae).__name__}: expected a dictionary or a run folder, e.g."
            f" 'runs/NAME'{hint}"
        )
    return None, sae


def require_feature(feature: SupportsIndex, dict_size: int) -> int:
    """A feature's number as an int. Raises ConfigError unless the SAE has it."""
    number = index(feature)
    if not 0 <= number < dict_size:
        raise ConfigError(
            f"feature {number}: expected a whole number from 0 to {dict_size - 1}, as the SAE has"
            f" {dict_size} features"
        )
    return number
