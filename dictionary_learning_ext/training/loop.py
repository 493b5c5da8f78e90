"""The training loop: one language model, a buffer for each hook point, one or many SAEs.

`train` checks what it is given, `_train` opens the activations and builds the SAEs, `_Loop` takes the
steps, and `_evaluate` measures the results.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from signal import Signals
from typing import Any

import torch as t
from dictionary_learning.dictionary import Dictionary
from tqdm import tqdm

from ..activations.buffer import Batches
from ..activations.hook_points import HookPoint
from ..activations.inputs import Inputs, open_inputs, require_inputs
from ..activations.tokens import Share
from ..config.run import SAMPLE_TOKENS, RunConfig
from ..config.sae import SAEConfig
from ..errors import (
    CheckpointError,
    Interrupted,
    NonFiniteError,
    Setting,
    TrainingError,
    in_shell,
)
from ..evaluation.measure import Sample, measure
from ..evaluation.tables import labels
from ..features.collector import SinkFinder
from ..run_folder.comparing import measured_on
from ..run_folder.files import locked
from ..run_folder.resume_points import ResumePoint
from ..run_folder.weights import for_raw_activations
from ..trainers.base import require_device
from ..trainers.build import build_trainer
from .logs import report_finished
from .plan import Job, plan, require_memory
from .processes import (
    RANK_TIMEOUT,
    Interrupts,
    Processes,
    before_the_first_step,
    interrupts,
    joined,
    launched,
    losing_no_rank,
    require_one_task,
    resuming_command,
)
from .resuming import (
    checked_points,
    restore_generators,
    shared_state,
    start_from,
    state_for_resume,
    state_of_rank,
    trained_sae,
)
from .sae_run import SAERun, versions

logger = logging.getLogger(__name__)

SHOWN = 3
"""How many SAEs the progress bar shows; each one's metrics are in its metrics.jsonl."""


def train(
    run: RunConfig,
    saes: dict[str, SAEConfig],
    hooks: Mapping[str, str] | None = None,
    *,
    resume: bool = False,
    group: str | None = None,
    on_start: Callable[[Sequence[Path]], None] = lambda folders: None,
    rank_timeout: int = RANK_TIMEOUT,
) -> dict[str, Path]:
    """Train every SAE on the same text, save it and evaluate it on held-out text.

    The SAEs of one hook point are trained on the same batches. Several hook points read the same
    tokens in the same order, and the language model runs once for all of them:

        train(run, {"early": sae, "late": sae}, hooks={"late": "blocks.3.hook_mlp_out"})

    In a script that torchrun starts, every process calls it, and they train together: see `processes`.

    An SAE's results do not depend on which others are trained beside it, on logging, or on whether
    the run was stopped and resumed.

    Arguments:
        run: what they share.
        saes: by name. A single one is written to `run.save_dir` itself, several to a folder of
            their name in it.
        hooks: the hook point of each, by the SAE's name (default: `run.hook`).
        resume: continue from the newest resume points of these folders. `reading.read_run` gives
            `run`, `saes` and `hooks`.
        group: what wandb groups the runs by (default: the name of the folder that holds them).
        on_start: called by the first process, with the run folders, once all is checked that can be
            before the language model is loaded (of a run that resumes: once its resume points are).
        rank_timeout: of several processes, the seconds that one waits for the others.

    Returns: the run folder of each.

    Raises: a UserError that says what to change; Interrupted after SIGTERM or SIGINT. What has been
    trained by then is saved.
    """
    require_one_task()
    jobs = plan(run, saes, hooks, resume=resume)
    run = replace(run, device=launched().device(run.device))
    folders = [job.folder for job in jobs]
    with losing_no_rank(resuming_command(folders)):
        processes = joined(rank_timeout)
        if resume and all(job.is_finished for job in jobs):
            logger.info("%s: already finished; nothing to do", run.save_dir)
            if processes.is_first:
                for job in jobs:
                    report_finished(job.folder, job.config)
        else:
            _train(run, jobs, processes, resume=resume, group=group, on_start=on_start)
    return {job.name: job.folder for job in jobs}


def _train(
    run: RunConfig,
    jobs: list[Job],
    processes: Processes,
    *,
    resume: bool,
    group: str | None,
    on_start: Callable[[Sequence[Path]], None],
) -> None:
    """See `train`. `run` has this process's device, the jobs the one given for all processes."""
    folders, hooks = [job.folder for job in jobs], list(dict.fromkeys(job.hook for job in jobs))
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(interrupts(are_several=processes.are_several))
        with before_the_first_step(), _tf32(run.tf32):
            if processes.is_first:
                for job in jobs:
                    stack.enter_context(locked(job.folder))
                _warn_of_slow_bf16(run)
            require_device(run.device)
            require_memory(run, [job.config.sae for job in jobs], processes.local_count)
            initial = [] if resume else [trained_sae(job.config.sae) for job in jobs]
            if not resume and processes.is_first:
                require_inputs(run, hooks, processes.count)
                on_start(folders)
            share = Share(processes.rank, processes.count)
            # A fill is not interrupted where others wait for its end.
            before_batch = None if processes.are_several else signals.check
            inputs = open_inputs(run, hooks, before_batch, share)
            sources = inputs.training_batches()
            jobs = [job.of_width(inputs.hooks[job.hook].activation_dim) for job in jobs]
            depends_on = inputs.hashes() | {
                "versions": versions() | {"threads": t.get_num_threads()},
            }
            points = checked_points(jobs, depends_on, processes) if resume else []
            if resume and not points:
                initial = [trained_sae(job.config.sae) for job in jobs]
            samples = _samples(inputs, run) if processes.is_first else {}
            if resume and processes.is_first:
                on_start(folders)
            processes.require_alike(depends_on)
            if points:
                norm_factors = _continued(jobs, sources, points, processes)
            else:
                norm_factors = _measured_norm_factors(sources, processes)
                if processes.is_first:
                    _warn_of_sinks(inputs, run)
            sae_runs = _built(
                jobs, run.device, inputs.hooks, norm_factors, initial, processes, samples
            )
        code = 1
        try:
            with signals.deferred(), _tf32(run.tf32):
                _begin(sae_runs, sources, points, group, processes)
                start = points[0].step if points else 0
                del points, initial  # as large as the SAEs, and not needed again
                _Loop(run, sources, sae_runs, start, depends_on, signals, processes).run()
                if not processes.is_first:
                    return  # rank 0 alone saves and evaluates
                trained = [one for one in sae_runs if one.failure is None]
                for one in trained:
                    one.save_final()
            if run.eval_tokens and trained:
                _evaluate(inputs, trained, signals)
            code = 0
        except Interrupted as stop:
            code = stop.exit_code
            raise
        finally:
            for one in sae_runs:
                one.close(code)
    if failures := [one.failure for one in sae_runs if one.failure]:
        others = [str(one.folder) for one in sae_runs if one.failure is None]
        saved = f"; trained and saved: {', '.join(others)}" if others else ""
        raise TrainingError("; ".join(failures), instead=("lower ", Setting("lr"), saved))


def _warn_of_slow_bf16(run: RunConfig) -> None:
    is_slow = run.device == "cpu" and t.backends.cpu.get_cpu_capability() == "AVX2"
    if is_slow and run.dtype == "bfloat16":
        logger.warning(
            "dtype='bfloat16': this CPU has no instructions for it (AVX2), and matmuls take several times as "
            "long as in float32; leave it out unless the numbers have to be those of bfloat16"
        )


@contextlib.contextmanager
def _tf32(wanted: bool) -> Iterator[None]:
    """Inside, CUDA may multiply float32 matrices in TF32, if `wanted`. Otherwise as torch is set."""
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


def _samples(inputs: Inputs, run: RunConfig) -> dict[str, Sample]:
    """What is measured on during training, by hook point. Read before the first step, with its errors."""
    if run.eval_every is None:
        return {}
    tokens = min(SAMPLE_TOKENS, run.eval_tokens)
    return {hook: Sample(inputs.held_out(hook, tokens), tokens) for hook in inputs.hooks}


def _measured_norm_factors(sources: Batches, processes: Processes) -> dict[str, float]:
    """What each hook point's raw activations are divided by."""
    return sources.norm_factors(processes.means(sources.mean_squared_norms()))


def _warn_of_sinks(inputs: Inputs, run: RunConfig) -> None:
    """Say which tokens of the text's start are attention sinks, unless outliers are left out."""
    if inputs.language_model is None or run.max_norm_multiple is not None:
        return
    for hook in inputs.hooks:
        finder = SinkFinder(inputs.language_model.tokenizer)
        for batch in inputs.contexts(hook, "train", SAMPLE_TOKENS):
            finder.without_sinks(batch)
        if sinks := finder.sinks():
            logger.warning(
                "%s: some activations are far larger than the rest, up to %s times the median norm: %s."
                " They dominate the loss and FVE. Add --max-norm-multiple 10 to leave them out (the preset"
                " recommended does).",
                hook,
                f"{sinks.norm_ratio:,.0f}",
                sinks.where,
            )


def _continued(
    jobs: Sequence[Job], sources: Batches, points: Sequence[ResumePoint], processes: Processes
) -> dict[str, float]:
    """Put the sources where the resume points have them. Returns the points' norm factors."""
    of_hook = {job.hook: point for job, point in zip(jobs, points, strict=True)}
    states = {hook: state_of_rank(each, processes.rank) for hook, each in of_hook.items()}
    sources.load_state_dicts({hook: state["buffer"] for hook, state in states.items()})
    return {hook: point.run["norm_factor"] for hook, point in of_hook.items()}


def _built(
    jobs: Sequence[Job],
    device: str,
    hooks: Mapping[str, HookPoint],
    norm_factors: Mapping[str, float],
    initial: Sequence[Dictionary | None],
    processes: Processes,
    samples: Mapping[str, Sample],
) -> list[SAERun]:
    """Every SAE, with random weights or those of a trained one.

    Arguments:
        initial: the trained SAE that each starts from, if any; empty for SAEs that resume.
    """
    sae_runs: list[SAERun] = []
    for job in jobs:
        hook = hooks[job.hook]
        trainer = build_trainer(
            job.config.sae,
            steps=job.config.run.steps,
            activation_dim=hook.activation_dim,
            layer=hook.layer,
            lm_name=job.config.run.model,
            hook=hook.name,
            device=device,
            dtype=job.config.run.dtype,
            name=job.folder.name,
        )
        sample = samples.get(job.hook)
        sae_runs.append(SAERun(job, trainer, norm_factors[job.hook], processes, sample))
    for one, source in zip(sae_runs, initial, strict=False):
        if source is not None:
            hook = hooks[one.run.hook]
            start_from(one.trainer, source, one.norm_factor, one.config.sae, hook)
    if processes.are_several:
        for one in sae_runs:
            one.trainer.join(processes.ranks)
    return sae_runs


def _begin(
    sae_runs: Sequence[SAERun],
    sources: Batches,
    points: Sequence[ResumePoint],
    group: str | None,
    processes: Processes,
) -> None:
    """Start or resume every SAE. No folder is changed before it is certain that all can."""
    groups = {one.name: group or one.folder.resolve().parent.name for one in sae_runs}
    resumed = list(zip(sae_runs, points, strict=True)) if points else []
    started = [] if points else sae_runs
    for one, point in resumed:
        one.restore(point)
        restore_generators(one.trainer, point, processes.rank)
    if processes.is_first:
        for one in started:
            one.log.open_wandb(groups[one.name])
    processes.meet()
    if processes.is_first:
        for one, point in resumed:
            one.resume(point, groups[one.name])
        for one in started:
            one.start(sources.of_hook[one.run.hook].config)


class _Loop:
    """Every step of every SAE from `start` on. On an error, what was trained is saved.

    Arguments:
        run: with this process's device.
        depends_on: hashes and versions, which a resume point holds.

    Attributes:
        step: how many updates were made.
        active: the SAEs that have not failed.
    """

    def __init__(
        self,
        run: RunConfig,
        sources: Batches,
        sae_runs: list[SAERun],
        start: int,
        depends_on: dict[str, Any],
        signals: Interrupts,
        processes: Processes,
    ):
        self.run_config, self.sources, self.depends_on = run, sources, depends_on
        self.signals, self.processes = signals, processes
        self.active, self.step = sae_runs, start
        self._norm_factors = {one.run.hook: one.norm_factor for one in sae_runs}
        self._labels = labels(
            {
                str(one.folder): {
                    "trainer": one.trainer.config,
                    "run": {"settings": one.config.to_dict()},
                }
                for one in sae_runs
            }
        )
        self._resume = f"`{resuming_command([one.folder for one in sae_runs])}`"

    def run(self) -> None:
        """All steps. Raises what stopped them, with the step and how to continue."""
        run = self.run_config
        # For the first process TQDM_DISABLE decides, e.g. in a sweep over devices.
        quiet: dict[str, Any] = {} if self.processes.is_first else {"disable": True}
        bar = tqdm(
            total=run.steps * run.batch_size,
            initial=self.step * run.batch_size,
            unit="tok",
            unit_scale=True,
            mininterval=1,
            **quiet,
        )
        try:
            self._take_steps(bar)
        except Interrupted as stop:
            self._save_points(self.active)
            self.processes.meet()  # torchrun kills the others 30 seconds after one has ended
            raise Interrupted(
                stop.signal,
                f"stopped by {stop.signal.name} at step {self.step}; continue with {self._resume}",
            ) from stop
        except Exception as error:
            if not self.processes.are_several:  # else the others may be at another place
                self._save_what_is_left()
            if isinstance(error, NonFiniteError):
                raise error.within(f"step {self.step}") from error
            raise
        finally:
            bar.close()

    def _take_steps(self, bar: tqdm) -> None:
        run, sources, processes = self.run_config, self.sources, self.processes
        checkpoints = set(run.save_points())
        every_steps, every_seconds = run.save_interval()
        saved_at, batches = time.monotonic(), {}
        for step in range(self.step, run.steps):
            self.step = step
            if number := processes.largest(self.signals.received or 0):
                raise Interrupted(Signals(number))
            is_due = every_steps is not None and step % every_steps == 0
            if every_seconds is not None:
                is_due = processes.any(time.monotonic() - saved_at >= every_seconds)
            if is_due and step > 0:
                self._save_points(self.active)
                saved_at = time.monotonic()
            batches = {
                hook: x_BD.to(run.device, t.float32).div_(self._norm_factors[hook])
                for hook, x_BD in sources.next().items()
            }
            if step in checkpoints:
                for one in self.active:
                    one.save_checkpoint(step)
            if step % run.log_every == 0 or run.is_measured(step):
                self._check_and_log(batches, bar)
            self._leave_out_failed()
            for one in self.active:
                one.update(step, batches[one.run.hook])
            self._leave_out_failed()
            if not self.active:
                return
            bar.update(run.batch_size)
        self.step = run.steps
        if batches:  # else the run was resumed when all steps were done
            self._check_and_log(batches, bar)
        self._leave_out_failed()
        if run.save_every != "none":
            self._save_points(self.active)

    def _leave_out_failed(self) -> None:
        self.active = [one for one in self.active if one.failure is None]

    def _check_and_log(self, batches: Mapping[str, t.Tensor], bar: tqdm) -> None:
        """Log every SAE whose numbers are finite, and show the first few in the progress bar."""
        shown = {}
        for one in self.active:
            metrics = one.check_and_log(self.step, batches[one.run.hook])
            if metrics is None:
                continue
            loss = metrics.get("loss", metrics["l2_loss"])
            shown[self._labels[str(one.folder)]] = (
                f"loss {loss:.3g} FVE {metrics['fve']:.3f} L0 {metrics['l0']:.0f} "
                f"alive {metrics['alive_in_batch']:.2f}"
            )
        parts = [f"{name}: {text}" for name, text in list(shown.items())[:SHOWN]]
        if len(self._labels) == 1:  # its name would take the place of its numbers
            parts = list(shown.values())
        more = [f"and {len(shown) - SHOWN} more"] if len(shown) > SHOWN else []
        bar.set_postfix_str(" | ".join(parts + more))

    def _save_points(self, saes: Sequence[SAERun]) -> None:
        """Write a resume point of each SAE, before this step's batch is handed out."""
        states = self.sources.state_dicts()
        for one in saes:
            of_ranks = self.processes.gather(state_for_resume(one.trainer, states[one.run.hook]))
            one.save_point(self.step, self.depends_on | shared_state(of_ranks, self.processes))

    def _save_what_is_left(self) -> None:
        """Save every SAE after an error: its weights, and a resume point unless it would lack a batch."""
        is_between_steps = self.sources.tokens_seen() == {self.step * self.run_config.batch_size}
        for one in self.active:
            try:
                one.save_checkpoint(self.step)
                if is_between_steps:
                    self._save_points([one])
            except CheckpointError as full:
                logger.error("%s", full)
        logger.error("stopped at step %d; the weights so far are in checkpoints/", self.step)


def _evaluate(inputs: Inputs, trained: list[SAERun], signals: Interrupts) -> None:
    """Measure SAEs whose training is over, and write their metrics.json."""
    metrics: dict[str, dict[str, Any]] = {}
    try:
        signals.check()
        for hook in inputs.hooks:
            saes = {
                one.name: (for_raw_activations(one.trainer.ae, one.norm_factor), one.norm_factor)
                for one in trained
                if one.run.hook == hook
            }
            if saes:
                tokens = trained[0].run.eval_tokens
                metrics |= measure(saes, inputs.held_out(hook, tokens), tokens)
    except Interrupted as stop:
        where = in_shell(*(one.folder for one in trained))
        raise Interrupted(
            stop.signal,
            f"stopped by {stop.signal.name} in the evaluation; the training is done and saved; "
            f"continue with `vsae eval {where}`",
        ) from stop
    for one in trained:
        one.record(metrics[one.name] | {"measured_on": measured_on(one.run)})
