"""Beside SAE Bench's core: the fraction of variance explained, and how often features are used."""

from typing import Any

import torch as t
from sae_bench.custom_saes.base_sae import BaseSAE
from sae_lens.training.activations_store import ActivationsStore
from transformer_lens import HookedTransformer

NEAR_DEAD = (0.1, 0.5)
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
) -> dict[str, Any]:
    """Our figures of the tokens that a store gives, special ones left out.

    Returns: `fve`, `alive` (the share of features selected at least once), `near_dead_0.1` and
    `near_dead_0.5` (selected less often than so many times the average feature), `selected`, how
    often each feature was, `tokens` and a `note` on what SAE Bench's figures are.
    """
    selected_F = t.zeros(sae.cfg.d_sae, dtype=t.float64, device=sae.W_enc.device)
    sum_D, squares, residual, tokens = 0.0, 0.0, 0.0, 0
    special = t.tensor([token for token in ignored if token is not None], device=sae.W_enc.device)
    for _ in range(batches):
        tokens_BL = store.get_batch_tokens(prompts)
        _, cache = model.run_with_cache(
            tokens_BL,
            prepend_bos=False,
            names_filter=[sae.cfg.hook_name],
            stop_at_layer=sae.cfg.hook_layer + 1,
        )
        x_BD = cache[sae.cfg.hook_name][~t.isin(tokens_BL, special)]
        f_BF = sae.encode(x_BD)
        x_BD, x_hat_BD = x_BD.double(), sae.decode(f_BF).double()
        selected_F += (f_BF != 0).sum(0)
        sum_D = sum_D + x_BD.sum(0)
        squares += float(x_BD.square().sum())
        residual += float((x_BD - x_hat_BD).square().sum())
        tokens += len(x_BD)
    total_variance = squares - float((sum_D**2).sum()) / tokens  # pyright: ignore
    usual = selected_F.mean()
    figures: dict[str, Any] = {
        "fve": 1 - residual / total_variance,
        "alive": float((selected_F > 0).double().mean()),
    }
    for r in NEAR_DEAD:
        figures[f"near_dead_{r}"] = float((selected_F < r * usual).double().mean())
    return figures | {"selected": selected_F.long().tolist(), "tokens": tokens, "note": NOTE}


def most_used(selected_F: list[int], n: int) -> t.Tensor:
    """A mask, (F,), of the n features that were selected most often."""
    counts = t.tensor(selected_F)
    mask_F = t.zeros(len(counts), dtype=t.bool)
    mask_F[counts.argsort(descending=True, stable=True)[:n]] = True
    return mask_F


def in_use(selected_F: list[int]) -> int:
    """How many features are not near-dead at 0.1: "selected once" saturates in small dictionaries."""
    counts = t.tensor(selected_F, dtype=t.float64)
    return int((counts >= NEAR_DEAD[0] * counts.mean()).sum())
