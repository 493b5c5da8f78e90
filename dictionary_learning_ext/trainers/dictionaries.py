"""What the package asks of a dictionary, of any class, and how ours rebuild themselves from `ae.pt`.

Evaluation asks a dictionary for its `posterior`, if it has one (`HasPosterior`), and gets each feature's
KL and standard deviation (`FeaturePosterior`). `load_dictionary` asks ours to rebuild themselves
(`FromState`). Callers ask what a dictionary can do, never which class it is. Shapes: F dict_size, D
activation_dim.
"""

import math
from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch as t
from dictionary_learning.dictionary import Dictionary

from ..config.checks import require
from ..errors import CheckpointError, ConfigError


@runtime_checkable
class HasPosterior(Protocol):
    """A dictionary whose features are distributions."""

    def posterior(self, x: t.Tensor) -> "FeaturePosterior":
        """The distribution of each feature of activations (…, D)."""
        ...


class FeaturePosterior(Protocol):
    """Each feature's distribution, for some tokens."""

    @property
    def kl(self) -> t.Tensor:
        """KL divergence from the prior in nats, (…, F)."""
        ...

    @property
    def std(self) -> t.Tensor:
        """Standard deviation, (…, F) or 0-dim."""
        ...

    @property
    def noise_variance(self) -> t.Tensor | None:
        """sigma^2, if sampling adds k sigma^2 of energy to a reconstruction; otherwise None."""
        ...


class TopKCode(NamedTuple):
    """The K features that each token keeps."""

    values: t.Tensor
    """Their activations, (…, K); 0 where a ReLU leaves fewer than K."""
    indices: t.Tensor
    """Their numbers, (…, K), int64, in any order."""


@runtime_checkable
class SparseEncoder(Protocol):
    """A dictionary that gives its features without the zeros."""

    def sparse_encode(self, x: t.Tensor) -> TopKCode:
        """What `encode` returns for activations (…, D), sparse."""
        ...


@runtime_checkable
class PosteriorEncoder(Protocol):
    """A dictionary that selects K features from a posterior that is there already."""

    def posterior(self, x: t.Tensor) -> "FeaturePosterior": ...

    def code_of(self, posterior: Any) -> TopKCode:
        """What `sparse_encode` gives for the activations that the posterior is of."""
        ...

    def drawn_from(self, posterior: Any, generator: t.Generator) -> TopKCode:
        """The code of a sample."""
        ...


def selects_top_k(dictionary: Dictionary) -> bool:
    """Whether it keeps each token's k largest features, and its `encode` can return which."""
    return "return_topk" in signature(dictionary.encode).parameters


def k_of(dictionary: Any) -> int | None:
    """How many features it keeps of each token; None if it has no k."""
    k = getattr(dictionary, "k", None)
    return None if k is None else int(k)


def as_input(dictionary: Dictionary, x: t.Tensor) -> t.Tensor:
    """Activations in the dtype and on the device of a dictionary's parameters.

    Upstream's classes take no others, and a language model's dtype may differ from the SAE's.
    """
    return x.to(next(dictionary.parameters()))


@t.no_grad()
def decoder_directions(dictionary: Dictionary, features: Sequence[int] | None = None) -> t.Tensor:
    """What one unit of each feature adds to the reconstruction: (F, D).

    Arguments:
        features: those wanted, a row each, in this order. None: all.
    """
    sae: Any = dictionary
    weight_FD = sae.W_dec if hasattr(sae, "W_dec") else sae.decoder.weight.T
    wanted_FD = weight_FD if features is None else weight_FD[list(features)]
    return wanted_FD.detach().float().cpu().clone()  # not the SAE's own memory


class FromState:
    """A dictionary that can be rebuilt from its state dict alone."""

    @classmethod
    def _built_as(cls, state: dict[str, t.Tensor]) -> dict[str, Any]:
        """The constructor's arguments that `state` holds, beyond activation_dim and dict_size."""
        return {}

    @classmethod
    def from_pretrained(
        cls, path: str | Path, k: int | None = None, device: str | None = None
    ) -> Any:
        """Load an SAE of this class from its `ae.pt`. No other file is needed.

        `load_dictionary` finds the class of the SAE in a folder.

        Raises: ConfigError if `k` is given and differs from the file's; CheckpointError for a folder, or a file
        that `torch.save` didn't write.
        """
        try:
            state = t.load(path, map_location=device or "cpu", weights_only=True)
        except FileNotFoundError:
            raise
        except Exception as error:  # bytes of any content raise anything
            what = "a folder" if isinstance(error, IsADirectoryError) else "holds no weights"
            advice = "give the ae.pt in a run folder, or the folder to load_dictionary"
            raise CheckpointError(f"{path}: {what}", instead=advice) from error
        arguments = cls._built_as(state)
        saved_k = arguments.get("k")
        require(k in (None, saved_k), "k", k, f"{saved_k}, as in {path}", instead="leave it out")
        dict_size, activation_dim = state["encoder.weight"].shape
        sae: Any = cls(activation_dim, dict_size, **arguments)  # pyright: ignore[reportCallIssue]
        sae = sae.to(state["encoder.weight"])  # its device and dtype
        sae.load_state_dict(state)
        return sae


def require_width(x: t.Tensor, width: int, what: str = "activations") -> None:
    """Raise a ConfigError for activations, or features, of another width than an SAE takes, and for what is no
    tensor.

    nnsight's proxies, whose width isn't known yet, pass.
    """
    if not hasattr(x, "to"):
        raise ConfigError(f"x is a {type(x).__name__}", expected=f"a tensor of {what}")
    if isinstance(x, t.Tensor) and x.shape[-1:] != (width,):
        raise ConfigError(
            f"x has the shape {tuple(x.shape)}",
            expected=f"{what} of width {width}: (…, {width})",
        )


def require_scale(scale: float) -> None:
    """Raise a ConfigError unless the units of activations can be multiplied by `scale`."""
    hint = "; trainSAE gives 0 if all activations are 0" if scale == 0 else ""
    require(0 < scale < math.inf, "scale", scale, f"above 0 and finite{hint}")
