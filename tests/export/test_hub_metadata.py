"""A card's metadata, as huggingface_hub's own classes read it."""

import pytest
from huggingface_hub import ModelCard

from dictionary_learning_ext.evaluation.metrics import METRICS, shown_in
from dictionary_learning_ext.export.hub import card

TEXT = "roneneldan/TinyStories"


def config_of(dict_class, data=TEXT):
    trainer = {
        "dict_class": dict_class,
        "trainer_class": "TopKTrainer",
        "lm_name": "EleutherAI/pythia-70m",
        "layer": 0,
        "submodule_name": "blocks.0.hook_resid_post",
    }
    return {"trainer": trainer, "run": {"settings": {"data": data}}}


def read(configs, metrics, base_models=()):
    return ModelCard(card("jane/saes", configs, metrics, list(base_models))).data


def test_library_tags_base_model_and_texts():
    configs = {
        "a": config_of("VariationalTopKAutoEncoder"),
        "b": config_of("AutoEncoderTopK", data="embedded"),
    }
    data = read(configs, {}, ["EleutherAI/pythia-70m"])
    assert data.library_name == "dictionary_learning_ext"
    assert data.base_model == ["EleutherAI/pythia-70m"]
    assert data.datasets == [TEXT], "embedded is no data set of the hub"
    assert {"sparse-autoencoder", "dictionary_learning", "top_k", "vsae_top_k"} <= set(data.tags)
    assert data.eval_results is None


def test_metrics_are_evaluation_results_of_the_text_that_was_measured_on():
    measured = {"fve": 0.91, "l0": 32.0, "kl_per_token": None, "measured_on": {"data": "a.txt"}}
    data = read({"a": config_of("AutoEncoderTopK")}, {"a": measured})
    assert data.model_name == "saes"
    found = {result.metric_type: result for result in data.eval_results}
    assert set(found) == {"fve", "l0"}, "what does not apply is left out"
    assert found["fve"].metric_value == 0.91
    assert found["fve"].metric_name == METRICS["fve"].label
    assert (found["fve"].dataset_type, found["fve"].dataset_split) == ("a.txt", "heldout")
    measured = dict.fromkeys(METRICS, 0.5)
    data = read({"a": config_of("AutoEncoderTopK")}, {"a": measured})
    assert [r.metric_type for r in data.eval_results] == [m.key for m in shown_in("compare")]
    assert {result.dataset_type for result in data.eval_results} == {TEXT}


def test_the_metrics_of_several_saes_can_be_told_apart():
    configs = {name: config_of("AutoEncoderTopK") for name in ("a", "b")}
    data = read(configs, {"a": {"fve": 0.9}, "b": {"fve": 0.8}})
    named = {result.metric_name: result.metric_value for result in data.eval_results}
    assert named == {"FVE (a)": 0.9, "FVE (b)": 0.8}
    assert {result.metric_config for result in data.eval_results} == {"a", "b"}


@pytest.mark.parametrize("config", [{"trainer": {}}, {"trainer": {"dict_class": "Other"}}])
def test_a_config_that_says_little_has_a_card_too(config):
    data = read({"a": config}, {"a": {"fve": 0.9}})
    assert data.eval_results[0].dataset_type == "unknown"
    assert data.base_model is None
