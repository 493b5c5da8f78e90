"""A claim of the paper holds, does not, or can't be told, from the seeds' differences alone."""

import operator

import pytest

from experiments.paper import claims_ablation, claims_organisation, paper_claims
from experiments.paper.paper_results import AS_STATED, BENCHED, RATIOS, Raw
from experiments.paper.verdicts import Claim, against_top_k, judged, minus, turned, word

SEEDS = (0, 1, 2, 3, 4)
EQUATIONS, CODE = AS_STATED[1:]


def test_a_claim_holds_if_every_seed_shows_it_and_does_not_if_none_does():
    assert word([0.1, 0.2, 0.3]) == "holds"
    assert word([-0.1, 0.0, -0.3]) == "does not hold", "a tie is no case of it"
    assert word([0.1, -0.2, 0.3]) == "can't be told"


def test_a_verdict_names_its_cells_where_they_differ():
    assert judged({"1/8": [1.0, 2.0], "1/4": [1.0, 1.0]}) == "**holds**"
    assert (
        judged({"1/8": [1.0, 2.0], "1/4": [-1.0, -1.0], "1/16": [1.0, 3.0]})
        == "**holds** at 1/8, 1/16; **does not hold** at 1/4"
    )


def test_cells_are_subtracted_and_turned_seed_by_seed():
    difference = minus({"a": [3.0, 5.0]}, {"a": [1.0, 1.0]})
    assert difference == {"a": [2.0, 4.0]}
    assert turned(difference, operator.neg) == {"a": [-2.0, -4.0]}


def test_a_claim_is_said_once_above_its_models():
    lines = Claim("said", [("equations", "1", "**holds**"), ("code", "2", "**holds**")]).lines()
    assert lines == ["| said | equations | 1 | **holds** |", "|  | code | 2 | **holds** |"]


def rows_of(figure, values):
    """One figure of every model, k/F, beta and seed, by model; the seeds drift together."""
    cells = [(m, 4, r) for m in AS_STATED for r in RATIOS]
    cells += [(f"{kind}, beta {b}", 4, 8) for kind in ("equations", "code") for b in (0.1, 0.01)]
    return [
        {"model": m, "multiple": n, "ratio": r, "seed": s, figure: values.get(m, 0.9) + 0.1 * s}
        for m, n, r in cells
        for s in SEEDS
    ]


def test_claims_are_of_the_model_minus_top_k():
    rows = rows_of("cossim", {CODE: 0.91, EQUATIONS: 0.89, "code, beta 0.1": 0.8})
    raw = Raw({"rows": rows, "bench": [], "maps": []})
    equations, code = against_top_k(raw, "cossim", operator.pos)
    assert equations[0] == "equations"
    assert "-0.010 at 1/32" in equations[1]
    assert equations[2].startswith("**does not hold**")
    assert "+0.010 at 1/32" in code[1]
    assert "-0.100 at 1/8, beta 0.1" in code[1]
    assert code[2].startswith("**holds** at 1/32, 1/16, 1/8, 1/4; **does not hold** at 1/8, beta")


def bench_rows(**curves):
    """SCR and TPP of every model at every k/F and seed: TopK's unless given as MODEL_METRIC."""
    usual = {"2": 0.3, "5": 0.4, "10": 0.3, "20": 0.2, "50": 0.1}
    metrics = ("scr", "scr_matched", "tpp", "tpp_matched", "tpp_intended", "tpp_unintended")
    short = {"TopK": "TopK", EQUATIONS: "equations", CODE: "code"}
    return Raw(
        {
            "rows": [],
            "maps": [],
            "bench": [
                {"model": model, "multiple": 4, "ratio": ratio, "seed": seed}
                | {m: curves.get(f"{short[model]}_{m}", usual) for m in metrics}
                for model in AS_STATED
                for ratio in BENCHED
                for seed in SEEDS
            ],
        }
    )


LATE = {"2": 0.1, "5": 0.2, "10": 0.3, "20": 0.5, "50": 0.45}


def found(raw, says):
    (claim,) = (claim for claim in claims_ablation.claims(raw) if claim.says.startswith(says))
    return {row[0]: row[1:] for row in claim.rows}


def test_a_curve_has_a_peak_a_place_of_it_and_a_decline():
    assert claims_ablation.peak(LATE) == 0.5
    assert claims_ablation.peak_at(LATE) == 20
    assert claims_ablation.decline(LATE) == pytest.approx(0.05)
    assert claims_ablation.mean_of("20", "50")(LATE) == pytest.approx(0.475)
    assert claims_ablation.mean_of()(LATE) == pytest.approx(0.31)


def test_a_gain_at_large_n_is_not_one_at_small_n():
    raw = bench_rows(code_tpp=LATE)
    small, large = found(raw, "4.1: at small N"), found(raw, "4.1: at large N (20 and 50)")
    assert small["code"][1] == "**does not hold**"
    assert large["code"][1] == "**holds**"
    assert large["equations"][1] == "**does not hold**", "it is TopK's here"
    later = found(raw, "4.1: TPP peaks later")["code"]
    assert "20 at 1/8; TopK: 5 at 1/8" in later[0]
    assert later[1] == "**holds**"


def test_a_smaller_dictionary_explains_a_gain_that_masking_takes_away():
    lower = {"2": 0.1, "5": 0.1, "10": 0.1, "20": 0.1, "50": 0.05}
    gone = bench_rows(code_tpp=LATE, code_tpp_matched=lower)
    assert found(gone, "5: the gains reflect a smaller dictionary (TPP")["code"][1] == "**holds**"
    stays = bench_rows(code_tpp=LATE, code_tpp_matched=LATE)
    says = found(stays, "5: the gains reflect a smaller dictionary (TPP")
    assert says["code"][1] == "**does not hold**"
    assert says["equations"][1] == "no gain to explain at 1/8"


def test_selectivity_is_intended_over_unintended():
    flat = dict.fromkeys(("2", "5", "10", "20", "50"), 0.01)
    raw = bench_rows(code_tpp_unintended=flat)
    numbers, verdict = found(raw, "4.1: its selectivity")["code"]
    assert numbers.startswith("26.0 at 1/8; TopK: 1.0 at 1/8")
    assert verdict == "**holds**"


def test_a_samples_fve_is_compared_with_top_ks():
    rows = rows_of("fve", {"TopK": 0.9})
    for row, own in zip(rows, rows_of("fve_sampled", {EQUATIONS: 0.7}), strict=True):
        row["fve_sampled"] = None if row["model"] == "TopK" else own["fve_sampled"]
    (row,) = paper_claims._sampled(Raw({"rows": rows, "bench": [], "maps": []})).rows
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
    claim = paper_claims._cause(Raw({"rows": rows, "bench": [], "maps": []}))
    equations, code = claim.rows
    assert "at 1/32" not in equations[1], "there more are near-dead than TopK's"
    assert "-0.100 at 1/32" in code[1]
    assert "-0.200 at F = 16D, KL on selected" in code[1]


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
    claims = claims_organisation.claims(Raw({"rows": rows, "bench": [], "maps": maps}))
    (claim,) = (claim for claim in claims if "clusters are used more equally" in claim.says)
    assert [row[2] for row in claim.rows] == ["**does not hold**", "**holds**"]
