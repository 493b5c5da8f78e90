"""`vsae compare`: metrics side by side."""

import json
from dataclasses import dataclass, field

from .flags import FOLDERS, Command, positional


@dataclass(frozen=True)
class CompareFlags:
    """Print the metrics of run folders side by side."""

    folders: tuple[str, ...] = field(metadata=positional(FOLDERS))
    """Run folders: two or more, or one to see its metrics."""
    columns: str | None = None
    """The metrics to show, by their keys in metrics.json, e.g. fve,l0,loss_reconstructed. Default:
    the most important ones."""
    json: bool = False
    """Print JSON instead: each folder's metrics.json. With --columns, only those metrics and what
    they were measured on."""


def run(flags: CompareFlags) -> None:
    from ..evaluation.tables import chosen, printed
    from ..run_folder.reading import read_all, read_config

    metrics = None if flags.columns is None else chosen(flags.columns)
    results = read_all(flags.folders)
    if flags.json:
        if metrics is not None:
            keys = {metric.key for metric in metrics} | {"measured_on", "tokens", "loss_tokens"}
            for folder, values in results.items():
                results[folder] = {key: value for key, value in values.items() if key in keys}
        print(json.dumps(results, indent=2))
        return
    print(printed(results, metrics, {folder: read_config(folder) for folder in results}))


COMMAND = Command("compare", CompareFlags, run)
