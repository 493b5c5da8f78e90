"""A learned prior: each feature has a standard deviation p_i of its own, by empirical Bayes.

Automatic relevance determination (MacKay 1994; Tipping 2001): the prior of feature i is N(0, p_i^2). Its
part of the expected KL, with m_i = E[mu_i^2 + sigma_i^2] over the tokens whose KL counts, is

    E[KL_i] = 1/2 (m_i / p_i^2 - 1 - E[log sigma_i^2]) + log p_i

    d E[KL_i] / d log p_i = 1 - m_i / p_i^2,  so that p_i^2 = m_i is the minimum, whatever beta is.

There, E[KL_i] = log p_i - 1/2 E[log sigma_i^2]: a feature pays for its scale by a logarithm, which pulls
weak features to 0 more than strong ones. A fixed prior's quadratic price does the opposite.

p_i follows its minimum in closed form, as a running mean, instead of by a gradient:

    p_i^2 = S_i / N_i,   S_i <- r S_i + sum (mu_i^2 + sigma_i^2),   N_i <- r N_i + (number of tokens)

At the minimum the derivative at p_i is 0, so the gradient of all other parameters is the same as for a
constant p_i (the envelope theorem), and a step takes p_i as one. A parameter log p_i would move by about
lr per step, would add to the gradient's norm, to which the weights' gradients are clipped, and would
make the optimum depend on Adam. None of this happens here: with beta = 0 the weights are those of a
fixed prior to the bit.

The tokens are all tokens if the KL is of all features, and those that keep i (noise included) if it is
of the selected ones. A feature that none keeps stays as it is. Before the first step p_i is prior_std.
Sums are of all ranks. A skipped step changes nothing.

A point has sigma = 0: the KL would be infinite, and without it p_i -> 0 and log p_i -> -inf. So in the
KL, and there alone, a point has sigma = LEAST_STD prior_std. Then p_i is never less, and the KL is
never negative. In training units prior_std is the scale of the activations: 1 under --normalize sqrt_d,
where a random unit direction has activations of variance 1.
"""

from typing import Any

import torch as t

from .kernels.objective import LossTerms

LEAST_STD = 0.01
"""A point's standard deviation in the KL from a learned prior, relative to prior_std."""
PRIOR_DECAY = 0.99
"""r, per step: p_i looks back about 100 batches."""


def start_prior(trainer: Any) -> None:
    """Give a trainer the running sums of its learned prior, S and N, at 0."""
    trainer.prior_square_sum_F = t.zeros_like(trainer.ae.prior_std)
    trainer.prior_tokens_F = t.zeros_like(trainer.ae.prior_std)


@t.no_grad()
def follow_prior(trainer: Any, terms: LossTerms, is_finite: t.Tensor) -> None:
    """Update the sums and the dictionary's prior_std, unless the step was skipped.

    Arguments:
        is_finite: whether the step was taken (0-dim bool).
    """
    squares_F = PRIOR_DECAY * trainer.prior_square_sum_F + terms.square_sum_F
    tokens_F = PRIOR_DECAY * trainer.prior_tokens_F + terms.square_tokens_F
    trainer.prior_square_sum_F = t.where(is_finite, squares_F, trainer.prior_square_sum_F)
    trainer.prior_tokens_F = t.where(is_finite, tokens_F, trainer.prior_tokens_F)
    is_new_F = is_finite & (terms.square_tokens_F > 0)
    old_F = trainer.ae.prior_std
    old_F.copy_(t.where(is_new_F, (squares_F / tokens_F).sqrt(), old_F))
