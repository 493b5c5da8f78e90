"""What a command is, and how its flags are parsed."""

import re
import shlex
import shutil
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import tyro

from ..errors import UserError
from .flag_checks import require_legal
from .flag_spelling import with_booleans, with_nones

F = TypeVar("F")
Folder = Annotated[str, tyro.conf.arg(metavar="FOLDER")]
Folders = Annotated[tuple[str, ...], tyro.conf.arg(metavar="FOLDER [FOLDER ...]")]


@dataclass(frozen=True)
class Command(Generic[F]):
    """A subcommand of `vsae`.

    Attributes:
        name: what users type.
        flags: a dataclass. Its docstring says what the command does, those of its fields are the
            help.
        run: what the command does with its flags.
        starting_point: the flags' defaults, where these depend on what was typed.
        prepare: divides what was typed into the arguments to parse, and values of hidden fields.
        suggested: flags that `prepare` takes out, which may be meant by a misspelt one.
        by_several: whether torchrun may start several processes of it.
    """

    name: str
    flags: type[F]
    run: Callable[[F], None]
    starting_point: Callable[[list[str]], F] | None = None
    prepare: Callable[[list[str]], tuple[list[str], dict[str, Any]]] | None = None
    suggested: tuple[str, ...] = ()
    by_several: bool = False


@dataclass(frozen=True)
class InputFlags:
    """The activations to measure on."""

    model: str | None = None
    """The language model. Default: as in config.json. Needed if config.json names none."""
    hook: str | None = None
    """The hook point. Default: as in config.json. Needed if config.json names none."""
    data: str | None = None
    """The text. Default: as in config.json."""
    max_norm_multiple: float | None = None
    """Leave out tokens whose norm is over this many times the median. Default: as in training."""
    remove_bos: bool | None = None
    """Leave out beginning-of-text tokens. Default: as in training."""
    device: str = "cpu"
    """Where to compute: cpu, cuda or cuda:N."""


@dataclass(frozen=True)
class MeasuredFlags(InputFlags):
    """The activations to measure on, which may be stored."""

    activations: str | None = None
    """Read activations from this folder, see `vsae train --help`. Default: as in config.json. none:
    from the language model."""


def parse(command: Command[F], args: list[str]) -> F:
    """A command's flags; a mistake becomes a UserError of one line."""
    program = f"vsae {command.name}"
    hidden: dict[str, Any] = {}
    if command.prepare is not None:
        args, hidden = command.prepare(args)
    args = with_nones(command.flags, args)
    require_legal(command.flags, args, program, command.suggested)
    start = command.starting_point
    default = tyro.MISSING_NONPROP if start is None else start(args)
    help_text, message = _Captured(), _Captured()
    try:
        with redirect_stdout(help_text), redirect_stderr(message):
            flags = tyro.cli(
                command.flags,
                args=with_booleans(command.flags, args),
                prog=program,
                default=default,
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff),
            )
    except SystemExit as stop:
        if not stop.code:
            print(_without_none(help_text.getvalue()), end="")
            raise
        text = re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]", " ", message.getvalue())  # tyro draws a box
        text = re.sub(r"For full helptext.*", "", " ".join(text.split()))
        text = re.sub(r"^Value error Error parsing \w+: ", "", text)  # our own checks say enough
        raise UserError(f"{text.strip()} (see `{program} --help`)") from stop
    return replace(flags, **hidden)  # pyright: ignore[reportArgumentType, reportReturnType]


class _Captured(StringIO):
    """Takes what tyro prints, with the characters that the terminal can show."""

    encoding = sys.__stdout__.encoding if sys.__stdout__ else "utf-8"


def _without_none(help_text: str) -> str:
    """tyro's help without saying that a flag may be None: the flag's own help says what none means."""
    shapes = {
        r"\{None\}\|\{(\[.*?\]+)\}": "{}",
        r"\{None\}\|(\S+)": "{}",
        r"\{None,(\S+)": "{{{}",
        r"\(default:(\s+(?:│\s*│\s+)?)(?:None)?\)": "         {}",
    }
    for shape, instead in shapes.items():

        def padded(match: re.Match[str], instead: str = instead) -> str:
            return instead.format(match[1]).ljust(len(match[0]))

        help_text = re.sub(shape, padded, help_text)
    usage, blank, rest = help_text.partition("\n\n")  # has no columns to keep
    return re.sub(r"(?<=\S) {2,}", " ", usage) + blank + rest


def vsae() -> str:
    """`vsae` as it can be typed here: with its path, if the shell would not find it."""
    beside, found = Path(sys.executable).with_name("vsae"), shutil.which("vsae")
    if found and (not beside.is_file() or Path(found).samefile(beside)):
        return "vsae"
    if not beside.is_file():
        return shlex.join([sys.executable, "-m", "dictionary_learning_ext"])
    here = Path.cwd()
    return shlex.quote(str(beside.relative_to(here) if beside.is_relative_to(here) else beside))


def typed(args: list[str]) -> dict[str, str]:
    """The flags in `args` and the text of their values, by the names of their fields."""
    given: dict[str, str] = {}
    for arg, following in pairwise([*args, "--"]):
        if arg.startswith("--"):
            name, is_one_word, value = arg[2:].partition("=")
            if not is_one_word:
                value = "True" if following.startswith("--") else following
            given[name.replace("-", "_")] = value
    return given
