"""The profile of a whole run: what it times is there, and its parts add up."""

import pytest

from experiments.speed import train_profile
from experiments.speed.train_profile import TIMED, Timers


@pytest.mark.parametrize(("module", "name"), TIMED.values(), ids=TIMED)
def test_what_is_timed_is_there(module, name, monkeypatch):
    owner = train_profile.owner_of(module, name)
    assert callable(getattr(owner, name.rpartition(".")[2]))


def test_a_parts_time_leaves_out_what_is_timed_inside_it(monkeypatch):
    clock = iter([0.0, 1.0, 4.0, 9.0, 16.0])
    monkeypatch.setattr(train_profile.time, "perf_counter", lambda: next(clock))
    timers = Timers()
    timers.switch("outer")  # at 1
    timers.switch("inner")  # at 4
    timers.switch(None)  # at 9
    timers.switch(None)  # at 16
    assert timers.seconds == {"outer": 3 + 7, "inner": 5}
