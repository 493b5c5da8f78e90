"""Variational TopK sparse autoencoders on top of dictionary_learning.

The public names are imported when first used (PEP 562): importing the package is instant, and
torch, nnsight and datasets are loaded by what needs them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .activations.buffer import ResidualBuffer
    from .activations.hook_points import find_hook
    from .activations.language_models import load_language_model
    from .activations.text import open_text
    from .config.presets import trainer_options
    from .config.run import RunConfig
    from .config.sae import SAEConfig
    from .errors import UserError
    from .evaluation.folders import evaluate_folders
    from .evaluation.measure import measure
    from .features.features_of import features_of
    from .features.reproducibility_of_folders import agreement
    from .features.steering import steer
    from .run_folder.weights import load_dictionary
    from .trainers.probabilistic_top_k import ProbabilisticTopKTrainer
    from .trainers.vaease import VAEase, VAEaseTrainer
    from .trainers.variational_top_k import VariationalTopKAutoEncoder, VariationalTopKTrainer
    from .training.loop import train

_HOMES = {
    "ProbabilisticTopKTrainer": ".trainers.probabilistic_top_k",
    "ResidualBuffer": ".activations.buffer",
    "RunConfig": ".config.run",
    "SAEConfig": ".config.sae",
    "UserError": ".errors",
    "VAEase": ".trainers.vaease",
    "VAEaseTrainer": ".trainers.vaease",
    "VariationalTopKAutoEncoder": ".trainers.variational_top_k",
    "VariationalTopKTrainer": ".trainers.variational_top_k",
    "agreement": ".features.reproducibility_of_folders",
    "evaluate_folders": ".evaluation.folders",
    "features_of": ".features.features_of",
    "find_hook": ".activations.hook_points",
    "load_dictionary": ".run_folder.weights",
    "load_language_model": ".activations.language_models",
    "measure": ".evaluation.measure",
    "open_text": ".activations.text",
    "steer": ".features.steering",
    "train": ".training.loop",
    "trainer_options": ".config.presets",
}

__all__ = [
    "ProbabilisticTopKTrainer",
    "ResidualBuffer",
    "RunConfig",
    "SAEConfig",
    "UserError",
    "VAEase",
    "VAEaseTrainer",
    "VariationalTopKAutoEncoder",
    "VariationalTopKTrainer",
    "agreement",
    "evaluate_folders",
    "features_of",
    "find_hook",
    "load_dictionary",
    "load_language_model",
    "measure",
    "open_text",
    "steer",
    "train",
    "trainer_options",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":  # setup.py states it
        from importlib.metadata import version

        return version("dictionary-learning-ext")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
