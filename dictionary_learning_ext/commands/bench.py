"""`vsae bench`: SAE Bench's evaluations of run folders."""

from dataclasses import dataclass
from importlib.util import find_spec

import tyro

from ..config.options import require
from ..errors import BenchError

EVALUATIONS = ("core", "scr", "tpp", "sparse_probing", "absorption")


@dataclass(frozen=True)
class Flags:
    """Evaluate run folders in SAE Bench and write its JSON to FOLDER/eval_results."""

    folders: tyro.conf.Positional[tuple[str, ...]]
    """Run folders, or hub repos as OWNER/NAME, all trained on one language model and hook point."""
    evals: str = "core,scr,tpp,sparse_probing"
    """Which evaluations: some of core, scr, tpp, sparse_probing and absorption, with commas between
    (absorption needs a model that knows first letters; its authors ask for 1B parameters)."""
    compare: bool = False
    """Also the size-matched control of SCR and TPP (each SAE masked to as many of its most used
    features as the SAE that uses fewest), and the paper's figures 3 to 5."""
    floor: bool = False
    """Also a random and an identity SAE: what a measure can tell apart."""
    again: bool = False
    """Repeat finished evaluations."""
    data: str | None = None
    """embedded (the shipped books), hub (SAE Bench's own sets), or a folder that holds sets in
    folders of their hub names. Embedded for the embedded model, hub for others."""
    tokens: int = 100_000
    """Tokens that core measures on."""
    train_size: int | None = None
    """Texts in the probes' training sets; SAE Bench's 4,000, or what the books fill."""
    test_size: int | None = None
    """Texts in the probes' test sets; SAE Bench's 1,000, or what the books fill."""
    figures: str | None = None
    """Where --compare puts its figures; eval_results/figures in the first folder unless told."""
    model: str | None = None
    """The language model, if config.json does not say it."""
    hook: str | None = None
    """The hook point, if config.json does not say it."""
    device: str = "cpu"
    """cpu, cuda or cuda:N."""


def run(flags: Flags) -> None:
    evals = [name.strip() for name in flags.evals.split(",") if name.strip()]
    for name in evals or [""]:
        require(name in EVALUATIONS, "evals", name, "some of " + ",".join(EVALUATIONS))
    require(len(flags.folders) > 0, "folders", (), "one run folder or more, as runs/NAME")
    require(flags.tokens > 0, "tokens", flags.tokens, "above 0")
    if find_spec("sae_bench") is None:
        raise BenchError(
            "SAE Bench is not installed: type `pip install 'dictionary-learning-ext[saebench]'`, "
            "or `pip install -e '.[saebench]'` in a clone"
        )
    from ..run_folder.names import BENCH_RESULTS
    from ..sae_bench.adapter import local_folder
    from ..sae_bench.bench_runner import bench
    from ..sae_bench.comparison_table import table
    from ..sae_bench.paper_figures import write_figures

    outcome = bench(
        flags.folders,
        evals=evals,
        model=flags.model,
        hook=flags.hook,
        data=flags.data,
        device=flags.device,
        tokens=flags.tokens,
        train_size=flags.train_size,
        test_size=flags.test_size,
        again=flags.again,
        floor=flags.floor,
        size_matched=flags.compare,
    )
    if outcome.results:
        print(table(outcome))
        print(
            "\nFVE beside explained variance: SAE Bench 0.6.0 subtracts a wrong mean; see README."
        )
    if flags.compare:
        folder = local_folder(flags.folders[0]) / BENCH_RESULTS / "figures"
        for path in write_figures(outcome, flags.figures or folder):
            print(f"wrote {path}")
    outcome.check()
