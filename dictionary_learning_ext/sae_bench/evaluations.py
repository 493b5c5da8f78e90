"""SAE Bench's evaluations, run by SAE Bench's own functions, which are all called alike.

Core's results also have our metrics.
"""

import random
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import sae_bench.evals.absorption.main as absorption
import sae_bench.evals.core.main as core
import sae_bench.evals.scr_and_tpp.main as scr_and_tpp
import sae_bench.evals.sparse_probing.main as sparse_probing
import torch as t
from datasets import config as datasets_config
from sae_bench.custom_saes.base_sae import BaseSAE
from sae_lens.training.activations_store import ActivationsStore
from threadpoolctl import threadpool_limits

from ..config.architectures import BenchEvaluation
from ..errors import BenchError
from ..evaluation.metrics import Totals, computed, shown_in
from ..run_folder.files import read_json
from ..run_folder.schema import Object
from ..trainers.dictionaries import k_of
from .data import working_in
from .lens_model import left_alone, loaded_by_name, wanted
from .probes import MAX_TOKENS
from .settings import SEED, BenchSettings

RESULT = Object({"eval_result_unstructured": Object(or_null=True)})
"""A result file of SAE Bench."""
_OWN_TEXTS = ("sae_probes", "absorption")
"""The evaluations that read no data set of `settings.data`."""


def evaluate(
    evaluation: BenchEvaluation, sae: BaseSAE, name: str, config: Any, settings: BenchSettings
) -> dict[str, Any]:
    """SAE Bench's result of one SAE, as it would write it to a file of this name.

    What the SAEs of a call share is in the folder `settings.cache / evaluation`.

    Raises: BenchError if the language model doesn't know what absorption asks. SAE Bench's code can raise anything.
    """
    work = settings.cache / evaluation
    output = work / "output"
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    folder = work if evaluation in _OWN_TEXTS else settings.data.folder
    cached = datasets_config.HF_DATASETS_CACHE
    if evaluation == "core" and settings.data.text is not None:
        folder = cached = settings.cache
    with (
        working_in(folder, cached),
        loaded_by_name(settings.model),
        # SAE Bench fits many small probes, which a second thread only slows down.
        threadpool_limits(1, user_api="blas"),
        t.enable_grad(),
    ):
        # Only some of its evaluations take a seed.
        random.seed(SEED)
        np.random.seed(SEED)
        t.manual_seed(SEED)
        arguments: Any = config, [(name, sae)], settings.device, str(output), True
        match evaluation:
            case "core":
                _core(settings, *arguments)
            case "absorption":
                _absorption(work, *arguments)
            case "sae_probes":
                _sae_probes(settings, *arguments)
            case "sparse_probing":
                sparse_probing.run_eval(*arguments, artifacts_path=str(work))
            case _:
                scr_and_tpp.run_eval(*arguments, artifacts_path=str(work))
        paths = list(output.rglob("*.json"))
        if not paths:  # of absorption
            raise BenchError(
                f"{settings.name} at {sae.cfg.hook_name} does not encode enough first letters",
                instead="leave absorption out of evals",
            )
        result = read_json(paths[0], RESULT)
        if evaluation == "core":
            ours = our_metrics(sae, config, settings)
            result["eval_result_unstructured"] = ours | {"text": settings.data.core_text}
    return result


def _core(
    settings: BenchSettings,
    config: Any,
    selected: list[tuple[str, BaseSAE]],
    device: str,
    output: str,
    force_rerun: bool,
) -> None:
    """Core's `multiple_evals` in the place of a `run_eval`. It raises errors that core only logs.

    Positions that training left out keep their activations for CE and KL. SAE Bench's other metrics use every position but
    special tokens, as always.
    """

    def raised(*_: object) -> None:
        raise sys.exc_info()[1] or AssertionError

    with left_alone(settings.model, settings.rule), patch.object(core.logger, "error", raised):
        core.multiple_evals(
            selected,  # pyright: ignore[reportArgumentType]
            config.n_eval_reconstruction_batches,
            config.n_eval_sparsity_variance_batches,
            config.batch_size_prompts,
            compute_featurewise_density_statistics=True,
            compute_featurewise_weight_based_metrics=True,
            exclude_special_tokens_from_reconstruction=True,
            dataset=config.dataset,
            context_size=config.context_size,
            output_folder=output,
            verbose=True,
            device=device,
            force_rerun=force_rerun,
        )


def _absorption(work: Path, *arguments: Any) -> None:
    """`run_eval` with its files in `work`. By default they are in SAE Bench's package, and another model's of the same name
    would be taken."""
    probes, sparse = work / "probes", work / "k_sparse_probing"
    with patch.multiple(
        absorption,
        run_k_sparse_probing_experiment=partial(
            absorption.run_k_sparse_probing_experiment, experiment_dir=sparse, probes_dir=probes
        ),
        run_feature_absortion_experiment=partial(
            absorption.run_feature_absortion_experiment,
            experiment_dir=work / "absorption",
            sparse_probing_experiment_dir=sparse,
            probes_dir=probes,
        ),
    ):
        absorption.run_eval(*arguments)


def _sae_probes(
    settings: BenchSettings,
    config: Any,
    selected: list[tuple[str, BaseSAE]],
    device: str,
    *arguments: Any,
) -> None:
    """`run_eval`, with the language model's activations of texts that are no longer than its context."""
    from sae_bench.evals.sparse_probing_sae_probes.main import run_eval  # takes seconds
    from sae_probes.generate_model_activations import ensure_dataset_activations

    ((name, sae),) = selected
    # It would take what it finds there, which is of another SAE of this name.
    shutil.rmtree(Path(config.results_path) / f"{name}_custom_sae", ignore_errors=True)
    # It changes the tokenizer, which other evaluations use.
    with patch.multiple(settings.model.tokenizer, truncation_side="left", padding_side="right"):
        ensure_dataset_activations(
            settings.name,
            config.dataset_names,
            [sae.cfg.hook_name],
            config.model_cache_path,
            device=device,
            max_seq_len=min(MAX_TOKENS, settings.model.cfg.n_ctx),
            batch_size=settings.batch_size,
            model=settings.model,
        )
        run_eval(config, selected, device, *arguments)  # pyright: ignore[reportArgumentType]


@t.no_grad()
def our_metrics(sae: BaseSAE, config: Any, settings: BenchSettings) -> dict[str, Any]:
    """Our metrics of core's text, on as many tokens from its start, except special tokens and those that training leaves out.

    SAE Bench measures sparsity and variance on the tokens after its batches for CE and KL, because SAELens's store does not
    go back to the start.

    Returns: the metrics shown in "bench", by key; `selected`, how often each feature was selected; `tokens`; and `left_out`, the
    number of tokens that the rule left out besides special ones.
    """
    store = ActivationsStore.from_sae(
        settings.model,
        sae,  # pyright: ignore[reportArgumentType]
        config.dataset,
        context_size=config.context_size,
    )
    store.shuffle_input_dataset(seed=SEED)
    tokenizer: Any = settings.model.tokenizer
    ignored = {tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id}
    k, device = k_of(getattr(sae, "dictionary", None)), sae.W_enc.device
    totals = Totals(sae.cfg.d_in, sae.cfg.d_sae, k, device)
    special = t.tensor([token for token in ignored if token is not None], device=device)
    left_out = 0
    for _ in range(config.n_eval_sparsity_variance_batches):
        tokens_BL = store.get_batch_tokens(config.batch_size_prompts)
        _, cache = settings.model.run_with_cache(
            tokens_BL,
            prepend_bos=False,
            names_filter=[sae.cfg.hook_name],
            stop_at_layer=sae.cfg.hook_layer + 1,
        )
        x_BLD = cache[sae.cfg.hook_name]
        is_ordinary_BL = ~t.isin(tokens_BL, special)
        is_used_BL = is_ordinary_BL & wanted(settings.rule, tokens_BL, x_BLD).to(device)
        left_out += int((is_ordinary_BL & ~is_used_BL).sum())
        x_BD = x_BLD[is_used_BL]
        f_BF = sae.encode(x_BD)
        totals.add(x_BD.double(), sae.decode(f_BF).double(), f_BF.nonzero()[:, 1])
    ours: dict[str, Any] = computed(totals, shown_in("bench"))
    return ours | {
        "selected": totals.selected_F.tolist(),
        "tokens": totals.tokens,
        "left_out": left_out,
    }
