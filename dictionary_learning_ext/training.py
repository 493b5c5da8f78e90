"""The training loop: one language model, one buffer, one or many SAEs."""

import importlib.metadata
import logging
import math
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch as t
from nnsight import LanguageModel
from tqdm import tqdm

from .buffer import ResidualBuffer
from .config import RunConfig, TrainConfig
from .errors import ConfigError, NonFiniteError, UserError
from .evaluation import evaluate
from .language_models import HookPoint, find_hook, load_language_model
from .sae_config import SAEConfig
from .text import open_text
from .trainee import Trainee, require_free
from .trainers.build import build_trainer

logger = logging.getLogger(__name__)

_EVALUATION_BATCH = 2048  # tokens
MEASURED_ON = (
    "model",
    "hook",
    "data",
    "text_packing",
    "ctx_len",
    "dtype",
    "remove_bos",
    "max_norm_multiple",
)


def train(run: RunConfig, saes: dict[str, SAEConfig]) -> dict[str, Path]:
    """Train every SAE on the same batches, save it and evaluate it on held-out text.

    An SAE's results do not depend on which others are trained beside it, nor on logging.

    Arguments:
        run: what they share.
        saes: by name. One alone is written to `run.save_dir` itself, several to folders of their
            names in it.

    Returns: the run folder of each.

    Raises: a UserError that says what to change. What was trained until then is saved.
    """
    saes = {name: sae.resolve(run.steps, run.batch_size) for name, sae in saes.items()}
    folders = _folders(run, saes)
    model, hook = open_model(run)
    text = open_text(run.data, seed=0, passes=run.text_passes)
    buffer = make_buffer(run, model, hook, text, run.batch_size)
    norm_factor = _norm_factor(run, buffer)
    trainees = []
    for name, sae in saes.items():
        trainer = build_trainer(
            sae,
            steps=run.steps,
            activation_dim=hook.activation_dim,
            layer=hook.layer,
            lm_name=run.model,
            hook=hook.name,
            device=run.device,
            dtype=run.dtype,
            name=folders[name].name,
        )
        trainees.append(Trainee(name, sae, trainer, folders[name], run, norm_factor))
    for trainee in trainees:
        trainee.start(_config_json(trainee, buffer), group=folders[trainee.name].parent.name)

    finished = False
    try:
        _loop(run, buffer, trainees)
        trained = {one.name: one for one in trainees if one.failure is None}
        for trainee in trained.values():
            trainee.save_final()
            trainee.trainer.ae.scale_biases(norm_factor)  # training is over: raw activations now
        if run.eval_tokens and trained:
            saes_trained = {name: (one.trainer.ae, norm_factor) for name, one in trained.items()}
            figures = evaluate(
                saes_trained, *held_out(run, model, hook, run.eval_tokens), run.eval_tokens
            )
            for name, trainee in trained.items():
                trainee.record(figures[name] | {"measured_on": measured_on(run)})
        finished = True
    finally:
        for trainee in trainees:
            trainee.close(finished)
    if failures := [trainee.failure for trainee in trainees if trainee.failure]:
        raise NonFiniteError(
            "; ".join(failures) + "; expected finite numbers: lower --lr or --beta, or check the "
            f"activations (saved: {', '.join(str(t.folder) for t in trainees)})"
        )
    return folders


def _loop(run: RunConfig, buffer: ResidualBuffer, trainees: list[Trainee]) -> None:
    """Every step of every SAE. On an error, what was trained is saved as a checkpoint."""
    save_points = set(run.save_points())
    norm_factor = trainees[0].norm_factor
    bar = tqdm(total=run.steps * run.batch_size, unit="tok", unit_scale=True, mininterval=1)
    active, step = trainees, 0
    try:
        for step in range(run.steps):
            x_BD = next(buffer).to(run.device, t.float32).div_(norm_factor)
            if step in save_points:
                for trainee in active:
                    trainee.save_checkpoint(step)
                active = [trainee for trainee in active if trainee.failure is None]
            if step % run.log_steps == 0:
                active = _check_and_log(active, step, x_BD, bar)
                if not active:
                    return
            for trainee in active:
                trainee.update(step, x_BD)
            bar.update(run.batch_size)
        _check_and_log(active, run.steps, x_BD, bar)
    except (UserError, KeyboardInterrupt) as error:
        for trainee in active:
            trainee.save_checkpoint(step)
        logger.error("stopped at step %d; the weights so far are in checkpoints/", step)
        if isinstance(error, NonFiniteError):
            raise NonFiniteError(f"step {step}: {error}") from error
        raise
    finally:
        bar.close()


def _check_and_log(active: list[Trainee], step: int, x_BD: t.Tensor, bar: tqdm) -> list[Trainee]:
    """Log every SAE; return those that may go on."""
    shown = {}
    for trainee in active:
        trainee.check(step)
        if trainee.failure is not None:
            trainee.save_checkpoint(step)
            continue
        metrics = trainee.metrics(step, x_BD)
        trainee.log(metrics)
        loss = metrics.get("loss", metrics["l2_loss"])
        shown[trainee.name] = (
            f"loss {loss:.3g} FVE {metrics['fve']:.3f} L0 {metrics['l0']:.0f} "
            f"alive {metrics['alive_in_batch']:.2f}"
        )
    bar.set_postfix_str(" | ".join(f"{name}: {text}" for name, text in shown.items()))
    return [trainee for trainee in active if trainee.failure is None]


def open_model(run: RunConfig) -> tuple[LanguageModel, HookPoint]:
    """The run's language model and hook point. Raises LanguageModelError."""
    dtype = t.bfloat16 if run.dtype == "bfloat16" else t.float32
    model = load_language_model(run.model, device=run.device, dtype=dtype)
    return model, find_hook(model, run.hook)


def make_buffer(
    run: RunConfig, model: LanguageModel, hook: HookPoint, text: Any, out_batch_size: int
) -> ResidualBuffer:
    """A buffer of `text` at the run's hook point, with its settings."""
    return ResidualBuffer(
        text,
        model,
        hook.submodule,
        d_submodule=hook.activation_dim,
        io=hook.io,
        n_ctxs=run.n_ctxs,
        ctx_len=run.ctx_len,
        out_batch_size=out_batch_size,
        device=run.device,
        remove_bos=run.remove_bos,
        packing=run.text_packing,
        max_norm_multiple=run.max_norm_multiple,
    )


def held_out(
    run: RunConfig, model: LanguageModel, hook: HookPoint, tokens: int
) -> tuple[ResidualBuffer, list[str]]:
    """A buffer for `tokens` of held-out text, and its first documents: streams of their own."""
    batch_size = min(_EVALUATION_BATCH, tokens)
    n_ctxs = max(64, math.ceil(batch_size / run.ctx_len))
    text = open_text(run.data, split="heldout")
    buffer = make_buffer(replace(run, n_ctxs=n_ctxs), model, hook, text, batch_size)
    return buffer, list(islice(open_text(run.data, split="heldout"), run.eval_documents))


def measured_on(run: RunConfig) -> dict[str, Any]:
    """The settings that decide what held-out activations an SAE is measured on."""
    return {name: getattr(run, name) for name in MEASURED_ON}


def _norm_factor(run: RunConfig, buffer: ResidualBuffer) -> float:
    """What raw activations are divided by, from the tokens of the buffer's first fill."""
    if run.normalize == "none":
        return 1.0
    target = buffer.d_submodule if run.normalize == "sqrt_d" else 1.0
    return math.sqrt(buffer.mean_squared_norm() / target)


def _folders(run: RunConfig, saes: dict[str, SAEConfig]) -> dict[str, Path]:
    """Where each SAE is written. Raises ConfigError if a run is already there."""
    if len(saes) == 1:
        ((name, sae),) = saes.items()
        default = Path("runs") / TrainConfig(sae, run).name
        folders = {name: Path(run.save_dir) if run.save_dir else default}
    else:
        base = Path(run.save_dir or "runs")
        for name in saes:
            if not name or Path(name).name != name or name in (".", ".."):
                raise ConfigError(f"SAE name {name!r}: expected a plain folder name, as 'top_k'")
        folders = {name: base / name for name in saes}
    for folder in folders.values():
        require_free(folder, run.overwrite)
    return folders


def _config_json(trainee: Trainee, buffer: ResidualBuffer) -> dict[str, Any]:
    """Upstream's "trainer" and "buffer", and what it takes to run it again."""
    packages = (
        "dictionary-learning-ext",
        "dictionary-learning",
        "torch",
        "transformers",
        "nnsight",
    )
    return {
        "trainer": trainee.trainer.config | {"norm_factor": trainee.norm_factor},
        "buffer": buffer.config,
        "run": {
            "settings": TrainConfig(trainee.sae, trainee.run).to_dict(),
            "norm_factor": trainee.norm_factor,
            "date": time.strftime("%Y-%m-%d"),
            "versions": {name: importlib.metadata.version(name) for name in packages},
        },
    }
