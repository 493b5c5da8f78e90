"""What is gathered about one SAE, and what the metrics are computed from."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch as t


class LanguageModelLosses(NamedTuple):
    """Cross-entropies of a language model, nats per token."""

    original: float
    reconstructed: float
    zero: float
    tokens: int


@dataclass
class Totals:
    """What was gathered about one SAE over some batches of raw activations."""

    dict_size: int
    activation_dim: int
    k: int | None
    """None for an SAE without one."""
    norm_factor: float
    """What activations were divided by in training."""
    tokens: int
    batches: int
    squares: float
    """Sum of ||x||^2."""
    residual: float
    """Sum of ||x - x_hat||^2."""
    sum_D: t.Tensor
    """Sum of x, (D,), float64."""
    selected_F: t.Tensor
    """At how many tokens each feature was selected, (F,)."""
    sums: dict[str, float]
    """Sums over batches of what is an average of each batch."""
    kl: float | None = None
    """Sum over tokens of the KL over all features, nats; with a posterior only, as the next."""
    residual_sampled: float | None = None
    """Sum of ||x - x_hat||^2 where the code is drawn from the posterior."""
    losses: LanguageModelLosses | None = None

    @cached_property
    def total_variance(self) -> float:
        """Sum of ||x - mean x||^2."""
        return self.squares - float((self.sum_D**2).sum()) / self.tokens

    def mean(self, name: str) -> float | None:
        """Of one of `sums`, over batches; None if it was not gathered."""
        return self.sums[name] / self.batches if name in self.sums else None

    @cached_property
    def frequency_F(self) -> t.Tensor:
        """The share of the tokens at which each feature is selected."""
        return self.selected_F.double() / self.tokens
