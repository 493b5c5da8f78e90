"""`vsae train`: one SAE."""

import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from ..config.presets import preset
from ..config.run_config import RunConfig, TrainConfig, require_same
from ..config.sae_config import SAEConfig
from ..errors import TrainingError, UserError
from ..run_folder.names import CONFIG, FAILED, folder_of
from ..run_folder.reading import failed_in, load_config, read_metrics, read_run, run_folders
from .flags import Command

AUTO = Path("auto")


@dataclass(frozen=True)
class TrainFlags:
    """Train one SAE on a language model's activations and evaluate it."""

    sae: SAEConfig = field(default_factory=SAEConfig)
    run: RunConfig = field(default_factory=RunConfig)
    preset: str | None = None
    """Start from named settings: quickstart, recommended, paper or paper-as-run. Other flags
    override them. Their schedules scale with --steps."""
    config: Path | None = None
    """Start from the settings of an earlier run: its folder or its config.json. Other flags
    override them."""
    resume: Path | None = None
    """Continue an interrupted run: its folder, or the folder that holds the run folders of one
    run. The result is bit-identical to that of an uninterrupted run. auto: continue the run in
    save_dir, or start it if there is none. Use auto for jobs that are restarted with the same
    command."""


def run(flags: TrainFlags) -> None:
    from ..evaluation.comparison import printed
    from ..training.loop import train

    run, saes = flags.run, {"sae": flags.sae}
    resume = flags.resume is not None
    if flags.resume == AUTO:
        resume, run = _found(flags)
    elif flags.resume is not None:
        if flags.run.save_dir is not None or flags.run.overwrite:
            raise UserError(
                f"--resume {flags.resume} continues in that folder; leave out --save-dir and "
                "--overwrite"
            )
        former, saes = read_run(flags.resume)
        run = replace(flags.run, save_dir=former.save_dir)
        start = starting_point(["--resume", str(flags.resume)])
        for name in ("sae", "run"):
            was, now = asdict(getattr(start, name)), asdict(getattr(flags, name))
            require_same(was, now, f"--resume {flags.resume}")
    folders = train(run, saes, resume=resume)
    if run.eval_tokens:
        print(printed({str(folder): read_metrics(folder) for folder in folders.values()}))
    for folder in folders.values():
        print(f"saved in {folder}; load it with load_dictionary({str(folder)!r})")
    if flags.resume not in (None, AUTO) and (failed := failed_in(flags.resume)):
        raise TrainingError(
            f"{', '.join(map(str, failed))}: failed earlier (see {FAILED} there); the others are finished"
        )


def _found(flags: TrainFlags) -> tuple[bool, RunConfig]:
    """Whether the run of these flags has been started before, and where it is or will be."""
    sae = flags.sae.resolve(flags.run.steps, flags.run.batch_size)
    folder = folder_of(TrainConfig(sae, flags.run))
    run = replace(flags.run, save_dir=str(folder))
    if not (folder / CONFIG).is_file():
        return False, run
    was = load_config(folder).to_dict()
    require_same(was, TrainConfig(sae, run).to_dict(), f"--resume auto: {folder}")
    return True, run


def starting_point(args: list[str]) -> TrainFlags:
    """The defaults of --preset, --config or --resume, as far as the flags beside them use them."""
    names = "preset|config|resume|architecture|posterior|steps|sigma|noise_to_signal"
    pattern = rf"(?:^|\n)--({names.replace('_', '[-_]')})(?:=|\n)([^\n]+)"
    found = re.findall(pattern, "\n".join(args))
    given = {name.replace("-", "_"): value for name, value in found}
    starts = [name for name in ("preset", "config", "resume") if name in given]
    if given.get("resume") == str(AUTO):
        starts.remove("resume")
    if len(starts) > 1:
        raise UserError(
            f"--{' and --'.join(starts)}: give only one of them; other flags override it"
        )
    start = TrainConfig()
    if "preset" in given:
        steps = given.get("steps", "")
        start = preset(given["preset"], int(steps) if steps.isdecimal() else None)
    elif "config" in given:
        start = load_config(given["config"])
    elif "resume" in given and given["resume"] != str(AUTO):
        start = load_config(run_folders(Path(given["resume"]))[0])
    sae = start.sae.changed_to(given.get("architecture"), given.get("posterior"))
    for name, other in (("sigma", "noise_to_signal"), ("noise_to_signal", "sigma")):
        if name in given:  # two ways to say one thing: the flag overrides
            sae = replace(sae, **{other: None})
    return TrainFlags(sae, start.run)


COMMAND = Command("train", TrainFlags, run, starting_point)
