"""Claims on SCR and TPP: peaks, large N, smaller dictionaries, selectivity."""

import pytest
from paper_rows import CODE, EQUATIONS, SEEDS

from experiments.paper import claims_ablation
from experiments.paper.paper_results import AS_STATED, BENCHED, PaperResults


def bench_rows(**curves):
    """SCR and TPP of every model at every k/F and seed: TopK's unless given as MODEL_METRIC."""
    usual = {"2": 0.3, "5": 0.4, "10": 0.3, "20": 0.2, "50": 0.1}
    metrics = ("scr", "scr_matched", "tpp", "tpp_matched", "tpp_intended", "tpp_unintended")
    short = {"TopK": "TopK", EQUATIONS: "equations", CODE: "code"}
    return PaperResults(
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
