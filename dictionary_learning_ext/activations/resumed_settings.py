"""Whether a source of batches continues with the settings that it was stopped with."""

from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError


def require_same_settings(was: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise a ConfigError that names the settings that differ, as they were and as they are.

    Arguments:
        was, now: the settings that decide what the batches hold, by name.
    """
    differ = [name for name in now if was.get(name) != now[name]]
    if differ:
        given, before = (
            ", ".join(f"{name}={each.get(name)!r}" for name in differ) for each in (now, was)
        )
        raise ConfigError(f"the run can't resume with {given}: expected {before}, as before")
