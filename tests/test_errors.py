"""Errors: one message, whose settings each front end spells in its own way."""

import pickle
from signal import Signals

import pytest

from dictionary_learning_ext.errors import (
    ConfigError,
    Interrupted,
    Setting,
    Template,
    TextError,
    listed,
    printable,
)


@pytest.mark.parametrize(
    ("error", "in_python", "as_typed"),
    [
        (
            ConfigError(name="dict_size", value=0, expected="at least 1"),
            "dict_size=0: expected at least 1",
            "--dict-size 0: expected at least 1",
        ),
        (
            ConfigError("posterior point does not use it", name="sigma", value=0.5),
            "sigma=0.5: posterior point does not use it",
            "--sigma 0.5: posterior point does not use it",
        ),
        (
            ConfigError(
                Template("{sigma=1.0} and {noise_to_signal=}", noise_to_signal=0.1),
                name="sigma",
                expected="one of them",
                instead=Template(
                    "leave out {both}", both=listed(map(Setting, ("sigma", "noise_to_signal")))
                ),
            ),
            "sigma=1.0 and noise_to_signal=0.1; expected one of them; leave out sigma or noise_to_signal",
            "--sigma 1.0 and --noise-to-signal 0.1; expected one of them; leave out --sigma or "
            "--noise-to-signal",
        ),
        (
            TextError(name="data", value="my books.txt", expected="a file", where="a.json"),
            "a.json: data='my books.txt': expected a file",
            "a.json: --data 'my books.txt': expected a file",
        ),
        (
            ConfigError(name="decay_start", value=None, instead=Template("add {overwrite=True}")),
            "decay_start=None; add overwrite=True",
            "--decay-start none; add --overwrite True",
        ),
        (
            ConfigError(name="group_fractions", value=(0.5, 0.4), expected="shares"),
            "group_fractions=(0.5, 0.4): expected shares",
            "--group-fractions 0.5 0.4: expected shares",
        ),
        (ConfigError("no folder given"), "no folder given", "no folder given"),
    ],
)
def test_a_message_is_spelled_for_python_and_for_the_command_line(error, in_python, as_typed):
    assert str(error) == in_python
    assert error.as_typed == as_typed
    assert repr(error) == f"{type(error).__name__}({in_python!r})"
    arrived = pickle.loads(pickle.dumps(error))
    assert (str(arrived), arrived.as_typed, arrived.name) == (in_python, as_typed, error.name)


def test_braces_of_what_was_given_mean_nothing():
    def of(given):
        problem = Template("{given} is {n:,} {unit!r}; {{k}}", given=given, n=1000, unit="{lr}")
        return ConfigError(problem, expected=given, instead=Template("use {text=}", text=[given]))

    for given in ("{k}", "{", "}", "{0}", "{k=1", "{{x}}", "%s"):
        said = f"{given} is 1,000 '{{lr}}'; {{k}}; expected {given}; use text=['{given}']"
        assert str(of(given)) == said
        assert given in of(given).given_by("data").within(given).as_typed


def test_an_interruption_reaches_another_process():
    arrived = pickle.loads(pickle.dumps(Interrupted(Signals.SIGTERM, "stopped at step 3")))
    assert (str(arrived), arrived.signal) == ("stopped at step 3", Signals.SIGTERM)
    assert arrived.exit_code == 143


def test_a_place_is_added_before_a_message_and_its_fields_stay():
    error = ConfigError(name="k", value=0, expected="at least 1").within(
        "config.json", "correct it"
    )
    outer = error.within("runs/a")
    assert str(outer) == "runs/a: config.json: k=0: expected at least 1; correct it"
    assert (type(outer), outer.name, outer.value) == (ConfigError, "k", 0)


def test_control_characters_are_escaped_for_a_terminal():
    assert printable("\x1b[2J\r\x07\x9b1m\u202eab\ud800") == r"\x1b[2J\r\x07\x9b1m\u202eab\ud800"
    kept = "line\nwith\ttab, café, 語 and \N{GRINNING FACE}"
    assert printable(kept) == kept
