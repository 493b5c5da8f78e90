"""What can go wrong because of what was given.

Every message is one line that says what was given, what was expected and what to type instead. An error
holds these as fields, with the settings in them, and each front end spells the settings in its own way:
`str(error)` as in Python (k=0), the command line as flags (--k 0), a sweep as the keys of its file. The
command line prints the line without a traceback and exits with status 2.
"""

import re
import shlex
from ast import literal_eval
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from signal import Signals
from string import Formatter
from typing import Any, NamedTuple


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


def in_shell(*words: object) -> str:
    """Paths or other words of a command that a message suggests, quoted where a shell needs it."""
    return shlex.join(map(str, words))


_LONGEST = 100
"""Characters of a value in a message, unless it is text."""


def _shown(value: Any) -> str:
    """A value as Python writes it, on one line; of a model or many settings, the beginning."""
    if isinstance(value, str):
        return repr(value)
    text = " ".join(repr(value).split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


class Setting(NamedTuple):
    """A setting in a message: its name as in Python, and its value if that matters."""

    name: str
    value: Any = _No.VALUE

    @property
    def has_value(self) -> bool:
        return self.value is not _No.VALUE

    @property
    def in_python(self) -> str:
        return f"{self.name}={_shown(self.value)}" if self.has_value else self.name

    @property
    def as_flag(self) -> str:
        """As it is typed on the command line."""
        flag = f"--{self.name.replace('_', '-')}"
        if not self.has_value:
            return flag
        values = self.value if isinstance(self.value, tuple | list) else [self.value]
        values = ["none" if value is None else value for value in values]
        typed = in_shell(flag, *values)
        return typed if typed.isprintable() else f"{flag} {' '.join(map(repr, values))}"


class Template:
    """A part of a message with settings in it: `Template("use {device='cuda'}: {path} is large", path=path)`.

    `{k}` is a setting's name, `{k=0}` the setting with a value as Python writes it, `{k=}` with the value that is
    given by this name. A field that is given is put in as it is: its braces mean nothing.
    """

    def __init__(self, text: str, /, **fields: Any):
        self.text, self.fields = text, fields

    def filled(self, **fields: Any) -> "Template":
        """The same, with more fields."""
        return Template(self.text, **self.fields, **fields)

    def spelled(self, spell: Callable[[Setting], str]) -> str:
        return _Speller(spell).vformat(self.text, (), self.fields)


class _Speller(Formatter):
    def __init__(self, spell: Callable[[Setting], str]):
        self._spell = spell

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        name, is_setting, value = field_name.partition("=")
        if is_setting:
            return Setting(name, literal_eval(value) if value else kwargs[name]), name
        return kwargs.get(name, Setting(name)), name

    def format_field(self, value: Any, format_spec: str) -> str:
        if isinstance(value, Setting):
            return self._spell(value)
        if isinstance(value, Template):
            return value.spelled(self._spell)
        return format(value, format_spec)


Text = str | Template
"""A part of a message. Only in a Template braces mean something."""


def listed(parts: Iterable[Setting | Template], between: str = " or ") -> Template:
    """Settings in a message, one after the other."""
    fields = {f"part_{n}": part for n, part in enumerate(parts)}
    return Template(between.join(f"{{{name}}}" for name in fields), **fields)


class UserError(ValueError):
    """Something given to the package is wrong. Base of all the errors below.

    Arguments:
        problem: what is wrong, beyond what `expected` says of the setting.
        name: of the wrong setting, as in Python; None if no setting is wrong.
        value: what was given for it.
        expected: what should have been given.
        instead: what to do.
        where: the file or the like that it stands in.
    """

    def __init__(
        self,
        problem: Text = "",
        *,
        name: str | None = None,
        value: Any = _No.VALUE,
        expected: Text = "",
        instead: Text = "",
        where: str = "",
    ):
        super().__init__(problem)
        self.problem, self.name, self.value = problem, name, value
        self.expected, self.instead, self.where = expected, instead, where

    def __str__(self) -> str:
        return self.spelled(lambda setting: setting.in_python)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    @property
    def as_typed(self) -> str:
        """The message as the command line says it."""
        return self.spelled(lambda setting: setting.as_flag)

    def spelled(self, spell: Callable[[Setting], str]) -> str:
        """The message, with its settings as a front end spells them."""
        settings: list[Setting] = []

        def noted(setting: Setting) -> str:
            settings.append(setting)
            return spell(setting)

        def text(part: Text) -> str:
            return part if isinstance(part, str) else part.spelled(noted)

        problem = text(self.problem)
        has_name = self.name is not None and not settings
        given = spell(Setting(self.name or "", self.value)) if has_name else ""
        said = ": ".join(part for part in (self.where, given, problem) if part)
        if self.expected:
            said += f"{'; ' if self.problem else ': '}expected {text(self.expected)}"
        return f"{said}; {text(self.instead)}" if self.instead else said

    def given_by(self, name: str) -> "UserError":
        """The same error of a file, and the setting that gave the path that its message begins with."""
        if self.name is not None:
            return self
        return type(self)(
            Template("{setting} {problem}", setting=Setting(name), problem=self.problem),
            name=name,
            expected=self.expected,
            instead=self.instead,
            where=self.where,
        )

    def within(self, where: str, instead: Text = "") -> "UserError":
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
