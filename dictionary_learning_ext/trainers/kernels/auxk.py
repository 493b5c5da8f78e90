"""AuxK: dead features learn to reconstruct what the living ones do not (Gao et al. 2024, A.2)."""

from typing import NamedTuple

import torch as t

from ...config.sae import SelectBy
from .codes import Code, SubsetCode, top_k_code
from .means import BatchMeans
from .ranks import ALONE, Ranks
from .selection import top_k
from .step_form import StepForm


class AuxKLoss(NamedTuple):
    """Upstream's `TopKTrainer.get_auxiliary_loss`, with its gradient."""

    loss: t.Tensor
    """||residual - its reconstruction||^2, relative to the residual's variance (0-dim)"""
    values_BK: t.Tensor
    is_dead_BK: t.Tensor
    """false for a living feature, taken because there were too few dead ones"""
    code: Code
    """each row's largest dead features"""
    aux_error_BD: t.Tensor
    scale: t.Tensor
    """1 / the residual's variance"""

    @classmethod
    def of(
        cls,
        means: BatchMeans,
        dead_F: t.Tensor,
        W_dec_FD: t.Tensor,
        error_BD: t.Tensor,
        top_k_aux: int,
        matmul_dtype: t.dtype,
        form: StepForm,
        ranks: Ranks = ALONE,
        *,
        select_by: SelectBy = "value",
    ) -> "AuxKLoss | None":
        """Reconstruct the residual from each row's `top_k_aux` largest dead features.

        If `form.reads_dead_count`, having no dead features costs nothing, and None is returned.
        Otherwise `top_k_aux` features are always taken, and living ones among them count as zero.

        Arguments:
            means: the posterior's.
            dead_F: which features are dead (bool).
            error_BD: x_hat - x; no gradient flows through it.
            ranks: whose errors the residual's variance is of. All have the same dead features.
            select_by: what "largest" means, see `selection.draw_code`.
        """
        k_aux = min(top_k_aux, len(dead_F))
        rows_at_once, how = form.rows_at_once, {"rectified": means.rectify, "select_by": select_by}
        if form.reads_dead_count:
            dead = dead_F.nonzero().squeeze(1)
            k_aux = min(k_aux, len(dead))
            if k_aux == 0:
                return None
            blocks = means.row_blocks(len(dead))
            parts = [top_k(means.of(rows, dead), k_aux, rows_at_once, **how) for rows in blocks]
            values_BK, places_BK = (t.cat(tensors) for tensors in zip(*parts, strict=True))
            code = SubsetCode(places_BK, dead, len(dead_F), matmul_dtype, form, name="aux_code")
        else:
            blocks = means.row_blocks(len(dead_F))
            least = 0.0 if select_by == "magnitude" else -t.inf
            masked = (means.of(rows).masked_fill(~dead_F, least) for rows in blocks)
            parts = [top_k(mu_BF, k_aux, rows_at_once, **how) for mu_BF in masked]
            values_BK, indices_BK = (t.cat(tensors) for tensors in zip(*parts, strict=True))
            code = top_k_code(indices_BK, len(dead_F), matmul_dtype, form, name="aux_code")
        is_dead_BK = dead_F[code.indices_BK]
        values_BK = values_BK.masked_fill(~is_dead_BK, 0.0)
        aux_error_BD = code.combine(values_BK, W_dec_FD) + error_BD
        residual_variance = row_variance(error_BD, ranks)
        scale = t.where(residual_variance > 0, 1 / residual_variance, 0.0)
        scale = scale * dead_F.any()  # without dead features there is nothing to reconstruct with
        loss = aux_error_BD.square().sum(-1).mean() * scale
        return cls(loss, values_BK, is_dead_BK, code, aux_error_BD, scale)

    def backward(self, weight: float) -> tuple[t.Tensor, t.Tensor]:
        """The gradients of weight * loss at the code's means, (B, K), and at W_dec, (F, D)."""
        grad_BD = self.aux_error_BD * (self.scale * (2 * weight / len(self.aux_error_BD)))
        grad_values_BK = self.code.project(grad_BD) * self.is_dead_BK
        return grad_values_BK, self.code.outer(self.values_BK, grad_BD)


def row_variance(error_BD: t.Tensor, ranks: Ranks) -> t.Tensor:
    """The mean over the rows of all ranks of the squared distance from their mean (0-dim)."""
    mean_D = error_BD.mean(0)
    variance = (error_BD - mean_D).square().sum(-1).mean()
    if ranks.count == 1:
        return variance
    of_ranks = ranks.gather(t.cat([mean_D, variance[None]]))
    means_ND, variances_N = of_ranks[:, :-1], of_ranks[:, -1]
    between_N = (means_ND - means_ND.mean(0)).square().sum(-1)
    return (variances_N + between_N).mean()
