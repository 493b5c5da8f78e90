"""The names in a run folder, and whether a folder is free for a new run. Imports no torch.

Each name is written here and nowhere else in the package.
"""

import hashlib
import re
from pathlib import Path
from typing import Any

from ..config.run import TrainConfig
from ..errors import ConfigError, Setting

RUNS = Path("runs")
"""Where run folders go."""
WEIGHTS = "ae.pt"
"""Upstream's state dict, for raw activations."""
CONFIG = "config.json"
"""Upstream's "trainer" and "buffer", and our "run"."""
HISTORY = "metrics.jsonl"
"""A line of metrics for each logged step."""
METRICS = "metrics.json"
"""The final evaluation."""
EVALUATIONS = "evaluations"
"""Evaluations at other settings than that in metrics.json, see `evaluation`."""
FAILED = "failed.json"
"""Why this SAE failed, if it did."""
CHECKPOINTS = "checkpoints"
"""The weights during training, see `checkpoint`."""
RESUME = "resume"
"""The resume points, see `resume_point`."""
EXPORTS = "exports"
"""A folder for each format of `vsae export`."""
BENCH_RESULTS = "eval_results"
"""SAE Bench's JSON, a folder for each evaluation."""
BENCH_REPEATS = "eval_results_of_seeds"
"""As eval_results, in a folder for each further seed of the evaluations."""
BENCH_CACHE = ".bench_cache"
"""What SAE Bench can use again. Deleted once all its evaluations have succeeded."""
REPORT = "report.html"
"""The page of `vsae report`. Its data is in the folder `report_files`."""
INDEX = "index.html"
"""In a folder that holds run folders: the page of `vsae report` that lists them."""
PAGE_MARK = '<meta name="generator" content="vsae report">'
"""In each of these pages, so that nobody else's is deleted."""
WANDB = "wandb"
"""wandb's files, a folder for each of its runs. None of RUN_FILES: wandb begins before the run does."""
LOCK = ".lock"
"""Held by the process that writes to the folder."""

RESUME_TENSORS = "tensors.safetensors"
RESUME_STATE = "state.json"
RESUME_COMPLETE = "complete.json"
"""The hashes of the other two. Written last: a point without it doesn't count."""
RESUME_LOGGED = "logged.json"
"""Beside the resume points: the last step that any process of this run logged."""

SWEEP = "sweep.json"
"""In the folder that holds a sweep's run folders: which sweep it is."""
SWEEP_TABLE = "results.csv"
"""A row for each run of a sweep."""
SWEEP_SETTINGS = "results_by_setting.csv"
"""A row for each setting of a sweep: the mean and standard deviation over its seeds."""
SWEEP_PAGE = "results.html"


def folder_of(config: TrainConfig) -> Path:
    """Where a run of one SAE is written."""
    return Path(config.run.save_dir or RUNS / config.name)


def checkpoint(folder: Path, step: int) -> Path:
    """Upstream's name of the weights before a step."""
    return folder / CHECKPOINTS / f"ae_{step}.pt"


def evaluation(folder: Path, other_settings: dict[str, Any]) -> Path:
    """Where an evaluation is written: metrics.json, or beside it if settings differ from its own."""
    if not other_settings:
        return folder / METRICS
    names = (f"{name}_{_in_a_name(value)}" for name, value in other_settings.items())
    return folder / EVALUATIONS / f"{'_'.join(names)}.json"


def _in_a_name(value: Any) -> str:
    """A setting's value, fit for a file's name: of a path, its last part and a hash of all."""
    text = str(value)
    if re.fullmatch(r"[\w.-]{1,60}", text):
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:6]
    return f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', Path(text).name)[:60]}_{digest}"


def resume_point(folder: Path, step: int) -> Path:
    """The folder of a resume point. Sorted by name, the points are in order."""
    return folder / RESUME / f"step_{step:08d}"


def report_files(page: Path) -> Path:
    """The folder beside a report's page that holds its numbers and figures."""
    return page.with_name(f"{page.stem}_files")


RUN_FILES = (
    WEIGHTS,
    CONFIG,
    HISTORY,
    METRICS,
    EVALUATIONS,
    FAILED,
    CHECKPOINTS,
    EXPORTS,
    BENCH_RESULTS,
    BENCH_REPEATS,
    BENCH_CACHE,
    REPORT,
    report_files(Path(REPORT)).name,
    RESUME,
)
"""What a run writes, and the commands that are given its folder. Deleted when another run takes
its place."""


def require_free(folder: Path, overwrite: bool) -> None:
    """Raise a ConfigError if `folder` already holds a run, unless it may be overwritten."""
    there = [name for name in RUN_FILES if (folder / name).exists()]
    if there and not overwrite:
        raise ConfigError(
            f"already holds a run ({', '.join(there)})",
            name="save_dir",
            value=str(folder),
            instead=("choose another, or overwrite it with ", Setting("overwrite", True)),
        )
    if folder.exists() and not folder.is_dir():
        raise ConfigError(name="save_dir", value=str(folder), expected="a folder, but it is a file")
