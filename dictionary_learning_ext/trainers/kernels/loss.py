"""The vSAE's loss for trainers: differentiable by autograd, or with its gradients at once.

Both use the gradients of `backward.py`, which are derived by hand. The same loss, written densely
for autograd, is the reference in the tests.
"""

import torch as t

from .backward import gradients
from .forward import evaluate
from .objective import LossTerms, StepObjective, Weights


def variational_loss(x_BD: t.Tensor, weights: Weights, objective: StepObjective) -> LossTerms:
    """The loss of one batch, differentiable in `x_BD` and `weights`. Draws from the generator."""
    if not t.is_grad_enabled():
        return evaluate(x_BD, weights, objective)[0]
    return LossTerms(*_VariationalLoss.apply(x_BD, *weights, objective))


def loss_and_gradients(
    x_BD: t.Tensor, weights: Weights, objective: StepObjective
) -> tuple[LossTerms, tuple[t.Tensor | None, ...]]:
    """`variational_loss` without autograd: its terms, and the gradient of each of `weights`."""
    with t.no_grad():
        terms, forward_pass = evaluate(x_BD, weights, objective)
        return terms, gradients(forward_pass, weights, objective, x_grad=False)[1:]


class _VariationalLoss(t.autograd.Function):
    """The gradients are computed with the loss. `backward` only scales them: the loss is a scalar."""

    @staticmethod
    def forward(ctx, x_BD, W_enc, b_enc, W_dec, b_dec, W_var, b_var, objective):
        weights = Weights(W_enc, b_enc, W_dec, b_dec, W_var, b_var)
        terms, forward_pass = evaluate(x_BD, weights, objective)
        if any(ctx.needs_input_grad):
            x_grad = ctx.needs_input_grad[0]
            ctx.gradients = gradients(forward_pass, weights, objective, x_grad=x_grad)
        ctx.mark_non_differentiable(*terms[1:])
        return tuple(terms)

    @staticmethod
    @t.autograd.function.once_differentiable
    def backward(ctx, grad_loss, *_):  # pyright: ignore[reportIncompatibleMethodOverride]
        return *(None if g is None else g * grad_loss for g in ctx.gradients), None
