"""`vsae train`: one SAE."""

import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from ..config.presets import preset
from ..config.run_config import RunConfig, TrainConfig, require_same
from ..config.sae_config import SAEConfig
from ..errors import TrainingError, UserError
from ..run_folder.names import CONFIG, FAILED
from ..run_folder.reading import failed_in, load_config, read_metrics, read_run, run_folders

AUTO = Path("auto")


@dataclass(frozen=True)
class Flags:
    """Train one SAE on a language model's activations, save it and evaluate it."""

    sae: SAEConfig = field(default_factory=SAEConfig)
    run: RunConfig = field(default_factory=RunConfig)
    preset: str | None = None
    """Start from named settings: quickstart, recommended, paper or paper-as-run. Other flags win
    over it; its schedules scale with --steps."""
    config: Path | None = None
    """Start from the settings of a run: its folder or config.json. Other flags win over it."""
    resume: Path | None = None
    """Go on with a run that was stopped: its folder, or a folder of the run folders of one run.
    The result is the same to the bit as if it had not been stopped. auto: go on with what save_dir
    holds if these settings are its own, else begin; for jobs that are started again as they are."""


def run(flags: Flags) -> None:
    from ..evaluation.folders import table
    from ..training.loop import train

    run, saes = flags.run, {"sae": flags.sae}
    resume = flags.resume is not None
    if flags.resume == AUTO:
        resume, run = _found(flags)
    elif flags.resume is not None:
        if flags.run.save_dir is not None or flags.run.overwrite:
            raise UserError(
                f"--resume {flags.resume}: goes on in that folder; leave out --save-dir and "
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
        print(table({str(folder): read_metrics(folder) for folder in folders.values()}))
    for folder in folders.values():
        print(f"saved in {folder}; load it with load_dictionary({str(folder)!r})")
    if flags.resume not in (None, AUTO) and (failed := failed_in(flags.resume)):
        raise TrainingError(
            f"{', '.join(map(str, failed))}: failed before, see {FAILED} there; the others are done"
        )


def _found(flags: Flags) -> tuple[bool, RunConfig]:
    """Whether the run of these flags was begun before, and where it is or will be."""
    sae = flags.sae.resolve(flags.run.steps, flags.run.batch_size)
    folder = Path(flags.run.save_dir or Path("runs") / TrainConfig(sae, flags.run).name)
    run = replace(flags.run, save_dir=str(folder))
    if not (folder / CONFIG).is_file():
        return False, run
    was = load_config(folder).to_dict()
    require_same(was, TrainConfig(sae, run).to_dict(), f"--resume auto: {folder}")
    return True, run


def starting_point(args: list[str]) -> Flags:
    """The defaults of --preset, --config or --resume, as far as --architecture and --posterior use
    them."""
    pattern = r"(?:^|\n)--(preset|config|resume|architecture|posterior|steps)(?:=|\n)([^\n]+)"
    given = dict(re.findall(pattern, "\n".join(args)))
    starts = [name for name in ("preset", "config", "resume") if name in given]
    if given.get("resume") == str(AUTO):
        starts.remove("resume")
    if len(starts) > 1:
        raise UserError(f"--{' and --'.join(starts)}: give one of them; other flags win over it")
    start = TrainConfig()
    if "preset" in given:
        steps = given.get("steps", "")
        start = preset(given["preset"], int(steps) if steps.isdecimal() else None)
    elif "config" in given:
        start = load_config(given["config"])
    elif "resume" in given and given["resume"] != str(AUTO):
        start = load_config(run_folders(Path(given["resume"]))[0])
    sae = start.sae.changed_to(given.get("architecture"), given.get("posterior"))
    return Flags(sae, start.run)
