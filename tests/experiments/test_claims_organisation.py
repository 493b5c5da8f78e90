"""Claims on how features are organised."""

from paper_rows import CODE, SEEDS, rows_of

from experiments.paper import claims_organisation
from experiments.paper.paper_results import AS_STATED, PaperResults


def test_even_use_of_clusters_is_low_variation():
    maps = [
        {"model": m, "seed": s, "cluster_utilisation": [0.1, 0.1] if m == CODE else [0.1, 0.3]}
        | dict.fromkeys(("dispersion", "silhouette", "evenness"), 0.5)
        | {"cluster_sizes": [3, 4], "cluster_activation": [1.0, 2.0]}
        for m in AS_STATED
        for s in SEEDS
    ]
    rows = rows_of("dispersion", {})
    for row in rows:
        row |= {"correlation": 0.1, "stability_rms": 0.1}
    claims = claims_organisation.claims(PaperResults({"rows": rows, "bench": [], "maps": maps}))
    (claim,) = (claim for claim in claims if "clusters are used more equally" in claim.says)
    assert [row[2] for row in claim.rows] == ["**does not hold**", "**holds**"]
