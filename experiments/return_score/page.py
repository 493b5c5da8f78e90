"""The tables of the study of the return score, from the raw results alone."""

import statistics
from collections.abc import Iterable
from typing import Any

from scipy.stats import t

from dictionary_learning_ext.features.codes import CODE_MEASURES
from experiments.pages import table
from experiments.raw_results import about_line
from experiments.return_score.settings import ARMS, TESTS, UNSEEN

Content = dict[str, Any]
Row = dict[str, Any]
SEEN = TESTS[UNSEEN][0].seeds
FIFTHS = ("5", "4", "3", "2", "1")
FIFTH_HEADS = ["top fifth", "second", "third", "fourth", "lowest"]
LEAST, AHEAD = 0.80, 0.05
"""The AUC that a setting needs to pass in every pair, and how much more than a single signal's."""


def tables(content: Content) -> list[str]:
    """The page below its command."""
    return [
        *_fit_lines(content["fit"]),
        *(
            _test_lines(content)
            + _fifth_lines(content["tests"])
            + _calibration_lines(content["tests"])
            if content["tests"]
            else []
        ),
        *_code_lines(content.get("codes", [])),
        *_cost_lines(content.get("cost")),
        "## Parts",
        "",
        *(f"- {part}: {about_line(own)}" for part, own in content["parts"].items()),
    ]


def best_single(fit: dict[str, Any], arm: str) -> str:
    """The signal with the highest AUC by itself on the fitting seeds."""
    return max(fit["alone"][arm], key=lambda name: fit["alone"][arm][name][1])


def _fit_lines(fit: dict[str, Any]) -> list[str]:
    names = list(max((fit["alone"][arm] for arm in ARMS), key=len))
    rows = {}
    for name in names:
        cells = []
        for arm in ARMS:
            sign, value = fit["alone"][arm].get(name, (0, 0.0))
            cells.append(f"{value:.3f}{' (low)' if sign < 0 else ''}" if sign else "")
        rows[name] = cells
    rows["share that returns"] = [f"{fit['returning'][arm]:.1%}" for arm in ARMS]
    lines = ["## Signals alone", "", *table("AUC on the fitting seeds", rows, list(ARMS)), ""]
    for name, path in fit["paths"].items():
        steps = {
            ("all" if not i else f"without {_dropped(path, i)}"): [
                f"{step['auc'].get(arm, float('nan')):.3f}" for arm in path[0]["auc"]
            ]
            for i, step in enumerate(path)
        }
        lines += [
            f"## Left out one by one: {name}",
            "",
            f"Chosen: {', '.join(fit['chosen'][name])}.",
            "",
            *table("cross-validated AUC", steps, list(path[0]["auc"])),
            "",
        ]
    return lines


def _dropped(path: list[dict[str, Any]], i: int) -> str:
    (name,) = set(path[i - 1]["signals"]) - set(path[i]["signals"])
    return name


def of_parts(rows: list[Row], setting: str, arm: str) -> dict[str, list[Row]]:
    """An arm's rows at a setting, by their group of seeds."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row["setting"] == setting and row["arm"] == arm:
            found.setdefault(row["part"], []).append(row)
    return found


def passes(parts: dict[str, list[Row]], single: str) -> bool:
    """Whether an arm passes at a setting, by the groups of seeds that were measured."""
    for rows in parts.values():
        value, signal, rate = (
            statistics.mean(each)
            for each in (
                [row["auc"] for row in rows],
                [row["alone"][single] for row in rows],
                [row["alone"]["firing_rate"] for row in rows],
            )
        )
        if value < LEAST or value < max(signal, rate) + AHEAD:
            return False
    return bool(parts)


def _test_lines(content: Content) -> list[str]:
    lines = ["## Tests", ""]
    heads = [
        "AUC",
        "best single signal",
        "firing rate",
        "best one here",
        "passes",
        "returns",
        "top fifth",
        "FVE",
    ]
    for setting in TESTS:
        rows = {}
        for arm in ARMS:
            parts = of_parts(content["tests"], setting, arm)
            if not parts:
                continue
            single = best_single(content["fit"], arm)
            every = [row for each in parts.values() for row in each]
            rows[arm] = [
                _each([statistics.mean(r["auc"] for r in each) for each in parts.values()]),
                f"{_mean([r['alone'][single] for r in every]):.3f} ({single})",
                f"{_mean([r['alone']['firing_rate'] for r in every]):.3f}",
                _best_here(every),
                _verdict(parts, single, len(TESTS[setting])),
                f"{_mean([r['returning'] for r in every]):.1%}",
                f"{_mean(_known(r['fifths']['5'] for r in every)):.1%}",
                f"{_mean([r['fve'] for r in every]):.4f}",
            ]
        if rows:
            lines += [f"### {setting}", "", *table("", rows, heads), ""]
    return lines


def _verdict(parts: dict[str, list[Row]], single: str, wanted: int) -> str:
    verdict = "yes" if passes(parts, single) else "no"
    return verdict if len(parts) == wanted else f"{verdict}, {len(parts)} of {wanted} groups"


def _best_here(rows: list[Row]) -> str:
    """The signal that does best at the test, which nobody could know before."""
    means = {name: _mean([row["alone"][name] for row in rows]) for name in rows[0]["alone"]}
    best = max(means, key=lambda name: means[name])
    return f"{means[best]:.3f} ({best})"


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _fifth_lines(tests: list[Row]) -> list[str]:
    rows = {}
    for setting in TESTS:
        for arm in ARMS:
            own = [row for row in tests if row["setting"] == setting and row["arm"] == arm]
            if own:
                rows[f"{setting}: {arm}"] = [
                    f"{_mean(known):.1%}"
                    if (known := _known(r["fifths"][fifth] for r in own))
                    else "–"
                    for fifth in FIFTHS
                ]
    return ["## Share that returns, by fifth of the score", "", *table("", rows, FIFTH_HEADS), ""]


def _calibration_lines(tests: list[Row]) -> list[str]:
    """The share that returns in each fifth, fitted on two SAEs and looked up in the third of UNSEEN."""
    rows = {}
    for arm in ARMS:
        own = [row for row in tests if row["setting"] == UNSEEN and row["arm"] == arm]
        if not own:
            continue
        cells = []
        for fifth in FIFTHS:
            off = []
            for third in SEEN:
                fitted = [r["fifths"][fifth] for r in own if third not in (r["seed"], r["other"])]
                seen = [r["fifths"][fifth] for r in own if r["seed"] == third]
                off.append(abs(_mean(fitted) - _mean(seen)))
            cells.append(f"{_mean(off):.1%}")
        rows[arm] = cells
    return [
        "## What one more seed says of the level",
        "",
        f"At {UNSEEN}: the share of each fifth that returns between two SAEs, less that of the third one.",
        "",
        *table("mean absolute difference", rows, FIFTH_HEADS),
        "",
    ]


def _code_lines(rows: list[Row]) -> list[str]:
    lines = (
        ["## Codes", "", "Mean over pairs, with its 95% confidence interval (t).", ""]
        if rows
        else []
    )
    for setting in dict.fromkeys(row["setting"] for row in rows):
        of_arm = {
            arm: [row for row in rows if (row["setting"], row["arm"]) == (setting, arm)]
            for arm in ARMS
        }
        cells = {
            measure.label: [interval([row[measure.key] for row in own]) for own in of_arm.values()]
            for measure in CODE_MEASURES
            if all(measure.key in row for own in of_arm.values() for row in own)
        }
        lines += [f"### {setting}", "", *table("", cells, list(of_arm)), ""]
    return lines


def interval(values: list[float]) -> str:
    """The mean and its 95% confidence interval; of one value, the value."""
    mean = _mean(values)
    if len(values) == 1:
        return f"{mean:.3f}"
    half = float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:.3f} ({mean - half:.3f} to {mean + half:.3f})"


def _cost_lines(cost: dict[str, Any] | None) -> list[str]:
    if cost is None:
        return []
    seconds = {name: [f"{value:.1f}" for value in each] for name, each in cost["seconds"].items()}
    heads = ["first", "second", "third"]
    title = f"seconds for {cost['tokens']:,} tokens"
    return [
        "## Cost",
        "",
        "Of a TopK SAE with D = 512, F = 16,384, k = 64. The evaluation is without the language model's loss.",
        "",
        *table(title, seconds, heads),
        "",
    ]


def _mean(values: list[float]) -> float:
    return statistics.mean(values)


def _each(values: list[float]) -> str:
    return " / ".join(f"{value:.3f}" for value in values)
