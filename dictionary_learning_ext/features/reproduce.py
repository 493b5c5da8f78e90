"""Which features come back in other SAEs, usually other seeds of one setting: `reproduce` and `agreement`.

The measures are in reproducibility.py (directions) and agreement.py (what the SAEs do on a text). seeds.py finds the seeds
of each setting among many folders; reproduce_text.py prints and writes results.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import torch as t

from ..codes.codes import Codes
from ..config.checks import require
from ..config.run import UNKNOWN, RunConfig
from ..errors import UserError, as_flag
from ..evaluation.folders import SAE, OpenedFolders, named_or_given, open_folders
from ..evaluation.tables import labels, metrics_as_now, titles
from ..run_folder.comparing import (
    PLACE,
    grouped_by_setting,
    same_setting,
    setting_differs,
    trained_as,
    unequal,
)
from ..run_folder.sae_folder import SEEDS, SAEFolder, find_saes
from ..run_folder.weights import load_sae
from .agreement import NEAR_DEAD_KEY, AgreementOfCodes, mean_or_none
from .directions import decoder_directions
from .random_tokens import Numbers, kept_random_tokens, key_of, random_tokens
from .reproducibility import Reproducibility, ReproducibilityError, reproducibility

logger = logging.getLogger(__name__)

_TEXT = ("data", "text_column")
"""The settings that name a text."""
_SAME_SEED = {
    "data_seed": "saw the same batches",
    "seed": "started from the same initial weights",
}
"""What SAEs with the same value of a seed have in common: another reason for features to come back."""


@dataclass(frozen=True)
class ReturningFeatures:
    """Which features of several SAEs come back in the others. SAEs are known by their short names."""

    measured: Reproducibility
    """How their directions agree."""
    first: SAEFolder
    """The first SAE. What comes back of random tokens is kept beside it."""
    metrics: dict[str, dict[str, Any]]
    """The content of metrics.json of each SAE, for its FVE and L0 where its codes aren't known; empty if it isn't known."""
    notes: list[str]
    """Warnings: the settings that differ besides the seeds, and the seeds that are shared."""
    share_batches: bool = False
    """Whether two of the SAEs were trained on the same batches."""
    codes: AgreementOfCodes | None = None
    """How their codes agree; None if only directions were compared."""
    random_tokens: Numbers | None = None
    """How much of dictionaries of random tokens comes back, by the keys of `agreement.SHOWN`; None if it isn't known."""

    def against_random_tokens(
        self, opened: OpenedFolders, *, known: dict[str, Numbers | None] | None = None, **how: Any
    ) -> "ReturningFeatures":
        """This, with `random_tokens` measured.

        Arguments:
            opened: the activations of the SAEs, whose codes are known.
            known: those that were measured, by `key_of`. What is measured here is added.
            how: split and keep, see `random_tokens`.
        """
        assert self.codes is not None, "random tokens are compared on tokens"
        codes = [*self.codes.codes.values()]
        known, key = {} if known is None else known, key_of(codes)
        if key not in known:
            known[key] = random_tokens(opened, codes, self.first, **how)
        return replace(self, random_tokens=known[key])

    @property
    def pairs(self) -> dict[tuple[str, str], dict[str, float | None]]:
        """Every measure of each pair, by the two names. Without codes, the measures of directions."""
        codes = self.codes.pairs if self.codes else {}
        pairs = self.measured.pairs.items()
        return {names: {**pair.measures, **codes.get(names, {})} for names, pair in pairs}

    def means(self) -> dict[str, float | None]:
        """Every measure, averaged over the pairs."""
        return {**self.measured.means(), **(self.codes.means() if self.codes else {})}

    def numbers(self, name: str | None = None) -> dict[str, float | None]:
        """An SAE's numbers in tables, see `AgreementOfCodes.numbers`. Without codes, what features do isn't known."""
        if self.codes is not None:
            return self.codes.numbers(name)
        names = self.measured.names if name is None else [name]
        metrics = [self.metrics[one] for one in names]
        return {
            "in_function_fve": None,
            "as_direction": self.measured.share_as_direction(names),
            "in_function": None,
            NEAR_DEAD_KEY: None,
            "fve": mean_or_none([one.get("fve") for one in metrics]),
            "l0": mean_or_none([one.get("l0") for one in metrics]),
        }

    def as_direction(self, name: str | None = None) -> float:
        """The share of an SAE's features that come back as a direction. Default: the mean over SAEs."""
        return self.measured.share_as_direction(self.measured.names if name is None else [name])

    def returning_fve(self, name: str | None = None) -> float | None:
        """The FVE of an SAE's features that come back in what they do, alone, the mean over its pairs. Default: the mean over
        all pairs. None without codes."""
        return self.numbers(name)["in_function_fve"]

    def in_function(self, name: str | None = None) -> float | None:
        """The share of an SAE's features that come back in what they do, the mean over its pairs. Default: the mean over all
        pairs. None without codes."""
        return self.numbers(name)["in_function"]


def agreement(a: SAE, b: SAE) -> Reproducibility:
    """Compare the decoder directions of two SAEs.

    Features are matched one to one. All of them count, also those that never fire. If b has more features than a, the rest of
    b's have no match. For two folders, a warning names the settings that differ besides the seeds.

    Arguments:
        a, b: dictionaries, or names of SAEs (see run_folder/sae_names.py), of one activation_dim.

    Returns: how the SAEs "a" and "b" agree, e.g.

        result.pair.pw_mcc          mean absolute cosine of matched features (Song et al. 2025); `null` is that of random
                                    directions with the same covariance
        result.pair.match_F         (F,), the absolute cosine of each feature of a with its match; `matched_F` is the
                                    match's number. 0 and -1 without a match
        result.as_direction("a")    the shares of a's features whose match has a cosine of at least 0.7 and 0.9

    Raises: ReproducibilityError if their widths differ, or for one folder given twice or two of
        different hook points or language models; CheckpointError for a folder that can't be read.
    """
    (one, its_sae), (other, the_others) = (named_or_given(sae) for sae in (a, b))
    if one is not None and other is not None:
        warn_of_differences(comparable([one, other]))
    saes = {"a": its_sae, "b": the_others}
    return reproducibility({name: decoder_directions(sae) for name, sae in saes.items()})


def reproduce(
    folders: Sequence[str | Path | SAEFolder],
    tokens: int | None = 0,
    *,
    keep: bool = True,
    **where: Any,
) -> ReturningFeatures:
    """Which features come back in other SAEs. Warns where the SAEs differ in more than their seeds.

        result = reproduce(["runs/seed0", "runs/seed1"], tokens=50_000)
        result.returning_fve(), result.as_direction(), result.in_function()

    Arguments:
        folders: the names of the SAEs. They may have different numbers of features, see `agreement`.
        tokens: held-out tokens to compare what they do on. None: as many as the runs' own evaluations. 0: only decoder
            directions are compared, and no language model is loaded.
        keep: keep the SAEs' codes beside them.
        where: model, hook, data, device and others, see `evaluation.folders.open_folders`.

    Raises: a UserError for folders that can't be compared: SAEs of different widths, hook points or language models, given
    twice, or not finished.
    """
    saes = comparable(folders, where.get("model"))
    directions, codes, opened = _measured(saes, tokens, keep, where)
    found = compare_saes(saes, directions, codes=codes)
    return found if opened is None else found.against_random_tokens(opened, keep=keep)


@dataclass(frozen=True)
class SettingsCompared:
    """Which features come back in each of several settings."""

    found: dict[str, ReturningFeatures]
    """By the title of each setting: the SAEs that differ in their seeds alone. If no two SAEs do, those of each pair, by its
    two names."""
    notes: list[str]
    """Warnings: the SAEs that have no other seed, and in what settings differ that can't be compared."""


def reproduce_settings(
    folders: Sequence[str | Path | SAEFolder],
    tokens: int | None = 0,
    *,
    keep: bool = True,
    **where: Any,
) -> SettingsCompared:
    """Which features come back in each setting among several SAEs: those of one setting differ in their seeds and the order
    of the data alone. Nothing is averaged over settings.

    Arguments: see `reproduce`. Settings of several hook points or language models are measured one after the other.

    Raises: see `reproduce`. SAEs that differ in more than their seeds must be of one hook point and language model.
    """
    saes = find_saes(folders, different=True)
    groups, notes = [group for group in grouped_by_setting(saes) if len(group) > 1], list[str]()
    names = labels(saes)
    if groups:
        firsts = {group[0]: saes[group[0]] for group in groups}
        settings = dict(zip(titles(firsts).values(), groups, strict=True))
        notes = _differing(firsts)
        if alone := [one for one in saes if not any(one in group for group in groups)]:
            notes.append(
                f"{', '.join(alone)}: left out, as there is no other seed of the same setting"
            )
    else:
        comparable([*saes.values()], where.get("model"))
        pairs = combinations(saes, 2)
        settings = {" and ".join(names[one] for one in pair): [*pair] for pair in pairs}
    for note in notes:
        logger.warning("%s", note)
    of_place: dict[Any, list[str]] = {}
    for title, group in settings.items():
        named = saes[group[0]].source
        place = where.get("model") or named.get("model"), *map(named.get, PLACE)
        of_place.setdefault(place, []).append(title)
    found, known = {}, dict[str, Numbers | None]()
    for at_place in of_place.values():
        own = {one: saes[one] for title in at_place for one in settings[title]}
        directions, codes, opened = _measured(own, tokens, keep, where)
        for title in at_place:
            of_setting = {one: saes[one] for one in settings[title]}
            one = compare_saes(of_setting, directions, codes=codes, names=names)
            if opened is not None:
                one = one.against_random_tokens(opened, keep=keep, known=known)
            found[title] = one
    return SettingsCompared({title: found[title] for title in settings}, notes)


_COMPARED_AT = ("model", *PLACE, "data", "k", "dict_size", "steps", "batch_size")
"""The settings that settings must share for the shares of their features that come back to be compared."""


def _differing(saes: Mapping[str, SAEFolder]) -> list[str]:
    """A warning that names the settings in which SAEs differ, of those that they must share to be compared."""
    trained = trained_as(saes).values()
    names = unequal([{n: v for n, v in own.items() if n in _COMPARED_AT} for own in trained])
    what = f"the settings differ in {', '.join(names)}"
    return [f"{what}: what comes back of one can't be compared with another"] if names else []


def _measured(
    folders: Mapping[str, SAEFolder], tokens: int | None, keep: bool, where: dict[str, Any]
) -> tuple[dict[str, t.Tensor], dict[str, Codes] | None, OpenedFolders | None]:
    """The decoder directions of each SAE, (F, D), their codes on the same held-out tokens, and their activations; None for 0
    tokens."""
    require(tokens is None or tokens >= 0, "tokens", tokens, "0 or more")
    device = where.get("device", RunConfig.device)
    saes = {name: load_sae(folder, device) for name, folder in folders.items()}
    if tokens == 0:
        return {name: decoder_directions(sae) for name, sae in saes.items()}, None, None
    try:
        opened = open_folders([*folders.values()], saes=saes, **_with_one_text(folders, where))
        codes = opened.codes(tokens, keep=keep)
    except UserError as error:
        remedy = "use tokens=0 to compare the decoder directions alone"
        raise error.within(
            "what the features do on a text can't be compared",
            f"{error.instead}; or {remedy}" if error.instead else remedy,
        ) from error
    return {name: own.directions_FD for name, own in codes.items()}, codes, opened


def compare_saes(
    saes: Mapping[str, SAEFolder],
    directions: Mapping[str, t.Tensor] | None = None,
    *,
    codes: Mapping[str, Codes] | None = None,
    names: Mapping[str, str] | None = None,
) -> ReturningFeatures:
    """Compare SAEs whose directions or codes are known. Warns where they differ in more than their seeds.

    Arguments:
        directions: the decoder directions of each SAE, (F, D). Default: those in its codes.
        codes: the codes of each SAE, all on the same tokens. None: only directions are compared.
        names: each SAE's short name. Default: its `labels` among these.
    """
    names, codes = names or labels(saes), codes or {}
    if directions is None:
        directions = {folder: codes[folder].directions_FD for folder in saes}
    measured = reproducibility({names[folder]: directions[folder] for folder in saes})
    first, found = next(iter(saes.values())), None
    if codes:
        found = AgreementOfCodes({names[folder]: codes[folder] for folder in saes}, measured)
    return ReturningFeatures(
        measured,
        first,
        {} if codes else {names[name]: metrics_as_now(sae) or {} for name, sae in saes.items()},
        warn_of_differences(saes),
        "data_seed" in _shared_seeds(saes),
        found,
        found and kept_random_tokens([*found.codes.values()], first),
    )


def _with_one_text(saes: Mapping[str, SAEFolder], where: dict[str, Any]) -> dict[str, Any]:
    """The arguments `where` with one text for all SAEs: that of the first SAE that names one, unless they name a text."""
    naming = [sae for sae in saes.values() if sae.source.get("data") is not None]
    if not naming or any(where.get(name) for name in (*_TEXT, "activations")):
        return where
    first = naming[0].source
    text = {name: first[name] for name in _TEXT if first.get(name) is not None}
    for sae in naming:
        if any(sae.source.get(name) not in (None, value) for name, value in text.items()):
            logger.warning(
                "%s was trained on other text than %s: what they do is compared on the held-out text of the latter; "
                "--data or --activations names another",
                *(sae.name, naming[0].name),
            )
            break
    return {**where, **text, "activations": first.get("activations")}


def comparable(
    folders: Sequence[str | Path | SAEFolder], model: Any = None
) -> dict[str, SAEFolder]:
    """SAEs that can be compared, by their names.

    Arguments:
        model: the language model to measure on. Default: the SAEs' own, which must then agree.

    Raises: ConfigError if an SAE is given twice; ReproducibilityError unless all are of one hook point of one language model,
    as directions elsewhere can't be compared.
    """
    saes = find_saes(folders, different=True)
    first, *others = saes.values()
    for name in PLACE if model is not None else ("model", *PLACE):
        for sae in others:
            values = first.source.get(name), sae.source.get(name)
            is_known = None not in values or name == "target"
            if is_known and not same_setting(name, *values):
                raise ReproducibilityError(
                    setting_differs(name, first.name, values[0], sae.name, values[1]),
                    instead=f"give SAEs of one {name} that differ in their seeds",
                )
    return saes


def warn_of_differences(saes: Mapping[str, SAEFolder]) -> list[str]:
    """Warn where SAEs differ in more than their seeds, or share a seed. Returns the warnings."""
    notes = []
    if others := [name for name in unequal([*trained_as(saes).values()]) if name not in SEEDS]:
        notes.append(
            f"these SAEs differ in {', '.join(others)}, not only in their seeds: what comes back also depends on how similar "
            "the settings are"
        )
    for name, pair in _shared_seeds(saes).items():
        said, own = _SAME_SEED[name], f"with its own {as_flag(name)}"
        if name == "data_seed" and saes[pair[0]].settings.get("model") == UNKNOWN:
            said, own = "may have seen the same batches, your own", "on another order of them"
        notes.append(
            f"{' and '.join(pair)} {said}: features may come back for that reason; train each {own}"
        )
    for note in notes:
        logger.warning("%s", note)
    return notes


def _shared_seeds(saes: Mapping[str, SAEFolder]) -> dict[str, tuple[str, str]]:
    """The seeds that two SAEs share, each with the first two SAEs that do. Upstream's folders name no seeds."""
    shared: dict[str, tuple[str, str]] = {}
    for name in _SAME_SEED:
        for (a, one), (b, other) in combinations(saes.items(), 2):
            if (seed := one.settings.get(name)) is not None and seed == other.settings.get(name):
                shared.setdefault(name, (a, b))
    return shared
