"""One reader for each file of a run folder, and one error for each kind of damage."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small_commands import content, refused, setting, trainer

from dictionary_learning_ext.config.run import RunConfig, TrainConfig
from dictionary_learning_ext.config.sae import VSAETopKConfig
from dictionary_learning_ext.errors import CheckpointError, ConfigError
from dictionary_learning_ext.run_folder.reading import (
    checkpoint_steps,
    is_finished,
    load_config,
    read_history,
    read_run,
    run_folders,
    steps_of,
)
from dictionary_learning_ext.run_folder.sae_folder import find_sae, find_saes, read_metrics

SETTINGS = TrainConfig(
    VSAETopKConfig(beta=0.25), RunConfig(steps=77, hook="blocks.1.hook_resid_post")
).resolved
TRAINER = {
    "dict_class": "AutoEncoderTopK",
    "lm_name": "here/pythia-70m",
    "submodule_name": "blocks.1.hook_resid_post",
}


def made(folder, **files):
    """A folder whose files read well, though its weights are none."""
    config = {"trainer": TRAINER, "buffer": {}, "run": {"settings": SETTINGS.to_dict()}}
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in ({"config.json": config, "ae.pt": ""} | files).items():
        raw = value if isinstance(value, bytes) else json.dumps(value).encode()
        (folder / name).write_bytes(raw)
    return folder


@pytest.mark.commands
def test_reading_imports_no_torch(tmp_path):
    """`vsae train --help` with --resume and --config too answers in well under a second."""
    made(tmp_path)
    code = (
        "import sys\n"
        "from dictionary_learning_ext.commands.train import starting_point\n"
        "from dictionary_learning_ext.run_folder import files, reading\n"
        f"assert starting_point({{'resume': {str(tmp_path)!r}}}).run.steps == 77\n"
        f"assert starting_point({{'config': {str(tmp_path)!r}}}).run.steps == 77\n"
        "from dictionary_learning_ext.run_folder.sae_folder import find_sae\n"
        "from dictionary_learning_ext.run_folder.trained_on import trained_on\n"
        f"trained_on(find_sae({str(tmp_path)!r}), None, None, None, 'cpu')\n"
        "print([m for m in ('torch', 'nnsight', 'datasets', 'wandb') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def with_settings(folder, **changes):
    run = {"settings": SETTINGS.to_dict() | changes}
    return made(folder, **{"config.json": {"trainer": TRAINER | changes, "run": run}})


NOT_JSON = {
    "empty": b"",
    "broken off": b'{"step": 1',
    "not UTF-8": b"\xff\xfe\x00",
}
READERS = {
    "config.json": (find_sae, "copy it again or train again"),
    "metrics.json": (read_metrics, "run `vsae eval "),
    "metrics.jsonl": (read_history, "delete it to continue without the training curves"),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("damage", NOT_JSON)
def test_what_is_not_json_gets_one_error(damage, name, tmp_path):
    damaged = NOT_JSON[damage] or (b"\n" if name == "metrics.jsonl" else b"")
    folder = made(tmp_path, **{name: damaged})
    reader, repair = READERS[name]
    with pytest.raises(CheckpointError) as raised:
        reader(folder)
    assert raised.value.problem.startswith(f"{folder / name}: ")
    assert repair in raised.value.instead
    assert len(str(raised.value).splitlines()) == 1
    if name == "config.json":
        with pytest.raises(ConfigError) as refused:
            load_config(folder, "config")
        assert refused.value.name == "config"


def test_a_missing_folder_or_file_is_named_with_what_is_there(tmp_path):
    made(tmp_path / "base" / "one")
    theirs = made(tmp_path / "theirs", **{"config.json": {"trainer": TRAINER}})
    (theirs / "ae.pt").unlink()
    for folder, named in (
        (tmp_path / "none", "runs/NAME"),
        (tmp_path / "base", str(tmp_path / "base" / "one")),
        (theirs, r"ae\.pt, .* config\.json"),
    ):
        with pytest.raises(CheckpointError, match=f"^{folder}: .*{named}"):
            find_sae(folder)


@pytest.mark.parametrize(
    ("config", "reader", "flag"),
    [
        (None, load_config, None),
        (b"{", load_config, None),
        (b"{", lambda path: read_run(path.parent), "resume"),
        ({"trainer": TRAINER, "run": {}}, load_config, None),
        ({"trainer": TRAINER}, lambda path: load_config(path, "config"), "config"),
    ],
)
def test_a_config_that_gives_no_settings_is_refused_with_the_flag_that_gave_it(
    config, reader, flag, tmp_path
):
    path = tmp_path / "config.json"
    if config is not None:
        made(tmp_path, **{"config.json": config})
    with pytest.raises(ConfigError, match=str(path)) as raised:
        reader(path)
    assert raised.value.name == flag


def test_a_run_that_is_not_finished_says_how_to_continue(tmp_path):
    folder = made(tmp_path / "my run")
    (folder / "ae.pt").unlink()
    for step, whole in ((0, []), (40, [20, 40]), (40, [])):
        for at in whole:
            point = folder / "resume" / f"step_{at:08d}.pt"
            point.parent.mkdir(exist_ok=True)
            point.touch()
        for reader in (find_sae, read_metrics):
            with pytest.raises(CheckpointError) as raised:
                reader(folder)
            assert f"step {step} of 77" in raised.value.problem
            assert f"`vsae train --resume '{folder}'`" in raised.value.instead
    assert steps_of(folder) == [20, 40]
    (folder / "metrics.json").write_text("{}")  # it was finished
    with pytest.raises(CheckpointError, match="--resume"):
        find_sae(folder)
    shutil.rmtree(folder / "resume")
    with pytest.raises(CheckpointError, match=r"ae\.pt, .* config\.json"):
        find_sae(folder)
    (folder / "metrics.json").unlink()
    (folder / "failed.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"failed\.json"):
        find_sae(folder)


def test_a_checkpoint_is_there_or_those_that_are_are_listed(tmp_path):
    made(tmp_path)
    (tmp_path / "ae.pt").unlink()
    with pytest.raises(CheckpointError, match=r"step 5; .*save_steps"):
        find_sae(tmp_path, 5)
    (tmp_path / "checkpoints").mkdir()
    for step in (100, 20):
        (tmp_path / "checkpoints" / f"ae_{step}.pt").touch()
    (tmp_path / "checkpoints" / ".ae_7.pt.tmp").touch()
    assert checkpoint_steps(tmp_path) == [20, 100]
    assert find_sae(tmp_path, 20).config["trainer"] == TRAINER, "of a run that is not finished too"
    with pytest.raises(CheckpointError, match="step 5; expected one of 20, 100"):
        find_sae(tmp_path, 5)


def test_settings_are_read_without_weights_from_a_folder_or_its_file(tmp_path):
    """But for where a run was written."""
    (with_settings(tmp_path, save_dir="runs/x", overwrite=True) / "ae.pt").unlink()
    assert load_config(tmp_path) == load_config(tmp_path / "config.json") == SETTINGS


def test_metrics_that_were_not_measured_say_what_to_type(tmp_path):
    assert find_sae(made(tmp_path)).metrics is None
    with pytest.raises(CheckpointError, match=rf"run `vsae eval {tmp_path}`"):
        read_metrics(tmp_path)
    with pytest.raises(ConfigError):
        find_saes([])
    made(tmp_path, **{"metrics.json": {"fve": 0.5}})
    assert read_metrics(tmp_path) == find_sae(tmp_path).metrics == {"fve": 0.5}


def test_the_history_is_read_line_by_line(tmp_path):
    assert read_history(tmp_path) == []
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 0}\n{"step": 7, "fve": null, "not_measured": {"fve": "why"}}\n'
    )
    assert read_history(tmp_path) == [{"step": 0}, {"step": 7, "fve": None}]


def test_a_run_is_all_that_lies_in_its_folder(tmp_path):
    one, two = (made(tmp_path / name) for name in ("one", "two"))
    assert run_folders(tmp_path) == [one, two]
    assert run_folders(one) == [one]
    assert list(read_run(tmp_path)[1]) == ["one", "two"]
    made(one, **{"metrics.json": {}})
    assert [is_finished(folder, SETTINGS.run) for folder in (one, two)] == [True, False]
    assert is_finished(two, RunConfig(eval_tokens=0)), "trained, and not to be evaluated"
    run, saes, hooks = read_run(two)
    assert (run.save_dir, list(saes)) == (str(two), ["two"])
    assert hooks == {"two": "blocks.1.hook_resid_post"}
    (nothing := tmp_path / "nothing").mkdir()
    with pytest.raises(ConfigError, match=re.escape(str(nothing))):
        read_run(nothing)
    with pytest.raises(ConfigError, match=re.escape(str(tmp_path / "none"))):
        read_run(tmp_path / "none")


def test_a_linked_run_folder_is_resumed_where_the_link_is(tmp_path, monkeypatch):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "one").symlink_to(made(tmp_path / "elsewhere"))
    assert read_run(tmp_path / "base")[0].save_dir == str(tmp_path / "base" / "one")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert list(read_run(Path())[1]) == ["elsewhere"]


def test_saes_of_different_hook_points_are_resumed_together(tmp_path):
    hooks = {"a": SETTINGS.run.hook, "b": "blocks.0.hook_mlp_out"}
    for name, hook in hooks.items():
        settings = TrainConfig(SETTINGS.sae, RunConfig(steps=77, hook=hook)).to_dict()
        config = {"trainer": TRAINER, "run": {"settings": settings}}
        made(tmp_path / name, **{"config.json": config})
    run, saes, found = read_run(tmp_path)
    assert (run.save_dir, list(saes), found) == (str(tmp_path), ["a", "b"], hooks)


def test_folders_of_different_runs_are_not_resumed_together(tmp_path):
    made(tmp_path / "a")
    other = TrainConfig(SETTINGS.sae, RunConfig(steps=78))
    config = {"trainer": TRAINER, "run": {"settings": other.to_dict()}}
    made(tmp_path / "b", **{"config.json": config})
    with pytest.raises(ConfigError) as raised:
        read_run(tmp_path)
    assert "(a and b differ)" in raised.value.problem
    assert "steps=77, not 78" in raised.value.problem
    assert raised.value.instead.endswith(f" --resume {tmp_path / 'a'}")


# --- a config.json of any content loads or is refused in one line


DAMAGED_CONFIGS = {
    "missing": (lambda path: path.unlink(), "config.json"),
    "a list": (lambda path: path.write_text("[1]"), r"config.json: .* got \[1\]"),
    "no trainer": (lambda path: path.write_text("{}"), r"trainer\.dict_class"),
    "a class that is none": (trainer(dict_class="os.system"), "dict_class 'os.system'"),
    "another width": (trainer(activation_dim=8), "activation_dim is 16, .* 8"),
    "a model that is nowhere": (setting(model="../../nowhere"), r"'\.\./\.\./nowhere'"),
    "a text with an escape": (setting(data="./\x1b[31m.txt"), r"\\x1b\[31m"),
    "a width of no model": (setting(model="embedded"), "16, .* blocks.* 128"),
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
