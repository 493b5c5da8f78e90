"""Probabilistic TopK: random gates help to choose a token's features in training.

"Probabilistic TopK Sparse Autoencoder for Interpreting the Activations of Large Language Models" (Li,
Li, Murray & Carenini 2026, PMLR 318:888-894), on top of upstream's TopK (Gao et al. 2024, arXiv
2406.04093). Shapes: B batch, D activation_dim, F dict_size, K = k.
"""

from typing import NamedTuple

import torch as t
from dictionary_learning.trainers.top_k import AutoEncoderTopK, TopKTrainer
from torch.nn import functional

from ..config.sae import ProbabilisticTopKConfig
from .base import SamplingTopKTrainer
from .kernels.select import top_k
from .matmuls import product
from .parts import WHOLE, Part, Selection
from .step import MeanSelection, dead_features_loss, largest

MAGNITUDE_WEIGHT = 1e-4
"""The logit's weight in a feature's score. It breaks ties between gates that are fully open."""


def gate_logits(pre_BF: t.Tensor, part: Part = WHOLE) -> t.Tensor:
    """Each token's pre-activations, standardised over its features: (B, F)."""
    if part.count == 1:
        return functional.layer_norm(pre_BF, pre_BF.shape[-1:], eps=1e-12)
    mean_B1 = part.mean(pre_BF.mean(-1, keepdim=True))
    centred_BF = pre_BF - part.shared(mean_B1)
    variance_B1 = part.mean(centred_BF.square().mean(-1, keepdim=True))
    return centred_BF * part.shared((variance_B1 + 1e-12).rsqrt())


def sample_gates(
    logits_BF: t.Tensor, temperature: float, generator: t.Generator, part: Part = WHOLE
) -> t.Tensor:
    """Gates in [0, 1], differentiable in the logits: sigmoid((l + n) / T), n ~ Logistic(0, 1).

    This is the Binary Concrete distribution (Maddison et al. 2017, arXiv 1611.00712), torch's relaxed
    Bernoulli. At any T a gate exceeds 1/2 with probability sigmoid(l). As T goes to 0, the gate becomes a
    Bernoulli variable with that probability.
    """
    u_BF = part.draw(logits_BF, generator, t.Tensor.uniform_)
    noise_BF = t.logit(u_BF, eps=t.finfo(u_BF.dtype).eps)
    return ((logits_BF + noise_BF) / temperature).sigmoid()


class GatedCode(NamedTuple):
    """The code of a batch in training."""

    features_BF: t.Tensor
    """dense"""
    values_BK: t.Tensor
    gate_BK: t.Tensor
    """gates of the K features"""


class GatedTerms(NamedTuple):
    """The loss of a batch and its parts, 0-dim except the last. Only `loss` has a gradient."""

    loss: t.Tensor
    l2_loss: t.Tensor
    """mean over the batch of ||x - x_hat||^2"""
    auxk_loss: t.Tensor
    """AuxK's loss, relative to the residual's variance, before auxk_alpha"""
    mean_gate: t.Tensor
    """mean gate of the selected features"""
    mean_threshold: t.Tensor
    """see `step.LossTerms`"""
    tokens_since_fired_F: t.Tensor
    """see `step.LossTerms`"""


class ProbabilisticTopKTrainer(SamplingTopKTrainer):
    """Trains upstream's AutoEncoderTopK as upstream's TopKTrainer does, with a random gate per feature.

        a_BF  = W_enc (x - b_dec) + b_enc
        l_BF  = (a - mean_F a) / std_F a
        g_BF  = sigmoid((l + n) / T(t)),  n ~ Logistic(0, 1)     # Binary Concrete gates
        I_BK  = the K features with the largest g + 1e-4 l
        f_BF  = ReLU(a) (1 + g) / 2 on I, 0 elsewhere
        loss  = mean_B ||x - x_hat||^2 + auxk_alpha AuxK

    T(t) falls geometrically from `temperature_start` to `temperature_end`. At high T the K largest of l + n are
    kept: the noise explores. As T goes to 0, a gate is open with probability sigmoid(l), and the K largest a with
    open gates are kept. So only features barely above a token's average are still left out at random. Without
    noise this limit is upstream's TopK, if K features exceed the token's average. The trained dictionary is
    evaluated as upstream's TopK.

    From the paper's abstract and its authors' public code (raymondzmc/Probabilistic-TopK-SAE): l, g, the
    score, the schedule 5 to 1e-3, the gate as a factor on the kept values. Different here, so that the trained
    SAE is upstream's class:

    - They have no b_enc, and a learned gain and bias on each l. (The paper's reviewers note that in its ablation
      these hardly matter.)
    - Their values are a (1 + g), and may be negative. Half of that is TopK's value at an open gate.
    - Their score is g + 1e-4 |a|. With l instead of |a| it doesn't depend on the units of x.
    - They have no AuxK (here auxk_alpha=0). The default is upstream's.

    What the paper leaves open is as upstream: see `VariationalTopKTrainer`. A feature fires where TopK without
    gates keeps it. A step that is not finite is skipped.

    Arguments beyond upstream's:
        options: the others of `ProbabilisticTopKConfig`, and those below.
        dict_class: AutoEncoderTopK or a subclass.
        dtype: "float32", or "bfloat16" for matmuls in bf16. Parameters, optimiser, gates and sums stay
            in fp32. An autocast around the call changes nothing.
        mean_squared_norm: E||x||^2 of the activations. Default: 1, for trainSAE's normalize_activations=True.
        part: the features of a split dictionary that this process trains; see `split.py`.
        first_fill: activations (N, D) to start from, see `start_from_data`. Default: random weights.

    Raises: ConfigError for a value out of range, or activations that are not (B, D).
    """

    settings_class = ProbabilisticTopKConfig
    dictionary_class = AutoEncoderTopK
    draws_noise_seed = True
    ae: AutoEncoderTopK

    def _terms(self, x: t.Tensor, step: int, generator: t.Generator) -> GatedTerms:
        ae, part, matmul_dtype = self.ae, self.part, self._matmul_dtype
        centred_BD = x - part.shared(ae.b_dec)
        pre_BF = product(centred_BD, ae.encoder.weight, matmul_dtype) + ae.encoder.bias
        code = self._code(pre_BF, self._temperature(step), generator)
        decoded_BD = part.sum(product(code.features_BF, ae.decoder.weight, matmul_dtype).to(x))
        error_BD = x - decoded_BD - ae.b_dec
        l2_loss = error_BD.square().sum(-1).mean()
        found = self._selected_without_gates(pre_BF.detach())
        auxk_alpha, auxk_loss = self._auxk_weight(step, x), l2_loss.new_zeros(())
        if auxk_alpha > 0:
            auxk_loss = dead_features_loss(
                -error_BD,
                pre_BF,
                found.tokens_since_fired_F >= self.dead_feature_threshold,
                ae.decoder.weight,
                self.top_k_aux,
                select_by="value",
                matmul_dtype=matmul_dtype,
                part=part,
            )
        is_held_BK = code.values_BK.detach() != 0
        n_held = part.sum(is_held_BK.sum()).clamp(min=1)
        mean_gate = part.sum((code.gate_BK.detach() * is_held_BK).sum()) / n_held
        return GatedTerms(l2_loss + auxk_alpha * auxk_loss, l2_loss, auxk_loss, mean_gate, *found)

    def _code(self, pre_BF: t.Tensor, temperature: float, generator: t.Generator) -> GatedCode:
        """Draw the code of pre-activations (B, F)."""
        logits_BF = gate_logits(pre_BF, self.part)
        gate_BF = sample_gates(logits_BF, temperature, generator, self.part)
        score_BF = gate_BF.detach() + MAGNITUDE_WEIGHT * logits_BF.detach()
        selection = largest(score_BF, self.k, "value", self.part)
        gate_BK = selection.of(gate_BF)
        values_BK = selection.only(selection.of(pre_BF).relu() * (1 + gate_BK) / 2)
        return GatedCode(selection.spread(values_BK, pre_BF.shape[1]), values_BK, gate_BK)

    def _temperature(self, step: int) -> float:
        """T(t)."""
        start, end = self.settings.temperature_start, self.settings.temperature_end
        return start * (end / start) ** min(step / max(self.steps - 1, 1), 1.0)

    def _scheduled(self, step: int) -> dict[str, float]:
        """See `SamplingTrainer`."""
        return {"temperature": self._temperature(step)}

    @t.no_grad()
    def _selected_without_gates(self, pre_BF: t.Tensor) -> MeanSelection:
        """What the K largest pre-activations select; those above 0 fire."""
        if self.part.count == 1:
            values_BK, indices_BK = top_k(pre_BF, self.k)
            selection = Selection(indices_BK, values_BK)
        else:
            selection = largest(pre_BF, self.k, "value", self.part)
        fires_BK = selection.only(selection.of(pre_BF) > 0)
        return MeanSelection.of(selection, fires_BK, self.num_tokens_since_fired)

    def _reconstruction(self, x: t.Tensor, step: int) -> dict[str, float]:
        """See `SamplingTrainer`."""
        ae, part = self.ae, self.part
        if part.count == 1:
            return super()._reconstruction(x, step)
        f_BF = product(x - ae.b_dec, ae.encoder.weight, x.dtype).add_(ae.encoder.bias).relu_()
        selection = largest(f_BF, self.k, "value", part)
        values_BK = selection.only(selection.of(f_BF))
        return self._metrics_of_code(x, selection, values_BK)

    def _logged(self, terms: GatedTerms, x: t.Tensor) -> dict[str, t.Tensor]:
        return super()._logged(terms, x) | {"mean_gate": terms.mean_gate}

    @property
    def config(self) -> dict:
        """See `SamplingTrainer`. It has the name of upstream's trainer, so that its readers load the SAE."""
        return super().config | {"trainer_class": TopKTrainer.__name__}
