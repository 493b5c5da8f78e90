"""What each step of our trainers follows: schedules, thresholds, the noise's generator, the dtype."""

import math
from typing import get_args

import pytest
import torch as t
from dense_reference import compiled_noise
from small_trainers import F, K, batch, built

from dictionary_learning_ext.config.sae import KLSchedule
from dictionary_learning_ext.trainers.kernels import select as selection
from dictionary_learning_ext.trainers.kernels import step as forward
from dictionary_learning_ext.trainers.posterior import kl_scale

OURS = ["vsae_top_k", "vaease"]
STEPS = 100  # of `built`


def in_float64(architecture, **options):
    trainer = built(architecture, **options)
    trainer.ae.double()
    return trainer


def gradients(trainer, x, step):
    """The gradient of each parameter that an update descends, before projection and clipping."""
    found = []

    trainer.scheduler.step = lambda: None  # torch warns if the optimiser took no step

    def record(loss, step):
        found.extend(p.grad.clone() for p in trainer.ae.parameters())
        return t.tensor(True)

    for name in ("guarded_step", "constrained_step"):
        setattr(trainer.optimizer, name, record)
    trainer.update(step, x)
    return found


@pytest.mark.parametrize("scope", ["all", "selected"])
@pytest.mark.parametrize("step", [3, 10, 40])
@pytest.mark.parametrize("schedule", get_args(KLSchedule))
def test_the_loss_and_its_gradient_follow_the_kls_schedule(schedule, step, scope):
    """loss = (loss without KL) + beta s(t) KL, and so the gradients."""
    beta, options = 0.7, {} if schedule == "constant" else {"kl_warmup_steps": 30}
    shared = {"posterior": "point", "kl_scope": scope}  # no noise, so losses can be compared
    scheduled = in_float64("vsae_top_k", **shared, **options, beta=beta, kl_schedule=schedule)
    constant, without = (
        in_float64("vsae_top_k", **shared, beta=weight, kl_schedule="constant")
        for weight in (1.0, 0.0)
    )
    x = batch(0).double()
    s = kl_scale(step, schedule, options.get("kl_warmup_steps", 0))
    assert (
        s
        == {
            "constant": 1,
            "linear": min(step / 30, 1),
            "cosine": pytest.approx((1 - math.cos(math.pi * min(step / 30, 1))) / 2),
        }[schedule]
    )
    losses = [one.loss(x, step).item() for one in (scheduled, constant, without)]
    assert losses[1] - losses[2] > 0.1
    expected = losses[2] + beta * s * (losses[1] - losses[2])
    assert losses[0] == pytest.approx(expected, rel=1e-12)
    logged = scheduled.loss(x, step, logging=True).losses
    assert logged["loss"] == pytest.approx(expected, rel=1e-12)
    each = zip(*(gradients(one, x, step) for one in (scheduled, constant, without)), strict=True)
    for got, with_kl, bare in each:
        t.testing.assert_close(got, bare + beta * s * (with_kl - bare), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("architecture", OURS)
def test_the_learning_rate_rises_stays_and_falls(architecture):
    trainer = built(architecture, lr=0.01, warmup_steps=5, decay_start=60)
    rates = []
    for step in range(STEPS):
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        trainer.update(step, batch(step))
    assert rates[:5] == pytest.approx([0.01 * step / 5 for step in range(5)])
    assert rates[5:60] == pytest.approx([0.01] * 55)
    assert rates[60:] == pytest.approx(
        [0.01 * (STEPS - s) / (STEPS - 60) for s in range(60, STEPS)]
    )


def test_a_feature_is_dead_after_as_many_tokens_as_the_constructor_was_told():
    trainer = built("vsae_top_k", dead_feature_threshold=50, posterior="point")
    x = 5 * batch(0)[:1] + 0.01 * batch(1)  # all rows select nearly the same features
    for i in range(4):
        loss = trainer.loss(x, i + 1, logging=True).losses[
            "auxk_loss"
        ]  # not step 0, which sets b_dec
        trainer.update(i + 1, x)
        is_after = len(x) * (i + 1) >= 50
        assert (loss > 0) == (trainer.dead_features > 0) == is_after, i
    assert trainer.dead_features >= F - K - 4


@pytest.mark.parametrize("noise_on", ["both", "values", "selection"])
def test_the_log_draws_the_noise_that_the_step_then_draws(noise_on):
    """So what is logged about a step is that step's loss."""
    trainer = built("vsae_top_k", noise_on=noise_on, kl_schedule="constant", sigma=0.5)
    for step in range(1, 4):
        logged = trainer.loss(batch(step), step, logging=True).losses["loss"]
        assert logged == trainer.update(step, batch(step)).item()


def test_vaeases_log_draws_the_noise_that_the_step_then_draws():
    trainer = built("vaease")
    for step in range(1, 4):
        logged = trainer.loss(batch(step), step, logging=True).losses["loss"]
        assert logged == trainer.update(step, batch(step)).item()


def test_a_batch_without_a_positive_mean_leaves_the_threshold_as_it_was():
    trainer = built("vsae_top_k", posterior="point", lr=1e-6)
    start = trainer.threshold_start_step
    assert trainer.ae.threshold == -1

    def update(step, shift):
        bias = trainer.ae.encoder.bias.data.clone()
        trainer.ae.encoder.bias.data += shift
        trainer.update(step, batch(step))
        trainer.ae.encoder.bias.data.copy_(bias)
        return trainer.ae.threshold.item()

    assert update(start, 0.0) == -1, "not yet"
    assert update(start + 1, -1e3) == -1, "no row has a positive mean"
    first = update(start + 2, 0.0)
    assert first > 0
    assert update(start + 3, -1e3) == first
    later = update(start + 4, 5.0)
    assert first < later < first + 0.1, "a running mean"


@pytest.mark.parametrize("architecture", OURS)
def test_gradients_of_before_are_not_added(architecture):
    """Compared before they are clipped: clipping makes twice a long gradient the gradient."""
    options = {"kl_schedule": "constant"} if architecture == "vsae_top_k" else {}
    used, fresh = (in_float64(architecture, **options) for _ in range(2))
    x = batch(0).double()
    state = used.generator.get_state()
    used.loss(x, 3).backward()
    assert all(p.grad.abs().sum() > 0 for p in used.ae.parameters())
    used.generator.set_state(state)
    for one, other in zip(gradients(used, x, 3), gradients(fresh, x, 3), strict=True):
        assert one.abs().sum() > 0
        assert t.equal(one, other)


@pytest.mark.parametrize("rectify", [False, True])
@pytest.mark.parametrize(
    "noise",
    [{"posterior": "point"}]
    + [
        {"posterior": p, "noise_on": n} for p in ("fixed", "learned") for n in ("both", "selection")
    ],
    ids=str,
)
def test_a_float64_step_is_the_float32_step_without_its_rounding(noise, rectify, monkeypatch):
    """With the noise that the compiled form draws in float32."""

    def draw_code(mu_BF, std, k, noise_on, noise_scale, generator, select_by):
        assert select_by == "value"
        z_BF = mu_BF
        if noise_scale:
            z_BF = mu_BF + noise_scale * std * compiled_noise(*mu_BF.shape, generator).double()
        indices_BK = z_BF.topk(k, sorted=False).indices
        return indices_BK, (z_BF if noise_on == "both" else mu_BF).gather(1, indices_BK)

    monkeypatch.setattr(selection, "draw_code", draw_code)
    options = noise | {"rectify": rectify, "kl_schedule": "constant", "lr": 1e-2, "warmup_steps": 0}
    wide, narrow = in_float64("vsae_top_k", **options), built("vsae_top_k", **options)
    for step in range(3):
        exact = wide.update(step, batch(step).double())
        assert exact.dtype == t.float64
        assert narrow.update(step, batch(step)).item() == pytest.approx(exact.item(), rel=1e-5)
    for name, value in wide.ae.named_parameters():
        assert value.dtype == t.float64
        assert value.grad is None
        # Adam divides by the gradient's size, so a rounding near 0 can move a weight by lr.
        close = (narrow.ae.state_dict()[name].double() - value).abs() < 1e-4
        assert close.double().mean() > 0.99, name


def test_what_is_logged_and_kept_in_float64_is_not_rounded_to_float32():
    trainer = in_float64("vsae_top_k", posterior="learned", log_var_init=-0.7)
    x = batch(0).double() + 1 / 3
    losses = trainer.loss(x, 0, logging=True).losses
    assert losses["mean_sigma"] == pytest.approx(math.exp(-0.35), rel=1e-7)  # set in float32
    sigma = trainer.ae.posterior(x).std
    assert losses["mean_sigma"] == pytest.approx(sigma.mean().item(), rel=1e-13)
    energy = x.square().sum(1).mean().item()
    expected = K * sigma.square().mean().item() / energy
    assert losses["noise_to_signal"] == pytest.approx(expected, rel=1e-13)
    trainer.update(trainer.threshold_start_step + 1, x)
    fresh = in_float64("vsae_top_k", posterior="learned", log_var_init=-0.7)
    top_BK = fresh.ae.encode(x, return_topk=True)[1]
    smallest = top_BK.masked_fill(top_BK <= 0, t.inf).amin(1).mean().item()
    assert trainer.ae.threshold.item() == pytest.approx(smallest, rel=1e-13)


@pytest.mark.parametrize("scope", ["all", "selected"])
def test_a_kl_without_weight_is_computed_for_the_log_alone(scope, monkeypatch):
    trainer = built("vsae_top_k", posterior="point", beta=0.0, kl_scope=scope)
    real, calls = forward._batch_kl, []
    monkeypatch.setattr(forward, "_batch_kl", lambda *given: calls.append(1) or real(*given))
    trainer.update(0, batch(0))
    assert not calls
    assert trainer.loss(batch(0), 0, logging=True).losses["kl_loss"] > 0
    weighed = built("vsae_top_k", posterior="point", beta=1.0, kl_scope=scope, kl_warmup_steps=1)
    calls.clear()
    weighed.update(5, batch(0))
    assert calls
