"""The numbers of every feature: what each is, and what computes it.

NUMBERS is the one list of them. The report's table, the pages of features, all CSV files with a row for each feature, and
the guide's table of these files read it. To add a number, add a row:

    Column("burst", "burst", "variance of its activations over their mean", lambda sae: burst(sae.codes))

Shapes: F features.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np

from ..codes.codes import KIND_OF, Codes
from ..codes.table import FeatureTable
from ..evaluation.metrics import Number
from ..run_folder.files import replacing, write_rows
from .agreement import RETURNING
from .directions import Ranked, alignment
from .reproducibility import FeatureScores

File = Literal["report", "one", "several"]
"""A file with a row for each feature: a report's, that of `vsae reproduce` with one SAE, and that with several."""
FILES: tuple[File, ...] = get_args(File)
Show = Literal["number", "cosine", "percent", "share of seeds", "tokens"]
"""How a report's page writes the values of a column; tokens are numbers in its vocabulary."""


@dataclass(frozen=True)
class FeaturesOfSAE:
    """What the numbers of an SAE's features are computed from."""

    codes: Codes | None
    """None if only directions were compared."""
    scores: FeatureScores | None = None
    """Which features come back in other SAEs. None if there are no others."""


class FeaturesOfReport(Protocol):
    """What the columns of a report alone are computed from."""

    codes: Codes
    dictionary: Any
    features: FeatureTable
    neighbours: Ranked
    """The features with the nearest directions."""


@dataclass(frozen=True)
class Column(Number):
    """A number of every feature. Its key is the column's head in CSV files; without a label, the report's table leaves it
    out."""

    values: Callable[[Any], Any]
    """Gives the number of each feature, (F,), of a `FeaturesOfSAE`, or of `FeaturesOfReport`; None for an SAE that has none.
    Several columns are a dict, by the endings of their heads."""
    _: KW_ONLY
    files: tuple[File, ...] = FILES
    """Which files have it. A column of the report alone may use all of `FeaturesOfReport`."""
    digits: int | None = 4
    """The significant digits in a report. None: all."""
    show: Show = "number"
    fact: str = ""
    """What the feature's page calls it. Left out there if there is none."""
    is_extra: bool = False
    """Whether narrow screens leave it out of the table."""


def _rank(sae: FeaturesOfReport) -> list[int | None]:
    place = {feature: n for n, feature in enumerate(sae.features.ranking)}
    return [place.get(feature) for feature in range(sae.codes.n_features)]


def _repeated(sae: FeaturesOfSAE, what: str) -> np.ndarray | None:
    """An attribute of `FeatureScores`, the same for each feature."""
    scores = sae.scores
    return None if scores is None else np.full(len(scores.match_F), getattr(scores, what))


def _match_in(sae: FeaturesOfSAE) -> dict[str, list[int | None]] | None:
    return sae.scores and {
        f"_{name}": [None if number < 0 else number for number in matched_F.tolist()]
        for name, matched_F in sae.scores.matched.items()
    }


_REPORT: tuple[File, ...] = ("report",)
_SEVERAL: tuple[File, ...] = ("several",)
NUMBERS = (
    Column(
        "count",
        "",
        "tokens at which it is selected",
        lambda sae: sae.codes.count_F,
        files=_REPORT,
        digits=None,
    ),
    Column(
        "rank",
        "",
        "its place in the report's order: features that fire most consistently on one token first",
        _rank,
        files=_REPORT,
        digits=None,
    ),
    Column(
        "firing_rate",
        "selected",
        "share of tokens at which the feature is selected",
        lambda sae: sae.codes and sae.codes.firing_rate_F,
        files=("report", "one"),
        form=".5g",
        show="percent",
        fact="of tokens select it",
    ),
    Column(
        "max",
        "max",
        "activation of the largest magnitude, with its sign",
        lambda sae: sae.codes.largest_F,
        files=_REPORT,
        fact="largest activation",
        is_extra=True,
    ),
    Column(
        "mean",
        "mean",
        "mean activation where selected",
        lambda sae: sae.features.mean_F,
        files=_REPORT,
        fact="mean when selected",
        is_extra=True,
    ),
    Column(
        "alignment",
        "enc·dec",
        "cosine of its encoder and decoder directions",
        lambda sae: alignment(sae.dictionary),
        files=_REPORT,
        digits=3,
        show="cosine",
        fact="encoder·decoder cosine",
        is_extra=True,
    ),
    Column(
        "nearest",
        "nearest",
        "largest cosine of its decoder direction with another feature's",
        lambda sae: sae.neighbours.values_Fn[:, 0] if sae.neighbours.values_Fn.numel() else None,
        files=_REPORT,
        digits=3,
        show="cosine",
        is_extra=True,
    ),
    Column(
        "error_share",
        "error share",
        "how much the summed squared error rises when the feature is dropped, as a share of that error",
        lambda sae: sae.codes and sae.codes.error_share_F,
        form=".5g",
        show="percent",
        fact="of the error is added when it is dropped",
    ),
    Column(
        "token_cosine",
        "nearest token",
        "largest cosine of its decoder direction with a token's activation less the mean, of the text's first "
        f"{KIND_OF:,}; from {RETURNING:g} it is of one token's kind",
        lambda sae: sae.codes and sae.codes.token_cosine_F,
        digits=3,
        show="cosine",
        fact="largest cosine with a token's activation",
        is_extra=True,
    ),
    Column(
        "function_in",
        "in what it does",
        "in how many other SAEs it comes back in what it does",
        lambda sae: sae.scores and sae.scores.function_in_F,
        files=_REPORT + _SEVERAL,
        form="",
        digits=None,
        show="share of seeds",
        fact="seeds it comes back in, in what it does",
    ),
    Column(
        "as_direction_in",
        "as a direction",
        "in how many other SAEs it comes back as a direction",
        lambda sae: sae.scores and sae.scores.returns_F,
        files=_REPORT + _SEVERAL,
        form="",
        digits=None,
        show="share of seeds",
        fact="seeds it comes back in as a direction",
    ),
    Column(
        "of",
        "",
        "how many other SAEs there are",
        lambda sae: _repeated(sae, "of"),
        files=_SEVERAL,
        form="",
    ),
    Column(
        "direction_match",
        "cosine",
        "absolute cosine of its decoder direction with its match's, the mean over the other SAEs",
        lambda sae: sae.scores and sae.scores.match_F,
        files=_REPORT + _SEVERAL,
        show="cosine",
        fact="cosine with its match there",
        is_extra=True,
    ),
    Column(
        "random_match",
        "",
        "the mean of that cosine for random directions",
        lambda sae: _repeated(sae, "random"),
        files=_SEVERAL,
    ),
    Column(
        "correlation",
        "correlation",
        "correlation of its activations with those of its match in what they do, the mean over the other SAEs",
        lambda sae: sae.scores and sae.scores.correlation_F,
        files=_REPORT + _SEVERAL,
        show="cosine",
        fact="correlation with its match in what they do",
        is_extra=True,
    ),
    Column(
        "match_in",
        "",
        "the number of its match, by direction, in each other SAE (`match_in_NAME`)",
        _match_in,
        files=_SEVERAL,
        form="",
    ),
)
"""In the order of the report's table, of the facts on a feature's page, and of the CSV file of one SAE."""
_FIRST_OF_SEVERAL = (
    "function_in as_direction_in of correlation direction_match random_match match_in error_share"
)
"""The CSV file of several SAEs begins with these columns. The others follow in the order above."""


def write_numbers(path: Path, saes: Sequence[tuple[str, FeaturesOfSAE]], file: File) -> None:
    """Write a CSV file of `vsae reproduce`: a row for each feature of each SAE, empty where the SAE has no such number.

    Arguments:
        saes: with their names, which the file of several has in a column.

    Raises: CheckpointError if it can't be written.
    """
    numbers = [column for column in NUMBERS if file in column.files]
    if file == "several":
        place = {key: n for n, key in enumerate(_FIRST_OF_SEVERAL.split())}
        numbers.sort(key=lambda column: place.get(column.key, len(place)))
    numbers_of = [(name, _as_text(sae, numbers)) for name, sae in saes]
    heads = dict.fromkeys(head for _, values in numbers_of for head in values)
    columns: dict[str, list[Any]] = {head: [] for head in ("sae", "feature", *heads)}
    for name, values in numbers_of:
        size = len(next(iter(values.values())))
        columns["sae"] += [name] * size
        columns["feature"] += range(size)
        for head in heads:
            columns[head] += values.get(head, [""] * size)
    if file == "one":
        del columns["sae"]
    write_columns(path, columns, "csv")


def _as_text(sae: FeaturesOfSAE, numbers: Sequence[Column]) -> dict[str, list[str]]:
    """The numbers that an SAE has, by the heads of their columns."""
    texts = {}
    for column in numbers:
        values = column.values(sae)
        for end, part in values.items() if isinstance(values, dict) else [("", values)]:
            if part is not None:
                texts[f"{column.key}{end}"] = [column.text(value, "") for value in as_list(part)]
    return texts


def as_list(values: Any) -> list[Any]:
    """The values of an array or tensor, (F,), as Python's numbers."""
    return values if isinstance(values, list) else values.tolist()


def write_columns(path: Path, columns: Mapping[str, Sequence[Any]], named: str) -> None:
    """Write a CSV file with a row for each feature.

    Arguments:
        columns: the values of each, by its head.
        named: the option that names the file, for the error's message.

    Raises: CheckpointError if it can't be written.
    """
    with (
        replacing(path, named) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        write_rows(file, [columns, *zip(*columns.values(), strict=True)])
