"""What can go wrong because of what was given.

Every message is one line that says what was given, what was expected and what to type
instead. The command line prints it without a traceback and exits with status 2.
"""

import shlex
from signal import Signals


def first_line(error: BaseException) -> str:
    """The first line of an error's message without a full stop, or its class if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(". ")


def in_shell(*words: object) -> str:
    """Paths or other words of a command that a message suggests, quoted where a shell needs it."""
    return shlex.join(map(str, words))


class UserError(ValueError):
    """Something given to the package is wrong. Base of all the errors below."""


class ConfigError(UserError):
    """A setting is unknown, out of range, or does not go with the others."""


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


class BenchError(UserError):
    """An evaluation of SAE Bench can't be run, or failed."""


class ProcessError(UserError):
    """One of a run's processes ended, or can't go on with the others."""


class Interrupted(KeyboardInterrupt):
    """A run was stopped by a signal. The message says how to continue.

    Attributes:
        exit_code: 128 + the signal's number, as in shells.
    """

    def __init__(self, signal: Signals, message: str = ""):
        super().__init__(message or f"stopped by {signal.name}")
        self.signal = signal
        self.exit_code = 128 + signal
