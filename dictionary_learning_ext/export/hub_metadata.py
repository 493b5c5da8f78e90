"""What a model card tells the hub: library, tags, language models, texts, and the SAEs' metrics."""

from collections.abc import Iterable
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from ..config.architectures import BY_DICT_CLASS
from ..evaluation.metrics import shown_in

LIBRARY = "dictionary_learning_ext"
"""What the hub shows as the library that loads the SAEs, and searches by."""
_TAGS = ("sparse-autoencoder", "dictionary_learning", "interpretability")


def card_data(
    repo: str,
    configs: dict[str, dict[str, Any]],
    metrics: dict[str, dict[str, Any]],
    base_models: Iterable[str],
) -> ModelCardData:
    """The metadata of a repository's card; see `hub.card` for the arguments.

    The metrics make the card's model-index, from which the hub shows them. They are those that
    `vsae compare` shows. Where there are several SAEs, a metric's name ends in its SAE's.
    """
    classes = {config["trainer"].get("dict_class") for config in configs.values()}
    architectures = sorted(BY_DICT_CLASS[name].name for name in classes & BY_DICT_CLASS.keys())
    texts = {name: _text(config) for name, config in configs.items()}
    results = [
        result
        for name, measured in metrics.items()
        for result in _results(name if len(configs) > 1 else "", texts[name], measured)
    ]
    return ModelCardData(
        library_name=LIBRARY,
        base_model=list(base_models) or None,
        datasets=sorted({text for text in texts.values() if text.count("/") == 1}) or None,
        tags=[*_TAGS, *architectures],
        model_name=repo.split("/")[1],
        eval_results=results or None,
    )


def _text(config: dict[str, Any]) -> str:
    """The text that an SAE was trained on: embedded, a hub's name, or a file's."""
    settings = config.get("run", {}).get("settings", {})
    return str(settings.get("data") or config.get("buffer", {}).get("text") or "unknown")


def _results(name: str, text: str, measured: dict[str, Any]) -> list[EvalResult]:
    """An SAE's metrics, without those that do not apply to it."""
    text = str(measured.get("measured_on", {}).get("data", text))
    return [
        EvalResult(
            task_type="feature-extraction",
            task_name="Sparse reconstruction of activations",
            dataset_type=text,
            dataset_name=f"{text}, held out",
            dataset_split="heldout",
            metric_type=metric.key,
            metric_name=f"{metric.label} ({name})" if name else metric.label,
            metric_value=measured[metric.key],
            metric_config=name or None,
        )
        for metric in shown_in("compare")
        if measured.get(metric.key) is not None
    ]
