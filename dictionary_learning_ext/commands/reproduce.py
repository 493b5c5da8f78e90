"""`vsae reproduce`: which features come back in SAEs of other seeds."""

from dataclasses import dataclass, field

from .flags import FOLDERS, Command, positional


@dataclass(frozen=True)
class ReproduceFlags:
    """Measure which features come back with another seed."""

    folders: tuple[str, ...] = field(metadata=positional(FOLDERS))
    """Two or more run folders of one setting, trained with different --seed and --data-seed."""
    csv: str | None = None
    """A file to write with a row for each feature of each SAE: its mean match in the others, and
    in how many of them it returns."""
    json: bool = False
    """Print JSON instead."""


def run(flags: ReproduceFlags) -> None:
    import json

    from ..features.reproducibility_of_folders import as_json, measured, printed, write_features

    found = measured(flags.folders)
    if flags.csv is not None:
        write_features(found, flags.csv)
    print(json.dumps(as_json(found), indent=2) if flags.json else printed(found))
    if flags.csv is not None and not flags.json:
        print(f"\nwrote {flags.csv}")


COMMAND = Command("reproduce", ReproduceFlags, run)
