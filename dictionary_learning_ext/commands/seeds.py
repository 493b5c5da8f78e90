"""Several seeds of a setting, as a sweep whose runs read one cache: `vsae train --seeds`, and `vsae quickstart`."""

import math
import os
import re
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..config.checks import LARGEST_SEED, require
from ..config.names import automatic_name
from ..config.run import NONE, RunConfig, TrainConfig
from ..errors import UserError, in_shell
from ..run_folder.cache_manifest import SPARE
from ..run_folder.files import FAILED, RUNS
from ..run_folder.reading import load_config
from ..sweep.cached import SweepCache
from ..sweep.runner import how_to_continue, run_sweep
from ..training.processes import launched
from .cache import explain_interrupt
from .flags import vsae

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


def train_seeds(given: str, config: TrainConfig, typed: Collection[str], started: str) -> None:
    """Train the same settings from several seeds, and print which features come back.

    Arguments:
        given: the value of --seeds.
        typed: the names of the flags that were typed.
        started: a line that says what the settings come from.
    """
    run, keeps_order = config.run, "data_seed" in typed
    numbers = parse_seeds(given, config.sae.seed, "seed" in typed)
    _require_seeds_here(given)
    folder = Path(run.save_dir or RUNS / _folder_name(config, keeps_order))
    configs = {}
    for seed in numbers:
        for hook in run.hooks:
            name = f"seed{seed}_{hook}" if len(run.hooks) > 1 else f"seed{seed}"
            own = replace(run, hook=hook, data_seed=run.data_seed if keeps_order else seed)
            configs[name] = TrainConfig(replace(config.sae, seed=seed), own)
    fill = run.n_ctxs * run.ctx_len
    read = run.steps * run.batch_size
    leaves_out = run.remove_bos or run.max_norm_multiple is not None
    if leaves_out and run.text_passes is not None:  # then the cache isn't read twice
        read *= SPARE
    tokens = math.ceil(read / fill) * fill
    cache = SweepCache(folder / CACHE, tokens) if run.activations is None else None

    def introduce() -> None:
        print(started)
        print(f"Seeds {', '.join(map(str, numbers))}, written to {in_shell(folder)}", flush=True)

    folders = train_all(configs, folder, cache, introduce)
    with explain_interrupt(how_to_continue(run.overwrite)):
        print(f"\n{_comparison(configs, folders)}")
    first, *others = ([*folders.values()][i * len(run.hooks)] for i in range(len(numbers)))
    report = f"  {vsae()} report {in_shell(first)} --seeds {in_shell(*others)}\n"
    print(
        "\nNext:\n"
        + (report if has_tokens(run) else "")
        + (f"  {vsae()} report {in_shell(folder)}\n" if len(run.hooks) > 1 else "")
        + f"  {vsae()} compare {in_shell(first, *others)}"
    )


def train_all(
    configs: dict[str, TrainConfig],
    folder: Path,
    cache: SweepCache | None,
    introduce: Callable[[], None],
) -> dict[str, Path]:
    """Train the runs of a sweep into a folder, or continue them. Returns the run folders; see `run_sweep`.

    Arguments:
        introduce: called before anything is written, unless all runs have ended.
    """

    def begin(at_once: int) -> None:
        if at_once:
            introduce()
        elif not any((folder / run / FAILED).is_file() for run in configs):
            print(f"{folder} holds these SAEs already; --overwrite trains them again.")

    return run_sweep(configs, folder, name=folder.name, cache=cache, on_begin=begin)


def has_tokens(settings: RunConfig) -> bool:
    """Whether a report can show tokens. Only a language model or a cache of ours has them."""
    from ..activations.stored import open_stored

    return settings.activations is None or open_stored(settings.activations).manifest is not None


def _require_seeds_here(given: str) -> None:
    """Raise a UserError if --seeds can't be combined with how the command was started."""
    if launched().are_several:
        raise UserError(
            "torchrun's processes train one seed",
            name="seeds",
            value=given,
            instead=f"for each seed N, use `{launched().command} train … --seed N --data-seed N "
            "--save-dir NAME/seedN`, then `vsae reproduce NAME/seed*`",
        )
    if "WANDB_SWEEP_ID" in os.environ:
        raise not_in_a_sweep(given)


def _folder_name(config: TrainConfig, keeps_order: bool) -> str:
    """An automatic name that doesn't depend on the seeds."""
    order = {} if keeps_order else {"data_seed": RunConfig.data_seed}
    name = automatic_name(TrainConfig(replace(config.sae, seed=0), replace(config.run, **order)))
    return "_seeds_".join(name.rsplit("_seed0_", 1))


def _comparison(configs: dict[str, TrainConfig], folders: dict[str, Path]) -> str:
    """The table of `vsae reproduce` for each hook point."""
    from ..features.reproduce import reproduce_settings
    from ..features.reproduce_text import short_table

    of_hook: dict[str, list[Path]] = {}
    for name, config in configs.items():
        of_hook.setdefault(config.run.hook, []).append(folders[name])
    run = next(iter(configs.values())).run
    read = load_config(next(iter(folders.values()))).run.activations
    where: dict[str, Any] = {"device": run.device, "device_map": run.device_map}
    if run.activations is None and read is not None and not Path(read).exists():
        where["activations"] = NONE  # the cache was deleted
    parts = []
    for hook, own in of_hook.items():
        head = f"{hook}\n" if len(of_hook) > 1 else ""
        parts.append(head + short_table(reproduce_settings(own, None, **where).found))
    return "\n\n".join(parts)
