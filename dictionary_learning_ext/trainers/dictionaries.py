"""What the package needs from a dictionary of any class, and how ours are rebuilt from `ae.pt`.

Callers check what a dictionary can do (the protocols below), never its class. Shapes: F dict_size, D
activation_dim.
"""

import math
from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch as t
from dictionary_learning.dictionary import Dictionary
from torch import nn

from ..config.checks import require
from ..errors import ConfigError


@runtime_checkable
class HasPosterior(Protocol):
    """A dictionary whose features are distributions."""

    def posterior(self, x: t.Tensor) -> "FeaturePosterior":
        """The distribution of each feature of activations (…, D)."""
        ...


class FeaturePosterior(Protocol):
    """The distributions of features on a batch of tokens."""

    @property
    def kl(self) -> t.Tensor:
        """Each feature's KL divergence from the prior in nats, (…, F)."""
        ...

    @property
    def std(self) -> t.Tensor:
        """Each feature's standard deviation, (…, F) or 0-dim."""
        ...

    @property
    def noise_variance(self) -> t.Tensor | None:
        """sigma^2, if a sample adds k sigma^2 of energy to the reconstruction; otherwise None."""
        ...


class TopKCode(NamedTuple):
    """The K features that each token keeps, or M of all tokens together."""

    values: t.Tensor
    """Activations, (…, K) or (M,). Some are 0 if a ReLU leaves fewer than K."""
    indices: t.Tensor
    """Feature indices, in the shape of the values, int64, in any order."""
    rows: t.Tensor | None = None
    """The token of each, ascending, if they are of all tokens together, in the same shape; None: K of each token."""


@runtime_checkable
class SparseEncoder(Protocol):
    """A dictionary that can encode sparsely."""

    def sparse_encode(self, x: t.Tensor) -> TopKCode:
        """The same features as `encode` gives for activations (…, D), without the zeros."""
        ...


@runtime_checkable
class PosteriorEncoder(HasPosterior, Protocol):
    """A dictionary that can select K features from a posterior that was already computed."""

    def code_of(self, posterior: Any) -> TopKCode:
        """The code by the posterior's mean: the same as `sparse_encode` of its activations."""
        ...

    def drawn_from(self, posterior: Any, generator: t.Generator) -> TopKCode:
        """The code of a sample from the posterior."""
        ...


def selects_top_k(dictionary: Dictionary) -> bool:
    """Whether it keeps each token's k largest features, and its `encode` takes `return_topk`."""
    return "return_topk" in signature(dictionary.encode).parameters


def k_of(dictionary: Any) -> int | None:
    """The number of features it keeps per token; None if it has no k."""
    k = getattr(dictionary, "k", None)
    return None if k is None else int(k)


def as_input(dictionary: Dictionary, x: t.Tensor) -> t.Tensor:
    """Activations, cast to the dtype and device of a dictionary's parameters, as upstream's classes require."""
    return x.to(next(dictionary.parameters()))


def weights_by_feature(dictionary: Any) -> tuple[t.Tensor, t.Tensor]:
    """The weights of the encoder and of the decoder, (F, D) each. They share the dictionary's memory."""
    if hasattr(dictionary, "W_dec"):
        return dictionary.W_enc.T, dictionary.W_dec
    return dictionary.encoder.weight, dictionary.decoder.weight.T


_OTHER_WEIGHTS = {
    "b_enc": ("encoder.bias", "b_enc"),
    "b_dec": ("b_dec", "bias", "decoder_bias", "decoder.bias"),
    "threshold": ("threshold",),
    "b_gate": ("gate_bias",),
    "b_mag": ("mag_bias",),
    "r_mag": ("r_mag",),
}
"""SAELens's names of weights, with those that they have in our and upstream's classes."""


def other_weight(dictionary: Dictionary, name: str) -> t.Tensor | None:
    """A weight by SAELens's name, e.g. b_dec; None if the dictionary has none, as a gated SAE no b_enc."""
    state = dictionary.state_dict()
    return next((state[own] for own in _OTHER_WEIGHTS[name] if own in state), None)


@t.no_grad()
def decoder_directions(dictionary: Dictionary, features: Sequence[int] | None = None) -> t.Tensor:
    """Each feature's decoder direction, a copy on the CPU: (F, D).

    Arguments:
        features: the features to return, one row each, in this order. None: all.
    """
    _, weight_FD = weights_by_feature(dictionary)
    wanted_FD = weight_FD if features is None else weight_FD[list(features)]
    return wanted_FD.detach().float().cpu().clone()


@t.no_grad()
def nonzero_norms(weight_DF: t.Tensor) -> t.Tensor:
    """The norms of a decoder's columns, (F,); 1 for columns that are 0."""
    norm_F = weight_DF.norm(dim=0)
    return t.where(norm_F > 0, norm_F, 1.0)


class OwnDictionary(Dictionary):
    """Base class of our dictionaries: they have upstream's `encoder`, `decoder` and `b_dec`, and are rebuilt from their
    state dict alone."""

    encoder: nn.Linear
    decoder: nn.Linear
    b_dec: nn.Parameter

    def decode(self, f: t.Tensor) -> t.Tensor:
        """The reconstruction from features: (…, F) -> (…, D)."""
        require_width(f, self.dict_size, "features")
        return self.decoder(f.to(self.b_dec.dtype)) + self.b_dec

    def forward(self, x: t.Tensor, output_features: bool = False):
        """The reconstruction without noise, (…, D). With `output_features`, also the features."""
        f: Any = self.encode(x)
        x_hat = self.decode(f)
        return (x_hat, f) if output_features else x_hat

    def _centred(self, x: t.Tensor) -> t.Tensor:
        """x - b_dec, in the parameters' dtype."""
        return x.to(self.b_dec.dtype) - self.b_dec

    @classmethod
    def _built_as(cls, state: dict[str, t.Tensor]) -> dict[str, Any]:
        """The constructor's arguments that follow from a state dict, beyond activation_dim and dict_size."""
        return {}

    @classmethod
    def from_pretrained(
        cls, path: str | Path, k: int | None = None, device: str | None = None
    ) -> Any:
        """Load an SAE of this class from its `ae.pt`. For a folder, use `load_dictionary`.

        Raises: ConfigError if `k` is given and differs from the file's.
        """
        state = t.load(path, map_location=device or "cpu", weights_only=True)
        arguments = cls._built_as(state)
        saved_k = arguments.get("k")
        require(k in (None, saved_k), "k", k, f"{saved_k}, as in {path}", instead="leave it out")
        dict_size, activation_dim = state["encoder.weight"].shape
        sae: Any = cls(activation_dim, dict_size, **arguments)  # pyright: ignore[reportCallIssue]
        sae = sae.to(state["encoder.weight"])  # its device and dtype
        sae.load_state_dict(state)
        return sae


class Transcoder(OwnDictionary):
    """Mixed into a dictionary, it reconstructs y from x:

    mu    = W_enc x + b_enc               # no b_dec, which is y's
    y_hat = W_dec f + b_dec
    """

    def _centred(self, x: t.Tensor) -> t.Tensor:
        return x.to(self.b_dec.dtype)

    @t.no_grad()
    def scale_input(self, scale: float) -> None:
        """Change the units of x alone: afterwards encode(x / scale) is the former encode(x). `scale_biases` changes those of x
        and y together.

        Raises: ConfigError unless `scale` is a positive number.
        """
        require_scale(scale)
        for name, weight in self.named_parameters():
            if name in ("encoder.weight", "log_var_encoder.weight"):
                weight.mul_(scale)


def is_transcoder(dictionary: Any) -> bool:
    """Whether a dictionary reconstructs another activation than it reads."""
    return isinstance(dictionary, Transcoder)


def sides(dictionary: Any, rows: t.Tensor) -> tuple[t.Tensor, t.Tensor]:
    """What a dictionary, of ours or upstream's, encodes and what it reconstructs, (…, D) each, of rows: (…, D), which are both, or
    (…, 2D) for a transcoder, of which these are copies."""
    if not is_transcoder(dictionary):
        return rows, rows
    x, y = rows.chunk(2, -1)
    return x.contiguous(), y.contiguous()


def require_width(x: t.Tensor, width: int, what: str = "activations") -> None:
    """Raise a ConfigError unless the last dimension of activations, or of features, has this width.

    nnsight's proxies are not checked, as their width isn't known yet.
    """
    if isinstance(x, str | list | tuple):
        raise ConfigError(
            name="x",
            value=x,
            expected=f"a tensor of {what}, (…, {width})",
            instead="for a text, call encode_text(sae, text, lm, hook=…), or encode_text(FOLDER, text)",
        )
    if isinstance(x, t.Tensor) and x.shape[-1:] != (width,):
        raise ConfigError(
            f"x has the shape {tuple(x.shape)}",
            expected=f"{what} of width {width}: (…, {width})",
        )


def require_scale(scale: float) -> None:
    """Raise a ConfigError unless `scale` is positive and finite."""
    require(0 < scale < math.inf, "scale", scale, "above 0 and finite")
