"""Trained SAEs in SAE Bench's interface, and our architectures in SAE Bench's tables."""

from itertools import cycle
from pathlib import Path
from typing import Any

import sae_bench.custom_saes.run_all_evals_dictionary_learning_saes as upstream_runner
import torch as t
from dictionary_learning.dictionary import Dictionary
from huggingface_hub import hf_hub_download
from sae_bench.custom_saes.base_sae import BaseSAE
from sae_bench.sae_bench_utils import graphing_utils

from ..config.architectures import ARCHITECTURES, BY_DICT_CLASS, TRAINED
from ..errors import BenchError
from ..run_folder.files import CONFIG, WEIGHTS
from ..run_folder.foreign_weights import UNIT_NORM_TOLERANCE
from ..run_folder.sae_folder import SAEFolder, find_sae
from ..run_folder.weights import load_sae
from ..trainers.dictionaries import other_weight, weights_by_feature

_COLOURS = ("crimson", "magenta", "teal", "darkorange", "olive", "dodgerblue")
_MARKERS = "Dvph*Ps"


class BenchSAE(BaseSAE):
    """A dictionary of our class or upstream's in SAE Bench's interface.

    It encodes as the dictionary does at evaluation: deterministic, the posterior's mean. It takes raw activations, (B, D) or
    (B, L, D), and returns a new dense tensor. `cfg.architecture` is its architecture in SAE Bench's plots, e.g. topk or
    vsae_fixed_values.

    Raises: BenchError if the decoder's columns are not of unit norm within 1e-5.
    """

    def __init__(
        self,
        dictionary: Dictionary,
        *,
        model_name: str,
        hook_name: str,
        hook_layer: int,
    ):
        W_enc_FD, W_dec_FD = weights_by_feature(dictionary)
        super().__init__(
            d_in=dictionary.activation_dim,
            d_sae=dictionary.dict_size,
            model_name=model_name,
            hook_layer=hook_layer,
            device=W_dec_FD.device,
            dtype=W_dec_FD.dtype,
            hook_name=hook_name,
        )
        self.W_enc.data, self.W_dec.data = W_enc_FD.T.detach(), W_dec_FD.detach()
        for name in ("b_enc", "b_dec"):  # 0 where there is none
            if (weight := other_weight(dictionary, name)) is not None:
                getattr(self, name).data = weight
        self.dictionary: Any = dictionary
        self.requires_grad_(False)
        name = type(dictionary).__name__
        row = BY_DICT_CLASS.get(name)
        variant = getattr(dictionary, "variant", "")
        self.cfg.architecture = row.bench_name_of(variant) if row else name
        off = float((self.W_dec.norm(dim=1) - 1).abs().max())
        if off > UNIT_NORM_TOLERANCE:
            raise BenchError(
                f"decoder columns of a {name} are off unit norm by {off:.1e}; "
                f"expected at most {UNIT_NORM_TOLERANCE:.0e}: scale each feature's decoder column to 1 "
                "and its encoder row and bias by the former norm"
            )

    def encode(self, x: t.Tensor) -> t.Tensor:
        return self.dictionary.encode(x.to(self.W_enc.dtype))

    def decode(self, feature_acts: t.Tensor) -> t.Tensor:
        return self.dictionary.decode(feature_acts.to(self.W_enc.dtype))

    def forward(self, x: t.Tensor) -> t.Tensor:
        return self.decode(self.encode(x))


def load_bench_sae(
    folder: str | Path | SAEFolder,
    *,
    device: str = "cpu",
    dtype: t.dtype = t.float32,
    **place: Any,
) -> BenchSAE:
    """A run folder's SAE, of our classes or any of upstream's, with a unit-norm decoder where that changes no reconstruction.

    Arguments:
        place: model_name, hook_name and hook_layer, as for `BenchSAE`.

    Raises: CheckpointError if the folder is damaged; BenchError if SAE Bench can't take its SAE.
    """
    found = find_sae(folder)
    dictionary = load_sae(found, device)
    if method := BY_DICT_CLASS[type(dictionary).__name__].unit_norm_by:
        getattr(dictionary, method)()
    try:
        sae = BenchSAE(dictionary.to(dtype), **place)
    except BenchError as error:
        raise error.within(found.name) from error
    sae.cfg.activation_fn_str = found.config["trainer"]["dict_class"]
    return sae


def register() -> None:
    """Enter our trainer classes and their variants into SAE Bench's own tables.

    Afterwards SAE Bench's `run_all_evals_dictionary_learning_saes` loads our repos, and its
    graphing tells our variants apart.
    """
    for row in TRAINED.values():
        if row.is_ours:
            upstream_runner.TRAINER_LOADERS[row.trainer_class] = load_our_sae
    labels = {
        row.bench_name_of(variant): label
        for row in ARCHITECTURES.values()
        if row.is_ours
        for variant, label in (row.variants or {"": row.title}).items()
    }
    graphing_utils.TRAINER_LABELS.update(labels)
    graphing_utils.TRAINER_COLORS.update(zip(labels, cycle(_COLOURS), strict=False))
    graphing_utils.TRAINER_MARKERS.update(zip(labels, cycle(_MARKERS), strict=False))


def load_our_sae(
    repo_id: str,
    filename: str,
    model_name: str,
    device: t.device,
    dtype: t.dtype,
    layer: int | None = None,
    local_dir: str = "downloaded_saes",
) -> BenchSAE:
    """Load one of our SAEs from a repository on the hub. The arguments are those of SAE Bench's other loaders."""
    for name in (filename, filename.replace(WEIGHTS, CONFIG)):
        hf_hub_download(repo_id=repo_id, filename=name, local_dir=local_dir)
    folder = (Path(local_dir) / filename).parent
    found = find_sae(folder)
    trainer = found.config["trainer"]
    if layer is not None and layer != trainer["layer"]:
        raise BenchError(f"{folder}: trained on layer {trainer['layer']}, not on {layer}")
    if model_name not in trainer["lm_name"]:
        raise BenchError(f"{folder}: trained on {trainer['lm_name']}, not on {model_name}")
    hook_name = str(trainer.get("submodule_name"))
    if not hook_name.startswith("blocks."):  # upstream's names are free
        hook_name = f"blocks.{trainer['layer']}.hook_resid_post"
    return load_bench_sae(
        found,
        device=str(device),
        dtype=dtype,
        model_name=model_name,
        hook_name=hook_name,
        hook_layer=trainer["layer"],
    )
