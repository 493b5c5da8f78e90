"""SAE Bench's evaluations by its own functions, with a model object instead of a name.

Each `run_…` takes one SAE and returns SAE Bench's own output as a dict.
"""

import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Any
from unittest.mock import patch

import numpy as np
import sae_bench.evals.absorption.main as absorption
import sae_bench.evals.core.main as core
import sae_bench.evals.scr_and_tpp.main as scr_and_tpp
import sae_bench.evals.sparse_probing.main as sparse_probing
import torch as t
from sae_bench.custom_saes.base_sae import BaseSAE
from sae_bench.evals.absorption.common import load_or_train_probe, load_probe_data_split_or_train
from sae_bench.evals.absorption.feature_absorption import run_feature_absortion_experiment
from sae_bench.evals.absorption.k_sparse_probing import run_k_sparse_probing_experiment
from sae_bench.evals.absorption.vocab import LETTERS
from sae_bench.sae_bench_utils import get_eval_uuid, get_sae_bench_version, get_sae_lens_version
from sae_lens.training.activations_store import ActivationsStore
from sklearn.metrics import f1_score
from torch.utils.weak import WeakTensorKeyDictionary
from transformer_lens import HookedTransformer

from ..activations.hook_points import block_of_output
from ..config.architectures import BenchEvaluation
from ..errors import BenchError
from ..evaluation.metrics import Totals, computed, shown_in
from ..trainers.dictionaries import k_of
from .data import heldout_text
from .lens_model import left_alone, stopped_after, wanted
from .probes import run_sae_probes
from .settings import SEED, BenchSettings

SHUFFLED = 10_000
"""The number of documents in the buffer that shuffles a streamed data set. With SAE Bench's own seed nothing is shuffled."""
NOTE = (
    "SAE Bench 0.6.0's explained_variance is wrong: it subtracts the square of a grand mean of "
    "squares where the mean activation's is meant. explained_variance_legacy is the mean over "
    "tokens of 1 - residual / token's variance, the SAE Bench paper's. fve is 1 - residual / total "
    "variance. frac_alive of SAE Bench counts features above 0; alive counts those that are not 0."
)
"""A note that is written beside our metrics in a result of core."""


def run_core(sae: BaseSAE, name: str, config: Any, settings: BenchSettings) -> Any:
    """Core, with our own metrics in `eval_result_unstructured`.

    Our metrics are measured on as many tokens of the same text, from its start. SAE Bench measures sparsity and variance on
    the tokens after its batches for CE and KL, because SAELens's store does not go back to the start.

    Seeds other than SAE Bench's shuffle the documents. So they measure on other documents, if there are more than are needed.

    Positions that training left out keep their activations for CE and KL, and are left out of our metrics. SAE Bench's other
    metrics use every position but special tokens, as always.
    """
    dataset = heldout_text() if settings.data.is_embedded else config.dataset

    def store() -> ActivationsStore:
        made: Any = ActivationsStore.from_sae(
            settings.model,
            sae,  # pyright: ignore[reportArgumentType]
            dataset,
            dataset_trust_remote_code=False,
            context_size=config.context_size,
            device=settings.device,
        )
        # The embedded books are shuffled already.
        if not settings.data.is_embedded or settings.seed != SEED:
            buffer = {} if settings.seed == SEED else {"buffer_size": SHUFFLED}
            made.shuffle_input_dataset(seed=settings.seed, **buffer)
        return made

    tokenizer: Any = settings.model.tokenizer
    ignored = {tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id}
    with left_alone(settings.model, settings.rule):
        scalars, features = core.run_evals(
            sae=sae,  # pyright: ignore[reportArgumentType]
            activation_store=store(),
            model=settings.model,
            eval_config=config,
            ignore_tokens=ignored,
            verbose=True,
        )
    metrics: Any = core.replace_nans_with_negative_one(
        scalars | {"misc_metrics": core.calculate_misc_metrics(features)}
    )
    output = core.CoreEvalOutput(
        **_heading(sae, name, config),
        eval_result_metrics=core.CoreMetricCategories(**metrics),  # pydantic makes their classes
        eval_result_details=core.convert_feature_metrics(
            core.replace_nans_with_negative_one(features)
        ),
        eval_result_unstructured=our_metrics(sae, store(), config, settings, ignored),
    )
    return asdict(output)


@t.no_grad()
def our_metrics(
    sae: BaseSAE,
    store: ActivationsStore,
    config: Any,
    settings: BenchSettings,
    ignored: set[int | None],
) -> dict[str, Any]:
    """Our metrics on a store's tokens, except the `ignored` ones and those that training leaves out.

    Returns: the metrics shown in "bench", by key; `selected`, how often each feature was selected; `tokens`; `left_out`, the
    number of tokens that the rule left out besides the ignored ones; and `note`, see NOTE.
    """
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
        "note": NOTE,
    }


def run_on_classes(sae: BaseSAE, name: str, config: Any, settings: BenchSettings) -> Any:
    """Spurious correlation removal, targeted probe perturbation or sparse probing, depending on the configuration."""
    is_probing = isinstance(config, sparse_probing.SparseProbingEvalConfig)
    module = sparse_probing if is_probing else scr_and_tpp
    loader = "from_pretrained_no_processing"
    with encoding_once(), patch.object(HookedTransformer, loader, return_value=settings.model):
        outputs = module.run_eval(
            config,
            [(name, sae)],  # pyright: ignore[reportArgumentType]
            settings.device,
            str(settings.cache / "output"),
            force_rerun=True,
            artifacts_path=str(settings.cache),
        )
    (output,) = outputs.values()
    return output


def encoding_once() -> AbstractContextManager[Any]:
    """Within the block, SCR and TPP of an SAE encode each text once instead of once per ablation.

    For every class and every N, SAE Bench encodes a test set, zeroes N features, decodes with and without them, and averages
    over each text's tokens. With a linear decoder, the result is the mean activation minus the ablated features' means times
    their decoder directions.
    """
    means_of = WeakTensorKeyDictionary()

    @t.no_grad()
    def ablated(acts_BLD: t.Tensor, sae: BaseSAE, to_ablate_F: t.Tensor, batch: int) -> t.Tensor:
        """Each text's mean activation, (B, D), without some features. Padded tokens are all 0."""
        if acts_BLD not in means_of:
            means_of[acts_BLD] = _means(acts_BLD, sae, batch)
        x_BD, f_BF = means_of[acts_BLD]
        removed_BD = f_BF[:, to_ablate_F] @ sae.W_dec[to_ablate_F].to(f_BF.dtype)
        return (x_BD - removed_BD).to(acts_BLD.dtype)

    return patch.object(scr_and_tpp, "ablated_precomputed_activations", ablated)


def _means(acts_BLD: t.Tensor, sae: BaseSAE, batch_size: int) -> tuple[t.Tensor, t.Tensor]:
    """The mean activations (B, D) and features (B, F) of each text, in fp32 or wider."""
    x, f = [], []
    for batch_BLD in acts_BLD.split(batch_size):
        dtype = t.promote_types(batch_BLD.dtype, t.float32)
        counted_B = (batch_BLD.sum(-1) != 0).sum(-1, keepdim=True).to(dtype)
        x.append(batch_BLD.sum(1, dtype=dtype) / counted_B)
        f.append(sae.encode(batch_BLD).sum(1, dtype=dtype) / counted_B)
    return t.cat(x), t.cat(f)


def run_absorption(sae: BaseSAE, name: str, config: Any, settings: BenchSettings) -> Any:
    """First-letter absorption. SAE Bench only reads activations at the SAE's layer, no logits.

    Raises: BenchError if the model does not encode first letters, or if SAE Bench can't read it where
    the SAE was trained.
    """
    layer = block_of_output(sae.cfg.hook_name)
    if layer is None or layer < 0:
        raise BenchError(
            f"it was trained on {sae.cfg.hook_name}; SAE Bench measures absorption only at the output"
            " of a block (blocks.N.hook_resid_post)",
            instead="leave absorption out of evals",
        )
    with stopped_after(settings.model, layer):
        return _absorption(sae, name, config, settings, layer)


def _absorption(
    sae: BaseSAE, name: str, config: Any, settings: BenchSettings, layer: int
) -> dict[str, Any]:
    known = _known_letters(config, layer, settings)
    if len(known) < config.min_feats_for_eval:
        raise BenchError(
            f"{settings.name} at {sae.cfg.hook_name} does not encode enough first letters: linear "
            f"probes find {len(known)} with F1 > {config.min_GT_probe_f1}, and SAE Bench needs "
            f"{config.min_feats_for_eval}",
            instead="leave absorption out of evals",
        )
    shared: dict[str, Any] = {
        "model": settings.model,
        "sae": sae,
        "layer": layer,
        "sae_name": name,
        "max_k_value": config.max_k_value,
        "prompt_template": config.prompt_template,
        "prompt_token_pos": config.prompt_token_pos,
        "device": settings.device,
        "probes_dir": settings.cache / "probes",
    }
    work = settings.cache / "saes"
    shutil.rmtree(work / name, ignore_errors=True)  # may belong to another SAE of this name
    run_k_sparse_probing_experiment(
        **shared,
        experiment_dir=work / name / "k_sparse_probing",
        f1_jump_threshold=config.f1_jump_threshold,
        k_sparse_probe_l1_decay=config.k_sparse_probe_l1_decay,
        k_sparse_probe_batch_size=config.k_sparse_probe_batch_size,
        k_sparse_probe_num_epochs=config.k_sparse_probe_num_epochs,
        eval_batch_size=config.eval_k_sparse_probe_batch_size,
        precalc_k_sparse_probe_sae_acts=config.precalc_k_sparse_probe_sae_acts,
    )
    raw = run_feature_absortion_experiment(
        **shared,
        experiment_dir=work / name / "absorption",
        sparse_probing_experiment_dir=work / name / "k_sparse_probing",
        feature_split_f1_jump_threshold=config.f1_jump_threshold,
        batch_size=config.llm_batch_size,
    )
    per_letter: Any = absorption._aggregate_results_df(raw)
    per_letter = per_letter[per_letter["letter"].isin(known)]
    columns = {
        "absorption_fraction_score": "mean_absorption_fraction",
        "full_absorption_score": "full_absorption_rate",
        "num_split_features": "num_split_feats",
    }
    means = {f"mean_{key}": float(per_letter[c].mean()) for key, c in columns.items()}
    spreads = {f"std_dev_{key}": float(per_letter[c].std()) for key, c in columns.items()}
    output = absorption.AbsorptionEvalOutput(
        **_heading(sae, name, config),
        eval_result_metrics=absorption.AbsorptionMetricCategories(
            mean=absorption.AbsorptionMeanMetrics(**means, **spreads)
        ),
        eval_result_details=[
            absorption.AbsorptionResultDetail(
                first_letter=row["letter"],
                mean_absorption_fraction=row["mean_absorption_fraction"],
                full_absorption_rate=row["full_absorption_rate"],
                num_full_absorption=int(row["num_full_absorption"]),
                num_probe_true_positives=int(row["num_probe_true_positives"]),
                num_split_features=int(row["num_split_feats"]),
            )
            for row in per_letter.to_dict("records")
        ],
    )
    return asdict(output)


def _known_letters(config: Any, layer: int, settings: BenchSettings) -> set[str]:
    """The first letters that linear probes find in the language model's activations. No SAE is involved."""
    where: dict[str, Any] = {
        "base_template": config.prompt_template,
        "pos_idx": config.prompt_token_pos,
        "layer": layer,
        "probes_dir": settings.cache / "probes",
        "dtype": t.float32,
        "device": settings.device,
    }
    probe = load_or_train_probe(settings.model, **where)
    activations, words = load_probe_data_split_or_train(settings.model, split="test", **where)
    with t.no_grad():
        found = (probe(activations) > 0).cpu().numpy()
    truth = np.array([letter for _, letter in words])
    no_warning: Any = {"zero_division": 0}
    scores = {
        letter: f1_score(truth == i, found[:, i], **no_warning) for i, letter in enumerate(LETTERS)
    }
    return {letter for letter, score in scores.items() if score > config.min_GT_probe_f1}


def _heading(sae: BaseSAE, name: str, config: Any) -> dict[str, Any]:
    """The fields that every output object has."""
    return {
        "eval_config": config,
        "eval_id": get_eval_uuid(),
        "datetime_epoch_millis": int(time.time() * 1000),
        "sae_bench_commit_hash": get_sae_bench_version(),
        "sae_lens_id": "custom_sae",
        "sae_lens_release_id": name,
        "sae_lens_version": get_sae_lens_version(),
        "sae_cfg_dict": sae.cfg.to_dict(),
    }


EVALUATIONS: dict[BenchEvaluation, Callable[[BaseSAE, str, Any, BenchSettings], Any]] = {
    "core": run_core,
    "scr": run_on_classes,
    "tpp": run_on_classes,
    "sparse_probing": run_on_classes,
    "sae_probes": run_sae_probes,
    "absorption": run_absorption,
}
NOT_REPEATED: tuple[BenchEvaluation, ...] = ("absorption",)
"""The evaluations that run with a single seed. With each seed, absorption would train the language model's probes again."""
