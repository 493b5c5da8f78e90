"""The tables of the study of threshold SAEs and of a real model, and what they decide; from the raw results alone."""

import statistics
from collections.abc import Iterable
from typing import Any

from experiments.pages import table
from experiments.raw_results import about_line

Content = dict[str, Any]
Key = tuple[str, str]
"""A setting and an architecture: one test."""
WORTH = 0.02
"""What a fit must gain in the mean and may not lose anywhere, and what one signal may lose anywhere."""
SCORES = ("today", "one fit", "one signal")


def tables(content: Content) -> list[str]:
    """The page below its command."""
    return [
        *(_fit_lines(content["fit"]) if content["fit"] else []),
        *(_test_lines(content) if content["tests"] else []),
        "## Parts",
        "",
        *_about(content["parts"]),
    ]


def _about(parts: Content) -> list[str]:
    """When and by what the parts were made, those of one day and commit together."""
    minutes: dict[str, list[float]] = {}
    for own in parts.values():
        made = about_line({name: value for name, value in own.items() if name != "minutes"})
        minutes.setdefault(made, []).append(own["minutes"])
    return [
        f"- {made}: {len(each)} parts, {sum(each):.0f} minutes" for made, each in minutes.items()
    ]


def auc_of_tests(content: Content, label: str, order: str) -> dict[Key, float]:
    """Each test's mean AUC over its SAEs, of an order by its name; without those that have none."""
    found: dict[Key, list[float]] = {}
    for row in content["tests"]:
        name = _single(content["fit"], row["arm"]) if order == "best single signal" else order
        if (value := row["auc"][label][name]) is not None:
            found.setdefault((row["setting"], row["arm"]), []).append(value)
    return {key: statistics.mean(values) for key, values in found.items()}


def replaces_fit(today: dict[Key, float], one: dict[Key, float]) -> bool:
    """Whether one fit is better in the mean by WORTH, and nowhere worse by it."""
    gain = statistics.mean(one.values()) - statistics.mean(today.values())
    return gain >= WORTH and all(one[key] > today[key] - WORTH for key in today)


def replaces_score(score: dict[Key, float], signal: dict[Key, float]) -> bool:
    """Whether one signal is within WORTH of the score at every test."""
    return all(signal[key] >= score[key] - WORTH for key in score)


def decision(content: Content) -> tuple[bool, bool]:
    """Whether the one fit replaces today's, and whether the one signal replaces the score that stays."""
    today, one, signal = (auc_of_tests(content, "direction", each) for each in SCORES)
    refitted = replaces_fit(today, one)
    return refitted, replaces_score(one if refitted else today, signal)


def _single(fit: dict[str, Any], arm: str) -> str:
    return max(fit["alone"][arm], key=lambda name: fit["alone"][arm][name][1])


def _fit_lines(fit: dict[str, Any]) -> list[str]:
    arms = list(fit["alone"])
    names = dict.fromkeys(name for own in fit["alone"].values() for name in own)
    rows = {
        name: [
            f"{own[1]:.3f}{' (low)' if own[0] < 0 else ''}"
            if (own := fit["alone"][arm].get(name))
            else ""
            for arm in arms
        ]
        for name in names
    }
    rows["share that returns"] = [f"{fit['returning'][arm]:.1%}" for arm in arms]
    signal, sign, value = fit["one_signal"]
    return [
        "## On the fitting seeds",
        "",
        *table("AUC of a signal alone", rows, arms),
        "",
        f"Margin: {', '.join(f'{name} {value:.3f}' for name, value in fit['margins'].items())}; chosen: "
        f"{fit['margin']}.",
        f"One signal: {signal}{' (low)' if sign < 0 else ''}, {value:.3f}.",
        f"One fit: {', '.join(fit['chosen'])}.",
        "",
    ]


def _test_lines(content: Content) -> list[str]:
    lines, orders = [], (*SCORES, "best single signal")
    for label in ("direction", "function"):
        found = {order: auc_of_tests(content, label, order) for order in orders}
        rows = {
            f"{setting}: {arm}": [
                f"{_mean(r['returning'][label] for r in own):.1%}",
                *(_cell(found[order].get((setting, arm))) for order in orders),
                _single(content["fit"], arm),
                *(_cell(_mean(r[name] for r in own)) for name in ("fve", "near_dead_0.1")),
                f"{_mean(r['l0'] for r in own):.1f}",
            ]
            for (setting, arm), own in _by_test(content).items()
        }
        heads = ["returns", *orders, "which", "FVE", "near-dead", "L0"]
        lines += [f"## Tests: {label}", "", *table("", rows, heads), ""]
    refitted, replaced = decision(content)
    return [
        *lines,
        f"One fit replaces today's: {'yes' if refitted else 'no'}.",
        f"One signal replaces the score: {'yes' if replaced else 'no'}.",
        "",
    ]


def _by_test(content: Content) -> dict[Key, list[dict[str, Any]]]:
    found: dict[Key, list[dict[str, Any]]] = {}
    for row in content["tests"]:
        found.setdefault((row["setting"], row["arm"]), []).append(row)
    return found


def _mean(values: Iterable[float]) -> float:
    return statistics.mean(values)


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
