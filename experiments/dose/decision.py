"""Which vSAE does the protocol's rule make the preset? From the raw results of dose.embedded and dose.truth.

python -m experiments.dose.decision    # writes results/dose_decision.md and its three plots
"""

from statistics import mean
from typing import Any

from experiments import pages, raw_results
from experiments.dose import embedded, truth
from experiments.dose.arms import ARMS, KEPT, TOP_K
from experiments.raw_results import RESULTS

PAGE = RESULTS / "dose_decision.md"
FVE_BELOW, TRUTH_BELOW = 0.0005, 0.01
COLOURS = {
    TOP_K: "black",
    "fixed 0.3 and penalty": "crimson",
    "survival 0.25": "navy",
    "survival 0.4": "royalblue",
    "survival 0.6": "skyblue",
    "Probabilistic TopK": "grey",
}
Row = dict[str, Any]


def stage_of(content: dict[str, Any], setting: str) -> str:
    """The stage whose rows stand for a setting: the confirmation, or the search where that was not run."""
    confirmed = any(row["part"].startswith(f"confirm: {setting}: ") for row in content["pairs"])
    return "confirm" if confirmed else "search"


def of_embedded(
    content: dict[str, Any], setting: str, measure: str, stage: str | None = None
) -> dict[str, float]:
    """Each arm's mean over a stage's pairs of seeds at a setting, at its rate (default: see `stage_of`)."""
    stage = stage_of(content, setting) if stage is None else stage
    lrs = embedded.chosen_lrs(content, setting)
    rows: dict[str, list[float]] = {}
    for row in [*content["pairs"], *content["saes"]]:
        if row["part"].startswith(f"{stage}: {setting}: ") and measure in row:
            arm, _, lr = row["arm"].partition(", lr ")
            if arm in COLOURS and (not lr or float(lr) == lrs[arm]):
                rows.setdefault(arm, []).append(row[measure])
    return {arm: mean(values) for arm, values in rows.items()}


def of_truth(content: dict[str, Any], measure: str) -> dict[str, dict[str, float]]:
    """By size and length, then arm: the mean over the confirmation's seeds, with the m that was chosen."""
    rows: dict[str, dict[str, list[float]]] = {}
    m = truth.chosen_m(content)
    for row in content["rows"]:
        stage, _, rest = row["part"].partition(": ")
        if stage == "confirm" and row["m"] == m:
            place = rest.rpartition(", seed")[0]
            rows.setdefault(place, {}).setdefault(row["arm"], []).append(row[measure])
    return {
        place: {arm: mean(values) for arm, values in arms.items()} for place, arms in rows.items()
    }


def decided(on_embedded: dict[str, Any], on_truth: dict[str, Any]) -> list[str]:
    """The page's lines: the three conditions for each vSAE, and which of those that meet them comes back most."""
    settings = {
        measure: {name: of_embedded(on_embedded, name, measure) for name in embedded.SETTINGS}
        for measure in ("fve", "same", "returning_0.7")
    }
    known = {measure: of_truth(on_truth, measure) for measure in ("mcc", "f1")}

    def ahead(by_place: dict[str, dict[str, float]], arm: str) -> list[float]:
        return [arms[arm] - arms[TOP_K] for arms in by_place.values() if arm in arms]

    rows, passed = {}, {}
    for arm in KEPT[1:]:
        fve, same = ahead(settings["fve"], arm), ahead(settings["same"], arm)
        mcc, f1 = ahead(known["mcc"], arm), ahead(known["f1"], arm)
        if len(fve) < len(embedded.SETTINGS) or not mcc:
            continue
        kept = mean(fve) >= -FVE_BELOW
        more = min(same) > 0
        true = min(mean(mcc), mean(f1)) >= -TRUTH_BELOW
        comes_back = [mean(arms[arm] for arms in settings[n].values()) for n in settings][1:]
        if kept and more and true:
            passed[arm] = comes_back[0]
        numbers = [mean(fve), min(same), mean(mcc), mean(f1)]
        rows[arm] = [f"{n:+.4f}" for n in numbers] + [f"{100 * n:.1f}%" for n in comes_back]
        rows[arm] += ["yes" if each else "no" for each in (kept, more, true)]
    columns = ["FVE", "in what they do, where least", "MCC", "F1"]
    columns += ["in what they do, mean", "as a direction, mean", "FVE kept", "more comes back"]
    lines = pages.table("less TopK's", rows, [*columns, "true"])
    best = max(passed, key=lambda arm: passed[arm]) if passed else "none: the preset stays"
    searched = [name for name in embedded.SETTINGS if stage_of(on_embedded, name) == "search"]
    by_search = f" By the search alone: {'; '.join(searched)}." if searched else ""
    return [*lines, "", f"By the rule: {best}.{by_search}"]


def _doses() -> dict[float, str]:
    return {options.get("survival", 1.0): arm for arm, options in ARMS.items() if arm in KEPT[2:]}


def draw_doses(on_embedded: dict[str, Any], on_truth: dict[str, Any]) -> None:
    """What comes back, FVE and MCC over the survival at the start, a line a setting. 1 is TopK. On the embedded model those
    of the search, which has every dose."""
    import matplotlib.pyplot as plt

    dose_of = dict(sorted(_doses().items())) | {1.0: TOP_K}
    figure, axes = plt.subplots(1, 4, figsize=(14, 3.4))

    colours: dict[str, str] = {}

    def lines(axis: Any, by_place: dict[str, dict[str, float]], less: bool, style: str) -> None:
        for place, arms in by_place.items():
            there = {dose: arms[arm] for dose, arm in dose_of.items() if arm in arms}
            off = arms[TOP_K] if less and there else 0.0
            if there:
                values = [v - off for v in there.values()]
                axis.plot(
                    [*there],
                    values,
                    style,
                    label=place,
                    color=colours.setdefault(place, f"C{len(colours)}"),
                )

    def of_settings(measure: str) -> dict[str, dict[str, float]]:
        return {n: of_embedded(on_embedded, n, measure, "search") for n in embedded.SETTINGS}

    lines(axes[0], of_settings("same"), False, "o-")
    lines(axes[1], of_settings("returning_0.7"), False, "o-")
    lines(axes[2], of_settings("fve"), True, "o-")
    lines(axes[2], of_truth(on_truth, "fve"), True, "s--")
    lines(axes[3], of_truth(on_truth, "mcc"), True, "s--")
    titles = (
        "come back in what they do",
        "come back as a direction",
        "FVE - TopK's",
        "MCC - TopK's",
    )
    for axis, title in zip(axes, titles, strict=True):
        axis.set(title=title, xlabel="survival at the start (1: TopK)")
        axis.grid(alpha=0.3)
    axes[3].legend(*axes[2].get_legend_handles_labels(), loc="lower right", fontsize=8)
    pages.save_plot(figure, PAGE.with_name("dose_curve.png"), dpi=110)


def draw_shares(content: dict[str, Any]) -> None:
    """What comes back over FVE, all arms, a panel a setting. Open: as a direction. Full: in what they do."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(embedded.SETTINGS), figsize=(12, 3.4), sharey=True)
    for axis, name in zip(axes, embedded.SETTINGS, strict=True):
        fve = of_embedded(content, name, "fve")
        for measure, fill in (("same", "full"), ("returning_0.7", "none")):
            for arm, share in of_embedded(content, name, measure).items():
                label = arm if fill == "full" else None
                given: dict[str, Any] = {"fillstyle": fill, "markersize": 8, "label": label}
                axis.plot(fve[arm], 100 * share, "o", color=COLOURS[arm], **given)
        axis.set(title=name, xlabel="FVE", ylim=(0, 100))
        axis.margins(x=0.2)
        axis.locator_params(axis="x", nbins=4)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("features that come back (%)")
    axes[0].legend(fontsize=7)
    pages.save_plot(figure, PAGE.with_name("dose_share_and_fve.png"), dpi=110)


def draw_survival(on_embedded: dict[str, Any], on_truth: dict[str, Any]) -> None:
    """The survival that was reached, less its target, through the run, for survival 0.4."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 3.4))
    arm, dose = "survival 0.4", 0.4
    for row in on_embedded["pairs"]:
        if row["arm"].partition(", lr ")[0] == arm and "survival" in row:
            log = row["survival"]
            shares = [step / log[-1][0] for step, *_ in log]
            off = [reached - target for _, reached, target in log]
            axis.plot(shares, off, "o-", ms=3, label=row["part"].split(": ")[1])
    for row in on_truth["rows"]:
        if row["arm"] == arm and row["part"].startswith("confirm"):
            shares = [index / 20 for index in range(len(row["survival"]))]
            target = [min(1.0, dose + (1 - dose) * share / 0.5) for share in shares]
            off = [
                reached - wanted for reached, wanted in zip(row["survival"], target, strict=True)
            ]
            axis.plot(shares, off, "s--", ms=3, label=row["part"].split(": ")[1])
    axis.set(xlabel="share of the run", ylabel="survival - its target", title=arm)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7)
    pages.save_plot(figure, PAGE.with_name("dose_survival.png"), dpi=110)


def main() -> None:
    on_embedded, on_truth = raw_results.read(embedded.RAW), truth.read()
    pages.write_tables(
        PAGE, decided(on_embedded, on_truth), "`python -m experiments.dose.decision`"
    )
    draw_doses(on_embedded, on_truth)
    draw_shares(on_embedded)
    draw_survival(on_embedded, on_truth)


if __name__ == "__main__":
    main()
