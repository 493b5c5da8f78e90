"""The guard around an optimiser: against torch's own steps, and against upstream's around them."""

import copy
import math

import pytest
import torch as t
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from dictionary_learning.trainers.trainer import (
    remove_gradient_parallel_to_decoder_directions,
    set_decoder_norm_to_unit_norm,
)

from dictionary_learning_ext.trainers.optimizers import (
    Guarded,
    UnitNorm,
    adam,
    project_out_parallel,
)

D, F, K, LR = 6, 20, 4, 1e-2


def batch(seed):
    return t.randn(32, D, generator=t.Generator().manual_seed(seed), dtype=t.float64)


def loss_of(sae, x):
    return (x - sae(x)).square().sum(1).mean()


def make_sae():
    t.manual_seed(0)
    return AutoEncoderTopK(D, F, K).double()


def weights_of(sae):
    return {name: value.clone() for name, value in sae.state_dict().items()}


def step_of(sae, optimizer, step):
    loss = loss_of(sae, batch(step))
    loss.backward()
    return optimizer.step(loss, step)


def sgd(parameters, lr):
    """One that isn't fused."""
    return t.optim.SGD(parameters, lr, momentum=0.9)


def unit_norm(sae, kind=adam):
    return UnitNorm(kind(sae.parameters(), LR), sae)


@pytest.mark.parametrize(("kind", "plain"), [(adam, t.optim.Adam), (sgd, sgd)])
def test_a_guarded_optimiser_is_torchs_with_clipping(kind, plain):
    ours, theirs = make_sae(), make_sae()
    guarded, optimizer = Guarded(kind(ours.parameters(), LR)), plain(theirs.parameters(), LR)
    for step in range(10):
        assert step_of(ours, guarded, step)
        loss_of(theirs, batch(step)).backward()
        norm = t.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        assert norm > 1, "the case must be clipped"
    for name, value in theirs.state_dict().items():
        assert t.allclose(ours.state_dict()[name], value, atol=1e-12), name


def test_a_unit_norm_step_is_upstreams():
    ours, theirs = make_sae(), make_sae()
    optimizer, upstreams = unit_norm(ours), t.optim.Adam(theirs.parameters(), LR)
    for step in range(10):
        assert step_of(ours, optimizer, step)
        loss_of(theirs, batch(step)).backward()
        weight = theirs.decoder.weight
        weight.grad = remove_gradient_parallel_to_decoder_directions(weight, weight.grad, D, F)
        t.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        upstreams.step()
        upstreams.zero_grad()
        weight.data = set_decoder_norm_to_unit_norm(weight, D, F)
    for name, value in theirs.state_dict().items():
        assert t.allclose(ours.state_dict()[name], value, atol=1e-12), name


def test_a_projected_gradient_does_not_change_the_norms():
    generator = t.Generator().manual_seed(0)
    weight, grad = (t.randn(D, F, generator=generator, dtype=t.float64) for _ in range(2))
    expected = remove_gradient_parallel_to_decoder_directions(weight, grad.clone(), D, F)
    project_out_parallel(weight, grad)
    assert t.allclose(grad, expected)
    assert (weight * grad).sum(0).abs().max() < 1e-4  # 1e-6 is added to a column's norm


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("kind", [adam, sgd])
@pytest.mark.parametrize("is_unit_norm", [False, True])
def test_a_step_that_is_not_finite_is_skipped_and_counted(is_unit_norm, kind, what):
    sae = make_sae()
    optimizer = unit_norm(sae, kind) if is_unit_norm else Guarded(kind(sae.parameters(), LR))
    assert optimizer.first_skipped_step == -1
    step_of(sae, optimizer, 0)
    weights, moments = weights_of(sae), copy.deepcopy(optimizer.state_dict()["state"])
    for step in (5, 6):
        loss = loss_of(sae, batch(step))
        loss.backward()
        if what == "gradient":
            sae.encoder.bias.grad[0] = math.inf
        else:
            loss = loss * math.nan
        assert not optimizer.step(loss, step)
    assert all(t.equal(value, weights[name]) for name, value in sae.state_dict().items())
    for index, state in optimizer.state_dict()["state"].items():
        assert all(t.equal(value, moments[index][name]) for name, value in state.items())
    assert (optimizer.skipped_steps, optimizer.first_skipped_step) == (2, 5)
    assert all(parameter.grad is None for parameter in sae.parameters())
    assert step_of(sae, optimizer, 7)
    assert not t.equal(sae.encoder.bias, weights["encoder.bias"])


def test_a_parameter_without_a_gradient_stays():
    sae = make_sae()
    sae.extra = t.nn.Parameter(t.ones(2))
    assert step_of(sae, Guarded(adam(sae.parameters(), LR)), 0)
    assert t.equal(sae.extra, t.ones(2))


def test_a_states_names_have_one_order_in_every_process():
    """So that a resumed run's resume points are the same files. A set's order depends on the process."""
    optimizer = Guarded(adam([t.nn.Parameter(t.zeros(2))], 1e-3))
    *_, first, second = optimizer.state_dict()
    assert (first, second) == ("skipped_steps", "first_skipped_step")


def test_a_state_is_loaded_with_its_counts_in_the_parameters_layout():
    one = make_sae()
    one.decoder.weight.data = one.decoder.weight.data.t().contiguous().t()
    optimizer = unit_norm(one)
    step_of(one, optimizer, 0)
    optimizer.skipped_steps += 3
    optimizer.first_skipped_step.fill_(2)
    saved = copy.deepcopy(optimizer.state_dict())
    for state in saved["state"].values():  # what a file gives back
        state.update({n: v.contiguous() for n, v in state.items()})
    other = make_sae()
    other.decoder.weight.data = other.decoder.weight.data.t().contiguous().t()
    other.load_state_dict(one.state_dict())
    loaded = unit_norm(other)
    loaded.load_state_dict(saved)
    assert (loaded.skipped_steps, loaded.first_skipped_step) == (3, 2)
    assert loaded.state[other.decoder.weight]["exp_avg"].stride() == other.decoder.weight.stride()
    for step in range(1, 4):
        step_of(one, optimizer, step)
        step_of(other, loaded, step)
    assert all(t.equal(v, other.state_dict()[n]) for n, v in one.state_dict().items())
