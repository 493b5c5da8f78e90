"""Load SAEs in other libraries' formats into classes of upstream or this package that compute the same.

    SAELens        W_enc (D, F), b_enc (F), W_dec (F, D), b_dec (D). A jumprelu also has threshold (F) or
                   log_threshold; a gated has b_gate, b_mag and r_mag (F) in place of b_enc
    sparsify       encoder.weight (F, D), encoder.bias (F), W_dec (F, D), b_dec (D)
    Gemma Scope    as SAELens's jumprelu; some files have w_enc and w_dec
    Baker & Li     encoder.weight (F, D), encoder.bias (F), decoder.weight (D, F), decoder.bias or bias (D), k (). A
                   learned variance has var_encoder.weight (F, D) and var_encoder.bias (F) for log sigma^2

Baker & Li's SAEs get a ReLU on the mean, as in their current code. They don't save the scale of the activations in
training, so the KL and samples are in units of the raw activations.
None of the libraries is needed. foreign.py reads the settings.
"""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch as t
from dictionary_learning.dictionary import Dictionary
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..config.architectures import BY_DICT_CLASS, import_class
from ..errors import CheckpointError
from .files import WEIGHTS
from .foreign import BAKER_LI, GEMMA_SCOPE_WEIGHTS, TOP_K
from .sae_folder import SAEFolder
from .tensors import damaged, read_state_dict, require_finite, require_sizes

UNIT_NORM_TOLERANCE = 1e-5
"""The largest deviation from 1 of a decoder's norms that SAE Bench accepts as unit norms."""
_BY_MAGNITUDE: dict[str, Any] = {"posterior": "point", "select_by": "magnitude"}
_OPTIONS: dict[str, dict[str, Any]] = {
    "abstopk": _BY_MAGNITUDE,
    BAKER_LI[0]: _BY_MAGNITUDE | {"rectify": True},
    BAKER_LI[1]: _BY_MAGNITUDE | {"rectify": True, "posterior": "learned"},
}
"""Further arguments of the dictionary's class, by architecture."""
_LOG_VAR_LIMITS = (-6.0, 2.0)
"""The bounds of log sigma^2 in Baker & Li's code."""
_NAMES = {
    **{"encoder.weight": "W_enc", "encoder.bias": "b_enc", "decoder.weight": "W_dec"},
    **{"decoder.bias": "b_dec", "bias": "b_dec"},
    **{"var_encoder.weight": "W_var", "var_encoder.bias": "b_var"},
    **{"w_enc": "W_enc", "w_dec": "W_dec"},  # Gemma Scope's
}
"""SAELens's names of tensors, by those of the other libraries."""
_GEMMA_SCOPE_ARRAYS = (*_NAMES, *_NAMES.values(), "b_dec", "threshold", "scaling_factor")


@t.no_grad()
def load_foreign(
    sae: SAEFolder,
    device: str = "cpu",
    dtype: t.dtype = t.float32,
    *,
    unit_norm: bool = False,
) -> Dictionary:
    """Load an SAE in another library's format. Features and reconstructions are the library's, up to rounding.

    Arguments:
        unit_norm: scale the decoder's directions to unit norm, and features by the former norms, as SAELens's
            fold_W_dec_norm does.

    Raises: CheckpointError if the weights are missing, damaged, not finite, or not an SAE's; or if unit norms would
    change which features a TopK selects.
    """
    trainer, settings = sae.config["trainer"], sae.config["foreign"]
    path, k, architecture = sae.weights, trainer["k"], settings["architecture"]
    try:
        weights = _tensors_in(path)
        D, F = weights["W_enc"].shape
        options = _OPTIONS.get(architecture, {})
        if architecture in TOP_K:
            if k is None or not 1 <= k <= F:
                raise damaged(path, f"k={k} of {F} features")
            options = options | {"k": k}
        state = _upstream_state(path, settings, weights, unit_norm)
        dict_class = import_class(BY_DICT_CLASS[trainer["dict_class"]].dictionary)
        dictionary: Any = dict_class(activation_dim=D, dict_size=F, **options).to(dtype)
        dictionary.load_state_dict(dictionary.state_dict() | state)
    except CheckpointError:  # it is a ValueError
        raise
    except KeyError as error:
        without = f"without {error.args[0]}, which an SAE of architecture {architecture!r} has"
        raise damaged(path, without) from error
    # The last two: shapes that don't fit together.
    except (OSError, zipfile.BadZipFile, SafetensorError, RuntimeError, ValueError) as error:
        what = " ".join(str(error).split())[:200]
        raise damaged(path, f"{type(error).__name__}: {what}") from error
    require_sizes(path, dictionary, trainer)
    return dictionary.to(device).eval().requires_grad_(False)


def _tensors_in(path: Path) -> dict[str, t.Tensor]:
    """The checked tensors of a file, by SAELens's names, in float64. No code in it is executed."""
    if path.name == GEMMA_SCOPE_WEIGHTS:
        tensors = _arrays_in(path)
    else:
        tensors = read_state_dict(path) if path.name == WEIGHTS else load_file(path)
    weights = {
        # The weight of a Linear layer of torch is transposed.
        _NAMES.get(name, name): (value.T if name.endswith(".weight") else value).double()
        for name, value in tensors.items()
    }
    if "log_threshold" in weights:  # earlier versions of SAELens saved it in training
        weights["threshold"] = weights.pop("log_threshold").exp()
    require_finite(path, weights)
    factor_F = weights.pop("scaling_factor", t.ones(1))
    if not t.allclose(factor_F, t.ones_like(factor_F)):
        raise CheckpointError(
            f"{path}: has a scaling_factor, by which its finetuning scaled features",
            expected="none, or ones",
        )
    return weights


def _arrays_in(path: Path) -> dict[str, t.Tensor]:
    """The known arrays of an .npz file of Gemma Scope. No code in it is executed."""
    if not zipfile.is_zipfile(path):  # numpy's error advises to unpickle it
        raise zipfile.BadZipFile("not a zip file")
    with np.load(path, allow_pickle=False) as arrays:
        names = [name for name in arrays.files if name in _GEMMA_SCOPE_ARRAYS]
        return {name: t.from_numpy(arrays[name].astype(np.float64)) for name in names}


def _upstream_state(
    path: Path, settings: dict[str, Any], weights: dict[str, t.Tensor], unit_norm: bool
) -> dict[str, t.Tensor]:
    """The state dict for the dictionary's class."""
    architecture, scale = settings["architecture"], settings["scale"]
    W_enc_DF, W_dec_FD, b_dec_D = (weights[name] for name in ("W_enc", "W_dec", "b_dec"))
    if scale != 1.0:
        W_enc_DF, W_dec_FD, b_dec_D = W_enc_DF * scale, W_dec_FD / scale, b_dec_D / scale
    norms_F = W_dec_FD.norm(dim=1)
    is_unit = t.allclose(norms_F, t.ones_like(norms_F), atol=UNIT_NORM_TOLERANCE, rtol=0)
    rescales = settings["rescales"] and architecture in TOP_K
    if unit_norm and architecture in TOP_K and not is_unit and not rescales:
        raise CheckpointError(
            f"{path}: its decoder's norms are {norms_F.min():.6g} to {norms_F.max():.6g}, and "
            "unit norms would change which features its TopK keeps; expected norms of 1, or "
            "rescale_acts_by_decoder_norm"
        )
    scale_F = t.ones_like(norms_F)
    if not is_unit and (unit_norm or rescales):
        scale_F = norms_F.where(norms_F > 0, 1.0)
        W_enc_DF, W_dec_FD = W_enc_DF * scale_F, W_dec_FD / scale_F[:, None]
    # Upstream's JumpReLU encodes x, the others x - b_dec: how many b_dec the library's encoder has more.
    more = int(architecture != "jumprelu") - int(settings["subtracts_b_dec"])
    shift_F = more * b_dec_D @ W_enc_DF
    if architecture == "gated":
        return {
            "encoder.weight": W_enc_DF.T,
            "gate_bias": weights["b_gate"] * scale_F + shift_F,
            "mag_bias": weights["b_mag"] * scale_F + shift_F * weights["r_mag"].exp(),
            "r_mag": weights["r_mag"],
            "decoder.weight": W_dec_FD.T,
            "decoder_bias": b_dec_D,
        }
    b_enc_F = weights["b_enc"] * scale_F + shift_F
    if architecture == "jumprelu":
        threshold_F = weights["threshold"] * scale_F
        state = {"W_enc": W_enc_DF, "b_enc": b_enc_F, "threshold": threshold_F}
        return state | {"W_dec": W_dec_FD, "b_dec": b_dec_D}
    state = {
        "encoder.weight": W_enc_DF.T,
        "encoder.bias": b_enc_F,
        "decoder.weight": W_dec_FD.T,
        "bias" if architecture == "standard" else "b_dec": b_dec_D,
    }
    if architecture == BAKER_LI[1]:
        W_var_DF = weights["W_var"]
        state["log_var_encoder.weight"] = W_var_DF.T
        state["log_var_encoder.bias"] = weights["b_var"] + more * b_dec_D @ W_var_DF
        state["log_var_limits"] = t.tensor(_LOG_VAR_LIMITS)
    return state
