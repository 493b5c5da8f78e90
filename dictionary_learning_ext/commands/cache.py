"""`vsae hooks` and `vsae cache`: list a language model's hook points, and write its activations to disk."""

from dataclasses import dataclass, field, fields, replace
from typing import Any

from ..config.checks import require
from ..config.run import Dtype, Packing, RunConfig
from ..errors import in_shell
from ..run_folder.cache_manifest import CacheDtype
from ..training.plan import with_hook_names
from ..training.processes import (
    interrupts,
    join,
    launched,
    saying_how_to_continue,
    saying_if_a_rank_is_lost,
)
from .flags import Command, positional, vsae


@dataclass(frozen=True)
class HooksFlags:
    """List the hook points of a language model and their widths."""

    model: str = "embedded"
    """The language model: embedded, a folder written by save_pretrained, or a name on the hub. Its
    weights aren't loaded."""


def run_hooks(flags: HooksFlags) -> None:
    from ..activations.hook_points import hook_names
    from ..activations.language_models import Pretrained

    model = Pretrained(flags.model)
    names, width = hook_names(model), model.width
    longest = max(map(len, names))
    print(f"{'hook point':<{longest}}  width")
    for name in names:
        print(f"{name:<{longest}}  {width:>5}")


@dataclass(frozen=True)
class CacheFlags:
    """Write a language model's activations to disk, for many trainings."""

    folder: str = field(metadata=positional("CACHE"))
    """The cache's folder. Rerun the same command to continue an interrupted one."""
    model: str = RunConfig.model
    """The language model: embedded, a folder written by save_pretrained, or a name on the hub."""
    hook: str = RunConfig.hook
    """The hook points, separated by commas. `vsae hooks` lists them. middle: see `vsae train --help`."""
    data: str = RunConfig.data
    """The text, see `vsae train --help`."""
    text_column: str = RunConfig.text_column
    """The column that holds the documents, see `vsae train --help-all`."""
    tokens: int = 1_000_000
    """Tokens to train on, rounded up to whole contexts. A larger number makes a finished cache
    grow."""
    dtype: CacheDtype = "float32"
    """Precision on disk: float32, or float16, which takes half the space."""
    lm_dtype: Dtype = "float32"
    """Precision in which the language model runs: float32 or bfloat16."""
    lm_batch_size: int = RunConfig.lm_batch_size
    """Contexts that the language model reads in one pass, see `vsae train --help-all`."""
    ctx_len: int = RunConfig.ctx_len
    """Tokens per context."""
    text_packing: Packing = RunConfig.text_packing
    """pack: documents follow each other. truncate: one document per context, padded."""
    text_passes: int = 1
    """How many times the text may be read. A training reads a cache as often as it needs."""
    data_seed: int = 0
    """Seeds the order of the text, if it has one (the embedded text)."""
    eval_tokens: int = RunConfig.eval_tokens
    """Held-out tokens to cache too, for evaluations. 0: none."""
    eval_documents: int = RunConfig.eval_documents
    """Held-out documents whose tokens are cached, to measure the language model's loss on."""
    device: str = RunConfig.device
    """Where to compute: auto (CUDA if torch can use it, otherwise the CPU), cpu, cuda or cuda:N."""
    device_map: str | None = None
    """Spread the language model over several devices, see `vsae train --help-all`."""
    file_mb: int = 64
    """Megabytes per file. An interruption costs at most the file that is being written."""


def run_cache(flags: CacheFlags) -> None:
    is_url = "://" in flags.folder
    require(not is_url, "folder", flags.folder, "a folder", instead="copy it there afterwards")
    require(flags.file_mb >= 1, "file_mb", flags.file_mb, "at least 1")
    processes = launched()
    if processes.are_several:
        no_map = f"none, as torchrun started {processes.count} processes"
        require(flags.device_map is None, "device_map", flags.device_map, no_map)
    own = {each.name for each in fields(RunConfig)}
    of_run: dict[str, Any] = {n: value for n, value in vars(flags).items() if n in own}
    of_run["dtype"] = flags.lm_dtype
    settings = RunConfig(**of_run)
    hooks = with_hook_names(settings).hooks  # refused now if it is wrong
    from ..activations.cache_writer import write_cache
    from ..devices import without_auto

    if processes.are_several:
        device = processes.device(without_auto(flags.device))
        settings = replace(settings, device=device)
    again = "run the same command again to continue the cache"
    with (
        saying_if_a_rank_is_lost(lambda: again),
        saying_how_to_continue(lambda: again),
        interrupts(processes) as signals,
        signals.deferred(),
    ):
        join()
        manifest = write_cache(
            flags.folder,
            settings,
            hooks,
            flags.tokens,
            dtype=flags.dtype,
            file_bytes=flags.file_mb * 1_000_000,
            on_plan=lambda plan: print(plan, flush=True),
            before_batch=signals.check_all,
            group=processes.ranks,
        )
    if not processes.is_first:
        return
    chosen = f" --hook {hooks[0]}\nor with --hook {' or '.join(hooks[1:])}"
    print(
        f"cached {manifest.tokens:,} tokens in {flags.folder}; train from it with\n"
        f"  {vsae()} train --activations {in_shell(flags.folder)}{chosen if len(hooks) > 1 else ''}"
    )


HOOKS = Command(
    "hooks",
    HooksFlags,
    run_hooks,
    examples=(
        "vsae hooks",
        "vsae hooks --model gpt2",
    ),
)
CACHE = Command(
    "cache",
    CacheFlags,
    run_cache,
    by_several=True,
    examples=(
        "vsae cache --hook middle --tokens 1_100_000 runs/cache",
        "vsae cache --data my.txt --hook middle,blocks.1.hook_mlp_out runs/cache",
    ),
)
