"""The command line: finds a command and runs it. The commands are in `commands/`."""

import logging
import re
import sys
from importlib.metadata import version
from typing import Any

from .commands import (
    bench,
    cache,
    compare,
    evaluate,
    export,
    hooks,
    push,
    quickstart,
    report,
    reproduce,
    sweep,
    train,
)
from .commands.flags import Command, flags_of, parse
from .config.checks import meant
from .errors import Interrupted, ProcessError, UserError
from .training.processes import Processes, joined, launched

_MODULES = (
    train,
    evaluate,
    compare,
    reproduce,
    report,
    quickstart,
    sweep,
    hooks,
    cache,
    export,
    push,
    bench,
)
COMMANDS: dict[str, Command[Any]] = {module.COMMAND.name: module.COMMAND for module in _MODULES}


def _usage() -> str:
    lines = [
        "usage: vsae COMMAND [FLAGS]",
        "",
        "Train and study variational TopK sparse autoencoders.",
        "",
        "commands:",
    ]
    lines += [f"  {name:<12}{command.flags.__doc__}" for name, command in COMMANDS.items()]
    lines += ["", "`vsae help COMMAND` explains its flags; `vsae --version` prints the version."]
    return "\n".join(lines)


class _Messages(logging.Formatter):
    """Names the level of what is worse than information."""

    def format(self, record: logging.LogRecord) -> str:
        return record.getMessage() if record.levelno == logging.INFO else super().format(record)


_BEFORE = r"^|[:,;] |\b(?:and|as|has|is|most|requires|says|than|to|use|with) "
"""What stands before a setting in our messages. Anything else with a = is a file's name or the like."""


def _spelled_as_flags(message: str, command: Command[Any]) -> str:
    """A message with a command's settings as they are typed: --dict-size 32, not dict_size=32.

    Calls in Python, such as load_dictionary('runs/a', device='cuda'), stay as they are.
    """
    names = "|".join(flags_of(command))

    def spelled(match: re.Match[str]) -> str:
        before, name = match.groups()
        return match[0] if name is None else f"{before}--{name.replace('_', '-')} "

    return re.sub(rf"\w\([^()]*\)|({_BEFORE})({names})=(?=\S)", spelled, message)


def _command(name: str, processes: Processes) -> Command[Any]:
    """The command of that name. Raises UserError if these processes can't run it."""
    if name not in COMMANDS:
        raise UserError(
            f"{name!r}: no such command; expected {', '.join(COMMANDS)}{meant(name, COMMANDS)}"
        )
    if processes.are_several and not COMMANDS[name].by_several:
        able = " or ".join(f"`vsae {each.name}`" for each in COMMANDS.values() if each.by_several)
        raise UserError(
            f"`vsae {name}` in {processes.count} processes: only {able} can be started by torchrun; "
            f"run `vsae {name}` without it"
        )
    return COMMANDS[name]


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return the exit status.

    0, 2 for a mistake in what was given, or 128 and the signal's number if one stopped it. Of several
    processes, which end alike, the first says why.
    """
    args = sys.argv[1:] if arguments is None else arguments
    handler = logging.StreamHandler()
    handler.setFormatter(_Messages("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger(__package__).setLevel(logging.INFO)
    command, processes = None, launched()
    try:
        if args and args[0] == "help":
            args = [*args[1:], "--help"]
        if not args or args[0] in ("-h", "--help"):
            print(_usage())
            return 0
        if args[0] == "--version":
            print(f"vsae {version('dictionary-learning-ext')}")
            return 0
        with joined():
            with processes.together():
                command = _command(args[0], processes)
                flags = parse(command, args[1:])
            command.run(flags)
    except UserError as error:
        message = error.spelled(lambda setting: setting.as_flag)
        message = _spelled_as_flags(message, command) if command else message
        if processes.is_first or isinstance(error, ProcessError):
            print(f"vsae: {message}", file=sys.stderr, flush=True)
        return 2
    except Interrupted as stop:
        if processes.is_first:
            print(f"vsae: {stop}", file=sys.stderr, flush=True)
        return stop.exit_code
    except KeyboardInterrupt:
        print("vsae: stopped by SIGINT; run the same command again", file=sys.stderr)
        return 130
    except BrokenPipeError:  # as in `vsae train --help | head`
        sys.stdout = None
    return 0


if __name__ == "__main__":
    sys.exit(main())
