"""The data that SAE Bench evaluates on: the embedded books, or its own data sets.

SAE Bench loads its data sets by their names on the hub, and `datasets` first looks for a folder of that name in the working
directory. So the books are written to such a folder, in the schema of bias_in_bios, and their name is entered into SAE Bench's
tables. Then SAE Bench's own code loads them.
"""

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os import chdir
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd
import pyarrow.parquet
import sae_bench.evals.scr_and_tpp.main as scr_and_tpp
from datasets import config as datasets_config
from sae_bench.sae_bench_utils import dataset_info

from ..activations.text import EMBEDDED_TEXT, open_text
from ..errors import BenchError
from ..run_folder.files import at_home, target_of

EMBEDDED, HUB = "embedded", "hub"
BOOKS = "embedded/books_in_bias_in_bios_schema"
"""The name of the books' data set. SAE Bench recognises the schema by the "bias_in_bios" in it."""
CORE_BOOKS = "embedded/books_heldout"
"""The name of the held-out books' data set, for core."""

LABELS = {
    "Emma": 0,
    "Mansfield Park": 1,
    "Pride and Prejudice": 2,
    "Great Expectations": 3,
    "Sense and Sensibility": 4,
}
"""The books with enough passages of each gender, and their class labels."""
PAIRS = (
    ("Great Expectations", "Emma"),
    ("Mansfield Park", "Sense and Sensibility"),
)
"""The pairs of books for SCR. Its biased probe sees male passages of the first and female passages of the second."""
GENDERS = {"male": 0, "female": 1}
PRONOUNS = {"male": {"he", "him", "his", "himself"}, "female": {"she", "her", "hers", "herself"}}
WORDS = 60  # per passage
CONTEXT = 96  # tokens, enough for a passage
TEST_EVERY = 3  # pieces of every third passage of the text are test data

CORE_SET = "Skylion007/openwebtext"


@dataclass(frozen=True)
class BenchData:
    """Where the data sets are, and how many texts to take from them.

    Attributes:
        name: "embedded" for the books, "hub", or the folder's path.
        folder: contains one folder per data set, named after it.
        scr_sizes: the numbers of texts in SCR's train and test sets, as SAE Bench counts them. None: its defaults.
        class_sizes: the same for TPP and sparse probing.
    """

    name: str
    folder: Path
    scr_sizes: tuple[int, int] | None = None
    class_sizes: tuple[int, int] | None = None

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
        return _books(cache)
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


def _books(cache: Path) -> BenchData:
    """Write the books' passages, and register their data set in SAE Bench's tables."""
    parts = _passages()
    folder = cache / BOOKS
    folder.mkdir(parents=True, exist_ok=True)
    for part, frame in parts.items():
        frame.to_parquet(folder / f"{part}.parquet", index=False)
    dataset_info.dataset_metadata[BOOKS] = dataset_info.dataset_metadata["LabHC/bias_in_bios"] | {
        "column1_mapping": LABELS
    }
    dataset_info.chosen_classes_per_dataset[BOOKS] = [str(label) for label in LABELS.values()]
    scr_and_tpp.COLUMN2_VALS_LOOKUP[BOOKS] = ("male", "female")
    (cache / CORE_BOOKS).mkdir(parents=True, exist_ok=True)
    heldout = pd.DataFrame({"text": list(open_text("embedded", split="heldout"))})
    heldout.to_parquet(cache / CORE_BOOKS / "train.parquet", index=False)
    # The number of passages of each (book, gender).
    cells: Any = {
        part: frame.groupby(["profession", "gender"]).size().to_dict()
        for part, frame in parts.items()
    }
    return BenchData(
        EMBEDDED,
        cache,
        (_scr_size(cells["train"]), _scr_size(cells["test"])),
        (4 * min(cells["train"].values()), 4 * min(cells["test"].values())),
    )


def _passages() -> dict[str, pd.DataFrame]:
    """Pieces of the books with pronouns of a single gender, by "train" and "test".

    All pieces of a passage are in the same part.
    """
    rows: dict[str, list[dict]] = {"train": [], "test": []}
    for number, passage in enumerate(pyarrow.parquet.read_table(EMBEDDED_TEXT).to_pylist()):
        label = LABELS.get(passage["book"])
        if passage["split"] != "train" or label is None:
            continue
        part = "test" if number % TEST_EVERY == 0 else "train"
        words = passage["text"].split()
        for start in range(0, len(words) - WORDS + 1, WORDS):
            text = " ".join(words[start : start + WORDS])
            if gender := gender_of(text):
                rows[part].append(
                    {"hard_text": text, "profession": label, "gender": GENDERS[gender]}
                )
    return {part: pd.DataFrame(found) for part, found in rows.items()}


def gender_of(text: str) -> str | None:
    """The gender of a text's pronouns, if there are at least two, all of one gender; else None."""
    words = Counter(re.findall(r"[a-z]+", text.lower()))
    found = {gender: sum(words[p] for p in pronouns) for gender, pronouns in PRONOUNS.items()}
    male, female = found["male"], found["female"]
    if min(male, female) > 0 or max(male, female) < 2:
        return None
    return "male" if male else "female"


def _scr_size(cells: dict[tuple[int, int], int]) -> int:
    """The largest size of a set with which every pair can be filled.

    SAE Bench takes a quarter of it from each of four cells. It needs more than half of it in the two
    cells that the biased probe is trained on.
    """
    quarters = []
    for first, second in PAIRS:
        a, b = LABELS[first], LABELS[second]
        biased = [(cells[a, 0] - 1) // 2, (cells[b, 1] - 1) // 2]
        quarters.append(min(*biased, cells[a, 1], cells[b, 0]))
    return 4 * min(quarters)
