"""SAEs in other libraries' formats: how their folders are told apart, and their settings.

    SAELens        cfg.json, sae_weights.safetensors    of any version
    sparsify       cfg.json, sae.safetensors            sparsify's trainer writes config.json beside the folder
    Gemma Scope    params.npz                           what it is of is in the names of the folders above it
    Baker & Li     config.json, ae.pt                   a dict_class VSAETopK of the paper's public code, a fork of
                                                        dictionary_learning:
                                                        github.com/ZachData/SPAR-Variational-Sparse-Autoencoders

Their settings are put as a config.json of ours or upstream's puts them. What the classes that they are loaded as
can't compute is refused here, by name. foreign_weights.py reads the weights. Imports no torch.
"""

import re
from pathlib import Path
from typing import Any, Literal

from ..errors import CheckpointError
from .files import CONFIG, METRICS, WEIGHTS, target_of
from .json_files import read_json

Format = Literal["SAELens", "sparsify", "Gemma Scope", "Baker & Li"]
FOREIGN_CONFIG = "cfg.json"
"""The settings, in SAELens's and sparsify's formats."""
SAE_LENS_WEIGHTS = "sae_weights.safetensors"
SPARSIFY_WEIGHTS = "sae.safetensors"
GEMMA_SCOPE_WEIGHTS = "params.npz"
WEIGHTS_OF: dict[Format, str] = {
    "SAELens": SAE_LENS_WEIGHTS,
    "sparsify": SPARSIFY_WEIGHTS,
    "Gemma Scope": GEMMA_SCOPE_WEIGHTS,
    "Baker & Li": WEIGHTS,
}
SPARSIFY_ABOUT = "export.json"
"""What `vsae export` adds to a folder for sparsify, whose cfg.json has no place for it."""
FILES = (
    *(WEIGHTS, CONFIG, METRICS, FOREIGN_CONFIG),
    *(*WEIGHTS_OF.values(), SPARSIFY_ABOUT),
)
"""All that is read of an SAE's folder, of any format."""
RECOGNISED = (
    f"a folder of this package or of dictionary_learning ({CONFIG} and {WEIGHTS}), of SAELens "
    f"({FOREIGN_CONFIG} and {SAE_LENS_WEIGHTS}), of sparsify ({FOREIGN_CONFIG} and {SPARSIFY_WEIGHTS}) or of "
    f"Gemma Scope ({GEMMA_SCOPE_WEIGHTS})"
)

OF_BAKER_LI = {0: "vsaetopk", 1: "vsaetopk_learned_variance"}
"""Their VSAETopK by its var_flag, named as SAELens names architectures."""
OF_TOP_K = ("topk", "abstopk", *OF_BAKER_LI.values())
"""Architectures with k features a token."""
OF_BATCH_TOP_K = ("batchtopk", "matryoshka_batchtopk")
"""SAELens's architectures that only its save_model writes. Its save_inference_model turns them into a jumprelu."""
_DICT_CLASSES = {
    "standard": "AutoEncoder",
    "topk": "AutoEncoderTopK",
    "abstopk": "VariationalTopKAutoEncoder",
    "jumprelu": "JumpReluAutoEncoder",
    "gated": "GatedAutoEncoder",
    **dict.fromkeys(OF_BATCH_TOP_K, "JumpReluAutoEncoder"),
    **dict.fromkeys(OF_BAKER_LI.values(), "VariationalTopKAutoEncoder"),
}
"""By architecture: a class of upstream's or ours that computes the same."""
_FORMER_NAMES = {"hook_point": "hook_name", "activation_fn_str": "activation_fn"}
"""SAELens's settings that had another name before its version 6."""
_REPOSITORY = re.compile(r"gemma-scope-(\d+b)-(pt|it)-([a-z]+)")
_HOOKS_OF_GEMMA_SCOPE = {"res": "hook_resid_post", "mlp": "hook_mlp_out"}


def format_of(folder: Path) -> Format | None:
    """Which other library's folder it is; None for one with our or upstream's weights, or with no SAE."""
    if (folder / WEIGHTS).exists():
        return "Baker & Li" if _is_of_baker_li(folder) else None
    has_settings = (folder / FOREIGN_CONFIG).is_file()
    found: list[Format] = [form for form, name in WEIGHTS_OF.items() if (folder / name).is_file()]
    return next((form for form in found if has_settings or form == "Gemma Scope"), None)


def _is_of_baker_li(folder: Path) -> bool:
    try:
        config = read_json(folder / CONFIG)
    except (CheckpointError, OSError):  # whoever reads it as a folder of ours or upstream's says so
        return False
    return config.get("trainer", {}).get("dict_class") == "VSAETopK"


def foreign_config(folder: Path, form: Format, overrides: dict[str, Any]) -> dict[str, Any]:
    """What a config.json would say of an SAE in another library's format.

    Its "trainer" and "buffer" are as upstream's. Its "foreign" has what `load_foreign` needs.

    Arguments:
        overrides: settings that SAELens's table of releases has in place of the folder's own.

    Raises: CheckpointError if cfg.json is damaged, or no class of upstream's or ours computes the same.
    """
    settings = _settings_of(folder, form, overrides)
    about = settings | (settings.get("metadata") or {})
    architecture, k = _architecture(folder, settings)
    reshapes = "hook_z" if "hook_z" in (about.get("hook_name") or "") else "none"
    reshaped = settings.get("reshape_activations", reshapes)
    _require_none(folder, "reshape_activations", reshaped)
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
            "folder": str(folder),
            "architecture": architecture,
            "subtracts_b_dec": bool(settings.get("apply_b_dec_to_input", True)),
            "rescales": bool(settings.get("rescale_acts_by_decoder_norm", False)),
            "scale": _scale(folder, settings),
            # Those that are off, as SAELens's runner writes them, change nothing.
            "model_options": {
                n: v for n, v in (about.get("model_from_pretrained_kwargs") or {}).items() if v
            },
        },
    }


def _settings_of(folder: Path, form: Format, overrides: dict[str, Any]) -> dict[str, Any]:
    """A folder's settings, as SAELens would write them from version 6 on."""
    if form == "Gemma Scope":
        settings = _gemma_scope_config(folder) | overrides
    elif form == "Baker & Li":
        settings = _config_of_baker_li(folder)
    elif form == "sparsify":
        own = _object_in(folder / FOREIGN_CONFIG)
        settings = _in_words_of_sae_lens(folder, own | overrides)
    else:
        settings = _object_in(folder / FOREIGN_CONFIG) | overrides
    return {_FORMER_NAMES.get(name, name): value for name, value in settings.items()}


def _architecture(folder: Path, settings: dict[str, Any]) -> tuple[str, int | None]:
    """SAELens's name for it, and how many features a token keeps, if that is the same for all.

    Defaults are SAELens's own (`handle_pre_6_0_config`); from version 6 on all settings are there.
    """
    architecture, k = settings.get("architecture") or "standard", settings.get("k")
    activation = settings.get("activation_fn") or "relu"
    if activation == "topk":
        architecture, k = "topk", (settings.get("activation_fn_kwargs") or {}).get("k", k)
    elif activation != "relu":
        raise CheckpointError(
            f"{folder}: activation_fn is {activation!r} in {FOREIGN_CONFIG}; expected 'relu' or 'topk'"
        )
    if architecture not in _DICT_CLASSES:
        raise CheckpointError(
            f"{folder}: an SAE of SAELens's architecture {architecture!r}; expected one of "
            f"{', '.join(_DICT_CLASSES)}"
        )
    k = k if architecture in OF_TOP_K else None  # a BatchTopK's is a mean
    return architecture, k


def _scale(folder: Path, settings: dict[str, Any]) -> float:
    """The factor that scales activations before the SAE encodes them."""
    scale = settings.get("norm_scaling_factor")
    normalized = settings.get("normalize_activations") or "none"
    is_scaled = normalized is True or normalized == "expected_average_only_in"
    if not is_scaled or scale is None:
        _require_none(folder, "normalize_activations", normalized)
        return 1.0
    return scale


def _require_none(folder: Path, name: str, value: Any) -> None:
    if value != "none":
        raise CheckpointError(
            f"{folder}: {name} is {value!r} in {FOREIGN_CONFIG}; expected 'none', as SAELens saves an SAE "
            "for inference"
        )


def _in_words_of_sae_lens(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """A cfg.json of sparsify as SAELens would write it.

    What the folder doesn't say may be in the config.json beside it, and in the export.json in it.
    """
    for name in ("transcode", "skip_connection", "signed", "embed_skip", "gram_lookup"):
        if settings.get(name, False) is not False:
            raise CheckpointError(
                f"{folder}: {name} is {settings[name]!r} in {FOREIGN_CONFIG}; expected False: an SAE "
                "that reconstructs its own input, from positive features alone"
            )
    if (activation := settings.get("activation", "topk")) != "topk":
        raise CheckpointError(
            f"{folder}: activation is {activation!r} in {FOREIGN_CONFIG}; expected 'topk'"
        )
    d_in, n_latents = settings.get("d_in"), settings.get("num_latents")
    if not n_latents and d_in is not None:
        n_latents = d_in * settings.get("expansion_factor", 32)  # sparsify's default
    run = _object_in(folder.parent / CONFIG)
    own = _object_in(folder / SPARSIFY_ABOUT)
    about = {
        "model_name": run.get("model"),
        "dataset_path": run.get("dataset"),
        "context_size": run.get("ctx_len"),
        "text_column": run.get("text_column"),
        "hook_name": _hook_of(folder.name),
        **own,
    }
    about["hook_name"] = about["hook_name"] or folder.name
    sizes = {"d_in": d_in, "d_sae": n_latents, "k": settings.get("k")}
    return {"architecture": "topk", **sizes, "metadata": about}


def _gemma_scope_config(folder: Path) -> dict[str, Any]:
    """What SAELens would write of an SAE of Gemma Scope, as far as the names of the folders above it tell.

    On the hub it is google/gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82, say.
    """
    names = target_of(folder).parts[::-1]
    repository = next((found for name in names if (found := _REPOSITORY.search(name))), None)
    layers = (re.fullmatch(r"layer_(\d+)", name) for name in names)
    layer = next((int(found[1]) for found in layers if found), None)
    about: dict[str, Any] = {}
    if repository is not None:
        size, kind, site = repository.groups()
        if site not in _HOOKS_OF_GEMMA_SCOPE or "embedding" in names[:3]:
            what = "embedding" if "embedding" in names[:3] else site
            raise CheckpointError(
                f"{folder}: {repository[0]}, {what}: not an SAE of a block's output or its MLP's; expected one "
                "in layer_N of a repository gemma-scope-…-res or gemma-scope-…-mlp"
            )
        about["model_name"] = f"google/gemma-2-{size}{'-it' if kind == 'it' else ''}"
        if layer is not None:
            about["hook_name"] = f"blocks.{layer}.{_HOOKS_OF_GEMMA_SCOPE[site]}"
    own = {"architecture": "jumprelu", "apply_b_dec_to_input": False}
    return own | {"layer": layer, "metadata": about}


def _config_of_baker_li(folder: Path) -> dict[str, Any]:
    """What SAELens would write of a VSAETopK. Settings that are missing have their class's defaults."""
    own = read_json(folder / CONFIG, "copy it again")
    trainer, flag = own["trainer"], own["trainer"].get("var_flag", 0)
    if flag not in OF_BAKER_LI:
        what = f"trainer.var_flag is {flag}, expected 0 or 1"
        raise CheckpointError(f"{folder / CONFIG}: {what}", instead="copy it again")
    return {
        "architecture": OF_BAKER_LI[flag],
        "d_in": trainer.get("activation_dim"),
        "d_sae": trainer.get("dict_size"),
        "k": trainer.get("k"),
        "apply_b_dec_to_input": not trainer.get("use_april_update_mode", True),
        "metadata": {
            "model_name": trainer.get("lm_name"),
            "hook_name": trainer.get("submodule_name"),
            "context_size": own.get("buffer", {}).get("ctx_len"),
        },
    }


def _object_in(path: Path) -> dict[str, Any]:
    """The JSON object in a file, or an empty one if there is no file."""
    return read_json(path, "copy it again") if path.is_file() else {}


def _hook_of(module: str) -> str | None:
    """The hook point that is the output of a module, which sparsify names the folder after.

    None unless it is a block: where a norm follows a block's MLP or attention, these are no hook points.
    """
    match = re.fullmatch(r"(?:\w+\.)*(?:layers|h|blocks)\.(\d+)", module)
    return match and f"blocks.{match[1]}.hook_resid_post"


def _buffer(about: dict[str, Any]) -> dict[str, Any]:
    """What the training read, in upstream's words and ours. Both libraries fill each context with documents."""
    buffer = {
        "ctx_len": about.get("context_size"),
        "text": about.get("dataset_path"),
        "text_column": about.get("text_column"),
        "packing": "pack",
        "remove_bos": bool(about.get("exclude_special_tokens")),
        "max_norm_multiple": about.get("max_norm_multiple"),
    }
    return {name: value for name, value in buffer.items() if value is not None}
