"""What may be typed for a flag, as tyro reads it: none, and a boolean flag alone."""

from itertools import pairwise
from typing import Any

from .flag_types import choices, flag_types, takes_none

_NONE = "none"
_WITH_ITS_OWN_NONE = ("activations", "save-every", "save-steps")
"""Flags of text for which none is a value, and says something else than leaving them out."""


def with_nones(flags: type, args: list[str]) -> list[str]:
    """What was typed with the word none, in any case, as each flag takes it."""
    types, spelled = flag_types(flags), []
    for before, arg in pairwise(["", *args]):
        if arg.startswith("--"):
            flag, is_one_word, value = arg.partition("=")
            name, begin = flag, flag + is_one_word
        else:
            name, begin, value = before, "", arg
        if name.startswith("--") and value.lower() == _NONE:
            name = name[2:].replace("_", "-")
            arg = begin + _none_of(name, types.get(name), value)
        spelled.append(arg)
    return spelled


def _none_of(name: str, hint: Any, typed: str) -> str:
    """How a flag takes none; as it was typed if it doesn't."""
    if name in _WITH_ITS_OWN_NONE or _NONE in choices(hint):
        return _NONE
    return "None" if takes_none(hint) else typed


def with_booleans(flags: type, args: list[str]) -> list[str]:
    """What was typed, with True after each boolean flag that stands alone."""
    types, spelled = flag_types(flags), []
    for arg, following in pairwise([*args, ""]):
        spelled.append(arg)
        is_boolean = types.get(arg[2:].replace("_", "-")) in (bool, bool | None)
        if arg.startswith("--") and is_boolean and following not in ("True", "False", "None"):
            spelled.append("True")
    return spelled
