"""Names of hook points, as in TransformerLens. Imports no torch."""

import re
from typing import NamedTuple

_NAME = re.compile(r"blocks\.(\d+)\.(hook_\w+)")
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
