"""What can go wrong because of what was given.

Every message is one line that says what was given, what was expected and what to type
instead. The command line prints it without a traceback and exits with status 2.
"""


class UserError(ValueError):
    """Something given to the package is wrong. Base of all the errors below."""


class ConfigError(UserError):
    """A setting is unknown, out of range, or does not go with the others."""


class LanguageModelError(UserError):
    """A language model can't be loaded, or has no such hook point."""


class TextError(UserError):
    """A text can't be read, is empty, or ends before the run does."""


class CheckpointError(UserError):
    """A checkpoint folder is incomplete, damaged, or belongs to another model."""


class NonFiniteError(UserError):
    """Activations or a loss became NaN or infinite."""
