"""Variational trainers of a small size, and their data."""

import torch as t

from dictionary_learning_ext import VariationalTopKTrainer

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
    return cls(**arguments | changes)


def as_upstream(**changes):
    """Our trainer, configured to be upstream's."""
    return make_trainer(posterior="point", rectify=True, beta=0.0, **changes)
