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
CLASSES = {
    "PosteriorArguments": sae.PosteriorOptions,
    "VSAETopKArguments": sae.VSAETopKConfig,
    "VAEaseArguments": sae.VAEaseOptions,
    "VAEaseTrainerArguments": sae.VAEaseConfig,
    "VSAEAsPublishedArguments": sae.VSAEAsPublishedConfig,
    "ProbabilisticTopKArguments": sae.ProbabilisticTopKConfig,
}
TRAINERS = {"TrainerArguments": SamplingTrainer, "TopKTrainerArguments": SamplingTopKTrainer}
BASES = {
    "TopKTrainerArguments": "TrainerArguments",
    "VSAETopKArguments": "TopKTrainerArguments",
    "ProbabilisticTopKArguments": "TopKTrainerArguments",
    "VAEaseTrainerArguments": "TrainerArguments",
    "VSAEAsPublishedArguments": "TrainerArguments",
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
    bodies, seen = {}, IN_CONSTRUCTORS
    for name, cls in TRAINERS.items():
        own = {n: p.annotation for n, p in place_arguments(cls).items() if n not in seen}
        bodies[name], seen = own, seen | own.keys()
    for name, cls in CLASSES.items():
        bodies[name] = {option: hint for option, (hint, _) in arguments_of(cls).items()}
    bodies = {name: {n: spelled(hint) for n, hint in body.items()} for name, body in bodies.items()}
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
        lines += ["", "", f"class {name}({BASES.get(name, 'TypedDict')}, total=False):"]
        lines += [f"    {option}: {kind}" for option, kind in body.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    FILE.write_text(written())
