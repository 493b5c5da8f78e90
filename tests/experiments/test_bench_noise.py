"""The verdicts of the page on SAE Bench's noise, on planted numbers."""

import numpy as np
import pytest
from scipy.stats import tukey_hsd

from experiments.better_vsae import bench_noise


def planted(arms, floors=(0.1, 0.2, 0.3), bench_seeds=("42", "43"), noise=0.01, seed=0):
    """Values of one metric: each arm's mean, with noise of training, and a shift of all by bench seed."""
    rng = np.random.default_rng(seed)
    values = {}
    for arm, level in zip(bench_noise.ARMS, arms, strict=True):
        for one in range(bench_noise.SEEDS):
            trained = level + noise * rng.normal()
            of_seeds = {each: trained + 0.3 * i for i, each in enumerate(bench_seeds)}
            values[bench_noise.run_name(arm, one)] = {"m": of_seeds}
    labels = ("random_F512", "random_spectrum", "frozen_decoder", "identity")
    for label, level in zip(labels, (*floors, 1.0), strict=True):
        values[label] = {"m": {"42": level}}
    return values


def test_the_noise_of_training_does_not_hold_that_of_the_bench():
    values = planted((0.5, 0.5, 0.5))
    assert bench_noise.training_noise(values, "m") < 0.03
    assert bench_noise.bench_noise(values, "m") == pytest.approx(0.3 / 2**0.5)


@pytest.mark.parametrize("seed", range(20))
def test_kinds_differ_where_tukeys_test_says_so(seed):
    values = planted((0.50, 0.515, 0.51), seed=seed)
    samples = [bench_noise.means(values, arm, "m", ["42", "43"]) for arm in bench_noise.ARMS]
    rejects = bool((tukey_hsd(*samples).pvalue < 0.05).any())
    assert bench_noise.verdicts_of(values, "m")[1] == rejects


def test_floors_are_compared_on_their_own_bench_seed():
    """With both seeds, the arms would be 0.15 higher."""
    assert bench_noise.verdicts_of(planted((0.5, 0.5, 0.5), (0.1, 0.2, 0.3)), "m")[0]
    assert not bench_noise.verdicts_of(planted((0.5, 0.5, 0.5), (0.1, 0.2, 0.55)), "m")[0]


def test_of_near_dead_features_fewer_are_better(monkeypatch):
    monkeypatch.setattr(bench_noise, "LESS_IS_MORE", ("m",))
    assert bench_noise.verdicts_of(planted((0.1, 0.1, 0.1), (0.5, 0.6, 0.7)), "m")[0]
    assert not bench_noise.verdicts_of(planted((0.5, 0.5, 0.5), (0.1, 0.2, 0.3)), "m")[0]


@pytest.mark.parametrize("place", bench_noise.PLACES.values(), ids=bench_noise.PLACES)
def test_the_frozen_decoder_is_trained_as_topks_first_seed(place):
    size = place.run.steps, place.run.batch_size
    frozen = bench_noise.frozen_decoder_config(place).resolve(*size)
    top_k = bench_noise.config_of("TopK", place, 0).resolve(*size)
    assert frozen.freeze_decoder
    matched = ("lr", "warmup_steps", "decay_start", "auxk_alpha", "dead_feature_threshold")
    for name in (*matched, "k", "dict_size", "seed"):
        assert getattr(frozen, name) == getattr(top_k, name)
