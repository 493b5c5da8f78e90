"""Writes trainers/arguments.py, the options of our constructors as type checkers read them: `python tests/helpers/written_arguments.py`."""

from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from dictionary_learning_ext.config import sae
from dictionary_learning_ext.config.arguments import arguments_of

FILE = Path(__file__).parents[2] / "dictionary_learning_ext" / "trainers" / "arguments.py"
CLASSES = {
    "PosteriorArguments": sae.PosteriorOptions,
    "VSAETopKArguments": sae.VSAETopKConfig,
    "VAEaseArguments": sae.VAEaseOptions,
    "VAEaseTrainerArguments": sae.VAEaseConfig,
    "VSAEAsPublishedArguments": sae.VSAEAsPublishedConfig,
    "ProbabilisticTopKArguments": sae.ProbabilisticTopKConfig,
}
CHOICES = {hint: name for name, hint in vars(sae).items() if get_origin(hint) is Literal}


def spelled(hint: Any) -> str:
    if get_origin(hint) in (Union, UnionType):
        return " | ".join(map(spelled, get_args(hint)))
    return "None" if hint is NoneType else CHOICES.get(hint) or hint.__name__


def written() -> str:
    bodies = {
        name: {option: spelled(hint) for option, (hint, _) in arguments_of(cls).items()}
        for name, cls in CLASSES.items()
    }
    used = sorted(
        {kind for body in bodies.values() for kind in body.values()} & {*CHOICES.values()}
    )
    lines = [
        '"""The options of our constructors, for type checkers. Written by tests/helpers/written_arguments.py from config/sae.py."""',
        "",
        "from typing import TypedDict",
        "",
        f"from ..config.sae import {', '.join(used)}",
    ]
    for name, body in bodies.items():
        lines += ["", "", f"class {name}(TypedDict, total=False):"]
        lines += [f"    {option}: {kind}" for option, kind in body.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    FILE.write_text(written())
