"""The README and the guide: their commands and Python run, and what they link to is there."""

import re
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from guide import (
    PAGES,
    blocks,
    complete_blocks,
    in_fresh_process,
    lines,
    our_words,
    run_lines,
    run_page,
    run_python,
    smaller_python,
)
from notebooks import NOTEBOOKS, read

from dictionary_learning_ext import preset
from dictionary_learning_ext.activations.inputs import open_inputs
from dictionary_learning_ext.cli import COMMANDS
from dictionary_learning_ext.commands.flags import Command, parse

NOT_HERE = () if find_spec("sae_bench") else ("bench",)
"""Subcommands whose extra isn't installed. `make test-saebench` runs their page."""
NEEDED = {"exports.md": "sae_lens", "sae_bench.md": "sae_bench"}
"""What the whole of a page needs. `make test-saebench` runs it."""


def legal_anywhere(command: Command) -> Command:
    """The command, which starts from no folder: that of a page isn't there."""
    start = command.starting_point
    if start is None:
        return command
    folders = {"config", "resume", "activations"}
    return replace(
        command,
        starting_point=lambda given: start({n: t for n, t in given.items() if n not in folders}),
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_are_legal(page):
    """As they are written: every flag and every value is one that the command takes."""
    found = [line for kind, block in blocks(page) if kind == "bash" for line in lines(block)]
    for name, *words in filter(None, map(our_words, found)):
        if "--help" in words:
            continue
        flags = parse(legal_anywhere(COMMANDS[name]), words)
        if name == "sweep":
            parse(legal_anywhere(COMMANDS["train"]), list(flags.passed_on))


README, *GUIDE = PAGES
ALONE = [("bash", block) for kind, block in blocks(README) if kind == "bash"] + [
    ("python", block)
    for page in PAGES
    for block in (
        [b for k, b in blocks(page) if k == "python"] if page == README else complete_blocks(page)
    )
]


@pytest.mark.guide
@pytest.mark.slow
@pytest.mark.parametrize(("kind", "block"), ALONE, ids=[block.split("\n")[0] for _, block in ALONE])
def test_a_complete_block_runs_alone(kind, block, guide_folder, tiny_lm_dir, monkeypatch):
    """Every block of the README, and those that a page offers as complete. The quickstart's SAEs are there."""
    monkeypatch.chdir(guide_folder)
    if kind == "bash":
        run_lines(block, tiny_lm_dir, NOT_HERE)
    else:
        in_fresh_process(run_python, smaller_python(block))


def test_trainsae_in_the_readme_reads_what_vsae_train_reads_to_the_bit(monkeypatch):
    """At the input of a block, too."""
    name, calls = "blocks.3.hook_resid_pre", []
    monkeypatch.setattr(
        "dictionary_learning.training.trainSAE", lambda *given, **_: calls.append(given)
    )
    (block,) = (block for kind, block in blocks(README) if kind == "python")
    run_python(smaller_python(block).replace("blocks.0.hook_resid_post", name))
    ((buffer, (config,), _),) = calls
    assert config["submodule_name"] == name
    run = replace(preset("recommended").run, hook=name, n_ctxs=buffer.n_ctxs)
    batches = open_inputs(run, [name]).training_batches()
    for _ in range(12):  # two fills
        assert torch.equal(next(buffer), batches.next()[name])


@pytest.mark.guide
@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.name, marks=[pytest.mark.extra] * (page.name in NEEDED))
        for page in GUIDE
    ],
)
def test_a_page_runs(page, guide_folder, tiny_lm_dir, monkeypatch):
    """In an interpreter of its own, if it has Python: its commands leave nothing behind for the next page's."""
    if page.name in NEEDED:
        pytest.importorskip(NEEDED[page.name], reason="needs the page's extra")
    monkeypatch.chdir(guide_folder)
    if "python" in dict(blocks(page)):
        in_fresh_process(run_page, page, tiny_lm_dir, NOT_HERE)
    else:
        run_page(page, tiny_lm_dir, skips=NOT_HERE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_files_that_a_page_links_to_are_there(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    assert not [link for link in links if not (page.parent / link).exists()]


def test_sections_that_pages_link_to_are_there():
    """A heading's anchor is its text in lower case, with dashes for spaces, as on a Git host."""
    checked = 0
    for page in PAGES:
        for target, anchor in re.findall(r"\]\(([\w./]*\.md)?#([\w-]+)\)", page.read_text()):
            checked += 1
            text = ((page.parent / target) if target else page).read_text(encoding="utf-8")
            headings = re.findall(r"^#+ (.*)$", text, re.M)
            anchors = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
            assert anchor in anchors, f"{page.name}: {target}#{anchor}"
    assert checked > 35


PUBLISHED = ("dictionary_learning_ext.sae_lens", "dictionary_learning_ext.sae_bench")
"""What needs an extra stays where it is."""


def test_pages_and_notebooks_import_what_is_public():
    sources = [block for page in PAGES for kind, block in blocks(page) if kind == "python"]
    for path in NOTEBOOKS:
        sources += [cell.source for cell in read(path).cells if cell.cell_type == "code"]
    modules = re.findall(r"^from (dictionary_learning_ext[\w.]*) import", "\n".join(sources), re.M)
    assert len(modules) > 15
    deep = {module for module in modules if module != "dictionary_learning_ext"}
    assert not [module for module in deep if not module.startswith(PUBLISHED)]
