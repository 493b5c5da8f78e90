"""The vSAE over BatchTopK: upstream's BatchTopK without noise and penalty, and what noise changes."""

import dataclasses

import pytest
import torch as t
from dense_reference import compiled_noise
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE, BatchTopKTrainer
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from small_trainers import assert_same, in_float64
from step_cases import assert_close, gradients, in_float32
from variational_trainers import D, F, data, make_trainer

from dictionary_learning_ext import (
    VariationalBatchTopKAutoEncoder,
    VariationalBatchTopKTrainer,
    VariationalTopKTrainer,
    trainer_options,
)
from dictionary_learning_ext.codes.encoding import Encoder, overlap
from dictionary_learning_ext.config.sae import VSAEBatchTopKConfig
from dictionary_learning_ext.errors import ConfigError
from dictionary_learning_ext.trainers import step as definition
from dictionary_learning_ext.trainers.dictionaries import TopKCode
from dictionary_learning_ext.trainers.kernels import compiled, products
from dictionary_learning_ext.trainers.kernels.compiled import SharedCode
from dictionary_learning_ext.trainers.kernels.step import step
from dictionary_learning_ext.trainers.matmuls import Densities
from dictionary_learning_ext.trainers.step import (
    Draw,
    StepObjective,
    Weights,
    draw_code,
    largest_of_batch,
    variational_loss,
)

SIZES = {"activation_dim": D, "dict_size": F, "k": 4, "steps": 40}


def batch_trainer(**options):
    return make_trainer(VariationalBatchTopKTrainer, **options)


def as_upstream(**options):
    return batch_trainer(posterior="point", beta=0.0, **options)


# --- against upstream's


@pytest.mark.parametrize("is_sparse", [True, False])
@pytest.mark.parametrize("k", [4, F * 3 // 4], ids=["narrow", "more than there are positive ones"])
def test_point_without_kl_is_upstreams_trainer(is_sparse, k, monkeypatch):
    """In float64: the same weights to the bit at the start, and within 1e-10 over 100 steps."""
    ours, theirs = as_upstream(k=k), make_trainer(BatchTopKTrainer, k=k)
    for name, value in theirs.ae.state_dict().items():
        assert t.equal(ours.ae.state_dict()[name], value), name
    _ = in_float64(ours), in_float64(theirs)
    monkeypatch.setattr(definition, "dense_from", lambda *_: t.inf if is_sparse else 0.0)
    for i in range(100):
        x = data(seed=i, dtype=t.float64)
        ours.update(i, x.clone())
        theirs.update(i, x.clone())
        assert t.equal(ours.num_tokens_since_fired, theirs.num_tokens_since_fired)
    x = data(seed=1000, dtype=t.float64)
    for use_threshold in (True, False):
        encoded = [each.ae.encode(x, use_threshold=use_threshold) for each in (ours, theirs)]
        assert t.equal(encoded[0] != 0, encoded[1] != 0)
    for name, value in theirs.ae.state_dict().items():
        difference = (ours.ae.state_dict()[name] - value).abs().max()
        assert difference < (1e-5 if name == "threshold" else 1e-10), name  # kept in float32


def test_auxk_is_upstreams():
    """Upstream computes its AuxK in fp32, so the two agree to that."""
    ours, theirs = in_float64(as_upstream()), in_float64(make_trainer(BatchTopKTrainer))
    ours.dead_feature_threshold = theirs.dead_feature_threshold = 64
    for i in range(40):
        x = data(seed=i, dtype=t.float64)
        ours.update(i, x.clone())
        theirs.update(i, x.clone())
    assert ours.dead_features == theirs.dead_features > 0
    for name, value in theirs.ae.state_dict().items():
        assert (ours.ae.state_dict()[name] - value).abs().max() < 1e-5, name


def test_one_float32_step_from_a_shared_state_is_upstreams_within_rounding():
    ours, theirs = as_upstream(), make_trainer(BatchTopKTrainer)
    for i in range(20):
        theirs.update(i, data(seed=i))
        ours.ae.load_state_dict(theirs.ae.state_dict(), strict=False)
        ours.update(i, data(seed=i))
    own, other = ours.ae.state_dict(), theirs.ae.state_dict()
    ours.ae.load_state_dict(theirs.ae.state_dict(), strict=False)
    x, start = data(seed=100), other["encoder.weight"].clone()
    ours.update(20, x.clone())
    theirs.update(20, x.clone())
    assert (other["encoder.weight"] - start).abs().max() > 8e-4
    for name, value in other.items():
        t.testing.assert_close(own[name], value, rtol=1e-3, atol=2e-4, check_dtype=False)


# --- the step


def a_step(**options):
    """A batch, weights and an objective over the batch, in float64."""
    generator = t.Generator().manual_seed(1)
    n, width, n_features = 300, 6, 40

    def drawn(*shape):
        return t.randn(*shape, generator=generator, dtype=t.float64)

    weights = Weights(
        drawn(n_features, width) / 2,
        drawn(n_features) / 10,
        t.nn.functional.normalize(drawn(width, n_features), dim=0),
        drawn(width) / 10,
    )
    settings = VSAEBatchTopKConfig(dict_size=n_features, k=5, prior_std=1.3, **options).resolve(100)
    is_point = settings.posterior == "point"
    objective = StepObjective.at(
        20,
        settings,
        energy=1.0,
        auxk_alpha=0.3,
        top_k_aux=3,
        dead_feature_threshold=1000,
        matmul_dtype=t.float64,
        sigma=t.tensor(0.0 if is_point else 0.4),
        log_var_limits=None,
        tokens_since_fired_F=t.randint(0, 3000, (n_features,), generator=generator),
        generator=t.Generator(),
    )
    return drawn(n, width), weights, objective


OPTIONS = [
    {"posterior": posterior, "kl_scope": scope} | noise
    for scope in ("all", "selected")
    for posterior, noise in (
        ("point", {}),
        *(("fixed", {"noise_on": on}) for on in ("both", "values", "selection")),
    )
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o.values()))
def test_the_loss_is_the_equations_written_densely(options):
    x, weights, objective = a_step(**options)
    settings, k = objective.settings, objective.k
    objective.generator.manual_seed(3)
    terms = variational_loss(x, weights, objective)

    mu = (x - weights.b_dec_D) @ weights.W_enc_FD.T + weights.b_enc_F
    tau = 0.0 if settings.posterior == "point" else objective.noise_scale
    generator, shape = t.Generator().manual_seed(3), mu.shape
    if tau == 0:
        z = mu
    elif settings.noise_on == "values":  # drawn for the selected ones alone
        kept = mu >= mu.flatten().sort(descending=True).values[len(x) * k - 1]
        eps = t.zeros_like(mu)
        eps[kept] = t.randn(len(x), k, generator=generator, dtype=mu.dtype).flatten()
        z = mu + tau * objective.sigma * eps
    else:
        eps = t.empty(shape, dtype=mu.dtype).normal_(generator=generator)
        z = mu + tau * objective.sigma * eps
    key = mu if settings.noise_on == "values" else z
    mask = key >= key.flatten().sort(descending=True).values[len(x) * k - 1]
    assert mask.sum() == len(x) * k
    assert len(mask.sum(1).unique()) > 1, "rows keep different numbers"
    source = mu if settings.noise_on == "selection" or tau == 0 else z
    f = source.clamp(min=0) * mask
    l2 = (x - f @ weights.W_dec_DF.T - weights.b_dec_D).square().sum(1).mean()
    kl = mu**2 / (2 * settings.prior_std**2) + objective.kl_of_sigma
    kl = (kl * mask if settings.kl_scope == "selected" else kl).sum(1).mean()
    by_mean = mu >= mu.flatten().sort(descending=True).values[len(x) * k - 1]
    fired = (by_mean & (mu > 0)).any(0)
    t.testing.assert_close(terms.l2_loss, l2)
    t.testing.assert_close(terms.kl_loss, kl)
    auxk = objective.auxk_alpha * terms.auxk_loss
    t.testing.assert_close(terms.loss, l2 + objective.kl_weight * kl + auxk)
    t.testing.assert_close(terms.mean_threshold, mu[by_mean & (mu > 0)].min())
    since = objective.tokens_since_fired_F + len(x)
    assert t.equal(terms.tokens_since_fired_F, since.masked_fill(fired, 0))


@pytest.mark.parametrize("form", ["sparse", "mixed", "dense"])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o.values()))
def test_the_compiled_step_is_the_definition(options, form, monkeypatch):
    densities = {"sparse": (1.0, 1.0), "mixed": (1.0, 0.0), "dense": (0.0, 0.0)}[form]
    monkeypatch.setattr(products.Densities, "here", lambda _: Densities(*densities))
    x, weights, objective = a_step(**options)
    narrow = in_float32(x, weights, objective)
    narrow[2].generator.manual_seed(7)
    terms, found = step(narrow[1], narrow[2], narrow[0])

    def same_noise(mu, how):
        if objective.settings.noise_on == "values":
            t.randint(2**63 - 1, (1,), generator=how.generator)  # the rows' key
            return t.empty(mu.shape).normal_(generator=how.generator).double()
        return compiled_noise(*mu.shape, how.generator).double()

    monkeypatch.setattr(definition, "noise_of", same_noise)
    objective.generator.manual_seed(7)
    reference, expected = gradients(variational_loss, x, weights, objective)
    for name in terms._fields:
        one, other = getattr(terms, name), getattr(reference, name)
        t.testing.assert_close(one.double(), other.double(), rtol=1e-4, atol=1e-5)
    assert_close(found, expected[:4], error=1e-4)


@pytest.mark.parametrize("with_noise", [False, True])
@pytest.mark.parametrize("dtype", [t.float32, t.bfloat16])
@pytest.mark.parametrize("k", [1, 7, 49, 50])
def test_the_compiled_selection_is_that_of_torch(k, dtype, with_noise):
    """With ties, zeros, negative numbers and infinities among them; bf16 has many ties."""
    generator = t.Generator().manual_seed(k)
    x = t.randn(300, 50, generator=generator).to(dtype)
    x[3], x[4, :5], x[280, 7] = 0.0, t.inf, -t.inf
    bias = t.randn(50, generator=generator) / 10
    shared = SharedCode(300, 50, k, 0.3 if with_noise else 0.0, 11)
    code = shared.draw(lambda rows: (x[rows], bias))
    mu = x.float() + bias
    keys = mu
    if with_noise:
        again = SharedCode(300, 50, 50, 0.3, 11).draw(lambda rows: (x[rows], bias))
        keys = t.zeros(300, 50)
        keys[again.rows_BK.flatten(), again.indices_BK.flatten()] = again.values_BK.flatten()
    rows, features = code.rows_BK.flatten(), code.indices_BK.flatten()
    places = rows * 50 + features
    assert len(places.unique()) == 300 * k
    assert t.equal(places, places.sort().values), "in the order of rows"
    values = code.values_BK.flatten()
    assert t.equal(values, keys[rows, features])
    assert t.equal(values.sort().values, keys.flatten().topk(300 * k).values.sort().values)
    assert t.equal(code.mu_BK.flatten(), mu[rows, features])
    least = mu.flatten().topk(300 * k).values.min()
    assert t.equal(code.fired_F, ((mu >= least) & (mu > 0)).any(0))
    assert code.smallest == mu[(mu >= least) & (mu > 0)].min()


def test_the_selection_does_not_depend_on_threads_or_blocks(monkeypatch):
    x, bias = t.randn(300, 50), t.zeros(50)
    found = []
    for rows, threads in ((128, 2), (128, 1), (7, 2)):
        monkeypatch.setattr(compiled, "BLOCK_ROWS", rows)
        before = t.get_num_threads()
        t.set_num_threads(threads)
        code = SharedCode(300, 50, 4, 0.2, 5).draw(lambda rows: (x[rows], bias))
        t.set_num_threads(before)
        found.append((code.indices_BK, code.rows_BK, code.values_BK, code.fired_F))
    for other in found[1:]:
        assert_same(found[0], other)


def test_nan_ranks_highest():
    x = t.randn(20, 10)
    x[3, 4] = t.nan
    code = SharedCode(20, 10, 2, 0.0, 0).draw(lambda rows: (x[rows], t.zeros(10)))
    assert not code.values_BK.isfinite().all()
    assert largest_of_batch(x, 2).keys.isnan().any()


# --- the dictionary


def test_the_code_is_what_exceeds_the_threshold_and_in_training_the_largest_of_the_batch():
    ae = VariationalBatchTopKAutoEncoder(D, F, 4, posterior="point").requires_grad_(False)
    ae.threshold.fill_(0.4)
    x = data(64)
    mu = ae.encoder(x - ae.b_dec)
    assert t.equal(ae.encode(x), mu.relu() * (mu > 0.4))
    of_batch = ae.encode(x, use_threshold=False)
    assert (of_batch != 0).sum() == 64 * 4
    assert of_batch[of_batch != 0].min() == mu.flatten().topk(64 * 4).values.min()
    features, active, rectified = ae.encode(x.view(8, 8, D), return_active=True)
    assert t.equal(features.view(64, F), ae.encode(x))
    assert t.equal(active, (features > 0).flatten(0, 1).any(0))
    assert t.equal(rectified.view(64, F), mu.relu())


def test_a_negative_mean_that_noise_selects_has_the_value_0():
    mu = -t.ones(50, 20)
    mu[:, 0] = 1.0
    how = Draw(4, "selection", 1.0, t.Generator().manual_seed(0), over_batch=True)
    code = draw_code(mu, t.tensor(5.0), how)
    assert (code.means < 0).any()
    assert set(code.values.unique().tolist()) == {0.0, 1.0}


def test_a_sample_is_of_the_batch_and_drawn_when_asked_for():
    ae = VariationalBatchTopKAutoEncoder(D, F, 4, noise_on="both", sigma=0.5).requires_grad_(False)
    x, noise = data(64), t.Generator()
    samples = [ae.encode(x, sample=True, generator=noise.manual_seed(seed)) for seed in (0, 0, 1)]
    assert t.equal(samples[0], samples[1])
    assert not t.equal(samples[0], samples[2])
    assert (samples[0] != 0).sum() <= 64 * 4
    contexts = ae.encode(x.view(8, 8, D), sample=True, generator=noise.manual_seed(0))
    assert t.equal(contexts.view(64, F), samples[0])
    code = ae.drawn_from(ae.posterior(x), noise.manual_seed(0))
    assert code.rows is not None
    dense = t.zeros(64, F).index_put((code.rows, code.indices), code.values)
    assert t.equal(dense, samples[0])


def test_scaling_is_equivariant():
    trainer = batch_trainer(noise_on="selection", sigma=0.3)
    ae = trainer.ae.double().requires_grad_(False)
    ae.threshold = t.tensor(0.2, dtype=t.float64)
    x, noise = data(dtype=t.float64), t.Generator()

    def everything(x):
        sampled = ae.encode(x, sample=True, generator=noise.manual_seed(1))
        return ae.encode(x), ae.encode(x, use_threshold=False), sampled, ae(x)

    before, kl = everything(x), ae.posterior(x).kl
    ae.scale_biases(3.0)
    for one, other in zip(before, everything(3 * x), strict=True):
        t.testing.assert_close(3 * one, other, rtol=1e-11, atol=1e-12)
    t.testing.assert_close(ae.posterior(3 * x).kl, kl, rtol=1e-11, atol=1e-11)


def test_from_pretrained_needs_no_other_file(tmp_path):
    trainer = batch_trainer(noise_on="values", sigma=0.4)
    for i in range(12):
        trainer.update(i, data(seed=i))
    trainer.ae.scale_biases(3.0)
    t.save(trainer.ae.state_dict(), tmp_path / "ae.pt")
    loaded = VariationalBatchTopKAutoEncoder.from_pretrained(tmp_path / "ae.pt")
    assert_same(loaded.state_dict(), dict(trainer.ae.state_dict()))
    assert t.equal(loaded.encode(data()), trainer.ae.encode(data()))
    assert loaded.threshold > 0


def test_the_stability_of_a_batchs_selection_is_the_jaccard_index_of_all_it_keeps():
    ae = VariationalBatchTopKAutoEncoder(D, F, 4, noise_on="selection", sigma=0.3)
    ae.requires_grad_(False).threshold.fill_(0.3)
    encoder = Encoder(ae, with_all=True)
    encoder.add(data(64))
    assert 0 < encoder.totals.mean("stability_sigma") < 1
    codes = [
        TopKCode(t.ones(2, 2), t.tensor(features), t.tensor([[0, 0], [0, 1]]))
        for features in ([[0, 1], [2, 0]], [[0, 1], [3, 0]])
    ]
    assert float(overlap(*codes, n_features=5)) == pytest.approx(3 / 5)


# --- the trainer


def test_the_threshold_is_set_at_the_last_step_of_a_short_run():
    trainer = batch_trainer(steps=12, warmup_steps=1, threshold_start_step=1000)
    for i in range(12):
        assert trainer.ae.threshold < 0
        trainer.update(i, data(seed=i))
    assert trainer.ae.threshold > 0


def test_a_log_shows_the_code_of_the_batch_and_changes_nothing():
    trainer = batch_trainer(noise_on="selection", sigma=0.3)
    for i in range(12):
        trainer.update(i, data(seed=i))
    trainer.ae.threshold.fill_(100.0)
    before = trainer.state_dict()
    log = trainer.loss(data(), 12, logging=True)
    assert (log.f != 0).sum() == len(data()) * 4
    assert_same(dict(trainer.state_dict()["ae"]), dict(before["ae"]))
    found = trainer.metrics(12, data())
    assert found["l0"] == 4
    residual = (log.x_hat - log.x).square().sum()
    assert found["fve"] == pytest.approx(
        float(1 - residual / (log.x - log.x.mean(0)).square().sum()), rel=1e-4
    )


@pytest.mark.parametrize("name", ["rectify", "select_by"])
def test_options_of_a_selection_by_token_are_refused_by_name(name):
    with pytest.raises(ConfigError, match=f"{name}: vsae_batch_top_k does not use it"):
        batch_trainer(**{name: {"rectify": True, "select_by": "magnitude"}[name]})


def test_options_of_the_other_trainer_are_an_error_that_names_both():
    place = {"layer": 0, "lm_name": "x", "device": "cpu"}
    options = trainer_options(**SIZES, architecture="vsae_batch_top_k")
    trainer = VariationalBatchTopKTrainer(**options, **place)
    assert dataclasses.asdict(trainer.settings).items() >= {"beta": options["beta"]}.items()
    for cls, others in (
        (VariationalTopKTrainer, "vsae_batch_top_k"),
        (VariationalBatchTopKTrainer, "vsae_top_k"),
    ):
        with pytest.raises(
            ConfigError, match=rf"of Variational\w+, which trains {others}.*{cls.__name__}"
        ):
            cls(**trainer_options(**SIZES, architecture=others), **place)


@pytest.mark.parametrize("given", [BatchTopKSAE, AutoEncoderTopK])
def test_upstreams_dictionary_is_replaced_with_a_warning(given, caplog):
    trainer = batch_trainer(dict_class=given)
    assert type(trainer.ae) is VariationalBatchTopKAutoEncoder
    assert f"dict_class={given.__name__}" in caplog.text
