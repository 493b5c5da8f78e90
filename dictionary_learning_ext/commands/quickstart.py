"""`vsae quickstart`: `vsae train --beside top_k` on the embedded model, with a cache that fits a laptop."""

from dataclasses import dataclass
from pathlib import Path

from ..config.checks import LARGEST_SEED, require
from ..config.presets import DEFAULT_PRESET
from ..config.run import RunConfig, TrainConfig
from ..errors import as_flag, in_shell
from ..sweep.cached import SweepCache
from ..training.plan import with_hook_names
from .flags import Command, parse, vsae
from .seeds import CACHE, SEEDS_BESIDE, train_seeds
from .train import TRAIN, beside

BESIDE = "top_k"
"""The architecture beside the vSAE."""
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
    require(0 <= flags.seed < LARGEST_SEED, "seed", flags.seed, f"0 to {LARGEST_SEED - 1}")
    given = {"save_dir": flags.save_dir, "eval_tokens": flags.eval_tokens, "seed": flags.seed}
    given |= {"steps": flags.steps, "overwrite": flags.overwrite}
    typed = [f"{as_flag(name)}={value}" for name, value in given.items()]
    train = parse(TRAIN, [f"--preset={DEFAULT_PRESET}", f"--beside={BESIDE}", *typed])
    settings = with_hook_names(train.run)
    introduction = _INTRODUCTION.format(hook=settings.hook, preset=f"--preset={DEFAULT_PRESET}")

    def shared(folder: Path, run: RunConfig) -> SweepCache:
        tokens = min(run.steps * run.batch_size, CACHED)
        return SweepCache(folder / CACHE, tokens, "float16")

    folder, of_kind = train_seeds(
        SEEDS_BESIDE,
        TrainConfig(train.sae, settings),
        beside(train),
        train.given,
        introduction,
        shared=shared,
        report=flags.report,
    )
    vsaes, third = of_kind["vsae"], flags.seed + 2
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
  vsae   a vSAE of the same size, with {preset}"""


QUICKSTART = Command(
    "quickstart",
    QuickstartFlags,
    run,
    examples=(
        "vsae quickstart",
        "vsae quickstart --steps 2000 --save-dir runs/short",
    ),
)
