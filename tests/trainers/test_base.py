"""What trainers and dictionaries offer, for every architecture that is trained."""

import math
from collections.abc import Iterable
from itertools import combinations

import pytest
import torch as t
from small_trainers import STEPS, D, F, K, batch, built
from torch.distributions import Normal, kl_divergence

from dictionary_learning_ext.config.architectures import TRAINED, import_class
from dictionary_learning_ext.config.sae import CONFIGS
from dictionary_learning_ext.errors import ConfigError
from dictionary_learning_ext.trainers.base import batch_metrics
from dictionary_learning_ext.trainers.dictionaries import HasPosterior, selects_top_k
from dictionary_learning_ext.trainers.ranks import Ranks

OURS = [name for name, row in TRAINED.items() if row.is_ours]


@pytest.mark.parametrize("architecture", TRAINED)
def test_ours_have_a_posterior_and_upstreams_have_none(architecture):
    row, sae = TRAINED[architecture], built(architecture).ae
    assert isinstance(sae, HasPosterior) == row.is_ours
    if row.is_ours:
        x = batch(0).view(4, 6, D)
        posterior = sae.posterior(x)
        assert posterior.kl.shape == (4, 6, F)
        std = posterior.std.expand(4, 6, F)
        prior = Normal(t.zeros(F), sae.prior_std.expand(F))
        expected = kl_divergence(Normal(posterior.mu, std), prior)
        assert t.allclose(posterior.kl, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", TRAINED)
def test_selects_top_k_is_of_those_that_keep_k_of_each_token(architecture):
    sae = built(architecture).ae
    assert selects_top_k(sae) == (
        architecture in ("vsae_top_k", "vsae", "top_k", "probabilistic_top_k")
    )
    if selects_top_k(sae):
        values_BK = sae.encode(batch(0), return_topk=True)[1]
        assert values_BK.shape == (len(batch(0)), int(sae.k))


@pytest.mark.parametrize("architecture", TRAINED)
def test_a_trainer_offers_what_the_loop_asks_for(architecture):
    trainer = built(architecture)
    trainer.update(0, batch(0))
    metrics = trainer.metrics(1, batch(1))
    assert {"l2_loss", "fve", "l0", "alive_in_batch"} <= metrics.keys()
    assert all(type(value) is float for value in metrics.values())
    assert trainer.check(1) is None
    trainer.restore_last_finite()
    trainer.scheduler.step()
    assert trainer.state().ae is trainer.ae


def plain(architecture, **changes):
    """A trainer of ours as a user of Python builds it."""
    row = TRAINED[architecture]
    arguments = {"steps": STEPS, "activation_dim": D, "dict_size": F, "layer": 0, "lm_name": "tiny"}
    if CONFIGS[architecture]().kept_per_token is not None:
        arguments["k"] = K if "k" in CONFIGS[architecture]().options else F
    return import_class(row.trainer)(**arguments | {"warmup_steps": 5} | changes)


@pytest.mark.parametrize("architecture", OURS)
def test_a_trainers_noise_is_of_its_seed_or_else_of_torchs(architecture):
    def noise(seed, of_torch):
        t.manual_seed(of_torch)
        trainer = plain(architecture, seed=seed, device="cpu")
        return t.randn(4, generator=trainer.generator)

    assert t.equal(noise(3, 0), noise(3, 1))
    assert t.equal(noise(None, 5), noise(None, 5))
    assert not t.equal(noise(3, 0), noise(4, 0))
    assert not t.equal(noise(None, 5), noise(None, 6))


@pytest.mark.parametrize("architecture", OURS)
def test_the_default_device_is_one_that_is_there(architecture):
    expected = "cuda" if t.cuda.is_available() else "cpu"
    trainer = plain(architecture)
    assert {p.device.type for p in trainer.ae.parameters()} == {expected}
    assert trainer.generator.device.type == expected


@pytest.mark.parametrize("dtype", [t.float64, t.bfloat16])
@pytest.mark.parametrize("architecture", OURS)
def test_the_log_takes_what_a_step_takes(architecture, dtype):
    """As if the batch had been in float32, so that no sum is rounded to bf16."""
    trainer, x = built(architecture), batch(0).to(dtype)
    log = trainer.loss(x, 0, logging=True)
    assert (log.x.dtype, log.x_hat.dtype) == (t.float32, t.float32)
    assert trainer.metrics(0, x) == trainer.metrics(0, x.float())


class Unconnected(Ranks):
    def copy_first_(self, tensors: Iterable[t.Tensor]) -> None:
        """The weights are alike already."""


@pytest.mark.parametrize("architecture", OURS)
def test_each_rank_draws_noise_of_its_own_and_the_first_that_of_a_single_process(architecture):
    ranks = [built(architecture) for _ in range(3)]
    for rank, trainer in enumerate(ranks):
        trainer.join(Unconnected(rank, 3))
    states = [trainer.generator.get_state() for trainer in ranks]
    assert t.equal(states[0], built(architecture).generator.get_state())
    assert not any(t.equal(one, other) for one, other in combinations(states, 2))


@pytest.mark.parametrize("width", [D - 1, D + 1])
@pytest.mark.parametrize("architecture", OURS)
def test_activations_of_another_width_name_both_widths_and_the_hook(architecture, width):
    trainer = built(architecture)
    with pytest.raises(ConfigError, match=rf"width {width} from blocks\.0.*activation_dim={D}"):
        trainer.update(0, t.randn(4, width))


@pytest.mark.parametrize("scale", [0.0, -0.5, -2.0, math.nan, math.inf])
@pytest.mark.parametrize("architecture", OURS)
def test_a_scale_that_is_not_positive_is_refused_and_changes_nothing(architecture, scale):
    sae = built(architecture).ae
    before = {name: value.clone() for name, value in sae.state_dict().items()}
    with pytest.raises(ConfigError, match=f"scale={scale}: expected above 0") as raised:
        sae.scale_biases(scale)
    assert ("all activations are 0" in str(raised.value)) == (scale == 0)
    assert all(t.equal(value, before[name]) for name, value in sae.state_dict().items())


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
    assert batch_metrics(x, x, f)["fve"] == 1
