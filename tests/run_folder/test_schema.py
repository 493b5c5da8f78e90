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
        "trainer": {
            None: "trainer: expected an object, got null",
            "text": 'trainer: expected an object, got "text"',
            (): "trainer: expected an object, got []",
        },
        "trainer.dict_class": {("a", "b"): 'trainer.dict_class: expected text, got ["a", "b"]'},
        "trainer.norm_factor": {
            None: "trainer.norm_factor: expected above 0 (1e-18 to 1e+18), got null",
            0: "trainer.norm_factor: expected above 0 (1e-18 to 1e+18), got 0",
        },
        "trainer.dict_size": {"32": 'expected a whole number or None, got "32"'},
        "trainer.submodule_name": {3: "trainer.submodule_name: expected text or None, got 3"},
        "buffer": {None: "buffer: expected an object, got null"},
        "buffer.ctx_len": {"64": 'buffer.ctx_len: expected a whole number or None, got "64"'},
        "run": {None: "run: expected an object, got null", 3: "run: expected an object, got 3"},
        "run.settings": {None: "run.settings: expected an object, got null"},
        "run.settings.architecture": {3: "run.settings.architecture: expected text or None"},
        "run.settings.steps": {"9": "run.settings.steps: expected a whole number"},
        "run.versions": {(): "run.versions: expected an object, got []"},
    },
    "metrics.json": {
        "fve": {
            "0.5": 'fve: expected a finite number or None, got "0.5"',
            float("nan"): "fve: expected a finite number or None, got NaN",
        },
        "tokens": {(): "tokens: expected a finite number or None, got []"},
        "measured_on": {None: "measured_on: expected an object, got null"},
        "measured_on.model": {3: "measured_on.model: expected text or None, got 3"},
        "not_measured": {"fve": 'not_measured: expected an object, got "fve"'},
    },
}


def replaced(content, place, value):
    """A copy with another value at a place, e.g. trainer.k."""
    first, _, rest = place.partition(".")
    return content | {first: replaced(content.get(first, {}), rest, value) if rest else value}


@pytest.mark.parametrize(
    ("name", "place", "value", "problem"),
    [
        pytest.param(name, place, value, problem, id=f"{place} {value!r}")
        for name, places in DAMAGE.items()
        for place, values in places.items()
        for value, problem in values.items()
    ],
)
def test_a_value_of_the_wrong_kind(name, place, value, problem, folder, capsys):
    (folder / "metrics.json").write_text('{"fve": 0.5, "measured_on": {}}')
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(replaced(content, place, value)))
    line = refused(["compare", folder], capsys)
    assert line.startswith(f"vsae: {folder / name}: damaged ("), line
    assert problem in line
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
    ("changes", "problem"),
    [
        ({"metadata": [1]}, "metadata: expected an object, got [1]"),
        ({"metadata": {"hook_name": 3}}, "metadata.hook_name: expected text or None, got 3"),
        ({"d_in": "8"}, 'd_in: expected a whole number or None, got "8"'),
        ({"activation_fn_kwargs": {"k": []}}, "activation_fn_kwargs.k: expected a whole number"),
        (
            {"norm_scaling_factor": "x"},
            'norm_scaling_factor: expected a finite number or None, got "x"',
        ),
    ],
)
def test_a_value_of_the_wrong_kind_in_a_file_of_saelens(changes, problem, tmp_path):
    (tmp_path / "sae_weights.safetensors").touch()
    (tmp_path / "cfg.json").write_text(json.dumps({"architecture": "topk"} | changes))
    with pytest.raises(CheckpointError) as raised:
        load_dictionary(tmp_path)
    message = str(raised.value)
    assert message.startswith(f"{tmp_path / 'cfg.json'}: damaged ({problem}")
    assert message.endswith("copy it again")


def test_a_variance_that_the_papers_public_code_does_not_have(tmp_path):
    folder, _ = of_baker_li(tmp_path / "trainer_0", var_flag=2)
    with pytest.raises(CheckpointError, match=r"trainer\.var_flag: expected one of 0, 1, got 2"):
        load_dictionary(folder)
