"""The evaluation against a plain recomputation: one document at a time, in float64.

The recomputation uses transformers and torch only: no nnsight, no padding, no batches, none of the
package's functions. The language model has attention sinks and learned positions.
"""

import math
from functools import cache
from itertools import cycle
from typing import Any

import pytest
import torch
from buffers import DOCUMENTS
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from held_out import held_out_of
from planted_sinks import saved_with_sinks
from transformers import AutoModelForCausalLM, AutoTokenizer

from dictionary_learning_ext import VariationalTopKAutoEncoder, find_hook
from dictionary_learning_ext.activations.language_models import load_language_model
from dictionary_learning_ext.evaluation.measure import measure

D, F, K, SIGMA, CTX_LEN, TOKENS = 16, 48, 27, 0.7, 16, 768
TEXTS = [
    ("<|endoftext|>" if n % 3 == 0 else "") + text[: 20 + 9 * (n % 6)]
    for n, text in enumerate(DOCUMENTS)
]
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "every position": ("right", {"max_norm_multiple": 1e9}),
    "outliers": ("left", {"max_norm_multiple": 10.0}),
    "outliers and bos": ("left", {"max_norm_multiple": 10.0, "remove_bos": True}),
    "padded right": ("right", {"max_norm_multiple": 10.0, "remove_bos": True}),
}


def saes() -> dict[str, Any]:
    torch.manual_seed(3)
    ours = VariationalTopKAutoEncoder(D, F, K, sigma=SIGMA, rectify=False)
    theirs = AutoEncoderTopK(D, F, K)
    for sae in (ours, theirs):
        sae.encoder.bias.data.normal_(0, 0.3)
        sae.b_dec.data.normal_(0, 0.3)
    return {"ours": ours, "theirs": theirs}


class Plain:
    """One language model in float64, and an SAE as four tensors."""

    def __init__(self, folder: str, rules: dict[str, Any]):
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.rules = rules
        self.activations = cache(self.activations)

    def ids(self, text: str) -> torch.Tensor:
        return torch.tensor([self.tokenizer(text)["input_ids"][:CTX_LEN]])

    @torch.no_grad()
    def activations(self, text: str) -> torch.Tensor:
        """After block 1, (L, D)."""
        return self.model(self.ids(text), output_hidden_states=True).hidden_states[2][0]

    def kept(self, text: str, median: float) -> torch.Tensor:
        kept = torch.ones(self.ids(text).shape[1], dtype=torch.bool)
        if self.rules.get("remove_bos"):
            kept &= self.ids(text)[0] != 0
        if multiple := self.rules.get("max_norm_multiple"):
            kept &= self.activations(text).norm(dim=1) <= multiple * median
        return kept

    @torch.no_grad()
    def loss(self, text: str, kept: torch.Tensor, replacement: Any = None) -> torch.Tensor:
        """The loss at each next token, with other activations at the kept positions."""

        def hook(module: Any, arguments: Any, output: Any) -> Any:
            x = output[0] if isinstance(output, tuple) else output
            changed = x.clone()
            changed[0, kept] = replacement(x[0, kept])
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        handle = replacement and self.model.transformer.h[1].register_forward_hook(hook)
        logits = self.model(self.ids(text)).logits[0]
        if handle:
            handle.remove()
        log_p = logits[:-1].log_softmax(-1)
        return -log_p[torch.arange(len(log_p)), self.ids(text)[0, 1:]]


def encode(sae: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """All pre-activations, and the k largest of them with zeros elsewhere."""
    mu = (x - sae.b_dec.double()) @ sae.encoder.weight.double().T + sae.encoder.bias.double()
    if not isinstance(sae, VariationalTopKAutoEncoder):  # a subclass of theirs
        mu = mu.clamp(min=0)
    largest = mu.topk(K, dim=1)
    return mu, torch.zeros_like(mu).scatter_(1, largest.indices, largest.values)


def reconstruct(sae: Any, x: torch.Tensor) -> torch.Tensor:
    return encode(sae, x)[1] @ sae.decoder.weight.double().T + sae.b_dec.double()


@torch.no_grad()
def recomputed(plain: Plain, sae: Any) -> dict[str, float]:
    kinds = [plain.activations(text).norm(dim=1) for text in TEXTS]
    if plain.rules.get("remove_bos"):
        is_bos = [plain.ids(text)[0] == 0 for text in TEXTS]
        kinds = [norms[~bos] for norms, bos in zip(kinds, is_bos, strict=True)]
    median = float(torch.cat(kinds).median())
    rows, n = [], 0
    for text in cycle(TEXTS):
        rows.append(plain.activations(text)[plain.kept(text, median)])
        n += len(rows[-1])
        if n >= TOKENS:
            break
    x = torch.cat(rows)[:TOKENS]
    mu, f = encode(sae, x)
    x_hat = reconstruct(sae, x)
    residual = x - x_hat
    total = (x - x.mean(0)).pow(2).sum()
    used = (f != 0).double().mean(0)
    losses: dict[str, list[torch.Tensor]] = {"original": [], "reconstructed": [], "zero": []}
    positions = alone = 0
    for text in TEXTS:
        kept = plain.kept(text, median)
        positions += len(kept)
        alone += int((~kept).sum())
        losses["original"].append(plain.loss(text, kept))
        losses["reconstructed"].append(plain.loss(text, kept, lambda x: reconstruct(sae, x)))
        losses["zero"].append(plain.loss(text, kept, torch.zeros_like))
    original, reconstructed, zero = (float(torch.cat(each).mean()) for each in losses.values())
    fve, l0 = float(1 - residual.pow(2).sum() / total), float((f != 0).sum(1).double().mean())
    choices = math.lgamma(F + 1) - math.lgamma(l0 + 1) - math.lgamma(F - l0 + 1)
    expected = {
        "fve": fve,
        "l0": l0,
        "alive": float((used > 0).double().mean()),
        "near_dead_0.1": float((used < 0.1 * K / F).double().mean()),
        "near_dead_0.5": float((used < 0.5 * K / F).double().mean()),
        "description_length": choices + D / 2 * math.log(1 - fve),
        "frac_variance_explained": float(1 - residual.var(0).sum() / x.var(0).sum()),
        "cossim": float(torch.cosine_similarity(x, x_hat).mean()),
        "l2_ratio": float((x_hat.norm(dim=1) / x.norm(dim=1)).mean()),
        "l2_loss": float(residual.norm(dim=1).mean()),
        "l1_loss": float(f.abs().sum(1).mean()),
        "loss_original": original,
        "loss_reconstructed": reconstructed,
        "loss_zero": zero,
        "loss_added": reconstructed - original,
        "frac_recovered": (zero - reconstructed) / (zero - original),
        "loss_tokens": positions - len(TEXTS),
        "loss_positions": positions,
        "positions_left_alone": alone,
        "tokens": TOKENS,
    }
    if isinstance(sae, VariationalTopKAutoEncoder):
        kl = 0.5 * (mu.pow(2) + SIGMA**2 - 1 - math.log(SIGMA**2))
        expected |= {
            "kl_per_token": float(kl.sum(1).mean()),
            "mean_sigma": SIGMA,
            "noise_to_signal": K * SIGMA**2 / float(x.pow(2).sum(1).mean()),
        }
    return expected


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_metric_is_the_plain_one(case: str, lm_dir_of, tmp_path):
    side, rules = CASES[case]
    folder = saved_with_sinks(lm_dir_of("gpt2"), tmp_path, side)
    plain, dictionaries, lm = Plain(folder, rules), saes(), load_language_model(folder)
    lm.tokenizer.padding_side = side  # of a folder, nnsight 0.8 makes it "left"
    read = {"ctx_len": CTX_LEN, "text_packing": "truncate", **rules}
    hook = find_hook(lm, "blocks.1.hook_resid_post")
    both = {name: (sae, 1.0) for name, sae in dictionaries.items()}
    found = measure(both, held_out_of(lm, hook, cycle(TEXTS), TOKENS, for_loss=TEXTS, **read))
    for name, sae in dictionaries.items():
        expected = recomputed(plain, sae)
        for key, value in expected.items():
            assert found[name][key] == pytest.approx(value, rel=1e-4, abs=1e-6), (name, key)
        random = {"fve_sampled", "stability_rms", "stability_sigma"}  # draw noise
        left = found[name].keys() - expected.keys() - random
        assert {key for key in left if found[name][key] is not None} == set()
        assert bool(expected["positions_left_alone"]) == (case != "every position")
