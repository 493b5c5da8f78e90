"""Variational trainers of a small size, and their data."""

from inspect import signature

import torch as t

from dictionary_learning_ext import VariationalTopKTrainer
from dictionary_learning_ext.config.sae import DEAD_FEATURE_THRESHOLD, UNUSED_BY, option_names

D, F = 8, 48
POSTERIORS = ["fixed", "learned", "point"]
NOISE_ON = ["both", "values", "selection"]


def data(batch=32, seed=0, dtype=t.float32, width=D):
    """Activations with structure: sparse sums of a few directions, and noise."""
    generator = t.Generator().manual_seed(seed)
    directions = t.randn(3 * width, width, generator=t.Generator().manual_seed(99))
    on = t.rand(batch, 3 * width, generator=generator) < 0.1
    strengths = t.rand(batch, 3 * width, generator=generator) * on
    noise = t.randn(batch, width, generator=generator)
    return (strengths @ directions + 0.1 * noise + 0.5).to(dtype)


def equations(**options):
    """Options of the paper's equations, with upstream's AuxK and learning-rate schedule, where `options` has none of its own."""
    plain = {
        **{"sigma": 1.0, "noise_on": "both", "noise_anneal_steps": None},
        **{"beta": 1.0, "kl_scope": "all", "prior_std": 1.0, "log_var_init": -2.0},
        **{"dead_feature_threshold": DEAD_FEATURE_THRESHOLD, "decay_start": None},
    }
    unused = {*UNUSED_BY[options.get("posterior", "fixed")]}
    if "noise_to_signal" in options:
        unused.add("sigma")
    return {name: value for name, value in plain.items() if name not in unused} | options


def make_trainer(cls=VariationalTopKTrainer, **changes):
    arguments = {
        "steps": 200,
        "activation_dim": D,
        "dict_size": F,
        "k": 4,
        "layer": 0,
        "lm_name": "tiny",
        "lr": 1e-3,
        "warmup_steps": 10,
        "threshold_start_step": 5,
        "seed": 0,
        "device": "cpu",
    }
    is_ours = hasattr(cls, "settings_class")
    known = option_names(cls.settings_class) if is_ours else signature(cls).parameters
    own = {n: v for n, v in equations(**changes).items() if n in known and n not in arguments}
    return cls(**arguments | own | changes)


def as_upstream(**changes):
    """Our trainer, configured to be upstream's."""
    return make_trainer(posterior="point", rectify=True, beta=0.0, **changes)
