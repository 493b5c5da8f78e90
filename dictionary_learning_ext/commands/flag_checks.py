"""Mistakes in the flags that were typed, each in one line, before anything is parsed."""

from collections.abc import Collection, Iterator
from dataclasses import MISSING, fields, is_dataclass
from itertools import pairwise
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import tyro

from ..config.checks import described, likely, meant
from ..errors import UserError

_NONE = "none"
_WITH_ITS_OWN_NONE = ("activations", "save-every", "save-steps")
"""Flags of text for which none is a value, and says something else than leaving them out."""
_POSITIONAL = get_args(tyro.conf.Positional[int])[1]
_HIDDEN = get_args(tyro.conf.Suppress[int])[1]


class _Typed(NamedTuple):
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
    return {each.name: each.hint for each in _typed_fields(flags) if not each.is_word}


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
    if name in _WITH_ITS_OWN_NONE or _NONE in _choices(hint):
        return _NONE
    return "None" if _takes_none(hint) else typed


def require_legal(
    flags: type, args: list[str], program: str, suggested: Collection[str] = ()
) -> None:
    """Raise a UserError for an unknown flag, a value of the wrong type or a missing argument.

    Arguments:
        suggested: other flags that may be meant, already taken out of `args`.
    """
    types, see = flag_types(flags), f"(see `{program} --help`)"
    words = [each for each in _typed_fields(flags) if each.is_word]
    unknown, given_words, given = [], 0, set()
    for flag, values in _split(args, types, bool(words)):
        name = flag.replace("_", "-")
        if flag in ("-h", "help"):
            return
        given.add(name)
        if not flag:
            given_words += 1
        elif name not in types:
            close = " or ".join(f"--{each}" for each in likely(name, [*types, *suggested]))
            unknown.append(f"--{flag}" + (f" (did you mean {close}?)" if close else ""))
        elif not values and types[name] not in (bool, bool | None):
            raise UserError(f"--{name}: expected {_expected(types[name])} after it {see}")
        elif not all(_is_legal(value, types[name]) for value in values):
            text = " ".join(values)
            expected = _expected(types[name]) + meant(text, _choices(types[name]))
            raise UserError(f"--{name} {text}: expected {expected} {see}")
    if unknown:
        raise UserError(f"no such flag: {', '.join(unknown)} {see}")
    needed = [each.metavar for each in words if each.is_needed]
    if given_words < len(needed):
        raise UserError(f"expected {' '.join(needed)} {see}")
    for each in _typed_fields(flags):
        if each.is_needed and not each.is_word and each.name not in given:
            raise UserError(f"expected --{each.name}, {_expected(each.hint)} {see}")


def _split(
    args: list[str], types: dict[str, Any], has_words: bool
) -> Iterator[tuple[str, list[str]]]:
    """Each flag, without its dashes, and its values; "" for a word that is no flag's value.

    Raises: UserError for such a word, if the command takes none.
    """
    rest = list(args)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            if _is_flag(word) and word != "-h":
                raise UserError(f"{word}: flags start with two dashes; did you mean -{word}?")
            if word != "-h" and not has_words:
                raise UserError(f"{word!r}: expected a flag, which starts with --, e.g. --{word}")
            yield word if word == "-h" else "", [word]
            continue
        flag, is_one_word, value = word[2:].partition("=")
        hint = types.get(flag.replace("_", "-"))
        n = number_of_values(hint, rest, has_words)
        values, rest = ([value], rest) if is_one_word else (rest[:n], rest[n:])
        yield flag, values


def number_of_values(hint: Any, rest: list[str], has_words: bool) -> int:
    """How many of the words after a flag of a type (None: not known) are its values.

    Arguments:
        has_words: whether the command also takes words that are no flag's value.
    """
    n = next((i for i, word in enumerate(rest) if _is_flag(word)), len(rest))
    if hint is None or _takes_many(hint):
        return n
    is_boolean = hint in (bool, bool | None)  # it may stand alone, before a folder
    if n and is_boolean and has_words and not _is_legal(rest[0], hint):
        return 0
    return min(n, 1)


def _is_flag(word: str) -> bool:
    """Also -k, which is meant as one; -3 and -inf are numbers."""
    return word.startswith("--") or (
        word[:1] == "-" and word != "-" and not _is_number(word, float)
    )


def _typed_fields(flags: type) -> Iterator[_Typed]:
    """Every field that can be typed, nested ones too."""
    hints = get_type_hints(flags, include_extras=True)
    for field in fields(flags):
        hint, marks = hints[field.name], []
        if get_origin(hint) is Annotated:
            hint, *marks = get_args(hint)
        if is_dataclass(hint):
            assert isinstance(hint, type)
            yield from _typed_fields(hint)
        elif _HIDDEN not in marks:
            metavar = next((m.metavar for m in marks if getattr(m, "metavar", None)), field.name)
            has_default = field.default is not MISSING or field.default_factory is not MISSING
            is_needed = not has_default and not _takes_many(hint)
            name = field.name.replace("_", "-")
            yield _Typed(name, hint, metavar, _POSITIONAL in marks, is_needed)


def _members(hint: Any) -> list[Any]:
    """The types of a union, without None."""
    is_union = get_origin(hint) in (Union, UnionType)
    return [each for each in (get_args(hint) if is_union else (hint,)) if each is not NoneType]


def _takes_none(hint: Any) -> bool:
    return NoneType in get_args(hint)


def _choices(hint: Any) -> list[str]:
    """The words that a type allows; none for one that allows others too."""
    return [
        str(word)
        for each in _members(hint)
        if get_origin(each) is Literal
        for word in get_args(each)
    ]


def _takes_many(hint: Any) -> bool:
    return any(get_origin(each) is tuple for each in _members(hint))


def _is_legal(text: str, hint: Any) -> bool:
    """Whether a word can be read as a type."""
    if text == "None" and _takes_none(hint):
        return True
    for each in _members(hint):
        if get_origin(each) is tuple:
            each = get_args(each)[0]
        if get_origin(each) is Literal:
            legal = text in map(str, get_args(each))
        elif each is bool:
            legal = text in ("True", "False")
        elif each in (int, float):
            legal = _is_number(text, each)
        else:
            legal = True
        if legal:
            return True
    return False


def _is_number(text: str, kind: type) -> bool:
    try:
        kind(text)
    except ValueError:
        return False
    return True


def _expected(hint: Any) -> str:
    (only,) = _members(hint)
    if get_origin(only) is tuple and get_args(only)[0] is float:
        return "numbers separated by spaces, e.g. 0.25 0.75"
    if only is bool:
        return "True or False"
    if only in (int, float):
        return described(only) + (", or none" if _takes_none(hint) else "")
    return described(only) if get_origin(only) is Literal else "a value"
