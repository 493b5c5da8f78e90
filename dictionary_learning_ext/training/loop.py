"""Training from start to end: plan, prepare, build or restore, take the steps, save, evaluate.

`plan`, in plan.py, checks all that can be checked without torch. `carry_out` trains what was planned: `prepare` makes
all other checks and changes no run folder, then `run` takes the steps, saves and evaluates. The SAEs of a run share one
language model, and those of a hook point share one buffer.

If torchrun has started several processes, each runs all of this for its own SAEs. They meet where a method of
`Processes` or `Interrupts` is called.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch as t
from tqdm import tqdm

from ..activations.batches import Batches
from ..activations.inputs import Inputs, find_inputs
from ..activations.own_batches import OwnBatches, checked
from ..codes.sinks import warn_of_sinks
from ..config.architectures import TRAINED
from ..config.checks import require
from ..config.run import SAMPLE_TOKENS, UNKNOWN, RunConfig
from ..config.sae import SAEConfig
from ..devices import chosen_device, tf32_products, warn_of_slow_bf16, without_auto
from ..errors import (
    CheckpointError,
    Interrupted,
    NonFiniteError,
    TextError,
    TrainingError,
    in_shell,
)
from ..evaluation.measure import Sample, measure
from ..evaluation.symptoms import symptoms_of
from ..progress import ProgressLines, progress
from ..run_folder.files import EVALUATION, FAILED, OF, all_locked, write_json
from ..run_folder.reading import steps_of
from ..run_folder.resume_points import Scale
from ..run_folder.sae_folder import find_sae
from ..run_folder.weights import load_sae
from ..trainers.build import build_trainer
from .logs import open_all, report_finished
from .plan import Plan, Share, plan, require_memory
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
from .resuming import Start, continue_batches, require_same_inputs, restore, start_from, start_of
from .sae_run import Failure, SAERun, versions

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
    folders = carry_out(planned, group=group, on_start=on_start, rank_timeout=rank_timeout)
    if launched().is_first:
        _log_symptoms(folders)
    return folders


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
    if first is None:
        raise TextError(
            "there are no batches", instead="if a generator was used up, make a new one"
        )
    checked(first, 0)
    if not first.isfinite().all():
        raise NonFiniteError("batch 0 has NaN or infinite activations")
    unknown = dict.fromkeys(("model", "hook", "data"), UNKNOWN)
    none: dict[str, Any] = dict.fromkeys(("activations", "max_norm_multiple", "eval_every"))
    changed = {"batch_size": len(first), "eval_tokens": 0, "save_every": "none"}
    settings = replace(run, **unknown, **none, **changed)
    folders = carry_out(plan(settings, saes), find=partial(OwnBatches, first, others))
    if evaluator is not None:
        for folder in folders.values():
            sae = find_sae(folder)
            # torch's and numpy's numbers, too
            metrics: Mapping[str, Any] = evaluator(load_sae(sae, settings.device))
            plain = {name: x.item() if hasattr(x, "item") else x for name, x in metrics.items()}
            write_json(folder / EVALUATION, plain | {OF: {"weights": sae.hash}})
    _log_symptoms(folders)
    return folders


def _log_symptoms(folders: Mapping[str, Path]) -> None:
    """Log what looks wrong with trained SAEs."""
    for folder in folders.values():
        for symptom in symptoms_of(find_sae(folder)):
            logger.warning("%s looks bad: %s", folder, symptom)


def carry_out(
    planned: Plan,
    *,
    group: str | None = None,
    on_start: Callable[[Sequence[Path], str], None] = lambda folders, device: None,
    rank_timeout: int = RANK_TIMEOUT,
    find: Callable[..., Inputs] = find_inputs,
) -> dict[str, Path]:
    """Train the SAEs of a plan; see `train`.

    Arguments:
        find: finds the run's inputs.
    """
    processes = launched()
    planned = planned.on(without_auto(planned.settings.device))
    device = processes.device(planned.settings.device)
    with saying_if_a_rank_is_lost(lambda: continue_or_start_again(planned.folders)):
        join(rank_timeout, planned.settings.split)  # every rank has planned, and none has written
        newest = {
            f"resume point in {folder}": str(max(steps_of(folder), default="none"))
            for folder in planned.folders
        }
        processes.require_alike(newest, "put run folders on storage that all machines share")
        stages, again = planned.stages(), "to train a failed SAE again, delete its folder"
        failures = {
            job.folder: Failure(f"{job.folder}: failed earlier, see {FAILED} there", again)
            for job in planned.jobs
            if planned.resume and job.has_failed
        }
        if not stages and not failures:
            _log_finished_run(planned, processes)
        for stage in stages:
            share = stage.share(processes, device)
            with all_locked(share.written), interrupts(processes) as signals:
                try:
                    with tf32_products(planned.settings.tf32):
                        training = prepare(share, signals, find, on_start)
                except Interrupted as stop:
                    raise stop.when(
                        "before the first step; nothing was written or changed"
                    ) from stop
                train_and_evaluate(training, group)
            failures |= training.failures()
        _require_none_failed(failures, planned.folders)
    return {job.name: job.folder for job in planned.jobs}


def _log_finished_run(planned: Plan, processes: Processes) -> None:
    """Say that a run is finished, and report it to wandb again if a sweep's agent asked.

    Raises: CheckpointError if its weights are damaged.
    """
    for job in planned.jobs:
        load_sae(find_sae(job.folder))
    logger.info("%s: already finished; nothing to do", planned.settings.save_dir)
    if processes.is_first:
        for job in planned.jobs:
            report_finished(job.folder, job.config)


# --- prepare


def prepare(
    share: Share,
    signals: Interrupts,
    find: Callable[..., Inputs],
    on_start: Callable[[Sequence[Path], str], None],
) -> "Training":
    """Open a run's inputs, and build or restore its SAEs.

    Makes all checks except those of wandb. A device that can't be used, SAEs that don't fit into memory, and resume
    points of other settings are refused before the language model is loaded. See `carry_out` for the arguments.
    """
    settings, processes = share.settings, share.processes
    chosen_device(settings.device)
    is_on_gpu = settings.device.startswith("cuda")
    require(not settings.tf32 or is_on_gpu, "tf32", settings.tf32, "False, or device='cuda'")
    if processes.is_first:
        warn_of_slow_bf16(settings.device, settings.dtype, _multiplied_by_torch(share))
    inputs = find(
        settings, share.planned.hooks, signals.check_all, group=processes.ranks, language_model=None
    )
    require_memory(share.in_memory, inputs.widths, settings.device)
    start = start_of(share)
    if processes.is_first:
        on_start(share.planned.folders, share.planned.settings.device)
    training = _opened(share, signals, inputs, start)
    training.sae_runs += _built(training, start)
    return training


def _multiplied_by_torch(share: Share) -> list[str]:
    """The parts of a run that have matmuls in its dtype, and don't compute them by `trainers/matmuls.py`."""
    settings = share.settings
    rows = [TRAINED[job.config.sae.architecture] for job in share.planned.jobs]
    measures_ce = settings.eval_tokens > 0 and settings.model != UNKNOWN
    parts = ["the language model"] if settings.activations is None or measures_ce else []
    return parts + sorted({f"upstream's {row.title}" for row in rows if row.is_adapted})


def _opened(share: Share, signals: Interrupts, inputs: Inputs, start: Start) -> "Training":
    """Load the inputs, and read as far as the run starts. All processes must read the same."""
    settings, hooks = share.settings, dict.fromkeys(job.hook for job in share.jobs)
    inputs.load(hooks)
    if settings.eval_tokens:
        inputs.require_held_out()
    hashes = inputs.hashes()
    if share.processes.are_several:
        read = hashes | inputs.data_hashes()
        share.processes.require_alike(read, "copy the same files to every machine")
    batches, samples = inputs.training_batches(), {}
    if settings.eval_every is not None:
        tokens = min(SAMPLE_TOKENS, settings.eval_tokens)
        samples = {hook: Sample(inputs.held_out(hook, tokens)) for hook in hooks}
    if start.points is not None:
        require_same_inputs(share.jobs, start.points, hashes, versions())
        scales = continue_batches(batches, share, start.points)
    else:
        squares = batches.mean_squared_norms()  # fills the buffer: most of the wait
        factors = batches.norm_factors(squares)
        scales = {
            hook: Scale(of[-1], squares[hook][-1] / of[-1] ** 2, of[0] if len(of) > 1 else None)
            for hook, of in factors.items()
        }
        if settings.max_norm_multiple is None:
            warn_of_sinks(inputs, share.hooks, SAMPLE_TOKENS)
    return Training(share, signals, inputs, batches, scales, samples, hashes, start.step)


def _built(training: "Training", start: Start) -> Iterator[SAERun]:
    """Build the SAEs: with random weights, from the data, with those of a trained SAE, or from their resume points."""
    settings, share = training.settings, training.share
    part_of = share.processes.parts(settings.split, settings.device)
    points = start.points or [None] * len(share.jobs)
    for job, source, point in zip(share.jobs, start.sources, points, strict=True):
        config, hook = job.config.sae, training.inputs.hooks[job.hook]
        scale, batches = training.scales[job.hook], training.batches.by_hook[job.hook]
        is_from_data = config.start == "data" and point is None
        trainer = build_trainer(
            config,
            energy=scale.energy,
            steps=settings.steps,
            activation_dim=hook.activation_dim,
            layer=hook.layer,
            lm_name=settings.model,
            hook=hook.name,
            device=settings.device,
            dtype=settings.dtype,
            name=job.folder.name,
            is_transcoder=scale.input_factor is not None,
            part=part_of(config.dict_size),
            first_fill=batches.first_rows() if is_from_data else None,
        )
        if source is not None:
            start_from(trainer, source, scale.norm_factor, config, hook)
        if point is not None:
            restore(trainer, point, job.folder, settings.device)
            point = replace(point, trainer={})  # frees the weights
        yield SAERun(job, trainer, scale, training.samples.get(job.hook), point)


# --- run


@dataclass
class Training:
    """A run's state in this process: its SAEs, their batches, and the step."""

    share: Share
    signals: Interrupts
    inputs: Inputs
    batches: Batches
    """The batches, from the step at which the run starts."""
    scales: dict[str, Scale]
    """The size of the activations at each hook point."""
    samples: dict[str, Sample]
    """The held-out activations to measure on during training, by hook point."""
    hashes: dict[str, str]
    """See `Inputs.hashes`."""
    step: int
    """The number of updates made so far."""
    sae_runs: list[SAERun] = field(default_factory=list)
    """The SAEs of this process. One of several processes may have none."""
    saved_at: float = field(default_factory=lambda: time.monotonic())
    """The time at which the last resume points were written, in seconds."""

    @property
    def settings(self) -> RunConfig:
        """The run's settings, with the device of this process."""
        return self.share.settings

    @property
    def active(self) -> list[SAERun]:
        """The SAEs that have not failed."""
        return [sae for sae in self.sae_runs if sae.failure is None]

    def next_batches(self) -> dict[str, t.Tensor]:
        """The activations of this step by hook point, (B, D), in training units; (B, 2D) of a pair."""
        scales = {sae.settings.site: sae.scale for sae in self.sae_runs}
        batches = {
            hook: x_BD.to(self.settings.device, t.float32)
            for hook, x_BD in self.batches.next().items()
            if hook in scales
        }
        for hook, x_BD in batches.items():
            scale = scales[hook]
            factors = [f for f in (scale.input_factor, scale.norm_factor) if f is not None]
            for side_BD, factor in zip(x_BD.chunk(len(factors), 1), factors, strict=True):
                side_BD.div_(factor)
        return batches

    @property
    def is_point_due(self) -> bool:
        """Whether a resume point is due before this step. Processes may disagree, as their clocks differ."""
        every_steps, every_seconds = self.settings.save_interval()
        if every_seconds is not None:
            is_due = time.monotonic() - self.saved_at >= every_seconds
        else:
            is_due = every_steps is not None and self.step % every_steps == 0
        return is_due and self.step > 0

    def failures(self) -> dict[Path, Failure]:
        """Why SAEs have failed, on all ranks. Every rank must call it."""
        own = {sae.folder: sae.failure for sae in self.sae_runs if sae.failure is not None}
        failures = {
            f: why for of_rank in self.share.processes.gather(own) for f, why in of_rank.items()
        }
        return {f: failures[f] for f in self.share.planned.folders if f in failures}

    def write_resume_points(self, saes: Sequence[SAERun]) -> None:
        """Write the resume points of these SAEs. Must be called before the batch of this step is taken."""
        places = self.batches.state_dict()
        for sae in saes:
            sae.write_resume_point(self.step, places[sae.settings.site], self.hashes)
        self.saved_at = time.monotonic()


def train_and_evaluate(training: Training, wandb_group: str | None) -> None:
    """Take the steps, save, and evaluate."""
    code = 1
    try:
        with training.signals.deferred():
            new = [sae for sae in training.sae_runs if sae.point is None and sae.part.is_first]
            open_all([sae.log for sae in new], wandb_group)  # may be refused
            training.share.processes.meet()  # every rank is prepared, and none has written
            for sae in training.sae_runs:
                sae.begin(training.batches.by_hook[sae.settings.site].config, wandb_group)
            with tf32_products(training.settings.tf32):
                _take_all_steps(training)
            for sae in training.active:
                sae.save_final()
        if training.settings.eval_tokens:
            _evaluate(training)
        code = 0
    except Interrupted as stop:
        code = stop.exit_code
        raise
    finally:
        for sae in training.sae_runs:
            sae.close(code)


def _take_all_steps(training: Training) -> None:
    """Take all steps, with a progress bar.

    An interruption is raised with the step and the command that continues. After an error, a single process saves what
    it has trained.
    """
    settings, processes = training.settings, training.share.processes
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
        raise stop.when(f"at step {training.step}; {_saved_after_signal(training)}") from stop
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
        is_point_due, n_active = training.signals.agree(training.is_point_due, len(training.active))
        if is_point_due:
            training.write_resume_points(training.active)
        if n_active == 0:
            return
        batches = training.next_batches()
        if step in checkpoints:
            training.batches.require_finite()
            for sae in training.active:
                sae.save_checkpoint(step)
        if step % settings.log_every == 0 or settings.is_measured(step):
            _check_and_log(training, batches, bar)
        for sae in training.active:
            sae.update(step, batches[sae.settings.site])
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
    training.batches.require_finite()
    shown = []
    for sae in training.active:
        metrics = sae.check_and_log(training.step, batches[sae.settings.site])
        if metrics is None:
            continue
        loss = metrics["loss"] if "loss" in metrics else metrics["l2_loss"]
        name = f"{sae.name}: " if len(training.sae_runs) > 1 else ""
        shown.append(f"{name}loss {loss:.3g} FVE {metrics['fve']:.3f} L0 {metrics['l0']:.0f}")
    more = [f"and {len(shown) - SHOWN} more"] if len(shown) > SHOWN else []
    bar.set_postfix_str(" | ".join(shown[:SHOWN] + more))


def _saved_after_signal(training: Training) -> str:
    """Save what can continue after a signal. Returns what the user can do with it."""
    if not training.inputs.can_resume:
        _save_what_is_left(training)
        return "the weights are in checkpoints/"
    training.write_resume_points(training.active)
    training.share.processes.meet()  # torchrun kills the others 30 seconds after one has ended
    return f"continue with `{resuming_command([training.share.planned.folder])}`"


def _save_what_is_left(training: Training) -> None:
    """Save the weights of every SAE after an error, and a resume point unless some SAEs have seen this step's batch."""
    step = training.step
    is_between_steps = training.batches.tokens_seen() == {step * training.settings.batch_size}
    is_resumable = is_between_steps and training.inputs.can_resume
    logger.error("stopped at step %d; saving the weights so far in checkpoints/", step)
    for sae in training.active:
        try:
            sae.save_checkpoint(step)
            if is_resumable:
                training.write_resume_points([sae])
        except CheckpointError as full:
            logger.error("%s", full)


def _require_none_failed(failures: Mapping[Path, Failure], folders: Sequence[Path]) -> None:
    """Raise a TrainingError if any SAE in these folders has failed."""
    if not failures:
        return
    instead = [failure.remedy for failure in failures.values() if failure.remedy]
    if resumable := [folder for folder, failure in failures.items() if failure.remedy is None]:
        instead.append(f"continue with `{resuming_command(resumable)}`")
    if others := [str(folder) for folder in folders if folder not in failures]:
        instead.append(f"trained and saved: {', '.join(others)}")
    said = "; ".join(failure.said for failure in failures.values())
    raise TrainingError(said, instead="; ".join(dict.fromkeys(instead)))


def _evaluate(training: Training) -> None:
    """Evaluate the trained SAEs on held-out text, and write their metrics.json."""
    trained = [sae for sae in training.active if sae.part.is_first]
    if not trained:
        return
    inputs, settings = training.inputs, training.settings
    try:
        training.signals.check()
        for hook in inputs.hooks:
            own = {sae.name: sae for sae in trained if sae.settings.site == hook}
            if not own:
                continue
            saes = {name: (sae.trained(), sae.norm_factor) for name, sae in own.items()}
            for name, metrics in measure(saes, inputs.held_out(hook, settings.eval_tokens)).items():
                own[name].record(metrics)
    except Interrupted as stop:
        where = in_shell(*(sae.folder for sae in trained))
        saved = "the training is done and saved"
        raise stop.when(f"in the evaluation; {saved}; continue with `vsae eval {where}`") from stop
