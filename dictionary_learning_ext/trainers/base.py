"""What our trainers share of upstream's protocol: the log of a loss, and the check of a batch."""

from typing import NamedTuple

import torch as t

from ..errors import ConfigError


class LossLog(NamedTuple):
    """What upstream's `log_stats` unpacks."""

    x: t.Tensor
    x_hat: t.Tensor
    f: t.Tensor
    losses: dict[str, float]


def prepared(x: t.Tensor, b_dec: t.Tensor, source: str | None) -> t.Tensor:
    """Activations (B, D) in the dtype and on the device of a dictionary's `b_dec`, (D,).

    Arguments:
        source: where they come from, for the message.

    Raises: ConfigError if their width is another, or there are none.
    """
    if x.shape[-1] != len(b_dec):
        raise ConfigError(
            f"activations of width {x.shape[-1]} from {source or 'the buffer'}: "
            f"expected activation_dim={len(b_dec)}; build the trainer with "
            f"activation_dim={x.shape[-1]} or choose another hook"
        )
    if len(x) == 0:
        raise ConfigError("an empty batch: expected at least one row of activations")
    return x.to(b_dec)
