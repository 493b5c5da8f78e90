"""Train several seeds of a setting: cache the activations, train each seed on its own order of them, compare.

`vsae train --seeds` and `vsae quickstart` use it.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..activations.cache_manifest import UNFINISHED, CacheDtype, read_manifest
from ..config.checks import LARGEST_SEED, require
from ..config.run import NONE, RunConfig, require_same
from ..config.sae import SAEConfig
from ..errors import ConfigError, DiskError, UserError
from ..run_folder.files import CONFIG, FAILED, RUN_FILES, SAVE_DIR, locked, remove, writing
from ..run_folder.reading import load_config
from ..training.plan import Job, plan, require_memory
from .cache import explain_interrupt

CACHE = "cache"
"""The folder of the cached activations, beside the run folders."""
_MOST = 1000
"""The largest number of seeds."""


def parse_seeds(given: str, first: int, is_first_typed: bool) -> list[int]:
    """The seeds that --seeds means. 3: `first` and the next two. 4,7,9: these.

    Raises: UserError for other text, fewer than two seeds, or a list of seeds beside --seed.
    """
    expected = f"a number of seeds, 2 to {_MOST:,}, e.g. 3, or different seeds separated by commas, e.g. 4,7,9"
    parts = [part.strip() for part in given.split(",")]
    are_numbers = all(re.fullmatch("[0-9]{1,10}", part) for part in parts)
    require(are_numbers, "seeds", given, expected)
    numbers = [int(part) for part in parts]
    if len(numbers) == 1:
        require(2 <= numbers[0] <= _MOST, "seeds", given, expected)
        return list(range(first, first + numbers[0]))
    are_seeds = len(set(numbers)) == len(numbers) and max(numbers) <= LARGEST_SEED
    require(are_seeds, "seeds", given, expected)
    require(not is_first_typed, "seeds", given, "a number of seeds beside --seed")
    return numbers


def not_in_a_sweep(given: str) -> UserError:
    """The error for --seeds in a sweep, ours or wandb's."""
    return UserError(
        "each run of a sweep has one seed",
        name="seeds",
        value=given,
        instead="make seed a parameter of the sweep, and put --data-seed=seed into its command",
    )


@dataclass(frozen=True)
class SeedRun:
    """The run of one seed: the first three arguments of `training.loop.train`."""

    run: RunConfig
    saes: dict[str, SAEConfig]
    hooks: dict[str, str] = field(default_factory=dict)

    @cached_property
    def jobs(self) -> list[Job]:
        return plan(self.run, self.saes, self.hooks, resume=True).jobs

    @property
    def folders(self) -> list[Path]:
        return [job.folder for job in self.jobs]

    @property
    def is_finished(self) -> bool:
        return all(job.is_finished for job in self.jobs)

    @property
    def started(self) -> list[Job]:
        """The jobs whose folders hold a run already."""
        return [job for job in self.jobs if (job.folder / CONFIG).is_file()]


def train_seeds(
    seeds: Sequence[SeedRun],
    cache: Path | None,
    *,
    tokens: int,
    dtype: CacheDtype = "float32",
    on_start: Callable[[], None] = lambda: None,
) -> bool:
    """Write a cache and train each seed from it. Called again, it continues.

    Arguments:
        seeds: runs that differ only in data seed and folder.
        cache: the cache's folder, from which all seeds read, so that the language model runs once. None: no cache. If
            the disk is too small for it, there is none either.
        tokens: the least number of tokens to cache for training.
        dtype: the dtype of the cache.
        on_start: called after the checks, before anything is written.

    Returns: False if all seeds were finished already.

    Raises: ConfigError for a folder that holds another run or one that failed; what `train` and `write_cache` raise.
    """
    overwrite = seeds[0].run.overwrite
    started = [] if overwrite else [job for one in seeds for job in one.started]
    if started and load_config(started[0].folder).run.activations is None:
        cache = None  # when they began, the disk was too small
    for job in started:
        _require_this_run(job, cache)
    if started and all(one.is_finished for one in seeds):
        return False
    _refuse_what_can_be(seeds, overwrite)

    def begin(size: str) -> None:
        on_start()
        if size:
            print(size, flush=True)
        if overwrite:  # all now, so that none is in the way of continuing without --overwrite
            for folder in (folder for one in seeds for folder in one.folders):
                with locked(folder), writing(folder):
                    for name in RUN_FILES:
                        remove(folder / name)

    if cache is None:
        begin("")
    else:
        try:
            with explain_interrupt(how_to_continue(overwrite), cache):
                _write(cache, seeds[0].run, tokens, dtype, begin)
        except DiskError as error:
            if started:
                raise DiskError(error.problem, instead="free some space to continue") from error
            begin(f"{error.problem}; so there is no cache, and the language model runs once a seed")
            cache = None
    with explain_interrupt(how_to_continue(overwrite)):
        _train(seeds, cache, overwrite)
    return True


def how_to_continue(overwrite: bool) -> str:
    """The advice after an interruption."""
    return f"run the same command again {'without --overwrite ' if overwrite else ''}to continue"


def _require_this_run(job: Job, cache: Path | None) -> None:
    """Raise a ConfigError if a job's folder holds another run, or one that failed."""
    advice = "overwrite it with overwrite=True, or choose another save_dir"
    run = job.config.run if cache is None else replace(job.config.run, activations=str(cache))
    now = replace(job.config, run=run)
    was = load_config(job.folder)
    # The folder may have moved, with its cache.
    has_moved = cache is not None and Path(was.run.activations or "").name == cache.name
    but = ("activations",) if has_moved else ()
    require_same(was.to_dict(), now.to_dict(), str(job.folder), but=but, advice=advice)
    if (job.folder / FAILED).is_file():
        raise ConfigError(f"{job.folder}: failed, see {FAILED} there", instead=advice)


def _refuse_what_can_be(seeds: Sequence[SeedRun], overwrite: bool) -> None:
    """Make the checks of training that need no language model, before the cache is written."""
    from ..activations.inputs import find_inputs
    from ..devices import chosen_device

    for one in seeds:
        if overwrite or not one.started:
            plan(one.run, one.saes, one.hooks)
    run, jobs = seeds[0].run, seeds[0].jobs
    device = chosen_device(run.device)
    widths = find_inputs(run, dict.fromkeys(job.hook for job in jobs)).widths
    require_memory(jobs, widths, device)


def _write(
    cache: Path, run: RunConfig, tokens: int, dtype: CacheDtype, begin: Callable[[str], None]
) -> None:
    """Write the cache, or continue it. Raises DiskError before `begin` is called if the disk is too small."""
    from ..activations.cache_writer import write_cache
    from ..training.processes import interrupts

    there = read_manifest(cache, UNFINISHED) or read_manifest(cache)
    held_out = there.settings.eval_tokens if there else RunConfig.eval_tokens
    settings = replace(
        run,
        data_seed=0,  # one text for all seeds, whichever they are
        text_passes=None,
        eval_tokens=max(run.eval_tokens, held_out),  # reports and comparisons read them, too
    )
    with interrupts() as signals, signals.deferred():
        write_cache(
            cache,
            settings,
            run.hooks,
            tokens,
            dtype=dtype,
            overwrite=run.overwrite,
            on_plan=begin,
            before_batch=signals.check,
            elsewhere=SAVE_DIR,
        )


def _train(seeds: Sequence[SeedRun], cache: Path | None, overwrite: bool) -> None:
    """Train each seed that isn't finished."""
    from ..training.loop import train

    def print_start(folders: Sequence[Path], device: str) -> None:
        print(f"Training {', '.join(map(str, folders))} on {device}", flush=True)

    for one in seeds:
        resume = not overwrite and bool(one.started)
        if not (resume and one.is_finished):
            run = one.run if cache is None else replace(one.run, activations=str(cache))
            train(run, one.saes, hooks=one.hooks, resume=resume, on_start=print_start)


def compared(seeds: Sequence[SeedRun]) -> str:
    """The table of `vsae reproduce` for each hook point."""
    from ..features.reproducibility_of_folders import reproduce, reproducibility_table

    parts = []
    for jobs in zip(*(one.jobs for one in seeds), strict=True):
        folders, run = [job.folder for job in jobs], jobs[0].config.run
        read = load_config(folders[0]).run.activations
        where: dict[str, Any] = {"device": run.device, "device_map": run.device_map}
        if run.activations is None and read is not None and not Path(read).exists():
            where["activations"] = NONE  # the cache was deleted
        head = f"{jobs[0].hook}\n" if len(seeds[0].jobs) > 1 else ""
        parts.append(head + reproducibility_table(reproduce(folders, None, **where)))
    return "\n\n".join(parts)
