"""SAE Bench's evaluations, by its own functions, with a model object in the place of a name.

Each takes one SAE and returns SAE Bench's own output object. Sizes are SAE Bench's defaults where
its own sets are used, and what the books can fill where they are.
"""

import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from transformer_lens import HookedTransformer

from ..errors import BenchError
from . import usage
from .data import BOOKS, CONTEXT, CORE_BOOKS, CORE_SET, PAIRS, BenchData, heldout_text, require_sets

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


def run_core(sae: BaseSAE, name: str, config: Any, bench: Bench) -> Any:
    """Core, and our own figures of the same tokens in `eval_result_unstructured`."""
    dataset = heldout_text() if bench.data.is_embedded else config.dataset

    def store() -> ActivationsStore:
        made: Any = ActivationsStore.from_sae(
            bench.model,
            sae,  # pyright: ignore[reportArgumentType]
            dataset,
            dataset_trust_remote_code=True,
            context_size=config.context_size,
            device=bench.device,
        )
        if not bench.data.is_embedded:  # the books' passages are in an order that is shuffled
            made.shuffle_input_dataset(seed=SEED)
        return made

    tokenizer: Any = bench.model.tokenizer
    ignored = {tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id}
    scalars, features = core.run_evals(
        sae=sae,  # pyright: ignore[reportArgumentType]
        activation_store=store(),
        model=bench.model,
        eval_config=config,
        ignore_tokens=ignored,
        verbose=True,
    )
    metrics = core.replace_nans_with_negative_one(
        scalars | {"misc_metrics": core.calculate_misc_metrics(features)}
    )
    features = core.replace_nans_with_negative_one(features)
    return core.CoreEvalOutput(
        **_heading(sae, name, config),
        eval_result_metrics=core.CoreMetricCategories(
            model_behavior_preservation=core.ModelBehaviorPreservationMetrics(
                **metrics["model_behavior_preservation"]
            ),
            model_performance_preservation=core.ModelPerformancePreservationMetrics(
                **metrics["model_performance_preservation"]
            ),
            reconstruction_quality=core.ReconstructionQualityMetrics(
                **metrics["reconstruction_quality"]
            ),
            shrinkage=core.ShrinkageMetrics(**metrics["shrinkage"]),
            sparsity=core.SparsityMetrics(**metrics["sparsity"]),
            token_stats=core.TokenStatsMetrics(**metrics["token_stats"]),
            misc_metrics=core.MiscMetrics(**metrics["misc_metrics"]),
        ),
        eval_result_details=core.convert_feature_metrics(features),
        eval_result_unstructured=usage.measure(
            sae,
            bench.model,
            store(),
            batches=config.n_eval_sparsity_variance_batches,
            prompts=config.batch_size_prompts,
            ignored=ignored,
        ),
    )


def run_scr(sae: BaseSAE, name: str, config: Any, bench: Bench) -> Any:
    """Spurious correlation removal."""
    results, _ = _scr_or_tpp(sae, config, bench)
    scalars, details = _split(results)
    metrics = scr_and_tpp.ScrMetrics(**scalars)
    return scr_and_tpp.ScrEvalOutput(
        **_heading(sae, name, config),
        eval_result_metrics=scr_and_tpp.ScrMetricCategories(scr_metrics=metrics),
        eval_result_details=[
            scr_and_tpp.ScrResultDetail(dataset_name=dataset, **values)
            for dataset, values in details.items()
        ],
        eval_result_unstructured={},
    )


def run_tpp(sae: BaseSAE, name: str, config: Any, bench: Bench) -> Any:
    """Targeted probe perturbation."""
    results, per_class = _scr_or_tpp(sae, config, bench)
    scalars, details = _split(results)
    metrics = scr_and_tpp.TppMetrics(**scalars)
    return scr_and_tpp.TppEvalOutput(
        **_heading(sae, name, config),
        eval_result_metrics=scr_and_tpp.TppMetricCategories(tpp_metrics=metrics),
        eval_result_details=[
            scr_and_tpp.TppResultDetail(dataset_name=dataset, **values)
            for dataset, values in details.items()
        ],
        eval_result_unstructured=per_class,
    )


def run_sparse_probing(sae: BaseSAE, name: str, config: Any, bench: Bench) -> Any:
    """Sparse probing."""
    results, per_class = sparse_probing.run_eval_single_sae(
        config,
        sae,  # pyright: ignore[reportArgumentType]
        bench.model,
        bench.device,
        str(bench.cache),
    )
    scalars, details = _split(results)

    def of(prefix: str) -> dict[str, Any]:
        return {key: value for key, value in scalars.items() if key.startswith(prefix)}

    return sparse_probing.SparseProbingEvalOutput(
        **_heading(sae, name, config),
        eval_result_metrics=sparse_probing.SparseProbingMetricCategories(
            llm=sparse_probing.SparseProbingLlmMetrics(**of("llm_")),
            sae=sparse_probing.SparseProbingSaeMetrics(**of("sae_")),
        ),
        eval_result_details=[
            sparse_probing.SparseProbingResultDetail(dataset_name=dataset, **values)
            for dataset, values in details.items()
        ],
        eval_result_unstructured=per_class,
    )


def run_absorption(sae: BaseSAE, name: str, config: Any, bench: Bench) -> Any:
    """First-letter absorption. Raises BenchError where the model does not know first letters."""
    known = _known_letters(config, sae.cfg.hook_layer, bench)
    if len(known) < config.min_feats_for_eval:
        raise BenchError(
            f"{bench.name} at {sae.cfg.hook_name} does not hold enough first letters: linear "
            f"probes find {len(known)} with F1 > {config.min_GT_probe_f1}, SAE Bench asks for "
            f"{config.min_feats_for_eval}; leave it out of --evals, or take a larger language model"
        )
    shared: dict[str, Any] = {
        "model": bench.model,
        "sae": sae,
        "layer": sae.cfg.hook_layer,
        "sae_name": name,
        "max_k_value": config.max_k_value,
        "prompt_template": config.prompt_template,
        "prompt_token_pos": config.prompt_token_pos,
        "device": bench.device,
        "probes_dir": bench.cache / "probes",
    }
    work = bench.cache / "saes"
    shutil.rmtree(work / name, ignore_errors=True)  # of another SAE with this name
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
    per_letter = absorption._aggregate_results_df(raw)
    per_letter = per_letter[per_letter["letter"].isin(known)]
    columns = {
        "absorption_fraction_score": "mean_absorption_fraction",
        "full_absorption_score": "full_absorption_rate",
        "num_split_features": "num_split_feats",
    }
    means = {f"mean_{key}": float(per_letter[c].mean()) for key, c in columns.items()}
    spreads = {f"std_dev_{key}": float(per_letter[c].std()) for key, c in columns.items()}
    return absorption.AbsorptionEvalOutput(
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
        eval_result_unstructured={},
    )


EVALUATIONS: dict[str, Callable[[BaseSAE, str, Any, Bench], Any]] = {
    "core": run_core,
    "scr": run_scr,
    "tpp": run_tpp,
    "sparse_probing": run_sparse_probing,
    "absorption": run_absorption,
}
OUTPUTS: dict[str, type] = {
    "core": core.CoreEvalOutput,
    "scr": scr_and_tpp.ScrEvalOutput,
    "tpp": scr_and_tpp.TppEvalOutput,
    "sparse_probing": sparse_probing.SparseProbingEvalOutput,
    "absorption": absorption.AbsorptionEvalOutput,
}


def seed_everything() -> None:
    """Some of SAE Bench's evaluations take a seed and others use what they find."""
    random.seed(SEED)
    np.random.seed(SEED)
    t.manual_seed(SEED)


def _known_letters(config: Any, layer: int, bench: Bench) -> set[str]:
    """The letters that linear probes on the activations find, which no SAE changes."""
    where: dict[str, Any] = {
        "base_template": config.prompt_template,
        "pos_idx": config.prompt_token_pos,
        "layer": layer,
        "probes_dir": bench.cache / "probes",
        "dtype": t.float32,
        "device": bench.device,
    }
    probe = load_or_train_probe(bench.model, **where)
    activations, words = load_probe_data_split_or_train(bench.model, split="test", **where)
    with t.no_grad():
        found = (probe(activations) > 0).cpu().numpy()
    truth = np.array([letter for _, letter in words])
    scores = {
        letter: f1_score(truth == i, found[:, i], zero_division=0)
        for i, letter in enumerate(LETTERS)
    }
    return {letter for letter, score in scores.items() if score > config.min_GT_probe_f1}


def _scr_or_tpp(sae: BaseSAE, config: Any, bench: Bench) -> tuple[dict, dict]:
    return scr_and_tpp.run_eval_single_sae(
        config,
        sae,  # pyright: ignore[reportArgumentType]
        bench.model,
        bench.device,
        str(bench.cache),
    )


def _split(results: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The averages, and the results of single sets."""
    details = {key: value for key, value in results.items() if isinstance(value, dict)}
    return {key: value for key, value in results.items() if key not in details}, details


def _heading(sae: BaseSAE, name: str, config: Any) -> dict[str, Any]:
    """What every output object has."""
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


def _word_position(model: HookedTransformer, template: str) -> int:
    """Where the word's last token stands in a prompt, from its end: SAE Bench's is Gemma's."""
    tokenizer: Any = model.tokenizer
    after = template.partition("{word}")[2]
    return -len(tokenizer(after, add_special_tokens=False)["input_ids"]) - 1
