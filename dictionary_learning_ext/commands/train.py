"""`vsae train`: train an SAE or a transcoder, or one at each of several hook points."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..config.architectures import TRAINED
from ..config.checks import require, require_choice
from ..config.names import POINT, kind
from ..config.presets import DEFAULT_PRESET, preset
from ..config.run import (
    CONTINUE_OR_START,
    MAY_MOVE,
    NONE,
    RunConfig,
    TrainConfig,
    require_same,
)
from ..config.sae import (
    CHOICES,
    CONFIGS,
    NOISES,
    SAEConfig,
    Variational,
    VSAETopKConfig,
    not_used,
    option_names,
)
from ..errors import ConfigError, UserError, as_flag, in_shell
from ..run_folder.files import folder_of
from ..run_folder.reading import is_finished, load_config, read_run, run_folders
from ..run_folder.sae_folder import find_saes
from ..training.plan import plan, with_hook_names
from ..training.processes import RANK_TIMEOUT, launched
from .flags import DEFAULT, HIDDEN, OTHERS, Command, vsae
from .seeds import SEEDS_BESIDE, has_tokens, train_seeds, what_next


@dataclass(frozen=True)
class TrainFlags:
    """Train an SAE, or one at each of several --hook, and evaluate it."""

    sae: SAEConfig = field(default_factory=VSAETopKConfig)
    run: RunConfig = field(default_factory=RunConfig)
    preset: str | None = DEFAULT_PRESET
    """Start from named settings: recommended, paper or paper-as-run. Other flags
    override them. Their schedules scale with --steps."""
    config: Path | None = None
    """Start from the settings of an earlier run: its folder or its config.json. Other flags
    override them. Its schedules scale with --steps."""
    resume: Path | None = None
    """Continue an interrupted run: its folder, or the folder that holds the run folders of one
    run. Running the same command again does the same. The result is bit-identical to that of an
    uninterrupted run."""
    seeds: str | None = None
    """Train from several seeds, into save_dir/seed0 and so on, and compare them. 3: --seed and the
    next two. 4,7,9: these. Each has its own order of the data unless --data-seed is given. Activations are
    cached in save_dir. Default with --beside: 2."""
    beside: str | None = None
    """Train other SAEs beside this one, from the same seeds on the same activations: architectures, or point for the
    vSAE without noise, separated by commas, e.g. top_k,point. They have the same preset, and those of the flags that mean
    the same to them: --lr only where their own default is TopK's. Prints what comes back of each and writes a
    report."""
    rank_timeout: int = RANK_TIMEOUT
    """With torchrun: end the run when a process has waited this many seconds for the others. It must be
    longer than what a process does alone, e.g. the evaluation of its SAEs."""
    given: dict[str, Any] = field(default_factory=dict, metadata=HIDDEN)
    """The values of the flags that were typed."""
    left_out: tuple[str, ...] = field(default=(), metadata=HIDDEN)
    """Settings of --config that the given architecture and posterior don't use."""

    def __post_init__(self):
        for name, by in self.sae.unused().items():
            value = self.given.get(name)
            if value is not None and value is not DEFAULT:
                raise not_used(name, value, by)


def _prepare(typed: dict[str, list[str]]) -> dict[str, list[str]]:
    """Replace `--data-seed seed` by the value of --seed, so that a sweep file can give each seed its own order of the
    data."""
    if typed.get("data_seed") != ["seed"]:
        return typed
    is_one = "seeds" not in typed and "beside" not in typed
    anyway = "none beside seeds, which does that anyway"
    require(is_one, "data_seed", "seed", anyway, instead="leave it out")
    expected = "seed beside it, whose value it takes"
    require("seed" in typed, "data_seed", "seed", expected, instead="add it, or give a number")
    return typed | {"data_seed": typed["seed"]}


def starting_point(given: dict[str, Any]) -> TrainFlags:
    """The defaults that --preset, --config or --resume give, without options that have no effect with the other flags.

    Arguments:
        given: the value of each flag that was typed.
    """
    name, start = _named_start(given)
    run = start.run if "resume" in given else _run_of(given, start.run)
    if "config" in given:
        start = replace(start, sae=start.sae.of_steps(start.run.steps, run.steps))
    sae = start.sae.start_for(**{name: given.get(name) for name in CHOICES})
    was, now = start.sae.to_dict(), sae.to_dict()
    left_out = [n for n in was if was[n] is not None and now.get(n) is None and n not in given]
    return TrainFlags(sae, run, preset=name, left_out=tuple(sorted(left_out)))


def _named_start(given: dict[str, Any]) -> tuple[str | None, TrainConfig]:
    """The preset's name (None without one), and the settings of --preset, --config or --resume."""
    starts = [name for name in ("config", "resume") if given.get(name) is not None]
    starts = ["preset", *starts] if "preset" in given else starts
    if len(starts) > 1:
        raise UserError(
            f"{' and '.join(map(as_flag, starts))}: give only one of them; other flags override it"
        )
    if starts == ["config"]:
        start = load_config(given["config"], "config")
        return None, replace(start, run=replace(start.run, device=RunConfig.device))
    if starts == ["resume"]:
        return None, load_config(run_folders(Path(given["resume"]))[0], "resume")
    name = given.get("preset", DEFAULT_PRESET)
    return name, preset(name, architecture=given.get("architecture"))


def _run_of(given: dict[str, Any], settings: RunConfig) -> RunConfig:
    """A new run's defaults, with the settings that its stored activations know, and the steps that were typed."""
    if given.get("activations", NONE) != NONE:
        from ..activations.stored import open_stored

        stored = open_stored(given["activations"])
        if "hook" not in given and not ("config" in given and settings.hook in stored.widths):
            settings = replace(settings, hook=stored.only_hook)
        settings = replace(settings, **stored.settings)
    return replace(settings, steps=given["steps"]) if "steps" in given else settings


def _architectures_with(name: str, start: TrainFlags) -> str:
    """The message for a flag that this architecture doesn't have."""
    users = " or ".join(each for each, cls in CONFIGS.items() if name in option_names(cls))
    unused = f"architecture {start.sae.architecture} does not use it"
    return f"{unused}; leave it out, or give --architecture {users}"


def run(flags: TrainFlags) -> None:
    settings = flags.run
    if settings.activations == NONE:
        settings = replace(settings, activations=None)
    flags = replace(flags, run=with_hook_names(settings))
    if flags.resume is None:
        flags = replace(flags, sae=flags.sae.resolve(settings.steps))
    require(flags.rank_timeout >= 1, "rank_timeout", flags.rank_timeout, "at least 1")
    if flags.seeds is not None or flags.beside is not None:
        again = "none, as several SAEs of seeds continue by the same command"
        require(flags.resume is None, "resume", str(flags.resume), again, instead="leave it out")
        seeds, config = flags.seeds or SEEDS_BESIDE, TrainConfig(flags.sae, flags.run)
        trained = train_seeds(seeds, config, beside(flags), flags.given, _started_from(flags))
        print(what_next(*trained, flags.run))
        return
    run, saes, hooks, resume = _settings(flags)
    planned = plan(run, saes, hooks, resume=resume)  # refuses before torch is imported
    from ..training.loop import carry_out

    def print_start(folders: Sequence[Path], device: str) -> None:
        if not resume:
            print(_started_from(flags))
        where = ", ".join(map(in_shell, folders))
        print(f"{'Continuing' if resume else 'Writing to'} {where}, on {device}", flush=True)

    was_finished = not planned.stages()
    folders = carry_out(planned, on_start=print_start, rank_timeout=flags.rank_timeout)
    if launched().is_first:
        if was_finished and flags.resume is None:
            print("This run is finished; --overwrite trains it again.")
        _show(flags, run, list(folders.values()))


def beside(flags: TrainFlags) -> dict[str, SAEConfig]:
    """The settings of the SAEs that --beside names, by their `kind`.

    Each starts from the preset or --config, as by its own --architecture, and takes the flags that mean the same to it.
    """
    found: dict[str, SAEConfig] = {}
    names = [] if flags.beside is None else [name.strip() for name in flags.beside.split(",")]
    for name in names:
        require_choice("beside", name, (POINT, *TRAINED))
        choices = {"architecture": name}
        if name == POINT:
            vsae = flags.sae if isinstance(flags.sae, Variational) else VSAETopKConfig
            choices = {"architecture": vsae.architecture, "posterior": "point"}
        elif vars(flags.sae).get("posterior") == "point" and issubclass(CONFIGS[name], Variational):
            choices["posterior"] = "fixed"
        start = starting_point(flags.given | choices).sae
        used = vars(start).keys() - start.unused().keys() - choices.keys() - {"seed"}
        own: dict[str, Any] = {
            option: getattr(flags.sae, option)
            for option in flags.given.keys() & used & flags.sae.shared_with(start.architecture)
        }
        sae = replace(start, **own)
        if "target_l0" in vars(sae) and (k := flags.sae.kept_per_token):
            sae = replace(sae, target_l0=float(k))  # pyright: ignore[reportCallIssue]
        if kind(sae) in (kind(flags.sae), *found):
            what = "names an SAE twice" if kind(sae) in found else f"{name} is the run's own"
            raise UserError(what, name="beside", value=flags.beside, instead="name others")
        found[kind(sae)] = sae
    return found


def _settings(
    flags: TrainFlags,
) -> tuple[RunConfig, dict[str, SAEConfig], dict[str, str], bool]:
    """The first four arguments of `plan`. A run continues with --resume, or if its folders hold the same run."""
    run, saes, hooks = flags.run, {"sae": flags.sae}, {}
    if len(run.sites) > 1:
        expected = "one hook point, or a folder for the run folders of several"
        add = "add --save-dir DIR, and each is written to DIR/HOOK"
        require(run.save_dir is not None, "hook", run.hook, expected, instead=add)
        hooks = {site: site for site in run.sites}
        saes = {hook: flags.sae for hook in hooks}
    resume = True
    if flags.resume is None:
        resume = not run.overwrite and _has_started(flags)
    else:
        is_there = flags.run.save_dir is None and not flags.run.overwrite
        alone = "neither save_dir nor overwrite beside it, as the run continues in its folder"
        require(is_there, "resume", str(flags.resume), alone, instead="leave them out")
        was, saes, hooks = read_run(flags.resume)
        run = replace(flags.run, save_dir=was.save_dir)
        require_same(
            next(iter(saes.values())).given() | asdict(was),
            flags.sae.given() | asdict(flags.run),
            f"--resume {flags.resume}",
            typed=flags.given,
            but=MAY_MOVE if {*MAY_MOVE} & flags.given.keys() else (),
            advice=_advice(run_folders(flags.resume)[0], was, flags, CONTINUE_OR_START),
        )
    return run, saes, hooks, resume


def _has_started(flags: TrainFlags) -> bool:
    """Whether this run has been started before."""
    run, folder = flags.run, folder_of(TrainConfig(flags.sae, flags.run))
    if len(run.sites) > 1:
        return any([_holds(folder / site, run.at(site), flags) for site in run.sites])
    return _holds(folder, run, flags)


def _holds(folder: Path, run: RunConfig, flags: TrainFlags) -> bool:
    """Whether a folder holds this run. Raises ConfigError if it holds another run."""
    try:
        was = load_config(folder)
    except ConfigError:  # nothing that can be continued
        return False
    again = (
        f"use the flags it was started with ({{former}}), or `vsae train --resume {in_shell(folder)}`, "
        "or for a new run choose another save_dir"
    )
    require_same(
        was.to_dict(),
        TrainConfig(flags.sae, run).to_dict(),
        str(folder),
        typed=flags.given,
        advice=f"{_advice(folder, was.run, flags, again)}, or overwrite=True",
    )
    return True


def _advice(folder: Path, was: RunConfig, flags: TrainFlags, again: str) -> str:
    """What to do about flags that differ from a run's settings: `again`, or train a finished run to more steps."""
    start, more = in_shell(folder), flags.run.steps - was.steps
    if "steps" not in flags.given or more <= 0 or not is_finished(folder, was):
        return again
    return (
        f"it is finished; to train {more} steps more, start a new run from its weights: `{vsae()} train --config {start} "
        f"--init-from {start} --data-seed {was.data_seed + 1} --steps {more} --save-dir FOLDER`"
    )


def _started_from(flags: TrainFlags) -> str:
    """A line that says which preset or config the settings come from."""
    if flags.config is not None:
        line = f"Settings of {flags.config}, except for the flags given."
        left_out = ", ".join(flags.left_out)
        return f"{line} Left out, as not used here: {left_out}." if left_out else line
    settings = TrainConfig(flags.sae, flags.run).to_dict()
    shown = (name for name in ("k", "dict_size", *NOISES, "lr", "steps") if name in settings)
    values = ", ".join(f"{name}={settings[name]}" for name in shown)
    line = f"Preset {flags.preset} ({values})"
    return line if "preset" in flags.given else f"{line}; --preset paper for the paper's setting."


def _show(flags: TrainFlags, settings: RunConfig, folders: list[Path]) -> None:
    """Print the results, and commands for what to do next."""
    from ..evaluation.symptoms import symptoms_of
    from ..evaluation.tables import results_table

    saes = find_saes(folders)
    if settings.eval_tokens:
        print(results_table({name: sae.required_metrics for name, sae in saes.items()}, saes))
    for folder in folders:
        print(f"saved in {folder}")
    for name, sae in saes.items():
        for symptom in symptoms_of(sae):
            print(f"{name} looks bad: {symptom}")
    one = folders[0]
    print(
        "\nNext, in Python:\n"
        "  from dictionary_learning_ext import load_dictionary\n"
        f"  sae, config = load_dictionary({str(one)!r})\n"
        "or on the command line:\n"
        + (f"  {vsae()} report {in_shell(one)}\n" if has_tokens(settings) else "")
        + f"  {vsae()} reproduce {in_shell(one)}\n"
        + f"  {vsae()} compare {in_shell(one)} ANOTHER_RUN"
    )


TRAIN = Command(
    "train",
    TrainFlags,
    run,
    starting_point,
    _prepare,
    headings={
        "Model and text": "model hook target data max_norm_multiple | activations text_column text_packing text_passes "
        "data_seed n_ctxs ctx_len remove_bos lm_batch_size device_map",
        "SAE": f"preset architecture dict_size k {OTHERS} | start select_by rectify sigma prior_std kl_scope kl_schedule "
        "kl_warmup_steps auxk_alpha dead_feature_threshold",
        "Training": "steps batch_size lr warmup_steps decay_start seed seeds beside device eval_tokens eval_every | dtype tf32 "
        "split rank_timeout normalize eval_documents",
        "Files": "save_dir overwrite resume config wandb | init_from save_every save_steps log_steps wandb_project "
        "wandb_artifacts",
    },
    several="for several SAEs, write `{name}: {{values: [{values}]}}` into a sweep file and use `vsae sweep "
    "FILE` (docs/sweeps.md)",
    others=(*CONFIGS.values(), SAEConfig),
    unknown=_architectures_with,
    examples=(
        "vsae train --data my.txt --steps 2000 --save-dir runs/mine",
        "vsae train --seeds 3 --beside top_k --save-dir runs/both",
    ),
    by_several=True,
)
