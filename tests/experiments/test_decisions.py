"""The study of reproducibility: the rules that choose, and what the paired tests decide."""

import pytest
import study_rows
from study_rows import NAME, confirmed, content_of, follow_up_searched, rows_of, searched

from experiments.paired_tests import holm, sign_flip
from experiments.reproducibility import decisions, stronger_noise
from experiments.reproducibility.settings import (
    BOTH,
    CONFIRM,
    NOISE,
    PENALTY,
    RIVAL,
    SAMPLED,
    TOP_K,
)
from experiments.reproducibility.stronger_noise import CANDIDATES, SETTINGS, STRONGER


def test_a_sign_flip_test_counts_the_flips_that_are_as_large():
    assert sign_flip([1.0, 2.0, 3.0]) == 1 / 8, "the floor of three pairs"
    assert sign_flip([-1.0, -2.0, -3.0]) == 1
    # Of +-1 +-2 +-3, 1 + 2 - 3 = 0 is reached or passed by 5 of 8.
    assert sign_flip([1.0, 2.0, -3.0]) == 5 / 8


def test_holm_multiplies_by_what_is_left_and_never_falls():
    corrected = holm({"a": 0.01, "b": 0.04, "c": 0.03})
    assert corrected == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})


def test_the_choice_keeps_fve_and_near_dead_and_returns_most():
    weak, best, costly, dying, *_ = SAMPLED
    found = searched(
        **{
            weak: (0.25, {}),
            best: (0.3, {"fve": 0.8981}),
            costly: (0.4, {"fve": 0.8979}),
            dying: (0.4, {"near_dead_0.1": 0.111}),
            "BatchTopK": (0.9, {}),
        }
    )
    assert decisions.chosen(found) == best
    assert decisions.best_rival(found) == "BatchTopK", "a rival is never the choice"


def test_nothing_is_chosen_before_the_search_is_whole():
    found = searched()
    last = list(SAMPLED)[-1]
    found["pairs"] = [row for row in found["pairs"] if row["arm"] != last]
    found["saes"] = [row for row in found["saes"] if row["arm"] != last]
    assert decisions.chosen(found) is None


def test_no_candidate_that_keeps_fve_is_no_choice():
    assert decisions.chosen(searched(**{TOP_K: (0.2, {"fve": 0.99})})) is None


def verdict(content, arm=BOTH, name=NAME):
    return decisions.verdicts(content, arm)[name]


def test_p_is_the_larger_of_the_two_tests():
    found = verdict(confirmed({TOP_K: 0.1, PENALTY: 0.195, BOTH: 0.2}))
    assert found.over[TOP_K] == pytest.approx([0.1] * 7)
    assert found.p == 1, "0.005 over the penalty is within the margin"
    found = verdict(confirmed({TOP_K: 0.1, PENALTY: 0.18, BOTH: 0.2}))
    assert found.p == 2.0**-7


def test_other_arms_are_tested_against_topk_alone():
    """As the protocol says of the noise alone."""
    content = confirmed({TOP_K: 0.1, PENALTY: 0.195, NOISE: 0.2, BOTH: 0.2})
    assert verdict(content, NOISE).p == 2.0**-7
    assert verdict(content, BOTH).p == 1
    assert verdict(content, NOISE).over[PENALTY] == pytest.approx([0.005] * 7), "shown all the same"


def test_a_setting_without_all_its_pairs_has_p_1_and_its_differences():
    found = verdict(confirmed({TOP_K: 0.1, BOTH: 0.2}, pairs=decisions.CONFIRM_PAIRS[:6]))
    assert found.p == 1
    assert found.pairs == 6
    assert len(found.over[TOP_K]) == 6


@pytest.mark.parametrize(
    ("measure", "worse", "close"),
    [("fve", 0.894, 0.896), ("near_dead_0.1", 0.111, 0.109), ("frac_recovered", 0.984, 0.986)],
)
def test_what_is_worse_than_topk_by_more_than_its_margin_fails(measure, worse, close):
    levels = {TOP_K: 0.1, PENALTY: 0.1, BOTH: 0.2}
    for value, passes in ((worse, False), (close, True)):
        found = verdict(confirmed(levels, **{BOTH: {measure: value}}))
        assert decisions.passes(found, 0.04) is passes
        assert (found.no_worse[measure] <= 0.05) is passes


def test_holm_counts_settings_that_have_not_run():
    found = decisions.verdicts(confirmed({TOP_K: 0.1, BOTH: 0.2}), BOTH)
    corrected = decisions.corrected(found)
    assert corrected[NAME] == pytest.approx(6 / 128)
    assert decisions.passes(found[NAME], corrected[NAME])
    others = [name for name in CONFIRM if name != NAME]
    assert all(corrected[name] == 1 for name in others)
    assert not decisions.passes(found[others[0]], corrected[others[0]])


# The follow-up.

_, FIRST, SECOND, THIRD, *_ = CANDIDATES


def test_the_follow_ups_choice_has_the_rivals_fve_and_returns_most():
    found = follow_up_searched(
        **{
            FIRST: (0.33, {"fve": 0.88}),
            SECOND: (0.5, {"fve": 0.8799}),
            THIRD: (0.5, {"near_dead_0.1": 0.111}),
            TOP_K: (0.9, {}),
        }
    )
    assert stronger_noise.chosen(found) == FIRST, "with less than the rival returns, too"
    assert stronger_noise.chosen(follow_up_searched(**{RIVAL: (0.1, {"fve": 0.99})})) is None


@pytest.mark.parametrize(("pairs", "ahead", "behind"), [(7, 3 / 128, 3 / 128), (6, 1, 1)])
def test_the_follow_up_is_ahead_or_behind_over_all_pairs_corrected_for_three_settings(
    pairs, ahead, behind
):
    """The rival has all its pairs, the follow-up's arm some, each 0.02 above it and 0.02 less in FVE."""
    of_study = study_rows.searched(**{"noise 0.3, penalty 0.03": (0.3, {})})
    of_follow_up = follow_up_searched(**{FIRST: (0.37, {})})
    rows = [(c["pairs"], c["saes"]) for c in (of_study, of_follow_up)]
    for i, seeds in enumerate(decisions.CONFIRM_PAIRS):
        level = 0.3 + 0.001 * i
        rows += [rows_of("confirm", SETTINGS[0], arm, seeds, level) for arm in (TOP_K, RIVAL)]
        if i < pairs:
            rows.append(rows_of("confirm", SETTINGS[0], STRONGER, seeds, level + 0.02, fve=0.88))
    (own,) = stronger_noise.against_rival(content_of(rows)).values()
    assert own.over[decisions.PRIMARY] == pytest.approx([0.02] * pairs)
    assert own.ahead == {"less_null": pytest.approx(ahead), "fve": 1}
    assert own.behind == {"less_null": 1, "fve": pytest.approx(behind)}
