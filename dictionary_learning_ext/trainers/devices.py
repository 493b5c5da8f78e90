"""Whether this machine has the device that a command is to compute on."""

import torch

from ..errors import ConfigError, Setting, first_line


def require_device(device: str | None, name: str = "device") -> None:
    """Raise a ConfigError unless tensors can be put on `device`, the value of the setting `name`.

    None is torch's own choice.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        n = torch.cuda.device_count()
        there = ["cpu", *(f"cuda:{i}" for i in range(n))]
        if device in there or (device == "cuda" and n):  # e.g. all of its memory is taken
            raise ConfigError(
                f"can't be used ({first_line(error)})",
                name=name,
                value=device,
                instead=("use ", Setting(name, "cpu")),
            ) from error
        raise ConfigError(
            name=name,
            value=device,
            expected="cpu, cuda or cuda:N, and this machine has "
            f"{', '.join(there) if n else 'cpu and no CUDA device'}",
            instead=("use e.g. ", Setting(name, there[-1])),
        ) from error
