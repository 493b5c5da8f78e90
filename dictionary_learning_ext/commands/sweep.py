"""`vsae sweep`: a wandb sweep file on this machine, and what came out of a sweep."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from ..errors import ConfigError, UserError


@dataclass(frozen=True)
class Flags:
    """Run a wandb sweep file here, all from shared buffers; or show what came out of one."""

    file: tyro.conf.Positional[Path | None] = None
    """The sweep file, as sweeps/embedded.yaml."""
    save_dir: Path | None = None
    """Where the run folders go; runs/<the sweep's name> unless told. A sweep that was stopped goes
    on when the same is typed again."""
    at_once: int | None = None
    """How many SAEs are trained together; as many as memory allows unless told."""
    max_runs: int = 100
    """More runs than this need --yes."""
    yes: bool = False
    """Run however many there are."""
    seed: int = 0
    """Of the draws of a random search."""
    device: str | None = None
    """cpu, cuda or cuda:N, for all runs."""
    wandb: str | None = None
    """Log to wandb: online, offline or disabled, for all runs; as the file says unless told."""
    results: Path | None = None
    """Show the results of the sweep in this folder: a table, results.csv and results.html."""
    of_wandb: str | None = None
    """Show the results of a sweep on wandb's server: ENTITY/PROJECT/SWEEP."""


def run(flags: Flags) -> None:
    asked = [flags.file, flags.results, flags.of_wandb]
    if sum(given is not None for given in asked) != 1:
        raise UserError(
            "vsae sweep: give a sweep file, or --results FOLDER, or --of-wandb E/P/SWEEP"
        )
    from ..sweep.results import from_folder, from_wandb, show

    if flags.of_wandb is not None:
        print(show(from_wandb(flags.of_wandb), Path("runs") / flags.of_wandb.rpartition("/")[2]))
        return
    folder = flags.results
    if flags.file is not None:
        folder = _run_file(flags.file, flags)
    assert folder is not None
    print(show(from_folder(folder), folder))


def _run_file(file: Path, flags: Flags) -> Path:
    from ..cli import parse
    from ..config.run_config import TrainConfig
    from ..sweep.runner import memory_allows, run_sweep
    from ..sweep.sweep_file import configurations, read_sweep

    sweep = read_sweep(file, flags.seed)
    extra = [f"--{n}={v}" for n, v in (("device", flags.device), ("wandb", flags.wandb)) if v]

    def parsed(arguments: list[str]) -> TrainConfig:
        train = parse("train", arguments)
        return TrainConfig(train.sae, train.run)

    configs = configurations(sweep, parsed, extra)
    if len(configs) > flags.max_runs and not flags.yes:
        raise ConfigError(f"{file}: {len(configs)} runs; give --yes to run that many")
    if flags.at_once is not None and flags.at_once < 1:
        raise ConfigError(f"--at-once {flags.at_once}: expected 1 or more")
    save_dir = flags.save_dir or Path("runs") / sweep.name
    print(
        f"{len(configs)} runs into {save_dir}; memory allows {memory_allows(configs)} at once"
        + (f", {flags.at_once} asked for" if flags.at_once else "")
    )
    run_sweep(configs, save_dir, flags.at_once)
    return save_dir
