"""SAE Bench's evaluations by its own functions, with a model object instead of a name.

Each takes one SAE and returns SAE Bench's own output object.
"""

import shutil
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import sae_bench.evals.absorption.main as absorption
import sae_bench.evals.core.main as core
import sae_bench.evals.scr_and_tpp.main as scr_and_tpp
import sae_bench.evals.sparse_probing.main as sparse_probing
import torch as t
from pydantic import TypeAdapter
from sae_bench.custom_saes.base_sae import BaseSAE
from sae_bench.evals.absorption.common import load_or_train_probe, load_probe_data_split_or_train
from sae_bench.evals.absorption.feature_absorption import run_feature_absortion_experiment
from sae_bench.evals.absorption.k_sparse_probing import run_k_sparse_probing_experiment
from sae_bench.evals.absorption.vocab import LETTERS
from sae_bench.sae_bench_utils import get_eval_uuid, get_sae_bench_version, get_sae_lens_version
from sae_lens.training.activations_store import ActivationsStore
from sklearn.metrics import f1_score

from ..activations.hook_points import block_of_output
from ..config.architectures import BenchEvaluation
from ..errors import BenchError, Setting
from . import feature_usage as usage
from .ablation import encoding_once
from .bench_data import heldout_text
from .bench_settings import SEED, BenchSettings
from .positions import left_alone
from .sae_probes_evaluation import output_type as sae_probes_output
from .sae_probes_evaluation import run_sae_probes

SHUFFLED = 10_000
"""Documents in the buffer that shuffles a streamed data set. SAE Bench's own seed shuffles none."""


def run_core(sae: BaseSAE, name: str, config: Any, settings: BenchSettings) -> Any:
    """Core, with our own metrics in `eval_result_unstructured`.

    Ours are of as many tokens of the same text, from its start. SAE Bench measures sparsity and variance on
    those that follow its batches for CE and KL, as SAELens's store does not go back to the start.

    Another seed than SAE Bench's shuffles the documents, so it measures on other ones where there are
    more than are measured.

    Positions that training left out keep their activations in CE and KL, and our metrics leave them
    out. SAE Bench's other metrics take every position but special tokens, as always.
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
            settings.model,
            store(),
            batches=config.n_eval_sparsity_variance_batches,
            prompts=config.batch_size_prompts,
            ignored=ignored,
            rule=settings.rule,
        ),
    )


def run_scr(sae: BaseSAE, name: str, config: Any, settings: BenchSettings) -> Any:
    """Spurious correlation removal."""
    results, _ = _scr_or_tpp(sae, config, settings)
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


def run_tpp(sae: BaseSAE, name: str, config: Any, settings: BenchSettings) -> Any:
    """Targeted probe perturbation."""
    results, per_class = _scr_or_tpp(sae, config, settings)
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


def run_sparse_probing(sae: BaseSAE, name: str, config: Any, settings: BenchSettings) -> Any:
    """Sparse probing."""
    results, per_class = sparse_probing.run_eval_single_sae(
        config,
        sae,  # pyright: ignore[reportArgumentType]
        settings.model,
        settings.device,
        str(settings.cache),
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


def run_absorption(sae: BaseSAE, name: str, config: Any, settings: BenchSettings) -> Any:
    """First-letter absorption. Raises BenchError if the model does not encode first letters, or SAE
    Bench can't read it where the SAE was trained."""
    layer = block_of_output(sae.cfg.hook_name)
    if layer is None or layer < 0:
        raise BenchError(
            f"it was trained on {sae.cfg.hook_name}; SAE Bench measures absorption only at the output"
            " of a block (blocks.N.hook_resid_post)",
            instead=("leave absorption out of ", Setting("evals")),
        )
    known = _known_letters(config, layer, settings)
    if len(known) < config.min_feats_for_eval:
        raise BenchError(
            f"{settings.name} at {sae.cfg.hook_name} does not encode enough first letters: linear "
            f"probes find {len(known)} with F1 > {config.min_GT_probe_f1}, and SAE Bench needs "
            f"{config.min_feats_for_eval}",
            instead=("leave absorption out of ", Setting("evals")),
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


EVALUATIONS: dict[BenchEvaluation, Callable[[BaseSAE, str, Any, BenchSettings], Any]] = {
    "core": run_core,
    "scr": run_scr,
    "tpp": run_tpp,
    "sparse_probing": run_sparse_probing,
    "sae_probes": run_sae_probes,
    "absorption": run_absorption,
}
NOT_REPEATED: tuple[BenchEvaluation, ...] = ("absorption",)
"""Those that run with one seed: absorption would train the language model's own probes again."""
_OUTPUTS: dict[BenchEvaluation, Callable[[], type]] = {
    "core": lambda: core.CoreEvalOutput,
    "scr": lambda: scr_and_tpp.ScrEvalOutput,
    "tpp": lambda: scr_and_tpp.TppEvalOutput,
    "sparse_probing": lambda: sparse_probing.SparseProbingEvalOutput,
    "sae_probes": sae_probes_output,
    "absorption": lambda: absorption.AbsorptionEvalOutput,
}


def validated(evaluation: BenchEvaluation, found: Any) -> Any:
    """A result's JSON, if it is in SAE Bench's schema. Raises pydantic's ValidationError if not."""
    TypeAdapter(_OUTPUTS[evaluation]()).validate_python(found)
    return found


def _known_letters(config: Any, layer: int, settings: BenchSettings) -> set[str]:
    """The letters that linear probes find in the model's activations. No SAE is involved."""
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


def _scr_or_tpp(sae: BaseSAE, config: Any, settings: BenchSettings) -> tuple[dict, dict]:
    with encoding_once():
        return scr_and_tpp.run_eval_single_sae(
            config,
            sae,  # pyright: ignore[reportArgumentType]
            settings.model,
            settings.device,
            str(settings.cache),
        )


def _split(results: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The averages over data sets, and the results of each."""
    details = {key: value for key, value in results.items() if isinstance(value, dict)}
    return {key: value for key, value in results.items() if key not in details}, details


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
