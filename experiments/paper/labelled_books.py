"""The embedded books as a labelled data set of SAE Bench, for SCR, TPP and sparse probing on the embedded model.

A class is a book, an attribute the gender of a passage's pronouns, in the schema of bias_in_bios. A size that is asked of
SAE Bench must not exceed what the books can fill. Needs [sae-bench].
"""

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd
import pyarrow.parquet
import sae_bench.evals.scr_and_tpp.main as scr_and_tpp  # pyright: ignore[reportMissingImports]
from sae_bench.sae_bench_utils import dataset_info  # pyright: ignore[reportMissingImports]

from dictionary_learning_ext.activations.text import EMBEDDED_TEXT, open_text
from dictionary_learning_ext.sae_bench import runner
from dictionary_learning_ext.sae_bench.data import CORE_BOOKS, CORE_SET, write_core_text
from dictionary_learning_ext.sae_bench.settings import configure

BOOKS = "embedded/books_in_bias_in_bios_schema"
"""The data set's name. SAE Bench recognises the schema by the "bias_in_bios" in it."""
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


def write_books(folder: Path) -> None:
    """Write the labelled books, and the held-out ones in place of core's own data set, into a folder of data sets."""
    write_core_text(open_text("embedded", split="heldout"), folder, 0)
    (folder / CORE_SET).parent.mkdir(parents=True, exist_ok=True)
    (folder / CORE_BOOKS).rename(folder / CORE_SET)
    (folder / BOOKS).mkdir(parents=True, exist_ok=True)
    for part, frame in passages().items():
        frame.to_parquet(folder / BOOKS / f"{part}.parquet", index=False)


@contextmanager
def on_books() -> Iterator[None]:
    """Within the block, `bench` evaluates on the books in its folder `data`."""
    labels = dataset_info.dataset_metadata["LabHC/bias_in_bios"] | {"column1_mapping": LABELS}
    classes = [str(label) for label in LABELS.values()]
    with (
        patch.dict(dataset_info.dataset_metadata, {BOOKS: labels}),
        patch.dict(dataset_info.chosen_classes_per_dataset, {BOOKS: classes}),
        patch.dict(scr_and_tpp.COLUMN2_VALS_LOOKUP, {BOOKS: ("male", "female")}),
        patch.object(runner, "configure", _on_books),
    ):
        yield


def _on_books(evaluation: str, *arguments: Any) -> Any:
    config = configure(evaluation, *arguments)  # pyright: ignore[reportArgumentType]
    if evaluation in ("scr", "tpp", "sparse_probing"):
        config.dataset_names = [BOOKS]
        config.context_length = min(config.context_length, CONTEXT)
        if evaluation != "sparse_probing":
            config.column1_vals_lookup = {BOOKS: list(PAIRS)}
    return config


def passages() -> dict[str, pd.DataFrame]:
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
