"""The README and the pages of the guide: their code blocks, and how tests run them small.

Every block of the README runs alone, and so does a block of Python whose fence says `title="Complete"`. The other
blocks of a page run in order. They find the quickstart's SAEs, so whatever else a block needs is made on its page.
"""

import re
import shlex
import shutil
import tempfile
from collections.abc import Callable
from glob import glob
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import Any

import pytest
import yaml
from forks import ended, forked
from torch.distributed.run import get_args_parser

from dictionary_learning_ext.cli import main
from dictionary_learning_ext.commands.report import gets_an_index

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOT_RUN = ("pip", "uv", "echo", "python3", "source", "git", "wandb", "hf")
"""Programs that install, or that need a network."""

SMALL_RUN = shlex.split(
    "--steps 12 --batch-size 64 --n-ctxs 16 --eval-tokens 500 --eval-documents 4"
)
SMALLER = {
    "train": SMALL_RUN,
    "quickstart": shlex.split("--steps 12 --eval-tokens 500 --report False"),
    "eval": ["--tokens", "500"],
    "report": shlex.split("--tokens 500"),
    "export": ["--tokens", "500"],
    "cache": shlex.split("--tokens 5000 --eval-tokens 500 --eval-documents 4"),
    "bench": shlex.split("--tokens 2048 --evals core"),
}
"""What is appended to a command. The last of two equal flags counts."""
SMALLER_PYTHON = (
    (r"\bsteps=[\d_]+", "steps=12"),
    (r"(\[config\],|steps, name =) \d+", r"\1 12"),  # of upstream's trainSAE
    (r"\bn_ctxs=500", "n_ctxs=16"),
    (r"\btokens=[\d_]+", "tokens=500"),
    (r"(\bevals=\[.core.\])", r"\1, tokens=2048"),
    (r"\bRunConfig\(", "RunConfig(eval_tokens=500, eval_documents=4, batch_size=64, n_ctxs=16, "),
)


def blocks(page: Path) -> list[tuple[str, str]]:
    """The language and the text of each code block."""
    return re.findall(r"```(\w+)[^\n]*\n(.*?)```", page.read_text(encoding="utf-8"), re.S)


def complete_blocks(page: Path) -> list[str]:
    """The blocks of Python that a page offers as complete."""
    text = page.read_text(encoding="utf-8")
    return re.findall(r"```python title=\"Complete\"\n(.*?)```", text, re.S)


def lines(block: str) -> list[str]:
    """The commands of a block of bash, without comments."""
    every = (line.strip() for line in block.replace("\\\n", " ").splitlines())
    return [shlex.join(words) for line in every if (words := shlex.split(line, comments=True))]


def our_words(line: str) -> list[str] | None:
    """The words of a command of ours from the subcommand on; None for another program's."""
    words = list(dropwhile(lambda word: "=" in word, shlex.split(line)))
    if words[0] == "vsae":
        return words[1:]
    module = ["-m", "dictionary_learning_ext"]
    found = [i for i in range(len(words)) if words[i : i + 2] == module]
    return words[found[0] + 2 :] if found else None


def smaller_sweep(file: str) -> str:
    """A sweep file of the repository with the first value of each parameter, and all hook points."""
    content = yaml.safe_load((ROOT / file).read_text())
    for name, given in content["parameters"].items():
        if name != "hook":
            content["parameters"][name] = {"value": given["values"][0]}
    content["command"][-1:] = [*SMALL_RUN, "${args}"]
    smaller = Path(f"smaller_{Path(file).name}")
    smaller.write_text(yaml.safe_dump(content))
    return str(smaller)


def smaller(words: list[str], tiny_lm: Path) -> list[str]:
    """A command of ours, on little data, on a CPU, and without the hub."""
    words = [word for given in words for word in sorted(glob(given)) or [given]]
    words = [re.sub(r"cuda(:\d)?", "cpu", word) for word in words]
    if words[0] == "sweep":
        words = [smaller_sweep(w) if w.endswith(".yaml") else w for w in words]
    if words[0] == "train" and {"paper", "paper-as-run"} & set(words):
        words += ["--model", str(tiny_lm), "--data", "my.txt", "--dict-size", "128", "--k", "64"]
        words += ["--hook", "blocks.0.hook_resid_post"]
    is_fixed = "--resume" in words or "--help" in words
    if words[0] == "report" and gets_an_index(Path(words[1])):
        is_fixed = True  # it measures nothing
    return words if is_fixed else words + SMALLER.get(words[0], [])


def run_line(line: str, tiny_lm: Path) -> None:
    """Run a command of a page, or check that it could be run."""
    words = shlex.split(line)
    environment = list(takewhile(lambda word: "=" in word, words))
    program = words[len(environment)]
    ours = our_words(line)
    if program == "make":
        assert f"\n{words[-1]}:" in (ROOT / "Makefile").read_text(), line
    elif program == "torchrun":
        # In one process: tests/training/test_processes.py starts the real torchrun.
        launched = get_args_parser().parse_args(words[len(environment) + 1 :])
        assert (launched.module, launched.training_script_args) == (True, ours), line
        assert main(smaller(ours, tiny_lm)) == 0, line
    elif words[:2] == ["wandb", "sweep"]:
        assert (ROOT / words[2]).is_file(), line
    elif ours is None:
        assert program in NOT_RUN, f"{line}: tests don't know how to run {program}"
    elif "--help" not in ours:
        assert main(smaller(ours, tiny_lm)) == 0, line


def run_lines(block: str, tiny_lm: Path, skips: tuple[str, ...] = ()) -> None:
    """Run the commands of a block of bash, but for these subcommands."""
    for line in lines(block):
        if (our_words(line) or [""])[0] not in skips:
            run_line(line, tiny_lm)


def smaller_python(block: str) -> str:
    for pattern, small in SMALLER_PYTHON:
        block = re.sub(pattern, small, block)
    return block


def run_page(page: Path, tiny_lm: Path, skips: tuple[str, ...] = ()) -> None:
    """Run the blocks of a page in order, in the current folder. Its Python shares one namespace.

    Args:
        skips: subcommands that are left out.
    """
    names: dict[str, object] = {"__name__": "__main__"}
    for language, block in blocks(page):
        if language == "bash":
            run_lines(block, tiny_lm, skips)
        if language == "python":
            exec(compile(smaller_python(block), page.name, "exec"), names)
        if language == "yaml":
            assert yaml.safe_load(block), block


def run_python(code: str) -> None:
    exec(compile(code, "block", "exec"), {"__name__": "__main__"})


def in_fresh_process(function: Callable[..., None], *arguments: Any) -> None:
    """Call a function of this module in the current folder, in a process that has imported the package and done nothing
    else."""
    with tempfile.NamedTemporaryFile("r") as log:
        assert ended(forked(function, *arguments, printed=log.name)) == [0], log.read()[-6000:]


@pytest.fixture
def guide_folder(quickstart_run, text, tmp_path):
    """Where a page runs: with the quickstart's SAEs and a text of a user's."""
    cache = quickstart_run[0] / "runs/quickstart/cache"  # 60 MB, which no page changes
    left_out = shutil.ignore_patterns(cache.name)
    shutil.copytree(quickstart_run[0], tmp_path, dirs_exist_ok=True, ignore=left_out)
    (tmp_path / "runs/quickstart/cache").symlink_to(cache)
    shutil.copy(text, tmp_path / "my.txt")
    return tmp_path
