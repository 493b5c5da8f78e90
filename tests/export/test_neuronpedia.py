"""Batches for Neuronpedia: the schema of sae-dashboard's own classes, and the numbers in them."""

import functools
import json

import numpy as np
import pytest
import torch as t
from export_folders import F
from planted_sinks import saved_with_sinks

from dictionary_learning_ext import load_dictionary
from dictionary_learning_ext.activations.inputs import open_inputs, open_model
from dictionary_learning_ext.codes.contexts import token_text
from dictionary_learning_ext.export import neuronpedia
from dictionary_learning_ext.export.exporter import export
from dictionary_learning_ext.features.directions import LogitLens, decoder_directions

TOKENS = 1000
LISTS = {
    "neuron_alignment_indices": int,
    "neuron_alignment_values": float,
    "neuron_alignment_l1": float,
    "neg_str": str,
    "neg_values": float,
    "pos_str": str,
    "pos_values": float,
    "freq_hist_data_bar_values": float,
    "freq_hist_data_bar_heights": int,
    "logits_hist_data_bar_heights": int,
    "logits_hist_data_bar_values": float,
}
EMPTY = {
    "correlated_neurons_indices",
    "correlated_neurons_l1",
    "correlated_neurons_pearson",
    "correlated_features_indices",
    "correlated_features_l1",
    "correlated_features_pearson",
    "decoder_weights_dist",
    "vector",
}
SINGLE = {"feature_index", "frac_nonzero", "n_prompts_total", "n_tokens_in_prompt", "dataset"}


def read(folder):
    """Its batches in order, and their features by number."""
    paths = sorted(folder.glob("batch-*.json"), key=lambda path: int(path.stem.split("-")[1]))
    batches = [json.loads(path.read_text()) for path in paths]
    return batches, {one["feature_index"]: one for each in batches for one in each["features"]}


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """Exports a run folder's features. Returns the run folder, and the export's batches and features."""

    @functools.cache
    def of(name):
        folder = trained[0][name]
        out = tmp_path_factory.mktemp("exports") / name
        return folder, *read(export(folder, "neuronpedia", out, tokens=TOKENS).folder)

    return of


@pytest.fixture
def encoded(trained):
    """An SAE's features at the held-out tokens: (N, F), and the tokens, (N)."""

    def of(folder):
        run = trained[1]
        sae = load_dictionary(folder)[0]
        batches = list(open_inputs(run, [run.hook]).contexts(run.hook, "heldout", TOKENS))
        f = t.cat([sae.encode(batch.x_BLD[batch.wanted_BL]) for batch in batches])
        return f, t.cat([batch.input_ids_BL[batch.wanted_BL] for batch in batches])

    return of


def test_a_run_whose_cache_is_gone_is_exported(folder_of, tmp_path):
    folder = folder_of("vsae")
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["run"]["settings"]["activations"] = "no/longer/there"
    path.write_text(json.dumps(config))
    assert read(export(folder, "neuronpedia", tmp_path / "out", tokens=200).folder)[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["signed", "vsae", "vaease", "top_k", "relu", "jump_relu"])
def test_every_class_is_written_in_the_schema(name, exported, tiny_lm_dir):
    _, batches, features = exported(name)
    assert features
    for batch in batches:
        assert set(batch) == {"model_id", "layer", "sae_set", "sae_id_suffix", "features"}
        assert (batch["model_id"], batch["layer"], batch["sae_set"]) == (tiny_lm_dir.name, 1, name)
    for feature in features.values():
        assert set(feature) == LISTS.keys() | EMPTY | SINGLE | {"activations"}
        for key, kind in LISTS.items():
            assert all(type(value) is kind for value in feature[key]), key
        assert all(feature[key] == [] for key in EMPTY)
        for shown in feature["activations"]:
            assert len(shown["tokens"]) == len(shown["values"])
            assert shown["tokens"][shown["qualifying_token_index"]]


def test_sae_dashboards_own_classes_take_it_and_give_it_back(exported):
    dashboard = pytest.importorskip(
        "sae_dashboard.neuronpedia.neuronpedia_dashboard", reason="needs sae-dashboard"
    )
    _, batches, _ = exported("vsae")
    for batch in batches:
        assert dashboard.NeuronpediaDashboardBatch(**batch).to_dict() == batch


def test_frequency_and_histogram_are_those_of_the_encoded_text(exported, encoded):
    folder, _, features = exported("vsae")
    f_NF, _ = encoded(folder)
    assert sorted(features) == (f_NF != 0).any(0).nonzero().flatten().tolist()
    for index, feature in features.items():
        values = f_NF[:, index]
        share = (values != 0).double().mean().item()
        assert feature["frac_nonzero"] == pytest.approx(share, rel=1e-4)
        heights = feature["freq_hist_data_bar_heights"]
        centres = feature["freq_hist_data_bar_values"]
        assert sum(heights) == int((values != 0).sum())
        if len(centres) > 1:
            width = centres[1] - centres[0]
            edges = np.array(centres) - width / 2
            expected = np.histogram(values[values != 0].abs(), [*edges, edges[-1] + width])[0]
            assert np.abs(np.array(heights) - expected).sum() <= 2, "values on an edge"


@pytest.mark.parametrize("name", ["top_k", "signed"])
def test_contexts_are_the_largest_and_drawn_ones_in_their_interval(name, exported, encoded):
    """By magnitude, where activations have signs."""
    folder, _, features = exported(name)
    f_NF, _ = encoded(folder)
    assert bool((f_NF < 0).any()) == (name == "signed")
    for index, feature in features.items():
        top = [one for one in feature["activations"] if one["bin_contains"] == -1]
        drawn = [one for one in feature["activations"] if one["bin_contains"] != -1]
        peak = [abs(one["values"][one["qualifying_token_index"]]) for one in top]
        assert peak == sorted(peak, reverse=True)
        assert peak[0] == pytest.approx(f_NF[:, index].abs().max().item(), rel=1e-4)
        assert {(one["bin_min"], one["bin_max"]) for one in top} == {(-1.0, 99.0)}
        values = f_NF[:, index][f_NF[:, index] != 0].abs()
        shares = {}
        for one in drawn:
            low, high = one["bin_min"], one["bin_max"]
            value = abs(one["values"][one["qualifying_token_index"]])
            assert low * (1 - 1e-4) <= value <= high * (1 + 1e-4)
            inside = ((values >= low) & (values < high)).double().mean().item()
            assert one["bin_contains"] == pytest.approx(inside, abs=2 / len(values))
            shares[low] = one["bin_contains"]
        assert sum(shares.values()) <= 1 + 1e-4
        assert len(drawn) == min(20, int((f_NF[:, index] != 0).sum()))


def test_logits_and_alignment_are_those_of_the_decoder_direction(exported, trained):
    folder, _, features = exported("vsae")
    model, _ = open_model(trained[1])
    directions = decoder_directions(load_dictionary(folder)[0])
    logits = LogitLens(model.module).logits(directions)
    for index, feature in features.items():
        top = logits[index].topk(10)
        assert feature["pos_values"] == pytest.approx(top.values.tolist(), rel=1e-4)
        assert feature["neg_values"][0] == pytest.approx(logits[index].min().item(), rel=1e-4)
        texts = [token_text(model.tokenizer, token) for token in top.indices.tolist()]
        assert feature["pos_str"] == texts
        assert sum(feature["logits_hist_data_bar_heights"]) == logits.shape[1]
        middles = feature["logits_hist_data_bar_values"]
        half = (middles[1] - middles[0]) / 2
        assert middles[0] - half == pytest.approx(logits[index].min().item(), rel=1e-2)
        assert middles[-1] + half == pytest.approx(logits[index].max().item(), rel=1e-2)
        most = int(directions[index].argmax())
        assert feature["neuron_alignment_indices"][0] == most
        share = directions[index][most] / directions[index].abs().sum()
        assert feature["neuron_alignment_l1"][0] == pytest.approx(share.item(), rel=1e-4)


def test_batches_have_a_size_and_settings_are_beside_them(folder_of, monkeypatch):
    monkeypatch.setattr(neuronpedia, "FEATURES_PER_BATCH", 5)
    out = export(folder_of("vsae"), "neuronpedia", tokens=TOKENS).folder
    batches, features = read(out)
    assert [len(batch["features"]) for batch in batches[:-1]] == [5] * (len(batches) - 1)
    assert len(batches) > 1
    settings = json.loads((out / "run_settings.json").read_text())
    assert (settings["n_features"], settings["dict_size"]) == (len(features), F)
    assert settings["hook_name"] == "blocks.1.hook_resid_post"
    assert settings["n_tokens"] <= settings["n_prompts_total"] * settings["n_tokens_in_prompt"]


def test_attention_sinks_are_left_out(folder_of, lm_dir_of, tmp_path):
    model = saved_with_sinks(lm_dir_of("gpt2"), tmp_path / "sinks")
    _, features = read(export(folder_of("top_k"), "neuronpedia", model=model, tokens=TOKENS).folder)
    shown = [context for feature in features.values() for context in feature["activations"]]
    assert shown
    assert min(context["qualifying_token_index"] for context in shown) > 0
