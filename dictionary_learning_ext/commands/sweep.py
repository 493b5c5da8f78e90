"""`vsae sweep`: a wandb sweep file on this machine, and a sweep's results."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ..errors import ConfigError, UserError
from ..run_folder.names import RUNS
from .flags import Command, parse
from .train import COMMAND as TRAIN


@dataclass(frozen=True)
class SweepFlags:
    """Run a wandb sweep file on this machine, or show a sweep's results."""

    file: tyro.conf.Positional[Annotated[Path | None, tyro.conf.arg(metavar="[FILE]")]] = None
    """The wandb sweep file, e.g. sweeps/embedded.yaml."""
    save_dir: Path | None = None
    """The folder for the run folders. Rerun the same command to continue an interrupted sweep.
    Default: runs/NAME, where NAME is the sweep's name."""
    at_once: int | None = None
    """How many SAEs to train together. Default: as many as memory allows."""
    max_runs: int = 100
    """A sweep of more runs than this needs --yes."""
    yes: bool = False
    """Run the sweep however many runs it has."""
    seed: int = 0
    """Seeds the draws of a random search."""
    device: str | None = None
    """Where to compute, for all runs: cpu, cuda or cuda:N. Default: as in the sweep file."""
    wandb: str | None = None
    """Log all runs to wandb: online, offline or disabled. Default: as in the sweep file."""
    results: Path | None = None
    """Show the results of the sweep in this folder, and write results.csv and results.html
    there."""
    of_wandb: str | None = None
    """Show the results of a sweep on wandb's server: ENTITY/PROJECT/SWEEP."""


def run(flags: SweepFlags) -> None:
    asked = [flags.file, flags.results, flags.of_wandb]
    if sum(given is not None for given in asked) != 1:
        raise UserError(
            "vsae sweep: give one of: a sweep file, --results FOLDER, --of-wandb ENTITY/PROJECT/SWEEP"
        )
    from ..sweep.results import from_folder, from_wandb, show

    if flags.of_wandb is not None:
        print(show(from_wandb(flags.of_wandb), RUNS / flags.of_wandb.rpartition("/")[2]))
        return
    folder = flags.results
    if flags.file is not None:
        folder = _run_file(flags.file, flags)
    assert folder is not None
    print(show(from_folder(folder), folder))


def _run_file(file: Path, flags: SweepFlags) -> Path:
    from ..config.run_config import TrainConfig
    from ..sweep.runner import memory_allows, run_sweep
    from ..sweep.sweep_file import configurations, read_sweep

    sweep = read_sweep(file, flags.seed)
    extra = [f"--{n}={v}" for n, v in (("device", flags.device), ("wandb", flags.wandb)) if v]

    def parsed(arguments: list[str]) -> TrainConfig:
        train = parse(TRAIN, arguments)
        return TrainConfig(train.sae, train.run)

    configs = configurations(sweep, parsed, extra)
    if len(configs) > flags.max_runs and not flags.yes:
        raise ConfigError(
            f"{file}: {len(configs)} runs; --max-runs is {flags.max_runs}; add --yes to run all"
        )
    if flags.at_once is not None and flags.at_once < 1:
        raise ConfigError(f"--at-once {flags.at_once}: expected 1 or more")
    save_dir = flags.save_dir or RUNS / sweep.name
    print(
        f"{len(configs)} runs into {save_dir}; memory allows {memory_allows(configs)} at once"
        + (f", {flags.at_once} requested" if flags.at_once else "")
    )
    run_sweep(configs, save_dir, flags.at_once)
    return save_dir


COMMAND = Command("sweep", SweepFlags, run)
