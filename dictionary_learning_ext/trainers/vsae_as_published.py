"""The vSAE of the paper's public code, as it trains: TopK with a free decoder and an L2 penalty. It never samples.

github.com/ZachData/SPAR-Variational-Sparse-Autoencoders at 8e1581a (2025-09-27), with fixed variance (`var_flag=0`), in its
default mode (`use_april_update_mode=True`) and without AuxK, as the vSAE of Pythia-70M that the paper analyses. Line numbers are
those of its dictionary_learning/trainers/vsae_topk.py. Shapes: B batch, D activation_dim, F dict_size, K = k.
"""

import copy
from typing import Any, NamedTuple

import torch as t
from torch import nn

from ..config.checks import require_sizes
from ..config.sae import VSAEAsPublishedConfig
from .base import SamplingTrainer
from .dictionaries import OwnDictionary, nonzero_norms, require_scale, require_width
from .matmuls import Linear
from .posterior import kl_scale

START_NORM = 0.1
LARGEST = 10.0
"""Activations are clamped to this in the penalty."""


class VSAETopK(OwnDictionary):
    """The public code's dictionary, under its name and with its state dict's keys.

        z_BF  = ReLU(W_enc x + b_enc)
        f_BF  = the k largest z, 0 elsewhere
        x_hat = W_dec f + b_dec

    The encoder takes x itself, and decoder columns have any norm. At the start encoder and decoder are tied, with columns of
    norm 0.1, and biases are 0.

    Arguments:
        activation_dim: D, the width of the activations.
        dict_size: F, the number of features.
        k: features kept per token.

    Raises: ConfigError for a value out of range.
    """

    k: t.Tensor
    gain_F: t.Tensor

    def __init__(self, activation_dim: int, dict_size: int, k: int):
        super().__init__()
        require_sizes(activation_dim=activation_dim, dict_size=dict_size, k=k)
        self.activation_dim, self.dict_size = activation_dim, dict_size
        self.register_buffer("k", t.tensor(k, dtype=t.int))
        self.register_buffer("gain_F", t.ones(dict_size), persistent=False)
        self.encoder = Linear(activation_dim, dict_size)
        self.decoder = Linear(dict_size, activation_dim)
        with t.no_grad():  # :189 to :205
            w_DF = t.randn(activation_dim, dict_size)
            w_DF = w_DF / w_DF.norm(dim=0) * START_NORM
            self.encoder.weight.copy_(w_DF.T)
            self.decoder.weight.copy_(w_DF)
            self.encoder.bias.zero_()
            self.decoder.bias.zero_()

    @classmethod
    def _built_as(cls, state: dict[str, t.Tensor]) -> dict[str, Any]:
        return {"k": int(state["k"])}

    @property
    def b_dec(self) -> nn.Parameter:
        """The decoder's bias, (D,)."""
        return self.decoder.bias

    def encode(self, x: t.Tensor, return_topk: bool = False) -> Any:
        """The features of activations: (…, D) -> (…, F).

        With `return_topk`, also their values and indices, (…, K), and z, (…, F).
        """
        require_width(x, self.activation_dim)
        z = self.encoder(x.to(self.b_dec.dtype)).relu()
        values, indices = z.topk(int(self.k), dim=-1, sorted=False)
        f = t.zeros_like(z).scatter(-1, indices, values) * self.gain_F
        return (f, f.gather(-1, indices), indices, z) if return_topk else f

    def decode(self, f: t.Tensor) -> t.Tensor:
        """The reconstruction from features: (…, F) -> (…, D)."""
        require_width(f, self.dict_size, "features")
        return self.decoder(f.to(self.b_dec.dtype))

    @t.no_grad()
    def scale_biases(self, scale: float) -> None:
        """Change the units of activations by a factor: encode(scale * x) is scale times the former encode(x).

        Raises: ConfigError unless `scale` is positive.
        """
        require_scale(scale)
        self.encoder.bias.mul_(scale)
        self.decoder.bias.mul_(scale)

    @t.no_grad()
    def normalize_decoder(self) -> None:
        """Make the decoder's columns unit-norm. Features are multiplied by the former norms after the k largest are
        selected, so reconstructions stay the same. The state dict doesn't hold these factors."""
        norm_F = nonzero_norms(self.decoder.weight)
        self.decoder.weight.div_(norm_F)
        self.gain_F.mul_(norm_F)

    @t.no_grad()
    def with_norms_folded(self) -> "VSAETopK":
        """A copy with a unit-norm decoder whose former norms multiply the encoder, as the public code does when it loads an SAE
        (:463, :583). It keeps the k features that add most to the reconstruction, so it selects others."""
        folded = copy.deepcopy(self)
        norm_F = nonzero_norms(self.decoder.weight)
        folded.decoder.weight.div_(norm_F)
        folded.encoder.weight.mul_(norm_F[:, None])
        folded.encoder.bias.mul_(norm_F)
        return folded

    @t.no_grad()
    def state_of_top_k(self) -> dict[str, t.Tensor]:
        """The weights of upstream's AutoEncoderTopK that computes the same. It encodes x - b_dec."""
        weight, bias, b_dec = self.encoder.weight, self.encoder.bias, self.b_dec
        return {
            "encoder.weight": weight,
            "encoder.bias": bias + weight @ b_dec,
            "decoder.weight": self.decoder.weight,
            "b_dec": b_dec,
            "k": self.k,
            "threshold": t.tensor(-1.0),  # none
        }


class Terms(NamedTuple):
    """The loss of a batch and its parts, means over tokens."""

    loss: t.Tensor
    l2_loss: t.Tensor
    """||x - x_hat||^2"""
    kl_loss: t.Tensor
    """The code's KL: 0.5 sum of z^2 over all features"""


class VSAEAsPublishedTrainer(SamplingTrainer):
    """Trains a `VSAETopK` as the public code does.

        loss = mean_B( ||x - x_hat||^2 + beta s(t) 0.5 sum_F min(z, 10)^2 )

    s(t) rises linearly to 1 within kl_warmup_steps. The decoder is not normalised, and its gradient not projected. Gradients
    are clipped to norm 1. A step whose loss or gradient is not finite is skipped, and counted in `optimizer.skipped_steps`.

    Arguments beyond upstream's:
        options: the others of `VSAEAsPublishedConfig`, and those below. beta is its kl_coeff. lr rises for 200 steps, and doesn't fall, as there.
        dtype: with "bfloat16", parameters, gradients and Adam's moments are in bfloat16 too, as there; sums are in float32.
            Weights are saved in float32.
        first_fill: activations (N, D) to start from, see `start_from_data`. Default: random weights.

    Raises: ConfigError for a value out of range, or activations that are not (B, D).
    """

    settings_class = VSAEAsPublishedConfig
    dictionary_class = VSAETopK
    starts_at_median = False
    ae: VSAETopK

    def __init__(
        self,
        steps: int,
        activation_dim: int,
        dict_size: int,
        k: int,
        layer: int,
        lm_name: str,
        dict_class: type | None = None,
        lr: float | None = None,
        warmup_steps: int = 200,
        decay_start: int | None = None,
        **options: Any,
    ):
        options |= {"dict_size": dict_size, "k": k, "lr": lr}
        options |= {"warmup_steps": warmup_steps, "decay_start": decay_start}
        super().__init__(steps, activation_dim, layer, lm_name, dict_class, **options)

    def _dictionary(self, dict_class: type, activation_dim: int) -> Any:
        built = super()._dictionary(dict_class, activation_dim)
        return built.to(t.bfloat16 if self.dtype == "bfloat16" else t.float32)

    def _built_with(self) -> dict[str, Any]:
        return {"k": self.settings.k}

    def _terms(self, x: t.Tensor, step: int, generator: t.Generator) -> Terms:
        wide = t.promote_types(x.dtype, t.float32)
        f_BF, _, _, z_BF = self.ae.encode(x, return_topk=True)
        l2_loss = (x - self.ae.decode(f_BF)).to(wide).square().sum(-1).mean()
        kl_loss = 0.5 * z_BF.to(wide).clamp(max=LARGEST).square().sum(-1).mean()
        beta = self.settings.beta * kl_scale(step, "linear", self.settings.kl_warmup_steps)
        return Terms(l2_loss + beta * kl_loss, l2_loss, kl_loss)

    def _logged(self, terms: Terms, x: t.Tensor) -> dict[str, t.Tensor]:
        norm = self.ae.decoder.weight.norm(dim=0).median()
        return super()._logged(terms, x) | {"decoder_norm": norm}

    @property
    def config(self) -> dict:
        """With the two keys by which the public code's loader tells its variants."""
        return super().config | {"var_flag": 0, "use_april_update_mode": True}
