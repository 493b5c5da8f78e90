"""How many features SCR and TPP ablate."""

import pytest

from dictionary_learning_ext.errors import BenchError

pytest.importorskip("sae_bench", reason="needs the extra: pip install -e '.[saebench]'")

from dictionary_learning_ext.sae_bench.results import curve
from dictionary_learning_ext.sae_bench.settings import capped_n_values


def test_n_is_at_most_a_tenth_of_the_dictionary(benched):
    assert benched.results["vsae"]["scr"]["eval_config"]["n_values"] == [2, 5]
    assert list(curve(benched.results["vsae"]["tpp"], "total_metric")) == [2, 5]
    assert capped_n_values(512) == (2, 5, 10, 20, 50)
    with pytest.raises(BenchError, match="an SAE has 19 features: expected 20 or more"):
        capped_n_values(19)
