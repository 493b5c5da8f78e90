"""How many features an SAE uses, and which most."""

import pytest

pytest.importorskip("sae_bench", reason="needs the extra: pip install -e '.[saebench]'")

from dictionary_learning_ext.sae_bench.feature_usage import in_use, most_used


def test_the_most_used_features_are_kept():
    assert most_used([5, 0, 9, 7], 2).tolist() == [False, False, True, True]


def test_a_feature_is_in_use_from_a_tenth_of_the_mean():
    assert in_use([100, 0, 90, 1]) == 2, "1 is below a tenth of the mean"
