"""A claim holds, does not, or can't be told, from the seeds' differences alone."""

import operator

from paper_rows import CODE, EQUATIONS, rows_of

from experiments.paper.paper_results import PaperResults
from experiments.paper.verdicts import Claim, against_top_k, judged, minus, turned, word


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


def test_claims_are_of_the_model_minus_top_k():
    rows = rows_of("cossim", {CODE: 0.91, EQUATIONS: 0.89, "code, beta 0.1": 0.8})
    raw = PaperResults({"rows": rows, "bench": [], "maps": []})
    equations, code = against_top_k(raw, "cossim", operator.pos)
    assert equations[0] == "equations"
    assert "-0.010 at 1/32" in equations[1]
    assert equations[2].startswith("**does not hold**")
    assert "+0.010 at 1/32" in code[1]
    assert "-0.100 at 1/8, beta 0.1" in code[1]
    assert code[2].startswith("**holds** at 1/32, 1/16, 1/8, 1/4; **does not hold** at 1/8, beta")
