"""Training from start to end: plan, prepare, build or restore, take the steps, save, evaluate.

`plan`, in plan.py, checks all that can be checked without torch. `carry_out` trains what was planned: `prepare` makes
all other checks and changes no run folder, then `run` takes the steps, saves and evaluates. The SAEs of a run share one
language model, and those of a hook point share one buffer.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from signal import Signals
from typing import Any

import torch as t
from dictionary_learning.dictionary import Dictionary
from tqdm import tqdm

from ..activations.buffer import Batches
from ..activations.hook_points import HookPoint
from ..activations.inputs import Inputs, find_inputs
from ..activations.own_batches import OwnBatches
from ..activations.tokens import Ranks
from ..codes.sinks import SinkFinder
from ..config.checks import require
from ..config.run import SAMPLE_TOKENS, UNKNOWN, RunConfig
from ..config.sae import SAEConfig
from ..devices import chosen_device, without_auto
from ..errors import (
    CheckpointError,
    ConfigError,
    Interrupted,
    NonFiniteError,
    TrainingError,
    in_shell,
)
from ..evaluation.measure import Sample, measure
from ..evaluation.tables import labels
from ..progress import ProgressLines, progress
from ..run_folder.comparing import measured_on
from ..run_folder.files import EVALUATION, all_locked, write_json
from ..run_folder.reading import steps_of
from ..run_folder.resume_points import ResumePoint, Scale
from ..run_folder.weights import load_dictionary
from ..trainers.base import Trainer
from ..trainers.build import build_trainer
from ..trainers.parts import WHOLE, Part
from .logs import open_all, report_finished
from .plan import Job, Plan, plan, require_memory
from .processes import (
    RANK_TIMEOUT,
    Interrupts,
    Processes,
    continue_or_start_again,
    interrupts,
    join,
    launched,
    resuming_command,
    saying_if_a_rank_is_lost,
)
from .resuming import (
    checked_points,
    continue_batches,
    require_same_inputs,
    restore,
    start_from,
    trained_sae,
)
from .sae_run import SAERun, versions

logger = logging.getLogger(__name__)

SHOWN = 3
"""The most SAEs that the progress bar shows. The metrics of all are in their metrics.jsonl."""


def train(
    run: RunConfig,
    saes: dict[str, SAEConfig],
    hooks: Mapping[str, str] | None = None,
    *,
    resume: bool = False,
    group: str | None = None,
    on_start: Callable[[Sequence[Path], str], None] = lambda folders, device: None,
    rank_timeout: int = RANK_TIMEOUT,
) -> dict[str, Path]:
    """Train every SAE on the same text, save it and evaluate it on held-out text.

    The SAEs of one hook point are trained on the same batches. Several hook points read the same
    tokens in the same order, and the language model runs once for all of them:

        train(run, {"early": sae, "late": sae}, hooks={"late": "blocks.3.hook_mlp_out"})

    In a script that torchrun starts, every process calls it. The processes share the language model's work, and each
    trains, saves and evaluates some of the SAEs: see processes.py.

    The results of an SAE do not depend on the other SAEs of the run, on the number of processes, on logging, or on
    interruptions.

    Arguments:
        run: the settings that all SAEs share.
        saes: the settings of each SAE, by its name. A single SAE is written to `run.save_dir`, several to folders
            of their names in it.
        hooks: the hook points, by the name of the SAE (default: `run.hook`).
        resume: continue from the newest resume points in these folders. SAEs that stopped at different steps
            are continued one group after the other. `reading.read_run` returns `run`, `saes` and `hooks`.
        group: the name by which wandb groups the runs (default: that of the folder that holds them).
        on_start: called by the first process with the run folders and the device, before the language model is
            loaded.
        rank_timeout: with several processes, the seconds that one waits for the others.

    Returns: the run folder of each SAE, once all are trained and evaluated.

    Raises: a UserError that says what to change; Interrupted after SIGTERM or SIGINT. After an error, a single process
    saves what it has trained; several processes leave their last resume points.
    """
    planned = plan(run, saes, hooks, resume=resume)
    return carry_out(planned, group=group, on_start=on_start, rank_timeout=rank_timeout)


def train_saes(
    batches: Iterable[t.Tensor],
    saes: dict[str, SAEConfig],
    run: RunConfig,
    evaluator: Callable[[Any], Mapping[str, float]] | None = None,
) -> dict[str, Path]:
    """Train SAEs on batches of your own, without a language model. Every SAE is trained on every batch.

        train_saes(batches, {"a": TopKConfig(k=32)}, RunConfig(steps=1000, save_dir="runs/own"))

    Such a run can't be resumed. After an error or a signal, the weights so far are in checkpoints/.

    Arguments:
        batches: raw activations, (B, D), one batch per step. The first one decides the scale of `normalize`.
        saes: the settings of each SAE, by its name, see `train`.
        run: its settings of the model, the text and the evaluation are ignored.
        evaluator: called with each trained SAE, which takes raw activations. The metrics that it returns are
            written to metrics.json, where `vsae compare` finds them.

    Returns: the run folder of each SAE.

    Raises: TextError if there are fewer batches than steps; UserError for other mistakes; Interrupted after SIGTERM or
    SIGINT.
    """
    require(not launched().are_several, "batches", "an iterator", "one process to read it")
    others = iter(batches)
    first = next(others, None)
    if first is None or first.ndim != 2:
        given = "no batch" if first is None else tuple(first.shape)
        raise ConfigError(name="batches", value=given, expected="tensors of shape (B, D)")
    unknown = dict.fromkeys(("model", "hook", "data"), UNKNOWN)
    none: dict[str, Any] = dict.fromkeys(("activations", "max_norm_multiple", "eval_every"))
    changed = {"batch_size": len(first), "eval_tokens": 0, "save_every": "none"}
    settings = replace(run, **unknown, **none, **changed)
    folders = carry_out(plan(settings, saes), find=partial(OwnBatches, first, others))
    if evaluator is not None:
        for folder in folders.values():
            sae, _ = load_dictionary(folder, settings.device)
            found: Mapping[str, Any] = evaluator(sae)  # numbers, also torch's and numpy's
            plain = {name: x.item() if hasattr(x, "item") else x for name, x in found.items()}
            write_json(folder / EVALUATION, plain)
    return folders


def carry_out(
    planned: Plan,
    *,
    group: str | None = None,
    on_start: Callable[[Sequence[Path], str], None] = lambda folders, device: None,
    rank_timeout: int = RANK_TIMEOUT,
    find: Callable[..., Inputs] | None = None,
) -> dict[str, Path]:
    """Train the SAEs of a plan; see `train`.

    Arguments:
        find: finds the run's inputs (default: `find_inputs`).
    """
    processes = launched()
    planned = planned.on(without_auto(planned.settings.device))
    device = processes.device(planned.settings.device)
    with saying_if_a_rank_is_lost(lambda: continue_or_start_again(planned.folders)):
        join(rank_timeout, planned.settings.split)  # every rank has planned, and none has written
        _require_shared_folders(planned, processes)
        groups = planned.groups()
        if not groups:
            _log_finished_run(planned, processes)
        for behind in groups[1:]:
            where = ", ".join(map(str, behind.folders))
            logger.info("%s: stopped before the others; will be continued after them", where)
        failures: dict[Path, tuple[str, str | None]] = {}
        for each in groups:
            own_folders = [job.folder for job in each.dealt(processes.count)[processes.rank]]
            if not processes.is_first_of(planned.settings.split):
                own_folders = []
            with all_locked(own_folders), interrupts(processes.are_several) as signals:
                with _nothing_is_written(), _tf32(planned.settings.tf32):
                    training = prepare(
                        each, device, processes, signals, group, on_start, find or find_inputs
                    )
                run(training)
            failures |= training.failures()
        _require_none_failed(failures, [folder for each in groups for folder in each.folders])
    return {job.name: job.folder for job in planned.jobs}


@contextlib.contextmanager
def _nothing_is_written() -> Iterator[None]:
    """Add to an interruption inside that nothing was written."""
    try:
        yield
    except Interrupted as stop:
        raise stop.when("before the first step; nothing was written or changed") from stop


def _require_shared_folders(planned: Plan, processes: Processes) -> None:
    """Raise a TrainingError, on all ranks, unless all see the same resume points."""
    newest = {
        f"resume point in {folder}": str(max(steps_of(folder), default="none"))
        for folder in planned.folders
    }
    processes.require_alike(newest, "put run folders on storage that all machines share")


def _log_finished_run(planned: Plan, processes: Processes) -> None:
    """Say that a run is finished, and report it to wandb again if a sweep's agent asked.

    Raises: CheckpointError if its weights are damaged.
    """
    for job in planned.jobs:
        if not job.has_failed:
            load_dictionary(job.folder)
    logger.info("%s: already finished; nothing to do", planned.settings.save_dir)
    if processes.is_first:
        for job in planned.jobs:
            report_finished(job.folder, job.config)


# --- prepare


@dataclass
class Training:
    """A run's state in this process: its SAEs, their batches, and the step."""

    settings: RunConfig
    """The run's settings, with the device of this process."""
    inputs: Inputs
    batches: Batches
    """The batches, from the step at which the run begins or continues."""
    sae_runs: list[SAERun]
    """The SAEs of this process. One of several processes may have none."""
    folders: list[Path]
    """The run folders of all processes."""
    folder: Path
    """What `--resume` continues, see `Plan`."""
    points: list[ResumePoint]
    """The resume points without their weights. Empty if the run starts."""
    hashes: dict[str, str]
    """See `Inputs.hashes`."""
    group: str | None
    """The name by which wandb groups the runs."""
    processes: Processes
    signals: Interrupts
    step: int
    """The number of updates made so far."""
    saved_at: float
    """The time at which the last resume points were written, in seconds."""

    @property
    def active(self) -> list[SAERun]:
        """The SAEs that have not failed."""
        return [one for one in self.sae_runs if one.failure is None]

    @cached_property
    def labels(self) -> dict[str, str]:
        """The label of each SAE in the progress bar, by its folder."""
        configs = {
            str(one.folder): {
                "trainer": one.trainer.config,
                "run": {"settings": one.config.to_dict()},
            }
            for one in self.sae_runs
        }
        return labels(configs)

    def next_batches(self) -> dict[str, t.Tensor]:
        """The activations of this step by hook point, (B, D), in training units."""
        factors = {one.settings.hook: one.norm_factor for one in self.sae_runs}
        return {
            hook: x_BD.to(self.settings.device, t.float32).div_(factors[hook])
            for hook, x_BD in self.batches.next().items()
            if hook in factors
        }

    @property
    def is_point_due(self) -> bool:
        """Whether a resume point is due before this step. Processes may disagree, as their clocks differ."""
        every_steps, every_seconds = self.settings.save_interval()
        if every_seconds is not None:
            is_due = time.monotonic() - self.saved_at >= every_seconds
        else:
            is_due = every_steps is not None and self.step % every_steps == 0
        return is_due and self.step > 0

    def failures(self) -> dict[Path, tuple[str, str | None]]:
        """The failure and the remedy of each SAE that has failed, on all ranks, see `SAERun`. A collective."""
        own = {
            one.folder: (one.failure, one.remedy)
            for one in self.sae_runs
            if one.failure is not None
        }
        gathered = {f: what for each in self.processes.gather(own) for f, what in each.items()}
        return {folder: gathered[folder] for folder in self.folders if folder in gathered}

    def write_resume_points(self, saes: Sequence[SAERun]) -> None:
        """Write the resume points of these SAEs. Must be called before the batch of this step is taken."""
        places = self.batches.state_dicts()
        for one in saes:
            one.write_resume_point(self.step, places[one.settings.hook], self.hashes)
        self.saved_at = time.monotonic()


def prepare(
    planned: Plan,
    device: str,
    processes: Processes,
    signals: Interrupts,
    group: str | None,
    on_start: Callable[[Sequence[Path], str], None],
    find: Callable[..., Inputs],
) -> Training:
    """Open a run's inputs, and build or restore its SAEs.

    Makes all checks except those of wandb, the cheap ones first. See `carry_out` for the arguments.

    Arguments:
        device: the device of this process.
    """
    settings = replace(planned.settings, device=device)
    chosen_device(device)
    on_a_gpu = "False, or device='cuda'"
    require(not settings.tf32 or device.startswith("cuda"), "tf32", settings.tf32, on_a_gpu)
    inputs, jobs = _found(planned, settings, processes, signals, find)
    points = checked_points(planned.folders, jobs, processes) if planned.resume else None
    sources = [None if points else trained_sae(job.config.sae) for job in jobs]
    if processes.is_first:
        _warn_of_slow_bf16(settings)
        on_start(planned.folders, planned.settings.device)
    hashes = _loaded(inputs, settings, jobs, processes)
    batches, samples = inputs.training_batches(), _samples(inputs, settings, jobs)
    if points:
        require_same_inputs(jobs, points.of_jobs, hashes, versions())
        scales = continue_batches(batches, jobs, points.of_jobs, processes)
    else:
        scales = _measured_scales(batches)
        _warn_of_sinks(inputs, settings, _first_of(planned, jobs, processes))
    mesh = _mesh(settings.split, processes, device)
    sae_runs, of_jobs = [], points.of_jobs if points else [None] * len(jobs)
    for job, source, point in zip(jobs, sources, of_jobs, strict=True):
        hook, scale, part = inputs.hooks[job.hook], scales[job.hook], _part(job, mesh)
        trainer = _built(job, hook, scale, device, source, point, part)
        sae_runs.append(SAERun(job, trainer, scale, samples.get(job.hook)))
    return Training(
        settings=settings,
        inputs=inputs,
        batches=batches,
        sae_runs=sae_runs,
        folders=planned.folders,
        folder=planned.folder,
        points=[replace(point, trainer={}) for point in of_jobs if point],  # the weights are freed
        hashes=hashes,
        group=group,
        processes=processes,
        signals=signals,
        step=points.step if points else 0,
        saved_at=time.monotonic(),
    )


def _found(
    planned: Plan,
    settings: RunConfig,
    processes: Processes,
    signals: Interrupts,
    find: Callable[..., Inputs],
) -> tuple[Inputs, list[Job]]:
    """The run's inputs, not yet loaded, and the jobs of this process, which fit into memory."""
    before_batch = partial(_check, processes, signals)
    if processes.are_several and settings.activations is not None:
        before_batch = None  # each process reads when it needs to, and would wait for the others
    together = Ranks(processes.rank, processes.count, processes.gather)
    inputs = find(settings, planned.hooks, before_batch, group=together, language_model=None)
    dealt, on_cpu = planned.dealt(processes.count), settings.device.startswith("cpu")
    ranks = processes.on_this_machine if on_cpu else [processes.rank]
    beside = [job for rank in ranks for job in dealt[rank]]
    require_memory(beside, inputs.widths, settings.device)
    return inputs, dealt[processes.rank]


def _loaded(
    inputs: Inputs, settings: RunConfig, jobs: Sequence[Job], processes: Processes
) -> dict[str, str]:
    """Load a run's inputs. Returns their hashes, see `Inputs.hashes`; all processes read the same."""
    inputs.load(dict.fromkeys(job.hook for job in jobs))
    if settings.eval_tokens:
        inputs.require_held_out()
    hashes = inputs.hashes()
    if processes.are_several:
        read = {name.replace("_", " "): value for name, value in hashes.items()}
        read |= inputs.data_hashes()
        processes.require_alike(read, "copy the same files to every machine")
    return hashes


def _measured_scales(batches: Batches) -> dict[str, Scale]:
    """The size of the activations at each hook point. Fills the buffer: most of the wait."""
    squares = batches.mean_squared_norms()
    factors = batches.norm_factors(squares)
    return {hook: Scale(factors[hook], squares[hook] / factors[hook] ** 2) for hook in factors}


def _first_of(planned: Plan, jobs: Sequence[Job], processes: Processes) -> dict[str, None]:
    """The hook points of these jobs that no lower rank has."""
    lower = planned.dealt(processes.count)[: processes.rank]
    of_others = {job.hook for theirs in lower for job in theirs}
    return dict.fromkeys(job.hook for job in jobs if job.hook not in of_others)


def _built(
    job: Job,
    hook: HookPoint,
    scale: Scale,
    device: str,
    source: Dictionary | None,
    point: ResumePoint | None,
    part: Part,
) -> Trainer:
    """Build a trainer: with random weights, with those of a trained SAE, or from its resume point."""
    trainer = build_trainer(
        job.config.sae,
        energy=scale.energy,
        steps=job.config.run.steps,
        activation_dim=hook.activation_dim,
        layer=hook.layer,
        lm_name=job.config.run.model,
        hook=hook.name,
        device=device,
        dtype=job.config.run.dtype,
        name=job.folder.name,
        part=part,
    )
    if source is not None:
        start_from(trainer, source, scale.norm_factor, job.config.sae, hook)
    if point is not None:
        restore(trainer, point, job.folder, device)
    return trainer


def _mesh(split: int | None, processes: Processes, device: str) -> Any:
    """The processes that hold the parts of one SAE; None if one holds them all. A collective: every rank must call it, even
    one without an SAE."""
    if split is None or split == 1:
        return None
    from torch.distributed.device_mesh import init_device_mesh

    shape, axes = (processes.count // split, split), ("saes", "features")
    mesh = init_device_mesh(device.partition(":")[0], shape, mesh_dim_names=axes)
    return mesh["features"]


def _part(job: Job, mesh: Any) -> Part:
    """The part of an SAE's features that this process trains."""
    if job.config.run.split is None:
        return WHOLE
    from ..trainers.split import MeshPart, SplitPart

    dict_size = job.config.sae.dict_size
    return SplitPart(dict_size) if mesh is None else MeshPart(dict_size, mesh)


def _samples(inputs: Inputs, settings: RunConfig, jobs: Sequence[Job]) -> dict[str, Sample]:
    """The held-out activations to measure on during training, by hook point. They are read before the first step."""
    if settings.eval_every is None:
        return {}
    tokens = min(SAMPLE_TOKENS, settings.eval_tokens)
    return {hook: Sample(inputs.held_out(hook, tokens)) for hook in {job.hook for job in jobs}}


def _check(processes: Processes, signals: Interrupts) -> None:
    """Raise Interrupted on all ranks if any has received a signal. A collective: every rank must call it."""
    if number := processes.largest(signals.received or 0)[0]:
        raise Interrupted(Signals(number))


# --- run


def run(training: Training) -> None:
    """Take the steps, save, and evaluate."""
    settings, processes = training.settings, training.processes
    code = 1
    try:
        with training.signals.deferred():
            if not training.points:
                logs = [one.log for one in training.sae_runs if one.part.is_first]
                open_all(logs, training.group)  # may be refused
            processes.meet()  # every rank is prepared, and none has written
            _begin(training)
            with _tf32(settings.tf32):
                _take_all_steps(training)
            for one in training.active:
                one.save_final()
            trained = [one for one in training.active if one.part.is_first]
        if settings.eval_tokens and trained:
            _evaluate(training.inputs, trained, training.signals)
        code = 0
    except Interrupted as stop:
        code = stop.exit_code
        raise
    finally:
        for one in training.sae_runs:
            one.close(code)


def _begin(training: Training) -> None:
    """Start the run folders, or delete from them what was written after the resume points."""
    if training.points:
        for one, point in zip(training.sae_runs, training.points, strict=True):
            one.resume(point, training.group)
    else:
        for one in training.sae_runs:
            one.start(training.batches.by_hook[one.settings.hook].config)


def _take_all_steps(training: Training) -> None:
    """Take all steps, with a progress bar.

    An interruption is raised with the step and the command that continues. After an error, a single process saves what
    it has trained.
    """
    settings, processes = training.settings, training.processes
    # For the first process TQDM_DISABLE decides, e.g. in a sweep over devices.
    quiet: dict[str, Any] = {} if processes.is_first else {"disable": True}
    bar = progress(
        settings.steps * settings.batch_size,
        "tok",
        initial=training.step * settings.batch_size,
        unit_scale=True,
        **quiet,
    )
    try:
        _take_steps(training, bar)
    except Interrupted as stop:
        if not training.inputs.can_resume:
            _save_what_is_left(training)
            raise stop.when(f"at step {training.step}; the weights are in checkpoints/") from stop
        training.write_resume_points(training.active)
        processes.meet()  # torchrun kills the others 30 seconds after one has ended
        again = resuming_command([training.folder])
        raise stop.when(f"at step {training.step}; continue with `{again}`") from stop
    except Exception as error:
        if not processes.are_several:  # else the others may be at another place
            _save_what_is_left(training)
        if isinstance(error, NonFiniteError):
            raise error.within(f"step {training.step}") from error
        raise
    finally:
        bar.close()


def _take_steps(training: Training, bar: tqdm | ProgressLines) -> None:
    """Take the steps that are left, and write checkpoints, logs and resume points when they are due."""
    settings, checkpoints = training.settings, training.settings.checkpoint_steps()
    batches: dict[str, t.Tensor] = {}
    for step in range(training.step, settings.steps):
        training.step = step
        signal, is_point_due, are_any_active = training.processes.largest(
            training.signals.received or 0, training.is_point_due, len(training.active)
        )
        if signal:
            raise Interrupted(Signals(signal))
        if is_point_due:
            training.write_resume_points(training.active)
        if not are_any_active:
            return
        batches = training.next_batches()
        if step in checkpoints:
            for one in training.active:
                one.save_checkpoint(step)
        if step % settings.log_every == 0 or settings.is_measured(step):
            _check_and_log(training, batches, bar)
        for one in training.active:
            one.update(step, batches[one.settings.hook])
        bar.update(settings.batch_size)
    training.step = settings.steps
    if batches:  # else the run was resumed when all steps were done
        _check_and_log(training, batches, bar)
    if settings.save_every != "none":
        training.write_resume_points(training.active)


def _check_and_log(
    training: Training, batches: Mapping[str, t.Tensor], bar: tqdm | ProgressLines
) -> None:
    """Log the metrics of every SAE, and show those of the first few in the progress bar."""
    shown = {}
    for one in training.active:
        metrics = one.check_and_log(training.step, batches[one.settings.hook])
        if metrics is None:
            continue
        loss = metrics.get("loss", metrics["l2_loss"])
        shown[training.labels[str(one.folder)]] = (
            f"loss {loss:.3g} FVE {metrics['fve']:.3f} L0 {metrics['l0']:.0f}"
        )
    parts = [f"{name}: {text}" for name, text in list(shown.items())[:SHOWN]]
    if len(training.labels) == 1:  # its name would take the place of its numbers
        parts = list(shown.values())
    more = [f"and {len(shown) - SHOWN} more"] if len(shown) > SHOWN else []
    bar.set_postfix_str(" | ".join(parts + more))


def _save_what_is_left(training: Training) -> None:
    """Save the weights of every SAE after an error, and a resume point unless some SAEs have seen this step's batch."""
    step = training.step
    is_between_steps = training.batches.tokens_seen() == {step * training.settings.batch_size}
    is_resumable = is_between_steps and training.inputs.can_resume
    logger.error("stopped at step %d; saving the weights so far in checkpoints/", step)
    for one in training.active:
        try:
            one.save_checkpoint(step)
            if is_resumable:
                training.write_resume_points([one])
        except CheckpointError as full:
            logger.error("%s", full)


def _require_none_failed(
    failures: Mapping[Path, tuple[str, str | None]], folders: Sequence[Path]
) -> None:
    """Raise a TrainingError if any SAE in these folders has failed.

    Arguments:
        failures: see `Training.failures`.
    """
    if not failures:
        return
    instead = [remedy for _, remedy in failures.values() if remedy]
    if resumable := [folder for folder, (_, remedy) in failures.items() if remedy is None]:
        instead.append(f"continue with `{resuming_command(resumable)}`")
    if others := [str(folder) for folder in folders if folder not in failures]:
        instead.append(f"trained and saved: {', '.join(others)}")
    said = "; ".join(what for what, _ in failures.values())
    raise TrainingError(said, instead="; ".join(dict.fromkeys(instead)))


def _evaluate(inputs: Inputs, trained: list[SAERun], signals: Interrupts) -> None:
    """Evaluate trained SAEs on held-out text, and write their metrics.json."""
    try:
        signals.check()
        for hook in inputs.hooks:
            own = {one.name: one for one in trained if one.settings.hook == hook}
            if not own:
                continue
            saes = {name: (one.trained(), one.norm_factor) for name, one in own.items()}
            tokens = trained[0].settings.eval_tokens
            for name, metrics in measure(saes, inputs.held_out(hook, tokens)).items():
                own[name].record(metrics | {"measured_on": measured_on(own[name].settings)})
    except Interrupted as stop:
        where = in_shell(*(one.folder for one in trained))
        saved = "the training is done and saved"
        raise stop.when(f"in the evaluation; {saved}; continue with `vsae eval {where}`") from stop


# --- warnings, and torch's settings


def _warn_of_slow_bf16(settings: RunConfig) -> None:
    """Warn if this CPU lacks instructions for bfloat16."""
    is_slow = settings.device == "cpu" and t.backends.cpu.get_cpu_capability() == "AVX2"
    if is_slow and settings.dtype == "bfloat16":
        logger.warning(
            "dtype='bfloat16': this CPU has no instructions for it (AVX2), and matmuls take several times as "
            "long as in float32; leave it out unless the numbers have to be those of bfloat16"
        )


@contextlib.contextmanager
def _tf32(wanted: bool) -> Iterator[None]:
    """Let CUDA multiply float32 matrices in TF32 inside, if `wanted`. The final evaluation is in float32."""
    if not wanted:
        yield
        return
    products: Any = t.backends.cuda.matmul
    name, value = "allow_tf32", True
    try:
        former = products.allow_tf32
    except RuntimeError:  # the caller has set it by its newer name
        name, value, former = "fp32_precision", "tf32", products.fp32_precision
    setattr(products, name, value)
    try:
        yield
    finally:
        setattr(products, name, former)


def _warn_of_sinks(inputs: Inputs, settings: RunConfig, hooks: Iterable[str]) -> None:
    """Warn of attention sinks among the first tokens of the text, unless they are left out."""
    if inputs.language_model is None or settings.max_norm_multiple is not None:
        return
    for hook in hooks:
        finder = SinkFinder(inputs.language_model.tokenizer)
        for batch in inputs.contexts(hook, "train", SAMPLE_TOKENS):
            finder.add(batch)
        if sinks := finder.sinks():
            logger.warning(
                "%s: some activations are far larger than the rest, up to %s times the median norm: %s."
                " They dominate the loss and FVE. Use max_norm_multiple=10 to leave them out (the preset"
                " recommended does).",
                hook,
                f"{sinks.norm_ratio:,.0f}",
                sinks.where,
            )
