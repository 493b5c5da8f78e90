"""SAE Bench leaves alone the positions that an SAE's training leaves out.

Its core replaces activations by reconstructions, or by zeros, at every position but special tokens.
Attention sinks that training left out would decide its CE and KL.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch as t
from transformer_lens import HookedTransformer

from ..activations.positions import PositionRule, norms

Hook = Callable[..., t.Tensor]


def wanted(rule: PositionRule, tokens_BL: t.Tensor, x_BLD: t.Tensor) -> t.Tensor:
    """The positions that training uses, (B, L), on the CPU. SAE Bench's batches have no padding."""
    by_token_BL = rule.by_token(tokens_BL, t.ones_like(tokens_BL)).cpu()
    return rule.by_norm(norms(x_BLD), by_token_BL)


@contextmanager
def left_alone(model: HookedTransformer, rule: PositionRule) -> Iterator[None]:
    """Within it, hooks of `model.run_with_hooks` change activations only where training uses them."""
    run_with_hooks = model.run_with_hooks

    def limited(hook: Hook, tokens_BL: t.Tensor) -> Hook:
        def changed(x_BLD: t.Tensor, **arguments: Any) -> t.Tensor:
            is_wanted_BL1 = wanted(rule, tokens_BL, x_BLD).to(x_BLD.device).unsqueeze(-1)
            return t.where(is_wanted_BL1, hook(x_BLD.clone(), **arguments), x_BLD)

        return changed

    def run(tokens_BL: t.Tensor, *args: Any, fwd_hooks: Any, **options: Any) -> Any:
        hooks = [(name, limited(hook, tokens_BL)) for name, hook in fwd_hooks]
        return run_with_hooks(tokens_BL, *args, fwd_hooks=hooks, **options)

    with patch.object(model, "run_with_hooks", run):
        yield
