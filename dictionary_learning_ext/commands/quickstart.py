"""`vsae quickstart`: train a TopK SAE and a vSAE from two seeds, and print how many features come back."""

from dataclasses import dataclass, replace
from pathlib import Path

from ..config.architectures import ARCHITECTURES
from ..config.checks import require
from ..config.presets import preset, quickstart
from ..config.run import ReportOptions, RunConfig
from ..errors import in_shell
from ..run_folder.files import REPORT, remove, writing
from ..run_folder.reading import load_config
from ..training.plan import with_hook_names
from .cache import explain_interrupt
from .flags import Command, vsae
from .seeds import CACHE, SeedRun, how_to_continue, train_seeds

CACHED = 400_000
"""The most tokens that are cached. Each training reads them several times, in its own order."""


@dataclass(frozen=True)
class QuickstartFlags:
    """Train TopK and a vSAE from two seeds; see which features come back."""

    save_dir: str = "runs/quickstart"
    """The folder for the four run folders, the cached activations and the report."""
    steps: int = 4000
    """Training steps of each SAE."""
    eval_tokens: int = RunConfig.eval_tokens
    """Held-out tokens to evaluate on. 0: no evaluation."""
    seed: int = 0
    """The first seed, of the initial weights, the noise and the order of the data. The second is the
    next."""
    report: bool = True
    """Write report.html, which shows the features."""
    overwrite: bool = False
    """Start over: train again and replace the SAEs in save_dir."""


def run(flags: QuickstartFlags) -> None:
    require(flags.steps >= 1, "steps", flags.steps, "at least 1")
    folder = Path(flags.save_dir)
    seeds = [_seeds_runs(flags, seed) for seed in (flags.seed, flags.seed + 1)]
    page = folder / (f"report_seed{flags.seed}.html" if flags.seed else REPORT)
    top_k, vsae_folder = (str(one) for one in seeds[0].folders)
    others = [str(one) for one in seeds[1].folders]

    def begin() -> None:
        print(_INTRODUCTION.format(hook=seeds[0].run.hook), flush=True)
        with writing(folder):
            remove(page)  # of SAEs that are replaced

    tokens = min(flags.steps * seeds[0].run.batch_size, CACHED)
    if not train_seeds(seeds, folder / CACHE, tokens=tokens, dtype="float16", on_start=begin):
        print(f"{folder} holds these SAEs already; --overwrite trains them again.")
    with explain_interrupt(how_to_continue(flags.overwrite)):
        print(f"\n{_results(seeds, flags.eval_tokens)}")
        if flags.report and not page.is_file():
            from ..report.page import write_report

            print("\nWriting the report …", flush=True)
            write_report(
                vsae_folder,
                [top_k],
                page,
                seeds=others,
                options=ReportOptions(
                    tokens=flags.eval_tokens or ReportOptions.tokens, seed=flags.seed
                ),
            )
    if flags.report:
        print(f"\nOpen {page} in a browser: it shows which features come back.")
    third = flags.seed + 2
    print(
        "\nNext:\n"
        f"  {vsae()} reproduce {in_shell(vsae_folder)}\n"
        f"  {vsae()} reproduce {in_shell(vsae_folder, others[1])}\n"
        f"  {vsae()} train --config {in_shell(vsae_folder)} --seed {third} --data-seed {third} "
        f"--save-dir {in_shell(folder / f'vsae_seed{third}')}\n"
        f"  {vsae()} train --help"
    )


_INTRODUCTION = """\
Training two sparse autoencoders on a middle layer of a small language model
({hook}), each from two seeds on two orders of the same data:
  top_k  a TopK SAE
  vsae   a vSAE of the same size, with the preset `recommended`
A feature comes back as a direction if the other seed finds one with a cosine of 0.7 or more,
and in what it does if the activations of the two have a correlation of 0.7 or more."""


def _seeds_runs(flags: QuickstartFlags, seed: int) -> SeedRun:
    """The run of one seed: a TopK SAE and a vSAE."""
    run = replace(
        preset("recommended").run,
        steps=flags.steps,
        eval_tokens=flags.eval_tokens,
        data_seed=seed,
        save_dir=flags.save_dir,
        overwrite=flags.overwrite,
    )
    return SeedRun(with_hook_names(run), quickstart(flags.steps, seed))


def _results(seeds: list[SeedRun], tokens: int) -> str:
    """A table of how many features of each architecture come back, averaged over the seeds."""
    from ..features.reproducibility_of_folders import reproduce, short_table

    found = {}
    for folders in reversed([*zip(*(one.folders for one in seeds), strict=True)]):
        title = ARCHITECTURES[load_config(folders[0]).sae.architecture].title
        found[title] = reproduce(folders, tokens)
    return short_table(found)


QUICKSTART = Command("quickstart", QuickstartFlags, run)
