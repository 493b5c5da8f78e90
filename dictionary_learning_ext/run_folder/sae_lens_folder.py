"""Reading the folder of a SAELens SAE (version 6), as a class of upstream's or ours that computes the
same.

    cfg.json                  architecture, k, and how activations are treated
    sae_weights.safetensors   W_enc (D, F), b_enc (F), W_dec (F, D), b_dec (D), threshold (F)

SAELens itself is not needed.
"""

import functools
import json
from pathlib import Path
from typing import Any

import torch as t
from dictionary_learning.dictionary import AutoEncoder, Dictionary, JumpReluAutoEncoder
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from safetensors.torch import load_file

from ..errors import CheckpointError
from ..trainers.variational_top_k import VariationalTopKAutoEncoder

SAE_LENS_CONFIG = "cfg.json"
SAE_LENS_WEIGHTS = "sae_weights.safetensors"
UNIT_NORM_TOLERANCE = 1e-5
"""How far from 1 a decoder's norms may be for an SAE whose reader takes them to be 1 (SAE Bench's)."""
_DEFAULTS = {"normalize_activations": "none", "reshape_activations": "none"}
"""The only values of these settings that upstream's classes can represent."""
_CLASSES: dict[str, Any] = {
    "standard": AutoEncoder,
    "topk": AutoEncoderTopK,
    "abstopk": functools.partial(
        VariationalTopKAutoEncoder,
        posterior="point",  # pyright: ignore[reportCallIssue]
        select_by="magnitude",  # pyright: ignore[reportCallIssue]
    ),
    "jumprelu": JumpReluAutoEncoder,
}
_OF_TOP_K = ("topk", "abstopk")


def is_sae_lens_folder(folder: str | Path) -> bool:
    """Whether a folder is one of SAELens's."""
    return (Path(folder) / SAE_LENS_CONFIG).is_file()


@t.no_grad()
def load_sae_lens(folder: str | Path, device: str = "cpu") -> Dictionary:
    """The SAE of a folder that SAELens wrote, in float32, with unit-norm decoder directions.

    Its features and reconstructions are SAELens's, up to rounding. For a ReLU or JumpReLU whose
    decoder has other norms, features are in units of the norms (as after SAELens's fold_W_dec_norm).

    Raises: CheckpointError if a file is missing, damaged or not finite, or no class computes the same.
    """
    folder = Path(folder)
    config, weights = _read(folder)
    architecture = config.get("architecture")
    if architecture not in _CLASSES:
        raise CheckpointError(
            f"{folder}: an SAE of SAELens's architecture {architecture!r}; expected one of "
            f"{', '.join(_CLASSES)}"
        )
    for name, only in _DEFAULTS.items():
        if config.get(name, only) != only:
            raise CheckpointError(
                f"{folder}: {name} is {config[name]!r} in {SAE_LENS_CONFIG}; expected {only!r}, as "
                "SAELens saves an SAE for inference"
            )
    k = (config.get("k"),) if architecture in _OF_TOP_K else ()
    try:
        state = _state(folder, architecture, config, weights)
        dictionary: Any = _CLASSES[architecture](*weights["W_enc"].shape, *k)
        dictionary.load_state_dict(dictionary.state_dict() | state)
    except CheckpointError:
        raise
    except Exception as error:  # of any kind: files of any content are handed to the class
        found = ", ".join(f"{name} {tuple(value.shape)}" for name, value in weights.items())
        settings = f" with k={k[0]!r}" if k else ""
        raise CheckpointError(
            f"{folder}: {SAE_LENS_WEIGHTS} holds {found}: not the weights of one SAE of "
            f"architecture {architecture!r}{settings}; copy it again"
        ) from error
    return dictionary.to(device).eval().requires_grad_(False)


def _state(
    folder: Path, architecture: str, config: dict[str, Any], weights: dict[str, t.Tensor]
) -> dict[str, t.Tensor]:
    """SAELens's weights as the upstream class of an architecture has them."""
    W_enc_DF, W_dec_FD, b_dec_D = (weights[name] for name in ("W_enc", "W_dec", "b_dec"))
    b_enc_F, norms_F = weights["b_enc"], W_dec_FD.norm(dim=1)
    is_unit = t.allclose(norms_F, t.ones_like(norms_F), atol=UNIT_NORM_TOLERANCE, rtol=0)
    rescales = config.get("rescale_acts_by_decoder_norm")
    if architecture in _OF_TOP_K and not is_unit and not rescales:
        raise CheckpointError(
            f"{folder}: its decoder's norms are {norms_F.min():.6g} to {norms_F.max():.6g}, and "
            "unit norms would change which features its TopK keeps; expected norms of 1, or "
            "rescale_acts_by_decoder_norm"
        )
    scale_F = t.ones_like(norms_F) if is_unit else norms_F.where(norms_F > 0, 1.0)
    W_enc_DF, b_enc_F, W_dec_FD = W_enc_DF * scale_F, b_enc_F * scale_F, W_dec_FD / scale_F[:, None]
    # Upstream's JumpReLU encodes x, the others x - b_dec.
    shift_F, is_centred = b_dec_D @ W_enc_DF, bool(config.get("apply_b_dec_to_input", True))
    if architecture == "jumprelu":
        b_enc_F = b_enc_F - shift_F if is_centred else b_enc_F
        threshold_F = weights["threshold"] * scale_F
        state = {"W_enc": W_enc_DF, "W_dec": W_dec_FD, "b_dec": b_dec_D, "threshold": threshold_F}
        return state | {"b_enc": b_enc_F}
    return {
        "encoder.weight": W_enc_DF.T,
        "encoder.bias": b_enc_F if is_centred else b_enc_F + shift_F,
        "decoder.weight": W_dec_FD.T,
        "bias" if architecture == "standard" else "b_dec": b_dec_D,
    }


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, t.Tensor]]:
    """The content of both files, weights in float32."""
    try:
        config = json.loads((folder / SAE_LENS_CONFIG).read_text(encoding="utf-8"))
        weights = {n: v.float() for n, v in load_file(folder / SAE_LENS_WEIGHTS).items()}
        shapes = {name: tuple(weights[name].shape) for name in ("W_enc", "W_dec", "b_enc", "b_dec")}
        n_axes = [len(shape) for shape in shapes.values()]
        if not isinstance(config, dict) or n_axes != [2, 2, 1, 1]:
            raise ValueError(f"shapes {shapes}")
    except Exception as error:  # bytes of any content raise anything
        raise CheckpointError(
            f"{folder}: {SAE_LENS_CONFIG} or {SAE_LENS_WEIGHTS} is missing or damaged "
            f"({type(error).__name__}: {' '.join(str(error).split())[:200]}); copy it again"
        ) from error
    if bad := [name for name, value in weights.items() if not value.isfinite().all()]:
        raise CheckpointError(f"{folder}: {bad[0]} has NaN or infinite values; copy it again")
    return config, weights
