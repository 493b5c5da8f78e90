"""Mistakes in the flags that were typed, each in one line, before anything is parsed."""

from collections.abc import Collection, Iterator
from typing import Any, Literal, get_args, get_origin

from ..config.checks import described, likely, meant
from ..errors import UserError
from .flag_types import choices, flag_types, members, takes_many, takes_none, typed_fields


def require_legal(
    flags: type, args: list[str], program: str, suggested: Collection[str] = ()
) -> None:
    """Raise a UserError for an unknown flag, a value of the wrong type or a missing argument.

    Arguments:
        suggested: other flags that may be meant, already taken out of `args`.
    """
    types, see = flag_types(flags), f"(see `{program} --help`)"
    words = [each for each in typed_fields(flags) if each.is_word]
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
            expected = _expected(types[name]) + meant(text, choices(types[name]))
            raise UserError(f"--{name} {text}: expected {expected} {see}")
    if unknown:
        raise UserError(f"no such flag: {', '.join(unknown)} {see}")
    needed = [each.metavar for each in words if each.is_needed]
    if given_words < len(needed):
        raise UserError(f"expected {' '.join(needed)} {see}")
    for each in typed_fields(flags):
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
    if hint is None or takes_many(hint):
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


def _is_legal(text: str, hint: Any) -> bool:
    """Whether a word can be read as a type."""
    if text == "None" and takes_none(hint):
        return True
    for each in members(hint):
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
    (only,) = members(hint)
    if get_origin(only) is tuple and get_args(only)[0] is float:
        return "numbers separated by spaces, e.g. 0.25 0.75"
    if only is bool:
        return "True or False"
    if only in (int, float):
        return described(only) + (", or none" if takes_none(hint) else "")
    return described(only) if get_origin(only) is Literal else "a value"
