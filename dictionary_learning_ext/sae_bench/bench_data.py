"""What SAE Bench evaluates on: the embedded books in its sets' schema, or its own sets.

SAE Bench loads its sets by their names on the hub, and `datasets` looks for a relative folder of
that name first. So the books are written to such a folder, under a name of their own that SAE
Bench's tables are told of, and loaded by SAE Bench's own code.
"""

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os import chdir
from pathlib import Path

import datasets
import pandas as pd
import pyarrow.parquet
import sae_bench.evals.scr_and_tpp.main as scr_and_tpp
from datasets import config as datasets_config
from sae_bench.sae_bench_utils import dataset_info

from ..activations.text import open_text
from ..activations.text_sources import EMBEDDED_TEXT
from ..errors import BenchError, TextError

BOOKS = "embedded/books_in_bias_in_bios_schema"
"""The set's name. SAE Bench tells a set's schema by the "bias_in_bios" in it."""
CORE_BOOKS = "embedded/books_heldout"

LABELS = {
    "Emma": 0,
    "Mansfield Park": 1,
    "Pride and Prejudice": 2,
    "Great Expectations": 3,
    "Sense and Sensibility": 4,
}
"""The books that hold enough passages of either gender."""
PAIRS = (
    ("Great Expectations", "Emma"),
    ("Mansfield Park", "Sense and Sensibility"),
)
"""SCR's: a probe is biased on the male passages of the first and the female ones of the second."""
GENDERS = {"male": 0, "female": 1}
PRONOUNS = {"male": {"he", "him", "his", "himself"}, "female": {"she", "her", "hers", "herself"}}
WORDS = 60  # in a passage
CONTEXT = 96  # tokens that hold it
TEST_EVERY = 3  # of the text's passages, whose pieces are test data

_COLUMNS = {
    "Skylion007/openwebtext": "text",
    "LabHC/bias_in_bios": "hard_text, profession, gender",
    "canrager/amazon_reviews_mcauley_1and5": "text, category, rating",
    "codeparrot/github-code": "code, language",
    "fancyzhx/ag_news": "text, label",
    "Helsinki-NLP/europarl": "translation",
}
CORE_SET = "Skylion007/openwebtext"


@dataclass(frozen=True)
class BenchData:
    """Where the sets are and which of them to use.

    Attributes:
        name: "embedded", "hub" or a folder.
        folder: holds the sets in folders of their names.
        scr_sizes, class_sizes: texts in SCR's, and in TPP's and sparse probing's, train and test
            sets, as SAE Bench counts them; None for its defaults.
    """

    name: str
    folder: Path
    scr_sizes: tuple[int, int] | None = None
    class_sizes: tuple[int, int] | None = None

    @property
    def is_embedded(self) -> bool:
        return self.name == "embedded"


def open_bench_data(name: str, cache: Path) -> BenchData:
    """The data of `vsae bench --data`.

    Arguments:
        name: "embedded"; "hub", where a folder of a set's name in the working directory goes before
            the hub; or a folder that holds such folders.
        cache: where the embedded books are written.

    Raises: BenchError if it is none of these.
    """
    if name == "embedded":
        return _books(cache)
    folder = Path.cwd() if name == "hub" else Path(name).expanduser().resolve()
    if not folder.is_dir():
        raise BenchError(
            f"--data {name}: no such folder; give embedded, hub, or a folder that holds sets in "
            "folders of their names, as LabHC/bias_in_bios"
        )
    return BenchData(name, folder)


def require_sets(data: BenchData, names: list[str]) -> None:
    """Raise a BenchError unless each of SAE Bench's sets is in the folder or on the hub."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    for name in sorted({name.split("_class_set")[0].split("_sentiment")[0] for name in names}):
        if (data.folder / name).is_dir():
            continue
        try:
            HfApi().dataset_info(name)
        except (HfHubHTTPError, OfflineModeIsEnabled, OSError, RuntimeError) as error:
            raise BenchError(
                f"set {name} can't be had from the hub ({type(error).__name__}): put it into the "
                f"folder {data.folder / name} (train and test .parquet, {_COLUMNS[name]}), give "
                "another --data folder, or use --data embedded"
            ) from error


@contextmanager
def in_folder(data: BenchData, cache: Path) -> Iterator[None]:
    """Relative set names are found in the data's folder, and `datasets` caches them in `cache`."""
    before, cached = Path.cwd(), datasets_config.HF_DATASETS_CACHE
    chdir(data.folder)
    if data.is_embedded:
        datasets_config.HF_DATASETS_CACHE = cache / "datasets"
    try:
        yield
    finally:
        chdir(before)
        datasets_config.HF_DATASETS_CACHE = cached


def heldout_text() -> datasets.Dataset:
    """The embedded held-out text, for core."""
    return datasets.Dataset.from_dict({"text": list(open_text("embedded", split="heldout"))})


def _books(cache: Path) -> BenchData:
    """Write the books' passages, and enter their set into SAE Bench's tables."""
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
    cells = {part: _cells(frame) for part, frame in parts.items()}
    return BenchData(
        "embedded",
        cache,
        (_scr_size(cells["train"]), _scr_size(cells["test"])),
        (4 * min(cells["train"].values()), 4 * min(cells["test"].values())),
    )


def _passages() -> dict[str, pd.DataFrame]:
    """Pieces of the books in which one gender's pronouns stand and none of the other's.

    A train and a test piece are never of one passage of the text.
    """
    if not EMBEDDED_TEXT.is_file():
        raise TextError(f"the embedded text is missing, there is no {EMBEDDED_TEXT}: install again")
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
    """The gender of two pronouns or more of a text, if it has none of the other gender."""
    words = Counter(re.findall(r"[a-z]+", text.lower()))
    found = {gender: sum(words[p] for p in pronouns) for gender, pronouns in PRONOUNS.items()}
    male, female = found["male"], found["female"]
    if min(male, female) > 0 or max(male, female) < 2:
        return None
    return "male" if male else "female"


def _cells(frame: pd.DataFrame) -> dict[tuple[int, int], int]:
    """How many passages each (book, gender) holds."""
    return {key: len(rows) for key, rows in frame.groupby(["profession", "gender"])}  # pyright: ignore


def _scr_size(cells: dict[tuple[int, int], int]) -> int:
    """The largest set size that fills every pair.

    SAE Bench takes a quarter of it from each of four cells, and wants more than half of it in the
    two cells that the biased probe is trained on.
    """
    quarters = []
    for first, second in PAIRS:
        a, b = LABELS[first], LABELS[second]
        biased = [(cells[a, 0] - 1) // 2, (cells[b, 1] - 1) // 2]
        quarters.append(min(*biased, cells[a, 1], cells[b, 0]))
    return 4 * min(quarters)
