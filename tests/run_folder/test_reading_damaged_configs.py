"""A config.json of any content loads or is refused in one line."""

import json
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_commands import content, refused, setting, trainer

from dictionary_learning_ext.config.run import TrainConfig
from dictionary_learning_ext.errors import CheckpointError, UserError
from dictionary_learning_ext.run_folder.reading import load_config
from dictionary_learning_ext.run_folder.weights import load_dictionary

DAMAGED_CONFIGS = {
    "missing": (lambda path: path.unlink(), "expected a file config.json"),
    "empty": (lambda path: path.write_text(""), "not valid JSON"),
    "broken off": (lambda path: path.write_text('{"trainer": {'), "not valid JSON"),
    "bytes": (lambda path: path.write_bytes(b"\xff\xfe\x00"), "not valid JSON"),
    "without end": (lambda path: path.write_text("[" * 100_000), "RecursionError"),
    "a list": (lambda path: path.write_text("[1]"), r"trainer\.dict_class"),
    "no run but a number": (
        lambda path: path.write_text('{"trainer": {"dict_class": "AutoEncoder"}, "run": 3}'),
        "run is 3, expected an object",
    ),
    "a class that is none": (trainer(dict_class="os.system"), "'os.system' is unknown"),
    "a class that is no text": (trainer(dict_class=["x"]), "is unknown"),
    "a size in words": (trainer(dict_size="many"), "trainer.dict_size is 'many'"),
    "a size beyond reason": (trainer(activation_dim=10**30), "trainer.activation_dim is 1000"),
    "another width": (trainer(activation_dim=8), "so activation_dim=16, but config.json says 8"),
    "an unknown setting": (setting(betta=1), "unknown setting 'betta'; did you mean 'beta'"),
    "a command for a number": (setting(k="$(touch executed)"), r"--k '\$\(touch executed\)'"),
    "a model that is nowhere": (setting(model="../../nowhere"), r"'\.\./\.\./nowhere'"),
    "a hook that is none": (setting(hook="blocks.0.__class__"), r"blocks\.0\.__class__"),
    "a text with an escape": (setting(data="./\x1b[31m.txt"), r"\\x1b\[31m"),
    "a width of no model": (setting(model="embedded"), "16, but blocks.*128 wide"),
}


@pytest.mark.parametrize("damage", DAMAGED_CONFIGS)
def test_a_damaged_config(damage, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    change, message = DAMAGED_CONFIGS[damage]
    change(folder / "config.json")
    before = content(folder)
    line = refused(["eval", folder], capsys)
    assert re.search(message, line), line
    assert content(folder) == before
    assert not (tmp_path / "executed").exists()


HOSTILE_SETTINGS = {
    "a path for an architecture": ({"architecture": "../../../tmp/x"}, "expected one of"),
    "a path for a posterior": ({"posterior": "../x"}, "expected one of"),
    "a path for a schedule": (
        {"kl_schedule": "/etc/passwd"},
        "--kl-schedule /etc/passwd: expected one of",
    ),
    "NaN": ({"lr": float("nan")}, "--lr nan: expected"),
    "minus infinity": ({"beta": float("-inf")}, "--beta -inf: expected"),
    "true for a number": ({"k": True}, "--k True: expected"),
    "a list for a number": ({"steps": [1]}, "--steps .*: expected a whole number"),
    "no steps": ({"steps": 0}, "--steps 0: expected"),
    "an interval in fortnights": (
        {"save_every": "2 fortnights"},
        "--save-every '?2 fortnights'?: expected",
    ),
    "a device that is none": ({"device": "cuda:0; rm"}, "--device 'cuda:0; rm': expected"),
}


@pytest.mark.parametrize("case", HOSTILE_SETTINGS)
def test_hostile_settings_start_no_run(case, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    changes, message = HOSTILE_SETTINGS[case]
    setting(**changes)(folder / "config.json")
    before = content(tmp_path)
    line = refused(["train", f"--config={folder}"], capsys)
    assert re.search(message, line), line
    assert content(tmp_path) == before


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3)
    ),
    max_leaves=8,
)


NAMES = st.sampled_from(sorted(TrainConfig().to_dict())) | st.text(max_size=8)


SLOW = settings(
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@SLOW
@given(values=st.dictionaries(NAMES, JSON, max_size=5))
def test_any_settings_give_a_config_or_a_named_error(values):
    try:
        config = TrainConfig().updated(values, "test")
        config.sae.resolve(config.run.steps, config.run.batch_size)
    except UserError:
        return
    assert isinstance(config.name, str)
    assert "/" not in config.name


@SLOW
@given(raw=st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_file_is_a_config_or_a_named_error(raw, tmp_path):
    (tmp_path / "config.json").write_bytes(raw)
    with pytest.raises(UserError):
        load_config(tmp_path)


@SLOW
@given(
    section=st.sampled_from(["trainer", "run", "buffer"]),
    values=st.dictionaries(
        st.sampled_from(
            ["dict_class", "dict_size", "activation_dim", "k", "settings", "norm_factor", "lm_name"]
        ),
        JSON,
    ),
)
def test_any_config_json_loads_or_is_a_named_error(section, values, trained, tmp_path):
    config = json.loads((trained / "vsae" / "config.json").read_text())
    config[section] |= values
    (tmp_path / "config.json").write_text(json.dumps(config))
    shutil.copy(trained / "vsae" / "ae.pt", tmp_path / "ae.pt")
    try:
        dictionary, _ = load_dictionary(Path(tmp_path))
    except CheckpointError:
        return
    assert dictionary.dict_size == 32
