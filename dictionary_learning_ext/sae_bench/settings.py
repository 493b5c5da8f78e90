"""The settings that SAE Bench's evaluations share, and the configuration of each one.

What is not set here is SAE Bench's default.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sae_bench.evals.absorption.main as absorption
import sae_bench.evals.core.main as core
import sae_bench.evals.scr_and_tpp.main as scr_and_tpp
import sae_bench.evals.sparse_probing.main as sparse_probing
from sae_bench.custom_saes.base_sae import BaseSAE
from transformer_lens import HookedTransformer

from ..activations.positions import PositionRule
from ..config.architectures import BenchEvaluation
from ..config.run import RunConfig
from ..errors import BenchError
from .data import BenchData

SEED = 42  # SAE Bench's
LEAST_TEXTS = 16  # in the sets of probes: a few of each class and attribute
_LEAST_FEATURES = 20  # N = 2 is a tenth of it


@dataclass(frozen=True)
class BenchSettings:
    """The settings that all evaluations of one call share.

    Attributes:
        model: the language model, in TransformerLens's interface.
        rule: the positions that the SAEs' training left out. Core leaves them alone.
        data: the data sets.
        cache: a folder for what the SAEs share: the language model's activations and probes.
        probing_sets: the data sets of sae_probes.
        tokens: how many core measures on. The language model's loss is measured on a fifth of them.
        train_size, test_size: the numbers of texts in the probes' sets. None: the defaults.
        batch_size: contexts per forward pass.
    """

    model: HookedTransformer
    rule: PositionRule
    data: BenchData
    cache: Path
    probing_sets: tuple[str, ...] = ()
    tokens: int = RunConfig.eval_tokens
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


def configure(evaluation: BenchEvaluation, settings: BenchSettings, sae: BaseSAE) -> Any:
    """SAE Bench's own configuration of an evaluation.

    Raises: BenchError if SAE Bench can't take the SAE.
    """
    match evaluation:
        case "core":
            return _core(settings)
        case "absorption":
            return _absorption(settings, sae)
        case "sae_probes":
            return _sae_probes(settings)
        case _:
            return _on_classes(evaluation, settings, sae)


def _core(settings: BenchSettings) -> Any:
    batches = max(1, settings.tokens // (16 * settings.ctx_len))
    return core.CoreEvalConfig(
        model_name=settings.name,
        batch_size_prompts=16,
        n_eval_reconstruction_batches=max(1, batches // 5),
        n_eval_sparsity_variance_batches=batches,
        dataset=settings.data.core_set,
        context_size=settings.ctx_len,
        exclude_special_tokens_from_reconstruction=True,
    )


def _absorption(settings: BenchSettings, sae: BaseSAE) -> Any:
    if not sae.cfg.hook_name.endswith(".hook_resid_post"):
        raise BenchError(
            f"these SAEs were trained on {sae.cfg.hook_name}; SAE Bench measures absorption only at the output"
            " of a block (blocks.N.hook_resid_post)",
            instead="leave absorption out of evals",
        )
    config = absorption.AbsorptionEvalConfig(
        random_seed=SEED, model_name=settings.name, llm_batch_size=settings.batch_size
    )
    # The position of the word's last token, from the prompt's end. SAE Bench's is for Gemma.
    tokenizer: Any = settings.model.tokenizer
    after = config.prompt_template.partition("{word}")[2]
    config.prompt_token_pos = -len(tokenizer(after, add_special_tokens=False)["input_ids"]) - 1
    return config


def _sae_probes(settings: BenchSettings) -> Any:
    # Imported here because it takes seconds.
    from sae_bench.evals.sparse_probing_sae_probes.eval_config import (
        SparseProbingSaeProbesEvalConfig,
    )

    return SparseProbingSaeProbesEvalConfig(
        model_name=settings.name, random_seed=SEED, dataset_names=list(settings.probing_sets)
    )


def _on_classes(evaluation: BenchEvaluation, settings: BenchSettings, sae: BaseSAE) -> Any:
    """SAE Bench's configuration of SCR, TPP or sparse probing, whose texts have classes."""
    shared = {
        "random_seed": SEED,
        "model_name": settings.name,
        "llm_dtype": "float32",
        "llm_batch_size": settings.batch_size,
        "context_length": settings.ctx_len,
    }
    if evaluation == "sparse_probing":
        config = sparse_probing.SparseProbingEvalConfig(**shared)
        names = "probe_train_set_size", "probe_test_set_size"
    else:
        if sae.cfg.d_sae < _LEAST_FEATURES:
            raise BenchError(
                f"an SAE has {sae.cfg.d_sae} features: expected {_LEAST_FEATURES} or more for SCR and TPP, "
                "which ablate at least 2 features and at most a tenth of them"
            )
        config = scr_and_tpp.ScrAndTppEvalConfig(**shared, perform_scr=evaluation == "scr")
        config.n_values = [n for n in config.n_values if n <= sae.cfg.d_sae // 10]
        names = "train_set_size", "test_set_size"
    for name, size in zip(names, (settings.train_size, settings.test_size), strict=True):
        if size is not None:
            setattr(config, name, size)
    return config
