"""What RESULTS.md says of the study of reproducibility."""

import pytest
from study_rows import NAME, confirmed, follow_up_searched

from experiments.reproducibility import stronger_noise
from experiments.reproducibility.settings import BOTH, CONFIRM, NOISE, PENALTY, RIVAL, TOP_K
from experiments.reproducibility.study_facts import StudyFacts

LEVELS = {TOP_K: 0.1, PENALTY: 0.15, NOISE: 0.2, BOTH: 0.25}


def facts(levels=None, probes=0.6, **options):
    content = confirmed(levels or LEVELS, **options)
    for row in content["pairs"]:
        row["returning_0.7"] = 3 * row["less_null"]
    if probes:
        for row in content["saes"]:
            row.setdefault("sae_probes", probes)
    return StudyFacts(content)


def test_a_setting_that_is_whole_has_a_row_and_the_others_are_named_as_missing():
    found = facts()
    assert found.whole == found.passed == [NAME]
    assert found.missing == [name for name in CONFIRM if name != NAME]
    assert found.table.splitlines()[2:] == [
        f"| {NAME} | PW-MCC less null | 0.103 | 0.153 | 0.203 | 0.253 | – |",
        "| **passes**, p 0.047 | returning | 0.31 | 0.46 | 0.61 | 0.76 | – |",
        "|  | FVE | 0.9000 | 0.9000 | 0.9000 | 0.9000 | – |",
    ]


def test_a_setting_that_misses_names_what_is_worse():
    found = facts(**{BOTH: {"near_dead_0.1": 0.2}})
    assert found.passed == []
    assert found.missed == [NAME]
    assert "misses: near-dead < 0.1 0.100 / 0.200, p 0.047 |" in found.table
    assert "misses: the gain, p 1.000 |" in facts(LEVELS | {BOTH: 0.155}).table
    probed = facts(**{BOTH: {"sae_probes": 0.5}})
    assert "misses: sae_probes 0.600 / 0.500, p 0.047 |" in probed.table


def test_a_setting_whose_probes_were_not_measured_has_neither_passed_nor_missed():
    found = facts(probes=None)
    assert found.passed == found.missed == []
    assert "misses: sae_probes not measured, p 0.047 |" in found.table


def test_a_setting_that_lacks_a_pair_has_no_row():
    found = facts(pairs=[(1, 2)])
    assert found.whole == []
    assert NAME not in found.table


def test_the_sentences_hold_only_where_every_pair_shows_them():
    assert facts().every_pair_gains
    assert facts().noise_gains_most
    assert not facts(LEVELS | {PENALTY: 0.26}).every_pair_gains
    assert not facts(LEVELS | {NOISE: 0.14}).noise_gains_most
    assert facts().times_as_many_return == f"{0.253 / 0.103:.1f}"
    assert facts(**{BOTH: {"fve": 0.8966}}).fve_lost == "0.0034"


def test_the_best_rival_is_compared_where_it_has_run():
    assert facts().with_rival == []
    found = facts(LEVELS | {RIVAL: 0.3}, **{RIVAL: {"fve": 0.896}})
    assert found.with_rival == [NAME]
    assert (found.rival_ahead, found.rival_behind) == ([NAME], [])
    assert found.rival_has_less_fve == [NAME]
    assert found.rival_fve_lost == "0.0040"
    assert "| 0.253 | 0.303 |" in found.table
    assert found.rival_passes == [NAME]
    assert facts(LEVELS | {RIVAL: 0.3}, **{RIVAL: {"fve": 0.894}}).rival_passes == []
    even = facts(LEVELS | {RIVAL: 0.25})
    assert even.rival_ahead == even.rival_behind == []
    assert facts(LEVELS | {RIVAL: 0.2}).rival_behind == [NAME]
    assert facts(LEVELS | {RIVAL: 0.3}).rival_has_less_fve == []


def test_the_probes_stand_where_they_were_measured():
    assert facts(probes=None).probes == ""
    found = facts(**{TOP_K: {"sae_probes": 0.61}, BOTH: {"sae_probes": 0.6}})
    assert found.probes == "-0.0100 to -0.0100"


def test_the_follow_up_is_its_choice_and_the_best_of_the_longest_noise():
    def found(longest, rival, fve=0.87):
        best = {"noise 1 until 80%, penalty 0.1": (longest, {"fve": fve})}
        rows = follow_up_searched(**best, **{RIVAL: (rival, {"fve": 0.88})})
        return StudyFacts(rows)

    facts_of = found(0.4, 0.35)
    assert facts_of.longest == "noise 1 until 80%, penalty 0.1"
    assert facts_of.follow_up(facts_of.longest) == "0.400 / 0.8700"
    assert facts_of.longest_is_ahead
    assert not found(0.4, 0.41).longest_is_ahead
    assert not found(0.4, 0.35, fve=0.89).longest_is_ahead
    assert not facts_of.follow_up_is_again, "the study has chosen nothing here"
    assert facts_of.follow_up_choice in stronger_noise.CANDIDATES


def test_clusters_are_compared_with_the_gain():
    def clustered(within):
        content = confirmed(LEVELS)
        for row in content["pairs"]:
            row |= {"within": within if row["arm"] == BOTH else 0.3, "returning_0.7": 0.5}
        return StudyFacts(content)

    assert (clustered(0.34).within_risen, clustered(0.34).gains) == ("0.040", "0.150 to 0.150")


def test_numbers_and_models_by_name():
    assert facts().models == "the embedded one (4 layers)"
    found = facts(**{TOP_K: {"near_dead_0.1": 0.25}})
    assert found.revived == [f"{NAME} (0.250 / 0.100)"]
    assert facts(**{TOP_K: {"near_dead_0.1": 0.11}}).revived == []


@pytest.mark.parametrize(
    ("gain", "says"),
    [(0.3, "faster convergence alone doesn't explain it"), (0.1, "is faster convergence")],
)
def test_the_gain_of_a_long_run_is_compared_with_that_of_a_short_one(gain, says):
    content = confirmed(LEVELS)
    for seeds in ("2000, 2001", "2002, 2003"):
        for arm, level in ((TOP_K, 0.1), (BOTH, 0.1 + gain)):
            part = f"length: length: {seeds}"
            row = {"part": part, "arm": arm, "less_null": level, "returning_0.7": 2 * level}
            content["pairs"].append(row)
    found = StudyFacts(content)
    sentence = found.length_sentence
    assert says in sentence
    assert f"{gain:.3f} after 16,000 steps (2 pairs) and 0.150 after 4,000" in sentence
    assert "| 16,000 steps, two pairs; no test | returning | 0.20 | – | – | " in found.table
    assert f" | {2 * (0.1 + gain):.2f} | – |" in found.table
    assert facts().length_sentence == ""


def test_where_the_rival_is_ahead_and_where_behind():
    first, *_, last = CONFIRM
    content = confirmed(LEVELS | {RIVAL: 0.3})
    assert StudyFacts(content).rival_sentence == f"Ahead in every pair: {first}."
    other = confirmed(LEVELS | {RIVAL: 0.2}, name=last)
    content |= {kind: content[kind] + other[kind] for kind in ("pairs", "saes")}
    assert StudyFacts(content).rival_sentence == (
        f"Ahead in every pair: {first}. Behind in every pair: {last}."
    )
    row = next(row for row in content["pairs"] if last in row["part"] and row["arm"] == RIVAL)
    row["less_null"] = 0.9
    assert StudyFacts(content).rival_sentence.endswith(f" It depends on the pair: {last}.")
    assert facts().rival_sentence == ""
