"""What SAEs were trained and measured on, and in which of it they differ."""

import json
from dataclasses import replace

import pytest

from dictionary_learning_ext.config.run import RunConfig, TrainConfig
from dictionary_learning_ext.errors import CheckpointError, ConfigError
from dictionary_learning_ext.run_folder.matching import (
    evaluation_file,
    measured_differently,
    measured_on,
    only_posteriors_differ,
    run_of,
    same_model,
    settings_of,
    training,
    unequal,
)

# --- what one folder was trained on

SETTINGS = TrainConfig(run=RunConfig(steps=77, hook="blocks.1.hook_resid_post"))
TRAINER = {"dict_class": "AutoEncoderTopK", "lm_name": "here/pythia-70m"}
OURS = {
    "trainer": TRAINER | {"layer": 1, "submodule_name": "blocks.1.hook_resid_post"},
    "buffer": {"ctx_len": 16},
    "run": {"settings": SETTINGS.to_dict()},
}


@pytest.fixture
def made(tmp_path):
    """A folder of a config, without weights that could be read."""

    def make(config):
        (tmp_path / "config.json").write_text(json.dumps(config))
        (tmp_path / "ae.pt").touch()
        return tmp_path

    return make


def upstreams(layer=3, submodule_name="resid_post_layer_3", **buffer):
    """What `trainSAE` writes."""
    trainer = TRAINER | {"layer": layer, "submodule_name": submodule_name}
    return {"trainer": trainer} | ({"buffer": buffer} if buffer else {})


def test_what_was_asked_for_takes_the_place_of_the_runs_own(made):
    run = run_of(made(OURS), "there/pythia-70m", None, "other.txt", "cuda")
    assert (run.model, run.hook) == ("there/pythia-70m", SETTINGS.run.hook)
    assert (run.data, run.device, run.steps) == ("other.txt", "cuda", 77)
    assert run.ctx_len == RunConfig.ctx_len, "the run's, which decides the buffer's"
    with pytest.raises(CheckpointError, match=r"trained on hook blocks\.1.*, not on blocks\.0"):
        run_of(made(OURS), None, "blocks.0.hook_resid_post")


@pytest.mark.parametrize(
    "config",
    [OURS, upstreams(1, "blocks.1.hook_resid_post", io="out")],
    ids=["ours", "upstream's"],
)
def test_a_model_of_another_name_is_warned_of_and_used(config, made, caplog):
    """A snapshot's folder is named by a hash, and lm_name of a trainSAE is free."""
    hook = "blocks.1.hook_resid_post"
    assert run_of(made(config), "elsewhere/pythia-70m", hook, "embedded", "cpu")
    assert not caplog.messages
    assert run_of(made(config), "snapshots/ab12", hook, "embedded", "cpu").model == "snapshots/ab12"
    (message,) = caplog.messages
    assert message.endswith("trained on the model here/pythia-70m, now used with snapshots/ab12")


@pytest.mark.parametrize(
    ("hook", "lm_name", "given", "message"),
    [
        (
            "resid_post_layer_3",
            "here/pythia-70m",
            {"model": "gpt2"},
            r"no hook point \(submodule_name='resid_post_layer_3'\); give hook$",
        ),
        (None, None, {}, r"no certain language model .*no hook.*; give model and hook$"),
        ("blocks.2.hook_mlp_out", None, {}, r"no certain language model .*; give model$"),
    ],
)
def test_a_folder_of_upstreams_needs_what_it_does_not_name(hook, lm_name, given, message, made):
    config = upstreams(2, hook, io="out")
    config["trainer"]["lm_name"] = lm_name
    with pytest.raises(ConfigError, match=message):
        run_of(made(config), **given)


def test_a_folder_of_upstreams_that_names_a_hook_point_needs_neither(made, caplog):
    """What metrics.json was measured on is known to work: it comes before lm_name, which is free."""
    caplog.set_level("INFO")
    folder = made(upstreams(2, "blocks.2.hook_mlp_out", io="out"))
    run = run_of(folder, None, None, "mine.txt")
    assert (run.model, run.hook, run.data) == (
        "here/pythia-70m",
        "blocks.2.hook_mlp_out",
        "mine.txt",
    )
    (line,) = caplog.messages
    assert line == (
        f"{folder}: using --model here/pythia-70m --hook blocks.2.hook_mlp_out, from its config.json"
    )
    measured_on = {"model": "moved/pythia-70m", "hook": "blocks.2.hook_mlp_out", "data": "book.txt"}
    (folder / "metrics.json").write_text(json.dumps({"measured_on": measured_on}))
    caplog.clear()
    run = run_of(folder)
    assert (run.model, run.data) == ("moved/pythia-70m", "book.txt")
    assert caplog.messages == [
        f"{folder}: using --model moved/pythia-70m --data book.txt, from its metrics.json",
        f"{folder}: using --hook blocks.2.hook_mlp_out, from its config.json",
    ]
    assert run_of(folder, "given/pythia-70m").model == "given/pythia-70m"
    caplog.clear()
    run_of(folder, "given/pythia-70m", "blocks.2.hook_mlp_out")
    assert caplog.messages[0].endswith("using --data book.txt, from its metrics.json")
    (folder / "metrics.json").write_text("{")
    assert run_of(folder).model == "here/pythia-70m"


def test_the_text_of_an_evaluation_is_not_the_buffers(made):
    """`vsae eval FOLDER --data other.txt` doesn't change what the SAE was trained on."""
    folder = made(upstreams(2, "blocks.2.hook_mlp_out", io="out", text="trained.txt"))
    measured_on = {"model": "moved/pythia-70m", "data": "other.txt"}
    (folder / "metrics.json").write_text(json.dumps({"measured_on": measured_on}))
    run = run_of(folder)
    assert (run.model, run.data) == ("moved/pythia-70m", "trained.txt")


@pytest.mark.parametrize("name", ["resid_post_layer_3", None])
def test_a_hook_that_upstreams_config_cannot_confirm_is_trusted_in_one_line(name, made, caplog):
    folder = made(upstreams(3, name, io="out", text="book.txt"))
    run_of(folder, "pythia-70m", "blocks.3.hook_mlp_out")
    (line,) = caplog.messages
    assert line == (
        f"{folder}: config.json doesn't say which module it was trained on (submodule_name={name!r});"
        " trusting --hook blocks.3.hook_mlp_out"
    )


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
    assert run_of(made(upstreams(io=io)), "pythia-70m", hook).hook == hook


@pytest.mark.parametrize(
    ("io", "hook", "was", "instead"),
    [
        ("out", "blocks.1.hook_resid_post", "the output of layer 3", "blocks.3.hook_resid_post"),
        ("out", "blocks.3.hook_resid_pre", "the output of layer 3", "blocks.3.hook_resid_post"),
        ("in", "blocks.3.hook_resid_post", "the input of layer 3", "blocks.3.hook_resid_pre"),
        (None, "blocks.0.hook_resid_post", "layer 3", "blocks.3.hook_resid_post"),
    ],
)
def test_another_layer_than_upstreams_is_refused(io, hook, was, instead, made):
    with pytest.raises(CheckpointError) as raised:
        run_of(made(upstreams(io=io)), "pythia-70m", hook)
    assert str(raised.value).endswith(f"trained on {was}, not on {hook}; use hook='{instead}'")


def test_a_hook_that_upstreams_config_names_counts_more_than_its_layer(made):
    folder = made(upstreams(layer=0, submodule_name="blocks.2.hook_resid_post", io="out"))
    assert run_of(folder, "pythia-70m", "blocks.2.hook_resid_post")
    with pytest.raises(CheckpointError, match=r"trained on hook blocks\.2"):
        run_of(folder, "pythia-70m", "blocks.0.hook_resid_post")


def test_the_rest_is_that_of_upstreams_buffer(made, caplog):
    hook, given = "blocks.3.hook_resid_post", ("pythia-70m", "blocks.3.hook_resid_post")
    same = {"ctx_len": 64, "remove_bos": True, "max_norm_multiple": 10.0}
    folder = made(upstreams(3, hook, io="out", text="book.txt", packing="pack", n_ctxs=7, **same))
    run = run_of(folder, *given)
    assert (run.data, run.text_packing) == ("book.txt", "pack")
    assert {name: getattr(run, name) for name in same} == same
    assert run_of(folder, *given, "mine.txt").data == "mine.txt"
    assert not caplog.messages
    folder = made(upstreams(3, hook, io="out", ctx_len=64))  # upstream's own buffer
    run = run_of(folder, *given)
    assert (run.data, run.text_packing) == ("embedded", "truncate")
    (message,) = caplog.messages
    assert message.endswith("which text it was trained on; measuring on --data embedded")
    caplog.clear()
    run_of(folder, *given, "mine.txt")
    assert not caplog.messages


def test_a_damaged_buffer_is_named(made):
    folder = made(upstreams(io="out", ctx_len="long"))
    with pytest.raises(ConfigError, match=r"config\.json|ctx_len='long'"):
        run_of(folder, "pythia-70m", "blocks.3.hook_resid_post")


def test_a_run_without_settings_is_damaged_and_not_upstreams(made):
    with pytest.raises(CheckpointError, match=r"expected an object with run\.settings"):
        run_of(made(OURS | {"run": {"settings": 3}}), None, None)


# --- where an evaluation goes

RUN = RunConfig(model="models/tiny", eval_tokens=200)
CONFIG = {"run": {"settings": vars(RUN)}}


def name_of(folder, run=RUN, tokens=200, measured=200, config=CONFIG, **metrics):
    file = evaluation_file(folder, config, run, tokens, {"tokens": measured} | metrics)
    return str(file.relative_to(folder))


@pytest.fixture(params=["before its evaluation", "evaluated", "damaged"])
def folder(request, tmp_path):
    content = {
        "evaluated": json.dumps({"tokens": 256, "measured_on": measured_on(RUN)}),
        "damaged": "{",
    }
    if request.param in content:
        (tmp_path / "metrics.json").write_text(content[request.param])
    return tmp_path


def test_the_runs_own_settings_are_metrics_json(folder):
    assert name_of(folder, measured=256) == "metrics.json"
    moved = replace(RUN, model="elsewhere/tiny", device="cuda")
    assert name_of(folder, moved) == "metrics.json"


def test_what_differs_is_in_the_name(folder):
    assert name_of(folder, replace(RUN, ctx_len=7)) == "evaluations/ctx_len_7.json"
    assert name_of(folder, tokens=64, measured=64) == "evaluations/tokens_64.json"
    assert name_of(folder, step=3) == "evaluations/step_3.json"
    both = name_of(folder, replace(RUN, dtype="bfloat16"), step=3)
    assert both == "evaluations/step_3_dtype_bfloat16.json"


def test_a_folder_of_upstreams_has_no_settings_to_differ_from(tmp_path):
    assert name_of(tmp_path, replace(RUN, ctx_len=7), 64, config={}) == "metrics.json"


def test_stored_activations_are_told_from_the_language_models(folder, tmp_path):
    cached = replace(RUN, activations="runs/cache")
    assert name_of(folder, cached).startswith("evaluations/activations_cache_")
    own, path = {"run": {"settings": vars(cached)}}, folder / "metrics.json"
    path.write_text(json.dumps({"tokens": 256, "measured_on": measured_on(cached)}))
    assert name_of(folder, replace(RUN, activations="./runs/cache/"), config=own) == path.name
    assert name_of(folder, config=own) == "evaluations/activations_none.json"


# --- several folders


def config(trainer=None, **settings):
    content = {"trainer": {"dict_class": "X", **(trainer or {})}}
    return content | ({"run": {"settings": settings}} if settings else {})


def test_what_several_evaluations_were_measured_on_is_compared():
    def differing(**changes):
        return measured_differently({"one": one, "other": one | changes})

    one = {"tokens": 100_352, "loss_tokens": 900, "measured_on": {"data": "a", "hook": "h"}}
    assert differing() == []
    assert differing(measured_on={"data": "b"}) == ["data", "hook"]
    assert differing(tokens=51_200) == ["tokens"]
    assert differing(loss_tokens=5) == ["loss_tokens"]
    assert differing(loss_tokens=None) == [], "it counts where both were measured"


def test_what_was_left_to_the_trainer_is_what_it_chose():
    assert settings_of(config({"lr": 2e-4}, architecture="top_k", lr=None))["lr"] == 2e-4
    assert settings_of(config({"lr": 2e-4}, architecture="top_k", lr=1e-3))["lr"] == 1e-3
    upstreams = config({"lr": 2e-4, "k": 8, "lm_name": "x"})
    assert settings_of(upstreams) == {"lr": 2e-4, "k": 8}


def test_the_trainers_of_upstreams_folders_are_a_setting_that_may_differ():
    """Their options have different names, so nothing else may tell them apart."""
    top_k = config({"trainer_class": "TopKTrainer", "lr": 2e-4, "seed": 0})
    ours = config({"trainer_class": "VariationalTopKTrainer", "lr": 2e-4, "seed": 0, "beta": 1.0})
    other_seed = config({"trainer_class": "TopKTrainer", "lr": 2e-4, "seed": 1})
    assert unequal([*training({"a": top_k, "b": ours}).values()]) == ["trainer_class"]
    assert unequal([*training({"a": top_k, "b": other_seed}).values()]) == ["seed"]
    assert unequal([*training({"a": top_k, "b": top_k}).values()]) == []


def test_an_option_that_an_sae_does_not_use_is_none_of_its_settings():
    vsae = config(architecture="vsae_top_k", posterior="fixed", sigma=1.0, noise_anneal_steps=None)
    point = config(architecture="vsae_top_k", posterior="point", sigma=None)
    top_k = config(architecture="top_k", posterior=None, sigma=None, noise_anneal_steps=None)
    assert {"sigma", "noise_anneal_steps"} <= settings_of(vsae).keys()
    assert "sigma" not in settings_of(point)
    assert not {"posterior", "sigma", "noise_anneal_steps"} & settings_of(top_k).keys()


def test_none_is_a_value_of_those_that_use_the_setting():
    assert unequal([{"decay_start": None}, {"decay_start": 750}, {}]) == ["decay_start"]
    assert unequal([{"beta": 0.1}, {}, {"beta": 0.1}]) == []
    assert unequal([{"beta": 0}, {"beta": 0.0}]) == []
    assert unequal([]) == []


def test_where_it_was_written_and_logged_does_not_decide_what_was_trained():
    one = config(architecture="top_k", seed=0, k=4, save_dir="a", eval_tokens=1, device="cpu")
    assert training({"a": one}) == {"a": {"seed": 0, "k": 4}}


def test_a_language_model_whose_folder_has_moved_is_the_same():
    assert same_model("here/lm", "/there/lm/")
    assert not same_model("here/lm", "here/other")
    moved = {name: {"measured_on": {"model": f"{name}/lm", "data": f"{name}/lm"}} for name in "ab"}
    assert measured_differently(moved) == ["data"]
    assert unequal([{"model": "here/lm"}, {"model": "here/other"}]) == ["model"]


def run(steps=100, **settings):
    """A folder of a vSAE."""
    settings = {"architecture": "vsae_top_k", "data": "a", "k": 4, **settings}
    return config(steps=steps, batch_size=64, dict_size=32, seed=0, **settings)


def differ(*configs):
    return unequal(list(training(dict(enumerate(configs))).values()))


def test_what_is_the_same_share_of_other_steps_follows():
    short = run(1200, warmup_steps=120, decay_start=900, kl_warmup_steps=120)
    assert differ(short, run(15, warmup_steps=1, decay_start=11, kl_warmup_steps=1)) == ["steps"]
    assert differ(short, run(600, warmup_steps=60, decay_start=300, kl_warmup_steps=60)) == [
        "steps",
        "decay_start",
    ]
    assert differ(run(warmup_steps=10), run(warmup_steps=11)) == ["warmup_steps"]
    none = run(600, decay_start=None)
    assert differ(run(1200, decay_start=None), none) == ["steps"]
    assert differ(run(1200, decay_start=900), none) == ["steps", "decay_start"]


def test_sigma_and_its_ratio_are_one_setting():
    by_ratio = [run(noise_to_signal=ratio, sigma=4 * ratio) for ratio in (0.1, 0.2)]
    assert differ(*by_ratio) == ["noise_to_signal"]
    assert differ(by_ratio[0], run(noise_to_signal=None, sigma=1.0)) == ["sigma"]


def test_posteriors_are_compared_where_all_else_agrees():
    def only(*configs):
        return only_posteriors_differ(list(training(dict(enumerate(configs))).values()))

    top_k = run(architecture="top_k")
    one, other = run(beta=1.0, sigma=1.0), run(beta=0.0, sigma=0.5, noise_anneal_steps=75)
    assert only(top_k, one, other)
    assert not only(one, one)
    assert not only(one, run(beta=1.0, sigma=1.0, data_seed=1)), "another order of the data"
    assert not only(one, other, run(beta=1.0, sigma=1.0, lr=0.1), run(lr=0.2))
    assert not only(one, run(beta=0.0, auxk_alpha=0.0), run(auxk_alpha=0.1))
    assert not only(one, other, config(architecture="relu", data="a", steps=100))
    assert not only(one, other, config({"k": 4}))
    assert not only(one, other, run(architecture="matryoshka", group_fractions=[0.5, 0.5]))
