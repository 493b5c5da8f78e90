"""Whether this machine has the device that a command is to compute on."""

import torch

from ..errors import ConfigError, first_line


def require_device(device: str | None, flag: str = "device") -> None:
    """Raise a ConfigError unless tensors can be put on `device`, which was given with `flag`.

    None is torch's own choice.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        n = torch.cuda.device_count()
        there = ["cpu", *(f"cuda:{i}" for i in range(n))]
        if device in there or (device == "cuda" and n):  # e.g. all of its memory is taken
            raise ConfigError(
                f"device {device!r} can't be used ({first_line(error)}); use --{flag} cpu"
            ) from error
        raise ConfigError(
            f"{flag}={device!r}: expected cpu, cuda or cuda:N, and this machine has "
            f"{', '.join(there) if n else 'cpu and no CUDA device'}; use e.g. --{flag} {there[-1]}"
        ) from error
