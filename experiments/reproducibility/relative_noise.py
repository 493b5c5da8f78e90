"""Does noise in units of each token win, judged by what features do? See PROTOCOL_RELATIVE.md.

    python -m experiments.reproducibility.relative_noise train     # tune, confirm, smollm2: about 28 core-hours
    python -m experiments.reproducibility.relative_noise tables    # write the page's tables again

    ... tune --arm "relative"                                  # arms whose name begins so
    ... confirm --setting "embedded, blocks.0" --first 1 --pairs 2
    ... smollm2 --arm "TopK" --pairs 0                         # only the search of its learning rate

It can be stopped at any time: an arm that has its rows for a pair of seeds is not run again. Several processes
may run at the same time, of different arms or pairs.
"""

import argparse
import math
import statistics
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch as t
from sklearn.metrics import roc_auc_score

from dictionary_learning_ext.evaluation.folders import open_folders
from dictionary_learning_ext.features.codes import (
    CODE_MEASURES,
    CodeCollector,
    measures_of_pair,
    same_in_another,
)
from dictionary_learning_ext.features.directions import decoder_directions
from dictionary_learning_ext.features.reproducibility import RETURNING, reproducibility
from dictionary_learning_ext.features.return_score import (
    SignalCollector,
    fits,
    has_score,
    ranks,
)
from experiments.pages import save_plot, table
from experiments.raw_results import RESULTS, about_line
from experiments.reproducibility import convergence, parts
from experiments.reproducibility.convergence import (
    BOTH,
    FVE_KEPT,
    NOISE,
    PAIRS,
    PROBABILISTIC,
    SETTINGS,
    TOP_K,
    TUNING_SEEDS,
    longer,
)
from experiments.reproducibility.decisions import PRIMARY, Row, means, paired, parts_of
from experiments.reproducibility.page import SHOWN, arm_cells
from experiments.reproducibility.settings import CONFIRM, Options, Setting
from experiments.reproducibility.trainers import training_with
from experiments.stages import Page, Stages

RAW = RESULTS / "relative_noise.json"
FEATURES = RESULTS / "relative_noise"
"""What later pages need of each feature, a file for each pair of SAEs."""
NO_RELU, OWN, NORM, RELATIVE_BOTH, GATES_OFF = (
    "TopK without ReLU",
    "relative noise, own",
    "relative noise, norm",
    "relative noise and penalty",
    "Probabilistic TopK, gates off",
)
VSAES = (NOISE, BOTH, OWN, NORM, RELATIVE_BOTH)
ARMS = (TOP_K, NO_RELU, NOISE, BOTH, OWN, NORM, RELATIVE_BOTH, PROBABILISTIC, GATES_OFF)
SMOLLM2 = tuple(name for name in CONFIRM if name.startswith("SmolLM2"))
"""Its learning rates are searched at the first."""
PLANNED = dict(zip((*SETTINGS, *SMOLLM2), (7, 4, 4, 2, 2), strict=True))
"""How many pairs of seeds the confirmation has, by setting."""
PLANNED_AGAIN = 3
"""Of an arm whose choice is the one of the comparison at convergence."""
LR_FACTORS = (0.5, 1.0, 2.0)
DRAWN = {
    TOP_K: ("TopK", "black"),
    BOTH: ("vSAE", "crimson"),
    PROBABILISTIC: (PROBABILISTIC, "grey"),
}
"""The label and the colour of the arms that the plot shows."""
CODE_TOKENS = 50_000
NEAR_DEAD_KEPT = 0.01
LEAST_SATISFIED = 2
"""Of the three embedded settings, so that a vSAE becomes the preset."""
AT_ONCE = 4
"""SAEs that one run trains on one buffer, so that not much is lost where it is stopped."""
_OF_CODES = {each.key: each.label for each in CODE_MEASURES}
MEASURES = {
    "fve": SHOWN["fve"],
    "frac_recovered": SHOWN["frac_recovered"],
    "same": _OF_CODES["same"],
    "same_energy": _OF_CODES["same_energy"],
    "jaccard": _OF_CODES["jaccard"],
    "returning_0.7": SHOWN["returning_0.7"],
    "returning_0.7_not_near_dead": _OF_CODES["returning_0.7_not_near_dead"],
    "near_dead_0.1": SHOWN["near_dead_0.1"],
    "stability_rms": SHOWN["stability_rms"],
    PRIMARY: SHOWN[PRIMARY],
}
"""In the protocol's order."""


_SAID = {"own": "multiple", "relative": "noise", "temperature_start": "temperature"}


def _grid(
    arm: str, own: Options, knob: str, cells: dict[int, dict[float, tuple[float, ...]]]
) -> dict[str, Options]:
    """An arm's candidates, by name.

    Arguments:
        cells: by batch size and learning rate, the values of the knob.
    """
    return {
        f"{arm}, {_SAID.get(knob, knob)} {value:g}, batch {batch}, lr {lr:g}": own
        | {knob: value, "batch": batch, "lr": lr}
        for batch, by_lr in cells.items()
        for lr, values in by_lr.items()
        for value in values
    }


def _scales(
    arm: str, own: Options, knob: str, low: float, middle: float, high: float
) -> dict[str, Options]:
    """The candidates of one of the two scales: as many of each."""
    found = _grid(
        arm,
        own,
        knob,
        {
            512: dict.fromkeys((4e-3, 8e-3), (low, middle, high)),
            256: dict.fromkeys((2e-3, 4e-3), (middle, high)),
            1024: {4e-3: (high,)},
        },
    )
    short = {knob: high, "batch": 512, "lr": 4e-3, "until": 0.3}
    return found | {
        f"{arm}, {_SAID.get(knob, knob)} {high:g} until 30%, batch 512, lr 0.004": own | short
    }


_GATES = {"architecture": "probabilistic_top_k"}
_LRS = {256: (2e-3, 4e-3), 512: (2e-3, 4e-3, 8e-3), 1024: (2e-3, 4e-3)}
CANDIDATES: dict[str, dict[str, Options]] = {
    OWN: _scales(OWN, {"trainer": "own"}, "own", 0.9, 1.36, 1.81),
    NORM: _scales(NORM, {}, "relative", 0.15, 0.3, 0.6),
    TOP_K: {
        f"{TOP_K}, batch 256, lr {lr:g}": {"architecture": "top_k", "batch": 256, "lr": lr}
        for lr in (2e-3, 4e-3)
    },
    NO_RELU: {
        f"{NO_RELU}, batch {batch}, lr {lr:g}": {"batch": batch, "lr": lr}
        for batch, lrs in _LRS.items()
        for lr in lrs
    },
    GATES_OFF: _grid(
        GATES_OFF,
        _GATES | {"trainer": "gates off"},
        "temperature_start",
        {
            512: dict.fromkeys((4e-3, 8e-3), (0.5, 1.0, 2.0)),
            256: dict.fromkeys((2e-3, 4e-3), (1.0,)),
            1024: {4e-3: (1.0,)},
        },
    ),
    PROBABILISTIC: _grid(
        PROBABILISTIC, _GATES, "temperature_start", {256: dict.fromkeys((2e-3, 4e-3), (0.5, 1.0))}
    ),
    NOISE: _grid(NOISE, {}, "noise", {256: dict.fromkeys((2e-3, 4e-3), (0.1, 0.3))}),
    BOTH: _grid(BOTH, {"noise": 0.3}, "penalty", {256: dict.fromkeys((2e-3, 4e-3), (0.01, 0.03))}),
}
"""By arm and name, in the order in which they are searched. Those of the first protocol's tuning are candidates
too: see `searched`. What relative noise and penalty are follows from the better scale: see `with_penalty`."""


def with_penalty(content: dict[str, Any]) -> dict[str, Options]:
    """The candidates of relative noise and penalty: the choice of the better scale, with a penalty. Empty before the
    two scales have been searched."""
    scale = better_scale(content)
    if scale is None:
        return {}
    chosen_options = CANDIDATES[scale[0]][scale[1]]
    return {
        f"{RELATIVE_BOTH}, penalty {penalty:g}, batch {batch}, lr {lr:g}": chosen_options
        | {"penalty": penalty, "batch": batch, "lr": lr}
        for batch, lrs in ((512, (4e-3, 8e-3)), (256, (2e-3, 4e-3)))
        for lr in lrs
        for penalty in (0.01, 0.03)
    }


def candidates(content: dict[str, Any]) -> dict[str, dict[str, Options]]:
    """All of each arm, by name: of the present arms those of the first protocol's tuning too, which had the same
    setting, tokens and seeds."""
    first, later = convergence.CANDIDATES, {RELATIVE_BOTH: with_penalty(content)}
    return {arm: first.get(arm, {}) | (CANDIDATES | later)[arm] for arm in ARMS}


def tune(arguments: argparse.Namespace) -> None:
    t.set_num_threads(arguments.threads)
    for arm in (*CANDIDATES, RELATIVE_BOTH):
        if not arm.startswith(arguments.arm):
            continue
        named = with_penalty(parts.read(RAW)) if arm == RELATIVE_BOTH else CANDIDATES[arm]
        _run("tuning", "tuning", CONFIRM[SETTINGS[0]], named, TUNING_SEEDS)


def confirm(arguments: argparse.Namespace) -> None:
    t.set_num_threads(arguments.threads)
    arms = {arm: own for arm, own in confirmed_arms().items() if arm.startswith(arguments.arm)}
    _confirm(SETTINGS, arms, arguments)


def _confirm(names: Iterable[str], arms: dict[str, Options], arguments: argparse.Namespace) -> None:
    for name in (name for name in names if name.startswith(arguments.setting)):
        for seeds in PAIRS[: PLANNED[name]][arguments.first :][: arguments.pairs]:
            _run("confirm", name, confirmed_setting(name), arms, seeds)


def confirmed_setting(name: str) -> Setting:
    """A setting as the confirmation has it."""
    setting = longer(CONFIRM[name]) if name in SETTINGS else CONFIRM[name]
    return replace(setting, dtype="float32") if name == convergence.IN_FLOAT32 else setting


def confirmed_arms() -> dict[str, Options]:
    """Each arm's choice. Raises SystemExit before all candidates have been searched."""
    content = parts.read(RAW)
    found, named = chosen(content), candidates(content)
    if found is None:
        raise SystemExit(
            f"no candidates are chosen: expected the rows of all of them in {RAW.name}; type: "
            "python -m experiments.reproducibility.relative_noise tune"
        )
    return {arm: named[arm][name] for arm, name in found.items()}


def smollm2(arguments: argparse.Namespace) -> None:
    """Search the arms' learning rates, then confirm the choices."""
    t.set_num_threads(arguments.threads)
    named = _require_smollm2()
    own = {arm: rates for arm, rates in named.items() if arm.startswith(arguments.arm)}
    rates = {name: options for of_arm in own.values() for name, options in of_arm.items()}
    _run("tuning", SMOLLM2[0], CONFIRM[SMOLLM2[0]], rates, TUNING_SEEDS)
    if not arguments.pairs:
        return
    rows = _smollm2_search(parts.read(RAW))
    found = choices({TOP_K: named[TOP_K]} | own, _fve_and_return(rows))
    if found is None:
        raise SystemExit(
            f"no learning rate is chosen: expected {TOP_K}'s rows of the search in {RAW.name}; type: "
            f'python -m experiments.reproducibility.relative_noise smollm2 --arm "{TOP_K}" --pairs 0'
        )
    _confirm(SMOLLM2, {arm: own[arm][found[arm]] for arm in own}, arguments)


def _require_smollm2() -> dict[str, dict[str, Options]]:
    """The candidates. Raises SystemExit where the rows don't say yet which arms these are."""
    confirmed_arms()
    content = parts.read(RAW)
    for arms in rivals(content):
        if better(content, arms) is None:
            missing = [name for name in SETTINGS if not _of_all(content, name, arms)]
            raise SystemExit(
                f"the better of {arms[0]} and {arms[1]} isn't known: expected a pair of both and of {TOP_K} in "
                f"{RAW.name} at each embedded setting, found none at {'; '.join(missing)}; type: python -m "
                f'experiments.reproducibility.relative_noise confirm --setting "{missing[0]}" --pairs 1'
            )
    return smollm2_candidates(content)


def smollm2_candidates(content: dict[str, Any]) -> dict[str, dict[str, Options]]:
    """The learning rates of each arm that is run on SmolLM2, by arm and name. Empty before the embedded
    confirmation says which arms these are."""
    found, named, arms = chosen(content), candidates(content), smollm2_arms(content)
    if found is None or not found.keys() >= {*arms}:
        return {}
    # The same multiple of upstream's rule, 2e-4 / sqrt(F / 2^14), is this times the rate at the embedded model's F.
    scale = math.sqrt(CONFIRM[SETTINGS[0]].dict_size / CONFIRM[SMOLLM2[0]].dict_size)
    rates: dict[str, dict[str, Options]] = {}
    for arm in arms:
        own = named[arm][found[arm]]
        lrs = [factor * scale * own["lr"] for factor in LR_FACTORS]
        rates[arm] = {f"{arm}, lr {lr:.3g}": own | {"lr": lr} for lr in lrs}
    return rates


def _smollm2_search(content: dict[str, Any]) -> list[Row]:
    return parts_of(content, "tuning", SMOLLM2[0])


def _run(
    stage: str, name: str, setting: Setting, arms: dict[str, Options], seeds: tuple[int, int]
) -> None:
    """Train and measure arms at equal tokens. Those of one batch size and trainer share a buffer."""
    tokens = setting.steps * setting.batch
    groups: dict[tuple[int, str | None], list[str]] = {}
    for arm, options in arms.items():
        key = int(options.get("batch", setting.batch)), options.get("trainer")
        groups.setdefault(key, []).append(arm)
    for (batch, trainer), of_group in groups.items():
        sized = replace(setting, batch=batch, steps=tokens // batch)
        for first in range(0, len(of_group), AT_ONCE):
            own = {
                arm: {knob: value for knob, value in arms[arm].items() if knob != "batch"}
                for arm in of_group[first : first + AT_ONCE]
            }
            measure = _Codes(stage, name, seeds)
            with training_with(trainer):
                parts.run_part(stage, name, sized, own, seeds, RAW, measure)


def features_file(setting: str, arm: str, seed: int) -> Path:
    """What is kept of the features of a pair of SAEs, by the pair's first seed."""
    name = parts.seed_folder("", setting, seed).parent.name
    return FEATURES / f"{name}_{parts.arm_folder_name(arm)}_{seed}.npz"


class _Codes:
    """Measures what two seeds' SAEs do on held-out tokens. Of the confirmation, keeps what later pages need."""

    def __init__(self, stage: str, name: str, seeds: tuple[int, int]):
        self._stage, self._name, self._seeds = stage, name, seeds

    def __call__(self, one: Path, other: Path) -> dict[str, Any]:
        folders = [str(one), str(other)]
        opened = open_folders(folders)
        saes = {folder: opened.saes[folder][0] for folder in folders}
        coders = {folder: CodeCollector(sae) for folder, sae in saes.items()}
        signals = {folder: SignalCollector(sae) for folder, sae in saes.items() if has_score(sae)}
        for x_BD in opened.held_out(CODE_TOKENS):
            for collector in (*coders.values(), *signals.values()):
                collector.add(x_BD)
        a, b = (coders[folder].codes() for folder in folders)
        measured = reproducibility({f: decoder_directions(sae) for f, sae in saes.items()})
        if self._stage == "confirm":
            kept: dict[str, np.ndarray] = {"matched_F": measured.pair.matched_F}
            of_each = zip(
                "ab",
                folders,
                (a, b),
                same_in_another(a, b),
                (measured.pair.match_F, measured.pair.match_G),
                strict=True,
            )
            for end, folder, codes, same_F, match_F in of_each:
                own = {
                    "same": same_F,
                    "match": match_F,
                    "count": codes.count_F,
                    "energy": codes.energy_F,
                }
                if folder in signals:
                    own |= signals[folder].scores().signals
                kept |= {f"{key}_{end}": np.asarray(v, dtype=np.float32) for key, v in own.items()}
            FEATURES.mkdir(exist_ok=True)
            file = features_file(self._name, one.name, self._seeds[0])
            np.savez_compressed(file, **kept)  # pyright: ignore[reportArgumentType]
            if self._seeds == PAIRS[0] and self._name in SETTINGS:
                halves = {
                    key: v.half() if v.is_floating_point() else v
                    for key, v in saes[folders[0]].state_dict().items()
                }
                t.save(halves, FEATURES / f"{file.stem}.ae.pt")
        return measures_of_pair(a, b, measured.pair)


def train(arguments: argparse.Namespace) -> None:
    tune(arguments)
    confirm(arguments)
    smollm2(arguments)


# --- what decides


Found = dict[str, tuple[float, float]]
"""FVE and return of candidates, by name."""


def searched(content: dict[str, Any]) -> Found:
    """Of every candidate that has been searched on the embedded model."""
    return _fve_and_return(
        convergence.tuned(parts.read(convergence.RAW)) + parts_of(content, "tuning", "tuning")
    )


def _fve_and_return(rows: list[Row]) -> Found:
    return {
        name: (
            statistics.mean(means(rows, name, "fve")),
            statistics.mean(means(rows, name, PRIMARY)),
        )
        for name in {row["arm"] for row in rows}
    }


def choices(named: Mapping[str, Collection[str]], found: Found) -> dict[str, str] | None:
    """Each arm's candidate: the one that returns most of those that keep an FVE; if none does, the one with the
    highest. TopK must keep that of its best candidate, the others that of the chosen TopK. None before all of them
    have been searched.

    Arguments:
        named: the names of each arm's candidates. TopK is among the arms.
    """
    if not found.keys() >= {name for names in named.values() for name in names}:
        return None

    def choice(names: Collection[str], least_fve: float) -> str:
        kept = [name for name in names if found[name][0] >= least_fve]
        return max(kept or names, key=lambda name: found[name][1 if kept else 0])

    best = max(found[name][0] for name in named[TOP_K])
    top_k = choice(named[TOP_K], best - FVE_KEPT)
    others = {arm: names for arm, names in named.items() if arm != TOP_K}
    least = found[top_k][0] - FVE_KEPT
    return {TOP_K: top_k} | {arm: choice(names, least) for arm, names in others.items()}


def better_scale(content: dict[str, Any]) -> tuple[str, str] | None:
    """The arm of the better of the two scales, and its choice; None before both have been searched."""
    top_k = [*convergence.CANDIDATES[TOP_K], *CANDIDATES[TOP_K]]
    both = [*CANDIDATES[OWN], *CANDIDATES[NORM]]
    found = choices({TOP_K: top_k, "scale": both}, searched(content))
    if found is None:
        return None
    name = found["scale"]
    return OWN if name in CANDIDATES[OWN] else NORM, name


def chosen(content: dict[str, Any]) -> dict[str, str] | None:
    """Each arm's candidate, but for the worse scale's; None before all have been searched."""
    scale, named = better_scale(content), candidates(content)
    if scale is None:
        return None
    left_out = {OWN, NORM} - {scale[0]}
    return choices(
        {arm: own for arm, own in named.items() if arm not in left_out}, searched(content)
    )


def satisfies(rows: list[Row], arm: str) -> dict[str, bool] | None:
    """By what a vSAE satisfies a setting, each with whether it does; None before it has a pair beside TopK's."""
    pairs = paired(rows, arm, TOP_K, "same")
    if not pairs:
        return None
    fve, dead = (
        statistics.mean(paired(rows, arm, TOP_K, measure)) for measure in ("fve", "near_dead_0.1")
    )
    return {
        "FVE": fve >= -FVE_KEPT,
        "near-dead": dead <= NEAR_DEAD_KEPT,
        "same in every pair": min(pairs) > 0,
    }


def rivals(content: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """The pairs of vSAEs of which the better one is run on SmolLM2. There are none before the better scale is known."""
    scale = better_scale(content)
    return () if scale is None else ((NOISE, BOTH), (scale[0], RELATIVE_BOTH))


def smollm2_arms(content: dict[str, Any]) -> list[str]:
    """What is run on SmolLM2. Where it isn't decided yet, "one or other"."""
    vsaes = [better(content, arms) or " or ".join(arms) for arms in rivals(content)]
    return [TOP_K, *vsaes, PROBABILISTIC]


def better(content: dict[str, Any], arms: tuple[str, ...]) -> str | None:
    """The arm of the better standing, on the pairs that these arms and TopK have; None before each setting has one.
    The arm whose learning rate has been searched on SmolLM2 stays."""
    there = {row["arm"].rpartition(", lr ")[0] for row in _smollm2_search(content)}
    if begun := [arm for arm in arms if arm in there]:
        return begun[0]
    found = _standings(content, arms)
    return max(found, key=found.__getitem__) if found else None


def recommended(content: dict[str, Any]) -> str | None:
    """The vSAE that the package's preset becomes; None if none satisfies two settings, or before each has a pair."""
    found = _standings(content, tuple(arm for arm in VSAES if arm in (chosen(content) or ())))
    best = max(found, key=found.__getitem__, default=None)
    return best if best is not None and found[best][0] >= LEAST_SATISFIED else None


def _standings(content: dict[str, Any], arms: tuple[str, ...]) -> dict[str, tuple[int, float]]:
    """How many of the embedded settings each arm satisfies, and its mean share that does the same. On the pairs
    that all of these arms and TopK have; empty before each setting has one."""
    settings = [_of_all(content, name, arms) for name in SETTINGS]
    if not all(settings):
        return {}
    found = {}
    for arm in arms:
        verdicts = [satisfies(rows, arm) or {"": False} for rows in settings]
        shares = [statistics.mean(means(rows, arm, "same")) for rows in settings]
        found[arm] = sum(all(each.values()) for each in verdicts), statistics.mean(shares)
    return found


def _of_all(content: dict[str, Any], name: str, arms: tuple[str, ...]) -> list[Row]:
    """A setting's rows of the pairs that TopK and all of these arms have."""
    rows = parts_of(content, "confirm", name)
    has = [{row["part"] for row in rows if row["arm"] == arm} for arm in (TOP_K, *arms)]
    return [row for row in rows if row["part"] in set.intersection(*has)]


# --- the page


def tables(content: dict[str, Any]) -> list[str]:
    found, scale = chosen(content), better_scale(content)
    names = "not yet" if found is None else "; ".join(found.values())
    lines = [
        f"Better scale: {scale[0] if scale else 'not yet'}. Chosen: {names}. For the preset: "
        f"{recommended(content) or 'none yet'}.",
        "",
    ]
    for name in PLANNED:
        if rows := parts_of(content, "confirm", name):
            setting = confirmed_setting(name)
            tokens = setting.steps * setting.batch
            lines += [f"## {name}, {tokens:,} tokens", "", *_setting(rows), ""]
    if aucs := score_aucs(content):
        lines += ["## The return score on these SAEs", "", *aucs, ""]
    if missing := not_run(content):
        lines += ["## Planned and not run", "", *missing, ""]
    rows = parts_of(content, "tuning", "tuning")
    for arm, named in candidates(content).items():
        lines += _tuning(f"## Tuning: {arm}", rows, named, found)
    rows, rates = _smollm2_search(content), smollm2_candidates(content)
    found = choices(rates, _fve_and_return(rows)) if rates else None
    for arm, named in rates.items():
        lines += _tuning(f"## Tuning, {SMOLLM2[0]}: {arm}", rows, named, found)
    told = (f"- {part}: {about_line(own)}" for part, own in sorted(content["parts"].items()))
    return [*lines, "## Parts", "", *told]


def _tuning(
    title: str, rows: list[Row], named: Iterable[str], found: dict[str, str] | None
) -> list[str]:
    """The table of an arm's candidates; the choice is bold. Nothing if none has been searched."""
    there = {row["arm"] for row in rows}
    shown = {
        f"**{name}**" if found and name in found.values() else name: arm_cells(rows, name, MEASURES)
        for name in named
        if name in there
    }
    return [title, "", *table("", shown, list(MEASURES.values())), ""] if shown else []


def score_aucs(content: dict[str, Any]) -> list[str]:
    """How the package's return score, which was fitted on other SAEs, orders these: by return as a direction, and
    in function. Means over the SAEs."""
    cells = {}
    for name in PLANNED:
        for arm in ARMS:
            files = [
                file
                for row in parts_of(content, "confirm", name)
                if row["arm"] == arm and "same" in row
                if (file := features_file(name, arm, int(row["part"].split()[-2][:-1]))).exists()
            ]
            found = [one for file in files for one in score_of_two(arm, file)]
            if found:
                means_of = np.mean(found, axis=0)
                cells[f"{name}: {arm}"] = [str(len(found)), *(f"{one:.2f}" for one in means_of)]
    heads = ["SAEs", "AUC, direction", "AUC, function", "top fifth in function", "lowest fifth"]
    return table("", cells, heads) if cells else []


def score_of_two(arm: str, file: Path) -> list[list[float]]:
    """Of each SAE of a pair: the two AUCs, and the shares of the top and the lowest fifth that do the same."""
    kept, of_each = np.load(file), []
    fit = fits()["with_noise" if arm in VSAES else "without_noise"]
    for end in "ab":
        signals = {name: kept[f"{name}_{end}"] for name in fit.rank}
        score_F = np.where(kept[f"count_{end}"] > 0, fit.log_odds(ranks(signals)), -np.inf)
        place_F = score_F.argsort().argsort() / len(score_F)
        by_direction_F, same_F = (
            kept[f"match_{end}"] >= RETURNING[0],
            kept[f"same_{end}"] >= RETURNING[0],
        )
        aucs = [roc_auc_score(own_F, place_F) for own_F in (by_direction_F, same_F)]
        of_each.append([*aucs, same_F[place_F >= 0.8].mean(), same_F[place_F < 0.2].mean()])
    return of_each


def not_run(content: dict[str, Any]) -> list[str]:
    """The pairs of the confirmation that are missing, a line for each setting that lacks some."""
    found = chosen(content)
    before = convergence.chosen(parts.read(convergence.RAW)) or {}
    if found is None:
        return []
    lines = []
    for name, pairs in PLANNED.items():
        rows = parts_of(content, "confirm", name)
        planned = dict.fromkeys(smollm2_arms(content), pairs)
        if name in SETTINGS:
            planned = {
                arm: PLANNED_AGAIN if before.get(arm) == choice else pairs
                for arm, choice in found.items()
            }
        there = {arm: len(means(rows, arm, "same")) for arm in planned}
        missing = [f"{arm} ({there[arm]} of {n})" for arm, n in planned.items() if there[arm] < n]
        lines += [f"- {name}, pairs: {', '.join(missing)}"] if missing else []
    return lines


def _setting(rows: list[Row]) -> list[str]:
    there = [arm for arm in ARMS if means(rows, arm, "same")]
    shown = {
        arm: [str(len(means(rows, arm, "same"))), *arm_cells(rows, arm, MEASURES)] for arm in there
    }
    lines = table("", shown, ["pairs", *MEASURES.values()])
    for arm in (arm for arm in VSAES if arm in there):
        if (found := satisfies(rows, arm)) is None:
            continue
        missed = [what for what, holds in found.items() if not holds]
        pairs = len(paired(rows, arm, TOP_K, "same"))
        verdict = "satisfies it" if not missed else f"does not, by {', '.join(missed)}"
        lines.append(f"\n{arm} (pairs: {pairs}): {verdict}.")
    return lines


def draw(content: dict[str, Any], page: Path) -> None:
    """What comes back at each setting, as a direction and in function. A dot is a pair of seeds."""
    import matplotlib.pyplot as plt

    titles = {"returning_0.7": "come back as a direction", "same": "come back in what they do"}
    figure, axes = plt.subplots(1, 2, figsize=(10, 2.8), sharey=True)
    for axis, (measure, title) in zip(axes, titles.items(), strict=True):
        for height, name in enumerate(reversed(SETTINGS)):
            rows = parts_of(content, "confirm", name)
            for number, (arm, (label, colour)) in enumerate(DRAWN.items()):
                shares = [100 * share for share in means(rows, arm, measure)]
                place = [height + 0.12 * (1 - number)] * len(shares)
                axis.plot(shares, place, "o", color=colour, label=None if height else label)
        axis.set(title=title, xlabel="features (%)", xlim=(0, 100), ylim=(-0.5, 2.5))
        axis.grid(axis="x", alpha=0.3)
    names = [name.split(", ", 1)[1].replace("F = 4D, ", "") for name in reversed(SETTINGS)]
    axes[0].set_yticks(range(len(names)), names)
    axes[1].legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    save_plot(figure, page.with_suffix(".png"), dpi=110)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--arm", default="", help="the start of an arm's name")
    parser.add_argument("--setting", default="", help="the start of a setting's name")
    parser.add_argument("--first", type=int, default=0, help="the first pair of seeds, from 0")
    parser.add_argument("--pairs", type=int, default=len(PAIRS), help="how many pairs of seeds")
    parser.add_argument("--threads", type=int, default=1, help="of torch")


STAGES = Stages(
    "reproducibility.relative_noise",
    {"train": train, "tune": tune, "confirm": confirm, "smollm2": smollm2},
    {"relative_noise": Page(tables, draw)},
    options,
)

if __name__ == "__main__":
    STAGES.run()
