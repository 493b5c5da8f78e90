"""The errors that users can cause.

Every message is one line that says what was given, what was expected and what to do instead. It names a setting as in
Python and in config.json, dict_size=8. The command line prints it without a traceback and exits with status 2.
"""

import re
import shlex
from signal import Signals
from typing import Any


def first_line(error: BaseException) -> str:
    """The first line of an error's message without a full stop, or its class if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(". ")


def hub_errors() -> tuple[type[BaseException], ...]:
    """The errors that huggingface_hub raises if the hub can't be reached or refuses a request.

    The bases of its own error are those of the HTTP library, which depends on the version.
    """
    from huggingface_hub.errors import HfHubHTTPError

    return OSError, *HfHubHTTPError.__bases__


_CONTROLS = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2028\u2029\u2066-\u2069\ud800-\udfff]"
)
"""Control characters except line feeds and tabs, characters that reverse text, and surrogates."""


def printable(text: str) -> str:
    """Text from a file or a server with its control characters escaped, so that a terminal can show it."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def bytes_shown(n: float) -> str:
    """A number of bytes in words, to three digits: 1.25GB."""
    for prefix in ("", *"kMGTPEZ"):
        if n < 999.5:
            return f"{n:.3g}{prefix}B"
        n /= 1000
    return f"{n:.3g}YB"


def in_shell(*words: object) -> str:
    """Words of a command that a message suggests, quoted where a shell needs it."""
    return shlex.join(map(str, words))


_LONGEST = 100
"""The most characters of a value in a message, unless it is a string."""


def shown(value: Any) -> str:
    """A value's repr on one line, cut to 100 characters unless it is a string."""
    if isinstance(value, str):
        return repr(value)
    text = " ".join(repr(value).split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def as_flag(name: str) -> str:
    """A setting's name as it is typed on the command line."""
    return f"--{name.replace('_', '-')}"


class UserError(ValueError):
    """Base of the errors that users can cause.

    Arguments:
        problem: what is wrong.
        name: the wrong setting; None if no setting is wrong.
        value: the value that was given for it (default, `...`: not part of the message).
        expected: what should have been given.
        instead: what to do.
        where: the file that contains the mistake.
    """

    def __init__(
        self,
        problem: str = "",
        *,
        name: str | None = None,
        value: Any = ...,
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
        """The wrong setting as the message writes it: k=0, or k without a value."""
        if self.name is None or self.value is ...:
            return self.name or ""
        return f"{self.name}={shown(self.value)}"

    def within(self, where: str, instead: str = "") -> "UserError":
        """The same error, with the file that contains the mistake."""
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
    """A command-line flag can't be parsed. The message writes it as it was typed."""

    @property
    def given(self) -> str:
        return ""


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


class ReproducibilityError(UserError):
    """These SAEs can't be compared."""


class HubError(UserError):
    """The hub can't be reached, or refuses what is asked of it."""


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
        """The same, with a message that says when the signal came and how to continue."""
        return Interrupted(self.signal, f"stopped by {self.signal.name} {what}")

    def __reduce__(self):
        """Pickle both arguments; by default, exceptions keep only their message."""
        return type(self), (self.signal, str(self))
