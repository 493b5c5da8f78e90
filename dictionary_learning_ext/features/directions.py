"""What a feature's weights say: its directions, its neighbours, and what it promotes.

Shapes: F features, D = activation_dim, V = vocabulary.
"""

from typing import Any, NamedTuple

import torch as t
from dictionary_learning.dictionary import Dictionary
from nnsight import LanguageModel
from torch import nn

from ..activations.language_models import block_list_path
from ..errors import LanguageModelError

_FEATURES_AT_ONCE = 256


class Ranked(NamedTuple):
    """The n largest or smallest of something per feature, the most extreme first."""

    indices_Fn: t.Tensor
    values_Fn: t.Tensor


@t.no_grad()
def decoder_directions(dictionary: Dictionary) -> t.Tensor:
    """What one unit of each feature adds to the reconstruction, (F, D), for any class."""
    sae: Any = dictionary
    parameter = next(dictionary.parameters())
    parts = []
    for start in range(0, dictionary.dict_size, _FEATURES_AT_ONCE):
        rows = range(start, min(start + _FEATURES_AT_ONCE, dictionary.dict_size))
        one_hot = t.zeros(len(rows), dictionary.dict_size).to(parameter)
        one_hot[range(len(rows)), rows] = 1.0
        parts.append(sae.decode(one_hot) - sae.decode(t.zeros_like(one_hot[:1])))
    return t.cat(parts).float().cpu()


@t.no_grad()
def encoder_directions(dictionary: Dictionary) -> t.Tensor:
    """The gradient of each feature's pre-activation (a vSAE's mean mu) by x, (F, D)."""
    sae: Any = dictionary
    weight_FD = sae.W_enc.T if hasattr(sae, "W_enc") else sae.encoder.weight
    return weight_FD.detach().float().cpu()


def alignment(dictionary: Dictionary) -> t.Tensor:
    """The cosine of each feature's encoder and decoder direction, (F,)."""
    pair = encoder_directions(dictionary), decoder_directions(dictionary)
    return t.cosine_similarity(*pair, dim=1)


def nearest_features(directions_FD: t.Tensor, n: int = 6) -> Ranked:
    """The n other features with the largest cosine; fewer if there are fewer."""
    unit_FD = nn.functional.normalize(directions_FD, dim=1)
    n = min(n, len(unit_FD) - 1)
    parts = []
    for start in range(0, len(unit_FD), _FEATURES_AT_ONCE):
        cosines = unit_FD[start : start + _FEATURES_AT_ONCE] @ unit_FD.T
        own = t.arange(len(cosines))
        cosines[own, start + own] = -t.inf
        parts.append(cosines.topk(n, dim=1))
    return Ranked(t.cat([part.indices for part in parts]), t.cat([part.values for part in parts]))


class LogitLens:
    """From a direction in the residual stream to the logits that it adds directly.

    The direction goes through the final norm and the unembedding alone, not through the blocks in
    between, and the norm's scale is held fixed (what a small addition to a typical residual stream
    does, up to a positive factor that all tokens and features share). In formulas, for a final norm
    with gain g: logits = W_U (g * (d - mean d)) with LayerNorm, W_U (g * d) with RMSNorm; then the
    mean over the vocabulary is taken away, which no softmax sees. A soft cap on logits is ignored.

    Arguments:
        model: a language model with a final norm beside its blocks, as GPT-NeoX, Llama, GPT-2,
            Gemma and Qwen have.

    Raises: LanguageModelError if the norm or the unembedding can't be found.
    """

    def __init__(self, model: LanguageModel):
        hf_model: Any = model._model
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
                f"a {type(hf_model).__name__} has no {missing} beside its blocks: the logit effects "
                "need one; use another language model, or leave them out by --logits False"
            )
        self._norm, self._unembedding = norms[-1], unembedding

    @t.no_grad()
    def logits(self, directions_ND: t.Tensor) -> t.Tensor:
        """The direct effect of unit steps along directions on the logits, (N, V), float32."""
        weight = self._unembedding.weight
        d_ND = directions_ND.to(weight.device, t.float32)
        gain_D = self._gain(d_ND.shape[1], weight)
        if self._centres(d_ND.shape[1], weight):
            d_ND = d_ND - d_ND.mean(1, keepdim=True)
        logits_NV = (d_ND * gain_D) @ weight.float().T
        return logits_NV - logits_NV.mean(1, keepdim=True)

    def _gain(self, width: int, like: t.Tensor) -> t.Tensor:
        """The norm's gain, read off its outputs, as some norms multiply by 1 + their weight."""
        probe_D = t.ones(width, dtype=like.dtype, device=like.device)
        probe_D[1::2] = -1.0  # mean 0 and mean square 1, nearly: scaled as it is
        probe_D *= 64.0  # large beside the norm's epsilon
        scale = (probe_D.float() - probe_D.float().mean()).square().mean().sqrt()
        out_D = self._norm(probe_D).float() - self._norm(t.zeros_like(probe_D)).float()
        return out_D * scale / probe_D.float()

    def _centres(self, width: int, like: t.Tensor) -> bool:
        """Whether the norm takes the mean away, as LayerNorm does and RMSNorm does not."""
        zeros_D = t.zeros(width, dtype=like.dtype, device=like.device)
        moved = self._norm(t.ones_like(zeros_D)) - self._norm(zeros_D)
        return float(moved.abs().max()) < 1e-3

    def ranked(self, directions_FD: t.Tensor, n: int = 8) -> tuple[Ranked, Ranked]:
        """The n tokens that each direction promotes most, and those it suppresses most."""
        tops, bottoms = [], []
        for part_ND in directions_FD.split(_FEATURES_AT_ONCE):
            logits_NV = self.logits(part_ND).cpu()
            tops.append(logits_NV.topk(n, dim=1))
            bottoms.append(logits_NV.topk(n, dim=1, largest=False))
        return _joined(tops), _joined(bottoms)


def _joined(parts: list[Any]) -> Ranked:
    return Ranked(t.cat([part.indices for part in parts]), t.cat([part.values for part in parts]))
