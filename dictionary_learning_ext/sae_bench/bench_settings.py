"""What SAE Bench's evaluations of a call share, and each one's configuration.

Sizes are SAE Bench's defaults where its own sets are used, and what the books can fill where they
are.
"""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sae_bench.evals.absorption.main as absorption
import sae_bench.evals.core.main as core
import sae_bench.evals.scr_and_tpp.main as scr_and_tpp
import sae_bench.evals.sparse_probing.main as sparse_probing
import torch as t
from transformer_lens import HookedTransformer

from ..errors import BenchError
from .bench_data import BOOKS, CONTEXT, CORE_BOOKS, CORE_SET, PAIRS, BenchData, require_sets

SEED = 42  # SAE Bench's
_SMALLEST_DICT = 20  # N = 2 is a tenth of it


@dataclass(frozen=True)
class Bench:
    """What all SAEs of a call share.

    Attributes:
        model: SAE Bench's form of the language model.
        data: the sets.
        cache: a folder for the language model's activations and probes.
        n_values: how many features SCR and TPP ablate.
        tokens: what core measures on; a fifth of them with the language model's loss.
        ctx_len: tokens in a context.
        train_size, test_size: texts in the probes' sets, or None for the defaults.
        batch_size: contexts per forward pass of the language model.
    """

    model: HookedTransformer
    data: BenchData
    cache: Path
    n_values: tuple[int, ...]
    tokens: int = 100_000
    ctx_len: int = 128
    train_size: int | None = None
    test_size: int | None = None
    batch_size: int = 32

    @property
    def name(self) -> str:
        return str(self.model.cfg.model_name)

    @property
    def device(self) -> str:
        return str(self.model.cfg.device)


def capped_n_values(dict_size: int) -> tuple[int, ...]:
    """SAE Bench's numbers of ablated features, up to a tenth of the dictionary.

    Raises: BenchError for a dictionary that is smaller than ten times the least of them.
    """
    if dict_size < _SMALLEST_DICT:
        raise BenchError(
            f"dict_size={dict_size}: SCR and TPP ablate up to a tenth of the features, 2 at least; "
            f"expected a dict_size of {_SMALLEST_DICT} or more"
        )
    defaults = scr_and_tpp.ScrAndTppEvalConfig().n_values
    return tuple(n for n in defaults if n <= dict_size // 10)


def configure(evaluation: str, bench: Bench) -> Any:
    """SAE Bench's own configuration of an evaluation. Raises BenchError if a set is not there."""
    shared = {"random_seed": SEED, "model_name": bench.name, "llm_dtype": "float32"}
    if evaluation == "core":
        batches = max(1, bench.tokens // (16 * bench.ctx_len))
        if not bench.data.is_embedded:
            require_sets(bench.data, [CORE_SET])
        return core.CoreEvalConfig(
            model_name=bench.name,
            llm_dtype="float32",
            batch_size_prompts=16,
            n_eval_reconstruction_batches=max(1, batches // 5),
            n_eval_sparsity_variance_batches=batches,
            dataset=CORE_BOOKS if bench.data.is_embedded else CORE_SET,
            context_size=bench.ctx_len,
            exclude_special_tokens_from_reconstruction=True,
            compute_kl=True,
            compute_ce_loss=True,
            compute_l2_norms=True,
            compute_sparsity_metrics=True,
            compute_variance_metrics=True,
            compute_featurewise_density_statistics=True,
            compute_featurewise_weight_based_metrics=True,
        )
    if evaluation == "absorption":
        config = absorption.AbsorptionEvalConfig(**shared, llm_batch_size=bench.batch_size)
        config.prompt_token_pos = _word_position(bench.model, config.prompt_template)
        return config
    context = min(bench.ctx_len, CONTEXT) if bench.data.is_embedded else bench.ctx_len
    shared |= {"llm_batch_size": bench.batch_size, "context_length": context}
    if evaluation == "sparse_probing":
        config = sparse_probing.SparseProbingEvalConfig(**shared)
        sizes, names = bench.data.class_sizes, ("probe_train_set_size", "probe_test_set_size")
    else:
        is_scr = evaluation == "scr"
        config = scr_and_tpp.ScrAndTppEvalConfig(**shared, perform_scr=is_scr)
        config.n_values = list(bench.n_values)
        sizes = bench.data.scr_sizes if is_scr else bench.data.class_sizes
        names = ("train_set_size", "test_set_size")
        if bench.data.is_embedded:
            config.column1_vals_lookup = {BOOKS: list(PAIRS)}
    if bench.data.is_embedded:
        config.dataset_names = [BOOKS]
    else:
        require_sets(bench.data, config.dataset_names)
    for which, name, asked in zip((0, 1), names, (bench.train_size, bench.test_size), strict=True):
        most = None if sizes is None else sizes[which]
        if asked is not None and most is not None and asked > most:
            raise BenchError(
                f"{name}={asked}: the embedded books fill at most {most}; ask for less"
            )
        if size := asked or most:
            setattr(config, name, size)
    return config


def seed_everything() -> None:
    """Some of SAE Bench's evaluations take a seed and others use what they find."""
    random.seed(SEED)
    np.random.seed(SEED)
    t.manual_seed(SEED)


def _word_position(model: HookedTransformer, template: str) -> int:
    """Where the word's last token stands in a prompt, from its end: SAE Bench's is Gemma's."""
    tokenizer: Any = model.tokenizer
    after = template.partition("{word}")[2]
    return -len(tokenizer(after, add_special_tokens=False)["input_ids"]) - 1
