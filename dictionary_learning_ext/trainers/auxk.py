"""AuxK: dead features learn to reconstruct what the living ones leave (Gao et al. 2024, A.2)."""

from typing import NamedTuple

import torch as t

from .codes import DenseCode, SparseCode, top_k_code


def count_dead(device: t.device) -> bool:
    """Whether reading the number of dead features costs nothing."""
    return device.type == "cpu"


class AuxK(NamedTuple):
    """Upstream's `TopKTrainer.get_auxiliary_loss`, with its gradient."""

    loss: t.Tensor
    """||residual - its reconstruction||^2, relative to the residual's variance (0-dim)"""
    indices_BK: t.Tensor
    """each row's largest dead features"""
    is_dead_BK: t.Tensor
    """False where a row had fewer dead features than were taken"""
    code: SparseCode | DenseCode
    aux_error_BD: t.Tensor
    scale: t.Tensor
    """1 / the residual's variance"""

    @classmethod
    def of(
        cls,
        mu_BF: t.Tensor,
        dead_F: t.Tensor,
        W_dec_DF: t.Tensor,
        error_BD: t.Tensor,
        top_k_aux: int,
        matmul_dtype: t.dtype,
    ) -> "AuxK | None":
        """Reconstruct the residual from each row's `top_k_aux` largest dead features.

        On a CPU the number of dead features is read, and none costs nothing (None is returned). On
        a GPU reading it would hold the host up: there `top_k_aux` features are always taken, and
        living ones among them count as zero.

        Arguments:
            mu_BF: the posterior's means.
            dead_F: which features are dead (bool).
            error_BD: x_hat - x, taken as a constant.
        """
        k_aux = min(top_k_aux, len(dead_F))
        if count_dead(mu_BF.device):
            k_aux = min(k_aux, int(dead_F.sum()))
            if k_aux == 0:
                return None
        values_BK, indices_BK = mu_BF.masked_fill(~dead_F, -t.inf).topk(k_aux, sorted=False)
        is_dead_BK = values_BK > -t.inf
        values_BK = values_BK.masked_fill(~is_dead_BK, 0.0).to(W_dec_DF.dtype)
        code = top_k_code(indices_BK, values_BK, W_dec_DF, matmul_dtype)
        aux_error_BD = code.decode() + error_BD
        residual_variance = (error_BD - error_BD.mean(0)).square().sum(-1).mean()
        scale = t.where(residual_variance > 0, 1 / residual_variance, 0.0)
        scale = scale * dead_F.any()  # without dead features there is nothing to reconstruct with
        loss = aux_error_BD.square().sum(-1).mean() * scale
        return cls(loss, indices_BK, is_dead_BK, code, aux_error_BD, scale)

    def backward(self, weight: float) -> tuple[t.Tensor, t.Tensor]:
        """The gradients of mu at `indices_BK`, (B, K), and of W_dec, (D, F), of weight * loss."""
        grad_BD = self.aux_error_BD * (self.scale * (2 * weight / len(self.aux_error_BD)))
        grad_values_BK, grad_W_dec_DF = self.code.backward(grad_BD)
        return grad_values_BK * self.is_dead_BK, grad_W_dec_DF
