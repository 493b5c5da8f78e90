"""`vsae bench`: evaluate SAEs with SAE Bench."""

from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, get_args

from ..config.architectures import BENCHED, BenchEvaluation
from ..config.run import RunConfig
from ..errors import BenchError
from .flags import FOLDERS, Command, positional
from .measure import InputFlags

_EVALS_HELP = (
    f"The evaluations to run, separated by commas: {', '.join(get_args(BenchEvaluation))}. An audit "
    "says not to evaluate SAEs by scr and tpp. absorption needs a model that knows first letters; its "
    "authors recommend 1B parameters."
)
AUDIT = (
    "SCR and TPP: an audit of SAE Bench (Chanin 2026, arXiv 2605.18229) found that at their usual "
    "settings TPP\nscores SAEs lower the longer they train, and SCR at large N orders SAEs against "
    "the ground truth.\nDon't choose between SAEs by them. It found sae_probes the most reliable."
)


@dataclass(frozen=True)
class BenchInputFlags(InputFlags):
    """The language model of the SAEs, and the texts of the evaluations."""

    data: str | None = None
    """The texts. core reads the held-out part of any that train takes (.txt, .jsonl, a folder of them, embedded); default: of
    the run's own. hub: SAE Bench's own datasets. A folder may hold them, in subfolders named as on the hub. scr, tpp and
    sparse_probing need labelled texts: hub, their default for other models than the embedded one, or such a folder."""


@dataclass(frozen=True)
class BenchFlags:
    """Evaluate run folders with SAE Bench."""

    folders: tuple[str, ...] = field(metadata=positional(FOLDERS))
    """Run folders, or SAEs on the hub (OWNER/REPOSITORY/FOLDER), all trained on one language model and hook
    point. Results go to FOLDER/eval_results, and to results/NAME/eval_results for an SAE on the hub."""
    evals: str = field(
        default=",".join(BENCHED),
        metadata={"help": _EVALS_HELP},
    )
    compare: bool = False
    """Also print how each SAE differs from the first."""
    probing_sets: str = "smallest"
    """The data sets of sae_probes: smallest (30 of 113, a fifth of the texts), all, or names
    separated by commas."""
    again: bool = False
    """Repeat finished evaluations, e.g. where a data set has changed."""
    tokens: int = RunConfig.eval_tokens
    """Tokens that core measures on, rounded down to whole batches of 16 contexts, at least one. CE
    and KL are measured on a fifth of the batches, at least one."""
    train_size: int | None = None
    """Texts in each probe's training set, of SCR, TPP and sparse_probing. Default: 4000, as in
    SAE Bench."""
    test_size: int | None = None
    """Texts in each probe's test set, of the same. Default: 1000, as in SAE Bench."""
    inputs: BenchInputFlags = field(default_factory=BenchInputFlags)


def run(flags: BenchFlags) -> None:
    if find_spec("sae_bench") is None:
        raise BenchError(
            "SAE Bench is not installed here; it needs an environment of its own, with older numpy and "
            "datasets: in a clone of the repository, `python3 -m venv .venv-saebench && "
            ".venv-saebench/bin/pip install -e '.[sae-bench]'`, then `.venv-saebench/bin/vsae bench …`"
        )
    from ..sae_bench.results import differences, reading_notes, table
    from ..sae_bench.runner import bench

    evals: Any = [name.strip() for name in flags.evals.split(",") if name.strip()]
    outcome = bench(
        flags.folders,
        evals=evals,
        **vars(flags.inputs),
        tokens=flags.tokens,
        train_size=flags.train_size,
        test_size=flags.test_size,
        probing_sets=flags.probing_sets,
        again=flags.again,
    )
    if outcome.results:
        print(table(outcome))
        if "core" in evals:
            print("", *reading_notes(outcome), sep="\n")
            print(
                "\nFVE is ours. SAE Bench 0.6.0's explained variance subtracts a wrong mean (see docs/sae_bench.md)."
            )
        if {"scr", "tpp"} & set(evals):
            print(f"\n{AUDIT}")
    if flags.compare and (shown := differences(outcome)):
        print(f"\n{shown}")
    outcome.check()


BENCH = Command(
    "bench",
    BenchFlags,
    run,
    examples=(
        "vsae bench runs/a --evals core",
        "vsae bench runs/a runs/b --evals core,sae_probes --compare",
    ),
)
