"""Several seeds of a setting, and of others beside it, as a sweep whose runs read one cache: `vsae train --seeds --beside`, and
`vsae quickstart`."""

import math
import os
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from ..config.checks import LARGEST_SEED, require
from ..config.names import automatic_name, kind
from ..config.run import NONE, ReportOptions, RunConfig, TrainConfig
from ..config.sae import SAEConfig
from ..errors import ConfigError, UserError, in_shell
from ..run_folder.cache_manifest import SPARE, read_manifest
from ..run_folder.files import CONFIG, FAILED, FEATURES, REPORT_PAGE, RUNS, at_home, remove, writing
from ..run_folder.reading import load_config
from ..sweep.cached import SweepCache
from ..sweep.runner import how_to_continue, run_sweep
from ..training.processes import launched, saying_how_to_continue
from .flags import vsae

CACHE = "cache"
"""The folder of the cached activations, beside the run folders."""
SEEDS_BESIDE = "2"
"""The --seeds of --beside alone."""
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


def not_in_a_sweep(name: str, given: str) -> UserError:
    """The error for --seeds or --beside in a sweep, ours or wandb's."""
    return UserError(
        "each run of a sweep is one SAE",
        name=name,
        value=given,
        instead="make seed and architecture parameters of the sweep, and put --data-seed=seed into its command",
    )


_COMES_BACK = """\
A feature comes back as a direction if the other seed finds one with a cosine of 0.7 or more,
and in what it does if the activations of the two have a correlation of 0.7 or more."""


def train_seeds(
    given: str,
    config: TrainConfig,
    beside: Mapping[str, SAEConfig],
    typed: Collection[str],
    introduction: str,
    *,
    shared: Callable[[Path, RunConfig], SweepCache] | None = None,
    report: bool = True,
) -> tuple[Path, dict[str, list[Path]]]:
    """Train the same settings from several seeds, and others beside them. Print which features come back, and write a report if
    there are others.

    Arguments:
        given: the value of --seeds.
        beside: the settings of the other SAEs, by their `kind`.
        typed: the names of the flags that were typed.
        introduction: what to print first.
        shared: the cache that all read, of a folder and their settings. Default: the one that is there, or one of as many
            tokens as a run reads.
        report: whether to write it.

    Returns: the folder that holds the run folders, and those of each kind.
    """
    run, keeps_order = config.run, "data_seed" in typed
    numbers = parse_seeds(given, config.sae.seed, "seed" in typed)
    _require_seeds_here(given)
    folder = Path(run.save_dir or RUNS / _folder_name(config, keeps_order))
    saes = {kind(config.sae): config.sae, **beside}
    configs, of_kind, of_hook = {}, {}, {}
    for seed, (called, sae), hook in product(numbers, saes.items(), run.sites):
        ending = f"seed{seed}_{hook}" if len(run.hooks) > 1 else f"seed{seed}"
        name = _run_name(folder, called, ending, bool(beside))
        own = replace(run.at(hook), data_seed=run.data_seed if keeps_order else seed)
        configs[name] = TrainConfig(replace(sae, seed=seed), own)
        of_kind.setdefault(called, []).append(folder / name)
        of_hook.setdefault(hook, []).append(folder / name)
    cache = None
    if run.activations is None:
        cache = _whole_cache(folder, run) if shared is None else shared(folder, run)
    page = None
    if beside and report and len(run.hooks) == 1 and has_tokens(run):
        page = folder / (f"report_seed{numbers[0]}.html" if numbers[0] else REPORT_PAGE)

    def begin(at_once: int) -> None:
        if not at_once:
            if not any((folder / name / FAILED).is_file() for name in configs):
                print(f"{folder} holds these SAEs already; --overwrite trains them again.")
            return
        print(introduction)
        if shared is None:
            of = f"{', '.join(saes)}: s" if beside else "S"
            print(f"{of}eeds {', '.join(map(str, numbers))}, written to {in_shell(folder)}")
        if beside:
            print(_COMES_BACK)
        sys.stdout.flush()
        if page is not None:
            with writing(folder):
                remove(page)  # of SAEs that are replaced, or without those to come

    run_sweep(configs, folder, name=folder.name, cache=cache, on_begin=begin)
    with saying_how_to_continue(lambda: how_to_continue(run.overwrite)):
        where = _where(run, next(iter(of_hook.values()))[0])
        print(f"\n{_comparison(of_hook, run.eval_tokens, where)}")
        if page is not None:
            if not page.is_file():
                _write_report([*of_kind.values()], page, run, numbers[0], where)
            print(f"\nOpen {page} in a browser: it shows which features come back.")
    return folder, of_kind


def what_next(folder: Path, of_kind: Mapping[str, Sequence[Path]], run: RunConfig) -> str:
    """Commands about the SAEs that were trained, and how to add more.

    Arguments: what `train_seeds` returns, and the settings of its runs.
    """
    firsts = [own[0] for own in of_kind.values()]
    compared = firsts if len(firsts) > 1 else next(iter(of_kind.values()))[:: len(run.hooks)]
    commands = [f"reproduce {in_shell(folder)} --csv {in_shell(folder / FEATURES)}"]
    if has_tokens(run):
        commands.append(f"report {in_shell(folder)}")
    commands.append(f"compare {in_shell(*compared)}")
    lines = "".join(f"  {vsae()} {command}\n" for command in commands)
    return (
        f"\nNext:\n{lines}"
        "To add seeds or architectures, type the command again with more of them, and with all\n"
        "that it has now: only what is missing is trained."
    )


def _run_name(folder: Path, called: str, ending: str, has_others: bool) -> str:
    """The name of a run's folder: KIND_seedN beside SAEs of other kinds, and otherwise seedN. The same SAE by its other name
    counts, too.

    Arguments:
        called: its `kind`.
        ending: seedN.
    """
    plain, full = ending, f"{called}_{ending}"
    if has_others:
        return plain if _kind_in(folder / plain) == called else full
    has_full = any(folder.glob(f"{called}_seed*/{CONFIG}"))
    return full if has_full and not (folder / plain / CONFIG).is_file() else plain


def _kind_in(folder: Path) -> str | None:
    """The `kind` of the SAE in a run folder; None if it holds none, or a damaged one."""
    try:
        return kind(load_config(folder).sae)
    except ConfigError:
        return None


def _whole_cache(folder: Path, run: RunConfig) -> SweepCache:
    """The cache that is in the folder already, so that SAEs that join others read what those have read. Otherwise, one of as
    many tokens as a run reads."""
    known = None if run.overwrite else read_manifest(folder / CACHE)
    if known is not None and 0 < known.finished == len(known.files):
        return SweepCache(folder / CACHE, known.tokens, known.settings.dtype)
    fill = run.n_ctxs * run.ctx_len
    read = run.steps * run.batch_size
    leaves_out = run.remove_bos or run.max_norm_multiple is not None
    if leaves_out and run.text_passes is not None:  # then the cache isn't read twice
        read *= SPARE
    return SweepCache(folder / CACHE, math.ceil(read / fill) * fill)


def _where(run: RunConfig, first: Path) -> dict[str, Any]:
    """Where to measure the SAEs of a run, of which `first` is one."""
    read = load_config(first).run.activations
    where: dict[str, Any] = {"device": run.device, "device_map": run.device_map}
    if run.activations is None and read is not None and not Path(read).exists():
        where["activations"] = NONE  # the cache was deleted
    return where


def _write_report(
    groups: Sequence[Sequence[Path]], page: Path, run: RunConfig, seed: int, where: dict[str, Any]
) -> None:
    """Write the report of the first SAE of each kind, with their other seeds."""
    from ..report.page import write_report

    print("\nWriting the report …", flush=True)
    first, *others = (str(own[0]) for own in groups)
    seeds = [str(one) for own in groups for one in own[1:]]
    options = ReportOptions(tokens=run.eval_tokens or None, seed=seed)
    write_report(first, others, page, seeds=seeds, options=options, **where)


def has_tokens(settings: RunConfig) -> bool:
    """Whether a report can show tokens. Only a language model or a cache of ours has them."""
    stored = settings.activations
    return stored is None or read_manifest(at_home(stored)) is not None


def _require_seeds_here(given: str) -> None:
    """Raise a UserError if --seeds can't be combined with how the command was started."""
    one = "one seed for the processes of torchrun"
    each = f"{launched().command} train … --seed N --data-seed N --save-dir NAME/seedN"
    use = f"for each seed N, use `{each}`, then `vsae reproduce NAME/seed*`"
    require(not launched().are_several, "seeds", given, one, instead=use)
    if "WANDB_SWEEP_ID" in os.environ:
        raise not_in_a_sweep("seeds", given)


def _folder_name(config: TrainConfig, keeps_order: bool) -> str:
    """An automatic name that doesn't depend on the seeds."""
    order = {} if keeps_order else {"data_seed": RunConfig.data_seed}
    name = automatic_name(TrainConfig(replace(config.sae, seed=0), replace(config.run, **order)))
    return "_seeds_".join(name.rsplit("_seed0_", 1))


def _comparison(of_hook: Mapping[str, Sequence[Path]], tokens: int, where: dict[str, Any]) -> str:
    """The table of `vsae reproduce` for each hook point."""
    from ..features.reproduce import reproduce_settings
    from ..features.reproduce_text import short_table

    parts = []
    for hook, own in of_hook.items():
        head = f"{hook}\n" if len(of_hook) > 1 else ""
        parts.append(head + short_table(reproduce_settings(own, tokens, **where)[0]))
    return "\n\n".join(parts)
