"""A feature's directions, its nearest neighbours, and the tokens that it promotes, all from the weights.

Shapes: F features, D = activation_dim, V = vocabulary.
"""

from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch as t
from dictionary_learning.dictionary import Dictionary
from torch import nn

from ..activations.hook_points import block_list_path
from ..errors import LanguageModelError
from ..run_folder.tensors import in_memory
from ..trainers.dictionaries import decoder_directions, weights_by_feature

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_FEATURES_AT_ONCE = 256


class Ranked(NamedTuple):
    """The n largest or smallest entries of each feature, the most extreme first: their indices and values, (F, n)."""

    indices_Fn: t.Tensor
    values_Fn: t.Tensor


class RandomDirections:
    """Random unit directions, (F, D), whose expected second moments are those of given directions.

    They are normalised Gaussian vectors. Normalising flattens a spectrum, so the Gaussian's is steeper than that of the given
    directions, which count as unit vectors.
    """

    @t.no_grad()
    def __init__(self, like_FD: t.Tensor):
        self._shape, self._dtype = like_FD.shape, like_FD.dtype
        unit_FD = nn.functional.normalize(like_FD.double(), dim=1)
        moments_D, vectors_DD = t.linalg.eigh(unit_FD.T @ unit_FD / len(unit_FD))
        variances_D = _variances_before_normalising(moments_D.clamp(min=0))
        # symmetric: the vectors' signs cancel
        self._root_DD = vectors_DD * variances_D.sqrt() @ vectors_DD.T

    def draw(self, generator: t.Generator) -> t.Tensor:
        """One draw, (F, D), in the dtype of the given directions."""
        noise_FD = t.randn(self._shape, generator=generator, dtype=t.float64)
        return nn.functional.normalize(noise_FD @ self._root_DD, dim=1).to(self._dtype)


def _variances_before_normalising(moments_D: t.Tensor) -> t.Tensor:
    """The variances v of a Gaussian z for which E[z_i^2 / |z|^2] is moments_D, which sums to 1.

    By the fixed point v_i <- v_i moment_i / E[z_i^2 / |z|^2], where the expectation is the integral of
    v_i / (1 + 2 s v_i) prod_j (1 + 2 s v_j)^(-1/2) over s > 0.
    """
    u_S = t.linspace(-16, 16, 2001, dtype=moments_D.dtype)  # s = e^u
    variances_D = moments_D.clone()
    for _ in range(200):
        scaled_SD = 2 * u_S.exp()[:, None] * variances_D
        weight_S = u_S.exp() * (-0.5 * scaled_SD.log1p().sum(1)).exp()
        expected_D = t.trapezoid(weight_S[:, None] * variances_D / (1 + scaled_SD), u_S, dim=0)
        change_D = t.where(moments_D > 0, moments_D / expected_D.clamp(min=1e-300), 1.0)
        variances_D = variances_D * change_D
        variances_D = variances_D / variances_D.sum()
        if (change_D - 1).abs().max() < 1e-4:
            break
    return variances_D


@t.no_grad()
def encoder_directions(dictionary: Dictionary) -> t.Tensor:
    """The gradient of each feature's pre-activation (of a vSAE, its mean mu) with respect to x, (F, D)."""
    weight_FD, _ = weights_by_feature(dictionary)
    return weight_FD.detach().float().cpu()


def alignment(dictionary: Dictionary) -> t.Tensor:
    """The cosine between each feature's encoder and decoder directions, (F,)."""
    pair = encoder_directions(dictionary), decoder_directions(dictionary)
    return t.cosine_similarity(*pair, dim=1)


def nearest_features(directions_FD: t.Tensor, n: int = 6) -> Ranked:
    """The n other features with the largest cosines; all others, if there are fewer."""
    unit_FD = nn.functional.normalize(directions_FD, dim=1)
    n = min(n, len(unit_FD) - 1)
    parts = []
    for start in range(0, len(unit_FD), _FEATURES_AT_ONCE):
        cosines = unit_FD[start : start + _FEATURES_AT_ONCE] @ unit_FD.T
        cosines.diagonal(start).fill_(-t.inf)
        parts.append(cosines.topk(n, dim=1))
    return _joined(parts)


class LogitLens:
    """The direct effect of a direction in the residual stream on the logits.

    The direction d passes only through the final norm and the unembedding W_U, not through the blocks in between. The norm's
    scale is held fixed. So it is the effect of adding a little of d to a typical residual stream, up to a positive factor
    that all tokens and features share. For a final norm with gain g,

        logits = W_U (g * (d - mean d))    LayerNorm
        logits = W_U (g * d)               RMSNorm

    less their mean over the vocabulary, which the softmax ignores. A soft cap on logits is ignored.

    Arguments:
        model: a language model with a final norm beside its blocks, e.g. GPT-NeoX, Llama, GPT-2,
            Gemma or Qwen.

    Raises: LanguageModelError if the model has no such norm or no unembedding.
    """

    def __init__(self, model: "PreTrainedModel"):
        hf_model: Any = model
        config = hf_model.config.get_text_config()
        parent = block_list_path(hf_model, config).rpartition(".")[0]
        norms = [
            module
            for _, module in hf_model.get_submodule(parent).named_children()
            if getattr(getattr(module, "weight", None), "shape", None) == (config.hidden_size,)
        ]
        unembedding = hf_model.get_output_embeddings()
        if not norms or unembedding is None:
            missing = "unembedding" if norms else "final norm"
            raise LanguageModelError(
                f"a {type(hf_model).__name__} has no {missing} beside its blocks: expected one, to"
                " measure effects on logits",
                instead="use logits=False or another language model",
            )
        self._norm = norms[-1]
        self._weight_VD = in_memory(unembedding, "weight", unembedding.weight)

    @t.no_grad()
    def logits(self, directions_ND: t.Tensor) -> t.Tensor:
        """The direct effects of N directions on the logits, (N, V), float32."""
        weight = self._weight_VD
        d_ND = directions_ND.to(weight.device, t.float32)
        if self._centres:
            d_ND = d_ND - d_ND.mean(1, keepdim=True)
        logits_NV = (d_ND * self._gain_D) @ weight.float().T
        return logits_NV - logits_NV.mean(1, keepdim=True)

    @cached_property
    def _gain_D(self) -> t.Tensor:
        """The norm's gain g, measured on its outputs: some norms multiply by 1 + their weight."""
        probe_D = t.ones_like(self._weight_VD[0])
        probe_D[1::2] = -1.0  # mean about 0 and mean square about 1: the norm hardly rescales it
        probe_D *= 64.0  # large compared to the norm's epsilon
        scale = (probe_D.float() - probe_D.float().mean()).square().mean().sqrt()
        out_D = self._normed(probe_D).float() - self._normed(t.zeros_like(probe_D)).float()
        return out_D * scale / probe_D.float()

    @cached_property
    def _centres(self) -> bool:
        """Whether the norm subtracts the mean. LayerNorm does, RMSNorm doesn't."""
        zeros_D = t.zeros_like(self._weight_VD[0])
        moved = self._normed(t.ones_like(zeros_D)) - self._normed(zeros_D)
        return float(moved.abs().max()) < 1e-3

    def _normed(self, x_D: t.Tensor) -> t.Tensor:
        """The norm's output, on the input's device. The norm may be on another one."""
        return self._norm(x_D).to(x_D.device)

    def ranked(self, directions_FD: t.Tensor, n: int = 8) -> tuple[Ranked, Ranked]:
        """The n tokens whose logits each direction raises most, and the n that it lowers most."""
        tops, bottoms = [], []
        for part_ND in directions_FD.split(_FEATURES_AT_ONCE):
            logits_NV = self.logits(part_ND)
            tops.append(logits_NV.topk(n, dim=1))
            bottoms.append(logits_NV.topk(n, dim=1, largest=False))
        return _joined(tops), _joined(bottoms)


def _joined(parts: list[Any]) -> Ranked:
    values, indices = (t.cat(part).cpu() for part in zip(*parts, strict=True))
    return Ranked(indices, values)
