"""`vsae eval`: evaluate run folders again."""

from dataclasses import dataclass, field

from .flags import FOLDERS, Command, MeasuredFlags, positional


@dataclass(frozen=True)
class EvalFlags:
    """Evaluate run folders on held-out text and write metrics.json."""

    folders: tuple[str, ...] = field(metadata=positional(FOLDERS))
    """Run folders, all trained on one language model."""
    tokens: int | None = None
    """Held-out tokens to evaluate on, rounded up to whole batches of 2,048. Default: as in the
    run's own evaluation. If the settings differ from those of metrics.json, the results go to evaluations/ instead."""
    step: int | None = None
    """Evaluate the checkpoint of this step, see --save-steps of train. Default: the final
    weights."""
    inputs: MeasuredFlags = field(default_factory=MeasuredFlags)


def run(flags: EvalFlags) -> None:
    from ..evaluation.folders import evaluate_folders
    from ..evaluation.tables import printed

    written = []
    results = evaluate_folders(
        flags.folders,
        tokens=flags.tokens,
        step=flags.step,
        on_written=written.append,
        **vars(flags.inputs),
    )
    print(printed(results))
    for path in written:
        print(f"wrote {path}")


COMMAND = Command("eval", EvalFlags, run)
