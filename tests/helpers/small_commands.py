"""Runs of a second on the command line, a short quickstart, and the one line of a command that fails."""

import json
import shlex
import shutil
from contextlib import redirect_stdout
from hashlib import sha256
from io import StringIO
from pathlib import Path

import pytest
from kept import kept

from dictionary_learning_ext.cli import main


@pytest.fixture(scope="session")
def flags(tiny_lm_dir, text):
    """Flags of a run that takes a second."""
    run = f"--model={tiny_lm_dir} --data={text} --steps=12 --batch-size=32 --n-ctxs=8 --ctx-len=32"
    return f"{run} --dict-size=32 --k=4 --eval-tokens=0 --save-every=5".split()


@pytest.fixture
def small(tiny_lm_dir, text, tmp_path):
    """Flags of a run of a second that is evaluated, with its folder."""
    return shlex.split(
        f"--model {tiny_lm_dir} --data {text} --steps 12 --batch-size 32 --n-ctxs 8 --ctx-len 32 "
        f"--dict-size 32 --k 4 --eval-tokens 200 --eval-documents 4 --save-dir {tmp_path / 'run'}"
    )


@pytest.fixture(scope="session")
def trained(flags, tmp_path_factory):
    """Run folders of a vSAE and a TopK SAE."""

    def make(base):
        assert main(["train", *flags, f"--save-dir={base / 'vsae'}"]) == 0
        topk = ["--architecture=top_k", f"--save-dir={base / 'top_k'}"]
        assert main(["train", *flags, *topk]) == 0

    return shutil.copytree(kept("trained", make), tmp_path_factory.mktemp("trained") / "runs")


@pytest.fixture
def folder(trained, tmp_path):
    return shutil.copytree(trained / "vsae", tmp_path / "vsae")


@pytest.fixture(scope="session")
def quickstart_run(tmp_path_factory):
    """A short quickstart on the embedded model: the folder it ran in, and what it printed."""

    def write_report(run, against, page, **options):  # its own tests take the time
        Path(page).write_text(f"{run} {' '.join(map(str, against))}")
        return page

    def make(folder):
        out = StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out):
            patch.chdir(folder)
            patch.setattr("dictionary_learning_ext.report.page.write_report", write_report)
            assert main(["quickstart", "--steps", "12", "--eval-tokens", "500"]) == 0
        folder.with_name("quickstart.out").write_text(out.getvalue())

    made = kept("quickstart", make)
    folder = shutil.copytree(made, tmp_path_factory.mktemp("quickstart") / "made")
    return folder, made.with_name("quickstart.out").read_text()


def settings_of(folder):
    return json.loads((folder / "config.json").read_text())["run"]["settings"]


def content(folder):
    return {
        path: sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()
    }


def refused(arguments, capsys):
    """The one line that a command ends with, which must have failed."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    last = error.strip().splitlines()[-1]
    assert last.startswith("vsae: ")
    assert last.isprintable()
    return last


def setting(**changes):
    """Changes run.settings."""

    def damage(path):
        config = json.loads(path.read_text())
        config["run"]["settings"] |= changes
        path.write_text(json.dumps(config))

    return damage


def trainer(**changes):
    def damage(path):
        config = json.loads(path.read_text())
        config["trainer"] |= changes
        path.write_text(json.dumps(config))

    return damage
