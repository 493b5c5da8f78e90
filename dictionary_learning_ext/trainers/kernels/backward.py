"""A step's gradients, derived by hand.

The reconstruction's gradient has K values per row. The gradient at mu of the KL over all features
comes from second moments of the batch (`means.py`). Only the KL of a learned log-variance needs a
B x F gradient.
"""

import torch as t

from .codes import Code
from .forward import ForwardPass
from .objective import StepObjective, Weights


def gradients(
    forward_pass: ForwardPass, weights: Weights, objective: StepObjective, *, x_grad: bool
) -> tuple[t.Tensor | None, ...]:
    """The loss's gradients at x (None without `x_grad`) and at each of `weights`."""
    e, batch = forward_pass, len(forward_pass.error_BD)
    W_enc_FD, centred_BD = weights.W_enc_FD, e.means.centred_BD
    grad_hat_BD = e.error_BD * (2 / batch)
    grad_values_BK = e.code.project(grad_hat_BD)
    grad_W_dec_FD = e.code.outer(e.draw.values_BK, grad_hat_BD)
    # The KL's gradient is mu / p^2 at mu, and (sigma^2 / p^2 - 1) / 2 at log_var, times its weight.
    # It is on the selected features, or on all.
    grad_mu_BK = grad_values_BK
    if objective.options.kl_scope == "selected":
        kl_weight = objective.kl_weight / objective.prior_std.square()
        grad_mu_BK = grad_mu_BK + e.draw.mu_BK * (kl_weight / batch)
    if objective.posterior.rectify:
        grad_mu_BK = grad_mu_BK * (e.draw.mu_BK > 0)
    on_mu: list[tuple[Code, t.Tensor]] = [(e.code, grad_mu_BK)]
    if e.auxk is not None:
        aux_grad_mu_BK, aux_grad_W_dec_FD = e.auxk.backward(objective.auxk_alpha)
        if objective.posterior.rectify:
            aux_grad_mu_BK = aux_grad_mu_BK * (e.auxk.values_BK > 0)
        on_mu.append((e.auxk.code, aux_grad_mu_BK))
        grad_W_dec_FD = grad_W_dec_FD + aux_grad_W_dec_FD

    grad_W_enc_FD, grad_b_enc_F = t.zeros(()), t.zeros_like(weights.b_enc_F)
    grad_x_BD = -grad_hat_BD if x_grad else None
    if e.moments is not None and e.moments.cross_FD is not None:
        factor_F = (objective.kl_weight / objective.prior_std.square()).expand_as(grad_b_enc_F)
        grad_W_enc_FD = e.moments.cross_FD.mul_(factor_F[:, None])
        grad_b_enc_F = e.moments.mean_F * factor_F
        if grad_x_BD is not None:
            grad_x_BD = grad_x_BD + e.means.combine(factor_F / batch)
    for code, grad_BK in on_mu:
        grad_W_enc_FD = code.outer(grad_BK, centred_BD).add_(grad_W_enc_FD)
        grad_b_enc_F.scatter_add_(0, code.indices_BK.flatten(), grad_BK.flatten())
        if grad_x_BD is not None:
            grad_x_BD = grad_x_BD + code.combine(grad_BK, W_enc_FD)
    grad_b_dec_D = grad_hat_BD.sum(0) - grad_b_enc_F @ W_enc_FD

    grad_W_var_FD = grad_b_var_F = None
    if e.log_var is not None:
        grad_W_var_FD, grad_b_var_F, var_grad_x_BD = _log_var_gradients(
            e, grad_values_BK, objective, x_grad=x_grad
        )
        grad_b_dec_D = grad_b_dec_D - grad_b_var_F @ e.log_var.weight_FD
        if grad_x_BD is not None and var_grad_x_BD is not None:
            grad_x_BD = grad_x_BD + var_grad_x_BD
    return (
        grad_x_BD, grad_W_enc_FD, grad_b_enc_F, grad_W_dec_FD.t(), grad_b_dec_D,
        grad_W_var_FD, grad_b_var_F,
    )  # fmt: skip


def _log_var_gradients(
    e: ForwardPass, grad_values_BK: t.Tensor, objective: StepObjective, *, x_grad: bool
) -> tuple[t.Tensor, t.Tensor, t.Tensor | None]:
    """The loss's gradients at W_var, b_var and, if `x_grad`, x."""
    assert e.log_var is not None
    assert e.draw.log_var is not None
    batch, drawn = len(e.error_BD), e.draw.log_var
    selected_BK = t.zeros_like(grad_values_BK)
    if objective.posterior.noise_on != "selection":  # dz / dlog_var = sigma eps tau / 2
        selected_BK = grad_values_BK * (e.draw.values_BK - e.draw.mu_BK) / 2
    if objective.options.kl_scope == "selected":
        excess_BK = drawn.selected_BK.exp() / objective.prior_std.square() - 1
        selected_BK = selected_BK + excess_BK * (objective.kl_weight / (2 * batch))
    selected_BK = selected_BK * drawn.is_inside_BK
    weight_FD = e.log_var.weight_FD
    grad_W_FD = e.code.outer(selected_BK, e.means.centred_BD)
    grad_b_F = t.zeros_like(weight_FD[:, 0])
    grad_b_F.scatter_add_(0, e.code.indices_BK.flatten(), selected_BK.flatten())
    grad_x_BD = e.code.combine(selected_BK, weight_FD) if x_grad else None

    if drawn.kl_gradient_sum_F is not None:
        factor_F = t.full_like(grad_b_F, objective.kl_weight / batch)
        grad_W_FD.addcmul_(e.log_var.kl_outer(), factor_F[:, None])
        grad_b_F.addcmul_(drawn.kl_gradient_sum_F, factor_F)
        if grad_x_BD is not None:
            grad_x_BD = grad_x_BD + e.log_var.kl_combine(weight_FD * factor_F[:, None])
    return grad_W_FD, grad_b_F, grad_x_BD
