"""`vsae train`: where it starts from, what it prints, how it continues, and one SAE per hook point."""

import json
import re
import shlex
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch as t
from interrupted_runs import killed_at_the_first_update
from small_commands import content, refused, settings_of

from dictionary_learning_ext.activations.text import open_text
from dictionary_learning_ext.cli import main
from dictionary_learning_ext.commands.flags import parse, vsae
from dictionary_learning_ext.commands.train import TRAIN, starting_point
from dictionary_learning_ext.config.architectures import TRAINED
from dictionary_learning_ext.config.presets import PRESETS, preset
from dictionary_learning_ext.config.run import RunConfig, TrainConfig
from dictionary_learning_ext.config.sae import CONFIGS
from dictionary_learning_ext.errors import FlagError
from dictionary_learning_ext.training import loop


def test_train_prints_what_it_starts_from_where_the_sae_lies_and_what_it_is_worth(
    small, tmp_path, capsys
):
    assert main(["train", *small]) == 0
    out = capsys.readouterr().out
    line = "recommended (k=4, dict_size=32, noise_to_signal=0.3, lr=0.004, steps=12)"
    assert line in out.splitlines()[0]
    settings, recommended = settings_of(tmp_path / "run"), preset("recommended", steps=12)
    expected = recommended.resolved.to_dict()
    for name in ("noise_on", "noise_to_signal", "noise_anneal_steps", "kl_scope", "beta", "lr"):
        assert settings[name] == expected[name], name
    assert out.splitlines()[1] == f"Writing to {tmp_path / 'run'}, on cpu"
    assert "near-dead" in out
    assert f"saved in {tmp_path / 'run'}" in out
    assert "from dictionary_learning_ext import load_dictionary\n" in out
    assert f"load_dictionary({str(tmp_path / 'run')!r})" in out
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 12 + 1, "a run this short is logged at each step"
    assert f"{vsae()} report {tmp_path / 'run'}\n" in out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--model nobody", "'./nobody' can't be loaded"),
        ("--hook blocks.2", "use e.g. blocks.2.hook_resid_post"),
        ("--ctx-len 100000", "ctx_len=100000"),
        ("--dict-size 100000000000", "lower dict_size"),
        ("--device cuda:99", "device='cuda:99'"),
        ("--init-from nowhere", "init_from='nowhere': "),
    ],
)
def test_what_is_wrong_is_said_before_anything_else_and_before_the_language_model_is_loaded(
    flags, said, small, tmp_path, capsys, monkeypatch
):
    def loaded(*_, **__):
        raise AssertionError

    monkeypatch.setattr("dictionary_learning_ext.activations.inputs.load_model", loaded)
    typed = shlex.split(flags.replace("nobody", "./nobody"))
    assert main(["train", *small, *typed]) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.out == ""
    assert not (tmp_path / "run").exists()


def test_the_text_may_be_in_another_column(small, text, tmp_path, capsys):
    """Trained, cached and evaluated as from a column `text`."""
    rows = [json.dumps({"text": d, "body": d[::-1]}) for d in open_text(text)]
    swapped = [json.dumps({"body": d, "text": d[::-1]}) for d in open_text(text)]
    for name, lines in (("text", rows), ("body", swapped)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    given = {
        "text": ["--data", str(tmp_path / "text.jsonl")],
        "body": ["--data", str(tmp_path / "body.jsonl"), "--text-column", "body"],
    }
    for name, flags in given.items():
        assert main(["train", *small, *flags, "--save-dir", str(tmp_path / name)]) == 0
    weights = [(tmp_path / name / "ae.pt").read_bytes() for name in given]
    assert weights[0] == weights[1]
    assert settings_of(tmp_path / "body")["text_column"] == "body"
    metrics = tmp_path / "body" / "metrics.json"
    before = metrics.read_text()
    assert main(["eval", str(tmp_path / "body")]) == 0
    assert metrics.read_text() == before
    model = small[: small.index("--data")]
    sizes = ["--ctx-len", "32", "--tokens", "2000", "--eval-tokens", "200"]
    for name, flags in given.items():
        assert main(["cache", str(tmp_path / f"c_{name}"), *model, *flags, *sizes]) == 0
    files = [(tmp_path / f"c_{name}" / "data-00000.arrow").read_bytes() for name in given]
    assert files[0] == files[1]
    start = starting_point({"activations": str(tmp_path / "c_body")})
    assert start.run.text_column == "body"
    capsys.readouterr()
    wrong = ["--data", str(tmp_path / "body.jsonl"), "--text-column", "story"]
    said = refused(["train", *small, *wrong, "--save-dir", tmp_path / "x"], capsys)
    assert "'story', it has 'body', 'text'; " in said
    assert said.endswith("with text_column")


def test_flags_reach_the_trainer_and_the_weights_and_a_config_starts_another_run(small, tmp_path):
    """The weights are for raw activations: the prior's width is scaled as they are."""
    flags = "--beta 0.25 --posterior learned --kl-warmup-steps 0 --prior-std 0.5"
    assert main(["train", *small, *flags.split()]) == 0
    trained = json.loads((tmp_path / "run" / "config.json").read_text())["trainer"]
    for values in (settings_of(tmp_path / "run"), trained):
        assert (values["kl_warmup_steps"], values["prior_std"]) == (0, 0.5)
    weights = t.load(tmp_path / "run" / "ae.pt", weights_only=True)
    assert trained["norm_factor"] != pytest.approx(1, rel=0.01)
    assert weights["prior_std"].item() == pytest.approx(0.5 * trained["norm_factor"])
    again = str(tmp_path / "again")
    flags = ["--config", str(tmp_path / "run"), "--save-dir", again, "--seed=7"]
    assert main(["train", *flags]) == 0
    first, second = settings_of(tmp_path / "run"), settings_of(Path(again))
    assert {n for n in first if first[n] != second[n]} == {"save_dir", "seed"}


def parsed(typed):
    flags = parse(TRAIN, typed.split())
    return TrainConfig(flags.sae, flags.run).resolved.to_dict()


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("--preset paper-as-run --seed 3", {"dict_size": 8192, "normalize": "unit", "seed": 3}),
        ("--preset recommended --steps 12", {"decay_start": 9, "noise_anneal_steps": 6}),
        (
            "--preset paper --architecture top_k --decay-start None",
            {"posterior": None, "beta": None, "dtype": "bfloat16"},
        ),
        ("--posterior point", {"sigma": None, "noise_to_signal": None}),
    ],
)
def test_a_preset_is_a_start_and_flags_win(typed, expected):
    settings = parsed(typed)
    assert {name: settings.get(name) for name in expected} == expected


@pytest.mark.parametrize("architecture", TRAINED)
def test_the_defaults_are_those_of_python(architecture):
    run = RunConfig()
    expected = CONFIGS[architecture]().resolve(run.steps).to_dict() | asdict(run)
    assert parsed(f"--architecture {architecture}") == expected


def test_the_baseline_is_matched_to_the_recommended_preset():
    vsae, top_k = parsed("--steps 12"), parsed("--steps 12 --architecture top_k")
    for name in ("lr", "steps", "dict_size", "k", "decay_start", "warmup_steps", "auxk_alpha"):
        assert top_k[name] == vsae[name] is not None, name
    assert not top_k.keys() & {"beta", "noise_on"}


def test_what_an_architecture_does_not_take_from_a_config_is_named(folder, tmp_path, capsys):
    flags = ["--config", str(folder), "--architecture", "top_k"]
    assert main(["train", *flags, "--save-dir", str(tmp_path / "top_k")]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith(f"Settings of {folder}, except for the flags given. Left out")
    assert "beta" in first
    assert "noise_on" in first
    assert "auxk_alpha" not in first


def sigma_of(folder):
    """In training units."""
    trainer = json.loads((folder / "config.json").read_text())["trainer"]
    weights = t.load(folder / "ae.pt", weights_only=True)
    return weights["sigma"].item() / trainer["norm_factor"]


def test_noise_to_signal_gives_sigma_unless_that_is_given_itself(small, tmp_path):
    """k = 4, D = 16 under sqrt_d: sigma = sqrt(0.36 * 16 / 4)."""
    assert main(["train", *small, "--noise-to-signal", "0.36"]) == 0
    assert settings_of(tmp_path / "run")["noise_to_signal"] == 0.36
    assert sigma_of(tmp_path / "run") == pytest.approx(1.2)
    again = ["train", "--config", str(tmp_path / "run"), "--k", "1"]
    assert main([*again, "--save-dir", str(tmp_path / "again")]) == 0
    assert sigma_of(tmp_path / "again") == pytest.approx(2.4)
    assert main([*again, "--sigma", "0.5", "--save-dir", str(tmp_path / "own")]) == 0
    own = settings_of(tmp_path / "own")
    assert own["sigma"] == 0.5
    assert "noise_to_signal" not in own


def test_a_configs_schedules_are_those_of_the_runs_steps(tmp_path):
    """decay_start=9 of 12 steps is not possible in a run of 8."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"run": {"settings": parsed("--steps 12 --kl-warmup-steps 4")}}))
    settings = parsed(f"--config {config} --steps 8")
    assert settings == parsed(f"--config {config} --steps 8e0")
    schedules = {"decay_start": 6, "noise_anneal_steps": 4, "kl_warmup_steps": 2}
    assert {name: settings[name] for name in schedules} == schedules
    assert parsed(f"--config {config} --steps 8 --decay-start 7")["decay_start"] == 7
    assert parsed(f"--config {config}") == parsed("--steps 12 --kl-warmup-steps 4")


def test_the_noise_in_force_is_not_turned_off_by_the_word_none():
    with pytest.raises(FlagError, match=r"^--noise-to-signal none: expected a finite number "):
        parsed("--noise-to-signal none")
    assert parsed("--sigma none") == parsed("")


def test_what_follows_from_k_follows_from_another_k(tmp_path):
    config = tmp_path / "config.json"
    for flags, threshold in (("", 100 * 512 // 4), ("--dead-feature-threshold 7", 7)):
        config.write_text(json.dumps({"run": {"settings": parsed(flags)}}))
        assert parsed(f"--config {config} --k 4")["dead_feature_threshold"] == threshold


def test_a_resume_names_the_flags_that_were_typed_and_no_others(folder, flags, capsys):
    said = refused(["train", "--resume", folder, "--architecture", "top_k"], capsys)
    assert "architecture='vsae_top_k', not 'top_k'; leave out architecture " in said
    assert said.endswith("with config=FOLDER")
    assert "leave out lr " in refused(["train", "--resume", folder, "--lr", "1"], capsys)
    again = ["train", f"--save-dir={folder}"]
    said = refused([*again, *flags, "--noise-to-signal=0.4"], capsys)
    assert "noise_to_signal=0.3, not 0.4" in said
    assert f"(noise_to_signal=0.3), or `vsae train --resume {folder}`, or " in said
    # What only follows from a flag that differs is not named.
    without_steps = [flag for flag in flags if not flag.startswith("--steps")]
    said = refused([*again, *without_steps, "--seed=0"], capsys)
    assert "steps=12, not 8000; " in said
    assert "started with (steps=12), or `vsae train --resume" in said


def test_a_run_that_resumes_says_where_it_continues(small, tmp_path, capsys):
    assert main(["train", *small, "--save-every", "6"]) == 0
    (tmp_path / "run" / "metrics.json").unlink()
    (tmp_path / "run" / "ae.pt").unlink()
    for flags in (["--resume", str(tmp_path / "run")], [*small, "--save-every", "6"]):
        capsys.readouterr()
        assert main(["train", *flags]) == 0
        (tmp_path / "run" / "metrics.json").unlink()
        (tmp_path / "run" / "ae.pt").unlink()
        assert f"Continuing {tmp_path / 'run'}, on cpu\n" in capsys.readouterr().out


@pytest.mark.parametrize("name", PRESETS)
def test_a_run_killed_before_its_first_resume_point_continues(name, small, tmp_path):
    """By the same command, to the weights of a run that was not killed."""
    small = ["train", "--preset", name, "--hook", "blocks.0.hook_resid_post", *small]
    whole = [*small, f"--save-dir={tmp_path / 'whole'}"]
    assert main(whole) == 0

    with killed_at_the_first_update():
        main(small)
    assert main(small) == 0
    killed, undisturbed = (tmp_path / name / "ae.pt" for name in ("run", "whole"))
    assert killed.read_bytes() == undisturbed.read_bytes()


def test_a_finished_run_is_trained_longer_by_the_command_that_the_error_names(
    folder, flags, tmp_path, capsys
):
    again = ["train", f"--save-dir={folder}", *flags, "--steps=20"]
    assert "start a new run from its weights" in refused(again, capsys)
    resume = ["train", "--resume", folder, "--steps"]
    assert "with config" in refused([*resume, 9], capsys)
    for schedule in ([], ["--decay-start=16"]):  # which doesn't fit 12 steps
        assert "steps=12, not 20" in refused([*again, *schedule], capsys)
        assert "steps=12, not 20; " in refused([*resume, 20, *schedule], capsys)
    said = refused([*resume, 20], capsys)
    command = said.split("`")[1].replace("FOLDER", str(tmp_path / "longer"))
    assert main(shlex.split(command.removeprefix(vsae()))) == 0
    settings = settings_of(tmp_path / "longer")
    assert (settings["steps"], settings["init_from"]) == (8, str(folder))
    assert (settings["data_seed"], settings["noise_anneal_steps"]) == (1, 4)
    (folder / "ae.pt").unlink()
    assert "leave out steps" in refused([*resume, 20], capsys)


def test_a_run_is_not_written_over(folder, flags, capsys):
    before = content(folder)
    said = refused(["train", *flags, "--seed=1", f"--save-dir={folder}"], capsys)
    assert said.endswith(", or overwrite=True")
    assert content(folder) == before


@pytest.mark.slow
def test_settings_that_the_cache_knows_may_be_left_out(small_cache, tmp_path, capsys):
    folder = tmp_path / "run"
    flags = shlex.split(
        f"train --activations {small_cache} --steps 12 --batch-size 32 --n-ctxs 8 --dict-size 32"
        f" --k 4 --eval-tokens 200 --eval-documents 3 --save-dir {folder}"
    )
    line = refused(flags, capsys)
    assert line.endswith("blocks.1.hook_resid_post, blocks.0.hook_resid_post; choose one with hook")
    flags += ["--hook=blocks.0.hook_resid_post"]
    for given, said in {
        "--ctx-len=64": f"ctx_len=64: the cache {small_cache} has 32; give the same or leave it out",
        "--data=embedded": f"data='embedded': the cache {small_cache} has ",
        "--hook=blocks.2.hook_resid_post": "hook='blocks.2.hook_resid_post': the cache",
    }.items():
        assert said in refused([*flags, given], capsys)
    assert not folder.exists()
    both = "--hook=blocks.0.hook_resid_post,blocks.1.hook_resid_post"
    assert main([*flags, both, f"--save-dir={tmp_path / 'both'}"]) == 0
    assert len(list((tmp_path / "both").glob("*/ae.pt"))) == 2
    assert main(flags) == 0
    settings = settings_of(folder)
    assert settings["ctx_len"] == 32
    assert settings["hook"] == "blocks.0.hook_resid_post"
    assert settings["activations"] == str(small_cache)
    assert main(["train", "--config", str(folder), f"--save-dir={tmp_path / 'again'}"]) == 0
    one, other = ((tmp_path / name / "ae.pt").read_bytes() for name in ("run", "again"))
    assert one == other
    live = str(tmp_path / "live")
    flags = ["--activations=none", f"--save-dir={live}"]
    there = shutil.copytree(small_cache, tmp_path / "moved")
    start = starting_point({"config": str(folder), "activations": str(there)})
    assert start.run.hook == "blocks.0.hook_resid_post"
    of_paper = {"preset": "paper", "hook": start.run.hook, "activations": str(there)}
    assert starting_point(of_paper).run.dtype == "bfloat16", "not the cache's float32"
    assert main(["train", "--config", str(folder), *flags]) == 0
    assert settings_of(tmp_path / "live") == settings | {"activations": None, "save_dir": live}


def test_no_key_reaches_a_file(flags, tmp_path, monkeypatch):
    keys = {name: f"SECRET{i}" * 5 for i, name in enumerate(("WANDB_API_KEY", "HF_TOKEN"))}
    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    run = tmp_path / "run"
    assert main(["train", *flags, "--wandb=offline", f"--save-dir={run}"]) == 0
    import wandb

    wandb.teardown()
    files = [path for path in run.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    for path in files:
        assert not any(value.encode() in path.read_bytes() for value in keys.values()), path


WORDS = b"the cat sat on the mat. " * 4000


HOOKS = ["blocks.0.hook_attn_out", "blocks.2.hook_resid_post"]
BOTH = ["--hook", ", ".join(HOOKS)]


@pytest.fixture(scope="session")
def trained_at_both(flags, tmp_path_factory):
    """The folder of a run of two hook points."""
    base = tmp_path_factory.mktemp("hooks") / "both"
    measured = [*flags, "--eval-tokens=64", "--eval-documents=2"]
    assert main(["train", *measured, *BOTH, f"--save-dir={base}"]) == 0
    return base


def test_each_hook_point_gets_the_run_folder_of_its_own_run(trained_at_both, flags, tmp_path):
    assert sorted(path.name for path in trained_at_both.iterdir()) == HOOKS
    for hook in HOOKS:
        alone = tmp_path / hook
        assert main(["train", *flags, "--hook", hook, f"--save-dir={alone}"]) == 0
        one, other = (
            t.load(folder / hook / "ae.pt", weights_only=True)
            for folder in (trained_at_both, tmp_path)
        )
        assert all(t.equal(one[name], other[name]) for name in one)
        log = (alone / "metrics.jsonl").read_text()
        assert (trained_at_both / hook / "metrics.jsonl").read_text() == log
        assert settings_of(trained_at_both / hook)["hook"] == hook
        trainer = json.loads((trained_at_both / hook / "config.json").read_text())["trainer"]
        assert (trainer["submodule_name"], trainer["layer"]) == (hook, int(hook.split(".")[1]))


@pytest.mark.slow
def test_other_commands_take_the_folders(trained_at_both, tmp_path, capsys):
    folders = [str(trained_at_both / hook) for hook in HOOKS]
    before = content(trained_at_both)
    assert main(["eval", *folders]) == 0
    assert content(trained_at_both) == before, "the same numbers, from codes that were kept"
    capsys.readouterr()
    assert main(["compare", *folders]) == 0
    shown = capsys.readouterr().out
    assert "* Not a matched" in shown
    assert re.search(r"hook +tokens|hook\n", shown)
    page = tmp_path / "index.html"
    assert main(["report", str(trained_at_both), "--out", str(page)]) == 0
    assert all(hook in page.read_text() for hook in HOOKS)
    line = refused(["report", folders[0], "--against", folders[1]], capsys)
    assert f"hook='{HOOKS[1]}', but {folders[0]} has hook='{HOOKS[0]}'" in line


def test_the_same_command_continues_at_several_hook_points(flags, tmp_path, capsys):
    base = tmp_path / "run"
    command = ["train", *flags, *BOTH, f"--save-dir={base}"]
    assert main(command) == 0
    before = content(base)
    assert main(command) == 0
    assert main(["train", "--resume", str(base)]) == 0
    assert content(base) == before
    line = refused([*command, "--seed=3"], capsys)
    assert f"{base / HOOKS[0]}: the run has seed=0, not 3" in line


def test_the_same_command_leaves_out_an_sae_that_failed(flags, tmp_path, capsys):
    """It stopped early, so its resume points are older than those of the other one."""
    base = tmp_path / "run"
    command = ["train", *flags, *BOTH, "--save-every=6", f"--save-dir={base}"]
    assert main(command) == 0
    whole = t.load(base / HOOKS[1] / "ae.pt", weights_only=True)
    for hook in HOOKS:
        for name in ("ae.pt", "metrics.json"):
            (base / hook / name).unlink(missing_ok=True)
    shutil.rmtree(base / HOOKS[0] / "resume")
    (base / HOOKS[0] / "failed.json").write_text('{"step": 3, "what": "a loss"}')
    shutil.copytree(base / HOOKS[0], base / "another")  # another run that failed
    (base / HOOKS[1] / "resume" / "step_00000012.pt").unlink()
    line = refused(command, capsys)
    assert f"vsae: {base / HOOKS[0]}: failed earlier" in line
    found = t.load(base / HOOKS[1] / "ae.pt", weights_only=True)
    assert all(t.equal(found[name], whole[name]) for name in whole)
    assert not (base / HOOKS[0] / "ae.pt").exists()
    line = refused(command, capsys)
    assert f"trained and saved: {base / HOOKS[1]}" in line
    (base / HOOKS[1] / "failed.json").write_text('{"step": 3, "what": "a loss"}')
    assert "another save_dir" in refused(command, capsys)


def test_the_same_command_leaves_out_an_sae_that_is_finished(flags, tmp_path):
    """The other one's trainer raised, so their resume points are of different steps."""
    base = tmp_path / "run"
    command = ["train", *flags, *BOTH, "--save-every=6", f"--save-dir={base}"]
    assert main(command) == 0
    first, other = (base / hook for hook in HOOKS)
    whole = t.load(other / "ae.pt", weights_only=True)
    for name in ("ae.pt", "metrics.json", "resume/step_00000012.pt"):
        (other / name).unlink(missing_ok=True)
    for point in (first / "resume").glob("step_0000000*.pt"):
        point.unlink()
    before = content(first)
    assert main(command) == 0
    assert content(first) == before
    found = t.load(other / "ae.pt", weights_only=True)
    assert all(t.equal(found[name], whole[name]) for name in whole)


def test_an_error_in_an_evaluation_loses_no_other_hook_points_metrics(flags, tmp_path, monkeypatch):
    base, measured = tmp_path / "run", []

    def evaluated(opened, *arguments, **options):
        measured.extend(opened.saes)
        if len(measured) > 1:
            raise ArithmeticError("the second")
        return original(opened, *arguments, **options)

    original = loop.evaluated
    monkeypatch.setattr(loop, "evaluated", evaluated)
    with pytest.raises(ArithmeticError, match="the second"):
        main(["train", *flags, *BOTH, "--eval-tokens=64", f"--save-dir={base}"])
    first, other = measured
    assert (base / first / "metrics.json").is_file()
    assert (base / other / "ae.pt").is_file()
    assert not (base / other / "metrics.json").exists()


def test_a_folder_is_needed_and_none_is_written_over(trained_at_both, flags, capsys):
    line = refused(["train", *flags, *BOTH], capsys)
    assert line.startswith(f"vsae: hook='{', '.join(HOOKS)}': ")
    assert "add --save-dir DIR" in line
    before = content(trained_at_both)
    line = refused(["train", *flags, *BOTH, "--seed=1", f"--save-dir={trained_at_both}"], capsys)
    assert f"{trained_at_both / HOOKS[0]}: the run has " in line
    assert "seed=0, not 1" in line
    assert content(trained_at_both) == before
