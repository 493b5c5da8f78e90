"""Recognise SAEs in other libraries' formats, and read their settings.

    SAELens        cfg.json, sae_weights.safetensors    of any version. A BatchTopK or Matryoshka as save_inference_model
                                                        writes it, which is a jumprelu
    sparsify       cfg.json, sae.safetensors            its trainer writes config.json beside the folder
    Gemma Scope    params.npz                           model and hook point are in the names of the folders above it
    Baker & Li     config.json, ae.pt                   dict_class VSAETopK of the paper's public code, a fork of
                                                        dictionary_learning:
                                                        github.com/ZachData/SPAR-Variational-Sparse-Autoencoders

The settings are converted to a config.json as upstream writes it. An SAE that no class of this package or upstream can
compute is refused here. foreign_weights.py reads the weights. Imports no torch.
"""

import re
from pathlib import Path
from typing import Any, Literal

from ..config.architectures import ARCHITECTURES
from ..errors import CheckpointError
from .files import CONFIG, EVALUATION, WEIGHTS, read_json, target_of
from .schema import CFG_JSON, SPARSIFY_RUN, Object

ForeignFormat = Literal["SAELens", "sparsify", "Gemma Scope", "Baker & Li"]
FOREIGN_CONFIG = "cfg.json"
"""The file of settings in SAELens's and sparsify's formats."""
SAE_LENS_WEIGHTS = "sae_weights.safetensors"
SPARSIFY_WEIGHTS = "sae.safetensors"
GEMMA_SCOPE_WEIGHTS = "params.npz"
WEIGHTS_OF: dict[ForeignFormat, str] = {
    "SAELens": SAE_LENS_WEIGHTS,
    "sparsify": SPARSIFY_WEIGHTS,
    "Gemma Scope": GEMMA_SCOPE_WEIGHTS,
    "Baker & Li": WEIGHTS,
}
SPARSIFY_ABOUT = "export.json"
"""Settings that `vsae export` adds to a folder for sparsify, as its cfg.json has no place for them."""
SAE_FILES = (
    *(WEIGHTS, CONFIG, EVALUATION, FOREIGN_CONFIG),
    *(*WEIGHTS_OF.values(), SPARSIFY_ABOUT),
)
"""All files of an SAE's folder that are read, in any format."""
RECOGNISED = (
    f"a folder of this package or of dictionary_learning ({CONFIG} and {WEIGHTS}), of SAELens "
    f"({FOREIGN_CONFIG} and {SAE_LENS_WEIGHTS}), of sparsify ({FOREIGN_CONFIG} and {SPARSIFY_WEIGHTS}) or of "
    f"Gemma Scope ({GEMMA_SCOPE_WEIGHTS})"
)

BAKER_LI = {0: "vsaetopk", 1: "vsaetopk_learned_variance"}
"""Names for the architectures of Baker & Li's VSAETopK, by its var_flag."""
TOP_K = ("topk", "abstopk", *BAKER_LI.values())
"""Architectures that keep k features per token."""
_DICT_CLASSES = {
    "standard": "AutoEncoder",
    "topk": "AutoEncoderTopK",
    "abstopk": "VariationalTopKAutoEncoder",
    "jumprelu": "JumpReluAutoEncoder",
    "gated": "GatedAutoEncoder",
    **dict.fromkeys(BAKER_LI.values(), "VariationalTopKAutoEncoder"),
}
"""By architecture: the class of upstream or this package that computes the same."""
_OURS = ARCHITECTURES["vsae_as_published"]
"""Our SAE of Baker & Li's code, under the name of their class."""
_FORMER_NAMES = {"hook_point": "hook_name", "activation_fn_str": "activation_fn"}
"""Former names of SAELens's settings, from before version 6."""
_REPOSITORY = re.compile(r"gemma-scope-(\d+b)-(pt|it)-([a-z]+)")
_HOOKS_OF_GEMMA_SCOPE = {"res": "hook_resid_post", "mlp": "hook_mlp_out"}


def format_of(folder: Path) -> ForeignFormat | None:
    """The format of another library's folder, by the names of its files. None for a folder with an ae.pt or without an SAE."""
    if (folder / WEIGHTS).exists():
        return None
    has_settings = (folder / FOREIGN_CONFIG).is_file()
    formats: list[ForeignFormat] = [
        form for form, name in WEIGHTS_OF.items() if (folder / name).is_file()
    ]
    return next((form for form in formats if has_settings or form == "Gemma Scope"), None)


def is_of_baker_li(config: dict[str, Any]) -> bool:
    """Whether a config.json is that of an SAE of the paper's public code, which our class of the same name computes otherwise."""
    trainer = config["trainer"]
    is_ours = "run" in config or trainer.get("trainer_class") == _OURS.trainer_class
    return trainer["dict_class"] == _OURS.dict_class and not is_ours


def foreign_config(
    folder: Path, form: ForeignFormat, overrides: dict[str, Any], own: dict[str, Any]
) -> dict[str, Any]:
    """A config.json for an SAE in another library's format.

    Its "trainer" and "buffer" are as in upstream's files. Its "foreign" says how to compute it, for `load_foreign`.

    Arguments:
        overrides: settings that override the folder's, see `sae_names.location_of`.
        own: the content of config.json, which Baker & Li's SAEs have.

    Raises: CheckpointError if cfg.json is damaged, or no class of upstream or this package computes the same.
    """
    settings = _settings_of(folder, form, overrides, own)
    about = settings | (settings.get("metadata") or {})
    architecture, k = _architecture(folder, settings)
    by_default = "hook_z" if "hook_z" in (about.get("hook_name") or "") else "none"
    reshaped = settings.get("reshape_activations", by_default)
    _require(folder, "reshape_activations", reshaped, "none")
    return {
        "trainer": {
            "dict_class": _DICT_CLASSES[architecture],
            "activation_dim": settings.get("d_in"),
            "dict_size": settings.get("d_sae"),
            "k": k,
            "lm_name": about.get("model_name"),
            "submodule_name": about.get("hook_name"),
            **({"layer": settings["layer"]} if form == "Gemma Scope" else {}),
        },
        "buffer": _buffer(about),
        "foreign": {
            "format": form,
            "architecture": architecture,
            "subtracts_b_dec": bool(settings.get("apply_b_dec_to_input", True)),
            "rescales": bool(settings.get("rescale_acts_by_decoder_norm", False)),
            "scale": _scale(folder, settings),
            # SAELens's runner also writes options that are off.
            "model_options": {
                n: v for n, v in (about.get("model_from_pretrained_kwargs") or {}).items() if v
            },
        },
    }


def _settings_of(
    folder: Path, form: ForeignFormat, overrides: dict[str, Any], own: dict[str, Any]
) -> dict[str, Any]:
    """A folder's settings in SAELens's format of version 6."""
    if form == "Baker & Li":
        return _baker_li_config(own)
    if form == "Gemma Scope":
        return _gemma_scope_config(folder) | overrides
    settings = _object_in(folder / FOREIGN_CONFIG) | overrides
    if form == "sparsify":
        return _sparsify_config(folder, settings)
    return {_FORMER_NAMES.get(name, name): value for name, value in settings.items()}


def _architecture(folder: Path, settings: dict[str, Any]) -> tuple[str, int | None]:
    """SAELens's name of the architecture, and the k of a TopK.

    The defaults are SAELens's for files from before version 6 (`handle_pre_6_0_config`).
    """
    architecture, k = settings.get("architecture") or "standard", settings.get("k")
    activation = settings.get("activation_fn") or "relu"
    if activation == "topk":
        architecture, k = "topk", (settings.get("activation_fn_kwargs") or {}).get("k", k)
    _require(folder, "activation_fn", activation, "relu", "topk")
    if architecture not in _DICT_CLASSES:
        raise CheckpointError(
            f"{folder}: architecture is {architecture!r} in {FOREIGN_CONFIG}",
            expected=" or ".join(map(repr, _DICT_CLASSES)),
            instead="if it is a BatchTopK's or Matryoshka's, save it in SAELens with its save_inference_model",
        )
    return architecture, k if architecture in TOP_K else None


def _scale(folder: Path, settings: dict[str, Any]) -> float:
    """The factor by which activations are scaled before they are encoded."""
    scale = settings.get("norm_scaling_factor")
    normalized = settings.get("normalize_activations") or "none"
    if scale is not None and normalized in (True, "expected_average_only_in"):
        return scale
    _require(folder, "normalize_activations", normalized, "none")
    return 1.0


def _require(folder: Path, name: str, value: Any, *expected: Any) -> None:
    """Raise a CheckpointError unless a setting has a value that a class of upstream or this package computes."""
    if value not in expected:
        values = " or ".join(map(repr, expected))
        raise CheckpointError(f"{folder}: {name} is {value!r} in {FOREIGN_CONFIG}", expected=values)


def _sparsify_config(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """A cfg.json of sparsify in SAELens's format, completed by the config.json beside the folder and its export.json."""
    for name in ("transcode", "skip_connection", "signed", "embed_skip", "gram_lookup"):
        _require(folder, name, settings.get(name, False), False)
    _require(folder, "activation", settings.get("activation", "topk"), "topk")
    d_in, n_latents = settings.get("d_in"), settings.get("num_latents")
    if not n_latents and d_in is not None:
        n_latents = d_in * settings.get("expansion_factor", 32)  # sparsify's default
    run = _object_in(folder.parent / CONFIG, SPARSIFY_RUN)
    # The output of a block. That of an MLP or attention is no hook point if a norm follows it.
    block = re.fullmatch(r"(?:\w+\.)*(?:layers|h|blocks)\.(\d+)", folder.name)
    about = {
        "model_name": run.get("model"),
        "dataset_path": run.get("dataset"),
        "context_size": run.get("ctx_len"),
        "text_column": run.get("text_column"),
        "hook_name": f"blocks.{block[1]}.hook_resid_post" if block else folder.name,
    }
    return {
        "architecture": "topk",
        "d_in": d_in,
        "d_sae": n_latents,
        "k": settings.get("k"),
        "metadata": about | _object_in(folder / SPARSIFY_ABOUT),
    }


def _gemma_scope_config(folder: Path) -> dict[str, Any]:
    """The settings of an SAE of Gemma Scope in SAELens's format, from the names of the folders above it.

    On the hub it is e.g. google/gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82.
    """
    names = target_of(folder).parts[::-1]
    repository = next((match for name in names if (match := _REPOSITORY.search(name))), None)
    layers = (re.fullmatch(r"layer_(\d+)", name) for name in names)
    layer = next((int(match[1]) for match in layers if match), None)
    about: dict[str, Any] = {}
    if repository is not None:
        size, kind, site = repository.groups()
        if site not in _HOOKS_OF_GEMMA_SCOPE or "embedding" in names[:3]:
            raise CheckpointError(
                f"{folder}: not an SAE of a block's output or its MLP's",
                expected="one in layer_N of a repository gemma-scope-…-res or gemma-scope-…-mlp",
            )
        about["model_name"] = f"google/gemma-2-{size}{'-it' if kind == 'it' else ''}"
        if layer is not None:
            about["hook_name"] = f"blocks.{layer}.{_HOOKS_OF_GEMMA_SCOPE[site]}"
    settings = {"architecture": "jumprelu", "apply_b_dec_to_input": False}
    return settings | {"layer": layer, "metadata": about}


def _baker_li_config(config: dict[str, Any]) -> dict[str, Any]:
    """The settings of a VSAETopK in SAELens's format. Missing settings have the defaults of its class."""
    trainer = config["trainer"]
    return {
        "architecture": BAKER_LI[trainer.get("var_flag", 0)],
        "d_in": trainer.get("activation_dim"),
        "d_sae": trainer.get("dict_size"),
        "k": trainer.get("k"),
        "apply_b_dec_to_input": not trainer.get("use_april_update_mode", True),
        "metadata": {
            "model_name": trainer.get("lm_name"),
            "hook_name": trainer.get("submodule_name"),
            "context_size": config.get("buffer", {}).get("ctx_len"),
        },
    }


def _object_in(path: Path, shape: Object = CFG_JSON) -> dict[str, Any]:
    """The JSON object in a file, empty if there is no file."""
    return read_json(path, shape) if path.is_file() else {}


def _buffer(about: dict[str, Any]) -> dict[str, Any]:
    """The "buffer" of a config.json. Both SAELens and sparsify pack documents into contexts."""
    buffer = {
        "ctx_len": about.get("context_size"),
        "text": about.get("dataset_path"),
        "text_column": about.get("text_column"),
        "packing": "pack",
        "remove_bos": bool(about.get("exclude_special_tokens")),
        "max_norm_multiple": about.get("max_norm_multiple"),
    }
    return {name: value for name, value in buffer.items() if value is not None}
