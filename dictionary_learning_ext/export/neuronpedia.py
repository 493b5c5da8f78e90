"""An SAE's features as the JSON batches that Neuronpedia's upload takes.

    batch-0.json, …     some features each, in SAEDashboard's schema
    run_settings.json   what they were measured on

The schema is `NeuronpediaDashboardBatch` of sae-dashboard 0.8.0. Neuronpedia's converter reads it
(utils/neuronpedia-utils/…/convert-saedashboard-to-neuronpedia-export.py in its repository), and asks for the names of the
author and the release. Activations are those of the SAE for raw activations (of a vSAE, the mean). As in SAEDashboard,
features that were never selected are left out. Correlations with neurons and other features are empty lists.
"""

import importlib.metadata
import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch as t

from ..codes.contexts import KeptContext, token_text
from ..codes.table import FeatureTable
from ..config.run import RunConfig
from ..evaluation.folders import OpenedFolders
from ..features.directions import LogitLens, decoder_directions
from ..run_folder.files import at_home, write_json, write_text
from .formats import ExportedSAE

_Text = Callable[[int], str]
FEATURES_PER_BATCH = 128
NEURONPEDIA_TOKENS = RunConfig.eval_tokens
"""The default number of held-out tokens to measure on."""
RUN_SETTINGS = "run_settings.json"
_TOP_CONTEXTS = {"bin_min": -1.0, "bin_max": 99.0, "bin_contains": -1.0}
"""The fields by which Neuronpedia recognises the contexts with the largest activations."""
_KEPT = 20  # contexts of each kind
_BEFORE, _AFTER = 64, 32  # tokens of a context, around the one that it is kept for
_INTERVALS = 5
_LOGIT_BINS = 50
_TOKENS_SHOWN = 10  # those that a feature promotes and suppresses most
_NEURONS_SHOWN = 3
_UNMEASURED = (
    "correlated_neurons_indices",
    "correlated_neurons_l1",
    "correlated_neurons_pearson",
    "correlated_features_indices",
    "correlated_features_l1",
    "correlated_features_pearson",
    "decoder_weights_dist",
    "vector",
)


def exported_features(
    source: ExportedSAE, settings: RunConfig, tokens: int, folder: str | Path
) -> tuple[FeatureTable, LogitLens]:
    """Statistics of an SAE's features on at most `tokens` of the run's held-out text, and its logit lens.

    Arguments:
        folder: the name of the SAE. Its codes are kept beside it.

    Raises: TextError if the held-out text has no whole context; LanguageModelError if the language
    model has no final norm or unembedding.
    """
    lens = LogitLens(source.language_model.module)
    if settings.activations is not None and not at_home(settings.activations).is_dir():
        settings = replace(settings, activations=None)
    saes = {str(folder): (source.dictionary, source.config)}
    opened = OpenedFolders(settings, saes, tokens, language_model=source.language_model)
    (codes,) = opened.codes().values()
    table = FeatureTable(
        codes,
        top=_KEPT,
        sampled=_KEPT,
        before=min(settings.ctx_len, _BEFORE),
        after=min(settings.ctx_len, _AFTER),
    )
    return table, lens


def write_neuronpedia(
    folder: Path,
    source: ExportedSAE,
    statistics: FeatureTable,
    lens: LogitLens,
) -> None:
    """Write the features that were selected into an empty folder.

    Raises: CheckpointError if the files can't be written.
    """
    shared_fields = {
        "n_prompts_total": -(-statistics.tokens // source.run.ctx_len),
        "n_tokens_in_prompt": source.run.ctx_len,
        "dataset": source.run.data,
    }
    alive = statistics.alive_F.nonzero().flatten()
    directions_FD = decoder_directions(source.dictionary)
    text = cache(partial(token_text, source.language_model.tokenizer))
    for number, some_N in enumerate(alive.split(FEATURES_PER_BATCH) if len(alive) else ()):
        logits_NV = lens.logits(directions_FD[some_N]).cpu()
        parts = zip(some_N.tolist(), directions_FD[some_N], logits_NV, strict=True)
        content = {
            "model_id": source.run.model.rpartition("/")[2],
            "layer": source.hook.layer,
            "sae_set": source.name,
            "sae_id_suffix": None,
            "features": [_feature(statistics, *part, text) | shared_fields for part in parts],
        }
        # Without write_json's indentation, which makes it four times as long.
        write_text(folder / f"batch-{number}.json", json.dumps(content))
    settings = shared_fields | {
        "model": source.run.model,
        "hook_name": source.run.hook,
        "dict_size": source.dictionary.dict_size,
        "n_tokens": statistics.tokens,
        "n_features": len(alive),
        "dictionary_learning_ext": importlib.metadata.version("dictionary-learning-ext"),
    }
    write_json(folder / RUN_SETTINGS, settings)


def _feature(
    statistics: FeatureTable,
    feature: int,
    direction_D: t.Tensor,
    logits_V: t.Tensor,
    text: _Text,
) -> dict[str, Any]:
    """The fields of a feature, without those that all features share. `text` gives the text of a token."""
    counts, width = statistics.histogram(feature), float(statistics.bin_width_F[feature])
    return {
        "feature_index": feature,
        "frac_nonzero": _rounded(statistics.firing_rate_F[feature]),
        **_alignment(direction_D),
        **_logits(logits_V, text),
        # A histogram of the activations' magnitudes. A bar stands at the middle of its bin.
        "freq_hist_data_bar_heights": counts.tolist(),
        "freq_hist_data_bar_values": _rounded_all((np.arange(len(counts)) + 0.5) * width),
        "activations": _activations(statistics, feature, text),
        **{name: [] for name in _UNMEASURED},
    }


def _alignment(direction_D: t.Tensor) -> dict[str, Any]:
    """The neurons (dimensions of the activations) that a decoder direction points along most."""
    top = direction_D.topk(min(_NEURONS_SHOWN, len(direction_D)))
    return {
        "neuron_alignment_indices": top.indices.tolist(),
        "neuron_alignment_values": _rounded_all(top.values),
        "neuron_alignment_l1": _rounded_all(top.values / direction_D.abs().sum()),
    }


def _logits(logits_V: t.Tensor, text: _Text) -> dict[str, Any]:
    """The tokens that a feature promotes and suppresses most, and the histogram over all tokens."""
    n = min(_TOKENS_SHOWN, len(logits_V))
    top, bottom = logits_V.topk(n), logits_V.topk(n, largest=False)
    heights, edges = np.histogram(logits_V.numpy(), bins=_LOGIT_BINS)
    return {
        "pos_str": [text(token) for token in top.indices.tolist()],
        "pos_values": _rounded_all(top.values),
        "neg_str": [text(token) for token in bottom.indices.tolist()],
        "neg_values": _rounded_all(bottom.values),
        "logits_hist_data_bar_heights": heights.tolist(),
        "logits_hist_data_bar_values": _rounded_all((edges[:-1] + edges[1:]) / 2),
    }


def _activations(statistics: FeatureTable, feature: int, text: _Text) -> list[dict[str, Any]]:
    """A feature's contexts: those with its largest activations, then drawn ones, by interval.

    The intervals divide the range of the activations' magnitudes. `bin_contains` is the share of activations in an interval.
    """
    shown = [_TOP_CONTEXTS | _shown(each, text) for each in statistics.top.of(feature)]
    counts, width = statistics.histogram(feature), float(statistics.bin_width_F[feature])
    drawn = statistics.sampled.of(feature)
    for bins in reversed(np.array_split(np.arange(len(counts)), _INTERVALS)):
        if not len(bins):
            continue
        low, high = bins[0] * width, (bins[-1] + 1) * width
        interval = {
            "bin_min": _rounded(low),
            "bin_max": _rounded(high),
            "bin_contains": _rounded(counts[bins].sum() / counts.sum()),
        }
        inside = [each for each in drawn if low <= abs(each.activation) < high]
        shown += [interval | _shown(each, text) for each in inside]
    return shown


def _shown(context: KeptContext, text: _Text) -> dict[str, Any]:
    """The tokens of a context, and the feature's activation at each."""
    return {
        "tokens": [text(token) for token in context.ids],
        "values": [_rounded(value) for value in context.activations],
        "qualifying_token_index": context.at,
    }


def _rounded(value: Any) -> float:
    """A number rounded to six significant digits. -0 becomes 0."""
    return float(f"{float(value):.6g}") + 0.0


def _rounded_all(values: Any) -> list[float]:
    return [_rounded(value) for value in values.tolist()]
