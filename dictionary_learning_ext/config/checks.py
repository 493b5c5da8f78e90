"""Checks of the values of settings, and the words of their messages. Imports no torch."""

import difflib
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from ..errors import ConfigError

S = TypeVar("S", bound="Checked")

LARGEST_SEED = 2**32 - 1
_SCALE_LIMITS = (1e-18, 1e18)


class Range(NamedTuple):
    """The values that a number may have. It stands in a setting's annotation: `Annotated[int, Range(...)]`."""

    words: str
    """The range in words."""
    holds: Callable[[Any], bool]
    """Whether a number is in it."""
    instead: str = ""
    """What to do about a number outside of it."""


class Follows(ABC):
    """A default that isn't known before the run or other settings are: see sae.py."""

    @abstractmethod
    def value(self, sae: Any, steps: int) -> Any:
        """The default, given the other settings of an SAE and the steps of its run."""


Count = Annotated[int, Range("at least 1", lambda n: n >= 1)]
Natural = Annotated[int, Range("at least 0", lambda n: n >= 0)]
NotNegative = Annotated[float, Range("at least 0", lambda x: x >= 0)]
Positive = Annotated[float, Range("above 0", lambda x: x > 0)]
NormMultiple = Annotated[float, Range("above 1 (10 leaves out attention sinks)", lambda x: x > 1)]
Seed = Annotated[int, Range(f"0 to {LARGEST_SEED}", lambda n: 0 <= n <= LARGEST_SEED)]
SCALE = Range(
    "above 0 ({:g} to {:g})".format(*_SCALE_LIMITS),
    lambda x: _SCALE_LIMITS[0] <= x <= _SCALE_LIMITS[1],
)
"""Numbers whose square, and its inverse, are finite in float32."""


@dataclass(frozen=True, kw_only=True)
class Checked:
    """Base of settings: frozen dataclasses that check their values when they are made.

    Raises: ConfigError for a value of the wrong type, or a number that is not finite or outside of its field's `Range`.
    """

    def __post_init__(self):
        for name, (hint, ranges) in annotations_of(type(self)).items():
            given = getattr(self, name)
            if isinstance(given, Follows):
                continue
            require_type(name, given, hint)
            for legal in ranges:
                words = legal.words + (", or none" if NoneType in get_args(hint) else "")
                is_legal = given is None or legal.holds(given)
                require(is_legal, name, given, words, instead=legal.instead)
            if isinstance(given, list) and hint is not Any:  # as JSON has it
                object.__setattr__(self, name, tuple(given))
            elif type(given) is int and float in (hint, *get_args(hint)):
                object.__setattr__(self, name, float(given))


def changed(settings: S, **values: Any) -> S:
    """The settings with these values; the same object if it has them."""
    others = {n: v for n, v in values.items() if getattr(settings, n) != v}
    return replace(settings, **others) if others else settings


@cache
def annotations_of(cls: type) -> dict[str, tuple[Any, list[Range]]]:
    """The type of each field, and the ranges in its annotation."""
    whole, plain, found = get_type_hints(cls, include_extras=True), get_type_hints(cls), {}
    for name, hint in ((each.name, plain[each.name]) for each in fields(cls)):
        parts = (whole[name], *get_args(whole[name]))
        found[name] = hint, [each for p in parts for each in getattr(p, "__metadata__", ())]
    return found


def require(condition: bool, name: str, given: Any, expected: str, *, instead: str = "") -> None:
    """Raise a ConfigError unless a condition holds. It says what the setting was and what was expected."""
    if not condition:
        raise ConfigError(name=name, value=given, expected=expected, instead=instead)


def require_sizes(**sizes: Any) -> None:
    """Raise a ConfigError unless each size is a whole number of at least 1, and k at most dict_size."""
    for name, given in sizes.items():
        require_type(name, given, int)
        most = sizes["dict_size"] if name == "k" else given
        upper = f"between 1 and dict_size={most!r}"
        require(1 <= given <= most, name, given, upper if name == "k" else "at least 1")


def require_choice(name: str, given: Any, choices: Any) -> None:
    """Raise a ConfigError unless a value is one of `choices`: a Literal, or names."""
    legal = get_args(choices) or tuple(choices)
    expected = f"one of {', '.join(legal)}{did_you_mean(given, legal)}"
    require(given in legal, name, given, expected)


def did_you_mean(given: Any, names: Collection[str]) -> str:
    """The end of a message about a misspelt name: "; did you mean …?". Empty if no name is close to it."""
    close = close_names(str(given), names)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


def close_names(given: str, names: Collection[str]) -> list[str]:
    """The names that a misspelt name may mean.

    Names that differ only in case and dashes; or else at most three that begin with it; or else the two closest ones.
    """
    names = list(dict.fromkeys(names))
    if same := [name for name in names if _bare(name) == _bare(given)]:
        return same
    if begun := [name for name in names if given and name.startswith(given)]:
        return begun[:3]
    return difflib.get_close_matches(given, names, 2)


def _bare(name: str) -> str:
    return re.sub("[-_]", "", name).lower()


def require_type(name: str, given: Any, hint: Any) -> None:
    """Raise a ConfigError unless a value has the type of a field. Numbers must be finite."""
    if is_of_type(given, hint):
        return
    words = get_args(hint) if get_origin(hint) is Literal else ()
    expected = described(hint) + did_you_mean(given, words)
    raise ConfigError(name=name, value=given, expected=expected)


def is_of_type(value: Any, hint: Any) -> bool:
    """Whether a value has the type of a setting.

    A whole number counts as a float, and a list as a tuple, because JSON has no tuples.
    """
    origin, members = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, UnionType):
        return any(is_of_type(value, member) for member in members)
    if origin is Literal:
        return value in members
    if origin is tuple:
        is_list = isinstance(value, tuple | list)
        return is_list and all(is_of_type(part, members[0]) for part in value)
    if origin is dict:
        is_object = isinstance(value, dict)
        return is_object and all(is_of_type(part, members[1]) for part in value.values())
    if hint in (None, NoneType):
        return value is None
    if hint is float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and abs(value) <= sys.float_info.max  # false for NaN too
    return isinstance(value, hint) and (hint is not int or not isinstance(value, bool))


def described(hint: Any) -> str:
    """A type in words, e.g. "a whole number"."""
    members = get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(map(described, members))
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, members))}"
    if get_origin(hint) is tuple:
        return "a list of numbers"
    if hint in (None, NoneType):
        return "None"
    words = {
        **{int: "a whole number", float: "a finite number", bool: "true or false", str: "text"},
        **{dict: "a dict", Mapping: "a dict", Path: "a path"},
    }
    kind = get_origin(hint) or hint
    return words.get(kind, f"{kind.__name__}(…)")
