"""Presets: whole, the paper's, scaled; and as a trainer's arguments, where the vSAE is the same in all units."""

import math
from dataclasses import replace
from itertools import repeat
from typing import get_args

import pytest
import torch as t
from dictionary_learning.training import trainSAE
from small_trainers import in_float64
from tqdm import tqdm
from variational_trainers import D, F, data

from dictionary_learning_ext import VariationalTopKTrainer, load_dictionary, trainer_options
from dictionary_learning_ext.config.presets import PRESETS, preset
from dictionary_learning_ext.config.run import RunConfig
from dictionary_learning_ext.config.sae import DEAD_AFTER_FIRINGS, Posterior
from dictionary_learning_ext.errors import ConfigError
from dictionary_learning_ext.trainers.build import build_trainer

K, STEPS = 4, 40
SIZES = {"activation_dim": D, "dict_size": F, "k": K, "steps": STEPS}
REST = {"layer": 0, "lm_name": "tiny", "device": "cpu", "seed": 3}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_whole(name):
    config = preset(name)
    assert config.sae.resolve(config.run.steps).trainer_arguments()["lr"] > 0


def test_the_public_codes_preset_has_its_schedule():
    as_run = preset("paper-as-run")
    given = as_run.sae.resolve(as_run.run.steps).trainer_arguments()
    schedules = ("warmup_steps", "decay_start", "kl_warmup_steps")
    assert [given[name] for name in schedules] == [200, 8000, 1000]
    short = preset("paper-as-run", steps=4000).resolved.sae
    assert (short.warmup_steps, short.decay_start) == (200, 3200)
    with pytest.raises(ConfigError, match="recommended, paper,") as raised:
        trainer_options("paper-as-run", **SIZES)
    assert (raised.value.name, raised.value.value) == ("preset", "paper-as-run")


def test_the_public_codes_pair_is_two_architectures_of_one_preset():
    vsae, top_k = (preset("paper-as-run", architecture=name) for name in (None, "top_k"))
    assert vsae.run == top_k.run
    assert (vsae.sae.dict_size, vsae.sae.k) == (top_k.sae.dict_size, top_k.sae.k) == (8192, 256)
    given = top_k.sae.resolve(top_k.run.steps).trainer_arguments()
    assert given["lr"] == pytest.approx(2e-4 * 2**0.5)
    assert (given["auxk_alpha"], given["dead_feature_threshold"]) == (1 / 32, 10_000_000)
    assert (given["warmup_steps"], given["decay_start"]) == (200, 8000)
    assert vsae.resolved.sae.lr == 8e-4


def test_the_paper_is_what_the_paper_states():
    stated = {
        "model": "EleutherAI/pythia-70m",
        "data": "roneneldan/TinyStories",
        "hook": "blocks.0.hook_resid_post",
        "dict_size": 2048,
        "k": 64,
        "steps": 20_000,
        "dtype": "bfloat16",
        "n_ctxs": 2500,
        "ctx_len": 128,
        "posterior": "fixed",
        "sigma": 1.0,
        "noise_on": "both",
        "kl_scope": "all",
    }
    settings = preset("paper").to_dict()
    assert {name: settings[name] for name in stated} == stated
    assert settings["kl_schedule"] != "constant", "the KL is annealed"


def test_a_presets_schedules_scale_with_its_steps():
    for config, times in ((preset("recommended"), 8), (preset("recommended", steps=2000), 2)):
        names = ("decay_start", "noise_anneal_steps", "steps")
        assert [config.resolved.to_dict()[name] for name in names] == [
            750 * times,
            500 * times,
            1000 * times,
        ]
    assert preset("paper", steps=7).run.steps == 7


# --- as a trainer's arguments


def as_trained(name, posterior):
    """The trainer that `vsae train --preset` makes, and E||x||^2 of its training units."""
    changed = {"k": K, "dict_size": F, "seed": 3}
    if posterior == "learned":
        changed["posterior"] = posterior
    config = preset(name, STEPS).with_settings(changed, "test")
    config = replace(config.resolved, run=RunConfig(steps=STEPS, normalize=config.run.normalize))
    energy = {"sqrt_d": D, "unit": 1}[config.run.normalize]
    sizes = {"activation_dim": D, "energy": energy, "layer": 0}
    trainer = build_trainer(config, **sizes, name="", device="cpu")
    return in_float64(trainer), energy


@pytest.mark.parametrize("mean_squared_norm", [1.0, 37, D])
@pytest.mark.parametrize(
    ("name", "posterior"),
    [*((name, None) for name in PRESETS if name != "paper-as-run"), ("paper", "learned")],
)
def test_a_presets_vsae_is_the_same_in_other_units(name, posterior, mean_squared_norm):
    one, energy = as_trained(name, posterior)
    given = trainer_options(name, **SIZES, mean_squared_norm=mean_squared_norm, posterior=posterior)
    other = in_float64(VariationalTopKTrainer(**given, **REST))
    x = data(dtype=t.float64)
    x = x * (energy / x.square().sum(-1).mean()).sqrt()
    ratio = mean_squared_norm / energy
    for trainer in (one, other):  # AuxK, too
        trainer.num_tokens_since_fired = t.arange(F) * 10**9
    same = x * math.sqrt(ratio)
    for step in (STEPS // 8, STEPS // 2):  # noise and KL change until there
        loss, other_loss = one.loss(x, step), other.loss(same, step)
        assert other_loss.item() == pytest.approx(ratio * loss.item(), rel=1e-6)
        loss.backward()
        other_loss.backward()
        gradients = [trainer.ae.encoder.weight.grad for trainer in (one, other)]
        assert t.allclose(gradients[1], ratio * gradients[0], rtol=1e-5, atol=1e-7 * ratio)
    logged = [trainer.loss(y, 0, logging=True).losses for trainer, y in ((one, x), (other, same))]
    for key in ("noise_to_signal", "kl_loss"):
        assert logged[1][key] == pytest.approx(logged[0][key], rel=1e-6)
    one.ae.scale_biases(math.sqrt(ratio))
    assert t.allclose(
        one.ae.encode(same, sample=True, generator=t.Generator().manual_seed(0)),
        other.ae.encode(same, sample=True, generator=t.Generator().manual_seed(0)),
    )
    for name in ("lr", "warmup_steps", "decay_start"):
        assert one.config[name] == other.config[name]


def test_the_presets_as_a_person_would_work_them_out():
    sizes = {"activation_dim": 256, "dict_size": 1024, "k": 30, "steps": 4000}
    given = trainer_options(**sizes)
    assert (given["noise_to_signal"], given["mean_squared_norm"]) == (0.3, 1.0)
    assert given["prior_std"] == pytest.approx(1 / 16)
    assert given["beta"] == pytest.approx(0.01 / 256)
    assert "sigma" not in given
    assert (given["noise_on"], given["kl_scope"]) == ("selection", "selected")
    assert (given["noise_anneal_steps"], given["decay_start"]) == (2000, 3000)
    assert (given["activation_dim"], given["dict_size"], given["k"]) == (256, 1024, 30)
    assert given["lr"] == pytest.approx(
        3.5 * 8e-4, rel=0.02
    )  # upstream's, 2e-4 / sqrt(1024 / 16384)
    assert given["auxk_alpha"] == 1 / 32
    assert given["dead_feature_threshold"] == DEAD_AFTER_FIRINGS * 1024 // 30
    assert "seed" not in given


@pytest.mark.parametrize("posterior", get_args(Posterior))
@pytest.mark.parametrize("mean_squared_norm", [1.0, 37.0])
def test_they_are_the_trainers_own_defaults(mean_squared_norm, posterior):
    given = trainer_options(**SIZES, mean_squared_norm=mean_squared_norm, posterior=posterior)
    plain = SIZES | {"mean_squared_norm": mean_squared_norm, "posterior": posterior}
    own, told = (VariationalTopKTrainer(**each, **REST) for each in (plain, given))
    assert own.settings == told.settings
    assert own.config == told.config


def test_an_option_that_a_trainer_is_given_is_in_its_own_units():
    options = {"beta": 0.5, "prior_std": 0.7, "sigma": 0.2, "noise_anneal_steps": None}
    trainer = VariationalTopKTrainer(**SIZES, **REST, **options, mean_squared_norm=37.0)
    assert trainer.config.items() >= options.items()
    assert float(trainer.ae.sigma) == pytest.approx(0.2)


@pytest.mark.parametrize(("size", "is_warned"), [(1.0, False), (0.6, True), (8.0, True)])
def test_a_first_batch_in_other_units_is_warned_of_once(size, is_warned, caplog):
    trainer = VariationalTopKTrainer(**SIZES, **REST)
    x = size * t.nn.functional.normalize(data(), dim=1)
    for step in range(2):
        trainer.update(step, x)
    said = [each.message for each in caplog.records if "mean ||x||^2" in each.message]
    assert len(said) == is_warned
    assert all(f"give mean_squared_norm={size**2:.4g}" in each for each in said)


def test_that_warning_has_a_line_of_its_own_beside_a_progress_bar(capsys):
    trainer = VariationalTopKTrainer(**SIZES, **REST)
    with tqdm([0]) as steps:
        for step in steps:
            trainer.update(step, 50 * data())
    (line,) = (one for one in capsys.readouterr().err.split("\n") if "mean_squared_norm=" in one)
    assert line.rpartition("\r")[2].startswith("the first batch has")


def test_trainsae_takes_them_and_its_noise_has_the_presets_ratio(tmp_path, caplog):
    config = {"trainer": VariationalTopKTrainer, **REST} | trainer_options(**SIZES)
    raw = 50 * data(batch=64)
    trainSAE(
        map(t.clone, repeat(raw)),
        [config],
        steps=STEPS,
        save_dir=str(tmp_path),
        normalize_activations=True,
        device="cpu",
    )
    assert not caplog.records
    sae, _ = load_dictionary(tmp_path / "trainer_0")
    ratio = K * sae.sigma**2 / raw.square().sum(-1).mean()
    assert float(ratio) == pytest.approx(0.3, rel=0.02)
