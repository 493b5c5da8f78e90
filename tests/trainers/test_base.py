"""What every trainer offers the loop, what ours promise, and what they refuse."""

import inspect
import math
import re

import pytest
import torch as t
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
from dictionary_learning.trainers.top_k import AutoEncoderTopK, TopKTrainer
from interrupted_runs import a_point
from small_trainers import (
    STEPS,
    D,
    F,
    K,
    assert_same,
    batch,
    built,
    descended,
    in_float64,
    weights_of,
)

from dictionary_learning_ext.config.architectures import TRAINED, import_class
from dictionary_learning_ext.errors import ConfigError, UserError
from dictionary_learning_ext.run_folder.resume_points import load_point, save_point
from dictionary_learning_ext.trainers.base import batch_metrics

VSAE, GATES, VAEASE = "vsae_top_k", "probabilistic_top_k", "vaease"
OURS = [VSAE, GATES, VAEASE]
OWN_DICTIONARY = [VSAE, VAEASE]
KINDS = [
    (VSAE, {"dead_feature_threshold": 33, "k": 1}),
    (VSAE, {"noise_on": "values", "rectify": True}),
    (VSAE, {"noise_on": "selection", "select_by": "magnitude", "kl_scope": "selected"}),
    (VSAE, {"posterior": "learned", "noise_anneal_steps": 5}),
    (VSAE, {"posterior": "point", "dead_feature_threshold": 33, "k": 1}),
    (GATES, {"dead_feature_threshold": 33, "k": 2}),
    (VAEASE, {}),
]
every_kind = pytest.mark.parametrize(("architecture", "options"), KINDS, ids=str)


def made(architecture, **options):
    """A trainer of ours as upstream's examples make one."""
    row = TRAINED[architecture]
    k = {} if architecture == VAEASE else {"k": K}
    given = {"steps": 50, "activation_dim": D, "dict_size": F, "layer": 0, "lm_name": "tiny"}
    given |= {"warmup_steps": 5, "seed": 0, "device": "cpu"}
    return import_class(row.trainer)(**given | k | options)


@pytest.mark.parametrize("architecture", [VSAE, GATES])
def test_one_feature_learns_from_auxk_at_width_1(architecture):
    trainer = made(architecture, activation_dim=1, k=1, dead_feature_threshold=1)
    assert trainer.metrics(0, batch(0)[:, :1])["auxk_loss"] > 0
    trainer.update(0, batch(0)[:, :1])
    assert trainer.check(1) is None


@pytest.mark.parametrize("architecture", TRAINED)
def test_a_trainer_offers_what_the_loop_asks_for(architecture):
    trainer = built(architecture)
    trainer.update(0, batch(0))
    metrics = trainer.metrics(1, batch(1))
    assert {"l2_loss", "fve", "l0", "alive_in_batch"} <= metrics.keys()
    assert all(type(value) is float for value in metrics.values())
    assert trainer.check(1) is None
    trainer.restore_last_finite()
    trainer.load_state_dict(trainer.state_dict())


def test_batch_metrics_are_their_definitions():
    generator = t.Generator().manual_seed(0)
    x, x_hat = (t.randn(7, 3, generator=generator, dtype=t.float64) for _ in range(2))
    f = t.zeros(7, 5)
    f[0, 1], f[2, 1], f[2, 4] = 2.0, -1.0, 0.5  # a negative activation is on too
    mean = [sum(column) / 7 for column in x.T.tolist()]
    residual = sum((a - b) ** 2 for a, b in zip(x.flatten(), x_hat.flatten(), strict=True))
    total = sum((a - m) ** 2 for row in x.tolist() for a, m in zip(row, mean, strict=True))
    metrics = batch_metrics(x, x_hat, f)
    assert metrics["fve"] == pytest.approx(1 - residual.item() / total)
    assert metrics["l0"] == pytest.approx(3 / 7)
    assert metrics["alive_in_batch"] == pytest.approx(2 / 5)


# --- promises of our trainers


@pytest.mark.parametrize("dtype", [t.float32, t.float64])
@every_kind
def test_logging_changes_nothing_and_shows_the_loss_of_the_step(architecture, options, dtype):
    """In float64 it draws the noise that the step then draws."""
    logged, silent = (built(architecture, **options) for _ in range(2))
    logged.ae.to(dtype)
    silent.ae.to(dtype)
    for step in range(8):
        x = batch(step).to(dtype)
        log = logged.loss(x.clone(), step, logging=True)
        assert t.equal(log.f, logged.ae.encode(x))
        assert t.equal(log.x_hat, logged.ae(x))
        loss = logged.update(step, x)
        assert t.equal(loss, silent.update(step, x.clone()))
        if step > 0 and dtype == t.float64:  # step 0 sets b_dec
            assert log.losses["loss"] == loss.item()
    assert_same(logged.state_dict(), silent.state_dict())


@every_kind
def test_the_loss_is_differentiable_and_what_an_update_descends(architecture, options):
    one, two = (in_float64(built(architecture, **options)) for _ in range(2))
    loss = one.loss(batch(0), 3)
    loss.backward()
    assert one.ae.encoder.weight.grad.abs().sum() > 0
    assert t.equal(loss.detach(), two.update(3, batch(0)))


@every_kind
def test_company_changes_nothing(architecture, options):
    alone, beside, other = (built(architecture, seed=s, **options) for s in (0, 0, 5))
    for step in range(6):
        other.update(step, batch(step))
        beside.update(step, batch(step))
        t.randn(step)  # whatever else draws from torch's generator
    for step in range(6):
        alone.update(step, batch(step))
    assert_same(alone.state_dict(), beside.state_dict())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("at", [0, 6])
@every_kind
def test_a_batch_that_is_not_finite_moves_nothing(architecture, options, at, bad):
    trainer = built(architecture, **options)
    for step in range(at):
        trainer.update(step, batch(step))
    weights, state = weights_of(trainer), trainer.state_dict()
    x = batch(0)
    x[3, 2] = bad
    trainer.update(at, x)
    assert_same(weights_of(trainer), weights)
    counter = state.get("counts", {}).get("num_tokens_since_fired")
    assert counter is None or t.equal(trainer.num_tokens_since_fired, counter)
    assert trainer.optimizer.skipped_steps == 1
    assert trainer.check(99).step == trainer.optimizer.first_skipped_step == at
    trainer.update(at + 1, batch(0))
    assert all(value.isfinite().all() for value in weights_of(trainer).values())
    if at:  # the learning rate of the first step is 0
        assert not t.equal(trainer.ae.encoder.weight, weights["encoder.weight"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@every_kind
def test_a_trainer_resumes_from_the_disk_bit_for_bit(architecture, options, dtype, tmp_path):
    whole, other = (built(architecture, dtype, seed=s, **options) for s in (0, 1))
    for step in range(5):
        whole.update(step, batch(step))
    save_point(tmp_path, a_point(5, trainer=whole.state_dict()))
    other.load_state_dict(load_point(tmp_path, 5).trainer)
    for step in range(5, 10):
        assert t.equal(*(trainer.update(step, batch(step)) for trainer in (whole, other)))
    assert_same(weights_of(whole), weights_of(other))
    if "dead_feature_threshold" in options:
        assert whole.dead_features > 0


@every_kind
def test_bf16_is_only_in_the_products(architecture, options):
    options = (
        {"kl_schedule": "constant", "beta": 0.0} | options if architecture == VSAE else options
    )
    exact, rounded = (built(architecture, dtype, **options) for dtype in ("float32", "bfloat16"))
    loss, other = (trainer.loss(batch(0), 1) for trainer in (exact, rounded))
    with t.autocast("cpu", dtype=t.bfloat16):
        assert t.equal(built(architecture, **options).loss(batch(0), 1), loss)
    assert other.dtype == t.float32
    assert 0 < abs(other.item() - loss.item()) < 0.1 * abs(loss.item())
    rounded.update(0, batch(0))
    assert all(p.dtype == t.float32 for p in rounded.ae.parameters())
    assert rounded.optimizer.state[rounded.ae.b_dec]["exp_avg"].dtype == t.float32


@pytest.mark.parametrize("dtype", [t.float64, t.bfloat16])
@pytest.mark.parametrize("architecture", OURS)
def test_the_log_takes_what_a_step_takes(architecture, dtype):
    """As if the batch had been in float32, so that no sum is rounded to bf16."""
    trainer, x = built(architecture), batch(0).to(dtype)
    log = trainer.loss(x, 0, logging=True)
    assert (log.x.dtype, log.x_hat.dtype) == (t.float32, t.float32)
    assert trainer.metrics(0, x) == trainer.metrics(0, x.float())


@pytest.mark.parametrize("architecture", OURS)
def test_gradients_of_before_are_not_added(architecture):
    """Compared before they are clipped: clipping makes twice a long gradient the gradient."""
    options = {"kl_schedule": "constant"} if architecture == VSAE else {}
    used, fresh = (in_float64(built(architecture, **options)) for _ in range(2))
    x = batch(0).double()
    state = used.generator.get_state()
    used.loss(x, 3).backward()
    assert all(p.grad.abs().sum() > 0 for p in used.ae.parameters())
    used.generator.set_state(state)
    for one, other in zip(descended(used, x, 3), descended(fresh, x, 3), strict=True):
        assert one.abs().sum() > 0
        assert t.equal(one, other)


@pytest.mark.parametrize("architecture", OURS)
def test_the_learning_rate_rises_stays_and_falls(architecture):
    trainer = built(architecture, lr=0.01, warmup_steps=5, decay_start=60)
    rates = []
    for step in range(STEPS):
        rates.append(trainer.scheduler.get_last_lr()[0])
        trainer.update(step, batch(step))
    falling = [0.01 * (STEPS - s) / (STEPS - 60) for s in range(60, STEPS)]
    assert rates == pytest.approx([0.01 * s / 5 for s in range(5)] + [0.01] * 55 + falling)


@pytest.mark.parametrize(
    ("architecture", "options", "names"),
    [
        (
            VSAE,
            {"posterior": "learned", "beta": 0.0, "auxk_alpha": 0.0, "noise_anneal_steps": 50},
            ("VariationalTopKTrainer", "VariationalTopKAutoEncoder"),
        ),
        (VAEASE, {"log_var_init": -1.0, "gamma_init": 0.3}, ("VAEaseTrainer", "VAEase")),
        (GATES, {"temperature_start": 2.0, "auxk_alpha": 0.1}, ("TopKTrainer", "AutoEncoderTopK")),
    ],
)
def test_config_builds_the_same_trainer_again(architecture, options, names):
    trainer = made(architecture, **options, submodule_name="h")
    config = trainer.config
    assert (config.pop("trainer_class"), config.pop("dict_class")) == names
    assert all(config[name] == value for name, value in options.items())
    again = type(trainer)(**config)
    assert again.config == trainer.config
    assert_same(weights_of(again), weights_of(trainer))


def test_config_has_the_sigma_and_the_weight_of_auxk_that_follow_from_the_activations():
    trainer = made(VSAE, noise_to_signal=0.3, mean_squared_norm=50.0)
    config = {n: v for n, v in trainer.config.items() if n not in ("trainer_class", "dict_class")}
    again = made(VSAE, **config)
    assert again.ae.sigma == trainer.ae.sigma == pytest.approx((0.3 * 50 / K) ** 0.5)
    assert again.auxk_alpha == trainer.auxk_alpha == 50 / 32


@pytest.mark.parametrize("architecture", [VSAE, GATES])
@pytest.mark.parametrize(
    ("told", "warns"), [(D, False), (1.7 * D, False), (2.5 * D, True), (D / 2.5, True)]
)
def test_activations_of_other_units_than_those_told_are_warned_of(
    architecture, told, warns, caplog
):
    made(architecture, mean_squared_norm=told).update(0, batch(0, rows=2000))
    said = re.findall(r"give mean_squared_norm=([\d.]+)", caplog.text)
    assert len(said) == warns
    assert all(float(energy) == pytest.approx(D, rel=0.05) for energy in said)


@pytest.mark.parametrize("architecture", OURS)
def test_a_trainers_noise_is_of_its_seed_or_else_of_torchs(architecture):
    def noise(seed, of_torch):
        t.manual_seed(of_torch)
        return t.randn(4, generator=made(architecture, seed=seed).generator)

    assert t.equal(noise(3, 0), noise(3, 1))
    assert t.equal(noise(None, 5), noise(None, 5))
    assert not t.equal(noise(3, 0), noise(4, 0))
    assert not t.equal(noise(None, 5), noise(None, 6))


@pytest.mark.parametrize("architecture", [VAEASE, GATES])
def test_the_noise_is_not_made_of_the_numbers_that_the_weights_are(architecture):
    """Nor, at any shift, of those of another seed."""
    n = 4096
    weights_N = t.randn(n, generator=t.Generator().manual_seed(0))
    noise_N, other_N = (t.randn(n, generator=made(architecture, seed=s).generator) for s in (0, 5))
    for one, another in ((noise_N, weights_N), (noise_N, other_N)):
        product = t.fft.rfft(one) * t.fft.rfft(another).conj()
        correlations = t.fft.irfft(product) / (one.norm() * another.norm())
        assert correlations.abs().max() < 0.1


# --- their arguments


@pytest.mark.parametrize("architecture", [VSAE, GATES])
def test_trainers_of_top_k_have_upstreams_arguments_in_upstreams_places(architecture):
    theirs = inspect.signature(TopKTrainer).parameters
    trainer_class = import_class(TRAINED[architecture].trainer)
    by_position = dict(zip(theirs, (50, D, F, K, 0, "tiny", AutoEncoderTopK, 1e-3), strict=False))
    others = {n: p.default for n, p in theirs.items() if n not in by_position} | {"warmup_steps": 5}
    config = trainer_class(*by_position.values(), **others | {"seed": 3}).config
    assert config["seed"] == 3
    same = theirs.keys() - {"dict_class", "device", "seed"}
    assert {n: config[n] for n in same} == {n: (by_position | others)[n] for n in same}
    bare = trainer_class(*list(by_position.values())[:6], warmup_steps=5).config
    assert {
        n: bare[n] for n in ("auxk_alpha", "threshold_beta", "threshold_start_step", "seed")
    } == {
        n: theirs[n].default
        for n in ("auxk_alpha", "threshold_beta", "threshold_start_step", "seed")
    }


@pytest.mark.parametrize("architecture", OWN_DICTIONARY)
def test_upstreams_dict_class_is_ignored_with_a_warning(architecture, caplog):
    plain = made(architecture)
    assert not caplog.records
    same = made(architecture, dict_class=AutoEncoderTopK)
    assert type(plain.ae).__name__ in caplog.text
    assert type(same.ae) is type(plain.ae)
    assert same.config == plain.config
    caplog.clear()
    assert type(made(architecture, dict_class=type(plain.ae)).ae) is type(plain.ae)
    assert not caplog.records


def test_upstreams_dict_class_is_the_one_that_probabilistic_top_k_trains(caplog):
    assert type(made(GATES, dict_class=AutoEncoderTopK).ae) is AutoEncoderTopK
    assert not caplog.records


@pytest.mark.parametrize("architecture", OWN_DICTIONARY)
def test_a_subclass_of_the_dictionary_is_trained(architecture, tmp_path):
    class Doubled(import_class(TRAINED[architecture].dictionary)):
        def decode(self, f):
            return 2 * super().decode(f)

    one = made(architecture, dict_class=Doubled)
    assert type(one.ae) is Doubled
    assert one.config["dict_class"] == "Doubled", "not loaded as another class"
    one.update(0, batch(0))
    t.save(one.ae.state_dict(), tmp_path / "ae.pt")
    loaded = Doubled.from_pretrained(tmp_path / "ae.pt")
    assert type(loaded) is Doubled
    assert t.equal(loaded(batch(1)), one.ae(batch(1)))


ALL, TOP_K = tuple(OURS), (VSAE, GATES)
WITH_PUBLISHED = (*OURS, "vsae_as_published")
REFUSED = [  # one mistake of each kind, and what its error names
    (WITH_PUBLISHED, {"warmupsteps": 5}, "^warmupsteps: .*'warmup_steps'"),
    (WITH_PUBLISHED, {"init_from": "runs/x"}, "^init_from='runs/x': "),
    (ALL, {"dict_class": BatchTopKSAE}, "^dict_class=.*BatchTopKSAE.*: "),
    (ALL, {"dict_size": float(F)}, f"^dict_size={F}.0: "),
    (ALL, {"steps": 0}, "^steps=0: "),
    (ALL, {"device": "gpu"}, "^device='gpu': .* cuda:0$"),
    (ALL, {"dtype": "float16"}, "^dtype='float16'"),
    (ALL, {"lr": math.nan}, "^lr=nan"),
    (ALL, {"warmup_steps": 50}, "^warmup_steps=50: .* steps=50"),
    (TOP_K, {"k": F + 1}, f"^k={F + 1}: .* dict_size={F}"),
    (TOP_K, {"dead_feature_threshold": 0}, "^dead_feature_threshold=0"),
    ((VSAE,), {"noise_to_signal": 0.5, "sigma": 1.0}, "^sigma=1.0 and noise_to_signal=0.5: "),
    ((VSAE,), {"sigma": 0.0}, "^sigma="),
    ((VSAE,), {"posterior": "gaussian"}, "^posterior='gaussian'"),
    ((VSAE,), {"noise_anneal_steps": 0}, "^noise_anneal_steps=0"),
    ((VSAE,), {"start": "data"}, "^start='data': .*first_fill="),
    ((VAEASE,), {"active_gate": 1.0}, "^active_gate=1.0"),
    ((GATES,), {"temperature_start": 1e-4}, "^temperature_start=0.0001: .*temperature_end=0.001"),
]


@pytest.mark.parametrize(
    ("architecture", "wrong", "named"),
    [(name, wrong, named) for names, wrong, named in REFUSED for name in names],
    ids=str,
)
def test_an_argument_that_is_refused_is_named(architecture, wrong, named):
    with pytest.raises(UserError, match=named):
        made(architecture, **wrong)


@pytest.mark.parametrize("shape", [(2, 3, D), (4, D - 1)])
@pytest.mark.parametrize("architecture", OURS)
def test_activations_that_do_not_fit_are_named_with_the_hook(architecture, shape):
    trainer, x = built(architecture), t.zeros(shape)
    named = f"{re.escape(str(shape))} from blocks.0.*activation_dim={D}"
    for call in (
        lambda: trainer.update(0, x),
        lambda: trainer.loss(x, 0),
        lambda: trainer.metrics(0, x),
    ):
        with pytest.raises(ConfigError, match=named):
            call()
