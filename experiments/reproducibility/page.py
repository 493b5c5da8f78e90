"""The tables of the study and its figure, from the raw results alone."""

import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from experiments.pages import LABELS, save_plot, table
from experiments.raw_results import about_line
from experiments.reproducibility import decisions, stronger_noise
from experiments.reproducibility.decisions import (
    CONFIRM_PAIRS,
    NO_WORSE,
    PRIMARY,
    Row,
    Verdict,
    means,
    parts_of,
)
from experiments.reproducibility.settings import (
    ARMS,
    BOTH,
    CONFIRM,
    NOISE,
    PENALTIES,
    PENALTY,
    RIVAL,
    RIVALS,
    SAMPLED,
    TOP_K,
    VARIANTS,
)
from experiments.reproducibility.stronger_noise import MEASURES, STRONGER, AgainstRival

Content = dict[str, Any]
SHOWN = {
    "less_null": "PW-MCC less null",
    "pw_mcc": "PW-MCC",
    "agreement": "agreement",
    "within": "within",
    "returning_0.7": "returning, 0.7",
    "returning_0.9": "0.9",
    "fve": "FVE",
    "frac_recovered": "CE recovered",
    "near_dead_0.1": "near-dead, 0.1",
    "near_dead_0.5": "0.5",
    "stability_rms": "selection stability",
    "sae_probes": "sae_probes",
}
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
DIGITS = {"fve": 4, "frac_recovered": 4, "less_null": 4, "pw_mcc": 4, "sae_probes": 4}
COLOURS = {
    TOP_K: "black",
    PENALTY: "dodgerblue",
    NOISE: "teal",
    BOTH: "crimson",
    RIVAL: "grey",
}


def tables(content: Content) -> list[str]:
    """The page below its command."""
    found = decisions.chosen(content)
    rival = decisions.best_rival(content)
    return [
        f"Chosen in the search: {found or 'not yet'}. Best rival: {rival or 'not yet'}.",
        "",
        *_verdict_lines(content),
        *_setting_lines(content),
        *_length_lines(content),
        *_threshold_lines(content),
        *_stronger_lines(content),
        *_search_lines(content),
        "## Parts",
        "",
        *(f"- {part}: {about_line(own)}" for part, own in sorted(content["parts"].items())),
    ]


def _verdict_lines(content: Content) -> list[str]:
    lines = ["## Confirmation", ""]
    for arm in (BOTH, NOISE, RIVAL, STRONGER):
        found = decisions.verdicts(content, arm)
        if all(own is None for own in found.values()):
            continue
        p = decisions.corrected(found)
        rows = {name: _verdict_row(content, name, own, p[name]) for name, own in found.items()}
        decides = "" if arm == BOTH else " Reported; it decides nothing."
        heads = ["pairs", "over TopK", "over the penalty", "p", "corrected", "no worse", "passes"]
        lines += [f"The arm `{arm}`.{decides}", "", *table("", rows, heads), ""]
    return lines


def _verdict_row(content: Content, name: str, own: Verdict | None, p: float) -> list[str]:
    if own is None:
        return ["0", "", "", "", "", "", "not run"]
    over = [_range(own.over[other]) for other in own.over] + [""] * (2 - len(own.over))
    is_whole = own.pairs == len(CONFIRM_PAIRS)
    no_worse = [f"{own.no_worse[m]:.3f}" if m in own.no_worse else "–" for m in NO_WORSE]
    missing = [measure for measure in NO_WORSE if measure not in own.no_worse]
    passed = "yes" if decisions.passes(own, p) else "no"
    if passed == "yes" and missing:
        passed += f", but for {', '.join(missing)}, not measured"
    return [
        str(own.pairs),
        *over,
        f"{own.p:.3f}",
        f"{p:.3f}",
        ", ".join(no_worse),
        passed if is_whole else "not whole",
    ]


def _range(values: list[float]) -> str:
    return f"{statistics.mean(values):+.4f} ({min(values):+.4f} to {max(values):+.4f})"


def _setting_lines(content: Content) -> list[str]:
    lines = []
    for name in CONFIRM:
        if rows := parts_of(content, "confirm", name):
            lines += [f"### {name}", "", *_arm_table(rows), ""]
    return lines


def _length_lines(content: Content) -> list[str]:
    rows = parts_of(content, "length", "length")
    if not rows:
        return []
    return ["## Four times as long: embedded, blocks.2, 16,000 steps", "", *_arm_table(rows), ""]


def _arm_table(rows: list[Row]) -> list[str]:
    there = [arm for arm in (*ARMS, STRONGER) if any(row["arm"] == arm for row in rows)]
    return table("", {arm: arm_cells(rows, arm) for arm in there}, list(SHOWN.values()))


def arm_cells(rows: list[Row], arm: str, measures: Iterable[str] = SHOWN) -> list[str]:
    """Means over pairs, and the standard deviation over them where there are several."""
    found = []
    for measure in measures:
        values, digits = means(rows, arm, measure), DIGITS.get(measure, 3)
        if not values:
            found.append("")
            continue
        spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
        found.append(f"{statistics.mean(values):.{digits}f}{spread}")
    return found


def _threshold_lines(content: Content) -> list[str]:
    """The features that return by other thresholds than 0.7, and without those that are near-dead."""
    found = []
    for name in CONFIRM:
        rows = parts_of(content, "confirm", name)
        known = {row["arm"] for row in rows if "matches" in row}
        if there := [arm for arm in ARMS if arm in known]:
            cells = {arm: _threshold_cells(rows, arm) for arm in there}
            heads = [*(f"above {least:g}" for least in THRESHOLDS), "above 0.7, not near-dead"]
            found += [f"### {name}", "", *table("", cells, heads), ""]
    return ["## Other thresholds", "", *found] if found else []


def _threshold_cells(rows: list[Row], arm: str) -> list[str]:
    matches = [row["matches"] for row in rows if row["arm"] == arm and "matches" in row]
    above = [statistics.mean(share_above(one, least) for one in matches) for least in THRESHOLDS]
    returning = statistics.mean(means(rows, arm, "returning_0.7"))
    least, most = among_living(returning, statistics.mean(means(rows, arm, "near_dead_0.1")))
    return [*(f"{share:.3f}" for share in above), f"{least:.3f} to {most:.3f}"]


def share_above(matches: list[int], least: float) -> float:
    """Of a histogram of matches from 0 to 1, whose bins begin at `least` too: the share above."""
    return sum(matches[round(least * len(matches)) :]) / sum(matches)


def among_living(returning: float, near_dead: float) -> tuple[float, float]:
    """The share of the features that are not near-dead that return: if all near-dead ones do, and if none
    does.

    Arguments:
        returning, near_dead: shares of all features.
    """
    living = 1 - near_dead
    return max(0.0, returning - near_dead) / living, min(1.0, returning / living)


def _stronger_lines(content: Content) -> list[str]:
    """The follow-up: its confirmation, and its search."""
    rows = stronger_noise.searched(content)
    if not rows:
        return []
    found = stronger_noise.against_rival(content)
    again = (
        " That is the study's own choice again, whose rows are there."
        if stronger_noise.is_again(content)
        else ""
    )
    cells = {
        name: [
            str(len(own.over[PRIMARY])),
            *(cell for m in MEASURES for cell in _against_cells(own, m)),
        ]
        for name, own in found.items()
    }
    heads = ["pairs", *(head for m in MEASURES for head in (SHOWN[m], "p ahead, p behind"))]
    return [
        "## Follow-up: stronger noise",
        "",
        f"Chosen in its search: {stronger_noise.chosen(content) or 'none'}.{again} Against the best rival:",
        "",
        *table("", cells, heads),
        "",
        "### Its search: one pair, embedded, blocks.2, 4,000 steps",
        "",
        *_ranked(rows),
        "",
    ]


def _against_cells(own: AgainstRival, measure: str) -> list[str]:
    return [_range(own.over[measure]), f"{own.ahead[measure]:.3f}, {own.behind[measure]:.3f}"]


def _search_lines(content: Content) -> list[str]:
    rows = parts_of(content, "search", "search")
    if not rows:
        return []
    return [
        "## Search: one pair of each candidate, embedded, blocks.2, 2,000 steps",
        "",
        *_ranked(rows),
        "",
    ]


def _ranked(rows: list[Row]) -> list[str]:
    """A search's candidates, those first that return most."""
    arms = dict.fromkeys(row["arm"] for row in rows)
    ranked = sorted(arms, key=lambda arm: -means(rows, arm, PRIMARY)[0])
    return table("", {arm: arm_cells(rows, arm) for arm in ranked}, list(SHOWN.values()))


def draw(content: Content, page: Path) -> None:
    """Left, the frontier of the search; right, every pair of the confirmation."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), width_ratios=(1, 1.25))
    _draw_search(left, parts_of(content, "search", "search"), decisions.chosen(content))
    _draw_pairs(right, content)
    save_plot(figure, page.with_suffix(".png"), dpi=110)


def _draw_search(axis: Any, rows: list[Row], chosen: str | None) -> None:
    kinds = {
        "vSAE, noise on the selection": (SAMPLED, "crimson", "o"),
        "penalty alone": (PENALTIES, "dodgerblue", "h"),
        "others": (RIVALS, "grey", "s"),
        "others with that noise": (VARIANTS, "orange", "v"),
        TOP_K: ((TOP_K,), "black", "D"),
    }
    for label, (names, colour, marker) in kinds.items():
        there = [name for name in names if means(rows, name, PRIMARY)]
        points = [(means(rows, n, "fve")[0], means(rows, n, PRIMARY)[0]) for n in there]
        if points:
            axis.scatter(*zip(*points, strict=True), c=colour, marker=marker, s=28, label=label)
    if chosen is not None:
        at = means(rows, chosen, "fve")[0], means(rows, chosen, PRIMARY)[0]
        axis.plot(*at, "o", markersize=11, fillstyle="none", color="black", label="chosen")
    axis.set(xlabel=LABELS["fve"], ylabel=SHOWN[PRIMARY], title="Search: one pair each")
    axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncol=2)


def _draw_pairs(axis: Any, content: Content) -> None:
    names = list(CONFIRM)
    for row, name in enumerate(names):
        rows = parts_of(content, "confirm", name)
        for i, arm in enumerate(ARMS):
            values = means(rows, arm, PRIMARY)
            label = arm if row == 0 else None
            heights = [row + 0.12 * (i - 2)] * len(values)
            axis.plot(
                values, heights, "o", color=COLOURS[arm], markersize=4, alpha=0.7, label=label
            )
    axis.set(yticks=range(len(names)), xlabel=SHOWN[PRIMARY], title="Confirmation: every pair")
    axis.set_yticklabels(names, fontsize=8)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.grid(axis="y", alpha=0.2)
    axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncol=3)
