"""The optimiser step of upstream's TopKTrainer, fused, and skipped where it is not finite."""

import torch as t
from dictionary_learning.trainers.top_k import AutoEncoderTopK

from .guarded_adam import GuardedAdam


class UnitNormAdam(GuardedAdam):
    """Adam for a dictionary whose decoder columns have norm 1.

    A step projects the decoder's gradient, clips the norm of all gradients to 1, moves, and
    renormalises the decoder: what upstream's `TopKTrainer.update` does around its Adam, in fewer
    passes. Where the loss or a gradient is not finite nothing moves.

    Arguments:
        dictionary: its `decoder.weight` is (D, F).
        lr: the learning rate.
    """

    def __init__(self, dictionary: AutoEncoderTopK, lr: float):
        super().__init__(dictionary.parameters(), lr)
        self.decoder_weight = dictionary.decoder.weight

    @t.no_grad()
    def constrained_step(self, loss: t.Tensor, step: int) -> t.Tensor:
        """Move by the gradients of `loss`, and clear them. Returns whether it did (0-dim bool)."""
        weight = self.decoder_weight
        assert weight.grad is not None
        project_out_parallel(weight, weight.grad)
        is_finite = self.guarded_step(loss, step)
        norm_F = t.linalg.vector_norm(weight, dim=0) + t.finfo(weight.dtype).eps
        weight.div_(t.where(is_finite, norm_F, 1.0))
        return is_finite


@t.no_grad()
def project_out_parallel(weight_DF: t.Tensor, grad_DF: t.Tensor) -> None:
    """Take from each column of the gradient its part along the decoder's column, in place.

    Upstream's `remove_gradient_parallel_to_decoder_directions`, in fewer passes.
    """
    norm_F = t.linalg.vector_norm(weight_DF, dim=0) + 1e-6
    parallel_F = (weight_DF * grad_DF).sum(0) / norm_F.square()
    grad_DF.addcmul_(weight_DF, parallel_F, value=-1)
