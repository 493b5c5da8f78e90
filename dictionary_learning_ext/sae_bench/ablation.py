"""SCR's and TPP's ablations, with each text encoded once instead of once per ablation.

For every class and every N, SAE Bench encodes a test set, zeroes N features, decodes with and without
them, and averages over each text's tokens. With a linear decoder, the result is simply the mean
activation minus the ablated features' means times their decoder directions.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import sae_bench.evals.scr_and_tpp.main as scr_and_tpp
import torch as t
from sae_bench.custom_saes.base_sae import BaseSAE
from torch.utils.weak import WeakTensorKeyDictionary


class Ablation:
    """Replaces SAE Bench's `ablated_precomputed_activations` for one SAE."""

    def __init__(self):
        self._means = WeakTensorKeyDictionary()

    @t.no_grad()
    def __call__(
        self,
        ablation_acts_BLD: t.Tensor,
        sae: BaseSAE,
        to_ablate: t.Tensor,
        sae_batch_size: int,
    ) -> t.Tensor:
        """Each text's mean activation without some features, (B, D), as in SAE Bench's function.

        Arguments:
            ablation_acts_BLD: activations; 0 at padded tokens, which the mean leaves out.
            to_ablate: (F,), bool.
            sae_batch_size: texts to encode at once.
        """
        if ablation_acts_BLD not in self._means:
            self._means[ablation_acts_BLD] = _means(ablation_acts_BLD, sae, sae_batch_size)
        x_BD, f_BF = self._means[ablation_acts_BLD]
        removed_BD = f_BF[:, to_ablate] @ sae.W_dec[to_ablate].to(f_BF.dtype)
        return (x_BD - removed_BD).to(ablation_acts_BLD.dtype)


@contextmanager
def encoding_once() -> Iterator[None]:
    """Within it, SAE Bench's SCR and TPP of one SAE use `Ablation`."""
    with patch.object(scr_and_tpp, "ablated_precomputed_activations", Ablation()):
        yield


def _means(acts_BLD: t.Tensor, sae: BaseSAE, batch_size: int) -> tuple[t.Tensor, t.Tensor]:
    """The mean activations (B, D) and features (B, F) of each text, in fp32 or wider."""
    x, f = [], []
    for batch_BLD in acts_BLD.split(batch_size):
        dtype = t.promote_types(batch_BLD.dtype, t.float32)
        counted_B = (batch_BLD.sum(-1) != 0).sum(-1, keepdim=True).to(dtype)
        x.append(batch_BLD.sum(1, dtype=dtype) / counted_B)
        f.append(sae.encode(batch_BLD).sum(1, dtype=dtype) / counted_B)
    return t.cat(x), t.cat(f)
