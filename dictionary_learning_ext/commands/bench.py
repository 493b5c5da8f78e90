"""`vsae bench`: run folders in SAE Bench."""

from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Annotated, Any, get_args

import tyro

from ..config.options import BenchEvaluation
from ..config.run_config import RunConfig
from ..errors import BenchError
from .flags import Command, Folders, InputFlags

EVALUATIONS: tuple[BenchEvaluation, ...] = get_args(BenchEvaluation)
_EVALS_HELP = (
    f"The evaluations to run, separated by commas: {', '.join(EVALUATIONS)}. absorption needs a "
    "model that knows first letters; its authors recommend 1B parameters."
)


@dataclass(frozen=True)
class BenchInputFlags(InputFlags):
    """The language model of the SAEs, and the texts of the evaluations."""

    data: str | None = None
    """The texts: embedded (the shipped books), hub (SAE Bench's own datasets), or a folder that
    holds datasets in subfolders named as on the hub. Default: embedded for the embedded model,
    hub for others."""


@dataclass(frozen=True)
class BenchFlags:
    """Evaluate run folders with SAE Bench."""

    folders: tyro.conf.Positional[Folders]
    """Run folders or hub repos (OWNER/NAME), all trained on one language model and hook point.
    Results go to FOLDER/eval_results."""
    evals: Annotated[str, tyro.conf.arg(help=_EVALS_HELP)] = ",".join(
        name for name in EVALUATIONS if name != "absorption"
    )
    compare: bool = False
    """Also run SCR and TPP size-matched, and draw the paper's figures 3 to 5. Size-matched:
    each SAE keeps only its N most used features, where N is the number that the SAE with the
    fewest uses."""
    floor: bool = False
    """Also evaluate a random SAE and the identity, to show which differences an evaluation can
    detect."""
    again: bool = False
    """Repeat finished evaluations."""
    tokens: int = RunConfig.eval_tokens
    """Tokens that core measures on, rounded down to whole batches of 16 contexts. CE and KL are
    measured on a fifth of the batches."""
    train_size: int | None = None
    """Texts in each probe's training set. Default: 4000 as in SAE Bench, or what the books
    provide."""
    test_size: int | None = None
    """Texts in each probe's test set. Default: 1000 as in SAE Bench, or what the books provide."""
    figures: str | None = None
    """The folder for the figures of --compare. Default: eval_results/figures in the first
    folder."""
    inputs: BenchInputFlags = field(default_factory=BenchInputFlags)


def run(flags: BenchFlags) -> None:
    if find_spec("sae_bench") is None:
        raise BenchError(
            "SAE Bench is not installed here; it needs an environment of its own, with older numpy and "
            "datasets: in a clone of the repository, `python3 -m venv .venv-saebench && "
            ".venv-saebench/bin/pip install -e '.[saebench]'`, then `.venv-saebench/bin/vsae bench …`"
        )
    from ..run_folder.names import BENCH_FIGURES, BENCH_RESULTS
    from ..sae_bench.adapter import local_folder
    from ..sae_bench.bench_runner import bench
    from ..sae_bench.comparison_table import measured_on, table
    from ..sae_bench.paper_figures import write_figures

    evals: Any = [name.strip() for name in flags.evals.split(",") if name.strip()]
    outcome = bench(
        flags.folders,
        evals=evals,
        **vars(flags.inputs),
        tokens=flags.tokens,
        train_size=flags.train_size,
        test_size=flags.test_size,
        again=flags.again,
        floor=flags.floor,
        size_matched=flags.compare,
    )
    if outcome.results:
        print(table(outcome))
        print("", *measured_on(outcome), sep="\n")
        print(
            "\nFVE is ours. SAE Bench 0.6.0's explained variance subtracts a wrong mean (see README)."
        )
    if flags.compare:
        folder = local_folder(flags.folders[0]) / BENCH_RESULTS / BENCH_FIGURES
        for path in write_figures(outcome, flags.figures or folder):
            print(f"wrote {path}")
    outcome.check()


COMMAND = Command("bench", BenchFlags, run)
