"""SAELens's measures of an SAE against the truth, computed again by numpy, scipy and scikit-learn."""

from typing import NamedTuple

import numpy as np
import pytest
import torch as t
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from measurement import Measurement
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import f1_score

pytest.importorskip("sae_lens", reason="needs the extra: pip install -e '.[synthetic]'")

T, D, F, K, B = 12, 6, 9, 3, 64


class Known(NamedTuple):
    vectors_TD: t.Tensor
    firing_BT: t.Tensor


@pytest.fixture
def truth():
    generator = t.Generator().manual_seed(0)
    vectors_TD = t.nn.functional.normalize(t.randn(T, D, generator=generator), dim=1)
    shape = (B, T)
    firing_BT = t.rand(shape, generator=generator) * (t.rand(shape, generator=generator) < 0.2)
    return Known(vectors_TD, firing_BT)


@pytest.fixture
def sae():
    t.manual_seed(1)
    return AutoEncoderTopK(D, F, K)


def measured(sae, truth, parts=1):
    measurement = Measurement(sae, truth=truth)
    for firing_BT in truth.firing_BT.chunk(parts):
        measurement._match._truth = truth._replace(firing_BT=firing_BT)
        measurement.add(firing_BT @ truth.vectors_TD)
    return measurement.metrics()


@pytest.mark.parametrize("parts", [1, 4])
def test_the_measures_equal_independent_computations(sae, truth, parts):
    found = measured(sae, truth, parts)
    directions_FD = sae.decoder.weight.detach().t().numpy().astype(float)
    directions_FD /= np.linalg.norm(directions_FD, axis=1, keepdims=True)
    cosines_FT = np.abs(directions_FD @ truth.vectors_TD.numpy().T)
    rows, columns = linear_sum_assignment(cosines_FT, maximize=True)
    assert found["true_mcc"] == pytest.approx(cosines_FT[rows, columns].mean(), abs=1e-6)

    best_F = cosines_FT.argmax(1)
    assert found["true_coverage"] == pytest.approx(len(set(best_F)) / T)
    assert found["uniqueness"] == pytest.approx(len(set(best_F)) / F)

    fires_BF = (sae.encode(truth.firing_BT @ truth.vectors_TD) != 0).numpy()
    true_BF = (truth.firing_BT > 0).numpy()[:, best_F]
    scores = [f1_score(true_BF[:, i], fires_BF[:, i], zero_division=0.0) for i in range(F)]
    assert found["firing_f1"] == pytest.approx(np.mean(scores), abs=1e-6)


def test_the_truth_itself_scores_1(truth):
    sae = AutoEncoderTopK(T, T, T)
    with t.no_grad():
        sae.encoder.weight.copy_(t.eye(T))
        sae.decoder.weight.copy_(-t.eye(T))
    found = measured(sae, truth._replace(vectors_TD=t.eye(T)))
    names = ("true_mcc", "firing_f1", "true_coverage", "uniqueness")
    assert [found[name] for name in names] == pytest.approx([1.0] * 4)
