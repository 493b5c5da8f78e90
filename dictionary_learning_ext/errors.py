"""What can go wrong because of what was given.

Every message is one line that says what was given, what was expected and what to type instead. It names a setting as
Python does: k. The command line prints the line without a traceback and exits with status 2.
"""

import re
import shlex
from enum import Enum
from signal import Signals
from typing import Any


class _No(Enum):
    """An enum member, which keeps its identity when it is pickled."""

    VALUE = 0


def first_line(error: BaseException) -> str:
    """The first line of an error's message without a full stop, or its class if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(". ")


_CONTROLS = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2028\u2029\u2066-\u2069\ud800-\udfff]"
)
"""What moves a terminal's cursor, colours or reverses text, but for line feeds and tabs; and half characters."""


def printable(text: str) -> str:
    """Text that may come from a file or a server, for a terminal: control characters are escaped."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def bytes_shown(n: float) -> str:
    """A number of bytes to three digits, e.g. 1.25GB."""
    for prefix in ("", *"kMGTPEZ"):
        if n < 999.5:
            return f"{n:.3g}{prefix}B"
        n /= 1000
    return f"{n:.3g}YB"


def in_shell(*words: object) -> str:
    """Paths or other words of a command that a message suggests, quoted where a shell needs it."""
    return shlex.join(map(str, words))


_LONGEST = 100
"""Characters of a value in a message, unless it is text."""


def shown(value: Any) -> str:
    """A value as Python writes it, on one line; of a model, many settings or a huge number, the beginning."""
    if isinstance(value, str):
        return repr(value)
    text = " ".join(repr(value).split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


class UserError(ValueError):
    """Something given to the package is wrong. Base of all the errors below.

    Arguments:
        problem: what is wrong, beyond what `expected` says of the setting.
        name: of the wrong setting; None if no setting is wrong.
        value: what was given for it.
        expected: what should have been given.
        instead: what to do.
        where: the file or the like that it stands in.
    """

    def __init__(
        self,
        problem: str = "",
        *,
        name: str | None = None,
        value: Any = _No.VALUE,
        expected: str = "",
        instead: str = "",
        where: str = "",
    ):
        super().__init__(problem)
        self.problem, self.name, self.value = problem, name, value
        self.expected, self.instead, self.where = expected, instead, where

    def __str__(self) -> str:
        said = ": ".join(part for part in (self.where, self.given, self.problem) if part)
        if self.expected:
            said += f"{'; ' if self.problem else ': '}expected {self.expected}"
        return f"{said}; {self.instead}" if self.instead else said

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    @property
    def given(self) -> str:
        """The wrong setting, and the value if that matters."""
        if self.name is None or self.value is _No.VALUE:
            return self.name or ""
        return f"{self.name}={shown(self.value)}"

    def within(self, where: str, instead: str = "") -> "UserError":
        """The same error, and the file or the like that the mistake stands in."""
        where = f"{where}: {self.where}" if self.where else where
        return type(self)(
            self.problem,
            name=self.name,
            value=self.value,
            expected=self.expected,
            instead=instead or self.instead,
            where=where,
        )


class FlagError(UserError):
    """What was typed can't be parsed. Its message says it as it was typed."""

    @property
    def given(self) -> str:
        return ""


def as_flag(name: str) -> str:
    """A setting's name as it is typed on the command line."""
    return f"--{name.replace('_', '-')}"


class ConfigError(UserError):
    """A setting is unknown, out of range, or does not go with the others."""


class DiskError(ConfigError):
    """The disk is too small for what would be written."""


class LanguageModelError(UserError):
    """A language model can't be loaded, or has no such hook point."""


class TextError(UserError):
    """A text can't be read, is empty, or ends before the run does."""


class ActivationsError(UserError):
    """Stored activations are unfinished, damaged, or of something else than what was asked for."""


class CheckpointError(UserError):
    """A checkpoint folder is incomplete, damaged, or belongs to another model."""


class NonFiniteError(UserError):
    """Activations became NaN or infinite."""


class TrainingError(UserError):
    """One or more SAEs of a run failed. The others are trained, saved and evaluated."""


class HubError(UserError):
    """The hub can't be reached, or refuses what is asked of it."""


class EndpointError(UserError):
    """A language model's endpoint can't be reached, or doesn't answer as one."""


class BenchError(UserError):
    """An evaluation of SAE Bench can't be run, or failed."""


class Interrupted(KeyboardInterrupt):
    """A run was stopped by a signal. The message says how to continue.

    Attributes:
        exit_code: 128 + the signal's number, as in shells.
    """

    def __init__(self, signal: Signals, message: str = ""):
        super().__init__(message or f"stopped by {signal.name}")
        self.signal = signal
        self.exit_code = 128 + signal

    def when(self, what: str) -> "Interrupted":
        """The same, and when it was, with what to do."""
        return Interrupted(self.signal, f"stopped by {self.signal.name} {what}")

    def __reduce__(self):
        """Pickled with both arguments; exceptions are with their message alone."""
        return type(self), (self.signal, str(self))
