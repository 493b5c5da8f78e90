"""The flags of a command: what its dataclass lets be typed, and the type of each."""

from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import tyro

_POSITIONAL = get_args(tyro.conf.Positional[int])[1]
_HIDDEN = get_args(tyro.conf.Suppress[int])[1]


class TypedField(NamedTuple):
    """A field that can be typed."""

    name: str
    """As it stands after the dashes."""
    hint: Any
    metavar: str
    is_word: bool
    """Whether it is typed without dashes."""
    is_needed: bool


def flag_types(flags: type) -> dict[str, Any]:
    """The type of each flag, by its name as it is typed after the dashes."""
    return {each.name: each.hint for each in typed_fields(flags) if not each.is_word}


def typed_fields(flags: type) -> Iterator[TypedField]:
    """Every field that can be typed, nested ones too."""
    hints = get_type_hints(flags, include_extras=True)
    for field in fields(flags):
        hint, marks = hints[field.name], []
        if get_origin(hint) is Annotated:
            hint, *marks = get_args(hint)
        if is_dataclass(hint):
            assert isinstance(hint, type)
            yield from typed_fields(hint)
        elif _HIDDEN not in marks:
            metavar = next((m.metavar for m in marks if getattr(m, "metavar", None)), field.name)
            has_default = field.default is not MISSING or field.default_factory is not MISSING
            is_needed = not has_default and not takes_many(hint)
            name = field.name.replace("_", "-")
            yield TypedField(name, hint, metavar, _POSITIONAL in marks, is_needed)


def members(hint: Any) -> list[Any]:
    """The types of a union, without None."""
    is_union = get_origin(hint) in (Union, UnionType)
    return [each for each in (get_args(hint) if is_union else (hint,)) if each is not NoneType]


def takes_none(hint: Any) -> bool:
    return NoneType in get_args(hint)


def choices(hint: Any) -> list[str]:
    """The words that a type allows; none for one that allows others too."""
    return [
        str(word)
        for each in members(hint)
        if get_origin(each) is Literal
        for word in get_args(each)
    ]


def takes_many(hint: Any) -> bool:
    return any(get_origin(each) is tuple for each in members(hint))
