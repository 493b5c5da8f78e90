"""Which file an evaluation goes to: metrics.json, or one beside it."""

import json
from dataclasses import replace

import pytest

from dictionary_learning_ext.config.run import RunConfig
from dictionary_learning_ext.run_folder.matching import evaluation_file, measured_on

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
