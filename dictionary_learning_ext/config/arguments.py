"""An SAE's options as arguments of the constructors that take them as **options. Imports no torch.

help() and completion show them by `says_options_of`. Type checkers read trainers/arguments.py, which is written from the same.
"""

from collections.abc import Callable, Mapping
from dataclasses import fields
from inspect import Parameter, signature
from typing import Any, TypeVar, get_type_hints

from .checks import Checked, Follows

Constructor = TypeVar("Constructor", bound=Callable[..., None])
_NAMED = ("architecture", "init_from", "dict_size", "k", "lr", "seed", "start")
"""What the constructors' own signatures name, or don't take."""


def arguments_of(cls: type[Checked]) -> dict[str, tuple[Any, Any]]:
    """The type and the default of each option; `...` for a default that follows from others."""
    hints, found = get_type_hints(cls), {}
    for each in fields(cls):
        if each.name not in _NAMED:
            default = ... if isinstance(each.default, Follows) else each.default
            found[each.name] = hints[each.name], default
    return found


def says_options_of(
    cls: type[Checked], place: Mapping[str, Parameter] | None = None
) -> Callable[[Constructor], Constructor]:
    """Give a constructor the signature that has the options of `cls` in place of **options, and before them those of `place`
    that it doesn't name."""

    def with_signature(constructor: Constructor) -> Constructor:
        plain = signature(constructor)
        named = {n: p for n, p in plain.parameters.items() if p.kind is not Parameter.VAR_KEYWORD}
        named |= {n: p for n, p in (place or {}).items() if n not in named}
        options = [
            Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=hint)
            for name, (hint, default) in arguments_of(cls).items()
        ]
        told: Any = constructor
        told.__signature__ = plain.replace(parameters=[*named.values(), *options])
        return constructor

    return with_signature
