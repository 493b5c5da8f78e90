"""The training loop: one language model, one buffer, one or many SAEs."""

import contextlib
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch as t
from tqdm import tqdm

from ..activations.buffer import Batches
from ..activations.inputs import Inputs, open_inputs
from ..activations.tokens import Share
from ..config.run import RunConfig, TrainConfig
from ..config.sae import SAEConfig
from ..errors import (
    CheckpointError,
    Interrupted,
    NonFiniteError,
    ProcessError,
    Setting,
    TrainingError,
    in_shell,
)
from ..evaluation.measure import measure
from ..evaluation.sae_names import by_settings
from ..run_folder.evaluation_files import measured_on
from ..run_folder.names import require_free
from ..run_folder.reading import is_finished
from ..run_folder.weights import for_raw_activations
from ..run_folder.writing import locked
from ..trainers.devices import require_device
from .config_json import versions
from .initial_weights import trained_sources
from .interrupts import Interrupts, before_the_first_step, interrupts
from .memory import require_memory
from .preparation import hook_points_of, prepared
from .processes import Processes, joined
from .resuming import checked_points, shared_state, state_for_resume
from .run_log import report_finished
from .sae_run import SAERun
from .starting import begin, built

logger = logging.getLogger(__name__)

States = dict[str, dict[str, Any]]
"""What each hook point's source needs to continue."""
SHOWN = 3
"""How many SAEs the progress bar shows; each one's metrics are in its metrics.jsonl."""


def train(
    run: RunConfig,
    saes: dict[str, SAEConfig],
    hooks: Mapping[str, str] | None = None,
    *,
    resume: bool = False,
    group: str | None = None,
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

    Returns: the run folder of each.

    Raises: a UserError that says what to change; Interrupted after SIGTERM or SIGINT. What has been
    trained by then is saved.
    """
    with joined() as processes:
        with processes.together():
            hook_of = hook_points_of(run, saes, hooks)
            if len(saes) == 1:
                run = replace(run, hook=next(iter(hook_of.values())))
            saes, folders = prepared(run, saes, resume, hook_of.values())
            device = processes.device(run.device)
        if resume and all(is_finished(folder, run) for folder in folders.values()):
            logger.info("%s: already finished; nothing to do", run.save_dir)
            for name, folder in folders.items():
                if processes.is_first:
                    of_hook = replace(run, hook=hook_of[name])
                    report_finished(folder, TrainConfig(saes[name], of_hook))
            return folders
        _train(run, device, saes, folders, hook_of, processes, resume=resume, group=group)
    return folders


def _train(
    given: RunConfig,
    device: str,
    saes: dict[str, SAEConfig],
    folders: dict[str, Path],
    hook_of: dict[str, str],
    processes: Processes,
    *,
    resume: bool,
    group: str | None,
) -> None:
    """See `train`.

    Arguments:
        device: this process's. The SAEs' settings have the one that was given, for all processes.
    """
    run = replace(given, device=device)
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(interrupts(are_several=processes.are_several))
        with before_the_first_step():
            with processes.together():
                if processes.is_first:
                    stack.enter_context(locked(folders.values()))
                    if not resume:
                        for folder in folders.values():
                            require_free(folder, run.overwrite)
            with processes.together():
                require_device(run.device)
                require_memory(run, saes.values(), processes.local_count)
                initial = {} if resume else trained_sources(saes)
                share = Share(processes.rank, processes.count)
                opened = open_inputs(run, dict.fromkeys(hook_of.values()), signals.check, share)
                if not resume and processes.is_first:
                    opened.require_enough()
                sources = opened.train()
                configs = {
                    name: TrainConfig(
                        sae.with_sigma(opened.hooks[hook_of[name]].activation_dim, run.normalize),
                        replace(given, hook=hook_of[name]),
                    )
                    for name, sae in saes.items()
                }
                inputs = opened.hashes() | {
                    "versions": versions() | {"threads": t.get_num_threads()},
                }
                points = checked_points(configs, folders, inputs, processes) if resume else {}
                if resume and not points:
                    initial = trained_sources(saes)
                signals.check()
            processes.require_alike(inputs)
            sae_runs, start = built(configs, folders, device, sources, points, initial, processes)
        code = 1
        try:
            with signals.deferred():
                begin(sae_runs, sources, points, group, processes)
                _loop(run, sources, sae_runs, start, inputs, signals, processes)
                trained = [one for one in sae_runs if one.failure is None]
                with processes.together():
                    for one in trained:
                        one.save_final()
            with processes.together():
                if run.eval_tokens and trained and processes.is_first:
                    _evaluate(opened, trained, signals)
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


def _loop(
    run: RunConfig,
    sources: Batches,
    sae_runs: list[SAERun],
    start: int,
    inputs: dict[str, Any],
    signals: Interrupts,
    processes: Processes,
) -> None:
    """Every step of every SAE from `start` on. On an error, what was trained is saved."""
    save_points = set(run.save_points())
    every_steps, every_seconds = run.save_interval()
    saved_at = time.monotonic()
    norm_factors = {one.run.hook: one.norm_factor for one in sae_runs}
    # For the first process TQDM_DISABLE decides, e.g. in a sweep over devices.
    quiet: dict[str, Any] = {} if processes.is_first else {"disable": True}
    bar = tqdm(
        total=run.steps * run.batch_size,
        initial=start * run.batch_size,
        unit="tok",
        unit_scale=True,
        mininterval=1,
        **quiet,
    )
    active, step, batches = sae_runs, start, {}
    before: States | None = None  # where the sources were before this step's batch

    def save(step: int, states: States, saes: list[SAERun]) -> None:
        for one in saes:
            of_ranks = processes.gather(state_for_resume(one.trainer, states[one.run.hook]))
            with processes.together():
                one.save_point(step, inputs | shared_state(of_ranks, processes))

    try:
        for step in range(start, run.steps):
            is_due = every_steps is not None and step % every_steps == 0
            if every_seconds is not None:
                is_due = processes.any(time.monotonic() - saved_at >= every_seconds)
            is_due = is_due and step > 0
            before = sources.state_dicts() if is_due or processes.are_several else None
            with processes.together():
                signals.check()
                batches = {
                    hook: x_BD.to(run.device, t.float32).div_(norm_factors[hook])
                    for hook, x_BD in sources.next().items()
                }
            if is_due:
                save(step, before or sources.state_dicts(), active)
                saved_at = time.monotonic()
            if step in save_points:
                with processes.together():
                    for one in active:
                        one.save_checkpoint(step)
            if step % run.log_every == 0:
                with processes.together():
                    _check_and_log(active, step, batches, bar)
            active = [one for one in active if one.failure is None]
            before = None
            for one in active:
                one.update(step, batches[one.run.hook])
            active = [one for one in active if one.failure is None]
            if not active:
                return
            bar.update(run.batch_size)
        step = run.steps
        if batches:  # else the run was resumed when all steps were done
            with processes.together():
                _check_and_log(active, step, batches, bar)
        active = [one for one in active if one.failure is None]
        if run.save_every != "none":
            save(step, sources.state_dicts(), active)
    except Interrupted as stop:
        save(step, before or sources.state_dicts(), active)
        where = os.path.commonpath([one.folder for one in sae_runs])
        raise Interrupted(
            stop.signal,
            f"stopped by {stop.signal.name} at step {step}; continue with "
            f"`{processes.command} train --resume {in_shell(where)}`",
        ) from stop
    except ProcessError as error:  # this rank may be in the middle of a step: nothing is saved
        where = os.path.commonpath([one.folder for one in sae_runs])
        again = f"`{processes.command} train --resume {in_shell(where)}`"
        continued = f"continue from the last resume point with {again}"
        raise error.within(f"step {step}", continued) from error
    except Exception as error:
        # Not in the middle of a step, whose batch would be missing after a resume.
        if before is None and sources.tokens_seen() == {step * run.batch_size // processes.count}:
            before = sources.state_dicts()
        for one in active:
            try:
                with processes.together():
                    one.save_checkpoint(step)
                if before is not None:
                    save(step, before, [one])
            except CheckpointError as full:
                logger.error("%s", full)
        logger.error("stopped at step %d; the weights so far are in checkpoints/", step)
        if isinstance(error, NonFiniteError):
            raise error.within(f"step {step}") from error
        raise
    finally:
        bar.close()


def _check_and_log(
    active: list[SAERun], step: int, batches: dict[str, t.Tensor], bar: tqdm
) -> None:
    """Log every SAE whose numbers are finite, and show the first few in the progress bar."""
    shown, called = {}, by_settings({one.name: one.config for one in active})
    for one in active:
        metrics = one.check_and_log(step, batches[one.run.hook])
        if metrics is None:
            continue
        loss = metrics.get("loss", metrics["l2_loss"])
        shown[called[one.name]] = (
            f"loss {loss:.3g} FVE {metrics['fve']:.3f} L0 {metrics['l0']:.0f} "
            f"alive {metrics['alive_in_batch']:.2f}"
        )
    parts = [f"{name}: {text}" for name, text in list(shown.items())[:SHOWN]]
    more = [f"and {len(shown) - SHOWN} more"] if len(shown) > SHOWN else []
    bar.set_postfix_str(" | ".join(parts + more))


def _evaluate(inputs: Inputs, trained: list[SAERun], signals: Interrupts) -> None:
    """Measure SAEs whose training is over, and write their metrics.json."""
    metrics: dict[str, dict[str, Any]] = {}
    try:
        with signals.at_once():
            for hook in inputs.hooks:
                saes = {
                    one.name: (
                        for_raw_activations(one.trainer.ae, one.norm_factor),
                        one.norm_factor,
                    )
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
