"""The return score: which features of an SAE are likely to come back when it is trained again, from this SAE alone.

    scores = return_scores_of(codes, dictionary)       # codes on held-out text
    scores.score_F                                     # (F,), 0 to 100

The score orders an SAE's features by how likely their direction is to come back when the same settings are trained again,
with other initial weights and another order of the data. It doesn't say whether they mean something. It is no probability,
either: it can't be compared between SAEs.

It is a logistic regression on a few signals, each replaced by its ranks within the SAE. The coefficients are in
return_score.json: one fit for SAEs whose features have noise of their own, and one for the others.
experiments/return_score fitted them and tested them at settings that they were not fitted at.

Shapes: N tokens, D = activation_dim, F features, M selections.
"""

import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch as t
from dictionary_learning.dictionary import Dictionary
from scipy.stats import rankdata

from ..codes.codes import Codes
from ..config.architectures import BY_DICT_CLASS, TRAINED
from ..errors import ConfigError
from ..evaluation.folders import open_folders
from ..evaluation.metrics import is_near_dead
from ..evaluation.tables import text_table
from ..run_folder.comparing import same_model
from ..trainers.dictionaries import HasPosterior, as_input, decoder_directions, k_of
from .columns import SIGNALS, FeaturesOfSAE, write_numbers
from .directions import encoder_directions, nearest_features

COEFFICIENTS = files("dictionary_learning_ext.features") / "return_score.json"
FIFTH_NAMES = {5: "top fifth", 4: "second", 3: "third", 2: "fourth", 1: "lowest fifth"}
"""The names of the five equal parts of an SAE's features, by score. The top one is first."""
FIFTHS = tuple(FIFTH_NAMES)
MANY_NEAR_DEAD = 0.2
"""A warning is given from this share of near-dead features on. The score failed for TopK and BatchTopK at k/F = 1/8, with 35%
near-dead and more, and worked with up to 10%. On Matryoshka SAEs with 36% and 61% it had an AUC of 0.77 and 0.88."""
FEW_SELECTIONS = 200
"""A warning is given if the average feature was selected less often. Chosen by hand, from one pair of SAEs on 2,000 to 50,000
tokens."""
_NO_THRESHOLD = 1e-30
"""Smaller thresholds count as this one, so that every activation is far above a threshold of 0 or less."""
_BATCH_ELEMENTS = 1 << 22
"""Cosines (features x F) computed at a time."""


class ReturnScoreError(ConfigError):
    """This SAE has no return score."""


@dataclass(frozen=True, repr=False)
class ReturnScores:
    """The features of one SAE, ordered by how likely they are to come back."""

    score_F: np.ndarray
    """(F,), the percentage of features with a lower score, ties counted half; 0 for a feature that was never selected."""
    signals: dict[str, np.ndarray]
    """By the names in SIGNALS, (F,); NaN for a feature that was never selected."""
    codes: Codes
    """The codes that it was measured on."""
    near_dead: float
    """The share of features selected in fewer than 0.1 k/F of the tokens."""
    caveat: str | None = None
    """See `caveat_on`."""

    @property
    def tokens(self) -> int:
        """Tokens measured on."""
        return self.codes.tokens

    @property
    def warnings(self) -> list[str]:
        """Reasons not to rely on the order: sentences."""
        found = [self.caveat] if self.caveat else []
        each = np.nan_to_num(self.signals["firing_rate"]).mean() * self.tokens
        if each < FEW_SELECTIONS:
            enough = (
                f"{self.tokens * FEW_SELECTIONS / each:,.0f} tokens or more"
                if each
                else "more tokens"
            )
            found.append(
                f"On {self.tokens:,} tokens the average feature was selected {each:.1f} times, which is too few "
                f"for a reliable order: give {enough}."
            )
        elif self.near_dead >= MANY_NEAR_DEAD:
            found.append(
                f"{self.near_dead:.0%} of these features are near-dead: selected in fewer than 0.1 k/F of the "
                "tokens (k: the features that fire per token). Where that many were, in TopK and BatchTopK SAEs "
                "with k/F = 1/8, this score was hardly better than chance."
            )
        return found

    def __repr__(self) -> str:
        return f"return scores of {len(self.score_F):,} features, on {self.tokens:,} tokens"

    @cached_property
    def fifth_F(self) -> np.ndarray:
        """(F,), the fifth of the score that each feature is in: 5 is the top one."""
        return np.minimum(self.score_F // 20 + 1, 5).astype(int)

    @property
    def selections(self) -> dict[int, float]:
        """The share of all selections that belongs to the features of each fifth."""
        return self._sums("firing_rate")

    @property
    def errors(self) -> dict[int, float]:
        """The share of the error's rises that belongs to the features of each fifth: how much of the reconstruction rests
        on them."""
        return self._sums("error_share")

    def _sums(self, name: str) -> dict[int, float]:
        value_F = np.nan_to_num(self.signals[name])
        total = value_F.sum() or 1.0
        return {fifth: float(value_F[self.fifth_F == fifth].sum() / total) for fifth in FIFTHS}

    def shares(self, weight_F: np.ndarray) -> dict[int, float | None]:
        """The mean of a number of each feature over each fifth, e.g. of whether it came back; None for a fifth without
        features."""
        return {
            fifth: float(weight_F[self.fifth_F == fifth].mean()) if count else None
            for fifth, count in self.counts.items()
        }

    @cached_property
    def counts(self) -> dict[int, int]:
        """How many features are in each fifth. The lowest one has all that were never selected."""
        return {fifth: int((self.fifth_F == fifth).sum()) for fifth in FIFTHS}

    def write(self, path: Path) -> None:
        """Write a CSV file with a row for each feature, see features/columns.py; empty for a feature that was never
        selected. Raises CheckpointError if it can't be written."""
        write_numbers(path, {"": FeaturesOfSAE(self.codes, self)}, "one")


def return_scores_of(
    codes: Codes, dictionary: Dictionary, caveat: str | None = None
) -> ReturnScores:
    """The return scores of an SAE's features.

    Activations and encoders are measured as if each decoder direction had length 1: some SAEs (SAELens's, Gemma
    Scope's) have others, and what they compute doesn't depend on it.

    Arguments:
        codes: the SAE's, on held-out text.
        caveat: see `caveat_on`.

    Raises: ReturnScoreError for an SAE that keeps all features of a token.
    """
    require_score(dictionary, codes.code_NF.nnz / codes.tokens)
    signals = signals_of(codes, dictionary)
    fit = fits()["with_noise" if has_noise(dictionary) else "without_noise"]
    log_odds_F = fit.log_odds(ranks(signals))
    is_alive_F = np.isfinite(log_odds_F)
    # Those that were never selected tie at the bottom.
    rank_F = rankdata(np.where(is_alive_F, log_odds_F, -np.inf))
    score_F = np.where(is_alive_F, 100 * (rank_F - 0.5) / len(rank_F), 0.0)
    near_dead = float(is_near_dead(codes.firing_rate_F, codes.k, 0.1).double().mean())
    found = {name: signals[name] for name in SIGNALS}
    return ReturnScores(score_F, found, codes, near_dead, caveat)


def return_scores_if_any(
    codes: Codes, dictionary: Dictionary, caveat: str | None = None
) -> ReturnScores | None:
    """`return_scores_of`; None for an SAE that has none."""
    l0 = codes.code_NF.nnz / codes.tokens
    return return_scores_of(codes, dictionary, caveat) if has_score(dictionary, l0) else None


def signals_of(codes: Codes, dictionary: Dictionary) -> dict[str, np.ndarray]:
    """Each signal of SIGNALS, (F,), float64; NaN for a feature that was never selected."""
    count_F = codes.count_F
    length_F = np.where(codes.length_F > 0, codes.length_F, 1.0).astype(np.float32)
    size_M = np.abs(codes.by_feature.data) * length_F[codes.column_M]
    sizes_M = size_M.astype(np.float64)  # so that features that fired once have one shape, 1
    directions_FD = codes.directions_FD
    with np.errstate(divide="ignore", invalid="ignore"):
        found = {
            "firing_rate": count_F / codes.tokens,
            "error_share": codes.rise_F / codes.totals.residual,
            "margin": codes.summed(margins(codes, dictionary, length_F)) / count_F,
            "shape": codes.summed(sizes_M) / np.sqrt(count_F * codes.summed(sizes_M**2)),
            "encoder_norm": encoder_directions(dictionary).norm(dim=1).numpy() * length_F,
            "nearest": nearest_features(directions_FD, 1).values_Fn[:, 0].numpy(),
            "crowding": crowding(directions_FD).numpy(),
        }
    return {name: np.where(count_F > 0, value_F, np.nan) for name, value_F in found.items()}


def margins(codes: Codes, dictionary: Dictionary, length_F: np.ndarray) -> np.ndarray:
    """The log of each activation over what it had to exceed, (M,), float64.

    That is the feature's own threshold, or the smallest activation that the token keeps.

    Arguments:
        length_F: the lengths of the decoder directions.

    Returns: in the order of `Codes.by_feature`.
    """
    size_M = np.abs(codes.by_feature.data) * length_F[codes.column_M]
    threshold_F = thresholds(dictionary)
    if threshold_F is not None:
        least_M = threshold_F.numpy()[codes.column_M]
    else:
        starts_N, selects_N = codes.code_NF.indptr[:-1], np.diff(codes.code_NF.indptr) > 0
        own_M = np.abs(codes.code_NF.data) * length_F[codes.code_NF.indices]
        least_N = np.full(codes.tokens, np.inf, dtype=np.float32)
        if len(own_M):
            least_N[selects_N] = np.minimum.reduceat(own_M, starts_N[selects_N])
        least_M = least_N[codes.by_feature.indices]
    ratio_M = np.log(size_M) - np.log(np.maximum(least_M, np.float32(_NO_THRESHOLD)))
    return ratio_M.astype(np.float64)


def thresholds(dictionary: Dictionary) -> t.Tensor | None:
    """The threshold that each feature's activation must exceed, for decoder directions of length 1, (F,); None for an SAE
    without thresholds."""
    own = getattr(dictionary, "threshold", None)
    asked = signature(dictionary.encode).parameters.get("use_threshold")  # BatchTopK's and TopK's
    if own is None or not (asked.default if asked else own.shape == (dictionary.dict_size,)):
        return None
    return own.detach().float().cpu() * decoder_directions(dictionary).norm(dim=1)


def crowding(directions_FD: t.Tensor) -> t.Tensor:
    """(F,), the sum of the squares of each direction's positive cosines with the others."""
    unit_FD = t.nn.functional.normalize(directions_FD, dim=1)
    parts = [
        (part_nD @ unit_FD.T).clamp(min=0).square().sum(1) - part_nD.square().sum(1).square()
        for part_nD in unit_FD.split(max(1, _BATCH_ELEMENTS // len(unit_FD)))
    ]
    return t.cat(parts)


def has_score(dictionary: Dictionary, l0: float | None = None) -> bool:
    """Whether an SAE keeps fewer than all features of a token.

    Arguments:
        l0: the mean number of features that fire per token, of an SAE without a k. None: not measured yet.
    """
    k = k_of(dictionary)
    kept = l0 if k is None else k
    return kept is None or kept < dictionary.dict_size


def require_score(dictionary: Dictionary, l0: float | None = None) -> None:
    """Raise a ReturnScoreError for an SAE that has no return score, see `has_score`."""
    if not has_score(dictionary, l0):
        what = f"keeps all {dictionary.dict_size} of its features at every token"
        raise ReturnScoreError(
            f"this SAE ({type(dictionary).__name__}) {what}: expected one that keeps fewer, e.g. TopK, JumpReLU or "
            "a vSAE",
            instead="train a second seed, then type: vsae reproduce FOLDER SECOND_FOLDER",
        )


@t.no_grad()
def has_noise(dictionary: Dictionary) -> bool:
    """Whether an SAE's posterior has noise: a standard deviation above 0."""
    if not isinstance(dictionary, HasPosterior):
        return False
    nothing = as_input(dictionary, t.zeros(1, dictionary.activation_dim))
    return bool((dictionary.posterior(nothing).std > 0).any())


def return_scores(
    folders: Sequence[str | Path], tokens: int | None = None, *, keep: bool = True, **where: Any
) -> dict[str, ReturnScores]:
    """The return scores of run folders' SAEs, all on the same held-out tokens, by folder.

    Arguments:
        folders: SAEs of one language model and hook point.
        tokens: held-out tokens. None: as many as the runs' own evaluations.
        keep: keep the SAEs' codes beside them.
        where: model, hook, data and the like, see `evaluation.folders.open_folders`.

    Raises: ReturnScoreError for an SAE that keeps all features; a UserError for a folder or a text that can't be read.
    """
    opened = open_folders(folders, **where)
    for sae, _ in opened.saes.values():
        require_score(sae)
    codes = opened.codes(tokens, keep=keep)
    return {
        name: return_scores_of(codes[name], sae, caveat_on(sae, config, opened.run.model))
        for name, (sae, config) in opened.saes.items()
    }


def scores_table(scores: ReturnScores) -> str:
    """A table of the fifths of an SAE's return score, with what a reader must know."""
    selections, errors = scores.selections, scores.errors
    rows = [
        [name, str(scores.counts[fifth]), f"{selections[fifth]:.1%}", f"{errors[fifth]:.1%}"]
        for fifth, name in FIFTH_NAMES.items()
    ]
    n_dead = int(np.isnan(scores.signals["firing_rate"]).sum())
    head = [f"on {scores.tokens:,} held-out tokens", "features", "selections", "error rise"]
    dead = f"Never selected on these tokens: {n_dead}, all in the lowest fifth.\n" if n_dead else ""
    warning = "".join(f"{wrapped(each)}\n" for each in scores.warnings)
    first = f"{warning}\n" if warning else ""
    return (
        f"{first}{text_table(head, rows)}\n\n{dead}"
        "The return score orders the features of an SAE, from that SAE alone, by how\n"
        "likely their direction is to come back when the same settings are trained again\n"
        "(a cosine of 0.7 or more with its match there). It doesn't say whether they mean\n"
        "something. To see how many come back, train a second seed. error rise: of the\n"
        "rises in error when a feature is dropped, the share of these features."
    )


def wrapped(text: str) -> str:
    """Text in lines of 80 columns. A word, e.g. a path, stays whole."""
    return textwrap.fill(text, 80, break_long_words=False, break_on_hyphens=False)


# --- the regression


def ranks(signals: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Each signal's ranks among the features that have it, from -1 to 1. Ties get their mean."""
    found = {}
    for name, value_F in signals.items():
        there_F = np.isfinite(value_F)
        rank_F = np.full(len(value_F), np.nan)
        n = there_F.sum()
        rank_F[there_F] = (2 * rankdata(value_F[there_F]) - n - 1) / max(n, 1)
        found[name] = rank_F
    return found


def design(ranks_of: dict[str, np.ndarray], names: list[str]) -> np.ndarray:
    """(F, 2 x signals), the regression's inputs: the ranks, then their squares."""
    rank_FS = np.stack([ranks_of[name] for name in names], axis=1)
    return np.concatenate([rank_FS, rank_FS**2], axis=1)


@dataclass(frozen=True)
class Fit:
    """A logistic regression on signals' ranks."""

    rank: dict[str, float]
    """The coefficient of each signal's rank."""
    square: dict[str, float]
    """The coefficient of the square of each signal's rank."""

    def log_odds(self, ranks_of: dict[str, np.ndarray]) -> np.ndarray:
        """(F,), the log odds that each feature comes back, up to a constant; NaN where a signal is."""
        coefficients = [*self.rank.values(), *(self.square[name] for name in self.rank)]
        return design(ranks_of, list(self.rank)) @ np.array(coefficients)


def architecture_of(dictionary: Dictionary, config: dict[str, Any]) -> str:
    """The name of an SAE's architecture in return_score.json.

    Arguments:
        config: its config.json; empty for one without a folder.
    """
    name = type(dictionary).__name__
    trainer = config.get("trainer", {}).get("trainer_class")
    rows = (row for row in TRAINED.values() if row.trainer_class == trainer)
    if (row := next(rows, BY_DICT_CLASS.get(name))) is None:
        return name
    if row.is_ours and "foreign" in config:
        return str(config["foreign"]["architecture"])
    return row.variants.get(getattr(dictionary, "variant", ""), row.title)


def caveat_on(dictionary: Dictionary, config: dict[str, Any], model: str) -> str | None:
    """Sentences that say if the return score was never tested on such an SAE, or failed. None if it was tested and worked.

    Arguments:
        config: the SAE's config.json; empty for one without a folder.
        model: the language model whose activations it takes.
    """
    library = config.get("foreign", {}).get("format", "dictionary_learning")
    architecture = architecture_of(dictionary, config)
    tested, sentences = tested_on(), []
    at = next((at for at in tested if at[0] == library and same_model(at[1], model)), None)
    if at is None or architecture not in tested[at]:
        new = []
        if library not in {at[0] for at in tested}:
            new.append(f"SAEs of {library}")
        if not any(same_model(at[1], model) for at in tested):
            new.append(f"the language model {model}")
        if not any(architecture in each for each in tested.values()):
            new.append(f"the architecture {architecture}")
        together = f"{architecture} SAEs of {library} on {model}"
        sentences += [
            f"The return score was not tested on {', '.join(new) or together}.",
            "To see how well it orders these features, compare a second seed.",
        ]
    if (weak := _content()["weak_on"].get(architecture)) is not None:
        sentences.insert(0, weak)
    return " ".join(sentences) or None


def tested_on() -> dict[tuple[str, str], list[str]]:
    """The architectures that the fits were tested on, by library and language model; see `architecture_of`."""
    return {(at["library"], at["model"]): at["architectures"] for at in _content()["tested_on"]}


@cache
def _content() -> dict[str, Any]:
    """The content of return_score.json: the fits, the SAEs they were tested on, and the architectures on which they failed."""
    return json.loads(COEFFICIENTS.read_text(encoding="utf-8"))


@cache
def fits() -> dict[str, Fit]:
    """The fits of return_score.json: "with_noise" and "without_noise"."""
    return {name: Fit(**fit) for name, fit in _content()["fits"].items()}
