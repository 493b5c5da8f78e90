"""What upstream's TopKTrainer counts beside its steps: dead features, and the running threshold."""

from typing import Any, Protocol

import torch as t


class SelectionTerms(Protocol):
    """What a step says of the features that the mean alone selects, on the rows of all ranks."""

    @property
    def mean_threshold(self) -> t.Tensor:
        """Each row's smallest positive selected mean, averaged over rows; NaN if no row has one."""
        ...

    @property
    def tokens_since_fired_F(self) -> t.Tensor:
        """After this batch."""
        ...


@t.no_grad()
def count_selection(trainer: Any, step: int, terms: SelectionTerms, is_finite: t.Tensor) -> None:
    """Update the dead-feature counters and the threshold of a subclass of upstream's TopKTrainer.

    Arguments:
        is_finite: whether the step was taken (0-dim bool). If not, nothing changes.
    """
    trainer.num_tokens_since_fired = t.where(
        is_finite, terms.tokens_since_fired_F, trainer.num_tokens_since_fired
    )
    is_dead_F = trainer.num_tokens_since_fired >= trainer.dead_feature_threshold
    trainer.dead_features = is_dead_F.sum()
    if step > trainer.threshold_start_step:
        old, new = trainer.ae.threshold, terms.mean_threshold
        running = trainer.threshold_beta * old + (1 - trainer.threshold_beta) * new
        updated = t.where(old < 0, new, running)
        trainer.ae.threshold = t.where(is_finite & ~new.isnan(), updated, old)
