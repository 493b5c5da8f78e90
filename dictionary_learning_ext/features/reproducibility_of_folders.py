"""Several SAEs, as a rule seeds of one setting: which features come back, as `agreement`, `vsae reproduce` and the report
show it. The measures are in reproducibility.py, and those of what the SAEs do on a text in codes.py.
"""

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from sklearn.preprocessing import normalize

from ..config.checks import require
from ..config.run import RunConfig
from ..errors import Setting, Template, UserError
from ..evaluation.folders import SAE, Loaded, dictionary_of, open_folders
from ..evaluation.metrics import METRICS
from ..evaluation.tables import labels, text_table
from ..run_folder.comparing import grouped_by_setting, same_setting, training, unequal, unlike
from ..run_folder.files import replacing, target_of, write_rows
from ..run_folder.reading import read_config, read_metrics_if_any, require_folders
from ..run_folder.sae_names import place_of
from ..run_folder.settings import SEEDS, seeds_of, settings_named_in, settings_of
from ..run_folder.weights import load_dictionary
from .codes import (
    CODE_MEASURES,
    AgreementOfCodes,
    CodeCollector,
    Codes,
    agreement_of_codes,
    mean_of_known,
)
from .directions import decoder_directions
from .reproducibility import (
    NULL_ERROR,
    RETURNING,
    Reproducibility,
    ReproducibilityError,
    matching,
    measures_as_text,
    reproducibility,
    returning,
)
from .return_score import (
    FIFTH_NAMES,
    FIFTHS,
    ReturnScores,
    SignalCollector,
    caveat_on,
    has_score,
    wrapped,
)

logger = logging.getLogger(__name__)

_WHERE = ("model", "hook")
"""Directions at different places of a language model, or of two models, have nothing in common."""
_TEXT = ("data", "text_column")
"""Which text is read."""
_SHARED = {
    "data_seed": "saw the same batches",
    "seed": "started from the same initial weights",
}
"""What SAEs with one value of these share, which is a reason for features to return."""
_SAME_RECONSTRUCTION = 0.005
"""SAEs whose FVE differ by less reconstruct the same."""
HEADER = ("FVE", *(f"returning > {least:g}" for least in RETURNING), "within")
"""The columns of `ReproducibilityOfFolders.rows`."""


def agreement(a: SAE, b: SAE) -> Reproducibility:
    """Compare the features of two SAEs, as `vsae reproduce` does.

    Features are matched one to one, by the cosines of what they add to the reconstruction. All of
    them count, those that never fire included. With two folders, a warning says what else than
    their seeds differs. If b has more features, each of a's has a match and the rest of b's have none.

    Arguments:
        a, b: dictionaries, or what names SAEs (see run_folder/sae_names.py), of one activation_dim.

    Returns: the two, under the names "a" and "b".

        found.pair.pw_mcc          mean absolute cosine of matched features (Song et al. 2025), as many pairs
                                   as the smaller has features
        found.pair.null            the same of random directions with the same covariance, a mean of
                                   found.pair.null_draws draws
        found.pair.agreement       mean signed cosine, under its own matching
        found.pair.match_F         (F,), each feature of a: the absolute cosine with its match in b; 0 if it has
                                   none
        found.pair.matched_F       (F,), the number of that match; -1 if it has none
        found.returning("a")       the share of all of a's features with a match above 0.7 and 0.9
        found.within["a"]          mean cosine of a's features to their nearest in a itself

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
    """What was measured, by the folders' short names, and each one's FVE if it was evaluated."""

    measured: Reproducibility
    fve: dict[str, float | None]
    notes: list[str]
    """In what the SAEs differ beyond their seeds, and which seeds they share: sentences without a full
    stop."""
    codes: AgreementOfCodes | None = None
    """None if only directions were compared."""
    scores: dict[str, ReturnScores] = field(default_factory=dict)
    """Each SAE's return score, from that SAE alone; only of those that have one."""

    def fifths(self) -> dict[int, float | None]:
        """The share of features that come back, by fifth of the return score, the top one first: the mean over
        SAEs and their other seeds. None for a fifth without features; empty if no SAE has a score."""
        if not self.scores:
            return {}
        shares = []
        for name, scores in self.scores.items():
            found = self.measured.scores(name)
            shares.append(scores.shares(found.returns_F / found.of))
        known = {fifth: [each[fifth] for each in shares] for fifth in FIFTHS}
        return {fifth: mean_of_known(each) for fifth, each in known.items()}

    @property
    def pairs(self) -> dict[tuple[str, str], dict[str, float | None]]:
        """Every measure of each pair, by the two short names: `PairOfSAEs.measures` and, if codes were
        compared, `measures_of_pair`."""
        codes = {} if self.codes is None else self.codes.pairs
        return {
            names: {**pair.measures, **codes.get(names, {})}
            for names, pair in self.measured.pairs.items()
        }

    def means(self) -> dict[str, float | None]:
        """The same, averaged over the pairs."""
        return {**self.measured.means(), **(self.codes.means() if self.codes else {})}

    @property
    def returns(self) -> float:
        """The share of the first one's features that come back."""
        return self.measured.returning(self.measured.names[0])[RETURNING[0]]

    def rows(self, missing: str = "-") -> list[tuple[str, list[str]]]:
        """Each SAE's name and cells, in the order of HEADER."""
        return [
            (
                name,
                [
                    METRICS["fve"].text(self.fve[name], missing),
                    *(f"{share:.1%}" for share in self.measured.returning(name).values()),
                    f"{self.measured.within[name]:.4f}",
                ],
            )
            for name in self.measured.names
        ]


def reproduce(
    folders: Sequence[str | Path], tokens: int | None = 0, **where: Any
) -> ReproducibilityOfFolders:
    """Compare SAEs. Warns where they differ in more than their seeds.

        found = reproduce(["runs/seed0", "runs/seed1"], tokens=50_000)
        found.pairs["seed0", "seed1"]["returning_energy"]

    Arguments:
        folders: what names the SAEs. They may have different numbers of features, see `agreement`.
        tokens: held-out tokens to compare the codes on. None: as
            many as the runs' own evaluations. 0: only decoder directions are compared, and no language
            model is loaded.
        where: model, hook, data, device and others, see `evaluation.folders.open_folders`.

    Raises: a UserError for folders that can't be compared: of SAEs of different widths, hook points or
    language models, given twice, or not finished.
    """
    require(tokens is None or tokens >= 0, "tokens", tokens, "0 or more")
    require_folders(folders)
    configs = comparable_configs(folders, where)
    names = labels(configs)
    saes = {
        folder: load_dictionary(folder, where.get("device", RunConfig.device)) for folder in names
    }
    directions = {names[folder]: decoder_directions(sae) for folder, (sae, _) in saes.items()}
    fve = {name: (read_metrics_if_any(folder) or {}).get("fve") for folder, name in names.items()}
    codes, scores = {}, {}
    if tokens != 0:
        codes, scores = _on_held_out(saes, names, tokens, where)
    found = reproducibility(directions)
    return ReproducibilityOfFolders(
        found,
        fve,
        warn_of_differences(configs),
        agreement_of_codes(codes, found) if codes else None,
        scores,
    )


def _on_held_out(
    loaded: dict[str, Loaded],
    names: Mapping[str, str],
    tokens: int | None,
    where: dict[str, Any],
) -> tuple[dict[str, Codes], dict[str, ReturnScores]]:
    """The codes and the return scores of the SAEs in folders on the same held-out tokens, by the folders' short
    names."""
    where = _one_text({folder: config for folder, (_, config) in loaded.items()}, where)
    try:
        opened = open_folders(list(names), saes=loaded, **where)
        saes = {names[folder]: dictionary for folder, (dictionary, _) in opened.saes.items()}
        coders = {name: CodeCollector(sae) for name, sae in saes.items()}
        scorers = {
            names[folder]: SignalCollector(sae, caveat_on(sae, config, opened.run.model))
            for folder, (sae, config) in opened.saes.items()
            if has_score(sae)
        }
        for x_BD in opened.held_out(tokens):
            for collector in (*coders.values(), *scorers.values()):
                collector.add(x_BD)
    except UserError as error:
        remedy = Template("use {tokens=0} to compare the decoder directions alone")
        raise error.within(
            "what the features do on a text can't be compared",
            Template("{instead}; or {remedy}", instead=error.instead, remedy=remedy)
            if error.instead
            else remedy,
        ) from error
    codes = {name: each.codes() for name, each in coders.items()}
    scores = {name: each.scores_if_any() for name, each in scorers.items()}
    return codes, {name: each for name, each in scores.items() if each is not None}


def _one_text(configs: Mapping[str, dict[str, Any]], where: dict[str, Any]) -> dict[str, Any]:
    """`where`, with the text of the first that names one for all of them, unless all name the same or one is
    given."""
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


def returning_of(configs: Mapping[str, dict[str, Any]]) -> dict[str, float]:
    """The share of features that come back, of each folder that has other seeds of its setting among these.

    Warns of seeds that share what is a reason for features to return.

    Arguments:
        configs: each folder's config.json.
    """
    found: dict[str, float] = {}
    for folders in grouped_by_setting(dict(configs)):
        if len({seeds_of(configs[one]) for one in folders}) < len(folders) or len(folders) == 1:
            continue
        logger.info("matching the features of %d seeds", len(folders))
        warn_of_differences({one: configs[one] for one in folders})
        unit: dict[str, Any] = {
            one: normalize(decoder_directions(load_dictionary(one)[0]).float().numpy())
            for one in folders
        }
        matches: dict[str, list[Any]] = {one: [] for one in folders}
        for a, b in combinations(folders, 2):
            _, match_F = matching(unit[a], unit[b], signed=False)
            for one in (a, b):  # of one size, so that every feature of both has a match
                matches[one].append(match_F)
        found |= {one: returning(each)[RETURNING[0]] for one, each in matches.items()}
    return found


def comparable_configs(
    folders: Sequence[str | Path], given: Mapping[str, Any] | None = None
) -> dict[str, dict[str, Any]]:
    """Each folder's config.json.

    Arguments:
        given: the model and the hook that are said to be those of all, if any.

    Raises: ReproducibilityError if a folder is given twice, however it is spelled, or unless all SAEs
    are of one width, at one hook point of one language model.
    """
    seen: set[Path] = set()
    for folder in folders:
        if (path := target_of(place_of(folder).folder)) in seen:
            raise ReproducibilityError(
                f"{folder} is given twice, and an SAE always agrees with itself; remove it once"
            )
        seen.add(path)
    configs = {str(folder): read_config(folder) for folder in folders}
    settings = {folder: settings_named_in(config) for folder, config in configs.items()}
    first, *others = settings
    renamed = "model" if (given or {}).get("model") is not None else None
    for name in (name for name in _WHERE if name != renamed):
        for folder in others:
            one, other = settings[first].get(name), settings[folder].get(name)
            if None not in (one, other) and not same_setting(name, one, other):
                raise ReproducibilityError(
                    unlike(name, first, one, folder, other),
                    instead=f"give SAEs of one {name}, which differ in their seeds",
                )
    for folder in others:
        widths = [configs[one]["trainer"].get("activation_dim") for one in (first, folder)]
        if None not in widths and widths[0] != widths[1]:
            raise ReproducibilityError(
                f"{folder} takes {widths[1]} dimensions, and {first} takes {widths[0]}: expected the same of both"
            )
    return configs


def warn_of_differences(configs: dict[str, dict[str, Any]]) -> list[str]:
    """Warn where SAEs differ in more than their seeds, or have one seed or the same batches.

    Arguments:
        configs: each folder's config.json.

    Returns: the warnings.
    """
    trained, notes = training(configs), []
    others = [name for name in unequal(list(trained.values())) if name not in SEEDS]
    classes = {config["trainer"]["dict_class"] for config in configs.values()}
    if len(classes) > 1 and "trainer_class" not in others:
        others.insert(0, "architecture")
    if others:
        notes.append(
            f"these SAEs differ in {', '.join(others)}, not in their seeds alone: what returns shows how "
            "alike the settings are, too"
        )
    settings = {folder: settings_of(config) for folder, config in configs.items()}
    for name, what in _SHARED.items():
        known = [folder for folder in settings if settings[folder].get(name) is not None]
        pairs = combinations(known, 2)
        alike = [pair for pair in pairs if len({settings[one][name] for one in pair}) == 1]
        if alike:
            notes.append(
                f"{' and '.join(alike[0])} {what}: features may return for that reason; train each with "
                f"a --{name.replace('_', '-')} of its own"
            )
    for note in notes:
        logger.warning("%s", note)
    return notes


_OF_TWO_SIZES = (
    "Not all have as many features: those of the larger without a match in the smaller\n"
    "don't return. PW-MCC and its null are over the smaller one's."
)


def reproducibility_table(found: ReproducibilityOfFolders) -> str:
    """A table of the SAEs that fits the terminal, and one of the means over pairs."""
    width = shutil.get_terminal_size().columns
    means = [[name, cell] for name, cell in measures_as_text(found.measured.means()).items()]
    n = len(found.measured.pairs)
    mean = f"mean of {n} pairs" if n > 1 else "one pair"
    is_of_two_sizes = any(len(p.match_F) != p.n_others for p in found.measured.pairs.values())
    parts = [
        text_table(["", *HEADER], [[name, *cells] for name, cells in found.rows()], width),
        *([_OF_TWO_SIZES] if is_of_two_sizes else []),
        text_table(["", mean], means),
        "returning: the share of features whose match in another SAE has at least this\n"
        "absolute cosine. within: mean cosine to the nearest feature of the same SAE.\n"
        "PW-MCC: mean absolute cosine of features matched one to one. null: that of\n"
        "random directions of the same covariance, averaged over draws until its standard\n"
        f"error is below {NULL_ERROR:g}.",
    ]
    if (codes := found.codes) is not None:
        values = codes.means()
        rows = [[each.label, each.text(values[each.key])] for each in CODE_MEASURES]
        parts += [
            text_table([f"on {codes.tokens:,} held-out tokens", mean], rows),
            "correlation: of the activations of features matched one to one by it, and by\n"
            "direction. the same: of the features that are not near-dead, matched by\n"
            "correlation, those with 0.7 or more; and the energy that they carry.\n"
            "near-dead: selected in fewer than 0.1 k/F of the tokens. selections,\n"
            "energy: the share of all selections, and of the sum of squared activations, that\n"
            "features returning > 0.7 have. Jaccard index: of a token's features, the share\n"
            "that both SAEs select.",
        ]
    if fifths := found.fifths():
        rows = [
            [FIFTH_NAMES[fifth], "-" if share is None else f"{share:.1%}"]
            for fifth, share in fifths.items()
        ]
        parts += [
            text_table(["by the return score", "returning > 0.7"], rows),
            "by the return score: an SAE's features, ordered from that SAE alone by how\n"
            "likely they are to return, in five equal parts; the share of each that returns.",
            *dict.fromkeys(wrapped(each.caveat) for each in found.scores.values() if each.caveat),
        ]
    return "\n\n".join(parts)


def answer(saes: Sequence[tuple[str, float, float | None]]) -> str:
    """How many features come back, in a sentence.

    Arguments:
        saes: of each, what to call it, the share of its features that come back, and its FVE if known.
    """
    first, *others = [f"{returns:.0%} of {name} features" for name, returns, _ in saes]
    sentence = f"{first} come back with another seed" + "".join(f", and {each}" for each in others)
    fve = [value for _, _, value in saes if value is not None]
    if others and len(fve) == len(saes):
        shown = " and ".join(f"{value:.3f}" for value in fve)
        alike = max(fve) - min(fve) < _SAME_RECONSTRUCTION
        where = f"the same reconstruction (FVE {shown})" if alike else f"FVE {shown}"
        sentence = f"At {where}, {sentence}"
    return f"{sentence}."


def as_json(found: ReproducibilityOfFolders) -> dict[str, Any]:
    """Everything but the features' own scores. The warnings say what a reader of the numbers must know."""
    measured = found.measured
    caveats = dict.fromkeys(each.caveat for each in found.scores.values() if each.caveat)
    return {
        "warnings": [*found.notes, *caveats],
        "saes": {
            name: {
                "fve": found.fve[name],
                "within": measured.within[name],
                "returning": measured.returning(name),
            }
            for name in measured.names
        },
        "pairs": [{"saes": list(names), **each} for names, each in found.pairs.items()],
        "mean": found.means(),
        "tokens": 0 if found.codes is None else found.codes.tokens,
        "returning_by_fifth": found.fifths(),
    }


def write_features(found: ReproducibilityOfFolders, path: str | Path) -> None:
    """A CSV file with a row for each feature. Raises CheckpointError if it can't be written."""
    names = found.measured.names
    head = ["sae", "feature", "mean_match", "returns_in", "of", "null"]
    head += [f"match_in_{name}" for name in names] + (["score"] if found.scores else [])
    with (
        replacing(Path(path), Setting("csv")) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        rows: list[list[Any]] = [head]
        for name in names:
            scores, own = found.measured.scores(name), found.scores.get(name)
            matched = {
                other: found.measured.matched(name, other) for other in names if other != name
            }
            for feature, match in enumerate(scores.match_F):
                returns = int(scores.returns_F[feature])
                row = [name, feature, f"{match:.4f}", returns, scores.of, f"{scores.null:.4f}"]
                there = [
                    int(matched[other][feature]) if other in matched else -1 for other in names
                ]
                row += ["" if number < 0 else number for number in there]
                if found.scores:
                    row.append("" if own is None else f"{own.score_F[feature]:.1f}")
                rows.append(row)
        write_rows(file, rows)
