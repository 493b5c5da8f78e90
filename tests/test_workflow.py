"""What runs on every change: the workflow and the hook before a commit call the Makefile."""

import os
import re
import runpy
from unittest.mock import patch

import yaml
from source_tree import ROOT

with patch("setuptools.setup") as setup:
    runpy.run_path(str(ROOT / "setup.py"))
SETTINGS = setup.call_args.kwargs
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))


def is_ours(command):
    """Whether a command is .ci/run, or make with targets that are there."""
    words = command.split()
    return words == [".ci/run"] or (words[0] == "make" and set(words[1:]) <= TARGETS)


def pythons_and_commands(workflow):
    pythons, commands = set(), []
    for job in workflow["jobs"].values():
        matrix = job.get("strategy", {}).get("matrix", {}).get("python", [])
        for step in job["steps"]:
            python = step.get("with", {}).get("python-version")
            if python:
                assert isinstance(python, str), "3.10 without quotes is 3.1"
                pythons |= set(matrix) if "matrix" in python else {python}
            commands += [step["run"]] if "run" in step else []
    return pythons, commands


def test_the_workflow_runs_what_is_there_on_the_pythons_that_are_promised():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    pythons, commands = pythons_and_commands(workflow)
    assert len(commands) >= 3
    assert not [command for command in commands if not is_ours(command)]
    assert os.access(ROOT / ".ci/run", os.X_OK)
    named = {text.rpartition(" ")[2] for text in SETTINGS["classifiers"] if ":: 3." in text}
    assert pythons == named
    oldest = min(named, key=lambda name: int(name.partition(".")[2]))
    assert SETTINGS["python_requires"] == f">={oldest}"


def test_the_workflow_runs_on_the_systems_that_are_promised():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    runners = {job["runs-on"].partition("-")[0] for job in workflow["jobs"].values()}
    systems = {"macos": "MacOS", "ubuntu": "POSIX :: Linux", "windows": "Microsoft :: Windows"}
    named = {text.partition(" :: ")[2] for text in SETTINGS["classifiers"] if "System ::" in text}
    assert {systems[runner] for runner in runners} == named


def test_the_hook_before_a_commit_lints():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    found = [hook for repo in hooks["repos"] for hook in repo["hooks"]]
    assert [repo["repo"] for repo in hooks["repos"]] == ["local"]
    assert [hook["entry"] for hook in found] == ["make lint"]
    assert is_ours("make lint")
    assert not is_ours("make nothing")


def test_the_makefile_names_test_files_that_are_there():
    named = re.findall(r"[\w/]*test_\w+\.py", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert len(named) > 10
    assert not [
        name for name in named if not (ROOT / "tests" / name.removeprefix("tests/")).is_file()
    ]
