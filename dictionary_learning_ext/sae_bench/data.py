"""The data that SAE Bench evaluates on: the embedded books, or its own data sets.

SAE Bench loads its data sets by their names on the hub, and `datasets` first looks for a folder of that name in the working
directory. So the held-out books are written to such a folder, and SAE Bench's own code loads them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os import chdir
from pathlib import Path
from unittest.mock import patch

import pandas as pd
from datasets import config as datasets_config

from ..activations.text import open_text
from ..errors import BenchError
from ..run_folder.files import at_home, target_of

EMBEDDED, HUB = "embedded", "hub"
CORE_BOOKS = "embedded/books_heldout"
"""The name of the held-out books' data set, for core."""
CORE_SET = "Skylion007/openwebtext"


@dataclass(frozen=True)
class BenchData:
    """Where the data sets are.

    Attributes:
        name: "embedded" for the books, "hub", or the folder's path.
        folder: contains one folder per data set, named after it.
    """

    name: str
    folder: Path

    @property
    def is_embedded(self) -> bool:
        return self.name == EMBEDDED


def open_bench_data(name: str, cache: Path) -> BenchData:
    """The data that `vsae bench --data` names: "embedded", "hub", or a folder that contains a folder for each data set.

    With "hub", folders in the working directory that are named after data sets take precedence. The books are written to
    `cache`.

    Raises: BenchError for another name.
    """
    if name == EMBEDDED:
        write_heldout_books(cache)
        return BenchData(name, cache)
    folder = Path.cwd() if name == HUB else target_of(at_home(name))
    if not folder.is_dir():
        raise BenchError(
            "no such folder",
            name="data",
            value=name,
            expected="embedded, hub, or a folder that contains one folder per data set, e.g. "
            "LabHC/bias_in_bios",
        )
    return BenchData(name if name == HUB else str(folder), folder)


def write_heldout_books(folder: Path) -> None:
    """Write core's data set of the held-out books into a folder of data sets."""
    (folder / CORE_BOOKS).mkdir(parents=True, exist_ok=True)
    heldout = pd.DataFrame({"text": list(open_text("embedded", split="heldout"))})
    heldout.to_parquet(folder / CORE_BOOKS / "train.parquet", index=False)


@contextmanager
def working_in(folder: Path, cached: Path) -> Iterator[None]:
    """Within the block, `folder` is the working directory, and `datasets` caches data sets in `cached`."""
    before = Path.cwd()
    with patch.object(datasets_config, "HF_DATASETS_CACHE", cached):
        chdir(folder)
        try:
            yield
        finally:
            chdir(before)
