"""Names of hook points, as in TransformerLens. Imports no torch."""

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from ..errors import LanguageModelError

_NAME = re.compile(r"blocks\.(\d+)\.((?:mlp\.)?hook_\w+)")
_TO = "_to_"
RESID_PRE, RESID_POST = "hook_resid_pre", "hook_resid_post"


class HookName(NamedTuple):
    """A hook point's name, e.g. blocks.2.hook_resid_post."""

    block: int
    kind: str
    """E.g. hook_resid_post."""

    def __str__(self) -> str:
        return f"blocks.{self.block}.{self.kind}"


def hook_name(text: str) -> HookName | None:
    """The parts of a hook point's name; None for other text. The kind isn't checked."""
    match = _NAME.fullmatch(text)
    return match and HookName(int(match[1]), match[2])


def pair_name(hook: str, target: str) -> str:
    """The name of what a transcoder reads at one hook point and reconstructs at another, e.g. A_to_B. It can name a folder."""
    return f"{hook}{_TO}{target}"


def sides_of(name: str) -> list[str]:
    """The hook points in a `pair_name`, or the only one."""
    sides = name.split(_TO)
    return sides if any(map(hook_name, sides)) else [name]  # own activations may have any name


class HookKind(NamedTuple):
    """A kind of hook point that blocks have."""

    io: Literal["in", "out"]
    """The side of the module."""
    part: Literal["attention", "mlp", "mlp module"] | None = None
    """The module whose output is the attention's or the MLP's contribution to the residual stream, or the MLP itself, after
    which a norm may follow. None: the block itself."""
    blocks_back: int | None = None
    """1 if the activations are the output of the block before, 0 if of this block, None if of no block."""


HOOK_KINDS = {
    "hook_resid_post": HookKind("out", blocks_back=0),
    "hook_resid_pre": HookKind("in", blocks_back=1),
    "hook_attn_out": HookKind("out", "attention"),
    "hook_mlp_out": HookKind("out", "mlp"),
    "mlp.hook_in": HookKind("in", "mlp module"),
}
"""All kinds, by TransformerLens's name after `blocks.N.`; the last by circuit-tracer's."""


def no_such_hook(name: str, kinds: Sequence[str], n_blocks: int | None) -> LanguageModelError:
    """The error for a hook point that a language model with these kinds, and so many blocks (None: not known), lacks."""
    number = re.search(r"(?:^|\.)(\d+)", name)  # also of model.layers.2
    near = int(number[1]) if number else 0
    if n_blocks is not None:
        near = min(near, n_blocks - 1)
    blocks = "N" if n_blocks is None else f"{{0..{n_blocks - 1}}}"
    same = [kind for kind in kinds if name.endswith(kind.removeprefix("hook_"))]
    alike = [
        kind for kind in kinds if kind.removeprefix("hook_")[:3] in name
    ]  # att of self_attn, or mlp
    kind = [*same, *alike, *kinds][0]
    if name.endswith("hook_mlp_in"):
        return LanguageModelError(
            f"{name} is TransformerLens's name of the MLP's input before its norm, which can't be read: use "
            f"blocks.{near}.mlp.hook_in, which the MLP reads after the norm"
        )
    return LanguageModelError(
        f"there is no hook point {name!r} in this model: expected blocks.{blocks}.KIND, where KIND is "
        f"{', '.join(kinds[:-1])} or {kinds[-1]}; use e.g. blocks.{near}.{kind}"
    )
