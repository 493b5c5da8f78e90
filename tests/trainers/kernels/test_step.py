"""The compiled step against the definition, `trainers/step.py`, given the same noise."""

import dataclasses
import itertools

import pytest
import torch as t
from dense_reference import compiled_noise
from recorded_ops import RecordedOps
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

from dictionary_learning_ext.trainers import step as definition
from dictionary_learning_ext.trainers.kernels import compiled, products
from dictionary_learning_ext.trainers.kernels.encode import BatchMeans
from dictionary_learning_ext.trainers.kernels.select import draw_batch
from dictionary_learning_ext.trainers.kernels.step import step
from dictionary_learning_ext.trainers.matmuls import Densities
from dictionary_learning_ext.trainers.parts import Selection
from dictionary_learning_ext.trainers.step import Weights, variational_loss

COMPILED = [
    case._replace(
        options=case.options
        | {"select_by": "value"}
        | ({"posterior": "fixed"} if case.options.get("posterior") == "learned" else {})
    )
    for case in CASES
]
"""The cases, with what has no compiled step replaced by what has one."""
FORMS = {"sparse": Densities(1.0, 1.0), "mixed": Densities(1.0, 0.0), "dense": Densities(0.0, 0.0)}


@pytest.fixture
def multiply_as(monkeypatch):
    """Sets the form of products with codes, at any density."""
    return lambda form: monkeypatch.setattr(products.Densities, "here", lambda _: FORMS[form])


def stepped(x, weights, objective):
    """The compiled step's terms and gradients."""
    objective.generator.manual_seed(7)
    terms, found = step(weights, objective, x)
    return terms, list(found)


def exactly(x, weights, objective, noise_on="both"):
    """The definition's terms and gradients in float64, with the compiled step's noise."""
    wide = Weights(*(w if w is None else w.double() for w in weights))

    def noise_of(mu, how):
        return compiled_noise(*mu.shape, how.generator, noise_on).double()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(definition, "noise_of", noise_of)
        terms, (*found, _) = gradients(variational_loss, x.double(), wide, objective)
    return terms, found


@each([case for case in COMPILED if case.options["noise_on"] != "values"])
def test_it_is_the_definition(case, multiply_as):
    multiply_as(case.form)
    x, weights, objective = make_case(aux=case.aux, **case.options)
    with RecordedOps() as ops:
        terms, got = stepped(*in_float32(x, weights, objective))
    assert ops.code_form == case.form
    assert ops.counts["topk"] == 0 or case.options["rectify"]
    assert (terms.auxk_loss > 0) == case.aux
    reference, expected = exactly(x, weights, objective)
    assert_same_terms(terms, reference, rtol=1e-4, atol=1e-6, check_dtype=False)
    assert_close(got, expected, error=1e-4)


@each([case for case in COMPILED if case.options["noise_on"] == "values"])
def test_with_noise_on_the_values_it_is_the_definition_too(case, multiply_as, monkeypatch):
    """Noise there belongs to a place among the K: the definition gets the same places."""
    multiply_as(case.form)
    x, weights, objective = make_case(aux=case.aux, **case.options)
    narrow = in_float32(x, weights, objective)
    means = BatchMeans(
        narrow[0] - narrow[1].b_dec_D,
        narrow[1].W_enc_FD,
        narrow[1].b_enc_F,
        rectify=case.options["rectify"],
        matmul_dtype=t.float32,
    )
    indices_BK = draw_batch(means, t.ones(()), objective.draw._replace(noise_scale=0.0)).indices_BK
    largest = definition.largest

    def same_places(values, k, by, part):
        if k != objective.k:  # AuxK's
            return largest(values, k, by, part)
        return Selection(
            indices_BK, definition.ranking_key(values.detach().gather(1, indices_BK), by)
        )

    monkeypatch.setattr(definition, "largest", same_places)
    terms, got = stepped(*narrow)
    reference, expected = exactly(x, weights, objective, noise_on="values")
    assert_same_terms(terms, reference, rtol=1e-4, atol=1e-6, check_dtype=False)
    assert_close(got, expected, error=1e-4)


@pytest.mark.parametrize("rectify", [False, True])
def test_auxk_pulls_no_dead_feature_by_a_mean_below_0(rectify):
    x, weights, objective = make_case(posterior="point", rectify=rectify, aux=True)
    dead_F = objective.tokens_since_fired_F >= objective.dead_feature_threshold
    weights = weights._replace(b_enc_F=weights.b_enc_F - 3 * dead_F)
    means_BF = (x - weights.b_dec_D) @ weights.W_enc_FD.T + weights.b_enc_F
    largest_BK = means_BF.where(dead_F, -t.inf).topk(objective.top_k_aux).values
    assert (largest_BK < 0).any()
    terms, got = stepped(*in_float32(x, weights, objective))
    reference, expected = exactly(x, weights, objective)
    assert_same_terms(terms, reference, rtol=1e-4, atol=1e-6, check_dtype=False)
    assert_close(got, expected, error=1e-4)


def test_a_zero_of_a_relu_has_not_fired():
    x, weights, objective = make_case(k=8, rectify=True, noise_on="selection")
    weights = weights._replace(b_enc_F=weights.b_enc_F - 3)
    terms, _ = stepped(*in_float32(x, weights, objective))
    reference, _ = exactly(x, weights, objective)
    assert t.equal(terms.tokens_since_fired_F, reference.tokens_since_fired_F)


@pytest.mark.parametrize("scope", ["all", "selected"])
@pytest.mark.parametrize("posterior", ["fixed", "point"])
def test_a_kl_without_weight_is_not_computed(posterior, scope):
    given = {
        "posterior": posterior,
        "kl_scope": scope,
        "noise_on": "both",
        "beta": 0.0,
        "aux": True,
    }
    x, weights, objective = make_case(**given)
    with RecordedOps() as ops:
        terms, got = stepped(*in_float32(x, weights, objective))
    assert terms.kl_loss == 0
    reference, expected = exactly(x, weights, objective)
    assert reference.kl_loss > 0
    assert terms.loss.item() == pytest.approx(reference.loss.item(), rel=1e-5)
    assert_close(got, expected, error=1e-4)
    weighed = dataclasses.replace(objective, kl_weight=1.0)
    with RecordedOps() as all_ops:
        stepped(*in_float32(x, weights, weighed))
    assert ops.counts.total() < all_ops.counts.total()


def test_a_step_is_the_same_on_any_number_of_threads_and_in_any_blocks(monkeypatch):
    before, results = t.get_num_threads(), []
    narrow = in_float32(*make_case(noise_on="both", aux=True))
    try:
        for rows, n_threads in itertools.product((2, 5, BATCH), (1, 2, 3)):
            t.set_num_threads(n_threads)
            monkeypatch.setattr(compiled, "BLOCK_ROWS", rows)
            terms, got = stepped(*narrow)
            results.append([terms.loss, terms.tokens_since_fired_F, *got])
    finally:
        t.set_num_threads(before)
    for other in results[1:]:  # torch's own sums over the batch depend on the threads
        for one, same in zip(results[0], other, strict=True):
            assert t.allclose(one, same, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", ["sparse", "dense"])
def test_the_next_step_leaves_a_steps_gradients_as_they_are(form, multiply_as):
    """Steps share memory."""
    multiply_as(form)
    one, other = (in_float32(*make_case(seed=s, aux=True, rectify=True)) for s in (0, 1))
    _, got = stepped(*one)
    kept = [gradient.clone() for gradient in got]
    stepped(*other)
    assert all(map(t.equal, got, kept))


@pytest.mark.parametrize("form", FORMS)
@each([case for case in COMPILED if case.options["noise_on"] == "both"])
def test_bf16_gradients_are_near_exact_ones(case, form, multiply_as):
    multiply_as(form)
    exact = bf16_case(**case.options)
    with RecordedOps() as ops:
        terms, got = stepped(*in_float32(*exact, matmul_dtype=t.bfloat16))
    assert ops.code_form == form
    assert_near(terms, got, *exactly(*exact))


@pytest.mark.parametrize(("matmul_dtype", "error"), [(t.float32, 1e-5), (t.bfloat16, 0.01)])
def test_second_moments_of_activations_a_thousand_standard_deviations_from_0(matmul_dtype, error):
    """The bias cancels the mean, so that the second moments are the variances."""
    generator = t.Generator().manual_seed(0)
    x = t.randn(400, D, generator=generator) + 1000 * t.randn(D, generator=generator)
    weight = t.randn(F, D, generator=generator)
    bias = -(weight.double() @ x.double().mean(0)).float()
    means = BatchMeans(x, weight, bias, matmul_dtype=matmul_dtype, rectify=False)
    mu = x.double() @ weight.double().T + bias.double()
    found = means.moments().square_F.double()
    t.testing.assert_close(found, mu.square().mean(0), rtol=error, atol=0)


def test_rectified_means_in_bf16_add_the_bias_in_float32():
    generator = t.Generator().manual_seed(0)
    x, weight = t.randn(50, D, generator=generator), t.randn(F, D, generator=generator)
    bias = 5 * t.randn(F, generator=generator)
    plain, rectified = (
        sum(
            BatchMeans(x, weight, bias, matmul_dtype=t.bfloat16, rectify=r).unfinished(slice(0, 50))
        )
        for r in (False, True)
    )
    assert t.equal(rectified, plain.relu())
