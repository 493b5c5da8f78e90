"""A group of options: defaults, help texts and checks in one dataclass. Imports no torch."""

import functools
from collections.abc import Callable
from dataclasses import fields
from inspect import Parameter, signature
from typing import Any, NamedTuple, get_type_hints

from ..errors import ConfigError
from .checks import likely, require_type

_OTHER_NAMES = {
    "noise_to_signal": (
        "sigma",
        "`vsae train` makes sigma of it; here give sigma = sqrt(noise_to_signal E||x||^2 / k), or "
        "take the arguments from trainer_options(...)",
    ),
    "kl_coeff": ("beta", "it is called 'beta'"),
    "kl_anneal_steps": ("kl_warmup_steps", "it is called 'kl_warmup_steps'"),
}
"""By what an option of ours is called elsewhere: its name, and what to type."""


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
    def taken(cls, arguments: dict[str, Any]) -> Any:
        """These options out of keyword arguments, from which they are removed.

        Raises: ConfigError for a value out of range.
        """
        names = [option.name for option in fields(cls)]  # pyright: ignore[reportArgumentType]
        return cls(**{name: arguments.pop(name) for name in names if name in arguments})


def takes(*groups: type[Options], beside: Callable | None = None) -> Callable[[Any], Any]:
    """Name the options of some groups, and their defaults, in a method's signature.

    For one that takes them as its last parameter, **options. A name that is not in the signature
    raises a ConfigError.

    Arguments:
        beside: a function whose arguments it takes too.
    """

    def named(function: Any) -> Any:
        *own, rest = signature(function).parameters.values()
        added = [
            Parameter(option.name, Parameter.KEYWORD_ONLY, default=option.default)
            for group in groups
            for option in fields(group)  # pyright: ignore[reportArgumentType]
        ]
        known = {parameter.name for parameter in (*own, *added)}
        inherited = () if beside is None else signature(beside).parameters.values()
        added += [
            parameter.replace(kind=Parameter.KEYWORD_ONLY)
            for parameter in inherited
            if parameter.name not in known
        ]
        whole = signature(function).replace(parameters=[*own, *added, rest])

        @functools.wraps(function)
        def checked(self: Any, *args: Any, **kwargs: Any) -> Any:
            known = [name for name in whole.parameters if name not in ("self", rest.name)]
            for name in kwargs:
                if name not in known:
                    instead = _instead_of(name, known)
                    raise ConfigError(f"{type(self).__name__} has no option {name!r}; {instead}")
            return function(self, *args, **kwargs)

        checked.__signature__ = whole  # pyright: ignore[reportAttributeAccessIssue]
        return checked

    return named


def _instead_of(name: str, known: list[str]) -> str:
    """What to type for an option that there is not."""
    ours, advice = _OTHER_NAMES.get(name, ("", ""))
    if ours in known:
        return advice
    if close := likely(name, known):
        return f"did you mean {' or '.join(map(repr, close))}?"
    return f"expected one of {', '.join(known)}"


def names_of(options: type[Options]) -> tuple[str, ...]:
    """The names in a group of options. dtype is left out: it is the run's."""
    return tuple(f.name for f in fields(options) if f.name != "dtype")  # pyright: ignore
