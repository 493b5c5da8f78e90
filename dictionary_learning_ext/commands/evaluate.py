"""`vsae eval`: evaluate run folders again."""

from dataclasses import dataclass, field

import tyro

from .flags import Command, Folders, InputFlags


@dataclass(frozen=True)
class EvalFlags:
    """Evaluate run folders on held-out text and write metrics.json."""

    folders: tyro.conf.Positional[Folders]
    """Run folders, all trained on one language model and hook point."""
    tokens: int = 100_000
    """Held-out tokens to evaluate on."""
    inputs: InputFlags = field(default_factory=InputFlags)


def run(flags: EvalFlags) -> None:
    from ..evaluation.comparison import printed
    from ..evaluation.folders import evaluate_folders

    print(printed(evaluate_folders(flags.folders, tokens=flags.tokens, **vars(flags.inputs))))


COMMAND = Command("eval", EvalFlags, run)
