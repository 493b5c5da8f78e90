"""Checks of values that a user gave, with one form of message: NAME=VALUE: expected WHAT."""

from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from ..errors import ConfigError


def require(condition: bool, name: str, given: Any, expected: str) -> None:
    """Raise a ConfigError that says what `name` was and what it should have been."""
    if not condition:
        raise ConfigError(f"{name}={given!r}: expected {expected}")


def require_choice(name: str, given: Any, choices: Any) -> None:
    """Raise a ConfigError unless `given` is a member of the Literal `choices`."""
    require(given in get_args(choices), name, given, "one of " + ", ".join(get_args(choices)))


def require_type(name: str, given: Any, hint: Any) -> None:
    """Raise a ConfigError unless a value read from a file has a field's type."""
    require(_is_of_type(given, hint), name, given, _described(hint))


def _is_of_type(value: Any, hint: Any) -> bool:
    """A whole number passes as a float."""
    origin, members = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_is_of_type(value, member) for member in members)
    if origin is Literal:
        return value in members
    if origin is tuple:
        return isinstance(value, tuple) and all(_is_of_type(part, members[0]) for part in value)
    if hint in (None, NoneType):
        return value is None
    if hint in (int, float):
        kinds = (int,) if hint is int else (int, float)
        return isinstance(value, kinds) and not isinstance(value, bool)
    return isinstance(value, hint)


def _described(hint: Any) -> str:
    """A field's type in words."""
    members = get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(map(_described, members))
    if get_origin(hint) is Literal:
        return f"one of {', '.join(members)}"
    if get_origin(hint) is tuple:
        return "a list of numbers"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return words.get(hint, "None")
