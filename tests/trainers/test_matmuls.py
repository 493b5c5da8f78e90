"""Products in bfloat16 where the CPU has no instructions for it, against float64 and against those of this machine."""

import pytest
import torch as t
from step_cases import bf16_case, in_float32

from dictionary_learning_ext.trainers import matmuls
from dictionary_learning_ext.trainers.kernels.encode import BatchMeans
from dictionary_learning_ext.trainers.kernels.products import DenseCode, SparseCode
from dictionary_learning_ext.trainers.kernels.step import step
from dictionary_learning_ext.trainers.matmuls import Densities, Linear, product

B, D, F, K = 24, 40, 64, 9
FORMS = {"sparse": Densities(1.0, 1.0), "mixed": Densities(1.0, 0.0), "dense": Densities(0.0, 0.0)}


@pytest.fixture
def without_instructions(monkeypatch):
    """Lets bfloat16 be emulated from the call on."""
    return lambda: monkeypatch.setattr(matmuls, "bf16_instructions", lambda: None)


def tensors(*shapes):
    generator = t.Generator().manual_seed(0)
    return [t.randn(*shape, generator=generator) for shape in shapes]


def narrow(x):
    """Rounded to bf16, in float64."""
    return x.bfloat16().double()


def assert_rounded(found, exact):
    """`found` is `exact` rounded to bf16 once. A sum in float32 may fall on the other side of a tie."""
    assert t.equal(found.bfloat16().to(found), found)
    is_equal = found.double() == narrow(exact)
    assert is_equal.double().mean() > 0.98
    assert ((found.double() - exact).abs() <= 2**-8 * exact.abs() + 1e-4).all()


@pytest.mark.parametrize("held", [t.float32, t.bfloat16])
def test_a_product_and_its_gradients_are_those_of_rounded_operands(held, without_instructions):
    without_instructions()
    x_BD, weight_FD, grad_BF = tensors((B, D), (F, D), (B, F))
    leaves = [each.to(held).requires_grad_() for each in (x_BD, weight_FD)]
    found = product(*leaves, t.bfloat16)
    assert found.dtype == t.bfloat16
    assert_rounded(found.detach(), narrow(x_BD) @ narrow(weight_FD).T)
    gradients = t.autograd.grad(found, leaves, grad_BF.bfloat16())
    exact = narrow(grad_BF) @ narrow(weight_FD), narrow(grad_BF).T @ narrow(x_BD)
    for one, other in zip(gradients, exact, strict=True):
        assert one.dtype == held
        assert_rounded(one, other)


def test_a_bias_is_added_before_the_product_is_rounded(without_instructions):
    without_instructions()
    layer, (x_BD,) = Linear(D, F).bfloat16(), tensors((B, D))
    exact = narrow(x_BD) @ narrow(layer.weight).T + narrow(layer.bias)
    assert_rounded(layer(x_BD.bfloat16()).detach(), exact.detach())


@pytest.mark.parametrize("form", ["mixed", "dense"])
def test_products_of_a_code_are_those_of_rounded_operands(form, without_instructions):
    without_instructions()
    values_BK, weight_FD, rows_BD, key_BF = tensors((B, K), (F, D), (B, D), (B, F))
    indices_BK = key_BF.topk(K).indices
    if form == "dense":
        code = DenseCode(indices_BK, F, t.bfloat16, "code")
    else:
        code = SparseCode(indices_BK, F, t.bfloat16, projects_densely=True)
    code_BF = t.zeros(B, F, dtype=t.float64).scatter(1, indices_BK, narrow(values_BK))
    assert_rounded(code.combine(values_BK, weight_FD), code_BF @ narrow(weight_FD))
    products_BF = narrow(rows_BD) @ narrow(weight_FD).T
    assert_rounded(code.project(rows_BD), products_BF.gather(1, indices_BK))
    assert_rounded(code.outer(values_BK, rows_BD), code_BF.T @ narrow(rows_BD))


@pytest.mark.parametrize("rectify", [False, True])
def test_moments_are_rounded_as_by_instructions(rectify, without_instructions):
    """Without a ReLU three times: the products of activations, these over B, and their products with weights."""
    x_BD, weight_FD, bias_F = tensors((B, D), (F, D), (F,))
    without_instructions()
    options = {"rectify": rectify, "matmul_dtype": t.bfloat16}
    moments = BatchMeans(x_BD, weight_FD, bias_F, **options).moments()
    if rectify:
        products_BF = narrow(narrow(x_BD) @ narrow(weight_FD).T)
        mu_BF = narrow((products_BF.float() + bias_F).relu())
        cross_FD = narrow(mu_BF.T @ narrow(x_BD)) / B
    else:
        mean_D = x_BD.mean(0)
        centred_BD = narrow(x_BD - mean_D)
        second_DD = narrow(narrow(centred_BD.T @ centred_BD) / B)
        cross_FD = narrow(narrow(weight_FD) @ second_DD)
        cross_FD += t.outer((weight_FD @ mean_D + bias_F).double(), mean_D.double())
    error = (moments.cross_FD.double() - cross_FD).abs()
    assert (error < 1e-5).double().mean() > 0.98
    assert error.max() < 2**-7 * cross_FD.abs().max()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rectify", [False, True])
def test_a_step_is_that_of_the_instructions_here(form, rectify, without_instructions, monkeypatch):
    """Where this machine has none, torch's own products in bf16 take their place."""
    monkeypatch.setattr(Densities, "here", lambda _: FORMS[form])
    found = []
    monkeypatch.setattr(matmuls, "bf16_instructions", lambda: "torch's own")
    for _ in range(2):
        exact = bf16_case(rectify=rectify, noise_on="both", posterior="fixed", select_by="value")
        x, weights, objective = in_float32(*exact, matmul_dtype=t.bfloat16)
        terms, gradients = step(weights, objective, x)
        found.append([terms.loss, *gradients])
        without_instructions()
    for one, other in zip(*found, strict=True):
        assert (one - other).abs().max() <= 2e-3 * one.abs().max()
