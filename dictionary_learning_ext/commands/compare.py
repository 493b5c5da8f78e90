"""`vsae compare`: metrics side by side."""

from dataclasses import dataclass

import tyro

from .flags import Command, Folders


@dataclass(frozen=True)
class CompareFlags:
    """Print the metrics of run folders side by side."""

    folders: tyro.conf.Positional[Folders]
    """Two or more run folders."""


def run(flags: CompareFlags) -> None:
    from ..evaluation.folders import table
    from ..run_folder.reading import differences, read_all

    results = read_all(flags.folders)
    print(table(results))
    if names := differences(results):
        print(f"Not a matched comparison: measured with different {', '.join(names)}.")


COMMAND = Command("compare", CompareFlags, run)
