"""From a run's configuration to its language model and to buffers of activations."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from typing import Any

import torch as t
from nnsight import LanguageModel

from ..config.checks import require
from ..config.run import RunConfig, evaluation_batch
from ..config.sae import training_energy
from ..errors import LanguageModelError, Setting
from .buffer import ResidualBuffer
from .hook_points import HookPoint, find_hook
from .language_models import load_language_model
from .shared_pass import SharedPass
from .text import open_text
from .tokens import WHOLE, Share


def load_model(run: RunConfig) -> LanguageModel:
    """The run's language model.

    Raises: LanguageModelError; ConfigError for contexts that the model can't read.
    """
    dtype = t.bfloat16 if run.dtype == "bfloat16" else t.float32
    model = load_language_model(run.model, device=run.device, dtype=dtype)
    config: Any = model.config
    require_positions(run, config.get_text_config())
    return model


def open_model(run: RunConfig) -> tuple[LanguageModel, HookPoint]:
    """The run's language model and hook point. Raises what `load_model` does."""
    model = load_model(run)
    return model, find_hook(model, run.hook)


def require_positions(run: RunConfig, config: Any) -> None:
    """Raise a ConfigError for contexts beyond the model's positions.

    Arguments:
        config: the language model's.
    """
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None:
        expected = f"at most {positions}, the positions that {run.model!r} was trained on"
        instead = ("use a shorter ", Setting("ctx_len"))
        require(run.ctx_len <= positions, "ctx_len", run.ctx_len, expected, instead=instead)


def make_buffer(
    run: RunConfig,
    model: LanguageModel,
    hook: HookPoint,
    text: Any,
    out_batch_size: int,
    before_batch: Callable[[], None] | None = None,
    *,
    seed: int = 0,
    shared: SharedPass | None = None,
    share: Share = WHOLE,
) -> ResidualBuffer:
    """A buffer of `text` at the run's hook point, with the run's settings.

    Arguments:
        seed: seeds the order of the rows. Not the run's unless it is given: held-out text is the
            same for every data seed.
        share: which of the text's contexts it reads.
    """
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
        before_batch=before_batch,
        seed=seed,
        shared=shared,
        share=share,
    )


def norm_factor_of(run: RunConfig, hook: str, width: int, mean_squared_norm: float) -> float:
    """What a hook point's raw activations, of this width and E||x||^2, are divided by.

    Raises: LanguageModelError if all activations are 0.
    """
    if mean_squared_norm == 0:
        raise LanguageModelError(
            f"all activations of {run.model} at {hook} are 0: expected a language model with "
            "trained weights; give another language model or hook point"
        )
    if run.normalize == "none":
        return 1.0
    return math.sqrt(mean_squared_norm / training_energy(run.normalize, width))


def held_out(
    run: RunConfig, model: LanguageModel, hook: HookPoint, tokens: int
) -> tuple[ResidualBuffer, list[str]]:
    """A buffer for `tokens` tokens of held-out text, and that text's first documents.

    The documents come from a stream of their own, so the buffer starts with them too.
    """
    batch_size = evaluation_batch(tokens)
    n_ctxs = max(64, math.ceil(batch_size / run.ctx_len))
    text = open_text(run.data, split="heldout")
    buffer = make_buffer(replace(run, n_ctxs=n_ctxs), model, hook, text, batch_size)
    buffer.order_matters = False  # all rows are summed
    return buffer, list(islice(open_text(run.data, split="heldout"), run.eval_documents))
