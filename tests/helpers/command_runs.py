"""Commands of a second, and a short quickstart, for tests of commands and of the guide."""

import json
import shlex
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from dictionary_learning_ext.cli import main


@pytest.fixture
def small(tiny_lm_dir, text, tmp_path):
    """Flags of a run of a second."""
    return shlex.split(
        f"--model {tiny_lm_dir} --data {text} --steps 12 --batch-size 32 --n-ctxs 8 --ctx-len 32 "
        f"--dict-size 32 --k 4 --eval-tokens 200 --save-dir {tmp_path / 'run'}"
    )


@pytest.fixture(scope="session")
def quickstart_run(tmp_path_factory):
    """A short quickstart on the embedded model: the folder it ran in, and what it printed."""
    folder, out = tmp_path_factory.mktemp("quickstart"), StringIO()

    def write_report(run, against, page, **options):  # its own tests take the time
        Path(page).write_text(f"{run} {' '.join(map(str, against))}")
        return page

    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out):
        patch.chdir(folder)
        patch.setattr("dictionary_learning_ext.report.page.write_report", write_report)
        assert main(["quickstart", "--steps", "12", "--eval-tokens", "500"]) == 0
    return folder, out.getvalue()


def settings_of(folder):
    return json.loads((folder / "config.json").read_text())["run"]["settings"]
