"""Sweep files: read, refused, and run command by command as wandb's agents run them."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from dictionary_learning_ext.cli import main
from dictionary_learning_ext.commands.sweep import train_config
from dictionary_learning_ext.config.presets import preset
from dictionary_learning_ext.config.run import TrainConfig
from dictionary_learning_ext.errors import ConfigError, UserError
from dictionary_learning_ext.run_folder.sae_folder import find_sae, read_metrics
from dictionary_learning_ext.sweep.sweep_file import configurations, read_sweep
from dictionary_learning_ext.training.plan import with_hook_names

SWEEPS = sorted((Path(__file__).parents[2] / "sweeps").glob("*.yaml"))


def agents_command(content, assignment):
    """The command of a run, by wandb's own functions."""
    arguments = create_sweep_command_args(
        {"args": {name: {"value": value} for name, value in assignment.items()}}
    )
    command = create_sweep_command(list(content["command"]))
    place = command.index("${args}")
    return [*command[:place], *arguments["args"], *command[place + 1 :]]


@pytest.mark.slow
@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_an_agents_command_of_every_file_trains_and_measures_what_the_file_optimises(
    path, tiny_lm_dir, text, tmp_path
):
    """The first, with fewer steps, and a small random model instead of the hub's."""
    content, first = yaml.safe_load(path.read_text()), read_sweep(path).assignments[0]
    small = [
        "--steps=20",
        "--batch-size=64",
        "--n-ctxs=8",
        "--eval-tokens=200",
        "--eval-documents=2",
    ]
    if {"--preset=paper", "--model=EleutherAI/pythia-70m"} & set(content["command"]):
        small += [f"--model={tiny_lm_dir}", f"--data={text}", "--dict-size=64", "--k=32"]
    folder = tmp_path / "run"
    _, *words = agents_command(content, first)
    assert main([*words, *small, "--wandb=disabled", f"--save-dir={folder}"]) == 0
    logged = {f"eval/{name}": value for name, value in read_metrics(folder).items()}
    assert isinstance(logged[content["metric"]["name"]], float)
    settings = find_sae(folder).config["run"]["settings"]
    assert {n: settings[n] for n in first if n != "k"} == {n: first[n] for n in first if n != "k"}


@pytest.mark.slow
@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_configuration_of_every_file_is_the_one_of_an_agents_command(path):
    """The local sweep and wandb's own functions make the same configuration of it."""
    content = yaml.safe_load(path.read_text())
    sweep = read_sweep(path)
    assert any(flag.startswith("--preset=") for flag in sweep.flags), "another default is no matter"
    here = configurations(sweep, train_config)
    assert len(here) == len(sweep.assignments) >= 8
    for assignment, config in zip(sweep.assignments, here.values(), strict=True):
        words = agents_command(content, assignment)
        assert words[:2] == ["vsae", "train"]
        theirs = train_config(words[2:])
        assert theirs.run.wandb == "online"
        resolved = theirs.sae.resolve(theirs.run.steps)
        assert TrainConfig(resolved, replace(theirs.run, wandb="disabled")) == config
        for name, value in assignment.items():
            assert config.to_dict()[name] == value


def test_a_local_sweep_needs_no_server_unless_it_is_asked_to_log(sweep_file, caplog):
    caplog.set_level("INFO")
    command = yaml.safe_load(sweep_file().read_text())["command"]
    sweep = read_sweep(sweep_file(command=[*command[:-1], "--wandb=online", "${args}"]))
    modes = {
        tuple(fixed): {one.run.wandb for one in configurations(sweep, train_config, fixed).values()}
        for fixed in ([], ["--wandb", "online"], ["--wandb=offline"])
    }
    assert [*modes.values()] == [{"disabled"}, {"online"}, {"offline"}]
    assert caplog.text.count("add --wandb online") == 1


@pytest.mark.parametrize("name", ["embedded", "two_hooks"])
def test_the_sweeps_of_the_embedded_model_are_around_the_recommended_preset(name):
    sweep = read_sweep(SWEEPS[0].with_name(f"{name}.yaml"))
    of_evaluation = {"eval_tokens"}
    unlike = []
    for config in configurations(sweep, train_config).values():
        usual = preset("recommended", config.run.steps)
        run = with_hook_names(usual.run)
        usual = TrainConfig(usual.sae.resolve(run.steps), run)
        unlike.append({n for n, v in config.to_dict().items() if v != usual.to_dict()[n]})
        follow = {"data_seed", "dead_feature_threshold"}  # from seed, and from k
        assert unlike[-1] <= {*sweep.assignments[0], *of_evaluation, *follow}
    assert any(one <= of_evaluation for one in unlike), "the preset itself is one of the runs"


def test_a_grid_ends_at_run_cap(sweep_file):
    whole = read_sweep(sweep_file()).assignments
    assert read_sweep(sweep_file(run_cap=3)).assignments == whole[:3]


DIGITS = {f"p{i}": {"values": list(range(10))} for i in range(20)}


def test_a_grid_is_built_as_far_as_run_cap(sweep_file):
    """A sweep of 10^20 settings."""
    few = read_sweep(sweep_file(run_cap=3, parameters=DIGITS)).assignments
    assert [one["p9"] for one in few] == [0, 1, 2]


def of(**parameters):
    return {"parameters": parameters}


BAD = {
    "not YAML": ("a: [", "not valid YAML"),
    "no such month": ("method: 2024-13-45", "not valid YAML.*month"),
    "a list": ("[1, 2]", "expected wandb's keys"),
    "an unknown key": ({"methode": "grid"}, r"'methode'; expected c.*did you mean 'method'\?"),
    "an unknown key of a parameter": (
        of(k={"vlaues": [8, 16]}),
        r"'k': unknown key 'vlaues'; expected .*value, values; did you mean 'values' or 'value'\?",
    ),
    "a random search": (
        {"method": "random"},
        "method='random': expected grid; .*`wandb sweep",
    ),
    "no method": ({"method": None}, "method=None"),
    "an unknown parameter": (
        of(betta={"value": 1}),
        r"sweep\.yaml: no such flag: --betta; did you mean --beta\?",
    ),
    "a value out of range": (of(k={"values": [33]}), r"sweep\.yaml: k=33.*dict_size=32"),
    "no parameters": ({"parameters": 3}, "expected wandb's keys"),
    "a parameter without values": (of(k=4), "expected value, or a list"),
    "no runs": ({"run_cap": 0}, "run_cap=0: expected a whole number above 0"),
    "another program": ({"command": ["python", "x.py", "${args}"]}, "expected a list: vsae, train"),
    "a folder for all": (
        {"command": ["vsae", "train", "--save-dir=x", "${args}"]},
        "save_dir: .*leave it out",
    ),
    "a name that leads elsewhere": ({"name": "../../x"}, r"name '\.\./\.\./x': expected a plain"),
    "several hook points in one run": (
        of(hook={"value": "blocks.0.hook_mlp_out,blocks.1.hook_mlp_out"}),
        r"hook='blocks.*sweep hook in .*sweep\.yaml, with values",
    ),
    "a range": (of(k={"min": 1, "max": 2}), "'k': unknown key '(min|max)'; expected value, values"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_one_line_before_anything_runs(case, sweep_file, tmp_path, capsys):
    changes, message = BAD[case]
    path = sweep_file(**changes) if isinstance(changes, dict) else sweep_file()
    if isinstance(changes, str):
        path.write_text(changes)
    assert main(["sweep", str(path), "--save-dir", str(tmp_path / "s")]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("vsae: ")
    assert re.search(message, error), error
    assert not (tmp_path / "s").exists()


def test_what_yaml_reads_as_text_is_what_the_setting_takes(sweep_file):
    """YAML reads 1e-4 as text."""
    path = sweep_file(parameters={"lr": {"value": "1e-4"}, "save_steps": {"values": ["5", "7"]}})
    configs = configurations(read_sweep(path), train_config).values()
    assert [config.sae.lr for config in configs] == [1e-4, 1e-4]
    assert [config.run.save_steps for config in configs] == ["5", "7"]


def test_fixed_flags_override_the_files_and_swept_ones_are_refused(sweep_file):
    sweep = read_sweep(sweep_file())
    for config in configurations(sweep, train_config, ["--steps=12", "--kl_scope", "all"]).values():
        assert (config.run.steps, config.run.batch_size, config.sae.kl_scope) == (12, 32, "all")
    for fixed, message in (
        (["--steps=12", "--beta", "0.1"], r"beta: .*sweep\.yaml sweeps it; leave it out"),
        (["--resume=x"], "resume: a sweep continues by itself"),
        (["--overwrite"], "overwrite: a sweep keeps its runs"),
    ):
        with pytest.raises(ConfigError, match=message):
            configurations(sweep, train_config, fixed)
    dashed = read_sweep(sweep_file(parameters={"dict-size": {"values": [64, 128]}}))
    for flag in ("--dict-size", "--dict_size"):
        with pytest.raises(ConfigError, match=r"dict.size"):
            configurations(dashed, train_config, [flag, "999"])


def test_a_mistake_is_blamed_on_the_file_or_on_what_was_typed(sweep_file):
    for fixed in (["--steps", "abc"], ["--dict-size=0"], ["--stepz", "9"]):
        with pytest.raises(UserError) as refused:
            configurations(read_sweep(sweep_file()), train_config, fixed)
        assert "yaml" not in str(refused.value)
    sweep = read_sweep(sweep_file(parameters={"k": {"value": 0}}))
    with pytest.raises(UserError, match=r"sweep\.yaml: k=0"):
        configurations(sweep, train_config, ["--steps", "12"])


@pytest.mark.parametrize("preset", [["--preset=paper"], ["--preset", "paper"]])
def test_a_typed_config_replaces_the_files_preset(preset, sweep_file, tmp_path):
    start = train_config(["--dict-size=96"])
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"run": {"settings": start.to_dict()}}))
    command = ["vsae", "train", *preset, "--batch-size=48", "${args}"]
    sweep = read_sweep(sweep_file(command=command, parameters={"k": {"values": [2, 4]}}))
    found = configurations(sweep, train_config, [f"--config={config}"]).values()
    assert {(one.sae.dict_size, one.run.batch_size) for one in found} == {(96, 48)}


@pytest.mark.parametrize("where", ["command", "parameters", "typed"])
def test_each_seed_has_a_data_seed_of_its_own(where, sweep_file):
    parameters = {"k": {"values": [2, 4]}, "seed": {"values": [0, 1, 5]}}
    command = yaml.safe_load(sweep_file().read_text())["command"]
    if where == "parameters":
        parameters |= {"data_seed": {"value": "seed"}}
    elif where == "command":
        command.insert(-1, "--data-seed=seed")
    sweep = read_sweep(sweep_file(parameters=parameters, command=command))
    fixed = ["--data_seed", "seed"] if where == "typed" else []
    configs = configurations(sweep, train_config, fixed)
    pairs = [(one.sae.k, one.sae.seed, one.run.data_seed) for one in configs.values()]
    assert sorted(pairs) == [(k, seed, seed) for k in (2, 4) for seed in (0, 1, 5)]
    assert {*configs} == {f"vsae_k{k}_seed{seed}" for k in (2, 4) for seed in (0, 1, 5)}
    if where != "parameters":  # a typed one replaces the file's
        seven = configurations(sweep, train_config, ["--data-seed", "7"]).values()
        assert {config.run.data_seed for config in seven} == {7}
