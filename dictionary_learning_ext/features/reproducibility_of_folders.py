"""Which features come back in other SAEs, usually other seeds of one setting: computed and shown here for all commands.

The measures are in reproducibility.py (directions) and agreement.py (what the SAEs do on a text).
"""

import logging
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

import torch as t

from ..codes.codes import Codes, kept_codes
from ..config.architectures import ARCHITECTURES
from ..config.checks import require
from ..config.run import RunConfig
from ..errors import UserError
from ..evaluation.folders import SAE, Loaded, dictionary_of, open_folders
from ..evaluation.metrics import METRICS, fve_of
from ..evaluation.tables import labels, text_table
from ..run_folder.comparing import (
    grouped_by_setting,
    same_setting,
    setting_differs,
    training_settings,
    unequal,
)
from ..run_folder.reading import read_config, read_metrics_if_any, require_folders
from ..run_folder.sae_names import require_different, results_folder
from ..run_folder.settings import (
    SEEDS,
    architecture_of,
    own_settings,
    seeds_of,
    settings_named_in,
    settings_of,
)
from ..run_folder.weights import load_dictionary
from .agreement import CODE_MEASURES, NEAR_DEAD, SHARES, AgreementOfCodes, is_used
from .columns import FeaturesOfSAE, write_numbers
from .directions import decoder_directions
from .reproducibility import (
    AS_DIRECTION,
    IN_FUNCTION,
    NULL_ERROR,
    RETURNING,
    Reproducibility,
    ReproducibilityError,
    measures_as_text,
    reproducibility,
)

logger = logging.getLogger(__name__)

_WHERE = ("model", "hook")
"""SAEs must share these settings: directions at different hook points or in different models can't be compared."""
_TEXT = ("data", "text_column")
"""The settings that name a text."""
_SAME_SEED = {
    "data_seed": "saw the same batches",
    "seed": "started from the same initial weights",
}
"""The seeds that SAEs may share, and what they then have in common: another reason for features to come back."""
_SAME_RECONSTRUCTION = 0.005
"""SAEs whose FVEs differ by less than this are said to have the same reconstruction."""
_METRICS = (METRICS[f"near_dead_{NEAR_DEAD:g}"], METRICS["fve"])
"""What stands beside the shares that come back."""
HEADER = tuple(each.label for each in (*SHARES, *_METRICS))
"""The columns of `ReproducibilityOfFolders.rows`."""


def agreement(a: SAE, b: SAE) -> Reproducibility:
    """Compare the features of two SAEs, as `vsae reproduce` does.

    Features are matched one to one, by the cosines of their decoder directions. All of them count, also those that never
    fire. If b has more features than a, the rest of b's have no match. For two folders, a warning names the settings that
    differ besides the seeds.

    Arguments:
        a, b: dictionaries, or what names SAEs (see run_folder/sae_names.py), of one activation_dim.

    Returns: how they agree. The SAEs are called "a" and "b".

        found.pair.pw_mcc          mean absolute cosine of matched features (Song et al. 2025), over as many
                                   pairs as the smaller SAE has features
        found.pair.null            the same for random directions with the same covariance, the mean over
                                   found.pair.null_draws draws
        found.pair.match_F         (F,), the absolute cosine of each feature of a with its match in b; 0 without a
                                   match
        found.pair.matched_F       (F,), the number of that match; -1 without a match
        found.as_direction("a")    the share of a's features whose match has a cosine of at least 0.7, and of at
                                   least 0.9

    Raises: ReproducibilityError if their widths differ, or for one folder given twice or two of
        different hook points or language models; CheckpointError for a folder that can't be read.
    """
    folders = [one for one in (a, b) if isinstance(one, str | Path)]
    if len(folders) == 2:
        warn_of_differences(comparable_configs(folders))
    return reproducibility(
        {name: decoder_directions(dictionary_of(sae)) for name, sae in (("a", a), ("b", b))}
    )


@dataclass(frozen=True)
class ReproducibilityOfFolders:
    """How several SAEs agree, by their short names."""

    measured: Reproducibility
    fve: dict[str, float | None]
    """None for an SAE of which it isn't known."""
    notes: list[str]
    """Warnings: the settings that differ besides the seeds, and the seeds that are shared. Sentences without a full
    stop."""
    codes: AgreementOfCodes | None = None
    """None if only directions were compared."""
    title: str = ""
    """The name of the SAEs' architecture."""
    share_batches: bool = False
    """Whether two of the SAEs were trained on the same batches."""

    @property
    def pairs(self) -> dict[tuple[str, str], dict[str, float]]:
        """Every measure of each pair, by the two short names. Measures of codes are there if codes were compared."""
        codes = {} if self.codes is None else self.codes.pairs
        return {
            names: {**pair.measures, **codes.get(names, {})}
            for names, pair in self.measured.pairs.items()
        }

    def means(self) -> dict[str, float]:
        """Every measure, averaged over the pairs."""
        return {**self.measured.means(), **(self.codes.means() if self.codes else {})}

    def as_direction(self, name: str | None = None) -> float:
        """The share of an SAE's features that come back as a direction; without a name, the mean over SAEs."""
        names = self.measured.names if name is None else [name]
        return fmean(self.measured.as_direction(one)[RETURNING[0]] for one in names)

    def in_function(self, name: str | None = None) -> float | None:
        """The share of an SAE's features that come back in what they do, the mean over its pairs; without a name, over
        all pairs. None if no codes were compared."""
        if self.codes is None:
            return None
        found = self.codes.in_function
        return fmean(share for names, share in found.items() if name is None or name in names)

    def near_dead(self, name: str | None = None) -> float | None:
        """The share of an SAE's features that are near-dead; without a name, the mean over SAEs. None if no codes were
        compared."""
        if self.codes is None:
            return None
        names = self.measured.names if name is None else [name]
        return fmean(1 - float(is_used(self.codes.codes[one]).mean()) for one in names)

    def shares(self, name: str | None = None) -> dict[str, float | None]:
        """The two shares of features that come back, by the keys of `agreement.SHARES`."""
        return {"as_direction": self.as_direction(name), "in_function": self.in_function(name)}

    @property
    def mean_fve(self) -> float | None:
        """The mean FVE of the SAEs; None unless all are known."""
        known = [value for value in self.fve.values() if value is not None]
        return fmean(known) if len(known) == len(self.fve) else None

    def rows(self, missing: str = "-") -> list[tuple[str, list[str]]]:
        """The rows of a table with these HEADER columns: each SAE's name and cells."""
        return [(name, self.cells(name, missing)) for name in self.measured.names]

    def cells(self, name: str | None = None, missing: str = "-") -> list[str]:
        """The cells of one SAE's row. Without a name, those of the mean over SAEs."""
        shares, fve = self.shares(name), self.mean_fve if name is None else self.fve[name]
        found = [each.text(shares[each.key], missing) for each in SHARES]
        values = zip(_METRICS, (self.near_dead(name), fve), strict=True)
        return [*found, *(metric.text(value, missing) for metric, value in values)]


def reproduce(
    folders: Sequence[str | Path], tokens: int | None = 0, *, keep: bool = True, **where: Any
) -> ReproducibilityOfFolders:
    """Which features come back in other SAEs. Warns where the SAEs differ in more than their seeds.

        found = reproduce(["runs/seed0", "runs/seed1"], tokens=50_000)
        found.as_direction(), found.in_function()

    Arguments:
        folders: the names of the SAEs. They may have different numbers of features, see `agreement`.
        tokens: held-out tokens to compare what they do on. None: as many as the runs' own evaluations. 0: only decoder
            directions are compared, and no language model is loaded.
        keep: keep the SAEs' codes beside them.
        where: model, hook, data, device and others, see `evaluation.folders.open_folders`.

    Raises: a UserError for folders that can't be compared: of SAEs of different widths, hook points or
    language models, given twice, or not finished.
    """
    require(tokens is None or tokens >= 0, "tokens", tokens, "0 or more")
    require_folders(folders)
    configs = comparable_configs(folders, where)
    device = where.get("device", RunConfig.device)
    saes = {folder: load_dictionary(folder, device) for folder in configs}
    if tokens == 0:
        directions = {folder: decoder_directions(sae) for folder, (sae, _) in saes.items()}
        return compared(configs, directions)
    try:
        opened = open_folders(list(configs), saes=saes, **_with_one_text(configs, where))
        codes = opened.codes(tokens, keep=keep)
    except UserError as error:
        remedy = "use tokens=0 to compare the decoder directions alone"
        raise error.within(
            "what the features do on a text can't be compared",
            f"{error.instead}; or {remedy}" if error.instead else remedy,
        ) from error
    return compared(configs, codes=codes)


def compared(
    configs: Mapping[str, dict[str, Any]],
    directions: Mapping[str, t.Tensor] | None = None,
    *,
    codes: Mapping[str, Codes] | None = None,
) -> ReproducibilityOfFolders:
    """Compare SAEs whose directions or codes are known. Warns where they differ in more than their seeds.

    Arguments:
        configs: each folder's config.json.
        directions: the decoder directions of each folder's SAE, (F, D). Default: those in its codes.
        codes: the codes of each folder's SAE, all on the same tokens. None: only directions are compared.
    """
    names = labels(configs)
    if directions is None:
        assert codes is not None
        directions = {folder: each.directions_FD for folder, each in codes.items()}
    measured = reproducibility({names[folder]: each for folder, each in directions.items()})
    fve = {name: (read_metrics_if_any(folder) or {}).get("fve") for folder, name in names.items()}
    for folder, each in (codes or {}).items():
        if fve[names[folder]] is None:
            fve[names[folder]] = fve_of(each)
    agreeing = None
    if codes:
        agreeing = AgreementOfCodes({names[one]: codes[one] for one in configs}, measured)
    title = ARCHITECTURES[architecture_of(next(iter(configs.values())))].title
    notes = warn_of_differences(dict(configs))
    share_batches = "data_seed" in _shared_seeds(configs)
    return ReproducibilityOfFolders(measured, fve, notes, agreeing, title, share_batches)


def _with_one_text(configs: Mapping[str, dict[str, Any]], where: dict[str, Any]) -> dict[str, Any]:
    """The arguments `where` with one text for all SAEs: that of the first SAE that names one. They stay as they are if they
    name a text, or if all SAEs name the same."""
    settings = {folder: settings_named_in(config) for folder, config in configs.items()}
    naming = [folder for folder, own in settings.items() if own.get("data") is not None]
    if not naming or any(where.get(name) for name in (*_TEXT, "activations")):
        return where
    first, *others = naming
    texts = {name: value for name in _TEXT if (value := settings[first].get(name)) is not None}
    differ = [
        folder
        for folder in others
        if any(settings[folder].get(name) not in (None, text) for name, text in texts.items())
    ]
    if differ:
        logger.warning(
            "%s was trained on other text than %s: what they do is compared on the held-out text of the latter; "
            "--data or --activations names another",
            differ[0],
            first,
        )
    elif len(naming) == len(settings):
        return where
    return {**where, **texts, "activations": settings[first].get("activations") or "none"}


def of_seeds(
    configs: Mapping[str, dict[str, Any]], *, encode: bool = False
) -> Iterator[tuple[list[str], ReproducibilityOfFolders]]:
    """What comes back between the seeds of each setting that has several among these: its folders, and how they agree.

    Of a setting's folders with the same seeds, the first counts: a copy of a run is no other seed of it. (`reproduce`
    compares all folders that it is given, and warns of copies.) What SAEs do is compared where codes on one text are kept
    beside all of them, and otherwise their directions alone. A setting that can't be compared is left out with a warning.

    Arguments:
        configs: each folder's config.json.
        encode: encode held-out text by SAEs that were evaluated, and keep their codes. Otherwise no text is read.
    """
    unread: set[Any] = set()
    for folders in grouped_by_setting(dict(configs)):
        firsts: dict[tuple[Any, ...], str] = {}
        for folder in folders:
            firsts.setdefault(seeds_of(configs[folder]), folder)
        if len(firsts) < 2:
            continue
        logger.info("matching the features of %d seeds", len(firsts))
        alike = {one: configs[one] for one in firsts.values()}
        try:
            saes = {one: load_dictionary(one, RunConfig.device) for one in alike}
            if encode and all(read_metrics_if_any(one) for one in alike):
                model = own_settings(next(iter(alike.values()))).get("model")
                if model not in unread and not _could_encode(saes):
                    unread.add(model)  # one attempt and one warning for each
            kept = {one: kept_codes(results_folder(one), sae) for one, (sae, _) in saes.items()}
            codes = {one: each for one, each in kept.items() if each is not None}
            if len(codes) == len(saes) and len({each.reading.hash for each in codes.values()}) == 1:
                yield folders, compared(alike, codes=codes)
            else:
                directions = {one: decoder_directions(sae) for one, (sae, _) in saes.items()}
                yield folders, compared(alike, directions)
        except UserError as error:
            logger.warning("which features come back was not measured: %s", error)


def _could_encode(saes: dict[str, Loaded]) -> bool:
    """Keep the codes of SAEs on held-out text, so that what they do can be compared. Returns False, and logs a warning, if
    that isn't possible, e.g. without the language model."""
    try:
        open_folders([*saes], saes=saes).codes()
    except UserError as error:
        logger.warning("what the features do was not compared: %s", error)
        return False
    return True


def comparable_configs(
    folders: Sequence[str | Path], given: Mapping[str, Any] | None = None
) -> dict[str, dict[str, Any]]:
    """Each folder's config.json.

    Arguments:
        given: with a "model", the SAEs' own need not agree.

    Raises: ConfigError if an SAE is given twice; ReproducibilityError unless all are of one hook point of one language model.
    """
    require_different(folders)
    configs = {str(folder): read_config(folder) for folder in folders}
    settings = {folder: settings_named_in(config) for folder, config in configs.items()}
    first, *others = settings
    renamed = "model" if (given or {}).get("model") is not None else None
    for name in (name for name in _WHERE if name != renamed):
        for folder in others:
            one, other = settings[first].get(name), settings[folder].get(name)
            if None not in (one, other) and not same_setting(name, one, other):
                raise ReproducibilityError(
                    setting_differs(name, first, one, folder, other),
                    instead=f"give SAEs of one {name}, which differ in their seeds",
                )
    return configs


def warn_of_differences(configs: dict[str, dict[str, Any]]) -> list[str]:
    """Warn where SAEs differ in more than their seeds, or have one seed or the same batches.

    Arguments:
        configs: each folder's config.json.

    Returns: the warnings.
    """
    trained, notes = training_settings(configs), []
    others = [name for name in unequal(list(trained.values())) if name not in SEEDS]
    classes = {config["trainer"]["dict_class"] for config in configs.values()}
    if len(classes) > 1 and "trainer_class" not in others:
        others.insert(0, "architecture")
    if others:
        notes.append(
            f"these SAEs differ in {', '.join(others)}, not in their seeds alone: what comes back shows how "
            "alike the settings are, too"
        )
    for name, alike in _shared_seeds(configs).items():
        notes.append(
            f"{' and '.join(alike)} {_SAME_SEED[name]}: features may come back for that reason; train each with "
            f"a --{name.replace('_', '-')} of its own"
        )
    for note in notes:
        logger.warning("%s", note)
    return notes


def _shared_seeds(configs: Mapping[str, dict[str, Any]]) -> dict[str, tuple[str, str]]:
    """The seeds that two SAEs share, each with the first two SAEs that do. Upstream's folders name no seeds."""
    settings = {folder: settings_of(config) for folder, config in configs.items()}
    found: dict[str, tuple[str, str]] = {}
    for name in _SAME_SEED:
        for one, other in combinations(settings, 2):
            if settings[one].get(name) is not None and settings[one][name] == settings[other].get(
                name
            ):
                found.setdefault(name, (one, other))
    return found


_TWO_SIZES_NOTE = (
    "Not all have as many features: those of the larger without a match in the smaller\n"
    "don't come back. PW-MCC and its null are over the smaller one's."
)
_DEFINITIONS = (
    f"{AS_DIRECTION}: the share of all features whose decoder direction has a match in\n"
    f"another SAE (cosine of at least {RETURNING[0]:g}). {IN_FUNCTION}: the share of all features\n"
    f"whose activations have one (correlation of at least {RETURNING[0]:g}). near-dead: selected in\n"
    f"fewer than {NEAR_DEAD:g} k/F of the tokens."
)


def short_table(found: Mapping[str, ReproducibilityOfFolders]) -> str:
    """A table of what comes back, with a row for each setting, and a sentence about it.

    Arguments:
        found: how the seeds of each setting agree, by the setting's name.
    """
    rows = [[name, *each.cells()] for name, each in found.items()]
    return f"{text_table(['features that come back', *HEADER], rows)}\n\n{sentence_of([*found.values()], [*found])}"


def sentence_of(
    found: Sequence[ReproducibilityOfFolders], names: Sequence[str] | None = None
) -> str:
    """A sentence about what comes back between the seeds of each setting.

    Arguments:
        names: of the settings. Default: their architectures, or the short names of their first folders.
    """
    parts = [
        (name, each.as_direction(), each.in_function(), each.mean_fve)
        for name, each in zip(names or _names_of(found), found, strict=True)
    ]
    sentence = answer(parts, max(each.measured.random_share for each in found))
    return textwrap.fill(sentence, 80, break_long_words=False, break_on_hyphens=False)


def _names_of(found: Sequence[ReproducibilityOfFolders]) -> list[str]:
    titles = [each.title for each in found]
    if len(set(titles)) < len(titles):
        return [each.measured.names[0] for each in found]
    return titles


def reproducibility_table(found: ReproducibilityOfFolders, everything: bool = False) -> str:
    """A table of which features come back, which fits the terminal, and a sentence about it.

    Arguments:
        everything: show every measure.
    """
    width = shutil.get_terminal_size().columns
    names = found.measured.names
    of = " and ".join(names) if len(names) == 2 else found.title
    is_of_two_sizes = any(len(p.match_F) != p.n_others for p in found.measured.pairs.values())
    sizes = [_TWO_SIZES_NOTE] if is_of_two_sizes else []
    if not everything:
        return "\n\n".join([*sizes, short_table({of: found}), "--all shows every measure."])
    n_pairs = len(found.measured.pairs)
    mean = f"mean of {n_pairs} pairs" if n_pairs > 1 else "one pair"
    within = [[name, f"{value:.4f}"] for name, value in found.measured.within.items()]
    means = [[name, cell] for name, cell in measures_as_text(found.measured.means()).items()]
    parts = [
        text_table(["", *HEADER], [[name, *cells] for name, cells in found.rows()], width),
        _DEFINITIONS,
        *sizes,
        text_table(["", mean], means),
        text_table(["", "within"], within),
        "PW-MCC: mean absolute cosine of features matched one to one. null: that of\n"
        "random directions of the same covariance, averaged over draws until its standard\n"
        f"error is below {NULL_ERROR:g}. within: mean cosine to the nearest feature of the same SAE.",
    ]
    if (codes := found.codes) is not None:
        values = codes.means()
        rows = [[each.label, each.text(values[each.key])] for each in CODE_MEASURES]
        parts += [
            text_table([f"on {codes.tokens:,} held-out tokens", mean], rows),
            "correlation: of the activations of features matched one to one by it, and by\n"
            "direction. selections, energy: the share of all selections, and of the sum of\n"
            "squared activations, that these features have. Jaccard index: of a token's\n"
            "features, the share that both SAEs select.",
        ]
    return "\n\n".join([*parts, sentence_of([found], [of])])


def answer(saes: Sequence[tuple[str, float, float | None, float | None]], random: float) -> str:
    """A sentence about how many features come back.

    Arguments:
        saes: each one's name, the shares of its features that come back as a direction and in what they do, and its FVE;
            None for what isn't known.
        random: the share of random directions that come back.
    """
    (name, direction, function, _), *others = saes
    sentence = f"{direction:.0%} of {name} features come back {AS_DIRECTION}"
    sentence += "" if function is None else f" and {function:.0%} {IN_FUNCTION}"
    for other, direction, function, _ in others:
        also = "" if function is None else f" and {function:.0%}"
        sentence += f", of {other} features {direction:.0%}{also}"
    fve = [value for *_, value in saes if value is not None]
    if len(fve) == len(saes):
        alike = len(fve) > 1 and max(fve) - min(fve) < _SAME_RECONSTRUCTION
        shown = " and ".join(f"{value:.3f}" for value in fve)
        where = f"the same reconstruction (FVE {shown})" if alike else f"FVE {shown}"
        sentence = f"At {where}, {sentence}"
    return f"{sentence}. Of random directions, {random:.0%} would."


def as_json(found: ReproducibilityOfFolders) -> dict[str, Any]:
    """The content of `vsae reproduce --json`: every measure, and warnings. It has no numbers of single features."""
    measured = found.measured
    return {
        "warnings": found.notes,
        "saes": {
            name: {
                "fve": found.fve[name],
                "within": measured.within[name],
                "as_direction": measured.as_direction(name),
                "in_function": found.in_function(name),
                "near_dead": found.near_dead(name),
            }
            for name in measured.names
        },
        "pairs": [{"saes": list(names), **each} for names, each in found.pairs.items()],
        "mean": found.means(),
        "tokens": 0 if found.codes is None else found.codes.tokens,
        "random": measured.random_share,
    }


def write_features(found: ReproducibilityOfFolders, path: str | Path) -> None:
    """Write a CSV file with a row for each feature, see features/columns.py. Raises CheckpointError if it can't be
    written."""
    codes = found.codes
    saes = {
        name: FeaturesOfSAE(
            None if codes is None else codes.codes[name],
            found.measured.scores(name),
            None if codes is None else codes.of(name),
        )
        for name in found.measured.names
    }
    write_numbers(Path(path), saes, "several")
