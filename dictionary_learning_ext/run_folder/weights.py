"""Writing and reading the weights of an SAE: ae.pt, and the folders of SAELens.

ae.pt is upstream's state dict, of a dictionary that takes raw activations. A folder of SAELens (version
6) is read, without SAELens, as a class of upstream's or ours that computes the same:

    cfg.json                  architecture, k, and how activations are treated
    sae_weights.safetensors   W_enc (D, F), b_enc (F), W_dec (F, D), b_dec (D); threshold (F) of a
                              jumprelu; b_gate, b_mag and r_mag (F) of a gated, in place of b_enc
"""

import copy
import functools
import io
import json
import math
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch as t
from dictionary_learning.dictionary import (
    AutoEncoder,
    Dictionary,
    GatedAutoEncoder,
    JumpReluAutoEncoder,
)
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from safetensors.torch import load_file

from ..config.architectures import BY_DICT_CLASS, import_class
from ..errors import CheckpointError
from ..trainers.base import require_device
from ..trainers.variational_top_k import VariationalTopKAutoEncoder
from .files import CHECKPOINTS, CONFIG, WEIGHTS, checkpoint, replacing
from .reading import read_config

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
    "gated": GatedAutoEncoder,
}
_OF_TOP_K = ("topk", "abstopk")
_REAL = (t.float64, t.float32, t.float16, t.bfloat16)


def for_raw_activations(dictionary: Dictionary, norm_factor: float) -> Dictionary:
    """The dictionary that takes raw activations, which training divided by `norm_factor`.

    It is a scaled copy, as scaling there and back would perturb training; itself if the factor is 1.
    """
    if norm_factor == 1.0:
        return dictionary
    dictionary = copy.deepcopy(dictionary)
    dictionary.scale_biases(norm_factor)  # pyright: ignore[reportCallIssue]
    return dictionary


def save_weights(path: Path, dictionary: Dictionary, norm_factor: float = 1.0) -> None:
    """Write the state dict of `for_raw_activations(dictionary, norm_factor)`, atomically.

    Raises: CheckpointError if the disk refuses.
    """
    dictionary = for_raw_activations(dictionary, norm_factor)
    state = {name: value.cpu().contiguous() for name, value in dictionary.state_dict().items()}
    file = _in_memory(state)  # on a full disk, t.save to a file raises errors that don't name it
    with replacing(path) as temporary:
        temporary.write_bytes(file.getbuffer())


def load_dictionary(
    base_path: str | Path, device: str = "cpu", *, step: int | None = None
) -> tuple[Dictionary, dict[str, Any]]:
    """The SAE in a run folder, of our class or any of upstream's, and its config.

    It takes the place of `dictionary_learning.utils.load_dictionary`, which knows upstream's classes
    only.

    Arguments:
        base_path: a folder that `vsae train`, upstream's `trainSAE` or SAELens wrote.
        step: of the checkpoint to load. Default: the final weights.

    Returns: the dictionary, which takes raw activations and encodes by the mean, and config.json.

    Raises: CheckpointError if a file is missing, damaged or does not fit the config; ConfigError if
    the machine has no such device. No code in a file is executed.
    """
    require_device(device)
    folder = Path(base_path)
    if step is None and is_sae_lens_folder(folder):
        return load_sae_lens(folder, device), {"trainer": _read_sae_lens(folder)[0]}
    config = read_config(folder, step)
    trainer = config["trainer"]
    path = folder / WEIGHTS if step is None else checkpoint(folder, step)
    dict_class = trainer["dict_class"]
    row = BY_DICT_CLASS.get(dict_class) if isinstance(dict_class, str) else None
    if row is None:
        raise CheckpointError(
            f"{folder}: dict_class {dict_class!r} is unknown; expected one of "
            f"{', '.join(BY_DICT_CLASS)}"
        )
    state, norm_factor = _read_weights(path, dict_class)
    for name in ("activation_dim", "dict_size", "k"):
        given = trainer.get(name)
        if given is not None and (type(given) is not int or not 1 <= given < 2**31):
            raise CheckpointError(
                f"{folder / CONFIG}: trainer.{name} is {given!r}, expected a whole number "
                "of 1 or more; copy it again"
            )
    try:
        file = path if norm_factor is None else _in_memory(state)
        dictionary: Any = import_class(row.dictionary).from_pretrained(file, device=device)
        if norm_factor is not None:
            dictionary = for_raw_activations(dictionary, norm_factor)
    except CheckpointError:
        raise
    except Exception as error:  # of any kind: a state dict of any content is handed to the class
        raise CheckpointError(
            f"{path}: not a state dict of {dict_class} ({' '.join(str(error).split())[:300]}); it "
            f"holds {_shapes(state)}; copy it again or train again"
        ) from error
    is_final = step is None and norm_factor is None
    _check_weights(path, state, dictionary, trainer, is_final)
    if norm_factor is not None:
        trainer.setdefault("norm_factor", norm_factor)
    return dictionary.eval().requires_grad_(False), config


def _in_memory(state: dict[str, t.Tensor]) -> io.BytesIO:
    """A file of weights that holds `state`."""
    whole = io.BytesIO()
    t.save(state, whole)
    whole.seek(0)
    return whole


def _read_weights(path: Path, dict_class: str) -> tuple[dict[str, t.Tensor], float | None]:
    """The tensors in a file of weights, whole and finite; none of its code is executed.

    Returns: them, and None; or, of a backup that upstream's `trainSAE` leaves while it trains
    (backup_steps), what activations were divided by in training: its tensors are in those units.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:  # torch itself does not compare checksums
                if archive.testzip():
                    raise zipfile.BadZipFile("a part of it has another checksum")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, about the kind of pickle
            state = t.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes of any content raise anything
        why = {
            zipfile.BadZipFile: "its checksum is wrong",
            EOFError: "it ends too early",
            pickle.UnpicklingError: "it is not a file of tensors",
        }.get(type(error), "it can't be read as tensors")
        raise CheckpointError(
            f"{path}: incomplete or damaged {dict_class} ({why}); copy it again or train again"
        ) from error
    norm_factor = None
    if isinstance(state, dict) and isinstance(state.get("ae"), dict):
        norm_factor = _factor(path, state.get("norm_factor"))
        state = state["ae"]
    if not isinstance(state, dict) or not all(isinstance(v, t.Tensor) for v in state.values()):
        what = "a dict of other values" if isinstance(state, dict) else f"a {type(state).__name__}"
        raise CheckpointError(
            f"{path}: expected a state dict of {dict_class}, but it holds {what}; copy it again or "
            "train again"
        )
    for name, value in state.items():
        of_weights = isinstance(name, str) and name.endswith(("weight", "bias", "b_dec"))
        if unusual := _unusual(value, real=of_weights):
            raise CheckpointError(f"{path}: {name} is {unusual}; copy it again")
        if not isinstance(name, str):
            raise CheckpointError(f"{path}: {name!r} is no tensor's name; copy it again")
        if value.is_floating_point() and not value.isfinite().all():
            raise CheckpointError(
                f"{path}: {name} has NaN or infinite values; load an earlier checkpoint from "
                f"{path.parent / CHECKPOINTS}"
            )
    return state, norm_factor


def _unusual(value: t.Tensor, real: bool) -> str | None:
    """What keeps a tensor from being read as numbers, if anything, and what is expected.

    Arguments:
        real: whether it must hold real numbers, as weights do.
    """
    if value.layout != t.strided or value.is_nested:
        return f"{'nested' if value.is_nested else value.layout}, expected a dense tensor"
    if value.device.type != "cpu":
        return f"on the device {value.device}, which keeps no values; expected it on the CPU"
    is_usual = value.dtype in _REAL or not (real or value.is_floating_point())
    if is_usual and not value.is_quantized:
        return None
    return f"{value.dtype}, expected torch.float32"


def _factor(path: Path, given: Any) -> float:
    """What a backup says that activations were divided by; none is 1."""
    try:
        factor = 1.0 if given is None else float(given)
    except (TypeError, ValueError, RuntimeError):
        factor = math.nan
    if not 0 < factor < math.inf:
        raise CheckpointError(
            f"{path}: norm_factor is {str(given)[:50]!r}, expected a number above 0; copy it again"
        )
    return factor


def _check_weights(
    path: Path,
    state: dict[str, t.Tensor],
    dictionary: Dictionary,
    trainer: dict[str, Any],
    is_final: bool,
) -> None:
    """Raise a CheckpointError that names the first tensor that does not fit the class or the config.

    Before the end of a training, upstream's k may not have come down to the config's yet.
    """
    expected: dict[str, t.Tensor] = dictionary.state_dict()
    sizes = {"F": dictionary.dict_size, "D": dictionary.activation_dim}
    for letter, name in (("D", "activation_dim"), ("F", "dict_size")):
        given = trainer.get(name)
        if given is not None and given != sizes[letter]:
            shape = tuple(state["encoder.weight"].shape) if "encoder.weight" in state else "other"
            raise CheckpointError(
                f"{path}: encoder.weight is {shape}, so {name}={sizes[letter]}, but config.json says "
                f"{given}; they belong to different runs"
            )
    for name, value in state.items():
        if name in expected and _kind(value) != _kind(expected[name]):
            raise CheckpointError(
                f"{path}: {name} is {value.dtype}, expected {expected[name].dtype}"
            )
    if "k" in state:
        k, configured = int(state["k"]), trainer.get("k") if is_final else None
        if configured not in (None, k) or not 1 <= k <= sizes["F"]:
            raise CheckpointError(
                f"{path}: k is {k}, dict_size is {sizes['F']} and config.json says k={configured}; "
                "they belong to different runs"
            )


def _kind(value: t.Tensor) -> str:
    """Whole, real or complex numbers, of any precision."""
    if value.is_floating_point():
        return "real"
    return "complex" if value.is_complex() else "whole"


def _shapes(state: dict[str, t.Tensor]) -> str:
    shown = [f"{name} {tuple(value.shape)}" for name, value in list(state.items())[:20]]
    return ", ".join(shown) + (", …" if len(state) > 20 else "") or "nothing"


# --- folders of SAELens


def is_sae_lens_folder(folder: str | Path) -> bool:
    """Whether a folder is one of SAELens's, and has no ae.pt, as in a repository for both."""
    return (Path(folder) / SAE_LENS_CONFIG).is_file() and not (Path(folder) / WEIGHTS).exists()


@t.no_grad()
def load_sae_lens(
    folder: str | Path, device: str = "cpu", dtype: t.dtype = t.float32, *, unit_norm: bool = True
) -> Dictionary:
    """The SAE of a folder that SAELens wrote, with unit-norm decoder directions.

    Its features and reconstructions are SAELens's, up to rounding. For an SAE that is no TopK and whose
    decoder has other norms, features are in units of the norms (as after SAELens's fold_W_dec_norm).
    Without unit_norm, such a decoder is left as it is.

    Raises: CheckpointError if a file is missing, damaged or not finite, or no class computes the same.
    """
    folder = Path(folder)
    config, weights = _read_sae_lens(folder)
    architecture = config.get("architecture")
    if not isinstance(architecture, str) or architecture not in _CLASSES:
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
        state = _upstream_state(folder, architecture, config, weights, unit_norm)
        dictionary: Any = _CLASSES[architecture](*weights["W_enc"].shape, *k).to(dtype)
        dictionary.load_state_dict(dictionary.state_dict() | state)
    except CheckpointError:
        raise
    except Exception as error:  # of any kind: files of any content are handed to the class
        settings = f" with k={k[0]!r}" if k else ""
        raise CheckpointError(
            f"{folder}: {SAE_LENS_WEIGHTS} holds {_shapes(weights)}: not the weights of one SAE of "
            f"architecture {architecture!r}{settings}; copy it again"
        ) from error
    return dictionary.to(device).eval().requires_grad_(False)


def _upstream_state(
    folder: Path,
    architecture: str,
    config: dict[str, Any],
    weights: dict[str, t.Tensor],
    unit_norm: bool,
) -> dict[str, t.Tensor]:
    """SAELens's weights as the upstream class of an architecture has them."""
    W_enc_DF, W_dec_FD, b_dec_D = (weights[name] for name in ("W_enc", "W_dec", "b_dec"))
    norms_F = W_dec_FD.norm(dim=1)
    is_unit = t.allclose(norms_F, t.ones_like(norms_F), atol=UNIT_NORM_TOLERANCE, rtol=0)
    rescales = config.get("rescale_acts_by_decoder_norm")
    if architecture in _OF_TOP_K and not is_unit and not rescales:
        raise CheckpointError(
            f"{folder}: its decoder's norms are {norms_F.min():.6g} to {norms_F.max():.6g}, and "
            "unit norms would change which features its TopK keeps; expected norms of 1, or "
            "rescale_acts_by_decoder_norm"
        )
    stays = is_unit or not (unit_norm or architecture in _OF_TOP_K)
    scale_F = t.ones_like(norms_F) if stays else norms_F.where(norms_F > 0, 1.0)
    W_enc_DF, W_dec_FD = W_enc_DF * scale_F, W_dec_FD / scale_F[:, None]
    # Upstream's JumpReLU encodes x, the others x - b_dec.
    shift_F, is_centred = b_dec_D @ W_enc_DF, bool(config.get("apply_b_dec_to_input", True))
    if architecture == "gated":
        missing_F = t.zeros_like(shift_F) if is_centred else shift_F
        return {
            "encoder.weight": W_enc_DF.T,
            "gate_bias": weights["b_gate"] * scale_F + missing_F,
            "mag_bias": weights["b_mag"] * scale_F + missing_F * weights["r_mag"].exp(),
            "r_mag": weights["r_mag"],
            "decoder.weight": W_dec_FD.T,
            "decoder_bias": b_dec_D,
        }
    b_enc_F = weights["b_enc"] * scale_F
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


def _read_sae_lens(folder: Path) -> tuple[dict[str, Any], dict[str, t.Tensor]]:
    """The content of both files, weights in float64, in which biases are folded."""
    try:
        config = json.loads((folder / SAE_LENS_CONFIG).read_text(encoding="utf-8"))
        weights = {n: v.double() for n, v in load_file(folder / SAE_LENS_WEIGHTS).items()}
        shapes = {name: tuple(weights[name].shape) for name in ("W_enc", "W_dec", "b_dec")}
        n_axes = [len(shape) for shape in shapes.values()]
        if not isinstance(config, dict) or n_axes != [2, 2, 1]:
            raise ValueError(f"shapes {shapes}")
    except Exception as error:  # bytes of any content raise anything
        raise CheckpointError(
            f"{folder}: {SAE_LENS_CONFIG} or {SAE_LENS_WEIGHTS} is missing or damaged "
            f"({type(error).__name__}: {' '.join(str(error).split())[:200]}); copy it again"
        ) from error
    if bad := [name for name, value in weights.items() if not value.isfinite().all()]:
        raise CheckpointError(f"{folder}: {bad[0]} has NaN or infinite values; copy it again")
    return config, weights
