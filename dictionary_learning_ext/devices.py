"""Which device computes."""

import torch as t

from .config.run import AUTO
from .errors import ConfigError, first_line


def without_auto(device: str | None) -> str:
    """`device`, or for auto and None: CUDA if torch can use it, otherwise the CPU, as upstream's trainers choose."""
    if device in (None, AUTO):
        return "cuda" if t.cuda.is_available() else "cpu"
    return device


def chosen_device(device: str | None, name: str = "device") -> str:
    """The device to compute on: what `without_auto` gives, once tensors can be put there.

    Arguments:
        device: auto, cpu, cuda or cuda:N, or another that torch knows. None: auto.
        name: the setting that gave it, for messages.

    Raises: ConfigError if there is no such device, or it can't be used.
    """
    device = without_auto(device)
    try:
        t.device(device)
    except RuntimeError as error:  # which lists all that torch may be built for
        raise ConfigError(
            name=name, value=device, expected="auto, cpu, cuda or cuda:N, e.g. cuda:0"
        ) from error
    try:
        t.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise ConfigError(
            f"can't be used ({first_line(error)})",
            name=name,
            value=device,
            instead=f"use {name}='cpu'",
        ) from error
    return device
