"""`vsae eval`: measure run folders again."""

from dataclasses import dataclass

import tyro

from .flags import Command


@dataclass(frozen=True)
class EvalFlags:
    """Evaluate run folders on held-out text and write their metrics.json."""

    folders: tyro.conf.Positional[tuple[str, ...]]
    """One or more run folders, trained on one language model and hook point."""
    tokens: int = 100_000
    """Held-out tokens to measure on."""
    model: str | None = None
    """The language model, if config.json does not say it."""
    hook: str | None = None
    """The hook point, if config.json does not say it."""
    data: str | None = None
    """Another text to evaluate on."""
    device: str = "cpu"
    """cpu, cuda or cuda:N."""


def run(flags: EvalFlags) -> None:
    from ..evaluation.folders import evaluate_folders, table

    options = {name: value for name, value in vars(flags).items() if name != "folders"}
    print(table(evaluate_folders(flags.folders, **options)))


COMMAND = Command("eval", EvalFlags, run)
