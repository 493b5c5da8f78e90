"""Hook points: places in a language model, found by their names in TransformerLens, read and changed.

    hook = find_hook(model, "blocks.0.hook_resid_post")
    x_BLD = read_residual(model, hook, input_ids, attention_mask)
    with hooked(hook.place, lambda x_BLD: 2 * x_BLD):
        ...  # the model runs with other activations

nnsight's trace reads activations (`read_places`). Changes are torch's hooks, all put there by `hooked`.

Shapes: B contexts, L tokens, D = the width of the place.
"""

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from nnsight import LanguageModel, NNsight
from torch import Tensor, nn
from transformers import BatchEncoding, PreTrainedModel

from ..config.hooks import hook_name
from ..errors import CheckpointError, LanguageModelError
from .language_models import CausalLM, Pretrained, unwrapped

_log = logging.getLogger(__name__)

_CHECKED_TOKENS = 8
_BUILDS_GRAPH = tuple(map(int, version("nnsight").split(".")[:2])) < (0, 5)


class HookKind(NamedTuple):
    """One kind of hook point of a block."""

    io: Literal["in", "out"]
    """Which side of the module it is."""
    part: Literal["attention", "mlp"] | None = None
    """The module: what adds the attention's or the MLP's result to the residual stream, or the
    block itself."""
    blocks_back: int | None = None
    """How many blocks back the block lies whose output this is. None: it is no block's output."""


HOOK_KINDS = {
    "hook_resid_post": HookKind("out", blocks_back=0),
    "hook_resid_pre": HookKind("in", blocks_back=1),
    "hook_attn_out": HookKind("out", "attention"),
    "hook_mlp_out": HookKind("out", "mlp"),
}
"""By TransformerLens's name, after `blocks.N.`: all hook points there are. Modules are named by their
outputs (`_PARTS`): reading the "in" of a part would need its own module, before any norm."""
_ATTENTIONS = ("self_attn", "attention", "attn", "self_attention", "linear_attn")
_MLPS = ("mlp", "feed_forward", "ffn", "block_sparse_moe")
_PARTS = (
    ("post_self_attn_layernorm", "post_mlp_layernorm"),  # GLM 4
    ("post_attention_layernorm", "post_feedforward_layernorm"),  # Gemma 2 and 3, OLMo 2
    *product(_ATTENTIONS, _MLPS),
)
"""The names, in a block, of the modules whose outputs it adds to the residual stream: attention and
MLP. A block's parts are the first pair that it has. Where a norm follows the MLP, that comes first:
TransformerLens's hook_mlp_out is what is added."""


def block_of_output(hook: str) -> int | None:
    """The block whose output is read at a hook point: -1 for the embedding, None if it is no
    block's output."""
    named = hook_name(hook)
    kind = HOOK_KINDS.get(named.kind) if named is not None else None
    if named is None or kind is None or kind.blocks_back is None:
        return None
    return named.block - kind.blocks_back


class Place(NamedTuple):
    """One side of a module of a language model."""

    module: nn.Module
    io: Literal["in", "out"]
    path: str
    """The module's path in the model."""


def place_of(model: PreTrainedModel, submodule: Any, io: Literal["in", "out"]) -> Place:
    """One side of a module of a model, or of what nnsight's envoy stands for.

    Raises: LanguageModelError if the model has no such module.
    """
    module = submodule if isinstance(submodule, nn.Module) else getattr(submodule, "_module", None)
    for path, one in model.named_modules():
        if one is module:
            return Place(one, io, path)
    raise LanguageModelError(
        f"submodule is a {type(submodule).__name__}: expected a module of this {type(model).__name__},"
        " e.g. find_hook(model, 'blocks.0.hook_resid_post').submodule"
    )


@dataclass(frozen=True)
class HookPoint:
    """A place in a language model.

    Attributes:
        name: TransformerLens's name, e.g. "blocks.0.hook_resid_post".
        layer: the block's number, from 0.
        io: "out" for the submodule's output, "in" for its input (resid_pre).
        submodule: nnsight's envoy of the block, or of a module in it. The module itself where the
            hook point was found in a model that nnsight doesn't wrap.
        activation_dim: D, the width of the activations.
        place: where it is read; None if there is no language model.
    """

    name: str
    layer: int
    io: Literal["in", "out"]
    submodule: Any
    activation_dim: int
    place: Any = None  # a `Place`

    def require_width(self, sae: str | Path, activation_dim: int, model: str) -> None:
        """Raise a CheckpointError unless an SAE, which `sae` names, is as wide as this point of `model`."""
        if activation_dim != self.activation_dim:
            raise CheckpointError(
                f"{sae}: activation_dim={activation_dim}, but {self.name} of {model} is "
                f"{self.activation_dim} wide; give the language model that it was trained on"
            )


def hook_names(name: str) -> list[str]:
    """The hook points of a language model, found without loading its weights.

    Raises: LanguageModelError if there is no such model, or its blocks can't be found.
    """
    return [
        f"blocks.{n}.{kind}"
        for n, block in enumerate(_blocks_of(Pretrained(name).empty()))
        for kind in _kinds_of(block)
    ]


def _blocks_of(model: Any) -> Any:
    """The decoder blocks of a transformers model."""
    return model.get_submodule(block_list_path(model, model.config.get_text_config()))


def require_hook(model: nn.Module, name: str) -> tuple[int, HookKind]:
    """The block's number and the kind of a hook point of a transformers model. It needs no weights.

    Raises: LanguageModelError if there is none of this name; see `find_hook`.
    """
    blocks = _blocks_of(model)
    named = hook_name(name)
    there = _kinds_of(blocks[0])
    if named is not None and named.block < len(blocks):
        there = _kinds_of(blocks[named.block])
        if named.kind in there:
            return named.block, HOOK_KINDS[named.kind]
    number = re.search(r"(?:^|\.)(\d+)", name)  # also of model.layers.2
    near = min(int(number[1]), len(blocks) - 1) if number else 0
    kind = next((kind for kind in there if name.endswith(kind.removeprefix("hook_"))), there[0])
    raise LanguageModelError(
        f"there is no hook point {name!r} in this model: expected"
        f" blocks.{{0..{len(blocks) - 1}}}.KIND, where KIND is {', '.join(there[:-1])} or"
        f" {there[-1]}; use e.g. blocks.{near}.{kind}"
    )


def find_hook(model: LanguageModel | CausalLM, name: str) -> HookPoint:
    """Find a hook point by its name in TransformerLens.

    Where it is an attention's or MLP's output, a forward pass of a few tokens checks that this is
    what the block adds to the residual stream.

    Arguments:
        model: a GPT-NeoX, Llama, GPT-2, Gemma, Qwen or other decoder whose list of blocks can be
            found, see `block_list_path`.
        name: "blocks.N." and a name in HOOK_KINDS.

    Raises:
        LanguageModelError: the model has no such hook point (the message lists those it has), or
            its list of blocks can't be found.
    """
    module = unwrapped(model).module
    layer, kind = require_hook(module, name)
    config: Any = module.config.get_text_config()
    path = f"{block_list_path(module, config)}.{layer}"
    block = module.get_submodule(path)
    if kind.part is not None:
        parts = {part: f"{path}.{its}" for part, its in _parts_of(block).items()}
        _require_added(module, name, path, list(parts.values()))
        path = parts[kind.part]
    place = Place(module.get_submodule(path), kind.io, path)
    submodule: Any = place.module
    if not isinstance(model, CausalLM):
        submodule = _envoy_at(model, path)
    return HookPoint(name, layer, kind.io, submodule, config.hidden_size, place)


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


def _parts_of(block: nn.Module) -> dict[str, str]:
    """The names of a block's attention and MLP; none if it has not both."""
    children = dict(block.named_children())
    for attention, mlp in _PARTS:
        if attention in children and mlp in children:
            return {"attention": attention, "mlp": mlp}
    return {}


def _kinds_of(block: nn.Module) -> list[str]:
    """The kinds of hook points that a block has."""
    parts = _parts_of(block)
    return [name for name, kind in HOOK_KINDS.items() if kind.part is None or kind.part in parts]


def _require_added(model: PreTrainedModel, name: str, block: str, parts: list[str]) -> None:
    """Raise a LanguageModelError unless a block adds its parts' outputs to its input, and only these.

    Arguments:
        block, parts: their paths.

    Some scale them (Granite), and some modules add the residual stream themselves (BLOOM).
    """
    outputs = [Place(model.get_submodule(path), "out", path) for path in (*parts, block)]
    places = [outputs[-1]._replace(io="in"), *outputs]
    ids_BL = torch.arange(_CHECKED_TOKENS)[None]
    read = read_places(CausalLM(model, None), places, ids_BL, torch.ones_like(ids_BL))
    *added, post_BLD = (x_BLD.double() for x_BLD in read)
    size_BLD = sum((x_BLD.abs() for x_BLD in added), post_BLD.abs())
    rounding_BLD = 4 * torch.finfo(read[0].dtype).eps * size_BLD
    if ((torch.stack(added).sum(0) - post_BLD).abs() > rounding_BLD).any():  # False where NaN
        raise LanguageModelError(
            f"{name} can't be read in a {type(model).__name__}: the outputs of {' and '.join(parts)} are not"
            f" what the block adds to the residual stream; use e.g. {name.rpartition('.')[0]}.hook_resid_post"
        )


# Reading and changing


def input_device(model: nn.Module) -> torch.device:
    """Where a language model takes its tokens. Weights that accelerate keeps elsewhere count as nowhere."""
    in_memory = (weight.device for weight in model.parameters() if not weight.is_meta)
    return next(in_memory, torch.device("cpu"))


Change = Callable[[Tensor], Tensor | None]
"""Takes activations, (B, L, D), and returns what the model continues with. None changes nothing."""


@contextmanager
def hooked(place: Place, change: Change) -> Iterator[None]:
    """Call `change` with the activations at a place, in every forward pass within the block.

    They are in the model's dtype and on its device. What runs later may change them in place. nnsight's trace
    reads what goes into a module before it is changed.
    """

    def at_output(_module: Any, _args: Any, output: Any) -> Any:
        if not isinstance(output, tuple):
            return change(output)
        changed = change(output[0])
        return None if changed is None else (changed, *output[1:])

    def at_input(_module: Any, args: Any, kwargs: Any) -> Any:
        changed = change(args[0] if args else kwargs["hidden_states"])
        if changed is None:
            return None
        return (
            ((changed, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": changed})
        )

    if place.io == "out":
        handle = place.module.register_forward_hook(at_output)
    else:
        handle = place.module.register_forward_pre_hook(at_input, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


class _AllRead(Exception):
    """Raised in a forward pass once all has been read, to end it."""


def run_to(model: nn.Module, places: Sequence[Place], **inputs: Any) -> list[Tensor]:
    """Run a language model up to the last of some places, where torch's hooks read it.

    Arguments:
        inputs: what the model is called with, on its device.

    Returns: the activations at each place, (B, L, D), in the model's dtype and on its device.

    Raises: LanguageModelError if the model does not run one of them.
    """
    found: dict[int, Tensor] = {}

    def keeping(number: int) -> Change:
        def keep(x_BLD: Tensor) -> None:
            if len(found) == len(places) - 1:
                found[number] = x_BLD
                raise _AllRead
            found[number] = x_BLD.clone()  # what runs after it may change it in place

        return keep

    with ExitStack() as hooks:
        for number, place in enumerate(places):
            hooks.enter_context(hooked(place, keeping(number)))
        try:
            model(**inputs, use_cache=False)
        except _AllRead:
            return [found[number] for number in range(len(places))]
    missed = next(place for number, place in enumerate(places) if number not in found)
    raise _not_run(model, [missed])


def _not_run(model: nn.Module, places: Sequence[Place]) -> LanguageModelError:
    paths = " or ".join(place.path for place in places)
    return LanguageModelError(
        f"a {type(model).__name__} does not run {paths}, so it can't be read there; use another"
        " hook point"
    )


@torch.no_grad()  # not inference_mode, whose tensors can't be trained on
def read_places(
    model: CausalLM, places: Sequence[Place], input_ids: Tensor, attention_mask: Tensor
) -> list[Tensor]:
    """The activations at several places, without gradients, from one forward pass up to the last of them.

    nnsight's trace reads them, or torch's hooks where nnsight doesn't wrap the model.

    Arguments:
        input_ids: int64, (B, L).
        attention_mask: (B, L), 0 at padding.

    Returns: the activations at each place, (B, L, D), in the model's dtype and on its device.

    Raises: LanguageModelError if the model does not run one of them.
    """
    device = input_device(model.module)
    tokens = {"input_ids": input_ids.to(device), "attention_mask": attention_mask.to(device)}
    if model.traced is None:
        return run_to(model.module, places, **tokens)
    return _read_by_trace(model.traced, model.module, places, tokens)


_MISSED = {"OutOfOrderError", "MissedProviderError"}
"""What nnsight raises where a module isn't run, or ran before."""


def _read_by_trace(
    lm: Any, module: nn.Module, places: Sequence[Place], tokens: dict[str, Tensor]
) -> list[Tensor]:
    """See `read_places`. Up to version 0.4, nnsight builds a graph of the block and then runs the model; later
    versions run the block beside the model, and it must ask in the model's order."""
    envoys = [_envoy_at(lm, place.path) for place in places]
    kind, inputs, options = type(lm), (BatchEncoding(tokens),), {}
    if kind is NNsight:  # it has no tokenizer to pad them again, which takes 3 ms
        inputs, options = (tokens["input_ids"],), {"attention_mask": tokens["attention_mask"]}
    found: dict[int, Any] = {}
    try:
        if _BUILDS_GRAPH:
            with lm.trace(*inputs, use_cache=False, **options) as tracer:
                for number, (envoy, place) in enumerate(zip(envoys, places, strict=True)):
                    value = envoy.output if place.io == "out" else envoy.inputs
                    found[number] = tracer.apply(_copied, value, place.io).save()
                tracer.apply(lambda *_: None, *found.values()).stop()
            return [found[number].value for number in range(len(places))]
        order = _in_running_order(module, places)
        with lm.trace(*inputs, use_cache=False, **options) as tracer:
            for number in order:
                envoy, io = envoys[number], places[number].io
                value = envoy.output if io == "out" else envoy.inputs
                found[number] = _copied(value, io)
            tracer.stop()
    except Exception as error:
        is_unset = _BUILDS_GRAPH and isinstance(error, ValueError)  # a saved value that never came
        if is_unset or _MISSED & {each.__name__ for each in type(error).__mro__}:
            raise _not_run(module, places) from error
        raise
    return [found[number] for number in range(len(places))]


def _copied(value: Any, io: Literal["in", "out"]) -> Tensor:
    """A copy of what a module takes or returns: what runs after it may change it in place."""
    if io == "out":
        return (value[0] if isinstance(value, tuple) else value).clone()
    args, kwargs = value
    return (args[0] if args else kwargs["hidden_states"]).clone()


def _envoy_at(lm: Any, path: str) -> Any:
    """nnsight's envoy of the module at a path."""
    for part in path.split("."):
        lm = lm[int(part)] if part.isdecimal() else getattr(lm, part)
    return lm


def _in_running_order(module: nn.Module, places: Sequence[Place]) -> list[int]:
    """The numbers of places in the order in which a forward pass comes to them: modules run as they lie in
    the model, and a module's output follows what is inside it."""
    when: dict[tuple[nn.Module, str], int] = {}

    def visit(one: nn.Module) -> None:
        when[one, "in"] = len(when)
        for child in one.children():
            visit(child)
        when[one, "out"] = len(when)

    visit(module)
    return sorted(range(len(places)), key=lambda n: when[places[n].module, places[n].io])


def read_residual(
    model: LanguageModel | CausalLM, hook: HookPoint, input_ids: Tensor, attention_mask: Tensor
) -> Tensor:
    """The activations at a hook point, (B, L, D), of the model it was found in; see `read_places`."""
    return read_places(unwrapped(model), [hook.place], input_ids, attention_mask)[0]
