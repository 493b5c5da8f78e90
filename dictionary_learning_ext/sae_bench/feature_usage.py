"""Beside SAE Bench's core: the fraction of variance explained, and how often features are used."""

from typing import Any

import torch as t
from sae_bench.custom_saes.base_sae import BaseSAE
from sae_lens.training.activations_store import ActivationsStore
from transformer_lens import HookedTransformer

from ..activations.positions import PositionRule
from ..evaluation.metrics import computed, shown_in
from ..evaluation.totals import Totals
from .positions import wanted

NOTE = (
    "SAE Bench 0.6.0's explained_variance is wrong: it subtracts the square of a grand mean of "
    "squares where the mean activation's is meant. explained_variance_legacy is the mean over "
    "tokens of 1 - residual / token's variance, the SAE Bench paper's. fve is 1 - residual / total "
    "variance. frac_alive of SAE Bench counts features above 0; alive counts those that are not 0."
)


@t.no_grad()
def measure(
    sae: BaseSAE,
    model: HookedTransformer,
    store: ActivationsStore,
    *,
    batches: int,
    prompts: int,
    ignored: set[int | None],
    rule: PositionRule,
) -> dict[str, Any]:
    """Our metrics of the tokens that a store gives, without special ones and those of `rule`.

    Returns: the metrics that `metrics.py` shows for SAE Bench, by key; `selected`, how often each
    feature was; `tokens`; `left_out`, how many the rule left out besides special ones; and a `note`
    on what SAE Bench's own metrics are.
    """
    k, device = getattr(getattr(sae, "dictionary", None), "k", None), sae.W_enc.device
    totals = Totals.empty(sae.cfg.d_in, sae.cfg.d_sae, k, device)
    special = t.tensor([token for token in ignored if token is not None], device=device)
    left_out = 0
    for _ in range(batches):
        tokens_BL = store.get_batch_tokens(prompts)
        _, cache = model.run_with_cache(
            tokens_BL,
            prepend_bos=False,
            names_filter=[sae.cfg.hook_name],
            stop_at_layer=sae.cfg.hook_layer + 1,
        )
        x_BLD = cache[sae.cfg.hook_name]
        is_ordinary_BL = ~t.isin(tokens_BL, special)
        is_used_BL = is_ordinary_BL & wanted(rule, tokens_BL, x_BLD).to(device)
        left_out += int((is_ordinary_BL & ~is_used_BL).sum())
        x_BD = x_BLD[is_used_BL]
        f_BF = sae.encode(x_BD)
        totals.add(x_BD.double(), sae.decode(f_BF).double(), f_BF)
    ours: dict[str, Any] = computed(totals, shown_in("bench"))
    return ours | {
        "selected": totals.selected_F.tolist(),
        "tokens": totals.tokens,
        "left_out": left_out,
        "note": NOTE,
    }
