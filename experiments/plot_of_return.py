"""README's plot: the share of features that come back over FVE, of the SAEs of its table. A dot is a pair of seeds.

python -m experiments.plot_of_return    # writes docs/img/come_back.png
"""

from statistics import mean
from typing import Any

from experiments.pages import save_plot
from experiments.recompute import ARMS, FADED, ROOT, Row, faded_rows, raw

DRAWN = {
    "TopK": ("TopK", "black"),
    "vSAE": ("fixed 0.3 until 0.5", "crimson"),
    ARMS["gates_off"]: (ARMS["gates_off"], "grey"),
}
"""Each kind's name in the study on the embedded model, and its colour."""
FILLS = {"direction": "none", "function": "full"}


def panels() -> dict[str, dict[str, list[Row]]]:
    """The pairs of each kind of SAE, with their FVE, by the panel's title."""
    embedded, smollm2 = raw("fading_embedded"), raw("fading_smollm2")["rows"]
    found = {
        place: {
            kind: [
                {"fve": r["fve"], "direction": r["returning_0.7"], "function": r["in_function"]}
                for r in faded_rows(embedded, f"fading confirm 2.0M: {place}: ", arm)
            ]
            for kind, (arm, _) in DRAWN.items()
        }
        for place in (FADED["b0"], FADED["b2"], FADED["b2_8"])
    }
    found["SmolLM2, blocks.1, k/F = 1/36"] = {
        kind: [
            {
                "fve": mean(sae["fve"] for sae in r["saes"]),
                "direction": r["as_direction"],
                "function": r["in_function"],
            }
            for r in smollm2
            if r["arm"].partition(", the preset")[0] == kind
        ]
        for kind in DRAWN
    }
    return found


def draw() -> None:
    import matplotlib.pyplot as plt

    found = panels()
    figure, axes = plt.subplots(1, len(found), figsize=(12, 3.2), sharey=True)
    for axis, (title, kinds) in zip(axes, found.items(), strict=True):
        for kind, (_, colour) in DRAWN.items():
            fve = [row["fve"] for row in kinds[kind]]
            for measure, fill in FILLS.items():
                shares = [100 * row[measure] for row in kinds[kind]]
                axis.plot(fve, shares, "o", color=colour, fillstyle=fill, markersize=8)
        axis.set_title(title, fontsize=10)
        axis.set(xlabel="FVE", ylim=(0, 80))
        axis.margins(x=0.25)
        axis.locator_params(axis="x", nbins=3)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("features that come back (%)")
    _explain(axes[-1])
    save_plot(figure, ROOT / "docs" / "img" / "come_back.png", dpi=110)


def _explain(axis: Any) -> None:
    for label, (_, colour) in DRAWN.items():
        axis.plot([], [], "o", color=colour, markersize=8, label=label)
    for label, fill in (("as a direction", "none"), ("in what they do", "full")):
        axis.plot([], [], "o", color="black", fillstyle=fill, label=label)
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)


if __name__ == "__main__":
    draw()
