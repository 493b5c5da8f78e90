"""Training from start to end: plan, prepare, build or restore, take the steps, save, evaluate.

`plan`, in plan.py, checks all that can be checked without torch. `carry_out` makes a `Run` of it and lets it train. The
SAEs of a run share one language model, and those of a hook point share one buffer.

If torchrun has started several processes, each has a `Run` of its own SAEs. They meet where a method of `Processes` or
`Interrupts` is called.
"""

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch as t
from tqdm import tqdm

from ..activations.inputs import Inputs, find_inputs
from ..activations.own_batches import OwnBatches, checked
from ..codes.sinks import warn_of_sinks
from ..config.architectures import TRAINED
from ..config.checks import changed, require
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
from ..evaluation.folders import OpenedFolders, evaluated
from ..evaluation.measure import Sample
from ..evaluation.symptoms import symptoms_of
from ..progress import progress
from ..run_folder.files import EVALUATION, FAILED, OF, all_locked, write_json
from ..run_folder.reading import steps_of
from ..run_folder.sae_folder import find_sae
from ..run_folder.weights import load_sae
from ..trainers.base import Trainer
from ..trainers.build import build_trainer
from ..trainers.parts import Part
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
    continue_batches,
    points_of,
    require_same_inputs,
    restore,
    start_from,
    trained_sae,
)
from .sae_run import Failure, SAERun, versions

logger = logging.getLogger(__name__)

SHOWN = 3
"""The most SAEs that the progress bar shows. The metrics of all are in their metrics.jsonl."""
MOST_KEPT = 16_000_000
"""The final evaluation keeps the codes of SAEs trained together if they have at most so many selections: 140 MB. For more, the
first command that needs them encodes the text again."""


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
    none: dict[str, Any] = dict.fromkeys(
        ("target", "activations", "max_norm_multiple", "eval_every")
    )
    own = {"batch_size": len(first), "eval_tokens": 0, "save_every": "none"}
    settings = replace(run, **unknown, **none, **own)
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
            is_writer = processes.is_first_of(planned.settings.split)
            written = [job.folder for job in stage.jobs_of(processes)] if is_writer else []
            with all_locked(written), interrupts(processes) as signals:
                try:
                    with tf32_products(planned.settings.tf32):
                        run = Run(stage, processes, device, signals, find, on_start)
                except Interrupted as stop:
                    raise stop.when(
                        "before the first step; nothing was written or changed"
                    ) from stop
                run.train_and_evaluate(group)
            failures |= run.failures()
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


class Run:
    """The SAEs of a plan that this process trains, their batches, and the step.

    Made with all checks except those of wandb. A device that can't be used, SAEs that don't fit into memory, and resume
    points of other settings are refused before the language model is loaded. No run folder is changed before
    `train_and_evaluate`. See `carry_out` for the arguments.

    Attributes:
        settings: those that the SAEs share, with the device of this process.
        saes: one of several processes may have none.
        scales: the size of the activations at each hook point of these SAEs.
        batches: from the step at which the run starts.
        step: the number of updates made so far.
    """

    def __init__(
        self,
        planned: Plan,
        processes: Processes,
        device: str,
        signals: Interrupts,
        find: Callable[..., Inputs],
        on_start: Callable[[Sequence[Path], str], None],
    ):
        self.planned, self.processes, self.signals = planned, processes, signals
        self.settings = settings = changed(planned.settings, device=device)
        jobs = planned.jobs_of(processes)
        chosen_device(device)
        is_on_gpu = device.startswith("cuda")
        require(not settings.tf32 or is_on_gpu, "tf32", settings.tf32, "False, or device='cuda'")
        if processes.is_first:
            warn_of_slow_bf16(device, settings.dtype, _multiplied_by_torch(planned))
        self.inputs = find(
            settings, planned.hooks, signals.check_all, group=processes.ranks, language_model=None
        )
        require_memory(planned.in_memory_of(processes, device), self.inputs.widths, device)
        step, points, _ = points_of(planned, processes)
        sources = [trained_sae(job.config.sae) if step is None else None for job in jobs]
        if processes.is_first:
            on_start(planned.folders, planned.settings.device)
        hooks = dict.fromkeys(job.hook for job in jobs)
        self._load_inputs(hooks)
        self.batches = self.inputs.training_batches()
        samples = self._samples(hooks)
        self.step = 0
        if step is None:
            scales = self.batches.scales()  # fills the buffers: most of the wait
            self.scales = {hook: scales[hook] for hook in hooks}
            if settings.max_norm_multiple is None:
                warn_of_sinks(self.inputs, planned.new_hooks_of(processes), SAMPLE_TOKENS)
        else:
            require_same_inputs(points, settings.model, self._hashes, versions())
            of_hooks = {job.hook: points[job.folder] for job in jobs}
            continue_batches(self.batches, of_hooks, processes)
            self.step, self.scales = step, {hook: point.scale for hook, point in of_hooks.items()}
        part_of = processes.parts(settings.split, device)
        self.saes: list[SAERun] = []
        for job, source in zip(jobs, sources, strict=True):
            trainer = self._trainer(job, part_of(job.config.sae.dict_size), is_new=step is None)
            scale, point = self.scales[job.hook], points.get(job.folder)
            if source is not None:
                hook = self.inputs.hooks[job.hook]
                start_from(trainer, source, scale.norm_factor, job.config.sae, hook)
            if point is not None:
                restore(trainer, point, job.folder, device)
                point = replace(point, trainer={})  # frees the weights
            self.saes.append(SAERun(job, trainer, scale, samples.get(job.hook), point))
        self._saved_at = time.monotonic()

    def _load_inputs(self, hooks: Collection[str]) -> None:
        """Load the inputs. All processes must read the same."""
        inputs, processes = self.inputs, self.processes
        inputs.load(hooks)
        if self.settings.eval_tokens:
            inputs.require_held_out()
        self._hashes = inputs.hashes()
        if processes.are_several:
            read = self._hashes | inputs.data_hashes()
            processes.require_alike(read, "copy the same files to every machine")

    def _samples(self, hooks: Iterable[str]) -> dict[str, Sample]:
        """The held-out activations to measure on during training, by hook point."""
        if self.settings.eval_every is None:
            return {}
        tokens = min(SAMPLE_TOKENS, self.settings.eval_tokens)
        return {hook: Sample(self.inputs.held_out(hook, tokens)) for hook in hooks}

    def _trainer(self, job: Job, part: Part, *, is_new: bool) -> Trainer:
        """The trainer of an SAE, with random weights, or if it is new those from the data."""
        hook = self.inputs.hooks[job.hook]
        is_from_data = is_new and job.config.sae.start == "data"
        return build_trainer(
            job.config,
            energy=self.scales[job.hook].energy,
            activation_dim=hook.activation_dim,
            layer=hook.layer,
            name=job.folder.name,
            device=self.settings.device,
            part=part,
            first_fill=self.batches.by_hook[job.hook].first_rows() if is_from_data else None,
        )

    @property
    def active(self) -> list[SAERun]:
        """The SAEs that have not failed."""
        return [sae for sae in self.saes if sae.failure is None]

    def failures(self) -> dict[Path, Failure]:
        """Why SAEs have failed, on all ranks. Every rank must call it."""
        own = {sae.folder: sae.failure for sae in self.saes if sae.failure is not None}
        failures = {f: why for of_rank in self.processes.gather(own) for f, why in of_rank.items()}
        return {f: failures[f] for f in self.planned.folders if f in failures}

    def train_and_evaluate(self, wandb_group: str | None) -> None:
        """Take the steps, save, and evaluate."""
        code = 1
        try:
            with self.signals.deferred():
                new = [sae for sae in self.saes if sae.point is None and sae.part.is_first]
                open_all([sae.log for sae in new], wandb_group)  # may be refused
                self.processes.meet()  # every rank is prepared, and none has written
                for sae in self.saes:
                    sae.begin(self.batches.by_hook[sae.hook].config, wandb_group)
                with tf32_products(self.settings.tf32):
                    self._take_all_steps()
                for sae in self.active:
                    sae.save_final()
            if self.settings.eval_tokens:
                self._evaluate()
            code = 0
        except Interrupted as stop:
            code = stop.exit_code
            raise
        finally:
            for sae in self.saes:
                sae.close(code)

    def _take_all_steps(self) -> None:
        """Take all steps, with a progress bar.

        An interruption is raised with the step and the command that continues. After an error, a single process saves
        what it has trained.
        """
        size = self.settings.batch_size
        # For the first process TQDM_DISABLE decides, e.g. in a sweep over devices.
        quiet: dict[str, Any] = {} if self.processes.is_first else {"disable": True}
        whole, done = self.settings.steps * size, self.step * size
        bar = progress(whole, "tok", initial=done, unit_scale=True, **quiet)
        try:
            self._take_steps(bar)
        except Interrupted as stop:
            raise stop.when(f"at step {self.step}; {self._saved_after_signal()}") from stop
        except Exception as error:
            if not self.processes.are_several:  # else the others may be at another place
                self._save_what_is_left()
            if isinstance(error, NonFiniteError):
                raise error.within(f"step {self.step}") from error
            raise
        finally:
            bar.close()

    def _take_steps(self, bar: tqdm) -> None:
        """Take the steps that are left, and write checkpoints, logs and resume points when they are due."""
        settings, checkpoints = self.settings, self.settings.checkpoint_steps()
        batches: dict[str, t.Tensor] = {}
        for step in range(self.step, settings.steps):
            self.step = step
            is_point_due, n_active = self.signals.agree(self._is_point_due, len(self.active))
            if is_point_due:
                self._write_resume_points(self.active)
            if n_active == 0:
                return
            batches = self._next_batches()
            if step in checkpoints:
                self.batches.require_finite()
                for sae in self.active:
                    sae.save_checkpoint(step)
            if step % settings.log_every == 0 or settings.is_measured(step):
                self._check_and_log(batches, bar)
            for sae in self.active:
                sae.update(step, batches[sae.hook])
            bar.update(settings.batch_size)
        self.step = settings.steps
        if batches:  # else the run was resumed when all steps were done
            self._check_and_log(batches, bar)
        if settings.save_every != "none":
            self._write_resume_points(self.active)

    def _next_batches(self) -> dict[str, t.Tensor]:
        """The activations of this step by hook point, (B, D), in training units; (B, 2D) of a pair."""
        batches = {
            hook: x_BD.to(self.settings.device, t.float32)
            for hook, x_BD in self.batches.next().items()
            if hook in self.scales
        }
        for hook, x_BD in batches.items():
            factors = self.scales[hook].factors
            for side_BD, factor in zip(x_BD.chunk(len(factors), 1), factors, strict=True):
                side_BD.div_(factor)
        return batches

    def _check_and_log(self, batches: Mapping[str, t.Tensor], bar: tqdm) -> None:
        """Log the metrics of every SAE, and show those of the first few in the progress bar."""
        self.batches.require_finite()
        shown = []
        for sae in self.active:
            metrics = sae.check_and_log(self.step, batches[sae.hook])
            if metrics is None:
                continue
            loss = metrics["loss"] if "loss" in metrics else metrics["l2_loss"]
            name = f"{sae.name}: " if len(self.saes) > 1 else ""
            shown.append(f"{name}loss {loss:.3g} FVE {metrics['fve']:.3f} L0 {metrics['l0']:.0f}")
        more = [f"and {len(shown) - SHOWN} more"] if len(shown) > SHOWN else []
        bar.set_postfix_str(" | ".join(shown[:SHOWN] + more))

    @property
    def _is_point_due(self) -> bool:
        """Whether a resume point is due before this step. Processes may disagree, as their clocks differ."""
        every_steps, every_seconds = self.settings.save_interval()
        if every_seconds is not None:
            is_due = time.monotonic() - self._saved_at >= every_seconds
        else:
            is_due = every_steps is not None and self.step % every_steps == 0
        return is_due and self.step > 0

    def _write_resume_points(self, saes: Sequence[SAERun]) -> None:
        """Write the resume points of these SAEs. Must be called before the batch of this step is taken."""
        places = self.batches.state_dict()
        for sae in saes:
            sae.write_resume_point(self.step, places[sae.hook], self._hashes)
        self._saved_at = time.monotonic()

    def _saved_after_signal(self) -> str:
        """Save what can continue after a signal. Returns what the user can do with it."""
        if not self.inputs.can_resume:
            self._save_what_is_left()
            return "the weights are in checkpoints/"
        self._write_resume_points(self.active)
        self.processes.meet()  # torchrun kills the others 30 seconds after one has ended
        return f"continue with `{resuming_command([self.planned.folder])}`"

    def _save_what_is_left(self) -> None:
        """Save the weights of every SAE after an error, and a resume point unless some SAEs have seen this step's batch."""
        is_between_steps = self.batches.tokens_seen() == {self.step * self.settings.batch_size}
        is_resumable = is_between_steps and self.inputs.can_resume
        logger.error("stopped at step %d; saving the weights so far in checkpoints/", self.step)
        for sae in self.active:
            try:
                sae.save_checkpoint(self.step)
                if is_resumable:
                    self._write_resume_points([sae])
            except CheckpointError as full:
                logger.error("%s", full)

    def _evaluate(self) -> None:
        """Evaluate the trained SAEs on held-out text, and write their metrics.json."""
        trained = [sae for sae in self.active if sae.part.is_first]
        if not trained:
            return
        try:
            self.signals.check()
            for hook in dict.fromkeys(sae.hook for sae in trained):
                own = {sae.name: sae for sae in trained if sae.hook == hook}
                saes = {name: sae.trained() for name, sae in own.items()}
                folders = {name: find_sae(sae.folder) for name, sae in own.items()}
                run, tokens = self.settings.at(hook), self.settings.eval_tokens
                keep = _are_small([sae.config.sae for sae in own.values()], tokens)
                language_model = self.inputs.language_model
                opened = OpenedFolders(run, saes, tokens, folders, language_model, keep)
                for name, metrics in evaluated(opened, tokens).items():
                    own[name].record(metrics, folders[name])
        except Interrupted as stop:
            where = in_shell(*(sae.folder for sae in trained))
            saved = "the training is done and saved"
            raise stop.when(
                f"in the evaluation; {saved}; continue with `vsae eval {where}`"
            ) from stop


def _are_small(saes: Sequence[SAEConfig], tokens: int) -> bool:
    """Whether the codes of these SAEs on so many tokens have at most MOST_KEPT selections."""
    ks = [sae.kept_per_token for sae in saes]
    return tokens * sum(k or MOST_KEPT for k in ks) <= MOST_KEPT


def _multiplied_by_torch(planned: Plan) -> list[str]:
    """The parts of a run that have matmuls in its dtype, and don't compute them by `trainers/matmuls.py`."""
    settings = planned.settings
    rows = [TRAINED[job.config.sae.architecture] for job in planned.jobs]
    measures_ce = settings.eval_tokens > 0 and settings.model != UNKNOWN
    parts = ["the language model"] if settings.activations is None or measures_ce else []
    return parts + sorted({f"upstream's {row.title}" for row in rows if row.is_adapted})
