"""Errors: one message, in one line."""

import pickle
from signal import Signals

import pytest

from dictionary_learning_ext.errors import (
    ConfigError,
    FlagError,
    Interrupted,
    TextError,
    bytes_shown,
    printable,
)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            ConfigError(name="dict_size", value=0, expected="at least 1"),
            "dict_size=0: expected at least 1",
        ),
        (
            ConfigError("posterior point does not use it", name="sigma", value=0.5, instead="go"),
            "sigma=0.5: posterior point does not use it; go",
        ),
        (
            TextError(name="data", value="my\nbooks.txt", expected="a file", where="a.json"),
            r"a.json: data='my\nbooks.txt': expected a file",
        ),
        (FlagError("--dict-size 3: expected x", name="dict_size"), "--dict-size 3: expected x"),
        (ConfigError("no folder given"), "no folder given"),
    ],
)
def test_a_message_is_one_line_that_names_the_setting(error, said):
    assert str(error) == said
    assert repr(error) == f"{type(error).__name__}({said!r})"
    arrived = pickle.loads(pickle.dumps(error))
    assert (str(arrived), arrived.name) == (said, error.name)


def test_a_huge_value_is_cut():
    assert len(str(ConfigError(name="seed", value=10**400, expected="x"))) < 130


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


def test_bytes_are_shown_to_three_digits():
    shown = [bytes_shown(n) for n in (0, 999, 999_600, 1_254_000_000, 1e26)]
    assert shown == ["0B", "999B", "1MB", "1.25GB", "100YB"]
