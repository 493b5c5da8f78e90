"""Writes the folders that other libraries read, and reads them back.

sae-bench            a working directory of SAE Bench 0.6.0: its dictionary_learning loader, run
                     there, reads repository `SAE_BENCH_REPO` at the location `name`
dictionary-learning  upstream's `load_dictionary`
sae-lens             SAELens's `SAE.load_from_disk`
sparsify             EleutherAI's `SparseCoder.load_many` (eai-sparsify 1.3)
circuit-tracer       circuit-tracer's `load_transcoder_set` (0.5): a file for each layer of the language model

The last is of transcoders alone. Of the others, only SAELens takes those over BatchTopK.

Whether a format can hold an SAE depends on the function that its encoder computes: `function` in the table of architectures.
"""

import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch as t
from safetensors.torch import load_file, save
from torch import nn

from ..activations.hook_points import HookPoint, block_of_output
from ..activations.language_models import CausalLM
from ..activations.tokens import adds_bos
from ..config.architectures import (
    BY_DICT_CLASS,
    Architecture,
    ExportFormat,
    Function,
    import_class,
)
from ..config.hooks import hook_name
from ..config.run import RunConfig
from ..errors import CheckpointError
from ..run_folder.files import CONFIG, EVALUATION, OF, WEIGHTS, read_json, write_json, writing
from ..run_folder.foreign import (
    FOREIGN_CONFIG,
    SAE_LENS_WEIGHTS,
    SPARSIFY_ABOUT,
    SPARSIFY_WEIGHTS,
)
from ..run_folder.foreign_weights import UNIT_NORM_TOLERANCE, load_foreign
from ..run_folder.sae_folder import find_sae
from ..run_folder.schema import Object
from ..run_folder.weights import save_weights
from ..trainers.dictionaries import is_transcoder, other_weight, weights_by_feature

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SAE_BENCH_REPO = "local/saes"
"""The repository's name in a folder for SAE Bench. It is never looked up, so any name would do."""
LAYER, CIRCUIT_TRACER_CONFIG = "layer_{}.safetensors", "config.yaml"
"""The files that circuit-tracer reads."""
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


class _Function(NamedTuple):
    """How exports describe a function that an encoder computes."""

    sae_lens: str
    """SAELens's name of an architecture that computes it; empty if there is none."""
    weights: tuple[str, ...] = ("b_enc",)
    """Its weights beside W_enc, W_dec and b_dec, by SAELens's names."""
    needs: str = ""
    """What sparsify lacks for it, e.g. thresholds."""


_FUNCTIONS: dict[Function, _Function] = {
    "top_k": _Function("topk"),
    "free_top_k": _Function(""),
    "jump_relu": _Function("jumprelu", ("b_enc", "threshold"), "thresholds"),
    "relu": _Function("standard"),
    "gated": _Function("gated", ("b_gate", "b_mag", "r_mag"), "gates"),
}


class ExportedSAE(NamedTuple):
    """An SAE to export, and where it comes from."""

    name: str
    """The name of the SAE's folder."""
    dictionary: Any
    """The SAE, in float32, for raw activations."""
    config: dict[str, Any]
    """The content of its config.json, without local paths."""
    metrics: dict[str, Any] | None
    """The content of its metrics.json, without local paths; None if it was not evaluated."""
    run: RunConfig
    """The run that it was trained in, without local paths."""
    language_model: CausalLM | None
    """None for the user's own activations."""
    hook: HookPoint

    @property
    def row(self) -> Architecture:
        return BY_DICT_CLASS[type(self.dictionary).__name__]

    @property
    def function(self) -> Function:
        assert self.row.function is not None  # see `require_supported`
        return self.row.function

    @property
    def rectifies(self) -> bool:
        """Whether it has a ReLU, as all but ours over TopK have."""
        return self.function != "top_k" or getattr(self.dictionary, "rectify", True)

    @property
    def is_transcoder(self) -> bool:
        return is_transcoder(self.dictionary)

    @property
    def selects_by_magnitude(self) -> bool:
        """Whether a TopK keeps the k features of largest magnitude, negative ones included."""
        by_magnitude = getattr(self.dictionary, "select_by", "value") == "magnitude"
        return by_magnitude and not self.rectifies

    def tensors(self) -> dict[str, t.Tensor]:
        """W_enc (D, F), W_dec (F, D), b_dec (D,), and the other weights of its function, on the CPU.

        A threshold has a value for each feature.
        """
        W_enc_FD, W_dec_FD = weights_by_feature(self.dictionary)
        tensors = {"W_enc": W_enc_FD.detach().t(), "W_dec": W_dec_FD.detach()}
        for name in ("b_dec", *_FUNCTIONS[self.function].weights):
            weight = other_weight(self.dictionary, name)
            assert weight is not None  # its function has it
            tensors[name] = weight
        if self.function == "jump_relu":
            tensors["threshold"] = tensors["threshold"].expand(self.dictionary.dict_size)
        return {name: value.cpu().contiguous() for name, value in tensors.items()}

    def trained_on(self) -> dict[str, Any]:
        """Where its activations come from, and which tokens were left out, by SAELens's names.

        max_norm_multiple has no counterpart in SAELens.
        """
        run = self.run
        tokenizer = None if self.language_model is None else self.language_model.tokenizer
        bos_id, adds = (
            (None, False) if tokenizer is None else (tokenizer.bos_token_id, adds_bos(tokenizer))
        )
        return {
            "model_name": run.model,
            "hook_name": run.hook,
            **({"hook_name_out": run.target} if run.target is not None else {}),
            "context_size": run.ctx_len,
            "dataset_path": run.data,
            "prepend_bos": run.text_packing == "truncate" and adds,
            "exclude_special_tokens": [bos_id] if run.remove_bos else False,
            "max_norm_multiple": run.max_norm_multiple,
        }

    @property
    def module(self) -> str | None:
        """The module whose output its activations are, see `output_module`."""
        model = self.language_model
        return None if model is None else output_module(model.module, self.hook)


def output_module(model: "PreTrainedModel", hook: HookPoint) -> str | None:
    """The module whose output is read at a hook point, as sparsify names it.

    Between two blocks, it is the former. None for the input of the first block.
    """
    path = hook.place.path.removeprefix(f"{model.base_model_prefix}.")
    if hook.io == "out":
        return path
    before = hook.layer - 1
    return None if before < 0 else re.sub(rf"\.{hook.layer}$", f".{before}", path)


def require_supported(form: ExportFormat, source: ExportedSAE) -> None:
    """Raise a CheckpointError unless the format and its reader can hold this SAE."""
    if (found := _problem(form, source)) is not None:
        problem, instead = found
        raise CheckpointError(f"{source.name}: {problem}", instead=instead)


def _problem(form: ExportFormat, source: ExportedSAE) -> tuple[str, str] | None:
    """Why the format or its reader can't hold an SAE, and what to do instead; None if they can."""
    row, hook = source.row, source.run.hook
    in_upstreams, in_sae_lens = "use format='dictionary-learning'", "use format='sae-lens'"
    in_python = "load it with dictionary_learning_ext.load_dictionary"
    if source.is_transcoder and form not in ("circuit-tracer", "sae-lens"):
        return f"{form} takes SAEs, and no transcoders", "use format='circuit-tracer'"
    if source.is_transcoder and form == "sae-lens" and row.function == "top_k":
        return "SAELens has no TopK transcoder", "use format='circuit-tracer'"
    if form == "circuit-tracer" and not source.is_transcoder:
        return f"{form} takes transcoders, and no SAEs", in_sae_lens
    if form == "circuit-tracer":
        target = hook_name(str(source.run.target))
        if target is None or target.block != source.hook.layer:
            return f"from {hook} to {source.run.target}; {form} has one layer for both", in_python
    if row.function is None:
        what = f"an SAE of class {row.dict_class} can't be exported as {form}: no format has a place for its features"
        return what, in_python
    if row.function == "free_top_k" and form in ("sae-lens", "sparsify"):
        return "its decoder isn't unit-norm, and its TopK ignores the norms", in_upstreams
    if form == "sparsify" and (needs := _FUNCTIONS[row.function].needs):
        return f"sparsify has no {needs}", in_sae_lens
    if form == "sparsify" and source.module is None:
        knows = "sparsify knows only the outputs of modules (e.g. blocks.N.hook_resid_post)"
        return f"trained on {hook}; {knows}", in_sae_lens
    if source.selects_by_magnitude and not FORMATS[form].by_magnitude:
        keeps = f"the reader of {form} keeps the k largest values"
        return (
            f"selects by magnitude, and {keeps}",
            in_python if source.is_transcoder else in_sae_lens,
        )
    if row.function == "jump_relu" and form in ("sae-lens", "circuit-tracer"):
        threshold = source.dictionary.threshold
        if threshold.ndim == 0 and threshold < 0:
            what = "has no threshold yet: its training ended before it began to follow one"
            other = "" if source.is_transcoder else f", or {in_upstreams}"
            return what, f"train it for more steps{other}"
    if form == "sae-bench":
        trainer_class = source.config["trainer"].get("trainer_class")
        if not row.exported_as and trainer_class not in SAE_BENCH_TRAINERS:
            those = ", ".join(SAE_BENCH_TRAINERS)
            what = f"SAE Bench has no loader for trainer_class {trainer_class!r}, only for {those}"
            return what, in_upstreams
        block = block_of_output(hook)
        if block is None or block < 0:
            knows = "SAE Bench's loader knows only the output of a block (blocks.N.hook_resid_post)"
            return f"trained on {hook}; {knows}", in_upstreams
    # SAELens's tools fold norms into the features, which changes what a TopK keeps.
    is_top_k_in_sae_lens = form == "sae-lens" and row.function == "top_k"
    is_folded_here = row.bench_normalizes or row.function == "free_top_k"
    if is_top_k_in_sae_lens or (form == "sae-bench" and not is_folded_here):
        norms_F = source.tensors()["W_dec"].norm(dim=1)
        if not t.allclose(norms_F, t.ones_like(norms_F), atol=UNIT_NORM_TOLERANCE, rtol=0):
            norms = f"its decoder's norms are {norms_F.min():.6g} to {norms_F.max():.6g}"
            return f"{norms}; {form} expects 1 within {UNIT_NORM_TOLERANCE:g}", in_upstreams
    return None


def _write_dictionary_learning(folder: Path, source: ExportedSAE) -> None:
    sae = dictionary = source.dictionary
    trainer = source.config["trainer"]
    if path := source.row.exported_as:
        # The same weights in one of upstream's classes, which may have a ReLU where ours has none.
        dictionary = import_class(path)(sae.activation_dim, sae.dict_size, int(sae.k))
        is_free = source.row.function == "free_top_k"
        state = sae.state_of_top_k() if is_free else sae.state_dict()
        dictionary.load_state_dict({name: state[name] for name in dictionary.state_dict()})
        as_row = BY_DICT_CLASS[type(dictionary).__name__]
        trainer = trainer | {"trainer_class": as_row.trainer_class, "dict_class": as_row.dict_class}
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(folder / WEIGHTS, dictionary)
    write_json(folder / CONFIG, source.config | {"trainer": trainer})
    if (metrics := source.metrics) is not None:
        if OF in metrics:  # the same SAE, in another file
            metrics = metrics | {OF: metrics[OF] | {"weights": find_sae(folder).hash}}
        write_json(folder / EVALUATION, metrics)


def _write_sae_bench(folder: Path, source: ExportedSAE) -> None:
    layer = block_of_output(source.run.hook)
    place = {
        "lm_name": source.run.model,
        "layer": layer,
        "submodule_name": f"blocks.{layer}.hook_resid_post",
    }
    config = source.config | {"trainer": source.config["trainer"] | place}
    if source.row.function == "free_top_k":  # as the public code's wrapper for SAE Bench does
        source = source._replace(dictionary=source.dictionary.with_norms_folded())
    # Its runner looks for config.json under the repository, and its loaders for both files beside.
    downloads = folder / "downloaded_saes"
    repository = downloads / SAE_BENCH_REPO.replace("/", "_") / source.name
    _write_dictionary_learning(downloads / source.name, source._replace(config=config))
    repository.mkdir(parents=True)
    shutil.copyfile(downloads / source.name / CONFIG, repository / CONFIG)


def _write_sae_lens(folder: Path, source: ExportedSAE) -> None:
    sae, function = source.dictionary, source.function
    is_signed = False
    if function == "top_k" and not source.rectifies:
        # AbsTopK has no ReLU. If all features are kept, it is the same for a selection by value.
        is_signed = source.selects_by_magnitude or int(sae.k) == sae.dict_size
    architecture = "abstopk" if is_signed else _FUNCTIONS[function].sae_lens
    out = {}
    if source.is_transcoder:
        architecture, out = f"{architecture}_transcoder", {"d_out": sae.activation_dim}
    config = {
        "architecture": architecture,
        "d_in": sae.activation_dim,
        **out,
        "d_sae": sae.dict_size,
        **({"k": int(sae.k), "rescale_acts_by_decoder_norm": True} if function == "top_k" else {}),
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": source.row.subtracts_b_dec and not source.is_transcoder,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": "6.0.0",  # of this format; an older or no version is converted
            "sae_lens_training_version": None,
            "model_class_name": "HookedTransformer",
            "model_from_pretrained_kwargs": {},
            "hook_head_index": None,
            **source.trained_on(),
        },
    }
    write_json(folder / FOREIGN_CONFIG, config)
    (folder / SAE_LENS_WEIGHTS).write_bytes(save(source.tensors()))


def _write_sparsify(folder: Path, source: ExportedSAE) -> None:
    """Write a folder named after the module, e.g. layers.1, with sparsify's SparseCoderConfig and d_in, and the weights:
    encoder.weight (F, D), encoder.bias (F,), W_dec (F, D) and b_dec (D,)."""
    sae, place, tensors = source.dictionary, folder / (source.module or ""), source.tensors()
    if not source.row.subtracts_b_dec:  # sparsify does
        tensors["b_enc"] = tensors["b_enc"] + tensors["b_dec"] @ tensors["W_enc"]
    config = {
        "activation": "topk",
        "expansion_factor": max(1, sae.dict_size // sae.activation_dim),  # num_latents decides
        "normalize_decoder": True,
        "num_latents": sae.dict_size,
        "k": int(sae.k) if source.function == "top_k" else sae.dict_size,  # a ReLU keeps all
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": sae.activation_dim,
    }
    weights = {
        "encoder.weight": tensors["W_enc"].t().contiguous(),
        "encoder.bias": tensors["b_enc"],
        "W_dec": tensors["W_dec"],
        "b_dec": tensors["b_dec"],
    }
    place.mkdir(parents=True)
    write_json(place / FOREIGN_CONFIG, config)
    # sparsify's reader warns of every key in cfg.json that it doesn't know.
    write_json(place / SPARSIFY_ABOUT, source.trained_on())
    (place / SPARSIFY_WEIGHTS).write_bytes(save(weights))


def _write_circuit_tracer(folder: Path, source: ExportedSAE) -> None:
    """Write layer_N.safetensors and config.yaml, in JSON, which YAML includes. circuit-tracer reads a transcoder without
    thresholds with a ReLU: its TopK must be set in Python."""
    tensors = source.tensors()
    threshold = {n: tensors.pop(n) for n in ("threshold",) if n in tensors}
    tensors["W_enc"] = tensors["W_enc"].t().contiguous()
    tensors |= {f"activation_function.{name}": value for name, value in threshold.items()}
    (folder / LAYER.format(source.hook.layer)).write_bytes(save(tensors))
    run = source.run
    hook, target = (hook_name(name) for name in (run.hook, str(run.target)))
    config = {
        "model_name": run.model,
        "model_kind": "transcoder_set",
        "feature_input_hook": hook.kind if hook else run.hook,
        "feature_output_hook": target.kind if target else run.target,
        "scan": source.name,
        **({} if threshold else {"k": int(source.dictionary.k)}),
    }
    write_json(folder / CIRCUIT_TRACER_CONFIG, config)


class _ReadTranscoder(nn.Module):
    """What circuit-tracer and SAELens compute with the weights of a transcoder."""

    def __init__(self, weights: dict[str, t.Tensor], k: int | None):
        super().__init__()
        self.weights, self.k = weights, k

    def encode(self, x_BD: t.Tensor) -> t.Tensor:
        mu_BF = x_BD @ self.weights["W_enc"] + self.weights["b_enc"]
        if self.k is None:
            return mu_BF * (mu_BF > self.weights["threshold"])
        indices_BK = mu_BF.topk(self.k, dim=-1).indices
        return t.zeros_like(mu_BF).scatter(-1, indices_BK, mu_BF.gather(-1, indices_BK))

    def decode(self, f_BF: t.Tensor) -> t.Tensor:
        return f_BF @ self.weights["W_dec"] + self.weights["b_dec"]


def _read_circuit_tracer(place: Path, device: str) -> nn.Module:
    (file,) = place.glob(LAYER.format("*"))
    weights = _weights_in(file, device)
    weights["W_enc"] = weights["W_enc"].t()
    return _ReadTranscoder(weights, read_json(place / CIRCUIT_TRACER_CONFIG, Object()).get("k"))


def _weights_in(file: Path, device: str) -> dict[str, t.Tensor]:
    """The weights in a file, in float64, by their names without the module's."""
    found = load_file(file, device).items()
    return {name.rpartition(".")[2]: value.double() for name, value in found}


def _read_sae_lens(place: Path, device: str) -> nn.Module:
    if "d_out" in read_json(place / FOREIGN_CONFIG, Object()):
        return _ReadTranscoder(_weights_in(place / SAE_LENS_WEIGHTS, device), None)
    return _read_foreign(place, device)


def _read_foreign(place: Path, device: str) -> nn.Module:
    return load_foreign(find_sae(place), device, t.float64)


def join_layers(folders: Sequence[Path], out: Path) -> None:
    """Put exports for circuit-tracer, each of a layer, into one folder, as it reads them.

    Raises: CheckpointError if two are of one layer, they differ in their hook points or k, `out` has other layers, or a file
    can't be written.
    """
    contents: dict[Path, dict[str, Any]] = {}
    for folder in folders:
        (file,) = folder.glob(LAYER.format("*"))
        about = read_json(folder / CIRCUIT_TRACER_CONFIG, Object())
        contents[file] = {n: v for n, v in about.items() if n not in ("scan", "export")}
    layers = [file.name for file in contents]
    if len({*layers}) < len(layers) or any(c != contents[file] for c in contents.values()):
        raise CheckpointError(
            f"{out}: {', '.join(map(str, folders))} don't form one set of layers: expected one transcoder of each layer, of the "
            "same hook points and k",
            instead="export the folder of one such set",
        )
    if others := {file.name for file in out.glob(LAYER.format("*"))} - {*layers}:
        raise CheckpointError(
            f"{out}: has {', '.join(sorted(others))}", expected="a new or empty folder"
        )
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        for file in contents:
            shutil.copyfile(file, out / file.name)
    write_json(out / CIRCUIT_TRACER_CONFIG, contents[file] | {"scan": out.name})


def _read_by_upstream(place: Path, device: str) -> nn.Module:
    from dictionary_learning.utils import load_dictionary as load_upstream_dictionary

    dictionary: Any = load_upstream_dictionary(str(place), device)[0]
    return dictionary.double()


class Format(NamedTuple):
    """A folder that another library reads."""

    write: Callable[[Path, ExportedSAE], None]
    """Writes the SAE's weights and config into an empty folder."""
    read: Callable[[Path, str], nn.Module]
    """Loads the SAE in its folder on a device, in float64, in which rounding moves no feature across a threshold: in an upstream
    class that computes the same as SAELens's, SAE Bench's or sparsify's, with which the tests compare it; a transcoder in our own."""
    usage: str
    """How to load {folder}, which is of the SAE {name}; {upload} is what `{vsae} push` takes."""
    inside: str = ""
    """The SAE's folder in it, with {name}, the SAE's, and {module}, whose output it was trained on."""
    about: str = CONFIG
    """The name of the file that says what was exported."""
    weights: str = WEIGHTS
    tag: str = ""
    """The library's tag on the hub."""
    by_magnitude: bool = False
    """Whether its reader can keep the k features of largest magnitude."""


FORMATS: dict[ExportFormat, Format] = {
    "sae-bench": Format(
        _write_sae_bench,
        _read_by_upstream,
        "In {folder}, SAE Bench's run_all_evals_dictionary_learning_saes reads it as\n"
        f"  load_dictionary_learning_sae({SAE_BENCH_REPO!r}, {{name!r}}, MODEL, …)\n"
        "To upload it to the hub: {vsae} push {upload} OWNER/NAME",
        inside="downloaded_saes/{name}",
    ),
    "dictionary-learning": Format(
        _write_dictionary_learning,
        _read_by_upstream,
        "  dictionary_learning.utils.load_dictionary({folder!r}, device)",
    ),
    "sae-lens": Format(
        _write_sae_lens,
        _read_sae_lens,
        "  SAE.load_from_disk({folder!r})",
        about=FOREIGN_CONFIG,
        weights=SAE_LENS_WEIGHTS,
        tag="saelens",
        by_magnitude=True,
    ),
    "sparsify": Format(
        _write_sparsify,
        _read_foreign,
        "  sparsify.SparseCoder.load_many({folder!r}, local=True)",
        inside="{module}",
        about=SPARSIFY_ABOUT,
        weights=SPARSIFY_WEIGHTS,
        tag="sparsify",
    ),
    "circuit-tracer": Format(
        _write_circuit_tracer,
        _read_circuit_tracer,
        "One layer. Export the folder that holds the run folders of all layers, to load them together.",
        about=CIRCUIT_TRACER_CONFIG,
    ),
}
"""The formats that hold an SAE, by the names that users type."""
