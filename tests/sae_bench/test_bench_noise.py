"""Spreads over bench seeds, and the smallest difference that is not noise."""

from statistics import mean, stdev

import numpy as np
import pytest
from scipy.stats import ttest_rel

pytest.importorskip("sae_bench", reason="needs the extra: pip install -e '.[saebench]'")

from dictionary_learning_ext.sae_bench.bench_noise import difference, spread


def by_seed(values):
    return {42 + i: float(value) for i, value in enumerate(values)}


def test_a_spread_is_the_sample_standard_deviation():
    assert spread([1.0, 2.0, 4.0]) == (mean([1, 2, 4]), stdev([1, 2, 4]))
    assert spread([3.0]) == (3.0, None)


@pytest.mark.parametrize("seed", range(20))
def test_a_difference_is_noise_where_a_paired_t_test_does_not_reject(seed):
    rng = np.random.default_rng(seed)
    texts = rng.normal(size=5)  # that both SAEs share
    a, b = texts + rng.normal(0.2, 0.3, size=5), texts + rng.normal(size=5, scale=0.1)
    found = difference(by_seed(a), by_seed(b))
    assert found is not None
    assert found.mean == pytest.approx(np.mean(a - b))
    assert found.is_noise == (ttest_rel(a, b).pvalue >= 0.05)


def test_what_can_not_be_compared():
    assert difference({42: 1.0}, {43: 1.0}) is None
    found = difference({42: 1.5}, {42: 1.0, 43: 1.0})
    assert found == (0.5, None, True)
    assert found is not None
    assert not found.is_noise
    equal = difference(by_seed([1, 2, 3]), by_seed([1, 2, 3]))
    assert equal is not None
    assert equal.is_noise, "no difference at all"
    constant = difference(by_seed([2, 2, 2]), by_seed([1, 1, 1]))
    assert constant == (1.0, 0.0, False), "the seeds do nothing"
    assert constant is not None
    assert not constant.is_noise
