"""The README's commands and Python, run as they are written."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from dictionary_learning_ext.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


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
    content = yaml.safe_load((ROOT / file).read_text())
    content["parameters"] = {n: {"value": p["values"][0]} for n, p in content["parameters"].items()}
    content["command"][-1:] = [*small[:-2], "${args}"]  # without --save-dir
    Path("smaller.yaml").write_text(yaml.safe_dump(content))
    return "smaller.yaml"


@pytest.mark.parametrize("command", [c for c in commands() if "--help" not in c])
def test_the_readmes_commands_run(command, small, quickstart_run, monkeypatch, capsys):
    """As written, but small, and on tiny models in the place of the embedded and hub ones."""
    monkeypatch.chdir(quickstart_run[0])
    words = shlex.split(command)[1:]
    if words[0] == "bench":
        pytest.importorskip("sae_bench", reason="needs the extra saebench")
        words += shlex.split("--tokens 2048 --evals core")
    if words[0] == "sweep":
        if "--results" in words and not Path(words[-1]).exists():
            assert main(["sweep", smaller_sweep("sweeps/embedded.yaml", small)]) == 0
        words = [smaller_sweep(w, small) if w.endswith(".yaml") else w for w in words]
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


@pytest.mark.parametrize("block", blocks("python"))
def test_the_readmes_python_runs(block, quickstart_run, monkeypatch):
    monkeypatch.chdir(quickstart_run[0])
    exec(compile(block, "README.md", "exec"), {})
