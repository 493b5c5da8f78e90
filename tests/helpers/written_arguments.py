"""Writes trainers/arguments.py, the arguments of our constructors as type checkers read them: `python tests/helpers/written_arguments.py`."""

from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from dictionary_learning_ext.config import sae
from dictionary_learning_ext.config.arguments import arguments_of
from dictionary_learning_ext.config.run import Dtype
from dictionary_learning_ext.trainers.base import (
    SamplingTopKTrainer,
    SamplingTrainer,
    place_arguments,
)

FILE = Path(__file__).parents[2] / "dictionary_learning_ext" / "trainers" / "arguments.py"
TRAINERS = {"TrainerArguments": SamplingTrainer, "TopKTrainerArguments": SamplingTopKTrainer}
CLASSES = {
    "TrainerArguments": sae.SAEConfig,
    "TopKTrainerArguments": sae.AuxKOptions,
    "PosteriorArguments": sae.PosteriorOptions,
    "TopKPosteriorArguments": sae.TopKPosteriorOptions,
    "VSAEBatchTopKArguments": sae.VSAEBatchTopKConfig,
    "VSAETopKArguments": sae.VSAETopKConfig,
    "VAEaseArguments": sae.VAEaseOptions,
    "VAEaseTrainerArguments": sae.VAEaseConfig,
    "VSAEAsPublishedArguments": sae.VSAEAsPublishedConfig,
    "ProbabilisticTopKArguments": sae.ProbabilisticTopKConfig,
}
BASES = {
    "TopKTrainerArguments": ["TrainerArguments"],
    "TopKPosteriorArguments": ["PosteriorArguments"],
    "VSAEBatchTopKArguments": ["TopKTrainerArguments", "PosteriorArguments"],
    "VSAETopKArguments": ["VSAEBatchTopKArguments", "TopKPosteriorArguments"],
    "ProbabilisticTopKArguments": ["TopKTrainerArguments"],
    "VAEaseTrainerArguments": ["TrainerArguments", "VAEaseArguments"],
    "VSAEAsPublishedArguments": ["TrainerArguments"],
}
IN_CONSTRUCTORS = {"steps", "activation_dim", "layer", "lm_name", "dict_class"}
"""What the constructors' own signatures name."""
CHOICES = {hint: name for name, hint in vars(sae).items() if get_origin(hint) is Literal}
CHOICES[Dtype] = "Dtype"


def spelled(hint: Any) -> str:
    if get_origin(hint) in (Union, UnionType):
        return " | ".join(map(spelled, get_args(hint)))
    return "None" if hint is NoneType else CHOICES.get(hint) or hint.__name__


def written() -> str:
    bodies, known = {}, {}
    for name, cls in CLASSES.items():
        place = place_arguments(TRAINERS[name]) if name in TRAINERS else {}
        own = {n: p.annotation for n, p in place.items() if n not in IN_CONSTRUCTORS}
        own |= {option: hint for option, (hint, _) in arguments_of(cls).items()}
        inherited = set().union(*(known[base] for base in BASES.get(name, [])))
        bodies[name] = {n: spelled(hint) for n, hint in own.items() if n not in inherited}
        known[name] = own.keys() | inherited
    used = sorted(
        {kind for body in bodies.values() for kind in body.values()}
        & {*CHOICES.values()} - {"Dtype"}
    )
    lines = [
        '"""The arguments of our constructors, for type checkers. Written by tests/helpers/written_arguments.py from config/sae.py',
        'and base.py."""',
        "",
        "from typing import TypedDict",
        "",
        "from torch import Tensor",
        "",
        "from ..config.run import Dtype",
        f"from ..config.sae import {', '.join(used)}",
        "from .parts import Part",
    ]
    for name, body in bodies.items():
        lines += [
            "",
            "",
            f"class {name}({', '.join(BASES.get(name, ['TypedDict']))}, total=False):",
        ]
        lines += [f"    {option}: {kind}" for option, kind in body.items()] or ["    pass"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    FILE.write_text(written())
