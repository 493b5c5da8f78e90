"""Invented raw results of the paper's comparison."""

from experiments.paper.paper_results import AS_STATED, RATIOS

SEEDS = (0, 1, 2, 3, 4)
EQUATIONS, CODE = AS_STATED[1:]


def rows_of(metric, values):
    """One metric of every model, k/F, beta and seed, by model; the seeds drift together."""
    cells = [(m, 4, r) for m in AS_STATED for r in RATIOS]
    cells += [(f"{kind}, beta {b}", 4, 8) for kind in ("equations", "code") for b in (0.1, 0.01)]
    return [
        {"model": m, "multiple": n, "ratio": r, "seed": s, metric: values.get(m, 0.9) + 0.1 * s}
        for m, n, r in cells
        for s in SEEDS
    ]
