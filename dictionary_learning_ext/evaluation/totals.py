"""What is gathered about one SAE, and what the metrics are computed from."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch as t


class NotMeasured(ArithmeticError):
    """A metric is not defined for these totals. The message says why."""


class LanguageModelLosses(NamedTuple):
    """Cross-entropies of a language model, nats per predicted token."""

    original: float
    reconstructed: float
    """With the reconstruction in place of the activations."""
    zero: float
    """With zeros in place of the activations."""
    tokens: int
    """Tokens predicted: all but the first of each document."""
    positions: int
    """Tokens of the documents."""
    left_alone: int
    """At how many of these positions the activations were not replaced, in either way, because
    training leaves such positions out."""


class TruthScores(NamedTuple):
    """How an SAE matches the true features of a synthetic model, see ground_truth.py."""

    mcc: float
    firing_f1: float
    uniqueness: float
    coverage: float


@dataclass
class Totals:
    """What was gathered about one SAE over some batches of raw activations."""

    sum_D: t.Tensor
    """Sum of x, (D,), float64."""
    selected_F: t.Tensor
    """At how many tokens each feature was selected, (F,)."""
    k: int | None
    """None for an SAE without one."""
    norm_factor: float = 1.0
    """What activations were divided by in training."""
    tokens: int = 0
    batches: int = 0
    squares: float = 0.0
    """Sum of ||x||^2."""
    residual: float = 0.0
    """Sum of ||x - x_hat||^2."""
    sums: dict[str, float] = field(default_factory=dict)
    """Sums over batches of what is an average of each batch."""
    kl: float | None = None
    """Sum over tokens of the KL over all features, nats; with a posterior only, as the next."""
    residual_sampled: float | None = None
    """Sum of ||x - x_hat||^2 where the code is drawn from the posterior."""
    losses: LanguageModelLosses | None = None
    no_losses: str = ""
    """Why there are none, if that is not because they don't apply."""
    truth: TruthScores | None = None
    """Of synthetic activations only."""

    @classmethod
    def empty(
        cls,
        activation_dim: int,
        dict_size: int,
        k: t.Tensor | int | None,
        device: t.device,
        norm_factor: float = 1.0,
    ) -> "Totals":
        """Before the first batch."""
        return cls(
            sum_D=t.zeros(activation_dim, dtype=t.float64, device=device),
            selected_F=t.zeros(dict_size, dtype=t.long, device=device),
            k=None if k is None else int(k),
            norm_factor=norm_factor,
        )

    def add(self, x_BD: t.Tensor, x_hat_BD: t.Tensor, f_BF: t.Tensor) -> None:
        """Count a batch of activations with their reconstructions and features."""
        self.tokens += len(x_BD)
        self.batches += 1
        self.sum_D += x_BD.double().sum(0)
        self.selected_F += (f_BF != 0).sum(0)
        self.squares += float(x_BD.double().square().sum())
        self.residual += squared_residual(x_BD, x_hat_BD)

    def add_mean(self, name: str, value: t.Tensor | float) -> None:
        """Count an average of a batch."""
        self.sums[name] = self.sums.get(name, 0.0) + float(value)

    @property
    def activation_dim(self) -> int:
        return len(self.sum_D)

    @property
    def dict_size(self) -> int:
        return len(self.selected_F)

    @cached_property
    def total_variance(self) -> float:
        """Sum of ||x - mean x||^2. Raises NotMeasured if it is 0, up to rounding."""
        variance = self.squares - float((self.sum_D**2).sum()) / self.tokens
        if variance <= 1e-12 * self.squares:
            raise NotMeasured(
                f"the activations of the {self.tokens} tokens measured have no variance"
            )
        return variance

    def mean(self, name: str) -> float | None:
        """Of one of `sums`, over batches; None if it was not gathered."""
        return self.sums[name] / self.batches if name in self.sums else None

    @cached_property
    def frequency_F(self) -> t.Tensor:
        """The share of the tokens at which each feature is selected."""
        return self.selected_F.double() / self.tokens


def squared_residual(x_BD: t.Tensor, x_hat_BD: t.Tensor) -> float:
    """Sum of ||x - x_hat||^2 over a batch."""
    return float((x_BD - x_hat_BD).double().square().sum())
