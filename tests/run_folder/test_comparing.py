"""What SAEs were measured and trained on, and whether they can be compared."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from dictionary_learning_ext.config.run import RunConfig
from dictionary_learning_ext.run_folder.comparing import (
    evaluation_file,
    former_evaluation,
    grouped_by_setting,
    measurements,
)
from dictionary_learning_ext.run_folder.identity import (
    differences,
    measured_on,
    same_part,
    sources_of,
)
from dictionary_learning_ext.run_folder.sae_folder import SAEFolder

# --- where an evaluation goes

RUN = RunConfig(model="models/tiny", eval_tokens=200)
CONFIG = {"run": {"settings": vars(RUN)}}


def name_of(folder, run=RUN, tokens=200, measured=256, config=CONFIG, **metrics):
    sae = SAEFolder(str(folder), folder, config)
    found = {"tokens": measured, "measured_on": measured_on(run)} | metrics
    file = evaluation_file(sae, folder, tokens, found, former_evaluation(folder))
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
    assert name_of(folder) == "metrics.json"
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


def trained(*configs):
    """What decides how SAEs of these config.json were trained."""
    return [SAEFolder(str(i), Path(str(i)), one).trained_as for i, one in enumerate(configs)]


def test_what_several_evaluations_were_measured_on_is_compared():
    def differing(**changes):
        return differences(*measurements({"one": one, "other": one | changes}).values())

    one = {"tokens": 100_352, "loss_tokens": 900, "measured_on": {"data": "a", "hook": "h"}}
    assert differing() == []
    assert differing(measured_on={"data": "b"}) == ["data"], "the hook isn't known"
    assert differing(tokens=51_200) == ["tokens"]
    assert differing(loss_tokens=5) == ["loss_tokens"]
    assert differing(loss_tokens=None) == [], "it counts where both were measured"
    assert differing(of={"activations": "a hash"}) == [], "whose measured_on is damaged"
    transcoder = {"measured_on": one["measured_on"] | {"target": "t"}}
    assert differing(**transcoder) == ["target"], "an SAE has none"


def test_the_trainers_of_upstreams_folders_are_a_setting_that_may_differ():
    """Their options have different names, so nothing else may tell them apart."""
    top_k = config({"trainer_class": "TopKTrainer", "lr": 2e-4, "seed": 0})
    ours = config({"trainer_class": "VariationalTopKTrainer", "lr": 2e-4, "seed": 0, "beta": 1.0})
    other_seed = config({"trainer_class": "TopKTrainer", "lr": 2e-4, "seed": 1})
    assert "trainer_class" in differ(top_k, ours)
    assert differ(top_k, other_seed) == ["seed"]
    assert differ(top_k, top_k) == []


def test_none_is_a_value_of_those_that_use_the_setting():
    assert differences({"decay_start": None}, {"decay_start": 750}, {}) == ["decay_start"]
    assert differences({"beta": 0.1}, {}, {"beta": 0.1}) == []
    assert differences({"beta": 0}, {"beta": 0.0}) == []
    assert differences() == []


def test_where_it_was_written_and_logged_does_not_decide_what_was_trained():
    one = config(architecture="top_k", seed=0, k=4, save_dir="a", eval_tokens=1, device="cpu")
    assert trained(one) == [{"architecture": "top_k", "seed": 0, "k": 4}]


def test_a_language_model_whose_folder_has_moved_is_the_same():
    assert same_part("model", "here/lm", "/there/lm/")
    assert not same_part("model", "here/lm", "here/other")
    moved = {name: {"measured_on": {"model": f"{name}/lm", "data": f"{name}/lm"}} for name in "ab"}
    assert differences(*measurements(moved).values()) == ["data"]
    assert differences({"model": "here/lm"}, {"model": "here/other"}) == ["model"]


def test_caches_of_the_same_content_are_one(small_cache, tmp_path):
    """However many tokens they hold, as far as measurements go."""
    cache = {name: shutil.copytree(small_cache, tmp_path / name) for name in ("a", "more", "other")}
    for name, changes in {"more": {"eval_tokens": 7}, "other": {"lm_dtype": "bfloat16"}}.items():
        manifest = json.loads((cache[name] / "manifest.json").read_text())
        manifest["settings"] |= changes
        (cache[name] / "manifest.json").write_text(json.dumps(manifest))
    on = {name: {"activations": str(path)} for name, path in cache.items()}
    measured = {n: {"measured_on": each, "of": sources_of(each)} for n, each in on.items()}
    gone = {"gone": {"measured_on": {"activations": str(tmp_path / "gone")}}}
    assert differences(*measurements({n: measured[n] for n in ("a", "more")}).values()) == []
    for others in ({"other": measured["other"]}, gone):
        differing = differences(*measurements({"a": measured["a"]} | others).values())
        assert differing == ["activations"]

    def cached(folder, digest):
        return run(activations=folder) | {"buffer": {"cache": digest}}

    assert differ(cached("a", "1"), cached("b", "1")) == []
    assert differ(cached("a", "1"), cached("b", "2")) == ["activations"]


def grouped(**configs):
    saes = {name: SAEFolder(name, Path(name), one) for name, one in configs.items()}
    return grouped_by_setting(saes)


def test_saes_of_one_setting_are_of_one_language_model_and_hook_point():
    def of_upstream(seed, module, lm):
        place = {"submodule_name": module, "lm_name": lm}
        return config({"trainer_class": "TopKTrainer", "seed": seed} | place)

    first, second = "blocks.1.hook_resid_post", "blocks.2.hook_resid_pre"
    same = {"a": of_upstream(0, first, "here/lm"), "b": of_upstream(1, second, "there/lm")}
    others = {
        "hook": of_upstream(2, "blocks.1.hook_mlp_out", "here/lm"),
        "model": of_upstream(2, first, "here/other"),
    }
    assert grouped(**same, **others) == [["a", "b"], ["hook"], ["model"]]
    assert grouped(a=run(model="here/lm"), b=run(model="there/lm")) == [["a", "b"]]


def run(steps=100, **settings):
    """A folder of a vSAE."""
    settings = {"architecture": "vsae_top_k", "data": "a", "k": 4, **settings}
    return config(steps=steps, batch_size=64, dict_size=32, seed=0, **settings)


def differ(*configs):
    return differences(*trained(*configs))


def test_what_is_the_same_share_of_other_steps_follows():
    short = run(1200, warmup_steps=120, decay_start=900)
    assert differ(short, run(15, warmup_steps=1, decay_start=11)) == ["steps"], "rounded down"
    assert differ(short, run(600, warmup_steps=300, decay_start=300)) == [
        "steps",
        "warmup_steps",
        "decay_start",
    ]
    assert differ(run(warmup_steps=10), run(warmup_steps=11)) == ["warmup_steps"]
    none = run(600, decay_start=None)
    assert differ(run(1200, decay_start=None), none) == ["steps"]
    assert differ(run(1200, decay_start=900), none) == ["steps", "decay_start"]


def test_one_noise_differs_from_another():
    by_ratio = [run(noise_to_signal=ratio) for ratio in (0.1, 0.2)]
    assert differ(*by_ratio) == ["noise_to_signal"]
    assert differ(by_ratio[0], run(sigma=1.0)) == ["sigma", "noise_to_signal"]
