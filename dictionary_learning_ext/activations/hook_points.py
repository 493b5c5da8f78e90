"""Hook points: places in a language model, found by their names in TransformerLens."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from nnsight import LanguageModel
from torch import Tensor, nn

from ..errors import CheckpointError, LanguageModelError
from .language_models import empty_model, read_submodule


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
    """The activations at a hook point of the model that it was found in; see `read_submodule`."""
    return read_submodule(model, hook.submodule, hook.io, input_ids, attention_mask)


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
