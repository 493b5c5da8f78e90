"""The command line: runs the commands in `commands/`."""

import atexit
import gc
import logging
import os
import sys
from contextlib import redirect_stdout
from importlib.metadata import version
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any, TextIO, cast

from .commands.bench import BENCH
from .commands.cache import CACHE, HOOKS
from .commands.export import EXPORT, PUSH
from .commands.flags import Command, parse
from .commands.measure import COMPARE, EVAL, REPRODUCE
from .commands.quickstart import QUICKSTART
from .commands.report import REPORT
from .commands.sweep import SWEEP
from .commands.train import TRAIN
from .config.checks import did_you_mean
from .errors import Interrupted, UserError, printable
from .training.processes import Processes, is_first_to_say, launched

COMMANDS: dict[str, Command[Any]] = {
    each.name: each
    for each in (
        *(TRAIN, EVAL, COMPARE, REPRODUCE, REPORT, QUICKSTART),
        *(SWEEP, HOOKS, CACHE, EXPORT, PUSH, BENCH),
    )
}

UPSTREAM = "dictionary_learning"

_USAGE = """\
usage: vsae COMMAND [FLAGS]

Train and study variational TopK sparse autoencoders.

commands:
{}

`vsae help COMMAND` explains its flags; `vsae --version` prints the version."""


class _Messages(logging.Formatter):
    """Log messages, with their level unless it is INFO."""

    def format(self, record: logging.LogRecord) -> str:
        is_plain = record.levelno == logging.INFO
        said = record.getMessage() if is_plain else super().format(record)
        return printable(said)


def _command(name: str, processes: Processes) -> Command[Any]:
    """The command of this name. Raises UserError if there is none, or if it can't run in several processes."""
    if name not in COMMANDS:
        ask = did_you_mean(name, COMMANDS)
        raise UserError(f"{name!r}: no such command; expected {', '.join(COMMANDS)}{ask}")
    if processes.are_several and not COMMANDS[name].by_several:
        able = " or ".join(f"`vsae {each.name}`" for each in COMMANDS.values() if each.by_several)
        raise UserError(
            f"`vsae {name}` in {processes.count} processes: only {able} can be started by torchrun; "
            f"run `vsae {name}` without it"
        )
    return COMMANDS[name]


class _Printable:
    """An output stream that escapes control characters, e.g. those in a folder's name."""

    def __init__(self, output: TextIO):
        self._output = output

    def write(self, text: str) -> int:
        return self._output.write(printable(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._output, name)


class _Package(ModuleType):
    """A package whose __init__ runs when something is first asked of it that is not there, as by `from package import name`."""

    def __getattr__(self, name: str) -> Any:
        self.__class__ = ModuleType  # pyright: ignore[reportAttributeAccessIssue]
        spec: Any = self.__spec__
        spec.loader.exec_module(self)
        return getattr(self, name)


def _import_upstream_lazily() -> None:
    """Let submodules of dictionary_learning be imported without its __init__, which imports nnsight and with it transformers.
    See docs/design.md."""
    spec = None if UPSTREAM in sys.modules else find_spec(UPSTREAM)
    if spec is not None:
        sys.modules[UPSTREAM] = package = module_from_spec(spec)
        package.__class__ = _Package


def _say(why: str) -> None:
    """Print why the command ends, on one line. Of several processes with the same reason, one prints it."""
    why = why.replace("\n", "\\n")
    if is_first_to_say(why):
        print(printable(f"vsae: {why}"), file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Run a command. Returns the exit status: 0, 2 for a user's mistake, or 128 + the signal that stopped it."""
    args = sys.argv[1:] if arguments is None else arguments
    handler = logging.StreamHandler()
    handler.setFormatter(_Messages("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger(__package__).setLevel(logging.INFO)
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # the last error says what its warnings do
    if "OMP_WAIT_POLICY" not in os.environ:
        # libgomp reads this when torch is loaded. Waiting threads then sleep after a fraction of a millisecond, and leave
        # the cores to other processes; see docs/scale.md.
        os.environ.setdefault("GOMP_SPINCOUNT", "7000")
    # Collecting what torch and nnsight leave, when all memory is freed anyway, takes Python 3 CPU seconds.
    atexit.register(gc.freeze)
    processes = launched()
    try:
        if args and args[0] == "help":
            args = [*args[1:], "--help"]
        if not args or args[0] in ("-h", "--help"):
            lines = (f"  {name:<12}{each.flags.__doc__}" for name, each in COMMANDS.items())
            print(_USAGE.format("\n".join(lines)), flush=True)
            return 0
        if args[0] == "--version":
            print(f"vsae {version('dictionary-learning-ext')}", flush=True)
            return 0
        command = _command(args[0], processes)
        _import_upstream_lazily()
        with redirect_stdout(cast(TextIO, _Printable(sys.stdout))):
            command.run(parse(command, args[1:]))
            sys.stdout.flush()  # a closed pipe is noticed here
    except UserError as error:
        _say(str(error))
        return 2
    except Interrupted as stop:
        _say(str(stop))
        return stop.exit_code
    except KeyboardInterrupt:
        print("vsae: stopped by SIGINT", file=sys.stderr)
        return 130
    except BrokenPipeError:  # as in `vsae train --help | head`
        sys.stdout = None
    return 0


if __name__ == "__main__":
    sys.exit(main())
