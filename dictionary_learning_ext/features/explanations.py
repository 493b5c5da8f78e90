"""Explanations of features, in the words of a language model, and scores of how well they tell where a feature fires.

    explanations = read_explanations("runs/mine", dictionary)
    explanations[17].text, explanations[17].score

`vsae explain` writes them to explanations.json. They are scored by detection (Paulo et al. 2024,
arXiv:2410.13928): a language model that knows only the explanation says for held-out contexts whether the
feature fires in them. The score is the balanced accuracy, so guessing scores 0.5.
"""

import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from dictionary_learning.dictionary import Dictionary
from scipy.stats import t as students_t

from ..codes.contexts import visible
from ..errors import CheckpointError
from ..run_folder.comparing import unequal
from ..run_folder.files import EXPLANATIONS, read_json, write_text
from ..run_folder.sae_names import results_folder
from ..run_folder.tensors import hash_of
from ..run_folder.weights import load_dictionary

logger = logging.getLogger(__name__)

STRONG, WEAK, SILENT = "strong", "weak", "silent"
KINDS = (STRONG, WEAK, SILENT)
"""The kinds of contexts that a score is computed on: where the feature fires strongly, weakly, and not at all."""
YES, NO, MISSING = "1", "0", "-"
"""The scorer's answer about a context: that the feature fires in it, that it doesn't, or none that could be read."""
LONGEST = 300
"""The most characters of an explanation that are kept."""
_Z = 1.96
_OUT = "out"
_REPAIR = "delete it, and run `vsae explain` again"


class Estimate(NamedTuple):
    """A score from 0 to 1, with its 95% interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True)
class Explanation:
    """The explanation of one feature, and the scorer's answers."""

    feature: int
    place: int
    """Its place in the order in which features are explained, from 0."""
    asked: str
    """A hash of all that is asked about this feature."""
    text: str | None = None
    """The explanation, one line. None if no answer came, or none had the right form."""
    said: dict[str, str] = field(default_factory=dict)
    """The scorer's answers for each of KINDS, a character for each context: YES, NO or MISSING."""

    @property
    def is_complete(self) -> bool:
        """Whether there is an explanation, and an answer about every context."""
        return self.text is not None and not any(MISSING in said for said in self.said.values())

    @property
    def shares(self) -> dict[str, float | None]:
        """For each of KINDS, the share of the contexts in which the scorer said that the feature fires; None without an
        answer."""
        counts = {kind: _yes_and_all(self.said.get(kind, "")) for kind in KINDS}
        return {kind: yes / n if n else None for kind, (yes, n) in counts.items()}

    @property
    def score(self) -> Estimate | None:
        """The balanced accuracy of the answers: the mean of the share of contexts in which the feature fires that were
        found, and the share of the others that were not taken for such. The interval combines their Wilson intervals
        (Newcombe 1998, method 10).

        None without answers about both.
        """
        found, n_firing = _yes_and_all(self.said.get(STRONG, "") + self.said.get(WEAK, ""))
        wrong, n_silent = _yes_and_all(self.said.get(SILENT, ""))
        if self.text is None or not (n_firing and n_silent):
            return None
        a, b = _wilson(found, n_firing), _wilson(n_silent - wrong, n_silent)
        value = (a.value + b.value) / 2
        below = math.hypot(a.value - a.low, b.value - b.low) / 2
        above = math.hypot(a.high - a.value, b.high - b.value) / 2
        return Estimate(value, value - below, value + above)

    @property
    def words(self) -> str:
        """The score in words; empty if there is none."""
        if self.score is None:
            return ""
        counts = [_yes_and_all(self.said.get(kind, "")) for kind in KINDS]
        strong, weak, silent = (f"{yes} of {n}" for yes, n in counts)
        return (
            f"Score {self.score}: the scorer said that it fires in {strong} contexts where it fires strongly, in "
            f"{weak} where it fires weakly, and in {silent} where it doesn't."
        )

    def __str__(self) -> str:
        score = f" (score {self.score.value:.2f})" if self.score is not None else ""
        return f"{self.text or 'no explanation'}{score}"


def _yes_and_all(said: str) -> tuple[int, int]:
    """The number of YES, and the number of answers."""
    return said.count(YES), said.count(YES) + said.count(NO)


def _wilson(found: int, n: int) -> Estimate:
    """A share with Wilson's interval."""
    p, z2 = found / n, _Z**2
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return Estimate(p, max(0.0, middle - half), min(1.0, middle + half))


@dataclass(frozen=True)
class Explanations(Mapping[int, Explanation]):
    """The explanations of an SAE's features, by feature. Empty if there are none."""

    sae: str = ""
    """The hash of the SAE's weights, see `hash_of`."""
    settings: dict[str, Any] = field(default_factory=dict)
    """The language models that explained and scored, and where the contexts are from."""
    order: str = ""
    """What the features are ordered by."""
    features: dict[int, Explanation] = field(default_factory=dict)
    places: int = 0
    """How many features of the order were explained. Others were picked by their number."""

    def __getitem__(self, feature: int) -> Explanation:
        return self.features[feature]

    def __iter__(self) -> Iterator[int]:
        return iter(self.features)

    def __len__(self) -> int:
        return len(self.features)

    @property
    def scores(self) -> list[float]:
        """The scores of the first `places` features, in their order. Features without a score are left out, and those that
        were picked."""
        first = [one for one in self.values() if one.place < self.places]
        ordered = sorted(first, key=lambda one: one.place)
        return [one.score.value for one in ordered if one.score is not None]

    def write(self, path: Path) -> None:
        """Write them in their order, atomically. Raises CheckpointError if the file can't be written."""
        content = asdict(self)
        ordered = sorted(content["features"].items(), key=lambda item: (item[1]["place"], item[0]))
        content["features"] = dict(ordered)
        for each in content["features"].values():
            del each["feature"]
        write_text(path, json.dumps(content, indent=1) + "\n", _OUT)


def one_line(text: str) -> str:
    """A text from outside as one line of bounded length, its control characters spelled out."""
    line = visible(" ".join(text[: 4 * LONGEST].split()), 4 * LONGEST)
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"


def mean_of(scores: Sequence[float]) -> Estimate | None:
    """The mean over features, with Student's interval; None for fewer than two."""
    if len(scores) < 2:
        return None
    half = float(
        students_t.ppf(0.975, len(scores) - 1) * np.std(scores, ddof=1) / len(scores) ** 0.5
    )
    value = float(np.mean(scores))
    return Estimate(value, max(0.0, value - half), min(1.0, value + half))


def means_of(explanations: Mapping[str, Explanations]) -> tuple[int, dict[str, Estimate]]:
    """A number n, and the mean score of each SAE over its first n features that have one. n is as many as the SAE with the
    fewest has. SAEs without scores are left out."""
    scores = {name: one.scores for name, one in explanations.items() if one.scores}
    n = min(map(len, scores.values()), default=0)
    means = {name: mean_of(own[:n]) for name, own in scores.items()}
    return n, {name: mean for name, mean in means.items() if mean is not None}


def not_alike(explanations: Mapping[str, Explanations]) -> str:
    """Why these SAEs' scores can't be compared; empty if they can."""
    known = [one for one in explanations.values() if one.scores]
    differing = unequal([one.settings | {"order": one.order} for one in known])
    return f"measured differently ({', '.join(differing)})" if differing else ""


# --- explanations.json


def read_explanations(name: str | Path, dictionary: Dictionary | None = None) -> Explanations:
    """The explanations beside a named SAE. Those of another SAE are not used, and a warning says so.

    Arguments:
        name: see run_folder/sae_names.py.
        dictionary: the SAE, as `load_dictionary` returns it. None: it is loaded, if there are explanations.

    Raises: CheckpointError if explanations.json is damaged.
    """
    path = results_folder(name) / EXPLANATIONS
    if not path.exists():
        return Explanations()
    found = explanations_in(path)
    if dictionary is None:
        dictionary, _ = load_dictionary(name)
    if found.sae != hash_of(dictionary):
        logger.warning("%s: of another SAE than the one beside it, so it is not used", path)
        return Explanations()
    if strange := [one for one in found if not 0 <= one < dictionary.dict_size]:
        raise CheckpointError(f"{path}: the SAE has no feature {strange[0]}", instead=_REPAIR)
    return found


def explanations_of(names: Iterable[str]) -> dict[str, Explanations]:
    """The explanations beside named SAEs, of those that have some."""
    found = {name: read_explanations(name) for name in names}
    return {name: one for name, one in found.items() if one}


def explanations_in(path: Path) -> Explanations:
    """The explanations in a file, of whichever SAE. Raises CheckpointError if it is damaged; FileNotFoundError."""
    content = read_json(path, _REPAIR)
    try:
        found = {
            int(number): Explanation(
                int(number),
                each["place"],
                each["asked"],
                None if each["text"] is None else one_line(each["text"]),
                each["said"],
            )
            for number, each in content["features"].items()
        }
        sae, settings, order = (content[name] for name in ("sae", "settings", "order"))
        return Explanations(sae, settings, order, found, content["places"])
    except (KeyError, ValueError, TypeError) as error:  # a part is missing
        raise CheckpointError(
            f"{path}: not as `vsae explain` writes it", instead=_REPAIR
        ) from error
