"""The data that SAE Bench evaluates on: any held-out text for core, its own data sets for the rest.

SAE Bench loads its data sets by their names on the hub, and `datasets` first looks for a folder of that name in the working
directory. So core's text is written to such a folder, and SAE Bench's own code loads it.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from os import chdir
from pathlib import Path
from unittest.mock import patch

import pandas as pd
from datasets import config as datasets_config
from huggingface_hub import HfApi

from ..activations.text import HELD_OUT_EVERY, TextStream, text_of
from ..config.architectures import BenchEvaluation
from ..config.run import RunConfig
from ..errors import BenchError, first_line, hub_errors
from ..run_folder.files import at_home, target_of

EMBEDDED, HUB = "embedded", "hub"
CORE_BOOKS, CORE_TEXT = "embedded/books_heldout", "own/heldout"
"""The names of core's data set of the held-out books, and of another text."""
CORE_SET = "Skylion007/openwebtext"
_CHARACTERS = 20
"""For each token that is read, more than it has."""
_SECONDS = 10
"""How long the hub may take to answer."""
LABELLED = ("scr", "tpp", "sparse_probing")
"""The evaluations on texts with class labels."""


@dataclass(frozen=True)
class BenchData:
    """Where the data sets are."""

    name: str
    """"embedded" for the books, "hub", or the folder's path."""
    folder: Path
    """It contains one folder per data set, named after it."""
    text: TextStream | None
    """The held-out text that core reads; None: SAE Bench's own data set."""

    @property
    def core_set(self) -> str:
        """The name of core's data set."""
        if self.text is None:
            return CORE_SET
        return CORE_BOOKS if self.text.name == EMBEDDED else CORE_TEXT

    @property
    def core_text(self) -> str:
        """What core reads, for readers."""
        return (
            CORE_SET if self.text is None else f"the held-out part of {Path(self.text.name).name}"
        )

    @property
    def identity(self) -> list[str]:
        """What results depend on."""
        if self.text is None or self.text.name == EMBEDDED:
            return [self.name]
        return [self.name, str(self.text.state_dict()["fingerprint"])]


def find_bench_data(
    given: str | None, run: RunConfig, evals: Collection[BenchEvaluation]
) -> BenchData:
    """The data that `vsae bench --data` names. Nothing is read but the beginning of a text.

    Arguments:
        given: "embedded", "hub", a folder that contains a folder for each data set, or a text for core. Default: the run's
            text for core, and the hub for the others, unless the language model is the embedded one. With "hub", folders in
            the working directory that are named after data sets take precedence.
        evals: the evaluations that will read it.

    Raises: BenchError or TextError if there is no such text or data set.
    """
    name = given or (EMBEDDED if run.model == EMBEDDED else HUB)
    path = Path.cwd() if name in (EMBEDDED, HUB) else target_of(at_home(name))
    labelled = [one for one in evals if one in LABELLED]
    if labelled and (name == EMBEDDED or not path.is_dir()):
        raise BenchError(
            f"{', '.join(labelled)}: texts with labels are read, not {name}; leave {'it' if len(labelled) == 1 else 'them'} "
            "out of evals, or give data='hub', or a folder with SAE Bench's data sets, e.g. LabHC/bias_in_bios"
        )
    has_core_set = given == HUB or (given not in (None, EMBEDDED) and (path / CORE_SET).is_dir())
    text = None
    if "core" in evals and not has_core_set:
        of_text = run if given is None else replace(run, data=given)
        text = text_of(of_text, "heldout")
        if next(text_of(of_text, "heldout"), None) is None:
            raise BenchError(
                "has no held-out text",
                name="data",
                value=of_text.data,
                expected=f"at least {HELD_OUT_EVERY} documents, as every {HELD_OUT_EVERY}th is held out",
            )
    data = BenchData(name if path == Path.cwd() else str(path), path, text)
    if "core" in evals and text is None:
        _require_on_hub(CORE_SET, path)
    return data


def _require_on_hub(data_set: str, folder: Path) -> None:
    """Raise a BenchError unless a data set is in a folder, in the cache of `datasets`, or on the hub."""
    cached = Path(datasets_config.HF_DATASETS_CACHE).glob("*")
    is_cached = data_set.replace("/", "___").lower() in (one.name.lower() for one in cached)
    if (folder / data_set).is_dir() or is_cached:
        return
    try:
        HfApi().dataset_info(data_set, timeout=_SECONDS)
    except (ValueError, *hub_errors()) as error:
        raise BenchError(
            f"core: SAE Bench's text {data_set} can't be read from the hub ({first_line(error)})",
            instead="leave out data to measure on the run's own text, or give a file or a folder of text",
        ) from error


def write_core_text(text: TextStream, folder: Path, tokens: int) -> None:
    """Write core's data set of a text into a folder of data sets.

    Arguments:
        tokens: how many are read, at most.
    """
    documents, left = [], tokens * _CHARACTERS
    for document in text:
        documents.append(document)
        left -= len(document)
        if left < 0 and text.name != EMBEDDED:
            break
    place = folder / (CORE_BOOKS if text.name == EMBEDDED else CORE_TEXT)
    place.mkdir(parents=True, exist_ok=True)
    pd.DataFrame({"text": documents}).to_parquet(place / "train.parquet", index=False)


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
