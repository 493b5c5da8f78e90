"""`vsae quickstart`: run the sweep in quickstart.yaml, and print how many features of each architecture come back."""

from dataclasses import dataclass, replace
from pathlib import Path

from ..config.checks import LARGEST_SEED, require
from ..config.run import ReportOptions, RunConfig
from ..errors import in_shell
from ..run_folder.files import REPORT_PAGE, remove, writing
from ..sweep.cached import SweepCache
from ..sweep.runner import how_to_continue
from .cache import explain_interrupt
from .flags import Command, vsae
from .seeds import CACHE, train_all
from .sweep import train_config

SWEEP_FILE = Path(__file__).with_name("quickstart.yaml")
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
    from ..sweep.sweep_file import configurations, read_sweep

    require(0 <= flags.seed < LARGEST_SEED, "seed", flags.seed, f"0 to {LARGEST_SEED - 1}")
    folder = Path(flags.save_dir)
    page = folder / (f"report_seed{flags.seed}.html" if flags.seed else REPORT_PAGE)
    sweep = read_sweep(SWEEP_FILE)
    both = (flags.seed, flags.seed + 1)
    seeds = [one | {"seed": both[one["seed"]]} for one in sweep.assignments]
    fixed = [f"--steps={flags.steps}", f"--eval-tokens={flags.eval_tokens}"]
    configs = {
        name: replace(config, run=replace(config.run, overwrite=flags.overwrite))
        for name, config in configurations(
            replace(sweep, assignments=seeds), train_config, fixed
        ).items()
    }
    settings = next(iter(configs.values())).run

    def introduce() -> None:
        preset = next(flag for flag in sweep.flags if flag.startswith("--preset="))
        print(_INTRODUCTION.format(hook=settings.hook, preset=preset), flush=True)
        with writing(folder):
            remove(page)  # of SAEs that are replaced

    tokens = min(flags.steps * settings.batch_size, CACHED)
    folders = train_all(configs, folder, SweepCache(folder / CACHE, tokens, "float16"), introduce)
    top_k, vsaes = (
        [str(folders[f"{name}_seed{seed}"]) for seed in both] for name in ("top_k", "vsae")
    )
    with explain_interrupt(how_to_continue(flags.overwrite)):
        from ..features.reproduce import reproduce
        from ..features.reproduce_text import short_table

        returning = {
            title: reproduce(of_both, flags.eval_tokens)
            for title, of_both in (("vSAE", vsaes), ("TopK", top_k))
        }
        print(f"\n{short_table(returning)}")
        if flags.report and not page.is_file():
            from ..report.page import write_report

            print("\nWriting the report …", flush=True)
            write_report(
                vsaes[0],
                [top_k[0]],
                page,
                seeds=[top_k[1], vsaes[1]],
                options=ReportOptions(
                    tokens=flags.eval_tokens or ReportOptions.tokens, seed=flags.seed
                ),
            )
    if flags.report:
        print(f"\nOpen {page} in a browser: it shows which features come back.")
    third = flags.seed + 2
    print(
        "\nNext:\n"
        f"  {vsae()} reproduce {in_shell(vsaes[0])}\n"
        f"  {vsae()} reproduce {in_shell(*vsaes)}\n"
        f"  {vsae()} train --config {in_shell(vsaes[0])} --seed {third} --data-seed {third} "
        f"--save-dir {in_shell(folder / f'vsae_seed{third}')}\n"
        f"  {vsae()} train --help"
    )


_INTRODUCTION = """\
Training two sparse autoencoders on a middle layer of a small language model
({hook}), each from two seeds on two orders of the same data:
  top_k  a TopK SAE
  vsae   a vSAE of the same size, with {preset}
A feature comes back as a direction if the other seed finds one with a cosine of 0.7 or more,
and in what it does if the activations of the two have a correlation of 0.7 or more."""


QUICKSTART = Command(
    "quickstart",
    QuickstartFlags,
    run,
    examples=(
        "vsae quickstart",
        "vsae quickstart --steps 2000 --save-dir runs/short",
    ),
)
