"""The follow-up of the study of reproducibility: what it chooses, and its tests against the best rival."""

import pytest
import study_rows
from study_rows import content_of, follow_up_searched, rows_of

from experiments.reproducibility import decisions, page, parts, stronger_noise, study
from experiments.reproducibility.settings import BOTH, RIVAL, TOP_K
from experiments.reproducibility.stronger_noise import CANDIDATES, SEARCH_SEEDS, SETTINGS, STRONGER

_, FIRST, SECOND, THIRD, *_ = CANDIDATES


def test_the_choice_has_the_rivals_fve_and_returns_most():
    found = follow_up_searched(
        **{
            FIRST: (0.33, {"fve": 0.88}),
            SECOND: (0.5, {"fve": 0.8799}),
            THIRD: (0.5, {"near_dead_0.1": 0.111}),
            TOP_K: (0.9, {}),
        }
    )
    assert stronger_noise.chosen(found) == FIRST, "with less than the rival returns, too"


def test_nothing_is_chosen_if_none_has_the_rivals_fve_or_before_the_search_is_whole():
    assert stronger_noise.chosen(follow_up_searched(**{RIVAL: (0.1, {"fve": 0.99})})) is None
    found = follow_up_searched()
    for kind in ("pairs", "saes"):
        found[kind] = [row for row in found[kind] if row["arm"] != RIVAL]
    assert stronger_noise.chosen(found) is None


AGAIN = "noise 0.3 until 50%, penalty 0.03"
"""The candidate that is the choice of the study's search."""


def confirmed(over, name=SETTINGS[0], pairs=decisions.CONFIRM_PAIRS, arm=STRONGER, chosen=FIRST):
    """Both searches have run; the rival has all its pairs, the follow-up's arm these, each so much above."""
    of_study = study_rows.searched(**{"noise 0.3, penalty 0.03": (0.3, {})})
    of_follow_up = follow_up_searched(**{chosen: (0.37, {})})
    rows = [(c["pairs"], c["saes"]) for c in (of_study, of_follow_up)]
    for i, seeds in enumerate(decisions.CONFIRM_PAIRS):
        level = 0.3 + 0.001 * i
        rows += [rows_of("confirm", name, arm, seeds, level) for arm in (TOP_K, RIVAL)]
        if seeds in pairs:
            rows.append(rows_of("confirm", name, arm, seeds, level + over, fve=0.9 - over))
    return content_of(rows)


def test_the_arm_is_ahead_or_behind_over_all_pairs_corrected_for_three_settings():
    (own,) = stronger_noise.against_rival(confirmed(0.02)).values()
    assert own.over[decisions.PRIMARY] == pytest.approx([0.02] * 7)
    assert own.ahead == {"less_null": pytest.approx(3 / 128), "fve": 1}
    assert own.behind == {"less_null": 1, "fve": pytest.approx(3 / 128)}


def test_pairs_are_compared_with_the_same_pair_and_p_waits_for_all_of_them():
    (own,) = stronger_noise.against_rival(confirmed(0.02, pairs=[(1002, 1003)])).values()
    assert own.over[decisions.PRIMARY] == pytest.approx([0.02])
    assert own.ahead[decisions.PRIMARY] == own.behind[decisions.PRIMARY] == 1


def test_a_setting_that_has_not_begun_is_left_out():
    assert stronger_noise.against_rival(follow_up_searched()) == {}, "the study has chosen nothing"
    assert stronger_noise.against_rival(confirmed(0.02, pairs=[])) == {}
    assert list(stronger_noise.against_rival(confirmed(0.02, SETTINGS[1]))) == [SETTINGS[1]]


def test_the_page_has_the_choice_the_differences_and_the_search():
    content = confirmed(0.02, pairs=decisions.CONFIRM_PAIRS[:5])
    shown = "\n".join(page.lines(content))
    assert f"Chosen in its search: {FIRST}." in shown
    assert "| 5 | +0.0200 (+0.0200 to +0.0200) | 1.000, 1.000 |" in shown
    assert shown.index(f"| {FIRST} |") < shown.index(f"| {SECOND} |")
    assert "own choice again" not in shown
    assert "Follow-up" not in "\n".join(page.lines(study_rows.searched()))


def test_the_studys_own_choice_is_not_trained_again_and_its_rows_are_compared(ran, monkeypatch):
    content = confirmed(-0.02, arm=BOTH, chosen=AGAIN)
    (own,) = stronger_noise.against_rival(content).values()
    assert own.behind[decisions.PRIMARY] == pytest.approx(3 / 128)
    assert own.ahead["fve"] == pytest.approx(3 / 128)
    assert "That is the study's own choice again" in "\n".join(page.lines(content))
    run(content, monkeypatch)
    assert len(ran) == 1, "the search alone"


@pytest.fixture
def ran(monkeypatch):
    """What is run, with rows of the search as if it had run."""
    found = []
    monkeypatch.setattr(parts, "run_part", lambda *arguments: found.append(arguments))
    monkeypatch.setattr(study, "chosen", lambda: ("noise 0.3, penalty 0.03", "BatchTopK"))
    return found


def run(content, monkeypatch):
    monkeypatch.setattr(parts, "read", lambda: content)
    study.stronger(study.STAGES.parse(["stronger", "--pairs", "2"]))


def test_the_stage_searches_then_runs_the_choice_on_the_confirmations_seeds(ran, monkeypatch):
    run(follow_up_searched(**{FIRST: (0.37, {})}), monkeypatch)
    (stage, name, _, arms, seeds), *rest = ran
    assert (stage, name, seeds) == ("stronger", "search", SEARCH_SEEDS)
    assert arms[RIVAL] == {"architecture": "batch_top_k"}
    assert set(arms) == {TOP_K, RIVAL, *CANDIDATES}
    assert [part[1] for part in rest] == [name for name in SETTINGS for _ in range(2)]
    assert all(part[3] == {STRONGER: CANDIDATES[FIRST]} for part in rest)


def test_the_stage_ends_after_a_search_without_a_choice(ran, monkeypatch):
    run(follow_up_searched(**{RIVAL: (0.1, {"fve": 0.99})}), monkeypatch)
    assert len(ran) == 1


def test_the_stage_needs_the_rival(ran, monkeypatch):
    monkeypatch.setattr(study, "chosen", lambda: ("noise 0.3, penalty 0.03", None))
    with pytest.raises(SystemExit, match="no best rival is known"):
        run(follow_up_searched(), monkeypatch)


def test_the_seeds_are_its_own_and_the_candidates_are_saes_of_the_setting():
    used = {s for pair in (*decisions.CONFIRM_PAIRS, *decisions.LENGTH_PAIRS) for s in pair}
    assert not used & set(SEARCH_SEEDS)
    assert not set(decisions.SEARCH_SEEDS) & set(SEARCH_SEEDS)
    for options in CANDIDATES.values():
        sae = study.CONFIRM[SETTINGS[0]].sae(options, 910)
        assert sae.noise_anneal_steps == options["until"] * 4000
        assert (sae.noise_to_signal, sae.beta) == (options["noise"], options["penalty"])
