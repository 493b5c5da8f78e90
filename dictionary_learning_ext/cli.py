"""The command line: parses flags and calls a command. The commands are in `commands/`."""

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr
from dataclasses import fields, is_dataclass
from io import StringIO
from itertools import pairwise
from types import ModuleType
from typing import Any, get_type_hints

import tyro

from .commands import bench, compare, evaluate, export, push, quickstart, report, sweep, train
from .errors import Interrupted, UserError

COMMANDS: dict[str, ModuleType] = {
    "train": train,
    "eval": evaluate,
    "compare": compare,
    "report": report,
    "quickstart": quickstart,
    "sweep": sweep,
    "export": export,
    "push": push,
    "bench": bench,
}


def _usage() -> str:
    lines = ["usage: vsae COMMAND [FLAGS]", "", "Variational TopK sparse autoencoders.", ""]
    lines += [f"  {name:<12}{command.Flags.__doc__}" for name, command in COMMANDS.items()]
    return "\n".join([*lines, "", "`vsae COMMAND --help` explains every flag."])


def _booleans(flags: type) -> Iterator[str]:
    """The flags that a bare `--flag` sets to True."""
    hints = get_type_hints(flags)
    for field in fields(flags):
        if is_dataclass(hints[field.name]):
            yield from _booleans(hints[field.name])
        elif hints[field.name] in (bool, bool | None):
            yield "--" + field.name.replace("_", "-")


def parse(name: str, args: list[str]) -> Any:
    """A command's flags; a mistake becomes a UserError of one line."""
    command = COMMANDS[name]
    starting_point = getattr(command, "starting_point", None)
    default = tyro.MISSING_NONPROP if starting_point is None else starting_point(args)
    booleans, spelled = set(_booleans(command.Flags)), []
    for arg, following in pairwise([*args, ""]):
        spelled.append(arg)
        if arg.replace("_", "-") in booleans and following not in ("True", "False", "None"):
            spelled.append("True")
    message = StringIO()
    try:
        with redirect_stderr(message):
            return tyro.cli(
                command.Flags,
                args=spelled,
                prog=f"vsae {name}",
                default=default,
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff),
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        text = re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]", " ", message.getvalue())  # tyro draws a box
        text = re.sub(r"(Argument helptext:|For full helptext).*", "", " ".join(text.split()))
        raise UserError(f"{text.strip()} (see `vsae {name} --help`)") from stop


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return the exit status.

    0, 2 for a mistake in what was given, or 128 and the signal's number if one stopped it.
    """
    args = sys.argv[1:] if arguments is None else arguments
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        if not args or args[0] in ("-h", "--help"):
            print(_usage())
            return 0
        if args[0] not in COMMANDS:
            raise UserError(f"{args[0]!r}: no such command; expected {', '.join(COMMANDS)}")
        COMMANDS[args[0]].run(parse(args[0], args[1:]))
    except UserError as error:
        print(f"vsae: {error}", file=sys.stderr)
        return 2
    except Interrupted as stop:
        print(f"vsae: {stop}", file=sys.stderr)
        return stop.exit_code
    except KeyboardInterrupt:
        print("vsae: stopped by SIGINT", file=sys.stderr)
        return 130
    except BrokenPipeError:  # as in `vsae train --help | head`
        sys.stdout = None
    return 0


if __name__ == "__main__":
    sys.exit(main())
