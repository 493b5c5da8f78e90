"""The step's definition against the equations written densely, and its one derived gradient."""

import dataclasses

import pytest
import torch as t
from dense_reference import dense_loss
from step_cases import (
    BATCH,
    CASES,
    D,
    F,
    assert_close,
    assert_near,
    assert_same_terms,
    bf16_case,
    each,
    gradients,
    in_float32,
    make_case,
)

from dictionary_learning_ext.trainers import step
from dictionary_learning_ext.trainers.step import SparseDecode, code_by_mean, variational_loss


@pytest.fixture
def decode_as(monkeypatch):
    """Sets how codes are decoded, whatever k/F is."""
    return lambda form: monkeypatch.setattr(
        step, "dense_from", lambda *_: {"sparse": t.inf, "dense": 0.0}[form]
    )


forms = pytest.mark.parametrize("form", ["sparse", "dense"])


def assert_is_dense(x, weights, objective):
    """The loss's terms and gradients are those of the dense form. Returns the terms."""
    terms, got = gradients(variational_loss, x, weights, objective)
    reference, expected = gradients(dense_loss, x, weights, objective)
    assert_same_terms(terms, reference, rtol=1e-12, atol=1e-12)
    assert_close(got, expected)
    return terms


@each(CASES)
def test_it_is_the_equations_written_densely(case, decode_as):
    decode_as(case.form)
    terms = assert_is_dense(*make_case(aux=case.aux, **case.options))
    assert (terms.auxk_loss > 0) == case.aux


@each([case for case in CASES if case.options["noise_on"] != "values"])
def test_bf16_gradients_are_near_exact_ones(case, decode_as, monkeypatch):
    decode_as(case.form)
    exact = bf16_case(**case.options | {"select_by": "value"})
    noise = t.randn(BATCH, F, generator=t.Generator().manual_seed(2))
    monkeypatch.setattr(step, "noise_of", lambda mu, how: noise.to(mu.dtype))
    found = gradients(variational_loss, *in_float32(*exact, matmul_dtype=t.bfloat16))
    assert_near(*found, *gradients(variational_loss, *exact))


@pytest.mark.parametrize("posterior", ["fixed", "learned", "point"])
@pytest.mark.parametrize("kl_weight", [0.0, 1.0])
def test_where_the_kl_counts_nothing_or_in_full(kl_weight, posterior):
    x, weights, objective = make_case(posterior=posterior)
    assert_is_dense(x, weights, dataclasses.replace(objective, kl_weight=kl_weight))


def test_rows_without_a_positive_selected_mean_do_not_count_in_the_threshold():
    x, weights, objective = make_case(k=8, posterior="point")
    weights = weights._replace(b_enc_F=weights.b_enc_F - 6)
    largest = ((x - weights.b_dec_D) @ weights.W_enc_FD.T + weights.b_enc_F).amax(1)
    assert 0 < (largest > 0).sum() < BATCH, "the case must hold such rows"
    assert_is_dense(x, weights, objective)


@forms
def test_a_zero_of_a_relu_has_not_fired(form, decode_as):
    decode_as(form)
    x, weights, objective = make_case(k=8, rectify=True, noise_on="selection")
    weights = weights._replace(b_enc_F=weights.b_enc_F - 3)
    assert_is_dense(x, weights, objective)
    largest = step.means(x, weights, objective).topk(8).values
    assert (largest == 0).any(1).sum() > 5


@pytest.mark.parametrize(
    ("form", "rectify", "select_by"),
    [("sparse", False, "value"), ("dense", True, "value"), ("sparse", False, "magnitude")],
)
def test_auxk_reaches_no_living_feature_where_it_takes_more_than_are_dead(
    form, rectify, select_by, decode_as
):
    decode_as(form)
    given = {"rectify": rectify, "select_by": select_by, "posterior": "point"}
    x, weights, objective = make_case(**given)
    since_fired = objective.tokens_since_fired_F.clone()
    idle = weights.b_enc_F.argsort()[:2]
    weights.b_enc_F[idle] = -3 if not rectify else weights.b_enc_F[idle]
    if select_by == "magnitude":
        weights.W_enc_FD[idle], weights.b_enc_F[idle] = weights.W_enc_FD[idle] / 100, -0.01
    since_fired[idle] = 1000
    objective = dataclasses.replace(objective, tokens_since_fired_F=since_fired)
    terms = assert_is_dense(x, weights, objective)
    n_dead = int((terms.tokens_since_fired_F >= objective.dead_feature_threshold).sum())
    assert 0 < n_dead < objective.top_k_aux, "the case must have fewer dead than AuxK takes"
    assert terms.auxk_loss > 0


def test_the_code_by_the_mean_is_the_k_largest_means():
    x, weights, objective = make_case(rectify=True, k=4)
    mu_BF = ((x - weights.b_dec_D) @ weights.W_enc_FD.T + weights.b_enc_F).clamp(min=0)
    values_BK, indices_BK = mu_BF.topk(4, sorted=False)
    code = code_by_mean(x, weights, objective)
    assert t.equal(code.selection.indices, indices_BK)
    t.testing.assert_close(code.values, values_BK)
    assert t.equal(code.values, code.means)


# --- the sparse decode


def decoded(indices_BK, dtype=t.float64):
    def of(values_BK, weight_FD):
        return SparseDecode.apply(indices_BK, values_BK, weight_FD, dtype)

    return of


@pytest.fixture
def code():
    """Features that many rows select, and some that none does."""
    generator = t.Generator().manual_seed(0)
    indices_BK = t.randn(BATCH, F - 5, generator=generator).topk(4).indices
    indices_BK[:, 0] = F - 3
    values_BK = t.randn(BATCH, 4, generator=generator, dtype=t.float64)
    return indices_BK, values_BK, t.randn(F, D, generator=generator, dtype=t.float64)


def test_the_sparse_decodes_gradients_are_numerical_ones(code):
    indices_BK, *leaves = code
    leaves = [leaf.requires_grad_() for leaf in leaves]
    assert t.autograd.gradcheck(decoded(indices_BK), leaves)


@pytest.mark.parametrize(("dtype", "error"), [(t.float64, 1e-12), (t.bfloat16, 0.02)])
def test_the_sparse_decode_is_the_dense_one(code, dtype, error):
    indices_BK, values_BK, weight_FD = code
    if dtype == t.bfloat16:
        values_BK, weight_FD = values_BK.float(), weight_FD.float()
    grad_BD = t.randn(BATCH, D, generator=t.Generator().manual_seed(1)).to(weight_FD)
    found = []
    for form in ("sparse", "dense"):
        leaves = [leaf.clone().requires_grad_() for leaf in (values_BK, weight_FD)]
        if form == "sparse":
            product_BD = decoded(indices_BK, dtype)(*leaves)
        else:
            f_BF = t.zeros(BATCH, F, dtype=weight_FD.dtype).scatter(1, indices_BK, leaves[0])
            product_BD = f_BF @ leaves[1]
        first = t.autograd.grad(product_BD, leaves, grad_BD, retain_graph=True)
        second = t.autograd.grad(product_BD, leaves, 2 * grad_BD)
        for one, other in zip(first, second, strict=True):
            assert t.equal(2 * one, other)
        found.append([product_BD, *first])
    for one, other in zip(*found, strict=True):
        assert one.dtype == other.dtype
        assert (one - other).abs().max() <= error * other.abs().max()


def test_it_takes_no_gradient_of_weights_that_are_not_trained(code):
    indices_BK, values_BK, weight_FD = code
    values_BK.requires_grad_()
    (grad_BK,) = t.autograd.grad(decoded(indices_BK)(values_BK, weight_FD).sum(), [values_BK])
    t.testing.assert_close(grad_BK, weight_FD.sum(1)[indices_BK])
