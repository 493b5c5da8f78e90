"""`vsae sweep`: run a wandb sweep file on this machine, or show a sweep's results."""

import contextlib
import shlex
import shutil
from dataclasses import dataclass, field, fields
from pathlib import Path

from ..config.checks import require
from ..config.run import TrainConfig
from ..errors import ConfigError, TrainingError, UserError, as_flag, printable
from ..run_folder.files import RUNS
from ..training.plan import with_hook_names
from .flags import HIDDEN, Command, parse, positional, vsae
from .seeds import not_in_a_sweep
from .train import TRAIN


@dataclass(frozen=True)
class SweepFlags:
    """Run a wandb sweep file on this machine, or show a sweep's results."""

    file: Path | None = field(default=None, metadata=positional("[FILE]"))
    """The wandb sweep file, e.g. sweeps/embedded.yaml. Any flag of `vsae train` that the file does
    not sweep may be given too, e.g. --steps 100 or --device cuda. It applies to all runs and
    overrides the file's."""
    save_dir: Path | None = None
    """The folder for the run folders. Rerun the same command to continue an interrupted sweep.
    Default: runs/NAME, where NAME is the sweep's name."""
    at_once: int | None = None
    """How many SAEs to train together. Default: as many as memory allows."""
    devices: str | None = None
    """Train on several devices, with one process for each: e.g. cuda:0,cuda:1. Default: on --device."""
    max_runs: int = 100
    """The most runs that a sweep may have, so that none is larger than it was meant to be."""
    results: Path | None = None
    """Show the results of the sweep in this folder, and write results.csv, results_by_setting.csv
    and results.html there."""
    passed_on: tuple[str, ...] = field(default=(), metadata=HIDDEN)
    """The flags of `vsae train`."""
    words: tuple[str, ...] = field(default=(), metadata=HIDDEN)
    """All that was typed."""


def train_config(arguments: list[str]) -> TrainConfig:
    """The settings that flags of `vsae train` give a run of a sweep."""
    train = parse(TRAIN, arguments)
    for name, given in (("seeds", train.seeds), ("beside", train.beside)):
        if given is not None:
            raise not_in_a_sweep(name, given)
    return TrainConfig(train.sae, with_hook_names(train.run))


def run(flags: SweepFlags) -> None:
    if (flags.file is None) == (flags.results is None):
        raise UserError("vsae sweep: give one of: a sweep file, --results FOLDER")
    own = [f for f in fields(flags) if f.name not in ("file", "results", "words", "passed_on")]
    changed = [as_flag(f.name) for f in own if getattr(flags, f.name) != f.default]
    if flags.file is None and (with_a_file := [*flags.passed_on, *changed]):
        raise UserError(f"{with_a_file[0]}: only works with a sweep file")
    if flags.file is not None:
        _run_file(flags.file, flags)
    elif flags.results is not None:
        _show(flags.results)


def _show(folder: Path) -> None:
    """Print the results of the sweep in a folder, and write them there."""
    from ..report.many_runs import from_folder
    from ..report.runs_page import show_sweep
    from ..sweep.runner import progress, read_manifest

    missing, metric = progress(folder), read_manifest(folder).metric
    results = from_folder(folder, missing)
    width = shutil.get_terminal_size().columns
    print(printable(show_sweep(results, folder, missing, width, metric)))


def _run_file(file: Path, flags: SweepFlags) -> None:
    """Run a sweep file on this machine, and print the results."""
    from ..report.runs_page import ranking
    from ..sweep.devices import devices_of
    from ..sweep.runner import run_sweep
    from ..sweep.sweep_file import configurations, read_sweep

    sweep = read_sweep(file)
    devices, fixed = [], flags.passed_on
    if flags.devices is not None:
        if any(word.partition("=")[0] == "--device" for word in fixed):
            raise UserError("--device and --devices: give only one of them")
        devices = devices_of(flags.devices)
    configs = configurations(sweep, train_config, fixed)
    ranking(sweep.metric)  # refuses a misspelt one before anything is trained
    needed = f"at least {len(configs)}, the runs of {file}"
    require(len(configs) <= flags.max_runs, "max_runs", flags.max_runs, needed)
    require(flags.at_once is None or flags.at_once >= 1, "at_once", flags.at_once, "at least 1")
    save_dir = flags.save_dir or RUNS / sweep.name

    def print_start(at_once: int) -> None:
        together = "all" if at_once >= len(configs) else f"{at_once}"
        where = f" on each of {', '.join(devices)}" if devices else ""
        begun = f"{len(configs)} runs into {save_dir}, {together} at once{where}"
        ended = f"{save_dir}: all {len(configs)} runs have ended"
        print(begun if at_once else ended, flush=True)

    try:
        run_sweep(
            configs,
            save_dir,
            flags.at_once,
            devices=devices,
            name=sweep.name,
            command=f"{vsae()} sweep {shlex.join(flags.words)}",
            metric=sweep.metric,
            on_begin=print_start,
        )
    except TrainingError:
        with contextlib.suppress(ConfigError):  # no run is finished
            _show(save_dir)
        raise
    _show(save_dir)


SWEEP = Command(
    "sweep",
    SweepFlags,
    run,
    passed_on=TRAIN,
    examples=(
        "vsae sweep sweeps/embedded.yaml --steps 100 --save-dir runs/short",
        "vsae sweep --results runs/embedded",
    ),
)
