"""The paper's claims on how features are organised: section 4.3, the abstract, and 4.2's interpretability."""

import statistics
from collections.abc import Callable
from operator import neg, pos
from typing import Any

from experiments.pages import spread
from experiments.paper.paper_results import AS_STATED, PaperResults
from experiments.paper.verdicts import KINDS, OPEN, Claim, against_top_k, judged


def claims(raw: PaperResults) -> list[Claim]:
    """What section 4.3 and the abstract say of it."""

    def maps(
        says: str, metric: str, turn: Callable[[float], float], of: Callable[[Any], float] = float
    ) -> Claim:
        base, rows = [of(value) for value in raw.mapped(metric, "TopK")], []
        for kind in KINDS:
            own = [of(value) for value in raw.mapped(metric, f"{kind}, beta 1")]
            more = [turn(a - b) for a, b in zip(own, base, strict=True)]
            numbers = f"{spread(own)}; TopK {spread(base)}"
            rows.append((kind, numbers, judged({"1/8": more})))
        return Claim(f"{says} (k/F = 1/8)", rows)

    def variation(values: list[float]) -> float:
        return statistics.pstdev(values) / statistics.mean(values)

    found = [
        Claim(
            "Abstract, 1: sampling creates dispersive pressure. 4.3: features are more dispersed (cosine "
            "distance to the nearest other decoder direction)",
            against_top_k(raw, "dispersion", pos),
        ),
        maps("4.3: the same of living features, equally many of each SAE", "dispersion", pos),
        Claim(
            "4.3: features are less correlated in general (mean absolute cosine of decoder directions)",
            against_top_k(raw, "correlation", neg),
        ),
        maps(
            "4.3: fewer tightly packed clusters in the t-SNE map (silhouette of its 10 clusters)",
            "silhouette",
            neg,
        ),
        maps("4.3: features are used more evenly (effective share of the living)", "evenness", pos),
        maps(
            "4.3: clusters are used more equally (variation of their mean use)",
            "cluster_utilisation",
            neg,
            variation,
        ),
        maps(
            "4.3: activation magnitudes are spread more evenly over clusters (variation of means)",
            "cluster_activation",
            neg,
            variation,
        ),
    ]
    return [
        *found,
        Claim(
            "4.3: cluster sizes are alike (56 to 151 and 60 to 152)",
            [
                (
                    model,
                    f"{min(map(min, sizes))} to {max(map(max, sizes))}",
                    f"**{OPEN}**: KMeans makes clusters of like size of any map",
                )
                for model in AS_STATED
                for sizes in [raw.mapped("cluster_sizes", model)]
            ],
        ),
        Claim(
            "Abstract, 5 (contradicting 4.1 and 4.3): features are not organised better",
            [
                (
                    kind,
                    f"of the {len(found)} measures above, better throughout in "
                    f"{sum(claim.rows[i][2] == '**holds**' for claim in found)}",
                    f"**{OPEN}**: it depends on the measure",
                )
                for i, kind in enumerate(KINDS)
            ],
        ),
        Claim(
            "Abstract: features are more robust (selection stability under noise of a tenth of the "
            "activations' rms; the paper does not measure it; the equations have no ReLU, which alone "
            "raises it: TopK without ReLU in better_vsae.md)",
            against_top_k(raw, "stability_rms", pos),
        ),
    ]


def interpretability(raw: PaperResults) -> Claim:
    """One proxy of it, with SAE Bench."""
    return Claim(
        "1, 4.2, 5: no difference in interpretability (the paper looked at features; here the accuracy of "
        "the best single feature in sparse probing, k/F = 1/8)",
        [
            (
                model,
                spread([row["probing"] for row in raw.bench(model, 4, 8)]),
                f"**{OPEN}**: people or a language model were not asked",
            )
            for model in AS_STATED
        ],
    )
