"""Reference SAEs: three floors, in which little or nothing was learned, and a ceiling, the identity.

Published SAEs hardly beat the floor with a frozen random decoder on several measures (arXiv 2602.14111).
"""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch as t
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from sae_bench.custom_saes.base_sae import BaseSAE
from sae_bench.custom_saes.identity_sae import IdentitySAE

from ..config.run_config import RunConfig, TrainConfig, require_same
from ..config.sae_config import SAEConfig
from ..errors import ConfigError, Interrupted, Setting, UserError
from ..features.directions import random_directions
from ..run_folder.names import BENCH_FLOOR, CONFIG
from ..run_folder.reading import is_finished, load_config, read_config, read_metrics_if_any
from ..training.loop import train
from .adapter import BenchSAE, load_bench_sae

logger = logging.getLogger(__name__)

_AS_TRAINED = ("lr", "warmup_steps", "decay_start", "auxk_alpha", "dead_feature_threshold")
"""What the floor takes from the settings of an SAE with a k. Others' learning rates are of other losses."""


def untrained_saes(like: BenchSAE) -> dict[str, BaseSAE]:
    """The references that need no training, by their labels, for an SAE of a size, k and place."""
    return {
        f"random_F{like.cfg.d_sae}": random_sae(like),
        "random_spectrum": random_spectrum_sae(like),
        "identity": identity_sae(like),
    }


def random_sae(like: BenchSAE, seed: int = 0) -> BenchSAE:
    """An untrained TopK SAE of the same size, k and place as another."""
    return _as_bench_sae(_untrained(like, seed), like, "random")


def random_spectrum_sae(like: BenchSAE, seed: int = 0) -> BenchSAE:
    """Random directions with the second moments of another SAE's decoder, as encoder and decoder.

    Its decoder bias is the other's. If it scores as well, the other learned little more than which
    dimensions the activations use.
    """
    dictionary: Any = _untrained(like, seed)
    directions_FD = random_directions(like.W_dec.cpu(), t.Generator().manual_seed(seed))
    with t.no_grad():
        dictionary.decoder.weight.copy_(directions_FD.t())
        dictionary.encoder.weight.copy_(directions_FD)
        dictionary.b_dec.copy_(like.b_dec)
    return _as_bench_sae(dictionary, like, "random_spectrum")


def identity_sae(like: BenchSAE) -> IdentitySAE:
    """The ceiling of a measure: SAE Bench's identity, whose features are the activations."""
    cfg = like.cfg
    sae = IdentitySAE(
        cfg.d_in, cfg.model_name, cfg.hook_layer, like.device, like.dtype, cfg.hook_name
    )
    sae.cfg.architecture = "identity"
    return sae.requires_grad_(False)


def frozen_decoder_sae(folder: Path, like: BenchSAE, run: RunConfig) -> BenchSAE:
    """A TopK SAE whose encoder is trained on a decoder that stays random.

    It is trained once, into FOLDER/frozen_decoder, on the batches of the folder's SAE and with its
    learning rate, which takes as long as that did.

    Arguments:
        run: with the language model and the device to train on.

    Raises: a UserError if that can't be done, e.g. as the folder doesn't say how its SAE was trained.
    """
    try:
        return _frozen_decoder_sae(folder, like, run)
    except Interrupted:
        raise
    except UserError as error:
        where = f"the floor with a frozen decoder can't be trained on the batches of {folder}"
        raise error.within(where, ("leave out ", Setting("floor"))) from error


def _frozen_decoder_sae(folder: Path, like: BenchSAE, run: RunConfig) -> BenchSAE:
    config = frozen_decoder_config(folder, like, run)
    target = Path(config.run.save_dir or "")
    is_its_own = _is_run_of(config, target)
    if not (is_its_own and is_finished(target, config.run)):
        steps = f"{config.run.steps:,} steps"
        logger.info("%s: training the floor with a frozen random decoder: %s", target, steps)
        settings = replace(config.run, overwrite=not is_its_own)
        train(settings, {BENCH_FLOOR: config.sae}, resume=is_its_own)
    cfg = like.cfg
    sae = load_bench_sae(
        target,
        model_name=cfg.model_name,
        hook_name=cfg.hook_name,
        hook_layer=cfg.hook_layer,
        device=str(like.device),
    )
    sae.cfg.architecture = BENCH_FLOOR
    return sae


def frozen_decoder_config(folder: Path, like: BenchSAE, run: RunConfig) -> TrainConfig:
    """The settings that `frozen_decoder_sae` trains with."""
    if "run" not in read_config(folder):
        raise ConfigError(f"its {CONFIG} doesn't say how it was trained, as `vsae train` writes it")
    trained = load_config(folder)
    sae = SAEConfig(
        architecture="vsae_top_k",
        posterior="point",
        rectify=True,
        beta=0.0,
        k=_k_of(like, folder),
        dict_size=like.cfg.d_sae,
        freeze_decoder=True,
        seed=trained.sae.seed,
        **{
            name: getattr(trained.sae, name)
            for name in _AS_TRAINED
            if hasattr(like.dictionary, "k")
        },
    )
    settings = replace(
        trained.run,
        model=run.model,
        device=run.device,
        save_dir=str(folder / BENCH_FLOOR),
        wandb="disabled",
    )
    return TrainConfig(sae.resolve(settings.steps, settings.batch_size), settings)


def _is_run_of(config: TrainConfig, folder: Path) -> bool:
    """Whether a folder holds a run with these settings, finished or not."""
    try:
        require_same(load_config(folder).to_dict(), config.to_dict(), str(folder))
    except ConfigError:
        return False
    return True


def _k_of(like: BenchSAE, folder: Path | None = None) -> int:
    """An SAE's k; of one without, its mean L0 if the folder's evaluation says it, or else F / 32."""
    if (k := getattr(like.dictionary, "k", None)) is not None:
        return int(k)
    l0 = ((read_metrics_if_any(folder) if folder else None) or {}).get("l0")
    return max(1, min(like.cfg.d_sae, round(l0))) if l0 else max(1, like.cfg.d_sae // 32)


def _untrained(like: BenchSAE, seed: int) -> AutoEncoderTopK:
    with t.random.fork_rng(devices=[]):
        t.manual_seed(seed)
        return AutoEncoderTopK(like.cfg.d_in, like.cfg.d_sae, _k_of(like))


def _as_bench_sae(dictionary: AutoEncoderTopK, like: BenchSAE, architecture: str) -> BenchSAE:
    cfg = like.cfg
    return BenchSAE(
        dictionary.to(like.device).requires_grad_(False),
        model_name=cfg.model_name,
        hook_name=cfg.hook_name,
        hook_layer=cfg.hook_layer,
        architecture=architecture,
    )
