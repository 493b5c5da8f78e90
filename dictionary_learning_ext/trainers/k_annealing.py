"""Annealing k: training starts with more features per token, as upstream's main branch can."""

from typing import Any, NamedTuple

from ..errors import ConfigError


class KAnnealing(NamedTuple):
    """How many features per token a step of training keeps.

        k_t = floor(D + (k - D) t/A),  k from t = A on

    D is activation_dim, as on upstream's main branch, or dict_size if that is less. Only the steps
    themselves keep more than k: logs, checkpoints and evaluation keep k throughout.
    """

    k: int
    start: int
    steps: int
    """A"""

    @classmethod
    def of(cls, ae: Any, steps: int | None) -> "KAnnealing":
        """For a dictionary whose k is the last one. With None, k stays.

        Raises: ConfigError if k is not below the number of features that it would fall from.
        """
        k, start = int(ae.k), min(ae.activation_dim, ae.dict_size)
        if steps is None:
            return cls(k, k, 0)
        if k >= start:
            raise ConfigError(
                f"k falls from the smaller of activation_dim ({ae.activation_dim}) and dict_size "
                f"({ae.dict_size}), and k ({k}) is not below it",
                name="k_anneal_steps",
                value=steps,
                instead="leave it out",
            )
        return cls(k, start, steps)

    def at(self, step: int) -> int:
        """k_t at a step."""
        if step >= self.steps:
            return self.k
        return self.k + (self.start - self.k) * (self.steps - step) // self.steps

    def threshold_start(self, start_step: int) -> int:
        """The step after which the running threshold follows the selection: that of k features."""
        return max(start_step, self.steps - 1)
