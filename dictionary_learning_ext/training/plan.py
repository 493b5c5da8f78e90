"""The plan of a run: its SAEs and their folders, checked as far as possible without torch or a language model.

Imports nothing heavy until a cache, a model or a device is asked for.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..activations.text import names_a_file, text_of
from ..config.architectures import TRAINED
from ..config.checks import changed, require
from ..config.hooks import HOOK_KINDS, hook_name, no_such_hook, sides_of
from ..config.run import MIDDLE, UNKNOWN, RunConfig, TrainConfig, most_parts
from ..config.sae import SAEConfig
from ..errors import ActivationsError, ConfigError, bytes_shown, shown
from ..run_folder.files import (
    CONFIG,
    FAILED,
    RUNS,
    folder_of,
    is_of_a_run,
    require_folder_name,
    require_free,
    target_of,
)
from ..run_folder.moved import not_here
from ..run_folder.reading import by_resume_step, is_finished, run_folders_in
from .processes import Processes, launched, require_one_task


@dataclass(frozen=True)
class Job:
    """An SAE to train: its settings and its run folder."""

    name: str
    """The SAE's name in the run."""
    config: TrainConfig
    """The settings of the SAE, resolved, and of the run, with the SAE's own hook point."""
    folder: Path
    """The run folder."""

    @property
    def hook(self) -> str:
        """Its hook point, or the pair of a transcoder, see `RunConfig.sites`."""
        return self.config.run.site

    @property
    def is_finished(self) -> bool:
        return is_finished(self.folder, self.config.run)

    @property
    def has_failed(self) -> bool:
        """Whether its training ended because its numbers were not finite, so that it can't be resumed."""
        return (self.folder / FAILED).is_file()


@dataclass(frozen=True)
class Plan:
    """The SAEs of a run, as `plan` has checked them."""

    settings: RunConfig
    """The settings that the SAEs share."""
    jobs: list[Job]
    resume: bool
    """Whether they continue from their resume points."""
    folder: Path
    """The folder that `--resume` takes: the only run folder, or the folder of all run folders."""

    def on(self, device: str) -> "Plan":
        """The same plan on a device, with the folder in the settings."""
        save_dir = self.settings.save_dir or str(self.folder)
        settings = changed(self.settings, device=device, save_dir=save_dir)
        own = [(job, settings.at(job.hook)) for job in self.jobs]
        jobs = [replace(job, config=replace(job.config, run=run)) for job, run in own]
        return replace(self, settings=settings, jobs=jobs)

    @property
    def folders(self) -> list[Path]:
        return [job.folder for job in self.jobs]

    @property
    def hooks(self) -> list[str]:
        """The names of the hook points, without repeats."""
        return list(dict.fromkeys(job.hook for job in self.jobs))

    def jobs_of(self, processes: Processes) -> list[Job]:
        """The SAEs that a process trains, or of which it trains a part."""
        return self.dealt(processes.count)[processes.rank]

    def in_memory_of(self, processes: Processes, device: str) -> list[Job]:
        """The SAEs in the memory that a process uses: on a CPU, those of all processes of its machine."""
        ranks = processes.on_this_machine if device.startswith("cpu") else [processes.rank]
        dealt = self.dealt(processes.count)
        return [job for rank in ranks for job in dealt[rank]]

    def new_hooks_of(self, processes: Processes) -> list[str]:
        """The hook points of a process's SAEs at which no process of a lower rank trains one."""
        dealt, rank = self.dealt(processes.count), processes.rank
        hooks_of_lower = {job.hook for jobs in dealt[:rank] for job in jobs}
        hooks = dict.fromkeys(job.hook for job in dealt[rank])
        return [hook for hook in hooks if hook not in hooks_of_lower]

    def stages(self) -> list["Plan"]:
        """Plans to carry out one after the other: each has the SAEs that resume from the same step, those that are
        furthest first. Finished and failed SAEs are left out."""
        if not self.resume:
            return [self]
        left = [job for job in self.jobs if not (job.is_finished or job.has_failed)]
        together = by_resume_step([job.folder for job in left])
        return [replace(self, jobs=[j for j in left if j.folder in group]) for group in together]

    def dealt(self, count: int) -> list[list[Job]]:
        """The jobs of each of `count` processes. Each SAE goes to the process with the least work, large SAEs first.
        The processes that hold parts of one SAE get the same jobs."""
        parts = self.settings.split or 1
        found: list[list[Job]] = [[] for _ in range(count // parts)]
        for job in sorted(self.jobs, key=lambda job: -job.config.sae.dict_size):
            least = min(found, key=lambda jobs: sum(each.config.sae.dict_size for each in jobs))
            least.append(job)
        return [[job for job in self.jobs if job in jobs] for jobs in found for _ in range(parts)]


def plan(
    run: RunConfig,
    saes: Mapping[str, SAEConfig],
    hooks: Mapping[str, str] | None = None,
    *,
    resume: bool = False,
) -> Plan:
    """Check the settings of a run and make a job of each SAE. See `loop.train` for the arguments.

    Raises: ConfigError for settings that contradict each other, several SAEs in one run of a wandb sweep, a folder that
    is taken or missing, a run to resume whose SAEs have all failed, a command that srun started several times, or CUDA that
    can't be used; LanguageModelError for a hook point that can't be; TextError or ActivationsError for a missing file.
    """
    require_one_task()
    hooks = hooks or {}
    _require_together(run, saes, hooks)
    run = with_hook_names(run)
    jobs = [
        _job(name, sae, run.at(hooks.get(name, run.site)), is_alone=len(saes) == 1)
        for name, sae in saes.items()
    ]
    if run.activations is not None and not (resume and all(job.is_finished for job in jobs)):
        from ..activations.stored import open_stored

        try:
            stored = open_stored(run.activations)
        except ActivationsError as error:
            raise (not_here(error, "activations") if resume else error) from error
        stored.require_fit(run, dict.fromkeys(job.hook for job in jobs))
    if resume and not run.overwrite and all(job.has_failed for job in jobs):
        raise ConfigError(
            f"{', '.join(str(job.folder) for job in jobs)}: failed, see {FAILED} there",
            instead="for another run, choose another save_dir, or overwrite it with overwrite=True",
        )
    if not resume:
        if run.activations is None and run.model != UNKNOWN:
            _require_hooks(run, jobs)
        for job in jobs:
            _require_start(job)
        if run.device.startswith("cuda") and launched().count == 1:  # else each asks for its own
            from ..devices import chosen_device

            chosen_device(run.device)
        if run.activations is None and names_a_file(run.data):
            text_of(run, passes=run.text_passes)
    return Plan(run, jobs, resume, Path(os.path.commonpath([job.folder for job in jobs])))


def _require_together(
    run: RunConfig, saes: Mapping[str, SAEConfig], hooks: Mapping[str, str]
) -> None:
    """Raise a ConfigError unless these SAEs can be trained together by the present processes."""
    of_saes = isinstance(saes, Mapping) and all(isinstance(s, SAEConfig) for s in saes.values())
    require(of_saes and len(saes) > 0, "saes", saes, "SAEs by name, e.g. {'a': TopKConfig(k=32)}")
    if len(saes) > 1:
        for name in saes:
            require_folder_name(name, "SAE name")
    require(hooks.keys() <= saes.keys(), "hooks", hooks, f"names of SAEs: {', '.join(saes)}")
    count = launched().count
    alone = f"none with {count} processes, as each has the whole language model on its own device"
    require(run.device_map is None or count == 1, "device_map", run.device_map, alone)
    if run.split is not None:
        _require_split(run, run.split, saes, count)
    is_agents = run.wandb != "disabled" and "WANDB_SWEEP_ID" in os.environ
    one = f"one SAE, as a sweep's agent gives one run of wandb, and got {', '.join(saes)}"
    single = "give a single hook, e.g. as a parameter of the sweep"
    require(len(saes) == 1 or not is_agents, "wandb", run.wandb, one, instead=single)


def _require_split(run: RunConfig, split: int, saes: Mapping[str, SAEConfig], count: int) -> None:
    """Raise a ConfigError unless the features of these SAEs can be divided over the processes."""
    for sae in saes.values():
        able = [name for name, row in TRAINED.items() if row.splits]
        holds_whole = (
            f"{' or '.join(able)} with split={split}; the trainers of others hold a whole SAE"
        )
        require(sae.architecture in able, "architecture", sae.architecture, holds_whole)
        most = most_parts(sae.dict_size)
        powers = f"a power of two, at most {most} with dict_size={sae.dict_size}"
        require(most % split == 0, "split", split, powers)
    start = f"start them by `torchrun --nproc-per-node {split} -m dictionary_learning_ext train …`"
    divides = f"a divisor of {count}, the number of processes"
    require(count % split == 0, "split", split, divides, instead=start)
    whole = f"none with split={split}, as it measures whole SAEs"
    require(run.eval_every is None, "eval_every", run.eval_every, whole)


def _job(name: str, sae: SAEConfig, run: RunConfig, *, is_alone: bool) -> Job:
    """The job of an SAE, with all defaults filled in."""
    sae.require_units(run.normalize)
    if run.target is not None:
        _require_transcoder(sae, run)
    config = TrainConfig(sae, with_hook_names(run)).resolved
    folder = folder_of(config) if is_alone else Path(run.save_dir or RUNS) / name
    return Job(name, config, folder)


def _require_transcoder(sae: SAEConfig, run: RunConfig) -> None:
    """Raise a ConfigError for settings that transcoders don't have."""
    able = [name for name, row in TRAINED.items() if row.transcoder]
    expected = f"{' or '.join(able)} with a target; others train SAEs alone"
    require(sae.architecture in able, "architecture", sae.architecture, expected)
    legal = {"split": (run.split, None), "init_from": (sae.init_from, None)}
    for name, (given, only) in {**legal, "start": (sae.start, "random")}.items():
        require(given == only, name, given, f"{shown(only)} with a target", instead="leave it out")


def _require_hooks(run: RunConfig, jobs: Sequence[Job]) -> None:
    """Raise a LanguageModelError for a hook point that no language model has, or that the embedded one lacks."""
    n_blocks = _EMBEDDED_BLOCKS if run.model == "embedded" else None
    for hook in (side for job in jobs for side in sides_of(job.hook)):
        named = hook_name(hook)
        if (
            named is None
            or named.kind not in HOOK_KINDS
            or (n_blocks is not None and named.block >= n_blocks)
        ):
            raise no_such_hook(hook, list(HOOK_KINDS), n_blocks)


def _require_start(job: Job) -> None:
    """Raise a ConfigError unless the folder of init_from exists, and the run folder is free and holds no other runs."""
    weights, run, folder = job.config.sae.init_from, job.config.run, job.folder
    require_free(folder, run.overwrite)
    if weights is not None:
        trained = "the folder of a trained SAE, e.g. runs/NAME"
        require(Path(weights).is_dir(), "init_from", weights, trained)
        is_inside = target_of(weights).is_relative_to(target_of(folder))
        stays = "an SAE in a folder that this run doesn't overwrite"
        require(not (run.overwrite and is_inside), "init_from", weights, stays)
    others = [one.name for one in run_folders_in(folder) if is_of_a_run(one / CONFIG)]
    own = f"a folder of its own, and this one holds other runs: {', '.join(others)}"
    other = f"choose another, e.g. {folder / 'NAME'}"
    require(not others, "save_dir", str(folder), own, instead=other)


_EMBEDDED_BLOCKS = 4
"""The blocks of the embedded model. A constant, so that a wrong hook point is refused before torch is imported."""


def with_hook_names(settings: RunConfig) -> RunConfig:
    """The same settings with `middle` replaced by the name of a hook point.

    The name follows from the language model's config.json, or is that of the stored activations.

    Raises: LanguageModelError or ActivationsError if there is no such model or folder, or the folder has several hook
    points.
    """
    if MIDDLE not in settings.hooks:
        return settings
    middle = f"blocks.{_EMBEDDED_BLOCKS // 2}.hook_resid_post"
    if settings.activations is not None:
        from ..activations.stored import open_stored

        middle = open_stored(settings.activations).only_hook
    elif settings.model != "embedded":
        from ..activations.language_models import Pretrained

        middle = f"blocks.{Pretrained(settings.model).n_blocks // 2}.hook_resid_post"
    names = (middle if name == MIDDLE else name for name in settings.hooks)
    return replace(settings, hook=",".join(names))


# --- memory


def require_memory(jobs: Iterable[Job], widths: Mapping[str, int], device: str) -> None:
    """Raise a ConfigError if SAEs don't fit into the memory of a device.

    Arguments:
        jobs: all jobs on the device.
        widths: D by hook point.
    """
    on_cpu = device.startswith("cpu")
    needed = sum(
        sae_bytes(job.config.sae, widths[job.hook]) // (job.config.run.split or 1) for job in jobs
    )
    there, _ = _memory(device)
    if needed > there:
        raise ConfigError(
            f"the weights, gradients and optimizer of the SAEs need {bytes_shown(needed)} of memory, and"
            f" {'this machine' if on_cpu else device} has {bytes_shown(there)}",
            instead="lower dict_size, or divide it over several processes by split",
        )


def fitting_at_once(configs: Sequence[TrainConfig], devices: Sequence[str]) -> int:
    """The number of SAEs that can be trained at once in half of the free memory, at least 1. Loads no language model.

    Arguments:
        devices: a device that is named several times is shared.

    Raises: LanguageModelError or ActivationsError if there is no such model or folder.
    """
    from ..activations.language_models import Pretrained
    from ..activations.stored import open_stored

    def width(run: RunConfig) -> int:
        if run.activations is None:
            return Pretrained(run.model).width
        return max(open_stored(run.activations).widths.values())

    each = max(sae_bytes(config.sae, width(config.run)) for config in configs)
    free = min(_memory(device)[1] / devices.count(device) for device in devices)
    return max(1, int(free / 2 / each))


def sae_bytes(sae: SAEConfig, activation_dim: int) -> int:
    """The bytes of an SAE's weights and gradients, and of what the optimiser keeps, in float32."""
    copies = 4  # weights, gradients, and two numbers a weight, of encoder and decoder
    return 4 * copies * 2 * sae.dict_size * activation_dim


def _memory(device: str) -> tuple[int, int]:
    """The bytes of memory of the machine or of its GPU: total and free."""
    import psutil
    import torch as t

    if t.device(device).type == "cuda":
        free, total = t.cuda.mem_get_info(device)
        return total, free
    memory = psutil.virtual_memory()
    return memory.total, memory.available
