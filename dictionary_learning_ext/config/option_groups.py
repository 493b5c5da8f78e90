"""A group of options: defaults, help texts and checks in one dataclass. Imports no torch."""

import ast
import inspect
from collections.abc import Callable
from dataclasses import fields
from inspect import Parameter, signature
from itertools import pairwise
from typing import Any, NamedTuple, get_type_hints

from .checks import require_type


class RunSize(NamedTuple):
    """What a default may depend on."""

    steps: int
    tokens: int
    dict_size: int


class Options:
    """Base of a group of options: a frozen dataclass with a docstring under each field.

    Raises: ConfigError for a value of another type, or a number that is not finite.
    """

    def __post_init__(self):
        for name, hint in get_type_hints(type(self)).items():
            require_type(name, getattr(self, name), hint)

    def require_fit(self, steps: int) -> None:
        """Raise a ConfigError if a schedule is longer than a run of `steps`."""

    @classmethod
    def run_defaults(cls, size: RunSize) -> dict[str, Any]:
        """The defaults of a run from the command line, where these are not the class's own."""
        return {}

    @classmethod
    def taken(cls, arguments: dict[str, Any], *, all_of: bool = False) -> Any:
        """These options out of keyword arguments, from which they are removed.

        Raises: ConfigError for a value out of range; with `all_of`, TypeError if any are left.
        """
        names = [option.name for option in fields(cls)]  # pyright: ignore[reportArgumentType]
        options = cls(**{name: arguments.pop(name) for name in names if name in arguments})
        if all_of and arguments:
            unknown = ", ".join(arguments)
            raise TypeError(f"unknown arguments {unknown}; expected {', '.join(names)}")
        return options

    @classmethod
    def help_texts(cls) -> dict[str, str]:
        """The docstring under each field of the class and its bases."""
        texts: dict[str, str] = {}
        for owner in reversed(cls.__mro__[:-1]):
            (tree,) = ast.parse(inspect.getsource(owner)).body
            assert isinstance(tree, ast.ClassDef)
            for statement, below in pairwise(tree.body):
                match statement, below:
                    case (
                        ast.AnnAssign(target=ast.Name(id=name)),
                        ast.Expr(value=ast.Constant(value=str(text))),
                    ):
                        texts[name] = " ".join(text.split())
        return texts


def takes(*groups: type[Options]) -> Callable[[Any], Any]:
    """Name the options of some groups, and their defaults, in a function's signature.

    For one that takes them as its last parameter, **options.
    """

    def named(function: Any) -> Any:
        whole = signature(function)
        options = [
            Parameter(option.name, Parameter.KEYWORD_ONLY, default=option.default)
            for group in groups
            for option in fields(group)  # pyright: ignore[reportArgumentType]
        ]
        *own, rest = whole.parameters.values()
        function.__signature__ = whole.replace(parameters=[*own, *options, rest])
        return function

    return named


def names_of(options: type[Options]) -> tuple[str, ...]:
    """The names in a group of options. dtype is left out: it is the run's."""
    return tuple(f.name for f in fields(options) if f.name != "dtype")  # pyright: ignore
