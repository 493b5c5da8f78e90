"""What a comparison found, in plain words and in one table."""

from dataclasses import dataclass

from .analysis import Analysis, Comparison


@dataclass(frozen=True)
class Row:
    """A measure of every SAE."""

    name: str
    explanation: str
    cells: list[str]
    best: list[bool]
    """Which cells are the best; none where there is no better, or all are alike."""
    notes: list[str] | None = None
    """What stands under each cell."""


@dataclass(frozen=True)
class _Measure:
    name: str
    explanation: str
    key: str
    better: int
    """1: higher is better, -1: lower, 0: neither."""
    form: str = "{:.3f}"


_MEASURES = (
    _Measure(
        "Variance explained (FVE)",
        "share of the activations' variance that the reconstruction keeps",
        "fve",
        1,
    ),
    _Measure(
        "LM loss recovered",
        "share of the language model's performance kept when the reconstruction takes the "
        "activations' place; 0 is what zeros in their place give",
        "frac_recovered",
        1,
    ),
    _Measure("Features per token (L0)", "how many are not zero", "l0", 0, "{:.1f}"),
    _Measure(
        "Rarely used",
        "share of features selected less than half as often as the average one (near-dead at 0.5)",
        "near_dead_0.5",
        -1,
    ),
    _Measure(
        "Almost never used",
        "the same at a tenth (near-dead at 0.1)",
        "near_dead_0.1",
        -1,
    ),
    _Measure(
        "Selection stability",
        "how much of the set of selected features stays under a little noise",
        "stability_rms",
        1,
    ),
)


def table(comparison: Comparison) -> list[Row]:
    """The rows of the headline table; a dash where a folder was not evaluated."""
    analyses = comparison.analyses
    rows = []
    for measure in _MEASURES:
        values = [one.metrics.get(measure.key) for one in analyses]
        cells = ["–" if value is None else measure.form.format(value) for value in values]
        known = [value for value in values if value is not None]
        extreme = None
        if measure.better and len(known) > 1:
            extreme = max(known) if measure.better > 0 else min(known)
        best_cell = None if extreme is None else measure.form.format(extreme)
        best = [cell == best_cell for cell in cells]
        rows.append(
            Row(
                measure.name,
                measure.explanation,
                cells,
                best if not all(best) else [False] * len(best),
            )
        )
    alive = [
        f"{int(one.statistics.alive_F.sum())} of {len(one.statistics.alive_F)}" for one in analyses
    ]
    none = [False] * len(analyses)
    tokens = analyses[0].statistics.tokens
    rows.append(
        Row(
            "Alive",
            f"features selected at least once in this report's {tokens:,} tokens",
            alive,
            none,
        )
    )
    if comparison.no_map is None:
        found = [_geometry(one).dispersion for one in analyses]
        spread = [f"{mean:.3f}" for mean, _, _ in found]
        intervals = [f"{low:.3f} to {high:.3f}" for _, low, high in found]
        even = [f"{_geometry(one).evenness:.3f}" for one in analyses]
        n = len(_geometry(analyses[0]).features)
        rows += [
            Row(
                "Dispersion",
                f"mean cosine distance to the nearest other feature's direction, over {n} live "
                "features of each, with a 95% bootstrap interval",
                spread,
                none,
                intervals,
            ),
            Row(
                "Evenness of use",
                f"effective share of {n} live features: 1 if all were used alike",
                even,
                none,
            ),
        ]
    return rows


def sentences(comparison: Comparison) -> list[str]:
    """What a newcomer should know first; plain text."""
    analyses = comparison.analyses
    first = analyses[0]
    said = []
    measured = [one for one in analyses if "fve" in one.metrics]
    if measured:
        best = max(measured, key=lambda one: one.metrics["fve"])
        words = (
            f"{best.label} keeps {_percent(best.metrics['fve'])} of the activations' variance with "
            f"{best.metrics['l0']:.0f} features a token"
        )
        if best.metrics.get("frac_recovered") is not None:
            words += (
                f", and {_percent(best.metrics['frac_recovered'])} of what this layer is worth to "
                "the language model's predictions"
            )
        others = [one for one in measured if one is not best]
        if others:
            words += "; of the variance, " + ", ".join(
                f"{one.label} keeps {_percent(one.metrics['fve'])}" for one in others
            )
        said.append(words + ".")
        features = {one.label: one.metrics["l0"] for one in measured}
        if max(features.values()) > 2 * min(features.values()):
            said.append(
                "They are not equally sparse, so most rows can't be compared: features a token are "
                + ", ".join(f"{l0:.0f} of {label}'s" for label, l0 in features.items())
                + "."
            )
    else:
        said.append(
            f"{first.label} has not been evaluated: run “vsae eval {first.folder}” to measure how "
            "well it reconstructs."
        )
    dead = [float(1 - one.statistics.alive_F.double().mean()) for one in analyses]
    if max(dead) < 0.01:
        said.append("Hardly any feature is dead: over 99% of each dictionary fires in this text.")
    else:
        shares = [f"{_percent(d)} of {one.label}'s" for d, one in zip(dead, analyses, strict=True)]
        said.append(f"Features that never fire in this text: {', '.join(shares)}.")
    readable = max(analyses, key=_readable_share)
    share = _readable_share(readable)
    if share > 0:
        words = (
            f"{_percent(share)} of {readable.label}'s live features fire mostly on one token: at "
            "least half of a random sample of what they fire on is the same"
        )
        others = [one for one in analyses if one is not readable]
        if others:
            words += (
                " ("
                + ", ".join(f"{one.label}: {_percent(_readable_share(one))}" for one in others)
                + ")"
            )
        said.append(words + ".")
    return said


def _readable_share(analysis: Analysis) -> float:
    """Share of live features half of whose sampled tokens are one token."""
    contexts, alive_F = analysis.statistics.sampled, analysis.statistics.alive_F
    ids_FT = contexts.ids_FTW[:, :, contexts.at][alive_F]
    if not len(ids_FT):
        return 0.0
    same_FTT = (ids_FT[:, :, None] == ids_FT[:, None, :]) & (ids_FT >= 0)[:, None, :]
    most_F = same_FTT.sum(2).max(1).values
    return float((2 * most_F >= ids_FT.shape[1]).double().mean())


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _geometry(analysis: Analysis):
    assert analysis.geometry is not None  # only asked for where there is a map
    return analysis.geometry
