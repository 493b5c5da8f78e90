"""`vsae quickstart`: how many features come back with another seed, of a TopK SAE and of a vSAE."""

from dataclasses import dataclass, replace
from pathlib import Path

from ..activations.cache_manifest import UNFINISHED, read_manifest
from ..config.architectures import ARCHITECTURES
from ..config.checks import require
from ..config.presets import preset, quickstart
from ..config.run import ReportOptions, RunConfig, TrainConfig, require_same
from ..config.sae import SAEConfig
from ..errors import in_shell
from ..run_folder.files import CONFIG, REPORT, RUN_FILES, locked, remove, writing
from ..run_folder.reading import is_finished, load_config, read_metrics_if_any
from .cache import continued
from .flags import Command, vsae

HOOK = "blocks.2.hook_resid_post"
"""A middle layer of the embedded model, which has four."""
CACHE = "cache"
"""The folder of the cached activations, in save_dir."""
CACHED = 400_000
"""Tokens that are cached, at most. Each training reads them several times, in an order of its own."""


@dataclass(frozen=True)
class QuickstartFlags:
    """Train TopK and a vSAE from two seeds; see which features return."""

    save_dir: str = "runs/quickstart"
    """The folder for the four run folders, the cached activations and the report."""
    steps: int = 1000
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


@dataclass(frozen=True)
class _OfSeed:
    """The two SAEs of one seed."""

    run: RunConfig
    saes: dict[str, SAEConfig]

    @property
    def folders(self) -> list[Path]:
        return [Path(str(self.run.save_dir)) / name for name in self.saes]

    @property
    def is_finished(self) -> bool:
        return all(is_finished(folder, self.run) for folder in self.folders)

    def has_started(self) -> bool:
        """Whether an earlier quickstart with these flags did. Raises ConfigError if a folder holds
        another run."""
        started = [folder for folder in self.folders if (folder / CONFIG).is_file()]
        for folder in started:
            sae = self.saes[folder.name].resolve(self.run.steps, self.run.batch_size)
            require_same(
                load_config(folder).to_dict(),
                TrainConfig(sae, self.run).to_dict(),
                str(folder),
                advice="overwrite it with --overwrite, or choose another --save-dir",
            )
        return bool(started)


def run(flags: QuickstartFlags) -> None:
    require(flags.steps >= 1, "steps", flags.steps, "at least 1")
    folder = Path(flags.save_dir)
    seeds = [_of_seed(flags, seed) for seed in (flags.seed, flags.seed + 1)]
    has_started = [not flags.overwrite and one.has_started() for one in seeds]
    page = folder / (f"report_seed{flags.seed}.html" if flags.seed else REPORT)
    top_k, vsae_folder = (str(one) for one in seeds[0].folders)
    others = [str(one) for one in seeds[1].folders]
    again = "without --overwrite " if flags.overwrite else ""
    with continued(folder / CACHE, f"run the same command again {again}to continue"):
        if all(has_started) and all(one.is_finished for one in seeds):
            print(f"{folder} holds these SAEs already; --overwrite trains them again.")
        else:
            _train(seeds, has_started, page)
        print(f"\n{_results(seeds)}")
        if flags.report and not page.is_file():
            from ..report.page import write_report

            print("\nWriting the report …", flush=True)
            write_report(
                vsae_folder,
                [top_k],
                page,
                seeds=others,
                options=ReportOptions(
                    tokens=flags.eval_tokens or ReportOptions.tokens, seed=flags.seed
                ),
            )
    if flags.report:
        print(f"\nOpen {page} in a browser: it shows which features come back.")
    third = flags.seed + 2
    print(
        "\nNext:\n"
        f"  {vsae()} reproduce {in_shell(vsae_folder)}\n"
        f"  {vsae()} reproduce {in_shell(vsae_folder, others[1])}\n"
        f"  {vsae()} train --config {in_shell(vsae_folder)} --seed {third} --data-seed {third} "
        f"--save-dir {in_shell(folder / f'vsae_seed{third}')}\n"
        f"  {vsae()} train --help"
    )


_INTRODUCTION = f"""\
Training two sparse autoencoders on a middle layer of a small language model
({HOOK}), each from two seeds on two orders of the same data:
  top_k  a TopK SAE
  vsae   the vSAE of the preset `recommended`, of the same size
A feature comes back if the other seed finds its direction too (cosine of 0.7 or more)."""


def _of_seed(flags: QuickstartFlags, seed: int) -> _OfSeed:
    config = preset("recommended").run
    config = replace(
        config,
        hook=HOOK,
        steps=flags.steps,
        eval_tokens=flags.eval_tokens,
        data_seed=seed,
        activations=str(Path(flags.save_dir) / CACHE),
        save_dir=flags.save_dir,
        overwrite=flags.overwrite,
    )
    return _OfSeed(config, quickstart(flags.steps, seed))


def _train(seeds: list[_OfSeed], has_started: list[bool], page: Path) -> None:
    """Cache what is missing of the activations, and train what is missing of the SAEs."""
    from ..activations.cache_writer import write_cache
    from ..training.loop import train
    from ..training.processes import interrupts

    first = seeds[0].run
    cache = Path(str(first.activations))
    there = read_manifest(cache, UNFINISHED) or read_manifest(cache)
    held_out = there.settings.eval_tokens if there else RunConfig.eval_tokens

    def begin(_: str) -> None:
        """Print the introduction and delete what is replaced, once the cache's folder is known to be usable."""
        print(_INTRODUCTION, flush=True)
        with writing(page.parent):
            remove(page)  # of SAEs that are replaced
        for folder in [folder for one in seeds for folder in one.folders if first.overwrite]:
            # All four now, so that none is in the way of continuing without --overwrite.
            with locked(folder), writing(folder):
                for name in RUN_FILES:
                    remove(folder / name)

    with interrupts() as signals, signals.deferred():
        write_cache(
            cache,
            replace(
                first,
                activations=None,
                data_seed=0,
                eval_tokens=max(first.eval_tokens, held_out),  # the report reads them, too
            ),
            [HOOK],
            min(first.steps * first.batch_size, CACHED),
            dtype="float16",
            overwrite=first.overwrite,
            on_plan=begin,
            before_batch=signals.check,
        )
    for one, resume in zip(seeds, has_started, strict=True):
        if not (resume and one.is_finished):
            train(one.run, one.saes, resume=resume)


def _results(seeds: list[_OfSeed]) -> str:
    """A row for each architecture: the means over the seeds."""
    from ..evaluation.metrics import METRICS
    from ..evaluation.tables import text_table
    from ..features.reproducibility_of_folders import answer, measured

    shown = [METRICS[key] for key in ("fve", "frac_recovered")]
    rows, parts = [], []
    for folders in zip(*(one.folders for one in seeds), strict=True):
        found = measured(folders)
        title = ARCHITECTURES[load_config(folders[0]).sae.architecture].title
        metrics = [read_metrics_if_any(one) or {} for one in folders]
        values = [_mean([each.get(metric.key) for each in metrics]) for metric in shown]
        means = found.measured.means()
        returns = found.returns
        rows.append(
            [
                title,
                *(metric.text(value) for metric, value in zip(shown, values, strict=True)),
                f"{returns:.1%}",
                f"{means['pw_mcc_less_null']:.4f}",
            ]
        )
        parts.append((title, returns, values[0]))
    head = ["", *(metric.label for metric in shown), "features that come back", "PW-MCC less null"]
    return "\n".join(
        [
            "On held-out text, means of two seeds:\n",
            text_table(head, rows),
            "",
            "PW-MCC: mean cosine of matched features; null: that of random directions.",
            answer(parts[::-1]),
            "After 4,000 steps 58% and 34% come back (docs/science.md).",
        ]
    )


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


QUICKSTART = Command("quickstart", QuickstartFlags, run)
