"""The training loop: one language model, one buffer, one or many SAEs."""

import logging
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch as t
from dictionary_learning.dictionary import Dictionary
from tqdm import tqdm

from ..activations.sources import RunSources
from ..config.run_config import RunConfig, TrainConfig
from ..config.sae_config import SAEConfig
from ..errors import (
    CheckpointError,
    Interrupted,
    NonFiniteError,
    TrainingError,
)
from ..evaluation.measure import measure
from ..run_folder.evaluation_files import measured_on
from ..run_folder.names import require_free
from ..run_folder.reading import is_finished
from ..run_folder.resume_points import ResumePoint
from ..run_folder.weights import for_raw_activations
from ..run_folder.writing import locked
from ..trainers.build import build_trainer
from ..trainers.devices import require_device
from .config_json import config_json, versions
from .initial_weights import start_from, trained_sources
from .interrupts import Interrupts, before_the_first_step, interrupts
from .memory import require_memory
from .preparation import hook_points_of, prepared
from .resuming import checked_points
from .run_log import report_finished
from .sae_run import SAERun

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
) -> dict[str, Path]:
    """Train every SAE on the same text, save it and evaluate it on held-out text.

    The SAEs of one hook point are trained on the same batches. Several hook points read the same
    tokens in the same order, and the language model runs once for all of them:

        train(run, {"early": sae, "late": sae}, hooks={"late": "blocks.3.hook_mlp_out"})

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
    hook_of = hook_points_of(run, saes, hooks)
    if len(saes) == 1:
        run = replace(run, hook=next(iter(hook_of.values())))
    saes, folders = prepared(run, saes, resume)
    if resume and all(is_finished(folder, run) for folder in folders.values()):
        logger.info("%s: already finished; nothing to do", run.save_dir)
        for name, folder in folders.items():
            report_finished(folder, TrainConfig(saes[name], replace(run, hook=hook_of[name])))
        return folders
    with interrupts() as signals, locked(folders.values()):
        with before_the_first_step():
            if not resume:
                for folder in folders.values():
                    require_free(folder, run.overwrite)
            require_device(run.device)
            require_memory(run, saes.values(), len(set(hook_of.values())))
            initial = {} if resume else trained_sources(saes)
            sources = RunSources(run, dict.fromkeys(hook_of.values()), signals.check)
            if not resume:
                sources.require_enough()
            configs = {
                name: TrainConfig(
                    sae.with_sigma(sources.hooks[hook_of[name]].activation_dim, run.normalize),
                    replace(run, hook=hook_of[name]),
                )
                for name, sae in saes.items()
            }
            inputs = sources.inputs | {
                "versions": versions() | {"threads": t.get_num_threads()},
            }
            points = checked_points(configs, folders, inputs) if resume else {}
            if resume and not points:
                initial = trained_sources(saes)
            sae_runs, start = _build(configs, folders, sources, points, initial)
        code = 1
        try:
            with signals.deferred():
                _begin(sae_runs, sources, points, group)
                _loop(run, sources, sae_runs, start, inputs, signals)
                trained = [one for one in sae_runs if one.failure is None]
                for one in trained:
                    one.save_final()
            if run.eval_tokens and trained:
                _evaluate(sources, trained, signals)
            code = 0
        except Interrupted as stop:
            code = stop.exit_code
            raise
        finally:
            for one in sae_runs:
                one.close(code)
    if failures := [one.failure for one in sae_runs if one.failure]:
        others = [str(one.folder) for one in sae_runs if one.failure is None]
        raise TrainingError(
            f"{'; '.join(failures)}; lower --lr or --beta, or check the activations"
            + (f"; trained and saved: {', '.join(others)}" if others else "")
        )
    return folders


def _build(
    configs: dict[str, TrainConfig],
    folders: dict[str, Path],
    sources: RunSources,
    points: dict[Path, ResumePoint],
    initial: Mapping[str, Dictionary],
) -> tuple[list[SAERun], int]:
    """Every SAE, initialised or restored from its resume point, and the step to start at.

    Arguments:
        initial: the trained SAE that each starts from, by name, if any.
    """
    start = 0
    if points:
        of_hook = {config.run.hook: points[folders[name]] for name, config in configs.items()}
        sources.load_state_dicts({hook: point.run["buffer"] for hook, point in of_hook.items()})
        norm_factors = {hook: point.run["norm_factor"] for hook, point in of_hook.items()}
        start = next(iter(points.values())).step
    else:
        norm_factors = sources.norm_factors()
        for source in sources.sources.values():
            if outliers := source.outliers():
                logger.warning("%s", outliers)
    sae_runs = []
    for name, config in configs.items():
        run, hook = config.run, sources.hooks[config.run.hook]
        trainer = build_trainer(
            config.sae,
            steps=run.steps,
            activation_dim=hook.activation_dim,
            layer=hook.layer,
            lm_name=run.model,
            hook=hook.name,
            device=run.device,
            dtype=run.dtype,
            name=folders[name].name,
        )
        if name in initial:
            start_from(trainer, initial[name], norm_factors[hook.name], config.sae, hook)
        sae_runs.append(SAERun(name, config, trainer, folders[name], norm_factors[hook.name]))
    return sae_runs, start


def _begin(
    sae_runs: list[SAERun],
    sources: RunSources,
    points: dict[Path, ResumePoint],
    group: str | None,
) -> None:
    """Start or resume every SAE. No folder is changed before it is certain that all can."""
    groups = {one.name: group or one.folder.resolve().parent.name for one in sae_runs}
    for one in sae_runs:
        if points:
            one.restore(points[one.folder])
        else:
            one.log.open_wandb(groups[one.name])
    for one in sae_runs:
        if points:
            one.resume(points[one.folder], groups[one.name])
        else:
            one.start(config_json(one, sources.sources[one.run.hook].config))


def _loop(
    run: RunConfig,
    sources: RunSources,
    sae_runs: list[SAERun],
    start: int,
    inputs: dict[str, Any],
    signals: Interrupts,
) -> None:
    """Every step of every SAE from `start` on. On an error, what was trained is saved."""
    save_points = set(run.save_points())
    every_steps, every_seconds = run.save_interval()
    saved_at = time.monotonic()
    norm_factors = {one.run.hook: one.norm_factor for one in sae_runs}
    bar = tqdm(
        total=run.steps * run.batch_size,
        initial=start * run.batch_size,
        unit="tok",
        unit_scale=True,
        mininterval=1,
    )
    active, step, batches = sae_runs, start, {}

    def save(step: int) -> None:
        states = {hook: source.state_dict() for hook, source in sources.sources.items()}
        for one in active:
            one.save_point(step, inputs | {"buffer": states[one.run.hook]})

    try:
        for step in range(start, run.steps):
            signals.check()
            late = every_seconds is not None and time.monotonic() - saved_at >= every_seconds
            if step and (late or (every_steps is not None and step % every_steps == 0)):
                save(step)
                saved_at = time.monotonic()
            batches = {
                hook: x_BD.to(run.device, t.float32).div_(norm_factors[hook])
                for hook, x_BD in sources.next().items()
            }
            if step in save_points:
                for one in active:
                    one.save_checkpoint(step)
            if step % run.log_every == 0:
                _check_and_log(active, step, batches, bar)
            active = [one for one in active if one.failure is None]
            for one in active:
                one.update(step, batches[one.run.hook])
            active = [one for one in active if one.failure is None]
            if not active:
                return
            bar.update(run.batch_size)
        step = run.steps
        if batches:  # else the run was resumed when all steps were done
            _check_and_log(active, step, batches, bar)
        active = [one for one in active if one.failure is None]
        if run.save_every != "none":
            save(step)
    except Interrupted as stop:
        save(step)
        where = os.path.commonpath([one.folder for one in sae_runs])
        raise Interrupted(
            stop.signal,
            f"stopped by {stop.signal.name} at step {step}; continue with `vsae train --resume {where}`",
        ) from stop
    except Exception as error:
        for one in active:
            try:
                one.save_checkpoint(step)
                # Not in the middle of a step, whose batch would be missing after a resume.
                if sources.tokens_seen() == {step * run.batch_size}:
                    state = sources.sources[one.run.hook].state_dict()
                    one.save_point(step, inputs | {"buffer": state})
            except CheckpointError as full:
                logger.error("%s", full)
        logger.error("stopped at step %d; the weights so far are in checkpoints/", step)
        if isinstance(error, NonFiniteError):
            raise NonFiniteError(f"step {step}: {error}") from error
        raise
    finally:
        bar.close()


def _check_and_log(
    active: list[SAERun], step: int, batches: dict[str, t.Tensor], bar: tqdm
) -> None:
    """Log every SAE whose numbers are finite, and show the first few in the progress bar."""
    shown = {}
    for one in active:
        metrics = one.check_and_log(step, batches[one.run.hook])
        if metrics is None:
            continue
        loss = metrics.get("loss", metrics["l2_loss"])
        shown[one.name] = (
            f"loss {loss:.3g} FVE {metrics['fve']:.3f} L0 {metrics['l0']:.0f} "
            f"alive {metrics['alive_in_batch']:.2f}"
        )
    parts = [f"{name}: {text}" for name, text in list(shown.items())[:SHOWN]]
    more = [f"and {len(shown) - SHOWN} more"] if len(shown) > SHOWN else []
    bar.set_postfix_str(" | ".join(parts + more))


def _evaluate(sources: RunSources, trained: list[SAERun], signals: Interrupts) -> None:
    """Measure SAEs whose training is over, and write their metrics.json."""
    metrics: dict[str, dict[str, Any]] = {}
    try:
        signals.check()  # what came while the last files were written
        for hook in sources.hooks:
            saes = {
                one.name: (for_raw_activations(one.trainer.ae, one.norm_factor), one.norm_factor)
                for one in trained
                if one.run.hook == hook
            }
            if saes:
                tokens = trained[0].run.eval_tokens
                metrics |= measure(saes, *sources.held_out(hook), tokens)
    except Interrupted as stop:
        where = " ".join(str(one.folder) for one in trained)
        raise Interrupted(
            stop.signal,
            f"stopped by {stop.signal.name} in the evaluation; the training is done and saved; "
            f"continue with `vsae eval {where}`",
        ) from stop
    for one in trained:
        one.record(metrics[one.name] | {"measured_on": measured_on(one.run)})
