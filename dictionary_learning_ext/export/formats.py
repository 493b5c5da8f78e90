"""The folders that other libraries read, written and read back.

sae-bench            a working directory of SAE Bench 0.6.0: its dictionary_learning loader, run
                     there, reads repository `SAE_BENCH_REPO` at the location `name`
dictionary-learning  upstream's `load_dictionary`
sae-lens             SAELens's `SAE.load_from_disk`, as a TopKSAE or an AbsTopKSAE
sparsify             EleutherAI's `SparseCoder.load_many` (eai-sparsify 1.3)
safetensors          any program: `sae.safetensors` and a config.json that states the equation
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch as t
from dictionary_learning.dictionary import Dictionary
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from dictionary_learning.utils import load_dictionary as load_upstream_dictionary
from nnsight import LanguageModel
from safetensors.torch import load_file, save_file

from ..activations.hook_points import HookPoint, block_of_output
from ..config.architectures import BY_DICT_CLASS, ExportFormat, import_class
from ..errors import CheckpointError, Setting, listed
from ..run_folder.files import CONFIG, METRICS, WEIGHTS, usual_mode, write_json
from ..run_folder.weights import (
    SAE_LENS_CONFIG,
    SAE_LENS_WEIGHTS,
    UNIT_NORM_TOLERANCE,
    load_sae_lens,
    save_weights,
)
from ..trainers.variational_top_k import VariationalTopKAutoEncoder

SAE_BENCH_REPO = "local/saes"
"""The repository's name in a folder for SAE Bench: any would do, it is never looked up."""
SAE_BENCH_TRAINERS = (
    "MatryoshkaBatchTopKTrainer",
    "BatchTopKTrainer",
    "TopKTrainer",
    "StandardTrainerAprilUpdate",
    "StandardTrainer",
    "PAnnealTrainer",
    "JumpReluTrainer",
    "GatedSAETrainer",
)
"""The trainer classes that SAE Bench's runner has a loader for."""
SAFETENSORS = "sae.safetensors"
"""The weights in a folder for safetensors, and in one for sparsify."""
_SPARSIFY_CONFIG = "cfg.json"
_EQUATION = "x_hat = f @ W_dec + b_dec; f keeps the k {} of (x - b_dec) @ W_enc + b_enc"
_READERS_BY_MAGNITUDE: tuple[ExportFormat, ...] = ("sae-lens", "safetensors")


class ExportedSAE(NamedTuple):
    """An SAE and what a reader needs to know about it."""

    name: str
    """Its folder's name."""
    dictionary: Any
    """In float32, for raw activations."""
    config: dict[str, Any]
    """Its config.json, without local paths."""
    model: str
    """The language model, a name or a folder's name."""
    data: str
    """The text, likewise."""
    hook: str
    """Where its activations are read, by TransformerLens's name."""
    module: str | None
    """The module that they are the output of, see `output_module`."""
    ctx_len: int
    metrics: dict[str, Any] | None
    """Its metrics.json, without local paths."""


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


def require_supported(form: ExportFormat, source: ExportedSAE) -> None:
    """Raise a CheckpointError unless the format's reader can take this SAE."""

    def refuse(problem: str, *formats: str) -> NoReturn:
        instead = ("use ", *listed(Setting("format", each) for each in formats))
        raise CheckpointError(f"{source.name}{problem}", instead=instead)

    dictionary = source.dictionary
    row = BY_DICT_CLASS[type(dictionary).__name__]
    what = f" is an SAE of class {row.dict_class}"
    if not row.exports:
        raise CheckpointError(
            f"{source.name}{what} and can't be exported as {form}: "
            f"{row.why_not_exported}; load it with dictionary_learning_ext.load_dictionary"
        )
    if form not in row.exports:
        refuse(f"{what}, which the reader of {form} can't take", *row.exports)
    if _selects_by_magnitude(dictionary) and form not in _READERS_BY_MAGNITUDE:
        what = f" selects by magnitude, and the reader of {form} keeps the k largest values"
        refuse(what, *_READERS_BY_MAGNITUDE)
    if form == "sparsify" and source.module is None:
        refuse(
            f": trained on {source.hook}, the first block's input; sparsify knows only the outputs of "
            "modules (e.g. blocks.N.hook_resid_post)",
            "safetensors",
        )
    if form == "sae-bench":
        trainer_class = source.config["trainer"].get("trainer_class")
        if not row.exported_as and trainer_class not in SAE_BENCH_TRAINERS:
            refuse(
                f": SAE Bench has no loader for trainer_class {trainer_class!r}, only for "
                f"{', '.join(SAE_BENCH_TRAINERS)}",
                "dictionary-learning",
            )
        if dictionary.dict_size < dictionary.activation_dim:
            refuse(
                f": its dict_size is {dictionary.dict_size}; SAE Bench expects at least the "
                f"activations' width, {dictionary.activation_dim}",
                "dictionary-learning",
            )
        block = block_of_output(source.hook)
        if block is None or block < 0:
            refuse(
                f": trained on {source.hook}; SAE Bench's loader knows only the output of a block "
                "(blocks.N.hook_resid_post)",
                "dictionary-learning",
            )
    if form == "sae-lens" or (form == "sae-bench" and not row.bench_normalizes):
        W_dec_DF = getattr(dictionary, "decoder", None)
        W_dec_FD = dictionary.W_dec if W_dec_DF is None else W_dec_DF.weight.t()
        norms_F = W_dec_FD.norm(dim=1)
        if not t.allclose(norms_F, t.ones_like(norms_F), atol=UNIT_NORM_TOLERANCE, rtol=0):
            refuse(
                f": its decoder's norms are {norms_F.min():.6g} to {norms_F.max():.6g}; {form} "
                f"expects 1 within {UNIT_NORM_TOLERANCE:g}",
                *("dictionary-learning", "safetensors"),
            )


def write(form: ExportFormat, folder: Path, source: ExportedSAE) -> None:
    """Write the SAE's weights and config into an empty folder."""
    writers = {
        "sae-bench": _write_sae_bench,
        "dictionary-learning": _write_dictionary_learning,
        "sae-lens": _write_sae_lens,
        "sparsify": _write_sparsify,
        "safetensors": _write_safetensors,
    }
    writers[form](folder, source)


def read(form: ExportFormat, folder: Path, source: ExportedSAE, device: str) -> Dictionary:
    """What the format's reader makes of a folder that `write` filled, in the same arithmetic.

    SAELens's, SAE Bench's and sparsify's classes compute what upstream's AutoEncoderTopK does; the
    tests compare with the libraries themselves.
    """
    if form == "sae-lens":
        return load_sae_lens(folder, device)
    if form == "sparsify":
        return _read_sparsify(folder / (source.module or ""), device)
    if form == "safetensors":
        return _read_safetensors(folder, device)
    place = folder / "downloaded_saes" / source.name if form == "sae-bench" else folder
    return load_upstream_dictionary(str(place), device)[0]


def record(form: ExportFormat, folder: Path, what: dict[str, Any]) -> None:
    """Add an entry "export" to each config that `write` wrote."""
    pattern = {"sae-lens": SAE_LENS_CONFIG, "sparsify": _SPARSIFY_CONFIG}.get(form, CONFIG)
    for path in folder.rglob(pattern):
        config = json.loads(path.read_text(encoding="utf-8"))
        write_json(path, config | {"export": what})


def _write_dictionary_learning(folder: Path, source: ExportedSAE) -> None:
    sae = dictionary = source.dictionary
    trainer = source.config["trainer"]
    if path := BY_DICT_CLASS[type(sae).__name__].exported_as:
        # The same weights in one of upstream's classes, which may have a ReLU where ours has none.
        dictionary = import_class(path)(sae.activation_dim, sae.dict_size, int(sae.k))
        state = sae.state_dict()
        dictionary.load_state_dict({name: state[name] for name in dictionary.state_dict()})
        as_row = BY_DICT_CLASS[type(dictionary).__name__]
        trainer = trainer | {"trainer_class": as_row.trainer_class, "dict_class": as_row.dict_class}
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(folder / WEIGHTS, dictionary)
    write_json(folder / CONFIG, source.config | {"trainer": trainer})
    if source.metrics is not None:
        write_json(folder / METRICS, source.metrics)


def _write_sae_bench(folder: Path, source: ExportedSAE) -> None:
    layer = block_of_output(source.hook)
    place = {
        "lm_name": source.model,
        "layer": layer,
        "submodule_name": f"blocks.{layer}.hook_resid_post",
    }
    config = source.config | {"trainer": source.config["trainer"] | place}
    # Its runner looks for config.json under the repository, and its loaders for both files beside.
    downloads = folder / "downloaded_saes"
    repository = downloads / SAE_BENCH_REPO.replace("/", "_") / source.name
    _write_dictionary_learning(downloads / source.name, source._replace(config=config))
    repository.mkdir(parents=True)
    shutil.copyfile(downloads / source.name / CONFIG, repository / CONFIG)


def _write_sae_lens(folder: Path, source: ExportedSAE) -> None:
    sae = source.dictionary
    config = {
        "architecture": "abstopk" if _selects_by_magnitude(sae) else "topk",
        "d_in": sae.activation_dim,
        "d_sae": sae.dict_size,
        "k": int(sae.k),
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "rescale_acts_by_decoder_norm": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": "6.0.0",  # of this format; an older or no version is converted
            "sae_lens_training_version": None,
            "model_name": source.model,
            "model_class_name": "HookedTransformer",
            "model_from_pretrained_kwargs": {},
            "hook_name": source.hook,
            "hook_head_index": None,
            "context_size": source.ctx_len,
            "dataset_path": source.data,
            "prepend_bos": False,
        },
    }
    write_json(folder / SAE_LENS_CONFIG, config)
    with usual_mode(folder / SAE_LENS_WEIGHTS):
        save_file(_weights(sae), folder / SAE_LENS_WEIGHTS)


def _write_sparsify(folder: Path, source: ExportedSAE) -> None:
    """The module's folder, as layers.1, with sparsify's SparseCoderConfig and d_in, and the weights:
    encoder.weight (F, D), encoder.bias (F,), W_dec (F, D) and b_dec (D,)."""
    sae, place = source.dictionary, folder / (source.module or "")
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
        # Skipped by sparsify's reader:
        "model_name": source.model,
        "hook_name": source.hook,
        "context_size": source.ctx_len,
    }
    weights = {
        "encoder.weight": sae.encoder.weight,
        "encoder.bias": sae.encoder.bias,
        "W_dec": sae.decoder.weight.t(),
        "b_dec": sae.b_dec,
    }
    place.mkdir(parents=True)
    write_json(place / _SPARSIFY_CONFIG, config)
    with usual_mode(place / SAFETENSORS):
        save_file(_on_cpu(weights), place / SAFETENSORS)


def _read_sparsify(folder: Path, device: str) -> AutoEncoderTopK:
    """What sparsify's `SparseCoder` computes: upstream's TopK."""
    config = json.loads((folder / _SPARSIFY_CONFIG).read_text(encoding="utf-8"))
    weights = load_file(folder / SAFETENSORS)
    sae: Any = AutoEncoderTopK(config["d_in"], config["num_latents"], config["k"])
    weights["decoder.weight"] = weights.pop("W_dec").t()
    sae.load_state_dict(sae.state_dict() | weights)
    return sae.to(device)


def _write_safetensors(folder: Path, source: ExportedSAE) -> None:
    sae = source.dictionary
    rectify = getattr(sae, "rectify", True)  # upstream's TopK always does
    by_magnitude = _selects_by_magnitude(sae)
    equation = _EQUATION.format(
        "of largest magnitude, with their signs," if by_magnitude else "largest"
    )
    config = {
        "activation_dim": sae.activation_dim,
        "dict_size": sae.dict_size,
        "k": int(sae.k),
        "rectify": rectify,
        "select_by": "magnitude" if by_magnitude else "value",
        "equation": f"{equation}{', then a ReLU' if rectify else ''}, 0 elsewhere",
        "shapes": {
            "W_enc": ["activation_dim", "dict_size"],
            "b_enc": ["dict_size"],
            "W_dec": ["dict_size", "activation_dim"],
            "b_dec": ["activation_dim"],
        },
        "model_name": source.model,
        "hook_name": source.hook,
        "context_size": source.ctx_len,
    }
    write_json(folder / CONFIG, config)
    with usual_mode(folder / SAFETENSORS):
        save_file(_weights(sae), folder / SAFETENSORS)


def _read_safetensors(folder: Path, device: str) -> Dictionary:
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    weights = load_file(folder / SAFETENSORS)
    activation_dim, dict_size = weights["W_enc"].shape
    sae = VariationalTopKAutoEncoder(
        activation_dim,
        dict_size,
        config["k"],
        posterior="point",
        rectify=config["rectify"],
        select_by=config["select_by"],
    )
    sae.encoder.weight.data = weights["W_enc"].t().contiguous()
    sae.encoder.bias.data = weights["b_enc"]
    sae.decoder.weight.data = weights["W_dec"].t()
    sae.b_dec.data = weights["b_dec"]
    return sae.to(device)


def _selects_by_magnitude(sae: Any) -> bool:
    """Whether negative features can be among the k that are kept for their magnitude."""
    return getattr(sae, "select_by", "value") == "magnitude" and not sae.rectify


def _weights(sae: Any) -> dict[str, t.Tensor]:
    """W_enc (D, F), b_enc (F,), W_dec (F, D) and b_dec (D,)."""
    return _on_cpu(
        {
            "W_enc": sae.encoder.weight.t(),
            "b_enc": sae.encoder.bias,
            "W_dec": sae.decoder.weight.t(),
            "b_dec": sae.b_dec,
        }
    )


def _on_cpu(weights: dict[str, t.Tensor]) -> dict[str, t.Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in weights.items()}
