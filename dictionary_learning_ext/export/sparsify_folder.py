"""EleutherAI's sparsify (eai-sparsify 1.3): one SAE in its layout, written and read back.

    layers.1/cfg.json           its SparseCoderConfig, and d_in
    layers.1/sae.safetensors    encoder.weight (F, D), encoder.bias (F), W_dec (F, D), b_dec (D)

The folder's name is the module whose output the SAE encodes, as transformers names it in the model
without its unembedding.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch as t
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from nnsight import LanguageModel
from safetensors.torch import load_file, save_file

from ..activations.hook_points import HookPoint
from ..run_folder.files import write_json

SPARSIFY_CONFIG = "cfg.json"
_WEIGHTS = "sae.safetensors"


def output_module(model: LanguageModel, hook: HookPoint) -> str | None:
    """The module whose output is read at a hook point, as sparsify names it.

    Between two blocks it is the block before. None for the input of the first block.
    """
    language_model: Any = model._model
    inner: Any = hook.submodule
    path = next(name for name, one in language_model.named_modules() if one is inner._module)
    path = path.removeprefix(f"{language_model.base_model_prefix}.")
    if hook.io == "out":
        return path
    before = hook.layer - 1
    return None if before < 0 else re.sub(rf"\.{hook.layer}$", f".{before}", path)


def write_sparsify(folder: Path, sae: Any, module: str, about: dict[str, Any]) -> None:
    """Write a TopK SAE into an empty folder.

    Arguments:
        sae: of our class or upstream's TopK, in float32, for raw activations.
        module: see `output_module`.
        about: what else is worth knowing; sparsify's reader skips it.
    """
    config = {
        "activation": "topk",
        "expansion_factor": max(1, sae.dict_size // sae.activation_dim),  # num_latents decides
        "normalize_decoder": True,
        "num_latents": sae.dict_size,
        "k": int(sae.k),
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": sae.activation_dim,
    }
    weights = {
        "encoder.weight": sae.encoder.weight,
        "encoder.bias": sae.encoder.bias,
        "W_dec": sae.decoder.weight.t(),
        "b_dec": sae.b_dec,
    }
    (folder / module).mkdir(parents=True)
    write_json(folder / module / SPARSIFY_CONFIG, config | about)
    tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    save_file(tensors, folder / module / _WEIGHTS)


def read_sparsify(folder: Path, module: str, device: str) -> AutoEncoderTopK:
    """What sparsify's `SparseCoder` computes with what `write_sparsify` wrote: upstream's TopK."""
    config = json.loads((folder / module / SPARSIFY_CONFIG).read_text(encoding="utf-8"))
    weights = load_file(folder / module / _WEIGHTS)
    sae: Any = AutoEncoderTopK(config["d_in"], config["num_latents"], config["k"])
    state: dict[str, t.Tensor] = {
        "encoder.weight": weights["encoder.weight"],
        "encoder.bias": weights["encoder.bias"],
        "decoder.weight": weights["W_dec"].t(),
        "b_dec": weights["b_dec"],
    }
    sae.load_state_dict(sae.state_dict() | state)
    return sae.to(device)
