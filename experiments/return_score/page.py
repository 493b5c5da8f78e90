"""The tables of the study of the return score, from the raw results alone."""

import statistics
from typing import Any

from dictionary_learning_ext.features.codes import CODE_MEASURES
from experiments.pages import spread, table
from experiments.raw_results import about_line
from experiments.return_score.settings import ARMS, TESTS, UNSEEN

Content = dict[str, Any]
Row = dict[str, Any]
SEEN = TESTS[UNSEEN][0].seeds
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
    """Whether an arm passes at a setting: in every group of seeds."""
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
    heads = ["AUC", "best single signal", "firing rate", "passes", "returns", "top fifth", "FVE"]
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
                "yes" if passes(parts, single) else "no",
                f"{_mean([r['returning'] for r in every]):.1%}",
                f"{_mean([r['fifths']['5'] for r in every]):.1%}",
                f"{_mean([r['fve'] for r in every]):.4f}",
            ]
        if rows:
            lines += [f"### {setting}", "", *table("", rows, heads), ""]
    return lines


def _fifth_lines(tests: list[Row]) -> list[str]:
    rows = {}
    for setting in TESTS:
        for arm in ARMS:
            own = [row for row in tests if row["setting"] == setting and row["arm"] == arm]
            if own:
                rows[f"{setting}: {arm}"] = [
                    f"{_mean([row['fifths'][fifth] for row in own if row['counts'][fifth]]):.1%}"
                    if any(row["counts"][fifth] for row in own)
                    else "–"
                    for fifth in "54321"
                ]
    heads = ["top fifth", "4", "3", "2", "lowest"]
    return ["## Share that returns, by fifth of the score", "", *table("", rows, heads), ""]


def _calibration_lines(tests: list[Row]) -> list[str]:
    """How far the share that returns in a fifth, seen in one other seed, is from that in the next one."""
    rows = {}
    for arm in ARMS:
        own = [row for row in tests if row["setting"] == UNSEEN and row["arm"] == arm]
        of_seed = {seed: [row["fifths"] for row in own if row["seed"] == seed] for seed in SEEN}
        pairs = [pair for pair in of_seed.values() if len(pair) == 2]
        if pairs:
            rows[arm] = [
                f"{_mean([abs(a[fifth] - b[fifth]) for a, b in pairs]):.1%}" for fifth in "54321"
            ]
    heads = ["top fifth", "4", "3", "2", "lowest"]
    return [
        "## What one more seed says of the level",
        "",
        f"At {UNSEEN}.",
        "",
        *table("mean absolute difference between two other seeds", rows, heads),
        "",
    ]


def _code_lines(rows: list[Row]) -> list[str]:
    lines = ["## Codes", "", "Mean ± standard deviation over pairs.", ""] if rows else []
    for setting in dict.fromkeys(row["setting"] for row in rows):
        of_arm = {
            arm: [row for row in rows if (row["setting"], row["arm"]) == (setting, arm)]
            for arm in ARMS
        }
        cells = {
            measure.label: [
                spread([row[measure.key] for row in own]) if len(own) > 1 else ""
                for own in of_arm.values()
            ]
            for measure in CODE_MEASURES
        }
        lines += [f"### {setting}", "", *table("", cells, list(of_arm)), ""]
    return lines


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
