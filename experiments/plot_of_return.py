"""README's plot: the share of features that come back over FVE, from the raw results. A dot is a pair of seeds.

python -m experiments.plot_of_return    # writes docs/img/come_back.png
"""

from typing import Any

from experiments.pages import save_plot
from experiments.recompute import ARMS, MEASURES, ROOT, SETTINGS, of_pairs, raw, rows_at

PANELS = {
    "b2": "embedded, blocks.2, k/F = 1/32",
    "b0": "embedded, blocks.0, k/F = 1/32",
    "b2_8": "embedded, blocks.2, k/F = 1/8",
    "smollm2_1": "SmolLM2-135M, blocks.1, 1/36",
}
DRAWN = {
    "topk": ("TopK", "black"),
    "vsae": ("vSAE", "crimson"),
    "ptopk": ("Probabilistic TopK", "grey"),
}
FILLS = {"direction": "none", "function": "full"}


def draw() -> None:
    import matplotlib.pyplot as plt

    content = raw("relative_noise")
    figure, axes = plt.subplots(1, len(PANELS), figsize=(12, 3.2), sharey=True)
    for axis, (place, title) in zip(axes, PANELS.items(), strict=True):
        for key, (_, colour) in DRAWN.items():
            rows = rows_at(content, "confirm", SETTINGS[place], ARMS[key])
            fve = of_pairs(rows, MEASURES["fve"])
            for measure, fill in FILLS.items():
                shares = [100 * share for share in of_pairs(rows, MEASURES[measure])]
                axis.plot(fve, shares, "o", color=colour, fillstyle=fill, markersize=8)
        axis.set_title(title, fontsize=10)
        axis.set(xlabel="FVE", ylim=(0, 100))
        axis.margins(x=0.25)
        axis.locator_params(axis="x", nbins=4)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("features that come back (%)")
    _explain(axes[-1])
    save_plot(figure, ROOT / "docs" / "img" / "come_back.png", dpi=110)


def _explain(axis: Any) -> None:
    for label, colour in DRAWN.values():
        axis.plot([], [], "o", color=colour, markersize=8, label=label)
    for label, fill in (("as a direction", "none"), ("in what they do", "full")):
        axis.plot([], [], "o", color="black", fillstyle=fill, label=label)
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)


if __name__ == "__main__":
    draw()
