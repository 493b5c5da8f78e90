"""The command line of every experiment: `python -m experiments.NAME STAGE [options]`."""

import argparse
import os
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import pages, raw_results
from experiments.index import find

Content = dict[str, Any]


def no_options(_: ArgumentParser) -> None:
    """Of an experiment that has none."""


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
class Stages:
    """What an experiment does in each stage. After every stage the page is written.

    `train` trains SAEs and measures them. `bench` runs SAE Bench on them, or is a benchmark. Both write
    the raw results. `tables` does nothing more than to write the page from these.
    """

    name: str
    """In the index."""
    measure: dict[str, Callable[[Namespace], None]]
    """Every stage but `tables`: it writes the raw results."""
    page: Callable[[Content], list[str]]
    """The lines of the page below its command, from the raw results alone."""
    draw: Callable[[Content, Path], None] | None = None
    """Draws the plots of the page, from the raw results; takes the page's path too."""
    options: Callable[[ArgumentParser], None] = no_options
    raw_of: Callable[[Namespace], Path] | None = None
    """Where the raw results are, if the options say so (default: the index says it)."""
    child: Callable[[str], object] | None = None
    """What a process of its own prints, for `in_child(NAME, STAGE, "--only", PART)`."""

    def parse(self, words: Sequence[str]) -> Namespace:
        """The arguments; an unknown stage is an error that lists those there are."""
        about = find(self.name)
        parser = ArgumentParser(
            prog=f"python -m {about.module}",
            description=about.question,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        stages = [*self.measure, "tables"]
        parser.add_argument("stage", nargs="?", help=f"one of {', '.join(stages)}")
        if self.child is not None:
            parser.add_argument("--only", help="measure this part in this process and print it")
        self.options(parser)
        arguments = parser.parse_args(words)
        if arguments.stage not in stages:
            given = f"no stage {arguments.stage}" if arguments.stage else "no stage given"
            parser.error(
                f"{given}; expected one of {', '.join(stages)}, "
                f"e.g. python -m {about.module} {stages[0]}"
            )
        return arguments

    def raw(self, arguments: Namespace) -> Path:
        if self.raw_of is not None:
            return self.raw_of(arguments)
        return raw_results.RESULTS / find(self.name).raw

    def run(self, words: Sequence[str] | None = None) -> None:
        """Run the stage that is named on the command line."""
        arguments = self.parse(sys.argv[1:] if words is None else words)
        if self.child is not None and arguments.only is not None:
            print(self.child(arguments.only))
            return
        raw = self.raw(arguments)
        if arguments.stage != "tables":
            self.measure[arguments.stage](arguments)
        if arguments.stage == "tables" or raw.exists():
            self.write_page(raw)

    def lines(self, content: Content) -> list[str]:
        """The whole page."""
        return [find(self.name).measured_by, "", *self.page(content)]

    def write_page(self, raw: Path) -> None:
        if not raw.exists():
            raise SystemExit(
                f"{raw} isn't there. Expected the raw results of an earlier run; to make them, type: "
                f"python -m {find(self.name).module} {next(iter(self.measure))}"
            )
        content, page = raw_results.read(raw), raw.with_suffix(".md")
        if self.draw is not None:
            self.draw(content, page)
        pages.write(page, self.lines(content))
