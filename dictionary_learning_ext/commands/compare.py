"""`vsae compare`: evaluations side by side."""

from dataclasses import dataclass

import tyro


@dataclass(frozen=True)
class Flags:
    """Print the evaluations of run folders side by side."""

    folders: tyro.conf.Positional[tuple[str, ...]]
    """Two or more run folders."""


def run(flags: Flags) -> None:
    from ..evaluation.folders import table
    from ..run_folder.reading import differences, read_all

    results = read_all(flags.folders)
    print(table(results))
    if names := differences(results):
        print(f"These were measured on different {', '.join(names)}: not a matched comparison.")
