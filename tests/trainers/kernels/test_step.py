"""The loss and its hand-derived gradients against the dense autograd form, in float64."""

import dataclasses
import functools
import itertools

import pytest
import torch as t
from dense_reference import compiled_noise, dense_loss
from recorded_ops import RecordedOps

from dictionary_learning_ext.config.sae import VSAETopKConfig
from dictionary_learning_ext.trainers.kernels import step
from dictionary_learning_ext.trainers.kernels.encode import BatchMeans
from dictionary_learning_ext.trainers.kernels.products import StepForm
from dictionary_learning_ext.trainers.kernels.step import StepObjective, Weights, variational_loss
from dictionary_learning_ext.trainers.ranks import Ranks

BATCH, D, F = 24, 6, 40
FORM = StepForm()


def make_case(k=3, aux=False, seed=0, form=FORM, **given):
    """A batch, weights that require grad, and an objective, all in float64."""
    generator = t.Generator().manual_seed(seed)

    def randn(*shape):
        return t.randn(*shape, generator=generator, dtype=t.float64)

    settings = VSAETopKConfig(**given)
    learned = settings.posterior == "learned"
    weights = Weights(
        randn(F, D),
        randn(F) / 2,
        t.nn.functional.normalize(randn(D, F), dim=0),
        randn(D),
        randn(F, D) if learned else None,
        randn(F) if learned else None,
    )
    objective = StepObjective(
        k=k,
        settings=settings,
        kl_weight=0.7 * settings.beta,
        noise_scale=0.6,
        auxk_alpha=settings.auxk_alpha,
        top_k_aux=4,
        dead_feature_threshold=100,
        matmul_dtype=t.float64,
        sigma=t.tensor(0.8, dtype=t.float64),
        prior_std=t.tensor(1.3, dtype=t.float64),
        # Tight, so that some log-variances are clamped on either side.
        log_var_limits=(t.tensor(-1.0).double(), t.tensor(1.5).double()) if learned else None,
        tokens_since_fired_F=t.arange(F) * 20 if aux else t.zeros(F, dtype=t.long),
        generator=t.Generator(),
        form=form,
    )
    return randn(BATCH, D), weights, objective


def gradients(loss_of, x, weights, objective):
    """The terms, and the gradients of x and of every weight, for the same draw each time."""
    objective.generator.manual_seed(7)
    leaves = [x, *(w for w in weights if w is not None)]
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    padded = [*leaves[1:], None, None][:6]
    terms = loss_of(leaves[0], Weights(*padded), objective)
    return terms, t.autograd.grad(terms.loss, leaves)


def exactly(x, weights, objective):
    """What `gradients` gives for a float32 case, computed in float64 with the same noise."""
    wide = Weights(*(w if w is None else w.double() for w in weights))
    noise_BF = compiled_noise(BATCH, F, t.Generator().manual_seed(7)).double()
    return gradients(functools.partial(dense_loss, noise_BF=noise_BF), x.double(), wide, objective)


def assert_same_terms(got, expected, **tolerances):
    for name, value in got._asdict().items():
        t.testing.assert_close(value, getattr(expected, name), **tolerances, msg=name)


def assert_close(got, expected, error=1e-9):
    """Each tensor, relative to its largest element."""
    for one, other in zip(got, expected, strict=True):
        assert ((one - other).abs().max() / other.abs().max().clamp(min=1e-30)) < error


def assert_is_dense(x, weights, objective):
    """The loss's terms and gradients are those of the dense form. Returns the terms."""
    terms, got = gradients(variational_loss, x, weights, objective)
    reference, expected = gradients(dense_loss, x, weights, objective)
    assert_same_terms(terms, reference, rtol=1e-12, atol=1e-12)
    assert_close(got, expected)
    return terms


def in_float32(x, weights, objective, **changes):
    changes = {"matmul_dtype": t.float32} | changes
    sigma, prior_std = objective.sigma.float(), objective.prior_std.float()
    return (
        x.float(),
        Weights(*(w if w is None else w.float() for w in weights)),
        dataclasses.replace(objective, sigma=sigma, prior_std=prior_std, **changes),
    )


def one_form(name):
    """The code in one form at any density."""
    return StepForm(
        sparse_density=0.0 if name == "dense" else 1.0,
        sparse_projection_density=0.0 if name == "mixed" else 1.0,
    )


SETTINGS = [
    {"posterior": p, "noise_on": n, "kl_scope": scope, "rectify": r, "aux": aux}
    for p, n, scope, r, aux in itertools.product(
        ("fixed", "learned", "point"),
        ("both", "values", "selection"),
        ("all", "selected"),
        (False, True),
        (False, True),
    )
    if p != "point" or n == "both"  # without noise
]


SETTINGS += [
    {"posterior": "fixed", "survival": 0.5, "noise_on": n, "kl_scope": "selected", "rectify": r}
    | {"aux": aux}
    for n, r, aux in itertools.product(("both", "selection"), (False, True), (False, True))
]
BY_MAGNITUDE = [s | {"select_by": "magnitude"} for s in SETTINGS]


@pytest.mark.parametrize("form", ["sparse", "dense"])
@pytest.mark.parametrize(
    "settings", SETTINGS + BY_MAGNITUDE, ids=lambda s: "-".join(map(str, s.values()))
)
def test_gradients_equal_dense_autograd(settings, form):
    x, weights, objective = make_case(form=one_form(form), **settings)
    with RecordedOps() as ops:
        terms = assert_is_dense(x, weights, objective)
    assert ops.code_form == form
    assert (terms.auxk_loss > 0) == settings["aux"]


@pytest.mark.parametrize("posterior", ["fixed", "learned", "point"])
@pytest.mark.parametrize("kl_weight", [0.0, 1.0])
def test_gradients_where_the_kl_counts_nothing_or_in_full(kl_weight, posterior):
    x, weights, objective = make_case(form=one_form("sparse"), posterior=posterior)
    assert_is_dense(x, weights, dataclasses.replace(objective, kl_weight=kl_weight))


def test_rows_without_a_positive_selected_mean_do_not_count_in_the_threshold():
    x, weights, objective = make_case(k=8, posterior="point")
    weights = weights._replace(b_enc_F=weights.b_enc_F - 6)
    largest = ((x - weights.b_dec_D) @ weights.W_enc_FD.T + weights.b_enc_F).amax(1)
    assert 0 < (largest > 0).sum() < BATCH, "the case must hold such rows"
    assert_is_dense(x, weights, objective)


@pytest.mark.parametrize(
    ("rectify", "select_by"), [(False, "value"), (True, "value"), (False, "magnitude")]
)
@pytest.mark.parametrize("form", ["sparse", "dense"])
def test_in_a_gpus_form_auxk_reaches_no_living_feature(form, rectify, select_by):
    """There AuxK always takes as many features: with two dead, the others are living."""
    gpus = dataclasses.replace(one_form(form), reads_dead_count=False)
    given = {"rectify": rectify, "select_by": select_by, "posterior": "point"}
    x, weights, objective = make_case(form=gpus, **given)
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


@pytest.mark.parametrize(
    "settings",
    [s for s in SETTINGS + BY_MAGNITUDE if s["noise_on"] != "values"],
    ids=lambda s: "-".join(map(str, s.values())),
)
def test_the_compiled_form_gives_the_same_gradients(settings):
    """In float32, where what is selected comes from the compiled form."""
    _, _, objective = case = make_case(**settings)
    x, weights, narrow = in_float32(*case)
    with RecordedOps() as ops:
        terms, got = gradients(variational_loss, x, weights, narrow)
    assert ops.counts["topk"] == 0 or settings["rectify"]
    reference, expected = exactly(x, weights, objective)
    assert_same_terms(terms, reference, rtol=1e-4, atol=1e-6, check_dtype=False)
    assert_close(got, expected, error=1e-4)


@pytest.mark.parametrize("scope", ["all", "selected"])
def test_gradients_without_kl_weight_and_without_x(scope):
    """The path that makes no dense tensor: the encoder's gradient is k-sparse too."""
    beta = 0.0 if scope == "all" else 1.0
    x, weights, objective = make_case(form=one_form("sparse"), beta=beta, kl_scope=scope, aux=True)

    def weight_gradients(loss_of):
        objective.generator.manual_seed(3)
        leaves = [w.clone().requires_grad_() for w in weights[:4]]
        terms = loss_of(x, Weights(*leaves), objective)
        return t.autograd.grad(terms.loss, leaves)

    with RecordedOps() as ops:
        got = weight_gradients(variational_loss)
    assert ops.code_form == "sparse"
    assert_close(got, weight_gradients(dense_loss))


@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize("rectify", [False, True])
def test_blocks_of_rows_give_what_the_whole_batch_gives(rectify, keeps):
    x, weights, objective = make_case(
        form=StepForm(means_at_once=3 * F, keeps_rectified=keeps),
        posterior="point",
        aux=True,
        rectify=rectify,
    )
    with RecordedOps() as ops:
        terms, _ = gradients(variational_loss, x, weights, objective)
    n_dead = int((terms.tokens_since_fired_F >= objective.dead_feature_threshold).sum())
    of_auxk = -(-BATCH // (3 * F // n_dead))
    assert ops.counts["topk"] == BATCH // 3 + of_auxk
    assert of_auxk > 1
    assert assert_is_dense(x, weights, objective).auxk_loss > 0


@pytest.mark.parametrize("posterior", ["fixed", "learned"])
def test_a_step_is_the_same_on_any_number_of_threads_and_in_any_blocks(posterior):
    before, results = t.get_num_threads(), []
    case = make_case(posterior=posterior, noise_on="both", aux=True)
    try:
        for rows, n_threads in itertools.product((2, 5, BATCH), (1, 2, 3)):
            t.set_num_threads(n_threads)
            narrow = in_float32(*case, form=StepForm(rows_at_once=rows))
            terms, got = gradients(variational_loss, *narrow)
            results.append([terms.loss.detach(), terms.tokens_since_fired_F, *got])
    finally:
        t.set_num_threads(before)
    for other in results[1:]:  # torch's own sums over the batch depend on the threads
        for one, same in zip(results[0], other, strict=True):
            assert t.allclose(one, same, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", ["sparse", "dense"])
def test_two_losses_before_their_gradients(form):
    """What one leaves in the memory that steps share does not reach the other."""
    cases = [make_case(seed=s, form=one_form(form), aux=True, rectify=True) for s in (0, 1)]
    expected = [gradients(variational_loss, *case)[1] for case in cases]
    leaves, losses = [], []
    for x, weights, objective in cases:
        objective.generator.manual_seed(7)
        own = [leaf.clone().requires_grad_() for leaf in (x, *weights[:4])]
        leaves.append(own)
        with RecordedOps() as ops:
            losses.append(variational_loss(own[0], Weights(*own[1:]), objective).loss)
        assert ops.code_form == form
    for own, loss, gradient in zip(leaves, losses, expected, strict=True):
        for one, other in zip(t.autograd.grad(loss, own), gradient, strict=True):
            assert t.equal(one, other)


@pytest.mark.parametrize("form", ["dense", "mixed", "sparse"])
@pytest.mark.parametrize(
    "settings",
    [s for s in SETTINGS if s["noise_on"] == "both" and not s["aux"]],
    ids=lambda s: "-".join(map(str, s.values())),
)
def test_bf16_gradients_are_near_exact_ones(settings, form):
    """With an outlier direction, and where rounding takes nothing across an edge: k = F, a seed whose means
    are not near 0, and limits in gaps between the log-variances.
    """
    x, weights, objective = make_case(k=F, form=one_form(form), seed=1, **settings)
    x[:, 0] += 30
    weights.b_dec_D[0] = 25

    def cast(tensor):
        return tensor if tensor is None else tensor.bfloat16().float()

    if weights.W_var_FD is not None:
        log_var = (x - weights.b_dec_D) @ weights.W_var_FD.T + weights.b_var_F
        limits = tuple(middle_of_gap(log_var, *span) for span in ((-4.0, -0.2), (0.5, 5.0)))
        objective = dataclasses.replace(objective, log_var_limits=limits)
        assert ((log_var < limits[0]) | (log_var > limits[1])).any()
    x, weights = cast(x), Weights(*map(cast, weights))
    _, _, narrow = in_float32(x, weights, objective, matmul_dtype=t.bfloat16)
    with RecordedOps() as ops:
        terms, got = gradients(variational_loss, x, weights, narrow)
    assert ops.code_form == form
    reference, expected = exactly(x, weights, objective)
    assert terms.kl_loss.item() == pytest.approx(reference.kl_loss.item(), rel=0.01)
    assert terms.l2_loss.item() == pytest.approx(reference.l2_loss.item(), rel=0.01)
    for one, other in zip(got, expected, strict=True):
        assert (one - other).norm() <= 0.03 * other.norm()


@pytest.mark.parametrize("rows", [400, D - 1])
@pytest.mark.parametrize(("matmul_dtype", "error"), [(t.float32, 1e-5), (t.bfloat16, 0.01)])
def test_second_moments_of_activations_a_thousand_standard_deviations_from_0(
    matmul_dtype, error, rows
):
    """The bias cancels the mean, so that the second moments are the variances."""
    generator = t.Generator().manual_seed(0)
    x = t.randn(rows, D, generator=generator) + 1000 * t.randn(D, generator=generator)
    weight = t.randn(F, D, generator=generator)
    bias = -(weight.double() @ x.double().mean(0)).float()
    settings = {"rectify": False, "keep": False, "means_at_once": 1000}
    means = BatchMeans(x, weight, bias, matmul_dtype=matmul_dtype, **settings)
    mu = x.double() @ weight.double().T + bias.double()
    found = means.moments(with_cross=False).square_F.double()
    t.testing.assert_close(found, mu.square().mean(0), rtol=error, atol=0)


def middle_of_gap(values, low, high):
    """The middle of the largest gap between values in (low, high)."""
    inside = values[(values > low) & (values < high)].sort().values
    i = inside.diff().argmax()
    return (inside[i] + inside[i + 1]) / 2


@pytest.mark.slow
def test_gradcheck():
    x, weights, objective = make_case(posterior="learned", noise_on="values", k=2)

    def loss(*leaves):
        objective.generator.manual_seed(0)
        return variational_loss(leaves[0], Weights(*leaves[1:]), objective).loss

    leaves = [leaf.clone().requires_grad_() for leaf in (x[:5], *weights)]
    assert t.autograd.gradcheck(loss, leaves, eps=1e-7, atol=1e-5)
    assert objective.log_var_limits is not None
    log_var = (x[:5] - weights[3]) @ weights[4].T + weights[5]
    assert (log_var < objective.log_var_limits[0]).any()


def test_backward_twice_gives_the_same_gradients():
    x, weights, objective = make_case()
    leaves = Weights(*(w.clone().requires_grad_() for w in weights[:4]))
    loss = variational_loss(x, leaves, objective).loss
    first = t.autograd.grad(loss, leaves[:4], retain_graph=True)
    second = t.autograd.grad(3 * loss, leaves[:4])
    for one, other in zip(first, second, strict=True):
        assert t.allclose(3 * one, other)


def test_no_gradient_is_computed_when_none_is_wanted(monkeypatch):
    """Inputs without gradients, or as in logging: weights that have them, in no_grad mode."""

    def refuse(*_, **__):
        raise AssertionError("computed")

    monkeypatch.setattr(step, "_gradients", refuse)
    x, weights, objective = make_case()
    assert not variational_loss(x, weights, objective).loss.requires_grad
    trained = Weights(*(w if w is None else w.clone().requires_grad_() for w in weights))
    with t.no_grad():
        assert variational_loss(x, trained, objective).loss > 0
    with pytest.raises(AssertionError, match="computed"):
        variational_loss(x, trained, objective)


@pytest.mark.parametrize("scope", ["all", "selected"])
@pytest.mark.parametrize("posterior", ["fixed", "point", "learned"])
def test_a_kl_without_weight_that_is_not_asked_for_changes_nothing_but_itself(posterior, scope):
    case = {"posterior": posterior, "kl_scope": scope, "noise_on": "both", "beta": 0.0, "aux": True}
    x, weights, objective = make_case(**case)
    asked, gradients_asked = gradients(variational_loss, x, weights, objective)
    without = dataclasses.replace(objective, measures_kl=False)
    with RecordedOps() as ops:
        terms, found = gradients(variational_loss, x, weights, without)
    assert asked.kl_loss > 0
    assert terms.kl_loss == 0
    assert t.equal(terms.loss, asked.loss)
    assert all(t.equal(*pair) for pair in zip(found, gradients_asked, strict=True))
    with RecordedOps() as all_ops:
        gradients(variational_loss, x, weights, objective)
    assert ops.counts.total() < all_ops.counts.total(), "it is not computed"


def test_the_variance_over_ranks_is_that_of_all_their_rows():
    error_BD = t.randn(12, 5, dtype=t.float64) + 3 * t.arange(12.0, dtype=t.float64)[:, None]
    shares = error_BD.chunk(3)
    gathered = t.stack(
        [t.cat([one.mean(0), step.row_variance(one, Ranks())[None]]) for one in shares]
    )

    class OneOfThree(Ranks):
        def gather(self, x):
            assert t.equal(x, gathered[self.rank])
            return gathered

    whole = step.row_variance(error_BD, Ranks())
    for rank, share in enumerate(shares):
        t.testing.assert_close(step.row_variance(share, OneOfThree(rank, 3)), whole)
