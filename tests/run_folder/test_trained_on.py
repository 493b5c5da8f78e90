"""What a folder's SAE was trained on, also where upstream wrote it."""

import json
from dataclasses import asdict

import pytest

from dictionary_learning_ext.config.run import RunConfig, TrainConfig
from dictionary_learning_ext.errors import CheckpointError, ConfigError
from dictionary_learning_ext.run_folder.cache_manifest import (
    CachedHook,
    CacheManifest,
    CacheSettings,
)
from dictionary_learning_ext.run_folder.reading import load_config
from dictionary_learning_ext.run_folder.sae_folder import find_sae
from dictionary_learning_ext.run_folder.trained_on import trained_on

SETTINGS = TrainConfig(run=RunConfig(steps=77, hook="blocks.1.hook_resid_post"))
TRAINER = {"dict_class": "AutoEncoderTopK", "lm_name": "here/pythia-70m"}
OURS = {
    "trainer": TRAINER | {"layer": 1, "submodule_name": "blocks.1.hook_resid_post"},
    "buffer": {"ctx_len": 16},
    "run": {"settings": SETTINGS.to_dict()},
}


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A folder of a config, without weights that could be read."""
    monkeypatch.chdir(tmp_path)

    def make(config):
        (tmp_path / "config.json").write_text(json.dumps(config))
        (tmp_path / "ae.pt").touch()
        return tmp_path

    return make


def write_metrics(folder, text):
    """As `vsae eval` of it does."""
    find_sae(folder).results.mkdir(parents=True, exist_ok=True)
    (find_sae(folder).results / "metrics.json").write_text(text)


def warnings(caplog):
    return [each.message for each in caplog.records if each.levelname == "WARNING"]


def upstreams(layer=3, submodule_name="resid_post_layer_3", **buffer):
    """What `trainSAE` writes."""
    trainer = TRAINER | {"layer": layer, "submodule_name": submodule_name}
    return {"trainer": trainer} | ({"buffer": buffer} if buffer else {})


def test_what_was_asked_for_takes_the_place_of_the_runs_own(made):
    run = trained_on(find_sae(made(OURS)), "there/pythia-70m", None, "other.txt", "cpu")
    assert (run.model, run.hook) == ("there/pythia-70m", SETTINGS.run.hook)
    assert (run.data, run.device, run.steps) == ("other.txt", "cpu", 77)
    assert run.ctx_len == RunConfig.ctx_len, "the run's, which decides the buffer's"
    with pytest.raises(CheckpointError, match=r"blocks\.1.*blocks\.0"):
        trained_on(find_sae(made(OURS)), None, "blocks.0.hook_resid_post")


def test_of_version_0_3_the_runs_settings_are_enough(made):
    """The SAE's had other names and units."""
    settings = SETTINGS.to_dict() | {"survival": 0.6, "warmup": 0.1, "group_fractions": None}
    folder = made(OURS | {"run": {"settings": settings}})
    read = trained_on(find_sae(folder))
    with pytest.raises(ConfigError, match="'survival'"):
        load_config(folder)
    assert read == trained_on(find_sae(made(OURS)))


@pytest.mark.parametrize(
    "config",
    [OURS, upstreams(1, "blocks.1.hook_resid_post", io="out")],
    ids=["ours", "upstream's"],
)
def test_a_model_of_another_name_is_warned_of_and_used(config, made, caplog):
    """A snapshot's folder is named by a hash, and lm_name of a trainSAE is free."""
    hook = "blocks.1.hook_resid_post"
    assert trained_on(find_sae(made(config)), "elsewhere/pythia-70m", hook, "embedded", "cpu")
    assert not caplog.messages
    assert (
        trained_on(find_sae(made(config)), "snapshots/ab12", hook, "embedded", "cpu").model
        == "snapshots/ab12"
    )
    (message,) = caplog.messages
    assert message.endswith("here/pythia-70m, now used with snapshots/ab12")


@pytest.mark.parametrize(
    ("hook", "lm_name", "given", "asked_for"),
    [
        ("resid_post_layer_3", "here/pythia-70m", {"model": "gpt2"}, "hook"),
        (None, None, {}, "model and hook"),
        ("blocks.2.hook_mlp_out", None, {}, "model"),
    ],
)
def test_a_folder_of_upstreams_needs_what_it_does_not_name(hook, lm_name, given, asked_for, made):
    config = upstreams(2, hook, io="out")
    config["trainer"]["lm_name"] = lm_name
    with pytest.raises(ConfigError) as raised:
        trained_on(find_sae(made(config)), **given)
    assert raised.value.instead.startswith(f"give {asked_for}")


def test_a_folder_of_upstreams_that_names_a_hook_point_needs_neither(made, caplog):
    """What metrics.json was measured on is known to work: it comes before lm_name, which is free."""
    caplog.set_level("INFO")
    folder = made(upstreams(2, "blocks.2.hook_mlp_out", io="out"))
    run = trained_on(find_sae(folder), None, None, "mine.txt")
    assert (run.model, run.hook, run.data) == (
        "here/pythia-70m",
        "blocks.2.hook_mlp_out",
        "mine.txt",
    )
    (line,) = caplog.messages
    assert "model=here/pythia-70m hook=blocks.2.hook_mlp_out" in line
    measured_on = {"model": "moved/pythia-70m", "hook": "blocks.2.hook_mlp_out", "data": "book.txt"}
    write_metrics(folder, json.dumps({"measured_on": measured_on}))
    caplog.clear()
    run = trained_on(find_sae(folder))
    assert (run.model, run.data) == ("moved/pythia-70m", "book.txt")
    (line,) = caplog.messages
    assert "model=moved/pythia-70m hook=blocks.2.hook_mlp_out data=book.txt" in line
    assert trained_on(find_sae(folder), "given/pythia-70m").model == "given/pythia-70m"
    caplog.clear()
    trained_on(find_sae(folder), "given/pythia-70m", "blocks.2.hook_mlp_out")
    assert "using data=book.txt," in caplog.messages[0]
    write_metrics(folder, "{")
    assert trained_on(find_sae(folder)).model == "here/pythia-70m"


def test_the_text_of_an_evaluation_is_not_the_buffers(made):
    """`vsae eval FOLDER --data other.txt` doesn't change what the SAE was trained on."""
    folder = made(upstreams(2, "blocks.2.hook_mlp_out", io="out", text="trained.txt"))
    measured_on = {"model": "moved/pythia-70m", "data": "other.txt"}
    write_metrics(folder, json.dumps({"measured_on": measured_on}))
    run = trained_on(find_sae(folder))
    assert (run.model, run.data) == ("moved/pythia-70m", "trained.txt")


@pytest.mark.parametrize(
    ("io", "hook"),
    [
        ("out", "blocks.3.hook_resid_post"),
        ("out", "blocks.4.hook_resid_pre"),  # the input of the next layer
        ("in", "blocks.3.hook_resid_pre"),
        ("in", "blocks.2.hook_resid_post"),  # the output of the layer before
        (None, "blocks.3.hook_resid_pre"),
        ("out", "blocks.3.hook_mlp_out"),
    ],
)
def test_a_hook_where_upstreams_sae_was_trained_is_taken(io, hook, made):
    assert trained_on(find_sae(made(upstreams(io=io))), "pythia-70m", hook).hook == hook


@pytest.mark.parametrize(
    ("io", "hook", "instead"),
    [
        ("out", "blocks.1.hook_resid_post", "blocks.3.hook_resid_post"),
        ("out", "blocks.3.hook_resid_pre", "blocks.3.hook_resid_post"),
        ("out", "blocks.2.hook_mlp_out", "blocks.3.hook_resid_post"),
        ("in", "blocks.3.hook_resid_post", "blocks.3.hook_resid_pre"),
        (None, "blocks.0.hook_resid_post", "blocks.3.hook_resid_post"),
    ],
)
def test_another_layer_than_upstreams_is_refused(io, hook, instead, made):
    with pytest.raises(CheckpointError, match=hook) as raised:
        trained_on(find_sae(made(upstreams(io=io))), "pythia-70m", hook)
    assert raised.value.instead == f"use hook='{instead}'"


def test_a_layer_without_a_submodule_is_no_evidence(made):
    """Upstream's trainers demand a layer, whatever they are trained on."""
    hook = "blocks.1.hook_resid_post"
    assert trained_on(find_sae(made(upstreams(0, None))), "pythia-70m", hook).hook == hook


def test_of_a_cache_that_is_read_the_rest_is_known(made, tmp_path):
    """The text and its contexts are the cache's, also where the SAE was trained on others."""
    hooks = {"blocks.3.hook_resid_post": CachedHook(3, 8)}
    settings = CacheSettings(
        *("m", "ab", "cd", "float32", None, "cached.txt", "text", [], 0, "pack", 32),
        *(hooks, "float32", 0, 0),
    )
    (tmp_path / "cache").mkdir()
    manifest = asdict(CacheManifest(settings, (), (), None, None, 0))
    (tmp_path / "cache" / "manifest.json").write_text(json.dumps(manifest))
    folder = find_sae(made(upstreams(3, None, ctx_len=64)))
    run = trained_on(folder, activations=str(tmp_path / "cache"))
    assert (run.model, run.hook, run.data) == ("m", *hooks, "cached.txt")
    assert (run.text_packing, run.ctx_len) == ("pack", 32)
    assert trained_on(folder, hook="blocks.2.hook_resid_post", activations="cache").hook[7] == "2"


def test_a_hook_that_upstreams_config_names_counts_more_than_its_layer(made):
    folder = made(upstreams(layer=0, submodule_name="blocks.2.hook_resid_post", io="out"))
    assert trained_on(find_sae(folder), "pythia-70m", "blocks.2.hook_resid_post")
    with pytest.raises(CheckpointError, match=r"blocks\.2"):
        trained_on(find_sae(folder), "pythia-70m", "blocks.0.hook_resid_post")


def test_the_rest_is_that_of_upstreams_buffer(made, caplog):
    hook, given = "blocks.3.hook_resid_post", ("pythia-70m", "blocks.3.hook_resid_post")
    same = {"ctx_len": 64, "remove_bos": True, "max_norm_multiple": 10.0}
    folder = made(upstreams(3, hook, io="out", text="book.txt", packing="pack", n_ctxs=7, **same))
    run = trained_on(find_sae(folder), *given)
    assert (run.data, run.text_packing) == ("book.txt", "pack")
    assert {name: getattr(run, name) for name in same} == same
    assert trained_on(find_sae(folder), *given, "mine.txt").data == "mine.txt"
    assert warnings(caplog) == []
    folder = made(upstreams(3, hook, io="out", ctx_len=64))  # upstream's own buffer
    run = trained_on(find_sae(folder), *given)
    assert (run.data, run.text_packing) == ("embedded", "truncate")
    (message,) = warnings(caplog)
    assert "--data embedded" in message
    caplog.clear()
    trained_on(find_sae(folder), *given, "mine.txt")
    assert warnings(caplog) == []
