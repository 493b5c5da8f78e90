"""`vsae compare`: evaluations side by side."""

from dataclasses import dataclass

import tyro

from .flags import Command


@dataclass(frozen=True)
class CompareFlags:
    """Print the evaluations of run folders side by side."""

    folders: tyro.conf.Positional[tuple[str, ...]]
    """Two or more run folders."""


def run(flags: CompareFlags) -> None:
    from ..evaluation.folders import differences, read_all, table

    results = read_all(flags.folders)
    print(table(results))
    if names := differences(results):
        print(f"These were measured on different {', '.join(names)}: not a matched comparison.")


COMMAND = Command("compare", CompareFlags, run)
