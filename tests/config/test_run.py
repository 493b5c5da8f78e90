"""A run's settings: what follows from them, and names. What is refused is in tests/test_refusals.py."""

import contextlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dictionary_learning_ext.config.run import RunConfig, TrainConfig, require_same
from dictionary_learning_ext.config.sae import OPTION_NAMES
from dictionary_learning_ext.errors import ConfigError, UserError


def test_checkpoint_steps():
    for kind in ("linear", "log"):
        with pytest.raises(ConfigError, match=r"save_steps=.*at least 1"):
            RunConfig(steps=1000, save_steps=f"{kind}:0")

    def points(save_steps):
        return RunConfig(steps=1000, save_steps=save_steps).checkpoint_steps()

    assert points("none") == []
    assert points("linear:4") == [200, 400, 600, 800]
    assert points("log:2") == [10, 100]
    assert points("7,3") == [3, 7]


@pytest.mark.parametrize(
    ("steps", "log_steps", "every"),
    [(1, None, 1), (60, None, 3), (2000, None, 100), (20_000, None, 100), (60, 100, 100)],
)
def test_a_short_run_logs_twenty_lines_unless_told_otherwise(steps, log_steps, every):
    assert RunConfig(steps=steps, log_steps=log_steps).log_every == every


@given(
    st.dictionaries(
        st.sampled_from(OPTION_NAMES),
        st.none() | st.integers(-5, 50) | st.floats(-2, 2) | st.sampled_from(["vsae", "point", ""]),
        max_size=4,
    )
)
def test_whatever_is_given_only_named_errors_come_out(values):
    with contextlib.suppress(UserError):
        TrainConfig().with_settings(values, "x").sae.resolve(100)


@pytest.mark.parametrize(
    "change", [{"device": "cpu"}, {"data": "texts/"}, {"model": "lm//"}, {"activations": "c/"}]
)
def test_the_digest_does_not_tell_apart_what_may_change_when_a_run_is_resumed(change):
    start = {"device": "cuda", "data": "texts", "model": "lm", "activations": "c"}
    one, other = (TrainConfig().with_settings(start | more, "x") for more in ({}, change))
    assert one.digest == other.digest
    assert replace(one.run, device=other.run.device) == other.run, "no slash at a path's end"
    require_same(one.to_dict(), other.to_dict(), "x")


@pytest.mark.parametrize("name", ["model", "data", "activations", "save_dir"])
def test_an_empty_name_is_not_the_working_directory(name):
    with pytest.raises(ConfigError, match=f"^{name}='': expected a "):
        RunConfig(**{name: ""})


def test_saes_are_measured_every_so_many_steps_and_at_the_end():
    run = RunConfig(steps=100, eval_every=30)
    assert [step for step in range(101) if run.is_measured(step)] == [0, 30, 60, 90, 100]
    assert not any(RunConfig(steps=100).is_measured(step) for step in range(101))
