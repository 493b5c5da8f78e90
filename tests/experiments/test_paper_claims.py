"""Claims on reconstruction and living features."""

from paper_rows import CODE, EQUATIONS, SEEDS, rows_of

from experiments.paper import paper_claims
from experiments.paper.paper_results import AS_STATED, PaperResults


def test_a_samples_fve_is_compared_with_top_ks():
    rows = rows_of("fve", {"TopK": 0.9})
    for row, own in zip(rows, rows_of("fve_sampled", {EQUATIONS: 0.7}), strict=True):
        row["fve_sampled"] = None if row["model"] == "TopK" else own["fve_sampled"]
    (row,) = paper_claims._sampled(PaperResults({"rows": rows, "bench": [], "maps": []})).rows
    assert "-0.200 at 1/32" in row[1]
    assert row[2].startswith("**holds** at 1/32, 1/16, 1/8, 1/4; **does not hold** at 1/8, beta")


def test_dead_features_are_not_the_cause_where_fewer_are_near_dead_and_fve_is_lower():
    rows = rows_of("near_dead_0.1", {CODE: 0.5, EQUATIONS: 0.95})
    for row, fve in zip(rows, rows_of("fve", {CODE: 0.8, EQUATIONS: 0.8}), strict=True):
        row["fve"] = fve["fve"]
    for model in (*AS_STATED, paper_claims.ON_SELECTED):
        fewer = 0.1 if model == paper_claims.ON_SELECTED else 0.9
        rows += [
            {"model": model, "multiple": 16, "ratio": 32, "seed": s}
            | {"near_dead_0.1": fewer, "fve": 0.9 if model == "TopK" else 0.7}
            for s in SEEDS
        ]
    claim = paper_claims._cause(PaperResults({"rows": rows, "bench": [], "maps": []}))
    equations, code = claim.rows
    assert "at 1/32" not in equations[1], "there more are near-dead than TopK's"
    assert "-0.100 at 1/32" in code[1]
    assert "-0.200 at F = 16D, KL on selected" in code[1]
