"""The commands of `vsae`, and the parser of their flags, which are the fields of a dataclass.

The words that were typed are split into flags and values by the types of the fields, and converted. What a flag's default is,
or whether there is such a flag, depends on other flags here (--preset, --architecture): a command's starting point has the
defaults, and the values that were typed are put into it. `argparse` also takes the folder after a lone boolean for its value,
and -1e-3 for a flag.
"""

import ast
import contextlib
import functools
import inspect
import math
import os
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    Any,
    Generic,
    Literal,
    NamedTuple,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from ..config.checks import Follows, close_names, described, did_you_mean
from ..config.run import NONE
from ..errors import FlagError, UserError, as_flag, in_shell

F = TypeVar("F")


def positional(metavar: str) -> dict[str, Any]:
    """Metadata of a field that is typed without a flag, e.g. a folder."""
    return {"positional": True, "metavar": metavar}


FOLDER = "FOLDER"
FOLDERS = "FOLDER [FOLDER ...]"
HIDDEN = {"hidden": True}
"""Metadata of a field that can't be typed."""
OTHERS = "*"
"""Under a heading of the help: all flags that stand under no other."""
_WITH_ITS_OWN_NONE = ("activations", "save_every", "save_steps")
"""Text flags whose value may be the word none, which is not the same as leaving them out."""
_BOOLEANS = {"true": True, "false": False}
_HELP = {"-h", "--help", "--help-all"}
_INSTEAD_OF = {
    "use --batch-size {}": ("train_batch_size_tokens",),
    "use --beta {}": ("kl_coeff",),
    "use --ctx-len {}": ("context_size",),
    "use --data {}": ("dataset", "dataset_path"),
    "use --dict-size {}": ("d_sae", "dictionary_widths", "num_latents"),
    "use --dict-size F, where F = {} x the width of the activations": ("expansion_factor",),
    "use --hook {}": ("hook_name",),
    "use --hook blocks.{}.hook_resid_post": ("hook_layer", "layer", "layers"),
    "use --hook blocks.N.hook_resid_post": ("hookpoints", "submodule_name"),
    "use --l1-penalty {} --architecture relu": ("l1_coefficient",),
    "use --lm-batch-size {}": ("store_batch_size_prompts",),
    "use --lr {}": ("learning_rate", "learning_rates"),
    "use --model {}": ("lm_name", "model_name"),
    "use --n-ctxs {}": ("n_batches_in_buffer",),
    "use --save-dir {}": ("checkpoint_path", "output_path"),
    "use --steps N: a step reads --batch-size tokens": ("num_tokens", "training_tokens"),
    "use --wandb online": ("log_to_wandb", "use_wandb"),
    "use --warmup-steps {}": ("lr_warm_up_steps",),
    "the width follows from the model and the hook point": ("activation_dim", "d_in"),
}
"""What to type in the place of flags of upstream, SAELens and sparsify. {}: the value that was typed."""


@dataclass(frozen=True)
class Command(Generic[F]):
    """A subcommand of `vsae`.

    Attributes:
        name: the subcommand's name.
        flags: a dataclass. Its docstring says what the command does, and those of its fields are the
            help. The fields of a nested dataclass are flags too. Metadata of a field: "help" replaces the
            docstring, "metavar", and see `positional` and `HIDDEN`. Hidden fields of these names are filled
            in: `given` (the values of the flags that were typed, by name), `words` (all words that were typed) and `passed_on`
            (the flags of that command that were typed).
        run: runs the command.
        starting_point: returns the flags' defaults, given the value of each flag that was typed. It may put other
            dataclasses into fields; the flags are then theirs.
        prepare: changes the words of each flag, by its name, before they are converted.
        others: dataclasses with flags that another starting point has. The last one with a flag says its type.
        unknown: the message for a flag of `others` that this starting point doesn't have. Such a flag is accepted
            and ignored if its value is none.
        passed_on: another command whose flags may be typed too.
        headings: the flags under each heading of the help, in order. Those after a | are shown by --help-all alone. A *
            stands for all that are not named.
        examples: commands, which end the help.
        several: what to type for several values of a number, given with commas: {name}, {values}.
        by_several: whether torchrun may start it in several processes.
    """

    name: str
    flags: type[F]
    run: Callable[[F], None]
    starting_point: Callable[[dict[str, Any]], F] | None = None
    prepare: Callable[[dict[str, list[str]]], dict[str, list[str]]] | None = None
    others: tuple[type, ...] = ()
    unknown: Callable[[str, F], str] | None = None
    passed_on: "Command[Any] | None" = None
    headings: Mapping[str, str] = field(default_factory=lambda: {"": OTHERS})
    examples: tuple[str, ...] = ()
    several: str = ""
    by_several: bool = False


def vsae() -> str:
    """The command `vsae` for suggestions: with its path if the shell would not find it."""
    beside, found = Path(sys.executable).with_name("vsae"), shutil.which("vsae")
    if found and (not beside.is_file() or Path(found).samefile(beside)):
        return "vsae"
    if not beside.is_file():
        return shlex.join([sys.executable, "-m", "dictionary_learning_ext"])
    here = Path.cwd()
    return shlex.quote(str(beside.relative_to(here) if beside.is_relative_to(here) else beside))


DEFAULT: Any = object()
"""The value of a flag that was typed as none and whose default follows from others."""


def parse(command: Command[F], args: list[str]) -> F:
    """Parse a command's flags. Prints the help and raises SystemExit if --help is among them.

    Raises: UserError for a mistake.
    """
    if asked := _HELP & {*args}:
        values = {}
        with contextlib.suppress(UserError):  # the help comes before what is wrong
            values = _values(command, _sorted(command, [w for w in args if w not in _HELP]))
        start = _start_of(command, values)
        print(_help(command, _with_defaults(start), everything="--help-all" in asked), flush=True)
        raise SystemExit(0)
    try:
        words = _sorted(command, args)
        values = _values(command, words)
        start = _start_of(command, values)
        own = _options_in(start)
        values |= _positional_values(own, words.arguments, words.typed)
        for name, typed in words.typed.items():
            if name in own and values[name] is DEFAULT:
                values[name] = _converted(own[name], typed)
            elif name not in own and values.pop(name) is not DEFAULT and command.unknown:
                said = in_shell(*words.of_flag[name])
                raise FlagError(f"{said}: {command.unknown(name, start)}", name=name)
        needed = [one for one in own.values() if one.default is MISSING and one.name not in values]
        if needed:
            raise FlagError(
                f"expected {' and '.join(f'{one.flag}, {_expected(one)}' for one in needed)}"
            )
    except FlagError as error:
        raise FlagError(f"{error} (see `vsae {command.name} --help`)", name=error.name) from error
    whole: dict[str, Any] = {n: value for n, value in values.items() if not own[n].part}
    for part in {own[name].part for name in values} - {""}:
        of_part = getattr(start, part)
        defaults = {each.name: each.default for each in fields(of_part)}
        changes = {n: value for n, value in values.items() if own[n].part == part}
        changes = {n: defaults[n] if v is DEFAULT else v for n, v in changes.items()}
        whole[part] = replace(of_part, **changes)
    filled_in: dict[str, Any] = {"given": values, "words": (*args,)}
    filled_in["passed_on"] = tuple(words.passed_on)
    whole |= {name: value for name, value in filled_in.items() if hasattr(start, name)}
    return replace(start, **whole)


class _Option(NamedTuple):
    """A flag, or an argument without a flag."""

    name: str
    hint: Any
    """Its type."""
    default: Any
    """MISSING if it must be typed."""
    nothing: Any
    """What the word none stands for: None or DEFAULT; MISSING if none isn't a legal value."""
    part: str
    """The field with the dataclass that holds it; "" for the flags' own dataclass."""
    owner: type
    """The dataclass."""
    metadata: Mapping[str, Any]
    is_used: bool = True
    """False if it has no effect beside other flags' defaults. The help then leaves it out."""

    @property
    def help(self) -> str:
        return self.metadata.get("help") or help_texts(self.owner).get(self.name, "")

    @property
    def is_positional(self) -> bool:
        return "positional" in self.metadata

    @property
    def flag(self) -> str:
        return as_flag(self.name)

    @property
    def metavar(self) -> str:
        return self.metadata.get("metavar") or _metavar(self.hint, self.default)


def _start_of(command: Command[F], given: dict[str, Any]) -> Any:
    """The command's flags at their defaults, with MISSING where a value must be typed."""
    if command.starting_point is not None:
        return command.starting_point(given)
    flags: Any = command.flags
    needed = [f for f in fields(flags) if f.default is MISSING and f.default_factory is MISSING]
    return flags(**{each.name: MISSING for each in needed})


@functools.cache
def _options_of(cls: type, part: str = "") -> dict[str, _Option]:
    """The options of a dataclass and of those nested in it, by name."""
    hints, found = get_type_hints(cls), dict[str, _Option]()
    for each in fields(cls):
        inner, name = each.default_factory, each.name
        if isinstance(inner, type) and is_dataclass(inner):
            found |= _options_of(inner, name)
        elif not each.metadata.get("hidden"):
            nothing = DEFAULT if isinstance(each.default, Follows) else MISSING
            nothing = None if NoneType in get_args(hints[name]) else nothing
            about = (nothing, part, cls, each.metadata)
            found[name] = _Option(name, hints[name], each.default, *about)
    return found


def _options_in(start: Any) -> dict[str, _Option]:
    """The options of an instance and of the dataclasses in it, which may be others than by default."""
    parts = {n: v for n, v in vars(start).items() if is_dataclass(v)}
    own = {name: each for name, each in _options_of(type(start)).items() if not each.part}
    return own | {
        n: one for part, v in parts.items() for n, one in _options_of(type(v), part).items()
    }


def _with_defaults(start: Any) -> dict[str, _Option]:
    """`_options_in`, with the instance's values as the defaults. Those that follow from the run are those of its steps."""
    found = {}
    for name, option in _options_in(start).items():
        owner = getattr(start, option.part) if option.part else start
        value = getattr(owner, name)
        value = value.value(owner, start.run.steps) if isinstance(value, Follows) else value
        is_used = not (hasattr(owner, "unused") and name in owner.unused())
        found[name] = option._replace(default=value, is_used=is_used)
    return found


def help_texts(cls: type) -> dict[str, str]:
    """The docstring under each field of a class and of its bases, by the field's name, on one line.

    Works for classes at the top level of a module.
    """
    found = [(_texts_of_module(owner.__module__), owner) for owner in cls.__mro__[-2::-1]]
    return {
        n: text for texts, owner in found for (of, n), text in texts.items() if of == owner.__name__
    }


@functools.cache
def _texts_of_module(name: str) -> dict[tuple[str, str], str]:
    """The docstrings of a module's fields, by class and field."""
    tree, texts = ast.parse(inspect.getsource(sys.modules[name])), {}
    for owner in (each for each in tree.body if isinstance(each, ast.ClassDef)):
        for pair in pairwise(owner.body):
            match pair:
                case ast.AnnAssign(target=ast.Name(id=n)), ast.Expr(value=ast.Constant(str(text))):
                    texts[owner.name, n] = " ".join(text.split())
    return texts


def flags_of(command: Command[Any]) -> dict[str, _Option]:
    """All flags of a command, by name, those of other starting points included."""
    return {n: one for n, one in _known(command).items() if not one.is_positional}


def _known(command: Command[Any]) -> dict[str, _Option]:
    classes = (command.flags, *command.others)
    return {name: one for cls in classes for name, one in _options_of(cls).items()}


class _Words(NamedTuple):
    """The words that were typed."""

    typed: dict[str, list[str]]
    """the values of each flag"""
    of_flag: dict[str, list[str]]
    """the flag with its values, as typed"""
    arguments: list[str]
    """the words without a flag"""
    passed_on: list[str]
    """those for another command"""


def _sorted(command: Command[Any], args: list[str]) -> _Words:
    """Sort the words.

    Raises: FlagError for an unknown flag, or a word without a flag if the command takes none.
    """
    flags = flags_of(command)
    passed = {} if command.passed_on is None else flags_of(command.passed_on)
    takes_positional = len(flags) < len(_known(command))
    found, rest = _Words({}, {}, [], []), list(args)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            if _is_flag(word):
                raise FlagError(f"{word}: flags start with two dashes; did you mean -{word}?")
            if not takes_positional:
                raise FlagError(f"{word!r}: expected a flag, which starts with --")
            found.arguments.append(os.path.expanduser(word))
            continue
        name, has_value, value = word[2:].partition("=")
        name, values = name.replace("-", "_"), [value]
        if not has_value:
            n = _number_of_values((passed | flags).get(name), rest, takes_positional)
            values, rest = rest[:n], rest[n:]
        words = [word] if has_value else [word, *values]
        if name in flags:
            # No shell expands the ~ of --out=~/x, nor any in quotes or in a sweep's command.
            found.typed[name] = [os.path.expanduser(value) for value in values]
            found.of_flag[name] = words
        elif name in passed:
            found.passed_on.extend(words)
        else:
            raise _no_such_flag(name, values, [*flags, *passed, "help", "help_all"])
    return found


def _values(command: Command[Any], words: _Words) -> dict[str, Any]:
    """The value of each flag that was typed, by name. Raises FlagError for a wrong word."""
    options, typed = _known(command), words.typed
    if command.prepare is not None:
        typed = command.prepare(typed)
    found = {}
    for name, values in typed.items():
        plural = f"use --{name}s {{values}}" if f"{name}s" in options else command.several
        is_none = [word.lower() for word in values] == [NONE]
        is_of_others = command.unknown is not None and options[name].owner is not command.flags
        if is_none and is_of_others and options[name].nothing is MISSING:
            found[name] = DEFAULT  # such a flag is ignored where there is none
        else:
            found[name] = _converted(options[name], values, plural)
    return found


def _no_such_flag(name: str, values: list[str], known: list[str]) -> FlagError:
    """The error for an unknown flag, with the closest match."""
    close = " or ".join(map(as_flag, close_names(name, known)))
    ask = f"; did you mean {close}?" if close else ""
    for instead, names in _INSTEAD_OF.items():
        own = re.search("--[a-z0-9-]+", instead)
        if name in names and (own is None or own[0] in map(as_flag, known)):
            ask = f"; {instead.format(values[0] if values else 'N')}"
    return FlagError(f"no such flag: {as_flag(name)}{ask}", name=name)


def _number_of_values(option: _Option | None, rest: list[str], takes_positional: bool) -> int:
    """The number of words after a flag that are its values. An unknown flag (None) takes all up to the next flag."""
    n = next((i for i, word in enumerate(rest) if _is_flag(word)), len(rest))
    if option is None or get_origin(_kind(option.hint)) is tuple:
        return n
    if n and takes_positional and _kind(option.hint) is bool:  # may stand alone before a folder
        return int(rest[0].lower() in (*_BOOLEANS, NONE))
    return min(n, 1)


def _is_flag(word: str) -> bool:
    """Whether a word is a flag. -k counts as one; -3 and -inf are numbers."""
    if word.startswith("--"):
        return True
    try:
        float(word)
    except ValueError:
        return word.startswith("-") and word != "-"
    return False


def _converted(option: _Option, words: list[str], several: str = "") -> Any:
    """Convert a flag's words to its value. Raises FlagError for a wrong word."""
    name, kind = option.name, _kind(option.hint)
    if not words and kind is not bool:
        raise FlagError(f"{option.flag}: expected {_expected(option)} after it", name=name)
    if [word.lower() for word in words] == [NONE]:
        if name in _WITH_ITS_OWN_NONE or NONE in get_args(kind):
            return NONE
        if option.nothing is not MISSING:
            return option.nothing
    try:
        if get_origin(kind) is tuple:
            of = get_args(kind)[0]
            if of is float:  # a sweep gives [0.25, 0.75]
                words = re.sub(r"[\[\],]", " ", " ".join(words)).split()
            return tuple(read_value(word, of) for word in words)
        return read_value(words[0] if words else "True", kind)
    except (KeyError, ValueError) as error:
        choices = get_args(kind) if get_origin(kind) is Literal else ()
        given = " ".join(words)
        ask = did_you_mean(given, choices)
        if "," in given and kind in (int, float) and several:
            ask = "; " + several.format(name=name, values=given.strip("[] "))
        said = f"{option.flag} {in_shell(*words)}: expected {_expected(option)}{ask}"
        raise FlagError(said, name=name) from error


def read_value(word: str, kind: Any) -> Any:
    """Convert a word to a type. Raises ValueError if that isn't possible."""
    if kind is bool or get_origin(kind) is Literal:
        return _BOOLEANS[word.lower()] if kind is bool else {w: w for w in get_args(kind)}[word]
    if kind is Path and not word:
        raise ValueError(word)
    if kind is int and re.search("[.eE]", word) and float(word).is_integer():  # 1e3
        return int(float(word))
    value: Any = kind(word)
    if kind is float and not math.isfinite(value):
        raise ValueError(word)
    return value


def _positional_values(
    options: dict[str, _Option], words: list[str], typed: Collection[str]
) -> dict[str, Any]:
    """Convert the words without a flag, beside the flags that were typed. Returns the values by the names of their fields."""
    places, found, rest = [each for each in options.values() if each.is_positional], {}, words
    for option in places:
        n = len(rest) if get_origin(_kind(option.hint)) is tuple else 1
        if rest:
            found[option.name] = _converted(option, rest[:n])
        rest = rest[n:]
    expected = " ".join(option.metavar for option in places)
    if rest:
        raise FlagError(f"{rest[0]!r}: expected only {expected}")
    if any(option.default is MISSING and option.name not in found for option in places):
        takers = [options[n].flag for n in typed if get_origin(_kind(options[n].hint)) is tuple]
        more = f"; {takers[0]} takes all words after it: type it last" if takers else ""
        raise FlagError(f"expected {expected}{more}")
    return found


def _kind(hint: Any) -> Any:
    """The type of a flag's value, without None and dicts, which can't be typed."""
    is_union = get_origin(hint) in (Union, UnionType)
    members = get_args(hint) if is_union else (hint,)
    (kind,) = (each for each in members if each is not NoneType and get_origin(each) is not dict)
    return kind


def _expected(option: _Option) -> str:
    """The type of a flag's value in words, for messages."""
    kind = _kind(option.hint)
    if get_origin(kind) is tuple:
        (kind, *_) = get_args(kind)
        if kind is float:
            return "numbers separated by spaces, e.g. 0.25 0.75"
    is_optional = kind in (int, float) and option.nothing is not MISSING
    return described(kind) + (", or none" if is_optional else "")


_COLUMN = 26
_LONGEST_METAVAR = 36


def _metavar(hint: Any, default: Any) -> str:
    """The placeholder after a flag in the help, e.g. N."""
    kind = _kind(hint)
    if kind is bool:
        return "" if default is False else "True|False"
    if get_origin(kind) is Literal:
        choices = "|".join(map(str, get_args(kind)))
        return choices if len(choices) <= _LONGEST_METAVAR else "NAME"
    if get_origin(kind) is tuple:
        one = _metavar(get_args(kind)[0], None)
        return f"{one} [{one} ...]"
    return {int: "N", float: "X", Path: "PATH"}.get(kind, "TEXT")


def _help(command: Command[Any], options: dict[str, _Option], everything: bool) -> str:
    """The help of a command, with the defaults of `options`."""
    width = min(100, shutil.get_terminal_size().columns)
    arguments = {name: each for name, each in options.items() if each.is_positional}
    flags = {n: each for n, each in options.items() if each.is_used and not each.is_positional}
    needed = [f"{each.flag} {each.metavar}" for each in flags.values() if each.default is MISSING]
    usage = [f"usage: vsae {command.name}", *(each.metavar for each in arguments.values()), *needed]
    shown = _under_headings(command, flags.keys(), everything)
    words = " ".join([*usage, "[FLAGS]"])
    lines = textwrap.wrap(words, width, subsequent_indent="    ", break_on_hyphens=False)
    lines += ["", *textwrap.wrap(str(command.flags.__doc__), width)]
    lines += [""] if arguments else []
    lines += [line for option in arguments.values() for line in _entry(option, width)]
    for heading, names in shown.items():
        lines += ["", *([f"{heading}:"] if heading else [])] if names else []
        lines += [line for name in names for line in _entry(flags[name], width)]
    if left_out := len(flags) - sum(map(len, shown.values())):
        lines += ["", f"`vsae {command.name} --help-all` shows {left_out} more."]
    lines += ["", "Examples:"] if command.examples else []
    for each in command.examples:
        lines += textwrap.wrap(
            each, width, initial_indent="  ", subsequent_indent="      ", break_on_hyphens=False
        )
    return "\n".join(lines)


def _under_headings(
    command: Command[Any], flags: Collection[str], everything: bool
) -> dict[str, list[str]]:
    """The flags that a command's help shows under each heading."""
    named = " ".join(command.headings.values()).split()
    others = " ".join(name for name in flags if name not in named)
    found = {}
    for heading, names in command.headings.items():
        usual, _, rare = names.replace(OTHERS, others).partition("|")
        shown = f"{usual} {rare}" if everything else usual
        found[heading] = [name for name in shown.split() if name in flags]
    return found


def _entry(option: _Option, width: int) -> list[str]:
    """A flag and its help, in two columns."""
    typed = f"{'' if option.is_positional else option.flag} {option.metavar}".strip()
    shown = option.default
    if isinstance(shown, tuple):
        shown = " ".join(map(str, shown))
    has_default = shown not in (MISSING, None, "") and shown is not False
    text = option.help + (f" (default: {shown})" if has_default else "")
    lines = textwrap.wrap(text, max(20, width - _COLUMN)) or [""]
    if len(typed) > _COLUMN - 4:
        lines.insert(0, "")
    left = [f"  {typed}", *[""] * (len(lines) - 1)]
    return [f"{a:<{_COLUMN}}{b}".rstrip() for a, b in zip(left, lines, strict=True)]
