"""Language models: load one, find a hook point by its TransformerLens name, read activations there.

Shapes: B contexts, L tokens, D = activation_dim.
"""

import hashlib
import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
import transformers
from nnsight import LanguageModel
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BatchEncoding
from transformers.utils import CONFIG_NAME

from ..errors import CheckpointError, LanguageModelError, first_line
from ..trainers.devices import require_device
from .hub_access import why_unreachable

EMBEDDED_MODEL = Path(__file__).parents[1] / "embedded" / "model"
_EXPECTED = (
    "expected 'embedded', a folder written by save_pretrained, or a model's name on the hub, e.g."
    " --model EleutherAI/pythia-70m"
)


class HookKind(NamedTuple):
    """One kind of hook point of a block."""

    io: Literal["in", "out"]
    """Which side of the block it is."""
    blocks_back: int
    """The block whose output it is, counted back from its own."""


HOOK_KINDS = {"hook_resid_post": HookKind("out", 0), "hook_resid_pre": HookKind("in", 1)}
"""By TransformerLens's name, after `blocks.N.`: all hook points there are."""
_HOOK_NAME = re.compile(rf"blocks\.(\d+)\.({'|'.join(HOOK_KINDS)})")


def block_of_output(hook: str) -> int | None:
    """The block whose output is read at a hook point: -1 for the embedding's, None if it is none."""
    match = _HOOK_NAME.fullmatch(hook)
    return None if match is None else int(match[1]) - HOOK_KINDS[match[2]].blocks_back


@dataclass(frozen=True)
class HookPoint:
    """A place in a model's residual stream.

    Attributes:
        name: TransformerLens's name, e.g. "blocks.0.hook_resid_post".
        layer: the block's number, from 0.
        io: "out" for the block's output (resid_post), "in" for its input (resid_pre).
        submodule: nnsight's envoy of the block.
        activation_dim: D, the width of the residual stream.
    """

    name: str
    layer: int
    io: Literal["in", "out"]
    submodule: Any
    activation_dim: int

    def require_width(self, folder: str | Path, activation_dim: int, model: str) -> None:
        """Raise a CheckpointError unless a folder's SAE is as wide as this point of `model`."""
        if activation_dim != self.activation_dim:
            raise CheckpointError(
                f"{folder}: activation_dim={activation_dim}, but {self.name} of {model} is "
                f"{self.activation_dim} wide; give the --model that it was trained on"
            )


def load_language_model(
    name: str, *, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> LanguageModel:
    """Load a causal language model and its tokenizer, to read activations.

    Arguments:
        name: "embedded" (the model shipped with the package), a folder written by
            `save_pretrained`, or a model's name on the Hugging Face hub.
        device: where its weights go, e.g. "cpu" or "cuda:0".
        dtype: the dtype of its weights and activations.

    Returns:
        The model in evaluation mode, its weights loaded and without gradients.

    Raises:
        LanguageModelError: there is no such model, the hub can't be reached, files are missing or
            damaged, or the tokenizer has neither a pad nor an end-of-text token.
        ConfigError: the machine has no such device.
    """
    require_device(device)
    with _loading(name) as (source, options):
        config = AutoConfig.from_pretrained(source, **options)
        tokenizer: Any = AutoTokenizer.from_pretrained(source, config=config, **options)
        model: Any = AutoModelForCausalLM.from_pretrained(
            source, config=config, dtype=dtype, **options
        )
    if tokenizer.pad_token is None:
        # nnsight and upstream's evaluate pad every batch of texts. Padding is masked, so any token
        # will do. The end-of-text token is one that the model already has.
        if tokenizer.eos_token is None:
            raise LanguageModelError(
                f"the tokenizer of language model {name!r} can't pad a batch: expected a pad or an"
                " end-of-text token; set pad_token in its tokenizer_config.json"
            )
        tokenizer.pad_token = tokenizer.eos_token
    # transformers 4 warns that nnsight pads a fast tokenizer's ids in a second step.
    getattr(tokenizer, "deprecation_warnings", {})["Asking-to-pad-a-fast-tokenizer"] = True
    model = model.to(device).eval().requires_grad_(False)
    logging.getLogger("nnsight").setLevel(logging.WARNING)  # it logs each trace at INFO
    return cast(LanguageModel, LanguageModel(model, tokenizer=tokenizer))


@contextmanager
def _loading(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where a model's files are, and how transformers may get them. Its errors become ours."""
    folder = EMBEDDED_MODEL if name == "embedded" else Path(name).expanduser()
    is_local = name == "embedded" or name.startswith(("/", ".", "~")) or folder.exists()
    if is_local and not (folder / CONFIG_NAME).is_file():
        raise LanguageModelError(
            f"language model {name!r} can't be loaded, there is no file {folder / CONFIG_NAME}:"
            f" {_EXPECTED}"
        )
    offline = None if is_local else why_unreachable()
    with _quiet():
        try:
            yield str(folder) if is_local else name, {"local_files_only": offline is not None}
        except OSError as error:  # what transformers raises for a missing model, file or network
            if offline:
                raise LanguageModelError(
                    f"language model {name!r} can't be loaded: it isn't in the cache, and {offline}:"
                    " expected 'embedded' or a folder written by save_pretrained, e.g. --model"
                    " path/to/folder"
                ) from error
            raise LanguageModelError(
                f"language model {name!r} can't be loaded, locally or from the hub"
                f" ({first_line(error)}): {_EXPECTED}"
            ) from error
        except Exception as error:  # damaged files can raise anything
            raise LanguageModelError(
                f"language model {name!r} can't be loaded ({type(error).__name__}:"
                f" {first_line(error)}): expected a causal language model of transformers; if its"
                " files are damaged, copy or download them again"
            ) from error


def read_config(name: str) -> Any:
    """The configuration of a language model's text part. Its weights aren't loaded.

    Raises: LanguageModelError if there is no such model.
    """
    with _loading(name) as (source, options):
        return AutoConfig.from_pretrained(source, **options).get_text_config()


def width_of(name: str) -> int:
    """The width of a language model's residual stream, found without loading its weights.

    Raises: LanguageModelError if there is no such model.
    """
    return read_config(name).hidden_size


def empty_model(name: str) -> nn.Module:
    """A language model whose parameters have shapes and no values, made in no memory.

    Raises: LanguageModelError if there is no such model.
    """
    with _loading(name) as (source, options), torch.device("meta"):
        config = AutoConfig.from_pretrained(source, **options)
        return AutoModelForCausalLM.from_config(config)


def hook_names(name: str) -> list[str]:
    """The hook points of a language model, found without loading its weights.

    Raises: LanguageModelError if there is no such model, or its blocks can't be found.
    """
    model: Any = empty_model(name)
    config = model.config.get_text_config()
    block_list_path(model, config)
    return [f"blocks.{n}.{kind}" for n in range(config.num_hidden_layers) for kind in HOOK_KINDS]


def find_hook(model: LanguageModel, name: str) -> HookPoint:
    """Find a hook point by its name in TransformerLens.

    Arguments:
        model: a GPT-NeoX, Llama, GPT-2, Gemma, Qwen or other decoder whose list of blocks can be
            found, see `block_list_path`.
        name: "blocks.N." and a name in HOOK_KINDS.

    Raises:
        LanguageModelError: the model has no such hook point (the message lists those it has), or
            its list of blocks can't be found.
    """
    config: Any = model.config.get_text_config()
    match = _HOOK_NAME.fullmatch(name)
    if match is None or int(match[1]) >= config.num_hidden_layers:
        blocks = f"blocks.{{0..{config.num_hidden_layers - 1}}}"
        expected = " or ".join(f"{blocks}.{kind}" for kind in HOOK_KINDS)
        raise LanguageModelError(
            f"there is no hook point {name!r} in this model: expected {expected}; use e.g. "
            f"--hook blocks.0.{next(iter(HOOK_KINDS))}"
        )
    layer = int(match[1])
    envoy: Any = model._envoy
    for part in block_list_path(model._model, config).split("."):
        envoy = getattr(envoy, part)
    return HookPoint(name, layer, HOOK_KINDS[match[2]].io, envoy[layer], config.hidden_size)


def read_residual(
    model: LanguageModel, hook: HookPoint, input_ids: Tensor, attention_mask: Tensor
) -> Tensor:
    """The residual stream at a hook point, (B, L, D), in the model's dtype and on its device.

    The model runs no further than the hook point. The result has no gradient.

    Arguments:
        model: the model that `hook` was found in.
        hook: where to read.
        input_ids: int64, (B, L).
        attention_mask: (B, L), 0 at padding.
    """
    return read_submodule(model, hook.submodule, hook.io, input_ids, attention_mask)


@torch.no_grad()  # not inference_mode, whose tensors can't be trained on
def read_submodule(
    model: LanguageModel,
    submodule: Any,
    io: Literal["in", "out"],
    input_ids: Tensor,
    attention_mask: Tensor,
) -> Tensor:
    """Like `read_residual`, for the input or output of any submodule (nnsight's envoy of it)."""
    # A BatchEncoding is the only form of input that nnsight leaves as it is.
    encoding = BatchEncoding({"input_ids": input_ids, "attention_mask": attention_mask})
    options: Any = {"use_cache": False}
    with model.trace(encoding, **options):
        saved = (submodule.output if io == "out" else submodule.inputs).save()
        saved.stop()
    value = saved.value
    if io == "in":
        args, kwargs = value
        value = args[0] if args else kwargs["hidden_states"]
    return value[0] if isinstance(value, tuple) else value


def weights_hash(model: LanguageModel) -> str:
    """SHA-256, in hex, of the names, shapes, dtypes and bytes of everything in a checkpoint.

    It does not depend on the device. It does depend on the dtype.
    """
    digest = hashlib.sha256()
    module: nn.Module = model._model
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(raw.numpy().data)
    return digest.hexdigest()


def settings_hash(model: LanguageModel) -> str:
    """SHA-256, in hex, of the model's configuration and its tokenizer.

    It does not depend on the names, paths and software versions in them.
    """
    volatile = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")
    config = {n: v for n, v in model.config.to_diff_dict().items() if n not in volatile}
    tokenizer: Any = model.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    words = backend.to_str() if backend is not None else sorted(tokenizer.get_vocab().items())
    text = json.dumps([config, words], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def block_list_path(model: nn.Module, config: Any) -> str:
    """The path of the list of decoder blocks in a transformers model.

    It is the only list of `num_hidden_layers` modules

    - that is not inside another such list (experts are),
    - whose modules contain others (norms don't),
    - whose modules work on vectors of `hidden_size` (an image encoder's seldom do).

    Raises: LanguageModelError if there is not exactly one such list.
    """
    found: list[str] = []
    for path, module in model.named_modules():
        if (
            isinstance(module, nn.ModuleList)
            and len(module) == config.num_hidden_layers
            and not any(path.startswith(f"{outer}.") for outer in found)
            and all(_is_block(block, config.hidden_size) for block in module)
        ):
            found.append(path)
    if len(found) != 1:
        which = f"{len(found)} candidates ({', '.join(found)})" if found else "none"
        raise LanguageModelError(
            f"the list of {config.num_hidden_layers} decoder blocks of a {type(model).__name__}"
            f" can't be found: expected one candidate, found {which}; use a decoder-only language"
            " model"
        )
    return found[0]


def _is_block(module: nn.Module, hidden_size: int) -> bool:
    composed = any(True for _ in module.children())
    return composed and any(hidden_size in weight.shape for weight in module.parameters())


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and no warnings from transformers, whose settings are restored after."""
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
