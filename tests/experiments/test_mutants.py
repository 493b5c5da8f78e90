"""The scores of `make mutants`."""

from collections import Counter

from experiments.robustness.mutants import table, too_low


def test_a_folder_below_its_threshold_is_named():
    ran = Counter({"trainers": 10, "evaluation": 10, "sweep": 10, "training": 10})
    alive = Counter({"trainers": 1, "evaluation": 2, "sweep": 2, "training": 3})
    assert too_low(ran, alive) == [
        "evaluation: 8 of 10 were noticed; expected 90%",
        "training: 7 of 10 were noticed; expected 80%",
    ]
    *_, total = table(ran, alive, Counter({"sweep": 3})).splitlines()
    assert total.split() == ["all", "40", "32", "80%", "3"]
