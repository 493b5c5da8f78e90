"""A value of the wrong kind in a file of an SAE's folder is one line, which names the file, the value and the repair."""

import json

import pytest
from export_folders import of_baker_li
from small_commands import refused

from dictionary_learning_ext import load_dictionary
from dictionary_learning_ext.errors import CheckpointError
from dictionary_learning_ext.run_folder.schema import CFG_JSON, CONFIG_JSON, METRICS_JSON, damage

DAMAGE = {
    "config.json": {
        "trainer": (None, "text", []),
        "trainer.dict_class": (["a", "b"],),
        "trainer.norm_factor": (None, 0),
        "trainer.dict_size": ("32",),
        "trainer.submodule_name": (3,),
        "buffer": (None,),
        "buffer.ctx_len": ("64",),
        "run": (None, 3),
        "run.settings": (None,),
        "run.settings.architecture": (3,),
        "run.settings.steps": ("9",),
        "run.versions": ([],),
    },
    "metrics.json": {
        "fve": ("0.5", float("nan")),
        "tokens": ([],),
        "measured_on": (None,),
        "measured_on.model": (3,),
        "not_measured": ("fve",),
    },
}


def replaced(content, place, value):
    """A copy with another value at a place, e.g. trainer.k."""
    first, _, rest = place.partition(".")
    return content | {first: replaced(content.get(first, {}), rest, value) if rest else value}


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        pytest.param(name, place, value, id=f"{place} {value!r}")
        for name, places in DAMAGE.items()
        for place, values in places.items()
        for value in values
    ],
)
def test_a_value_of_the_wrong_kind(name, place, value, folder, capsys):
    (folder / "metrics.json").write_text('{"fve": 0.5, "measured_on": {}}')
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(replaced(content, place, value)))
    line = refused(["compare", folder], capsys)
    assert line.startswith(f"vsae: {folder / name}: damaged ({place}: "), line
    assert f"got {json.dumps(value)})" in line
    assert ("run `vsae eval" if name == "metrics.json" else "copy it again") in line


@pytest.mark.parametrize(
    ("shape", "content"),
    [
        (CONFIG_JSON, {"trainer": {"dict_class": "AutoEncoder", "layer": "3", "steps": None}}),
        (METRICS_JSON, {"step": 4, "fve": None, "measured_on": {"model": "m", "other": []}}),
        (CFG_JSON, {"k": 3.5, "normalize_activations": False, "metadata": None, "seed": []}),
        (CFG_JSON, {"activation_fn_kwargs": {"k": 3}, "hook_name": None}),
    ],
)
def test_what_is_not_read_may_be_anything(shape, content):
    assert damage(content, shape) is None


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("metadata", [1]),
        ("metadata.hook_name", 3),
        ("d_in", "8"),
        ("activation_fn_kwargs.k", []),
        ("norm_scaling_factor", "x"),
    ],
)
def test_a_value_of_the_wrong_kind_in_a_file_of_saelens(place, value, tmp_path):
    (tmp_path / "sae_weights.safetensors").touch()
    (tmp_path / "cfg.json").write_text(json.dumps(replaced({"architecture": "topk"}, place, value)))
    with pytest.raises(CheckpointError) as raised:
        load_dictionary(tmp_path)
    assert raised.value.problem.startswith(f"{tmp_path / 'cfg.json'}: damaged ({place}: ")
    assert f"got {json.dumps(value)})" in raised.value.problem


def test_a_variance_that_the_papers_public_code_does_not_have(tmp_path):
    folder, _ = of_baker_li(tmp_path / "trainer_0", var_flag=2)
    with pytest.raises(CheckpointError, match=r"trainer\.var_flag: .* got 2"):
        load_dictionary(folder)
