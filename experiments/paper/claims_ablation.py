"""The paper's claims of section 4.1, figures 4 and 5, and what section 5 makes of them: SCR and TPP."""

import statistics
from collections.abc import Callable
from operator import neg, pos

from experiments.paper.paper_results import BENCHED, PaperResults
from experiments.paper.verdicts import (
    HOLDS,
    KINDS,
    Cells,
    Claim,
    judged,
    minus,
    shown,
    turned,
    word,
)

Curve = dict[str, float]
"""By N, the number of features ablated."""
LARGE = ("20", "50")


def mean_of(*ns: str) -> Callable[[Curve], float]:
    """Over these N; over all if none is named."""
    return lambda curve: statistics.mean(curve[n] for n in ns or curve)


def peak(curve: Curve) -> float:
    return max(curve.values())


def peak_at(curve: Curve) -> float:
    return float(max(curve, key=lambda n: curve[n]))


def decline(curve: Curve) -> float:
    """From the peak to the largest N."""
    return peak(curve) - curve[max(curve, key=int)]


def cells(raw: PaperResults, metric: str, model: str, of: Callable[[Curve], float]) -> Cells:
    """By k/F, a number of each seed's curve."""
    return {f"1/{r}": [of(row[metric]) for row in raw.bench(model, 4, r)] for r in BENCHED}


def differences(raw: PaperResults, metric: str, model: str, of: Callable[[Curve], float]) -> Cells:
    """The same minus TopK's."""
    return minus(cells(raw, metric, model, of), cells(raw, metric, "TopK", of))


def claims(raw: PaperResults) -> list[Claim]:
    """All of them, from the paper's own beta only: SAE Bench was not run on the weaker ones."""

    def compare(
        says: str, metric: str, of: Callable[[Curve], float], turn: Callable[[float], float] = pos
    ) -> Claim:
        rows = []
        for kind in KINDS:
            found = differences(raw, metric, f"{kind}, beta 1", of)
            rows.append((kind, shown(found), judged(turned(found, turn))))
        return Claim(says, rows)

    def smaller_dictionary(metric: str) -> Claim:
        """Is a gain gone when both are masked to equally many features?"""
        rows = []
        for kind in KINDS:
            model = f"{kind}, beta 1"
            gains = differences(raw, metric, model, mean_of(*LARGE))
            left = differences(raw, metric + "_matched", model, mean_of(*LARGE))
            moot = [label for label, gain in gains.items() if word(gain) != HOLDS]
            gone = {label: values for label, values in left.items() if label not in moot}
            verdicts = [judged(turned(gone, neg))] * bool(gone)
            verdicts += [f"no gain to explain at {', '.join(moot)}"] * bool(moot)
            rows.append((kind, f"left of it: {shown(left)}", "; ".join(verdicts)))
        name = metric.upper()
        return Claim(
            f"5: the gains reflect a smaller dictionary ({name}, N = 20 and 50, both masked to equally "
            "many features)",
            rows,
        )

    def where(metric: str) -> Claim:
        """The N of the peak."""
        name, peaks = metric.upper(), {"scr": (32, 64), "tpp": (8, 64)}[metric]
        rows = []
        for kind in KINDS:
            later = differences(raw, metric, f"{kind}, beta 1", peak_at)
            medians = {
                model: ", ".join(
                    f"{statistics.median(ns):g} at {label}"
                    for label, ns in cells(raw, metric, model, peak_at).items()
                )
                for model in (f"{kind}, beta 1", "TopK")
            }
            numbers = "; TopK: ".join(medians.values())
            rows.append((kind, f"median N of the peak, 50 at most: {numbers}", judged(later)))
        return Claim(f"4.1: {name} peaks later (N = {peaks[0]} for TopK, {peaks[1]} for it)", rows)

    return [
        compare("Abstract, 4.1: SCR is higher at every k (mean over N)", "scr", mean_of()),
        compare("4.1: above all at large N (20 and 50)", "scr", mean_of(*LARGE)),
        compare("4.1: its peak is higher", "scr", peak),
        where("scr"),
        compare(
            "4.1: it loses less of it at large N, where TopK falls steeply", "scr", decline, neg
        ),
        smaller_dictionary("scr"),
        compare("Abstract, 4.1: TPP is higher (mean over N)", "tpp", mean_of()),
        compare("4.1: at small N (2 and 5), where TopK peaks", "tpp", mean_of("2", "5")),
        compare("4.1: at large N (20 and 50)", "tpp", mean_of(*LARGE)),
        compare("4.1: its peak is higher", "tpp", peak),
        where("tpp"),
        smaller_dictionary("tpp"),
        compare("4.1: TopK's intended effects are larger", "tpp_intended", mean_of(), neg),
        compare("4.1: its unintended effects are smaller", "tpp_unintended", mean_of(), neg),
        selectivity(raw),
        cause(raw),
        Claim(
            "4.1: a higher threshold means fewer, stronger features",
            [
                (
                    "all",
                    "N is how many features are ablated (SAE Bench), most attributed first",
                    "**does not hold**, by definition",
                )
            ],
        ),
    ]


def selectivity(raw: PaperResults) -> Claim:
    """Intended over unintended effect, both summed over N."""

    def ratios(model: str) -> Cells:
        intended = cells(raw, "tpp_intended", model, mean_of())
        beside = cells(raw, "tpp_unintended", model, mean_of())
        return {
            label: [a / max(b, 1e-3) for a, b in zip(intended[label], beside[label], strict=True)]
            for label in intended
        }

    base, rows = ratios("TopK"), []
    for kind in KINDS:
        own = ratios(f"{kind}, beta 1")
        numbers = f"{shown(own, '.1f')}; TopK: {shown(base, '.1f')}"
        rows.append((kind, numbers, judged(minus(own, base))))
    return Claim("4.1: its selectivity, intended over unintended effect, is higher", rows)


def cause(raw: PaperResults) -> Claim:
    """The two vSAEs differ by the noise."""
    of = mean_of(*LARGE)
    equations, code = (cells(raw, "tpp", f"{kind}, beta 1", of) for kind in KINDS)
    over = minus(code, equations)
    return Claim(
        "4.1: the KL, not the sampling, is what raises SCR and TPP",
        [("code minus equations", f"TPP, N = 20 and 50: {shown(over)}", judged(over))],
    )
