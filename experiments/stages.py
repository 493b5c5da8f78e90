"""The command line of every experiment: `python -m experiments.NAME STAGE [options]`."""

import argparse
import os
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments import pages, raw_results
from experiments.index import find

Content = dict[str, Any]
Measure = Callable[[Namespace], None]


def in_child(name: str, *words: str) -> str:
    """Run an experiment in a process of its own; the last line that it prints."""
    root = str(Path(__file__).parents[1])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    output = subprocess.run(
        [sys.executable, "-m", find(name).module, *words],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    ).stdout
    return output.splitlines()[-1]


@dataclass(frozen=True)
class Page:
    """What is shown of a file of raw results, on the page beside it."""

    tables: Callable[[Content], list[str]]
    """The page's lines between its two comments, from the raw results alone."""
    draw: Callable[[Content, Path], None] | None = None
    """Draws the page's plots, from the raw results; takes the page's path too."""


@dataclass(frozen=True)
class Stages:
    """What an experiment does in each stage. After every stage its pages are written.

    `train` trains SAEs and measures them. `bench` runs SAE Bench on them, or is a benchmark. Both write
    raw results. `tables` does nothing more than to write the pages from these.
    """

    name: str
    """In the index."""
    measure: dict[str, Measure]
    """Every stage but `tables`: it writes raw results."""
    pages: dict[str, Page]
    """By the name of the raw results and of the page, in results/."""
    options: Callable[[ArgumentParser], object] | None = None
    raw_of: Callable[[Namespace], Path] | None = None
    """Where the raw results of the one page are, if the options say so."""
    child: dict[str, Callable[[str], object]] = field(default_factory=dict)
    """What a process of its own prints, for `in_child(NAME, STAGE, "--only", PART)`, by stage."""

    def parse(self, words: Sequence[str]) -> Namespace:
        """The arguments; an unknown stage is an error that lists those there are."""
        about = find(self.name)
        parser = ArgumentParser(
            prog=f"python -m {about.module}",
            description=about.question,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        parser.add_argument("stage", choices=[*self.measure, "tables"])
        if self.child:
            parser.add_argument("--only", help="measure this part in this process and print it")
        if self.options is not None:
            self.options(parser)
        return parser.parse_args(words)

    def run(self, words: Sequence[str] | None = None) -> None:
        """Run the stage that is named on the command line."""
        arguments = self.parse(sys.argv[1:] if words is None else words)
        stage = arguments.stage
        if self.child and arguments.only is not None:
            print(self.child[stage](arguments.only))
            return
        if stage != "tables":
            self.measure[stage](arguments)
        raws = {name: raw_results.RESULTS / f"{name}.json" for name in self.pages}
        if self.raw_of is not None:
            raws = dict.fromkeys(raws, self.raw_of(arguments))
        there = {name: raw for name, raw in raws.items() if raw.exists()}
        if stage == "tables" and not there:
            raise SystemExit(
                f"no raw results in {', '.join(map(str, raws.values()))}: expected those of an earlier "
                f"run; to make them, type: python -m {find(self.name).module} {next(iter(self.measure))}"
            )
        for name, raw in there.items():
            self.write_page(name, raw)

    def write_page(self, name: str, raw: Path) -> None:
        content, path = raw_results.read(raw), raw.with_suffix(".md")
        page = self.pages[name]
        if page.draw is not None:
            page.draw(content, path)
        pages.write_tables(path, page.tables(content), find(self.name).measured_by)
