"""Small trainers of any architecture, built from a configuration as a run builds them."""

from typing import Any

import torch as t

from dictionary_learning_ext.config.sae import CONFIGS, SAEConfig
from dictionary_learning_ext.trainers.upstream import build_trainer

D, F, K, BATCH, STEPS = 16, 32, 4, 24, 100


def batch(seed: int, rows: int = BATCH) -> t.Tensor:
    return t.randn(rows, D, generator=t.Generator().manual_seed(seed))


def built(architecture: str, dtype: str = "float32", **options: Any) -> Any:
    """The trainer of an architecture for a run of STEPS, with these options. Default: k = K."""
    if "k" in CONFIGS[architecture]().options:
        options = {"k": K} | options
    sae = SAEConfig(architecture=architecture, dict_size=F, **options).resolve(STEPS, BATCH)
    return build_trainer(
        sae,
        steps=STEPS,
        activation_dim=D,
        layer=0,
        lm_name="tiny",
        hook="blocks.0.hook_resid_post",
        device="cpu",
        dtype=dtype,
        name="x",
    )
