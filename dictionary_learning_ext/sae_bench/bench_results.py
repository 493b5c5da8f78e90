"""The results of SAE Bench: those of one call, and the files that hold them."""

import hashlib
import json
import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nnsight import LanguageModel
from pydantic import ValidationError
from sae_bench.custom_saes.base_sae import BaseSAE

from ..activations.hook_points import HookPoint
from ..activations.language_models import weights_hash
from ..config.architectures import BenchEvaluation
from ..errors import BenchError
from ..evaluation.metrics import shown_in
from .bench_data import local_files
from .bench_settings import SEED, BenchSettings
from .evaluations import validated

logger = logging.getLogger(__name__)

NOT_IN_CACHE: dict[BenchEvaluation, tuple[str, ...]] = {
    "scr": ("n_values",),
    "tpp": ("n_values",),
    "sae_probes": ("random_seed", "include_llm_baseline", "dataset_names"),
}
"""The settings of an evaluation that its cache does not depend on."""


@dataclass
class BenchResults:
    """The results and failures of one call of `bench`.

    Attributes:
        results: SAE Bench's JSON of what succeeded, by the SAE's label and the evaluation, with SAE
            Bench's own seed.
        repeats: the same with other seeds, by the seed.
        failures: the labels of the SAEs that failed, by evaluation and cause.
    """

    results: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    repeats: dict[int, dict[str, dict[str, dict[str, Any]]]] = field(default_factory=dict)
    failures: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    def of_seed(self, seed: int) -> dict[str, dict[str, dict[str, Any]]]:
        """The results with one seed."""
        return self.results if seed == SEED else self.repeats.setdefault(seed, {})

    def failure_lines(self) -> list[str]:
        """One line per evaluation and cause."""
        return [
            f"{evaluation} of {', '.join(labels)}: {cause}"
            for (evaluation, cause), labels in self.failures.items()
        ]

    def check(self) -> None:
        """Raise a BenchError if an evaluation failed."""
        if self.failures:
            raise BenchError(
                f"failed: {'; '.join(self.failure_lines())} (what succeeded is kept; run the same "
                "command again to run only the rest)"
            )


def finished(
    path: Path, evaluation: BenchEvaluation, key: str | None = None
) -> dict[str, Any] | None:
    """The content of a result file, or None if it is missing, incomplete or not the one of `key`.

    Arguments:
        key: the result's expected "vsae_bench_key"; None accepts any.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        validated(evaluation, found)
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, UnicodeDecodeError, ValidationError) as error:
        logger.warning("%s is incomplete (%s) and will be replaced", path, type(error).__name__)
        return None
    if key is not None and found["eval_result_unstructured"].get("vsae_bench_key") != key:
        logger.warning("%s belongs to another SAE, model or settings and will be replaced", path)
        return None
    return found


def result_key(
    evaluation: BenchEvaluation, config: Any, settings: BenchSettings, model: str, sae: BaseSAE
) -> str:
    """Identifies what a result depends on.

    Arguments:
        config: SAE Bench's, of the evaluation.
        model: the model's key.
    """
    parts = [model, asdict(config), weights_key(sae)]
    if evaluation == "core":  # it holds our metrics: made again where one was redefined
        parts.append([metric.definition for metric in shown_in("bench")])
        if settings.remove_bos or settings.max_norm_multiple is not None:
            parts.append([settings.remove_bos, settings.max_norm_multiple])
        if settings.seed != SEED:
            parts.append(settings.seed)
    return digest(*parts, *local_files(settings.data, config))


def cache_name(
    evaluation: BenchEvaluation, config: Any, settings: BenchSettings, model: str
) -> str:
    """The folder for what SAEs share: the language model's activations, and probes on them.

    Arguments are `result_key`'s.
    """
    left_out = NOT_IN_CACHE.get(evaluation, ())
    sizes = {name: v for name, v in asdict(config).items() if name not in left_out}
    return f"{evaluation}_{digest(model, sizes, *local_files(settings.data, config))}"


def model_key(model: LanguageModel, hook: HookPoint) -> str:
    """Identifies the activations that an SAE is measured on."""
    return f"{weights_hash(model)} {hook.name}"


def weights_key(sae: BaseSAE) -> str:
    """Identifies an SAE by its weights."""
    hasher = hashlib.sha256()
    for name, value in sorted(sae.state_dict().items()):
        hasher.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    return hasher.hexdigest()


def digest(*parts: Any) -> str:
    """A short hash of what can be written as JSON, the same in every process."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
