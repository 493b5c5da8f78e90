"""Whether this machine has the device that a command is to compute on."""

import torch

from ..errors import ConfigError


def require_device(device: str) -> None:
    """Raise a ConfigError unless tensors can be put on `device`."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        n = torch.cuda.device_count()
        there = ["cpu", *(f"cuda:{i}" for i in range(n))]
        raise ConfigError(
            f"device={device!r}: expected cpu, cuda or cuda:N, and this machine has "
            f"{', '.join(there) if n else 'cpu and no CUDA device'}; use e.g. --device {there[-1]}"
        ) from error
