"""Load language models and identify them.

Users hold nnsight's `LanguageModel`. Public functions convert it by `unwrapped`: inside the package, a language model
is a `CausalLM`, or the torch module in it.
"""

import copy
import hashlib
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from tempfile import TemporaryDirectory
from textwrap import shorten
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard, cast

import torch
from torch import nn

from ..config.checks import require
from ..config.run import DeviceMap, RunConfig
from ..devices import chosen_device, keep_freed_memory
from ..errors import ConfigError, LanguageModelError, UserError, first_line
from ..run_folder.files import at_home
from ..run_folder.tensors import hash_of
from .text import why_not_fetched

if TYPE_CHECKING:
    from nnsight import LanguageModel, NNsight
    from transformers import PreTrainedModel

EMBEDDED_MODEL = Path(__file__).parents[1] / "embedded" / "model"
_EXPECTED = (
    "expected 'embedded', a folder written by save_pretrained, or a model's name on the hub, e.g."
    " EleutherAI/pythia-70m"
)


class CausalLM(NamedTuple):
    """A language model of transformers, its weights loaded."""

    module: "PreTrainedModel"
    tokenizer: Any
    traced: "NNsight | None" = None
    """nnsight's model around the module, which reads activations. None: torch's hooks read them."""


def unwrapped(model: "LanguageModel | CausalLM") -> CausalLM:
    """The `CausalLM` in nnsight's model.

    By default nnsight loads weights in the first trace and replaces the modules, so hooks on them would be lost.
    Therefore they are loaded here.
    """
    if isinstance(model, CausalLM):
        return model
    lm: Any = model
    if hasattr(type(lm), "dispatch_model"):  # nnsight 0.3
        is_loaded, load = lm._dispatched, lm.dispatch_model
    else:
        is_loaded, load = lm.dispatched, lm.dispatch
    if not is_loaded:
        load()
    return CausalLM(lm._module, lm.tokenizer, lm)


def is_nnsights(model: Any) -> "TypeGuard[LanguageModel]":
    """Whether it is nnsight's `LanguageModel`, and not None or a name."""
    if isinstance(model, str | Path | None):
        return False
    from nnsight import LanguageModel

    return isinstance(model, LanguageModel)


def wrapped(model: CausalLM) -> "LanguageModel":
    """nnsight's `LanguageModel` around a language model. Users can trace texts with it."""
    from nnsight import LanguageModel

    if isinstance(model.traced, LanguageModel):
        return model.traced
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nnsight 0.8 has another name for it
        return cast("LanguageModel", LanguageModel(model.module, tokenizer=model.tokenizer))


def load_language_model(
    name: str, *, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> "LanguageModel":
    """Load a causal language model and its tokenizer, without gradients, to read activations.

    Code that comes with a model or a tokenizer is never run.

    Arguments:
        name: "embedded" (the model shipped with the package), a folder written by
            `save_pretrained`, or a model's name on the Hugging Face hub.
        device: where its weights go, e.g. "cpu" or "cuda:0".
        dtype: the dtype of its weights and activations.

    Raises:
        LanguageModelError: there is no such model, the hub can't be reached, files are missing or
            damaged, or the model needs code of its own.
        ConfigError: the machine has no such device.
    """
    return wrapped(Pretrained(name).load(device=device, dtype=dtype))


class Pretrained:
    """A language model on the disk or the hub, whose weights need not be loaded.

    Raises: LanguageModelError if there is no such model; see `load_language_model`.
    """

    def __init__(self, name: str):
        from transformers import AutoConfig

        self.name = name
        with _loading(name) as (source, options):
            self.config: Any = AutoConfig.from_pretrained(source, **options)

    @property
    def width(self) -> int:
        """The width of the residual stream."""
        return self.config.get_text_config().hidden_size

    @property
    def n_blocks(self) -> int:
        return self.config.get_text_config().num_hidden_layers

    def empty(self) -> nn.Module:
        """The model on the meta device: its parameters have shapes but no values."""
        from transformers import AutoModelForCausalLM

        with _loading(self.name), torch.device("meta"):
            config = copy.deepcopy(self.config)
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)

    def load(
        self, *, device: str, dtype: torch.dtype, device_map: DeviceMap | None = None
    ) -> CausalLM:
        """Load the weights; see `load_language_model`.

        Arguments:
            device_map: the devices of the model's parts, in place of `device`; see `RunConfig`.

        Raises: ConfigError if accelerate refuses the map.
        """
        from transformers import AutoModelForCausalLM
        from transformers.utils import CONFIG_NAME, cached_file, extract_commit_hash

        device = chosen_device(device)
        keep_freed_memory()
        logging.getLogger("nnsight").setLevel(logging.WARNING)  # it logs each trace at INFO
        tokenizer = load_tokenizer(self.name)
        given = {"config": self.config, "dtype": dtype, "device_map": device_map}
        offloaded = None if device_map is None else TemporaryDirectory(prefix="vsae-")
        folder = offloaded and offloaded.name
        with _loading(self.name) as (source, options):
            try:
                model: Any = AutoModelForCausalLM.from_pretrained(
                    source, **given, **options, offload_folder=folder
                )
            except (ValueError, KeyError, RuntimeError, TypeError, AssertionError) as error:
                if device_map is None:
                    raise
                raise ConfigError(
                    f"accelerate can't place the language model so ({shorten(first_line(error), 200)})",
                    name="device_map",
                    value=device_map,
                    expected="auto, or in Python a dict with a device, cpu or disk for each module",
                ) from error
            model._offloaded = offloaded  # deleted with the model
            file = cached_file(source, CONFIG_NAME, local_files_only=True)
            model.config._commit_hash = extract_commit_hash(file, None)  # so does transformers 4
        if device_map is None:
            model = model.to(device)
        return CausalLM(model.eval().requires_grad_(False), tokenizer)


def load_tokenizer(name: str) -> Any:
    """A language model's tokenizer, with a pad token. Raises: as `load_language_model`."""
    from transformers import AutoTokenizer

    with _loading(name) as (source, options):
        tokenizer: Any = AutoTokenizer.from_pretrained(source, **options)
    if tokenizer.pad_token is None:
        # nnsight and upstream's evaluate pad every batch of texts. Padding is masked, so any token
        # will do. The end-of-text token is one that the model already has.
        tokenizer.pad_token = tokenizer.eos_token
    # transformers 4 warns that nnsight pads a fast tokenizer's ids in a second step.
    getattr(tokenizer, "deprecation_warnings", {})["Asking-to-pad-a-fast-tokenizer"] = True
    return tokenizer


def load_model(settings: RunConfig, found: Pretrained | None = None) -> CausalLM:
    """A run's language model, in the run's dtype.

    Arguments:
        found: the same model before it is loaded.

    Raises: as `load_language_model`, and ConfigError if contexts are longer than the model can read.
    """
    from nnsight import NNsight

    dtype = torch.bfloat16 if settings.dtype == "bfloat16" else torch.float32
    where: Any = {"device": settings.device, "device_map": settings.device_map}
    model = (found or Pretrained(settings.model)).load(dtype=dtype, **where)
    require_positions(settings.ctx_len, settings.model, model.module)
    if settings.device_map is not None:
        return model  # nnsight sends tokens to the device of the first weight, which may be on disk
    return model._replace(traced=NNsight(model.module))


def require_positions(ctx_len: int, model: str, module: Any) -> None:
    """Raise a ConfigError if contexts are longer than a transformers model has positions.

    A model with rotary positions would silently compute activations that it was not trained for.
    """
    config: Any = module.config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None:
        expected = f"at most {positions}, the positions that {model!r} was trained on"
        require(ctx_len <= positions, "ctx_len", ctx_len, expected, instead="use a shorter ctx_len")


@contextmanager
def _loading(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a model's path or name on the hub and the arguments to load it. Errors become LanguageModelErrors."""
    from transformers.utils import CONFIG_NAME

    folder = EMBEDDED_MODEL if name == "embedded" else at_home(name)
    is_local = name == "embedded" or name.startswith(("/", ".", "~")) or folder.exists()
    if is_local and not (folder / CONFIG_NAME).is_file():
        raise LanguageModelError(
            f"language model {name!r} can't be loaded, there is no file {folder / CONFIG_NAME}:"
            f" {_EXPECTED}"
        )
    with _quiet():
        try:
            yield str(folder) if is_local else name, {"trust_remote_code": False}
        except UserError:
            raise
        except Exception as error:  # damaged files can raise anything
            if isinstance(error, OSError):  # a missing model, file or network
                why = first_line(error) if is_local else why_not_fetched(error)
                said = f", locally or from the hub ({why}): {_EXPECTED}"
            elif isinstance(error, UnpicklingError):  # torch advises to run what is in it
                said = (
                    ": its pytorch_model.bin holds something else than tensors, which could be any code and is"
                    " never run; expected a model.safetensors, as save_pretrained writes it"
                )
            elif isinstance(error, ValueError) and "trust_remote_code" in str(error):
                said = (
                    ": it needs Python code of its own (auto_map in its configuration), which could do anything"
                    " and is never run; expected a model whose class is in transformers, e.g. EleutherAI/pythia-70m"
                )
            else:
                said = (
                    f" ({type(error).__name__}: {first_line(error)}): expected a causal language model of"
                    " transformers; if its files are damaged, copy or download them again"
                )
            raise LanguageModelError(f"language model {name!r} can't be loaded{said}") from error


def identity(model: "PreTrainedModel") -> str:
    """A language model's commit on the hub, or else the hash of its weights.

    Hashing an 8B model takes 9 s. The hash depends on the dtype, the commit does not.
    """
    commit: str | None = getattr(model.config, "_commit_hash", None)
    return hash_of(model) if commit is None else commit


def settings_hash(model: CausalLM) -> str:
    """SHA-256, in hex, of the model's configuration and its tokenizer, without names, paths and software versions."""
    volatile = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")
    config = {n: v for n, v in model.module.config.to_diff_dict().items() if n not in volatile}
    backend = getattr(model.tokenizer, "backend_tokenizer", None)
    words = backend.to_str() if backend is not None else sorted(model.tokenizer.get_vocab().items())
    text = json.dumps([config, words], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def _quiet() -> Iterator[None]:
    """Switch off transformers' progress bars and warnings inside the `with` block."""
    import transformers

    log = transformers.utils.logging
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()
