"""How many features an SAE uses, and which most."""

import pytest

pytest.importorskip("sae_bench", reason="needs the extra: pip install -e '.[saebench]'")

from dictionary_learning_ext.sae_bench.feature_usage import in_use, most_used


def test_the_most_used_features_are_kept():
    assert most_used([5, 0, 9, 7], 2).tolist() == [False, False, True, True]


def test_the_features_in_use_are_those_that_are_not_near_dead():
    core = {"eval_result_unstructured": {"selected": [100, 0, 90, 1], "near_dead_0.1": 0.5}}
    assert in_use(core) == 2
