"""Hook points: find places in a language model by their names in TransformerLens, read and change them.

    hook = find_hook(model, "blocks.0.hook_resid_post")
    x_BLD = read_residual(model, hook, input_ids, attention_mask)
    with hooked(hook.place, lambda x_BLD: 2 * x_BLD):
        ...  # the model runs with other activations

nnsight's trace reads activations (`read_places`). Torch's hooks change them (`hooked`).

Shapes: B contexts, L tokens, D = the width of the place.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..config.hooks import HOOK_KINDS, HookKind, hook_name, no_such_hook, sides_of
from ..errors import CheckpointError, LanguageModelError
from .language_models import CausalLM, Pretrained, unwrapped

if TYPE_CHECKING:
    from nnsight import LanguageModel
    from transformers import PreTrainedModel

_CHECKED_TOKENS = 8
_BUILDS_GRAPH = tuple(map(int, version("nnsight").split(".")[:2])) < (0, 5)


_ATTENTIONS = ("self_attn", "attention", "attn", "self_attention", "linear_attn")
_MLPS = ("mlp", "feed_forward", "ffn", "block_sparse_moe")
_PARTS = (
    ("post_self_attn_layernorm", "post_mlp_layernorm"),  # GLM 4
    ("post_attention_layernorm", "post_feedforward_layernorm"),  # Gemma 2 and 3, OLMo 2
    *product(_ATTENTIONS, _MLPS),
)
"""Names of the two modules whose outputs a block adds to the residual stream: attention and MLP. The first pair
that a block has counts. Norms after the MLP come first, as TransformerLens's hook_mlp_out is after the norm."""


def block_of_output(hook: str) -> int | None:
    """The number of the block whose output is read at a hook point: -1 for the embedding, None if the activations
    are no block's output."""
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

    @property
    def sides(self) -> "tuple[Place, ...]":
        """The places that are read."""
        return (self,)

    def __str__(self) -> str:
        return f"the {self.io}put of {self.path}"


class PlacePair(NamedTuple):
    """What a transcoder reads, and what it reconstructs from it. Activations are of both, side by side: (B, L, 2D)."""

    source: Place
    target: Place

    @property
    def sides(self) -> tuple[Place, ...]:
        """The places that are read."""
        return tuple(self)

    @property
    def io(self) -> str:
        return "in_and_out"

    @property
    def path(self) -> str:
        return " to ".join(side.path for side in self)

    def __str__(self) -> str:
        return " or ".join(map(str, self))


AnyPlace = Place | PlacePair


def place_of(model: "PreTrainedModel", submodule: Any, io: Literal["in", "out"]) -> Place:
    """The place at one side of a module, which may be given as nnsight's envoy.

    Raises: LanguageModelError if the model has no such module.
    """
    module = submodule if isinstance(submodule, nn.Module) else getattr(submodule, "_module", None)
    for path, one in model.named_modules():
        if one is module:
            return Place(one, io, path)
    raise LanguageModelError(
        f"the place to read is a {type(submodule).__name__}: expected a module of this {type(model).__name__};"
        " use e.g. find_hook(model, 'blocks.0.hook_resid_post')"
    )


@dataclass(frozen=True)
class HookPoint:
    """A place in a language model.

    Attributes:
        name: TransformerLens's name, e.g. "blocks.0.hook_resid_post", or a `pair_name`.
        layer: the number of the block, from 0.
        io: "out" for the submodule's output, "in" for its input (resid_pre).
        submodule: nnsight's envoy of the block, or of a module in it. If nnsight doesn't wrap the model, the
            module itself.
        activation_dim: D, the width of the activations.
        place: the place in the torch module; None if there is no language model. Of a pair, both; the rest is of the first.
    """

    name: str
    layer: int
    io: Literal["in", "out"]
    submodule: Any
    activation_dim: int
    place: Any = None  # a `Place` or a `PlacePair`

    def require_width(self, sae: str | Path, activation_dim: int, model: str) -> None:
        """Raise a CheckpointError unless an SAE has the width of this hook point.

        Arguments:
            sae, model: names for the message.
        """
        if activation_dim != self.activation_dim:
            raise CheckpointError(
                f"{sae}: activation_dim={activation_dim}, but {self.name} of {model} is "
                f"{self.activation_dim} wide; give the language model, or the activations, that it was trained on"
            )


def hook_names(model: Pretrained) -> list[str]:
    """The names of all hook points of a language model. Raises LanguageModelError if its blocks can't be found."""
    return [
        f"blocks.{n}.{kind}"
        for n, block in enumerate(_blocks_of(model.empty()))
        for kind in _kinds_of(block)
    ]


def _blocks_of(model: Any) -> Any:
    """The decoder blocks of a transformers model."""
    return model.get_submodule(block_list_path(model, model.config.get_text_config()))


def require_hook(model: nn.Module, name: str) -> tuple[int, HookKind]:
    """The number of the block and the kind of a hook point of a transformers model, which needs no weights.

    Raises: LanguageModelError if there is none of this name; see `find_hook`.
    """
    blocks = _blocks_of(model)
    named = hook_name(name)
    there = _kinds_of(blocks[0])
    if named is not None and named.block < len(blocks):
        there = _kinds_of(blocks[named.block])
        if named.kind in there:
            return named.block, HOOK_KINDS[named.kind]
    raise no_such_hook(name, there, len(blocks))


def find_hook(model: "LanguageModel | CausalLM", name: str) -> HookPoint:
    """Find a hook point by its name in TransformerLens.

    For an attention's or MLP's output, a forward pass of a few tokens checks that the block adds exactly this
    to the residual stream.

    Arguments:
        model: a decoder whose list of blocks can be found, see `block_list_path`: GPT-NeoX, Llama, GPT-2, Gemma,
            Qwen and others.
        name: "blocks.N." and a name in HOOK_KINDS, or a `pair_name` of two.

    Raises:
        LanguageModelError: the model has no such hook point, its list of blocks can't be found, or it runs the second of
            a pair first.
    """
    module = unwrapped(model).module
    if len(sides_of(name)) > 1:
        source, target = (find_hook(model, side) for side in sides_of(name))
        pair = PlacePair(source.place, target.place)
        if _in_running_order(module, pair) != [0, 1]:
            raise LanguageModelError(
                f"a transcoder from {source.name} to {target.name}: the model computes the latter first; exchange hook and target"
            )
        return replace(source, name=name, place=pair)
    layer, kind = require_hook(module, name)
    config: Any = module.config.get_text_config()
    path = f"{block_list_path(module, config)}.{layer}"
    block = module.get_submodule(path)
    if kind.part == "mlp module":
        path = f"{path}.{_mlp_of(block)}"
    elif kind.part is not None:
        parts = {part: f"{path}.{its}" for part, its in _parts_of(block).items()}
        _require_sum(module, name, path, list(parts.values()))
        path = parts[kind.part]
    place = Place(module.get_submodule(path), kind.io, path)
    submodule: Any = place.module
    if not isinstance(model, CausalLM):
        submodule = _envoy_at(model, path)
    return HookPoint(name, layer, kind.io, submodule, config.hidden_size, place)


def block_list_path(model: nn.Module, config: Any) -> str:
    """The path of the list of decoder blocks in a transformers model.

    It is the only list of `num_hidden_layers` modules

    - that is not inside another such list, as experts are,
    - whose modules contain other modules, unlike norms,
    - whose modules have weights of size `hidden_size`, unlike most image encoders.

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
    """The names of a block's attention and MLP; empty unless it has both."""
    children = dict(block.named_children())
    for attention, mlp in _PARTS:
        if attention in children and mlp in children:
            return {"attention": attention, "mlp": mlp}
    return {}


def _mlp_of(block: nn.Module) -> str | None:
    """The name of a block's MLP, whatever follows it; None if it has none."""
    return next((name for name, _ in block.named_children() if name in _MLPS), None)


def _kinds_of(block: nn.Module) -> list[str]:
    """The kinds of hook points that a block has."""
    parts = _parts_of(block) | ({"mlp module": ""} if _mlp_of(block) else {})
    return [name for name, kind in HOOK_KINDS.items() if kind.part is None or kind.part in parts]


def _require_sum(model: "PreTrainedModel", name: str, block: str, parts: list[str]) -> None:
    """Raise a LanguageModelError unless a block's output is the sum of its input and its parts' outputs.

    Granite scales the outputs, and BLOOM's modules add the residual stream themselves.

    Arguments:
        block, parts: paths of the modules.
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
    """The device for a language model's tokens: that of its first weight that accelerate doesn't keep elsewhere."""
    in_memory = (weight.device for weight in model.parameters() if not weight.is_meta)
    return next(in_memory, torch.device("cpu"))


Change = Callable[[Tensor], Tensor | None]
"""Takes activations, (B, L, D), and returns those with which the model continues, or None for no change."""


@contextmanager
def hooked(place: AnyPlace, change: Change) -> Iterator[None]:
    """Call `change` with the activations at a place in every forward pass inside the `with` block.

    They are in the model's dtype and on its device, and modules that run later may change them in place. nnsight's
    trace reads a module's input before it is changed. Of a pair, `change` gets both sides, and returns the second.
    """
    if isinstance(place, PlacePair):
        source: list[Tensor] = []

        def keep(x_BLD: Tensor) -> None:
            source[:] = [x_BLD.clone()]

        def change_target(y_BLD: Tensor) -> Tensor | None:
            return change(torch.cat([source[0].to(y_BLD.device), y_BLD], -1))

        with hooked(place.source, keep), hooked(place.target, change_target):
            yield
        return

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
    """Ends a forward pass when all places have been read."""


def read_by_hooks(
    model: nn.Module, places: Sequence[Place], inputs: dict[str, Tensor]
) -> list[Tensor]:
    """The activations at several places, as `read_places`, with gradients.

    Arguments:
        inputs: what the model is called with, on its device: input_ids and attention_mask, or inputs_embeds.
    """
    found: dict[int, Tensor] = {}

    def keeping(number: int) -> Change:
        def keep(x_BLD: Tensor) -> None:
            if len(found) == len(places) - 1:
                found[number] = x_BLD
                raise _AllRead
            found[number] = x_BLD.clone()  # later modules may change it in place

        return keep

    with ExitStack() as hooks:
        for number, place in enumerate(places):
            hooks.enter_context(hooked(place, keeping(number)))
        with suppress(_AllRead):
            model(**inputs, use_cache=False)
    return [found[number] for number in range(len(places))]


@torch.no_grad()  # not inference_mode, whose tensors can't be trained on
def read_places(
    model: CausalLM, places: Sequence[Place], input_ids: Tensor, attention_mask: Tensor
) -> list[Tensor]:
    """Read the activations at several places in one forward pass, which ends at the last of them. No gradients.

    nnsight's trace reads them, or torch's hooks if nnsight doesn't wrap the model.

    Arguments:
        input_ids: int64, (B, L).
        attention_mask: (B, L), 0 at padding.

    Returns: the activations at each place, (B, L, D), in the model's dtype and on its device.
    """
    device = input_device(model.module)
    tokens = {"input_ids": input_ids.to(device), "attention_mask": attention_mask.to(device)}
    if model.traced is None:
        return read_by_hooks(model.module, places, tokens)
    return _read_by_trace(model.traced, model.module, places, tokens)


def _read_by_trace(
    lm: Any, module: nn.Module, places: Sequence[Place], tokens: dict[str, Tensor]
) -> list[Tensor]:
    """See `read_places`. Up to version 0.4, nnsight first builds a graph from the `with` block, and then runs the model.
    Later versions run the block while the model runs, so the block must ask for places in the model's order."""
    from nnsight import NNsight
    from transformers import BatchEncoding

    envoys = [_envoy_at(lm, place.path) for place in places]
    kind, inputs, options = type(lm), (BatchEncoding(tokens),), {}
    if kind is NNsight:  # it has no tokenizer, which would pad the tokens again and take 3 ms
        inputs, options = (tokens["input_ids"],), {"attention_mask": tokens["attention_mask"]}
    found: dict[int, Any] = {}
    order = _in_running_order(module, places)
    with lm.trace(*inputs, use_cache=False, **options) as tracer:
        for number in order:
            envoy, io = envoys[number], places[number].io
            value = envoy.output if io == "out" else envoy.inputs
            if _BUILDS_GRAPH:
                found[number] = tracer.apply(_copy_of, value, io).save()
            else:
                found[number] = _copy_of(value, io)
        if _BUILDS_GRAPH:
            tracer.apply(lambda *_: None, *found.values()).stop()
        else:
            tracer.stop()
    read = (found[number] for number in range(len(places)))
    return [each.value for each in read] if _BUILDS_GRAPH else list(read)


def _copy_of(value: Any, io: Literal["in", "out"]) -> Tensor:
    """A copy of a module's input or output, as later modules may change it in place."""
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
    """The indices of places in the order of a forward pass, in which modules run as they are listed in the model."""
    when: dict[tuple[nn.Module, str], int] = {}

    def visit(one: nn.Module) -> None:
        when[one, "in"] = len(when)
        for child in one.children():
            visit(child)
        when[one, "out"] = len(when)

    visit(module)
    return sorted(range(len(places)), key=lambda n: when[places[n].module, places[n].io])


def read_residual(
    model: "LanguageModel | CausalLM", hook: HookPoint, input_ids: Tensor, attention_mask: Tensor
) -> Tensor:
    """The activations at a hook point, (B, L, D), of the model it was found in; see `read_places`. Of a pair (B, L, 2D)."""
    read = read_places(unwrapped(model), hook.place.sides, input_ids, attention_mask)
    return torch.cat(read, -1)
