"""A training step's batch, weights and objective, and the cases that it is tested with."""

import dataclasses
from typing import Any, NamedTuple

import pytest
import torch as t

from dictionary_learning_ext.config.sae import VSAETopKConfig
from dictionary_learning_ext.trainers.posterior import fixed_variance_kl
from dictionary_learning_ext.trainers.step import StepObjective, Weights

BATCH, D, F = 24, 6, 40


class Case(NamedTuple):
    """One setting of everything that a step tells apart."""

    options: dict[str, Any]
    """The settings of the SAE."""
    aux: bool
    """Whether AuxK has dead features."""
    form: str
    """How products with codes are computed: "sparse" or "dense"."""
    dtype: str

    @classmethod
    def of(cls, posterior, noise_on, kl_scope, rectify, select_by, *more) -> "Case":
        options = {"posterior": posterior, "noise_on": noise_on, "kl_scope": kl_scope}
        return cls(options | {"rectify": rectify, "select_by": select_by}, *more)


CASES = [
    Case.of(*row)
    for row in (
        ("fixed", "both", "all", False, "value", False, "sparse", "float32"),
        ("fixed", "both", "selected", True, "magnitude", True, "dense", "bfloat16"),
        ("fixed", "values", "all", True, "value", True, "sparse", "bfloat16"),
        ("fixed", "values", "selected", True, "magnitude", False, "sparse", "float32"),
        ("fixed", "selection", "all", False, "magnitude", True, "dense", "bfloat16"),
        ("fixed", "selection", "selected", False, "value", False, "dense", "float32"),
        ("learned", "both", "all", False, "value", True, "sparse", "bfloat16"),
        ("learned", "both", "selected", True, "magnitude", False, "dense", "float32"),
        ("learned", "values", "all", False, "value", False, "dense", "float32"),
        ("learned", "values", "selected", False, "magnitude", True, "dense", "bfloat16"),
        ("learned", "selection", "all", True, "magnitude", False, "sparse", "bfloat16"),
        ("learned", "selection", "selected", True, "value", True, "sparse", "float32"),
        ("point", "both", "all", True, "value", True, "dense", "float32"),
        ("point", "both", "selected", False, "magnitude", False, "sparse", "bfloat16"),
    )
]
"""Every combination of posterior, noise_on and kl_scope that there is. Of the other columns, every two settings meet in
some case, and each meets every setting of those three."""


def each(cases: list[Case]) -> pytest.MarkDecorator:
    """Runs a test with each of these cases."""
    return pytest.mark.parametrize(
        "case", cases, ids=lambda c: "-".join(map(str, [*c.options.values(), *c[1:]]))
    )


def make_case(k=3, aux=False, seed=0, **given):
    """A batch, weights and an objective, all in float64."""
    generator = t.Generator().manual_seed(seed)

    def randn(*shape):
        return t.randn(*shape, generator=generator, dtype=t.float64)

    if given.get("posterior", "fixed") == "fixed":
        given["sigma"] = 0.8
    settings = VSAETopKConfig(prior_std=1.3, **given)
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
        kl_of_sigma=fixed_variance_kl(0.8, 1.3) if "sigma" in given else 0.0,
        noise_scale=0.6,
        auxk_alpha=settings.auxk_alpha,
        top_k_aux=4,
        dead_feature_threshold=100,
        matmul_dtype=t.float64,
        sigma=t.tensor(0.8, dtype=t.float64),
        # Tight, so that some log-variances are clamped on either side.
        log_var_limits=t.tensor([-1.0, 1.5]).double() if learned else None,
        tokens_since_fired_F=t.arange(F) * 20 if aux else t.zeros(F, dtype=t.long),
        generator=t.Generator(),
    )
    return randn(BATCH, D), weights, objective


def in_float32(x, weights, objective, matmul_dtype=t.float32):
    """The case, rounded."""
    return (
        x.float(),
        Weights(*(w if w is None else w.float() for w in weights)),
        dataclasses.replace(objective, sigma=objective.sigma.float(), matmul_dtype=matmul_dtype),
    )


def gradients(loss_of, x, weights, objective):
    """The terms, and the gradients of every weight, and of x, for the same draw each time."""
    objective.generator.manual_seed(7)
    leaves = [*(w for w in weights if w is not None), x]
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    padded = [*leaves[:-1], None, None][:6]
    terms = loss_of(leaves[-1], Weights(*padded), objective)
    return terms, t.autograd.grad(terms.loss, leaves, materialize_grads=True)


def assert_same_terms(got, expected, **tolerances):
    for name, value in got._asdict().items():
        t.testing.assert_close(value, getattr(expected, name), **tolerances, msg=name)


def assert_close(got, expected, error=1e-9):
    """Each tensor, relative to its largest element."""
    for one, other in zip(got, expected, strict=True):
        assert ((one - other).abs().max() / other.abs().max().clamp(min=1e-30)) < error


def bf16_case(**settings):
    """One with an outlier direction, and where rounding takes nothing across an edge: k = F, a seed whose means
    are not near 0, and limits in gaps between the log-variances.
    """
    x, weights, objective = make_case(k=F, seed=1, **settings)
    x[:, 0] += 30
    weights.b_dec_D[0] = 25
    if weights.W_var_FD is not None:
        log_var = (x - weights.b_dec_D) @ weights.W_var_FD.T + weights.b_var_F
        limits = t.stack([middle_of_gap(log_var, *span) for span in ((-4.0, -0.2), (0.5, 5.0))])
        objective = dataclasses.replace(objective, log_var_limits=limits)
        assert ((log_var < limits[0]) | (log_var > limits[1])).any()

    def cast(tensor):
        return tensor if tensor is None else tensor.bfloat16().double()

    return cast(x), Weights(*map(cast, weights)), objective


def middle_of_gap(values, low, high):
    """The middle of the largest gap between values in (low, high)."""
    inside = values[(values > low) & (values < high)].sort().values
    i = inside.diff().argmax()
    return (inside[i] + inside[i + 1]) / 2


def assert_near(terms, got, reference, expected):
    """As far as bf16 is from exact numbers."""
    for name in ("kl_loss", "l2_loss"):
        assert abs(getattr(terms, name) / getattr(reference, name) - 1) <= 0.01
    for one, other in zip(got, expected, strict=True):
        assert (one - other).norm() <= 0.03 * other.norm()
