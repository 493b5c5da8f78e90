"""The commands on the pages in docs/: every flag and every value is one that the command takes."""

import re
import shlex
from pathlib import Path

import pytest

from dictionary_learning_ext.cli import COMMANDS
from dictionary_learning_ext.commands.flag_checks import require_legal

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
STARTS = ("vsae", "-m dictionary_learning_ext")


def commands(page):
    """The words of each command of ours in a page's blocks of bash, from its name on."""
    text = page.read_text(encoding="utf-8")
    for block in re.findall(r"```bash\n(.*?)```", text, re.S):
        for line in block.replace("\\\n", " ").splitlines():
            for start in STARTS:
                before, found, after = f" {line}".partition(f" {start} ")
                if found and "#" not in before:
                    yield shlex.split(after, comments=True)


def test_commands_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "vsae not in a block\n```bash\nvsae eval a  # vsae b\nN=1 torchrun --n 2 -m "
        "dictionary_learning_ext train \\\n  --k 3\npip install vsae\n# vsae c\n```\n"
    )
    assert list(commands(page)) == [["eval", "a"], ["train", "--k", "3"]]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_are_legal(page):
    found = list(commands(page))
    assert found
    for name, *words in found:
        command = COMMANDS[name]
        if command.prepare is not None:
            words, hidden = command.prepare(words)
            require_legal(COMMANDS["train"].flags, list(hidden.get("fixed", ())), "vsae train")
        require_legal(command.flags, words, f"vsae {name}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_files_that_a_page_links_to_are_there(page):
    links = re.findall(r"\]\(([^)#:]+)[^)]*\)", page.read_text(encoding="utf-8"))
    assert not [link for link in links if not (page.parent / link).exists()]
