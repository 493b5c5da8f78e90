"""`vsae explain`: have a language model behind an endpoint explain features, and score the explanations."""

import os
import shutil
import sys
from dataclasses import dataclass, field
from importlib.util import find_spec
from signal import SIGINT
from typing import TYPE_CHECKING

from ..config.run import ExplainOptions
from ..errors import EndpointError, Interrupted
from .flags import FOLDER, Command, positional
from .measure import MeasuredFlags

if TYPE_CHECKING:
    from ..explain.runner import Explained, Plan


@dataclass(frozen=True)
class ExplainFlags:
    """Have a language model say what features mean, and score it."""

    folder: str = field(metadata=positional(FOLDER))
    """A run folder, or another library's SAE (see docs/any_sae.md). What explanations.json in it holds already is not
    asked for again."""
    endpoint: str = field(metadata={"metavar": "URL"})
    """The address of an OpenAI-compatible endpoint, e.g. http://localhost:8000/v1. Its key, if it needs one, is read
    from the environment's OPENAI_API_KEY."""
    explainer: str = field(metadata={"metavar": "NAME"})
    """The language model that explains, by its name there."""
    scorer: str | None = field(default=None, metadata={"metavar": "NAME"})
    """The language model that scores. Default: the explainer."""
    dry_run: bool = False
    """Only say how many requests and tokens it takes."""
    overwrite: bool = False
    """Discard all that explanations.json holds, whatever it is of."""
    out: str | None = None
    """Write to OUT/NAME/explanations.json instead, where other commands don't find it. Default: the run folder, and
    results/NAME for another library's SAE."""
    timeout: float = 300.0
    """Seconds to wait for a whole answer, further tries included."""
    max_tokens: int = 1000
    """Tokens of an answer, at most. Models that reason write more than they answer."""
    explain: ExplainOptions = field(default_factory=ExplainOptions)
    inputs: MeasuredFlags = field(default_factory=MeasuredFlags)


def run(flags: ExplainFlags) -> None:
    if find_spec("openai") is None:
        raise EndpointError(
            "openai, which asks the endpoint, is not installed",
            instead="install it: pip install 'dictionary-learning-ext[explain]'",
        )
    from ..explain.endpoint import KEY, Endpoint
    from ..explain.runner import explain
    from ..progress import progress

    endpoint = Endpoint(
        flags.endpoint,
        os.environ.get(KEY),
        timeout=flags.timeout,
        max_tokens=flags.max_tokens,
    )
    with progress(0, "request") as bar:

        def print_plan(plan: "Plan") -> None:
            print(_planned(plan), flush=True)
            bar.reset(plan.requests)

        try:
            explained = explain(
                flags.folder,
                endpoint,
                flags.explainer,
                scorer=flags.scorer,
                options=flags.explain,
                out=flags.out,
                overwrite=flags.overwrite,
                dry_run=flags.dry_run,
                on_step=lambda step: print(f"  {step} …", flush=True),
                on_plan=print_plan,
                on_answer=bar.update,
                **flags.inputs.given,
            )
        except KeyboardInterrupt as stop:
            again = "without --overwrite " if flags.overwrite else ""
            how = f"run the same command again {again}to continue"
            raise Interrupted(SIGINT, f"stopped by SIGINT; {how}") from stop
    if flags.dry_run:
        print("Nothing was asked.")
        return
    print(f"{_printed(explained)}\nwrote {explained.path}")
    if failed := explained.failed:
        lines = (f"  feature {feature}: {reason}" for feature, reason in failed.items())
        print("\n".join(["These requests failed:", *lines]), file=sys.stderr)
        raise EndpointError(
            f"requests about {len(failed)} of {len(explained.features)} features failed",
            instead="run the same command again: what was answered is not asked for again",
        )
    if all(explained.explanations[each].text is None for each in explained.features):
        raise EndpointError(
            "no explanation had the form that is asked for",
            instead="give another explainer, or more max_tokens",
        )


def _planned(plan: "Plan") -> str:
    """The plan in words: the number of requests and tokens."""
    order = f"The features are taken in the order of the {plan.order}."
    if not plan.requests:
        return f"{order} All answers are there already: nothing is asked."
    return (
        f"{order} {plan.requests:,} requests about {plan.features} of them: about {plan.tokens:,} tokens, "
        "where 4 characters are taken for one. An answer in the wrong form is asked for once more."
    )


def _printed(explained: "Explained") -> str:
    """A table with a row for each feature, and the mean score."""
    from ..evaluation.tables import text_table
    from ..features.explanations import mean_of

    width = max(20, shutil.get_terminal_size().columns - 36)
    rows, scores = [], []
    for feature in explained.features:
        found = explained.explanations.get(feature)
        text, score = (None, None) if found is None else (found.text, found.score)
        scores += [score.value] if score else []
        words = text or "-"
        words = words if len(words) <= width else f"{words[: width - 1]}…"
        rows.append([words, str(feature), str(score) if score else "-"])
    lines = [text_table(["explanation", "feature", "score (95% interval)"], rows)]
    if mean := mean_of(scores):
        lines.append(f"\nMean score of {len(scores)} features: {mean}. Guessing has 0.5.")
    if explained.missing:
        numbers = ", ".join(map(str, explained.missing))
        lines.append(f"Without an answer of the right form, in whole or in part: {numbers}.")
    return "\n".join(lines)


EXPLAIN = Command("explain", ExplainFlags, run)
