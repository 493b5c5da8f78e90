"""What a feature that comes back is worth: what is measured of each feature, and which are compared."""

import numpy as np
import pytest
import torch as t
from scipy.sparse import csr_matrix

from dictionary_learning_ext import load_language_model
from dictionary_learning_ext.activations.hook_points import find_hook, read_residual
from dictionary_learning_ext.activations.language_models import unwrapped
from dictionary_learning_ext.features.codes import Codes
from experiments.reproducibility import worth
from experiments.reproducibility.worth import Contexts, Firing


def codes_of(code_NF, width=4):
    directions_FD = t.nn.functional.normalize(t.randn(code_NF.shape[1], width), dim=1)
    return Codes(csr_matrix(np.asarray(code_NF, dtype=np.float32)), directions_FD, 2)


def test_the_information_of_a_feature_that_fires_at_one_token_is_that_tokens_entropy():
    token_N = np.random.default_rng(0).integers(0, 4, 40_000)
    code_NF = np.stack([token_N == 0, np.random.default_rng(1).random(40_000) < 0.25], 1)
    found = worth.information(codes_of(code_NF), token_N, seed=0)
    entropy = -(0.25 * np.log2(0.25) + 0.75 * np.log2(0.75))
    assert found[0] == pytest.approx(entropy, rel=0.01)
    assert abs(found[1]) < 1e-3, "chance"


def test_a_feature_is_compared_with_one_that_is_alike_and_does_not_return():
    returns_F = np.array([True, True, False, False, False, False])
    is_used_F = np.array([True, True, True, True, True, False])
    logs_XF = np.array([[0.0, 1.0, 0.1, 1.2, 9.0, 0.0], [0.0, 0.0, 0.1, 0.9, 0.0, 0.0]])
    ours, others = worth.matched_pairs(returns_F, is_used_F, logs_XF[:1])
    assert {*zip(ours, others, strict=True)} == {(0, 2), (1, 3)}
    ours, others = worth.matched_pairs(returns_F, is_used_F, logs_XF)
    assert [*zip(ours, others, strict=True)] == [(0, 2)], "the other differs in the second"


def test_an_effect_is_the_kl_of_the_language_model_run_without_the_contribution():
    model = unwrapped(load_language_model("embedded"))
    hook = find_hook(model, "blocks.2.hook_resid_post")
    ids_CL = t.randint(5, 4000, (2, 12), generator=t.Generator().manual_seed(0))
    code_NF = np.zeros((24, 3))
    code_NF[3, 0] = code_NF[17, 0] = 2.0
    code_NF[5, 1] = 3.0
    codes = codes_of(code_NF, width=hook.activation_dim)
    firing = worth.draw_firings(codes, 12, seed=0)
    assert sorted(zip(firing.feature_M, firing.context_M, firing.position_M, strict=True)) == [
        (0, 0, 3),
        (0, 1, 5),
        (1, 0, 5),
    ]
    contexts = Contexts(ids_CL, {})
    kl_F, change_FV = worth.effects(model.module, hook.place, contexts, codes, firing)

    def log_probabilities(context, position, taken_D):
        """By a model whose later blocks read the changed activations, as `steer` does."""
        x_1LD = read_residual(model, hook, ids_CL[context][None], t.ones(1, 12))
        changed = x_1LD.clone()
        changed[0, position] -= taken_D
        with t.no_grad(), worth.hooked(hook.place, lambda _: changed):
            return model.module(ids_CL[context][None]).logits[0, position].log_softmax(-1)

    expected, moved = [], []
    for context, position in ((0, 3), (1, 5)):
        whole = log_probabilities(context, position, 0.0)
        without = log_probabilities(context, position, 2.0 * codes.directions_FD[0])
        expected.append(float((whole.exp() * (whole - without)).sum()))
        moved.append(without - whole)
    assert kl_F[0] == pytest.approx(np.mean(expected), rel=1e-3)
    t.testing.assert_close(change_FV[0], t.stack(moved).mean(0), atol=1e-4, rtol=1e-3)
    assert kl_F[1] > 0
    assert np.isnan(kl_F[2]), "it never fires"


def test_no_more_tokens_of_a_feature_are_drawn_than_asked_for():
    firing = worth.draw_firings(codes_of(np.ones((500, 2))), 10, seed=3)
    assert isinstance(firing, Firing)
    assert np.bincount(firing.feature_M).tolist() == [worth.FIRINGS] * 2
