"""The command line as a user types it: forms of flags, one-line errors, what it prints."""

import json
import re
import shlex
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import yaml

from dictionary_learning_ext.cli import main
from dictionary_learning_ext.config.sae_config import SAEConfig
from dictionary_learning_ext.errors import UserError

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def small(tiny_lm_dir, text, tmp_path):
    """Flags of a run of a second."""
    return shlex.split(
        f"--model {tiny_lm_dir} --data {text} --steps 12 --batch-size 32 --n-ctxs 8 --ctx-len 32 "
        f"--dict-size 32 --k 4 --eval-tokens 200 --save-dir {tmp_path / 'run'}"
    )


def settings_of(folder):
    return json.loads((folder / "config.json").read_text())["run"]["settings"]


def test_train_prints_where_it_lies_and_what_it_is_worth(small, tmp_path, capsys):
    assert main(["train", *small]) == 0
    out = capsys.readouterr().out
    assert "near-dead" in out
    assert f"saved in {tmp_path / 'run'}" in out


def test_the_forms_a_sweep_agent_types_all_work(small, tmp_path):
    agent = ["--dict_size=64", "--rectify=True", "--lr=None", "--noise_on=values", "--k=8"]
    assert main(["train", *small, *agent]) == 0
    settings = settings_of(tmp_path / "run")
    assert {n: settings[n] for n in ("dict_size", "rectify", "lr", "noise_on", "k")} == {
        "dict_size": 64,
        "rectify": True,
        "lr": None,
        "noise_on": "values",
        "k": 8,
    }


def test_a_bare_boolean_flag_means_true(small, tmp_path):
    assert main(["train", *small]) == 0
    assert main(["train", *small, "--overwrite", "--rectify", "--seed", "3"]) == 0
    assert settings_of(tmp_path / "run")["rectify"] is True


def test_a_runs_config_starts_another_and_flags_win(small, tmp_path):
    assert main(["train", *small, "--beta", "0.25", "--posterior", "learned"]) == 0
    again = str(tmp_path / "again")
    flags = ["--config", str(tmp_path / "run"), "--save-dir", again, "--seed=7"]
    assert main(["train", *flags]) == 0
    first, second = settings_of(tmp_path / "run"), settings_of(Path(again))
    assert {n for n in first if first[n] != second[n]} == {"save_dir", "seed"}


def test_a_config_with_another_posterior_drops_what_that_does_not_use(small, tmp_path):
    assert main(["train", *small, "--sigma", "0.3"]) == 0
    flags = ["--config", str(tmp_path / "run"), "--posterior", "point"]
    assert main(["train", *flags, "--save-dir", str(tmp_path / "point")]) == 0
    assert settings_of(tmp_path / "point")["sigma"] is None


def test_a_preset_is_a_start_and_flags_win(small, tmp_path):
    flags = ["--preset", "paper-as-run", *small]
    assert main(["train", *flags]) == 0
    settings = settings_of(tmp_path / "run")
    assert (settings["posterior"], settings["normalize"], settings["steps"]) == (
        "point",
        "unit",
        12,
    )


def test_a_presets_schedules_are_those_of_the_runs_steps(small, tmp_path):
    flags = ["--preset", "recommended", "--dict-size", "32", "--k", "4", *small]
    assert main(["train", *flags]) == 0
    settings = settings_of(tmp_path / "run")
    assert (settings["steps"], settings["decay_start"], settings["noise_anneal_steps"]) == (
        12,
        9,
        6,
    )


def test_resuming_what_is_no_run_says_what_to_give(tmp_path, capsys):
    assert main(["train", "--resume", str(tmp_path / "nope")]) == 2
    assert "nope: holds no run; expected a run folder, e.g. runs/NAME" in capsys.readouterr().err


def test_eval_and_compare(small, tmp_path, capsys):
    assert main(["train", *small, "--eval-tokens", "0"]) == 0
    run = str(tmp_path / "run")
    assert main(["compare", run]) == 2
    assert f"run `vsae eval {run}`" in capsys.readouterr().err
    assert main(["eval", run, "--tokens", "300"]) == 0
    assert main(["compare", run, run]) == 0
    assert "FVE" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--architecture", "topk"], r"'topk': expected one of .*top_k"),
        (["--preset", "papper"], r"preset='papper': expected one of quickstart, recommended"),
        (["--hook", "blocks.9.hook_resid_post"], r"blocks\.9.*blocks\.\{0\.\.2\}"),
        (["--data", "nobody/nothing"], r"'nobody/nothing'.*embedded"),
        (["--data", "./nothing.txt"], r"nothing\.txt"),
        (["--model", "./nothing"], r"'\./nothing'.*save_pretrained"),
        (["--k", "33"], r"k=33.*dict_size=32"),
        (["--beta", "-1"], r"beta=-1\.0: expected at least 0"),
        (["--sigma", "-0.5"], r"sigma=-0\.5: expected above 0"),
        (["--architecture", "top_k", "--beta", "0"], r"top_k does not use it; leave out --beta"),
        (["--betta", "1"], r"--betta"),
        (["--k", "many"], r"--k.*'many'"),
        (["--config", "nowhere.json"], r"nowhere\.json: no such file"),
        (["--config", "x", "--preset", "paper"], r"give one of them"),
        (["--steps", "100000"], r"tokens.*--text-passes"),
        (["--save-steps", "often"], r"save_steps='often'.*linear:N"),
        (["--device", "tpu"], r"device 'tpu'.*'cpu'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_ends_in_one_line_that_says_what_to_type(flags, message, small, capsys):
    assert main(["train", *small, *flags]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("vsae: ")
    assert re.search(message, error), error


def test_a_run_is_not_written_over(small, tmp_path, capsys):
    assert main(["train", *small]) == 0
    before = (tmp_path / "run" / "ae.pt").read_bytes()
    assert main(["train", *small, "--seed", "1"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "run" / "ae.pt").read_bytes() == before


def test_a_checkpoint_of_another_model_or_layer_than_asked_for(small, tmp_path, capsys):
    assert main(["train", *small]) == 0
    run = str(tmp_path / "run")
    assert main(["eval", run, "--model", "embedded"]) == 2
    assert re.search(r"trained on model .*, not on embedded", capsys.readouterr().err)
    assert main(["eval", run, "--hook", "blocks.1.hook_resid_post"]) == 2
    assert "trained on hook blocks.0" in capsys.readouterr().err
    assert main(["eval", str(tmp_path / "none")]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_one_line(small, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["train", *small, "--save-dir", str(tmp_path / "file" / "run")]) == 2
    assert "can't be written" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["eval", "compare", "report"])
def test_no_folder_is_one_line(command, capsys):
    assert main([command]) == 2
    assert "vsae: " in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "quickstart"])
def test_a_command_without_flags_trains_with_the_defaults(command, monkeypatch):
    """What `make quickstart` types."""
    seen = []

    def stub(run, saes, **_):
        seen.append((run, saes))
        raise UserError("stop here")

    monkeypatch.setattr("dictionary_learning_ext.training.loop.train", stub)
    assert main([command]) == 2
    ((run, saes),) = seen
    assert run.model == "embedded"
    assert len(saes) == {"train": 1, "quickstart": 3}[command]


def test_an_unknown_command_lists_those_there_are(capsys):
    assert main(["trian"]) == 2
    assert "train, eval, compare, report, quickstart" in capsys.readouterr().err


def test_help_explains_every_flag_with_the_papers_values():
    shown = subprocess.run(
        [sys.executable, "-m", "dictionary_learning_ext.cli", "train", "--help"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for field in vars(SAEConfig()):
        assert re.search(rf"--{field.replace('_', '-')}\s", shown), field
    assert "Paper: 2048" in shown


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    """A short quickstart on the embedded model: the folder it ran in, and what it printed."""
    folder, out = tmp_path_factory.mktemp("quickstart"), StringIO()

    def write_report(run, against, page, **options):  # its own tests take the time
        Path(page).write_text(f"{run} {' '.join(map(str, against))}")
        return page

    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out):
        patch.chdir(folder)
        patch.setattr("dictionary_learning_ext.report.write_report", write_report)
        assert main(["quickstart", "--steps", "12", "--eval-tokens", "500"]) == 0
    return folder, out.getvalue()


def test_quickstart_ends_with_the_table_and_what_to_try_next(quickstart):
    folder, out = quickstart
    for name in ("top_k", "vsae_paper", "vsae_annealed_selection"):
        assert (folder / "runs" / "quickstart" / name / "ae.pt").exists()
        assert re.search(rf"^runs/quickstart/{name} +-?0\.\d", out, re.M)
    assert "Open runs/quickstart/report.html in a browser" in out
    reported = (folder / "runs" / "quickstart" / "report.html").read_text().split()
    assert [Path(name).name for name in reported] == [
        "vsae_annealed_selection",
        "top_k",
        "vsae_paper",
    ]
    suggested = [line.split() for line in out.splitlines() if line.startswith("  vsae ")]
    assert [words[1] for words in suggested] == ["train", "compare", "train"]


# --- the README's commands


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def commands():
    lines = [line for block in blocks("bash") for line in re.sub(r"\\\n", " ", block).splitlines()]
    return [line.split("#")[0].strip() for line in lines if line.strip().startswith("vsae ")]


def test_the_readme_has_commands():
    assert len(commands()) >= 5
    assert len(blocks("python")) >= 2


def smaller_sweep(file, small):
    """A sweep file of the repository with the first value of each parameter, on a tiny model."""
    content = yaml.safe_load((Path(__file__).parents[1] / file).read_text())
    content["parameters"] = {n: {"value": p["values"][0]} for n, p in content["parameters"].items()}
    content["command"][-1:] = [*small[:-2], "${args}"]  # without --save-dir
    Path("smaller.yaml").write_text(yaml.safe_dump(content))
    return "smaller.yaml"


@pytest.mark.parametrize("command", [c for c in commands() if "--help" not in c])
def test_the_readmes_commands_run(command, small, quickstart, monkeypatch, capsys):
    """As written, but small, and on tiny models in the place of the embedded and hub ones."""
    monkeypatch.chdir(quickstart[0])
    words = shlex.split(command)[1:]
    if words[0] == "bench":
        pytest.importorskip("sae_bench", reason="needs the extra saebench")
        words += shlex.split("--tokens 2048 --evals core")
    if words[0] == "sweep":
        words[1] = smaller_sweep(words[1], small)
    if "--resume" in words:
        assert main(["train", *small, "--save-dir", words[-1], "--overwrite"]) == 0
    elif words[0] == "train":
        words += [*small, "--dict-size", "128", "--k", "64", "--decay-start", "None"]
        words += ["--device", "cpu"]
    if words[0] == "eval":
        words[-1] = "500"
    if words[0] == "report":
        words += shlex.split("--tokens 500 --map-tokens 300 --map-features 40 --synthesise 1")
    assert main(words) == 0, capsys.readouterr().err


def test_an_architecture_takes_from_a_preset_what_it_uses(small, tmp_path):
    flags = ["--preset", "paper", "--architecture", "top_k", *small, "--decay-start", "None"]
    assert main(["train", *flags]) == 0
    settings = settings_of(tmp_path / "run")
    assert (settings["posterior"], settings["beta"], settings["dtype"]) == (None, None, "bfloat16")


@pytest.mark.parametrize("block", blocks("python"))
def test_the_readmes_python_runs(block, quickstart, monkeypatch):
    monkeypatch.chdir(quickstart[0])
    exec(compile(block, "README.md", "exec"), {})


def test_bench_without_its_extra_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr("dictionary_learning_ext.commands.bench.find_spec", lambda _: None)
    assert main(["bench", "runs/any"]) == 2
    assert "pip install 'dictionary-learning-ext[saebench]'" in capsys.readouterr().err


def test_the_core_never_imports_sae_bench():
    code = (
        "import sys, dictionary_learning_ext as ext\n"
        "from dictionary_learning_ext import cli\n"
        "from dictionary_learning_ext.evaluation import folders\n"
        "[getattr(ext, name) for name in ext.__all__]\n"
        "print([m for m in ('sae_bench', 'sae_lens', 'transformer_lens') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")


def test_help_imports_nothing_heavy():
    """What makes `vsae train --help` answer in well under a second."""
    code = (
        "import sys; from dictionary_learning_ext.cli import main\n"
        "try: main(['train', '--help'])\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'nnsight', 'datasets', 'wandb') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")
