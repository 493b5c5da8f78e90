"""Which features come back in other SAEs, usually other seeds of one setting: `reproduce` and `agreement`.

The measures of a pair are in agreement.py, their means over a setting's SAEs in reproducibility.py. seeds.py finds the seeds
of each setting among many folders; reproduce_text.py prints and writes results.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import torch as t

from ..codes.codes import Codes
from ..config.checks import require
from ..config.run import UNKNOWN, RunConfig
from ..errors import ReproducibilityError, UserError, as_flag
from ..evaluation.folders import SAE, OpenedFolders, named_or_given, open_folders
from ..evaluation.tables import labels_of, metrics_as_now, titles
from ..run_folder.comparing import grouped_by_setting
from ..run_folder.identity import PLACE, differences, require_alike
from ..run_folder.sae_folder import SEEDS, SAEFolder, find_saes
from ..run_folder.weights import load_sae
from .directions import decoder_directions
from .random_tokens import random_tokens
from .reproducibility import Numbers, Reproducibility, reproducibility

logger = logging.getLogger(__name__)

_TEXT = ("data", "text_column")
"""The settings that name a text."""
_SAME_SEED = {
    "data_seed": "saw the same batches",
    "seed": "started from the same initial weights",
}
"""What SAEs with the same value of a seed have in common: another reason for features to come back."""


def agreement(a: SAE, b: SAE) -> Reproducibility:
    """Compare the decoder directions of two SAEs.

    Features are matched one to one. All of them count, also those that never fire. If b has more features than a, the rest of
    b's have no match. For two folders, a warning names the settings that differ besides the seeds.

    Arguments:
        a, b: dictionaries, or names of SAEs (see run_folder/sae_names.py), of one activation_dim.

    Returns: how the SAEs "a" and "b" agree, e.g.

        result.pair.pw_mcc          mean absolute cosine of matched features (Song et al. 2025); `null` is that of random
                                    directions with the same covariance
        result.pair.cosines         (F,) and (G,), the absolute cosine of each feature of a and b with its match in the
                                    other; `matched` is the match's number. 0 and -1 without a match
        result.as_direction("a")    the share of a's features whose match has a cosine of at least 0.7

    Raises: ReproducibilityError if their widths differ, or for one folder given twice or two of
        different hook points or language models; CheckpointError for a folder that can't be read.
    """
    (one, its_sae), (other, the_others) = (named_or_given(sae) for sae in (a, b))
    if one is not None and other is not None:
        folders = find_saes([one, other], different=True)
        require_comparable(folders)
        warn_of_differences(folders)
    saes = {"a": its_sae, "b": the_others}
    return reproducibility({name: decoder_directions(sae) for name, sae in saes.items()})


def reproduce(
    folders: Sequence[str | Path | SAEFolder],
    tokens: int | None = 0,
    **where: Any,
) -> Reproducibility:
    """Which features come back in other SAEs. Warns where the SAEs differ in more than their seeds.

        result = reproduce(["runs/seed0", "runs/seed1"], tokens=50_000)
        result.returning_fve(), result.as_direction(), result.in_function()

    Arguments:
        folders: the names of the SAEs. They may have different numbers of features, see `agreement`.
        tokens: held-out tokens to compare what they do on. None: as many as the runs' own evaluations. 0: only decoder
            directions are compared, and no language model is loaded.
        where: model, hook, data, device, keep and others, see `evaluation.folders.open_folders`.

    Raises: a UserError for folders that can't be compared: SAEs of different widths, hook points or language models, given
    twice, or not finished.
    """
    saes = find_saes(folders, different=True)
    require_comparable(saes, where.get("model"))
    (found,) = _compared({"": [*saes]}, saes, tokens, where).values()
    return found


def reproduce_settings(
    folders: Sequence[str | Path | SAEFolder],
    tokens: int | None = 0,
    **where: Any,
) -> tuple[dict[str, Reproducibility], list[str]]:
    """Which features come back in each setting among several SAEs: those of one setting differ in their seeds and the order
    of the data alone. Nothing is averaged over settings.

    Arguments: see `reproduce`. Settings of several hook points or language models are measured one after the other.

    Returns: what comes back, by the title of each setting; if no two SAEs are of one, of each pair, by its two names. And
    warnings: the SAEs that have no other seed, and in what settings differ that can't be compared.

    Raises: see `reproduce`. SAEs that differ in more than their seeds must be of one hook point and language model.
    """
    saes = find_saes(folders, different=True)
    notes = list[str]()
    groups = [group for group in grouped_by_setting(saes) if len(group) > 1]
    if groups:
        firsts = {group[0]: saes[group[0]] for group in groups}
        settings = dict(zip(titles(firsts).values(), groups, strict=True))
        notes = _differing([sae.trained_as for sae in firsts.values()])
        if alone := [one for one in saes if not any(one in group for group in groups)]:
            notes.append(
                f"{', '.join(alone)}: left out, as there is no other seed of the same setting"
            )
    else:
        require_comparable(saes, where.get("model"))
        names, pairs = _labels_of(saes), combinations(saes, 2)
        settings = {" and ".join(names[one] for one in pair): [*pair] for pair in pairs}
    for note in notes:
        logger.warning("%s", note)
    of_place: dict[Any, list[str]] = {}
    for title, group in settings.items():
        named = saes[group[0]].source
        place = where.get("model") or named.get("model"), *map(named.get, PLACE)
        of_place.setdefault(place, []).append(title)
    found = {}
    for at_place in of_place.values():
        groups_there = {title: settings[title] for title in at_place}
        found |= _compared(groups_there, saes, tokens, where)
    return {title: found[title] for title in settings}, notes


_COMPARED_AT = ("model", *PLACE, "data", "k", "dict_size", "steps", "batch_size")
"""The settings that settings must share for the shares of their features that come back to be compared."""


def _differing(trained: Sequence[Mapping[str, Any]]) -> list[str]:
    """A warning that names the settings in which SAEs differ, of those that they must share to be compared."""
    names = [name for name in differences(*trained) if name in _COMPARED_AT]
    what = f"the settings differ in {', '.join(names)}"
    return [f"{what}: what comes back of one can't be compared with another"] if names else []


def _compared(
    groups: Mapping[str, Sequence[str]],
    saes: Mapping[str, SAEFolder],
    tokens: int | None,
    where: dict[str, Any],
) -> dict[str, Reproducibility]:
    """Which features come back in each of some groups of SAEs at one hook point, all on the same held-out tokens."""
    require(tokens is None or tokens >= 0, "tokens", tokens, "0 or more")
    device = where.get("device", RunConfig.device)
    folders = {name: saes[name] for group in groups.values() for name in group}
    loaded = {name: load_sae(folder, device) for name, folder in folders.items()}
    opened, codes, known = None, {}, dict[str, Numbers | None]()
    if tokens == 0:
        directions = {name: decoder_directions(sae) for name, sae in loaded.items()}
    else:
        try:
            there = _with_one_text(folders, where)
            opened = open_folders([*folders.values()], saes=loaded, **there)
            codes = opened.codes(tokens)
        except UserError as error:
            remedy = "use tokens=0 to compare the decoder directions alone"
            raise error.within(
                "what the features do on a text can't be compared",
                f"{error.instead}; or {remedy}" if error.instead else remedy,
            ) from error
        directions = {name: own.directions_FD for name, own in codes.items()}
    names, found = _labels_of(saes), {}
    for title, group in groups.items():
        own = {name: saes[name] for name in group}
        found[title] = compare_saes(own, directions, codes, opened, names=names, known=known)
    return found


def compare_saes(
    saes: Mapping[str, SAEFolder],
    directions: Mapping[str, t.Tensor],
    codes: Mapping[str, Codes] | None = None,
    opened: OpenedFolders | None = None,
    *,
    names: Mapping[str, str] | None = None,
    **how: Any,
) -> Reproducibility:
    """Compare SAEs whose directions or codes are known. Warns where they differ in more than their seeds.

    Arguments:
        directions: the decoder directions of each SAE, (F, D).
        codes: the codes of each SAE, all on the same tokens. None: only directions are compared.
        opened: the SAEs' activations, to measure random tokens. None: what of them is kept is taken.
        names: each SAE's short name. Default: its `labels_of` among these.
        how: split and known, see `random_tokens`.
    """
    names, codes = names or _labels_of(saes), codes or {}
    found = reproducibility(
        {names[one]: directions[one] for one in saes},
        {names[one]: codes[one] for one in saes if codes},
        metrics={names[n]: metrics_as_now(sae) or {} for n, sae in saes.items() if not codes},
    )
    chance, notes = None, warn_of_differences(saes)
    if codes:
        of, first = [codes[one] for one in saes], next(iter(saes.values()))
        chance = random_tokens(opened, of, first, **how)
    shares = "data_seed" in _shared_seeds(saes)
    return replace(found, notes=notes, share_batches=shares, random_tokens=chance)


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


def require_comparable(saes: Mapping[str, SAEFolder], model: Any = None) -> None:
    """Raise a ReproducibilityError unless all SAEs are of one hook point of one language model, as directions elsewhere can't be
    compared.

    Arguments:
        model: the language model to measure on. Default: the SAEs' own, which must then agree.
    """
    names = PLACE if model is not None else ("model", *PLACE)
    known = {
        sae.name: {n: at for n in names if (at := sae.source.get(n)) is not None or n == "target"}
        for sae in saes.values()
    }
    advice = "give SAEs of one {name} that differ in their seeds"
    require_alike(known, ReproducibilityError, advice)


def warn_of_differences(saes: Mapping[str, SAEFolder]) -> list[str]:
    """Warn where SAEs differ in more than their seeds, or share a seed. Returns the warnings."""
    notes = []
    if others := differences(*(sae.trained_as for sae in saes.values()), ignoring=SEEDS):
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


def _labels_of(saes: Mapping[str, SAEFolder]) -> dict[str, str]:
    return labels_of({name: sae.trained_as for name, sae in saes.items()})


def _shared_seeds(saes: Mapping[str, SAEFolder]) -> dict[str, tuple[str, str]]:
    """The seeds that two SAEs share, each with the first two SAEs that do. Upstream's folders name no seeds."""
    shared: dict[str, tuple[str, str]] = {}
    for name in _SAME_SEED:
        for (a, one), (b, other) in combinations(saes.items(), 2):
            if (seed := one.settings.get(name)) is not None and seed == other.settings.get(name):
                shared.setdefault(name, (a, b))
    return shared
