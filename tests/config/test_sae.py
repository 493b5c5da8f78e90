"""An SAE's settings: defaults, checks, help texts, and what trainers make of them."""

import copy
import inspect
import pickle
from dataclasses import asdict, fields

import numpy as np
import pytest
import torch as t

from dictionary_learning_ext.config.architectures import TRAINED, import_class
from dictionary_learning_ext.config.help_texts import help_texts
from dictionary_learning_ext.config.presets import preset
from dictionary_learning_ext.config.sae import (
    CONFIGS,
    NOISES,
    SCHEDULES,
    MatryoshkaConfig,
    PosteriorOptions,
    ProbabilisticTopKConfig,
    SAEConfig,
    VAEaseConfig,
    VSAETopKConfig,
    from_json,
    in_shares,
)
from dictionary_learning_ext.errors import ConfigError
from dictionary_learning_ext.trainers.probabilistic_top_k import ProbabilisticTopKTrainer
from dictionary_learning_ext.trainers.vaease import VAEase, VAEaseTrainer
from dictionary_learning_ext.trainers.variational_top_k import (
    VariationalTopKAutoEncoder,
    VariationalTopKTrainer,
)

D, F, K = 8, 16, 4
POSTERIOR = asdict(PosteriorOptions(sigma=1.0))
VSAE = VSAETopKConfig(sigma=1.0, k=K).with_defaults(40)
VSAE = VSAE.to_flags(VSAE.options, 40)
del VSAE["noise_to_signal"]  # which is resolved to sigma
VAEASE = VAEaseConfig().options
GATES = ProbabilisticTopKConfig(k=K).with_defaults(40)
GATES = GATES.to_flags(GATES.options, 40)
STARTED = {"steps": 40, "activation_dim": D, "dict_size": F, "layer": 0, "lm_name": "tiny"}
STARTED |= {"warmup_steps": 4, "seed": 0, "device": "cpu"}
"""What a trainer is given beside its options."""


@pytest.mark.parametrize("architecture", TRAINED)
def test_every_option_an_architecture_uses_is_filled_in_and_no_other(architecture):
    resolved = SAEConfig(architecture=architecture).resolve(500)
    optional = {
        "noise_anneal_steps",
        "k_anneal_steps",
        "log_var_init",
        "noise_to_signal",
        "survival",
    }
    options = resolved.to_flags(resolved.options, 500)
    assert all(value is not None for name, value in options.items() if name not in optional)
    assert resolved.in_steps(500)["warmup"] == 50


def test_an_architecture_has_its_own_options_and_no_others():
    relu, top_k = SAEConfig(architecture="relu"), SAEConfig(architecture="top_k")
    assert relu.options.keys() == {"l1_penalty", "sparsity_warmup"}
    of_top_k = {"k", "k_anneal", "auxk_alpha", "dead_feature_threshold"}
    assert top_k.options.keys() == of_top_k
    flat = relu.to_json()
    assert flat.keys() >= of_top_k
    assert all(flat[name] is None for name in of_top_k)


def test_numbers_and_lists_are_kept_in_one_form():
    assert repr(SAEConfig(beta=1)) == repr(SAEConfig(beta=1.0))
    listed = SAEConfig(architecture="matryoshka", group_fractions=[0.5, 0.5])
    assert listed.group_fractions == (0.5, 0.5)
    hash(listed)


@pytest.mark.parametrize("architecture", TRAINED)
def test_every_architecture_that_is_trained_has_settings_of_its_own(architecture):
    made = SAEConfig(architecture=architecture, dict_size=64)
    assert type(made) is CONFIGS[architecture]
    assert made == CONFIGS[architecture](dict_size=64)
    assert from_json(made.to_json()) == made
    assert pickle.loads(pickle.dumps(made)) == copy.deepcopy(made) == made
    assert CONFIGS.keys() == TRAINED.keys()


@pytest.mark.parametrize(
    ("normalize", "architecture", "energy", "k"),
    [("sqrt_d", "vsae_top_k", 128, 16), ("unit", "vsae_top_k", 1, 16), ("sqrt_d", "vsae", 128, 64)],
)
def test_noise_to_signal_becomes_sigma_where_the_width_is_known(normalize, architecture, energy, k):
    """r = k sigma^2 / E||x||^2, which is D under sqrt_d and 1 under unit."""
    given = {"k": 16} if architecture == "vsae_top_k" else {}
    config = SAEConfig(architecture=architecture, dict_size=64, noise_to_signal=0.3, **given)
    resolved = config.resolve(100)
    assert resolved.sigma is None
    sigma = resolved.with_sigma(128, normalize).sigma
    assert k * sigma**2 / energy == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("given", "change"),
    [
        ({"sigma": 1.0}, {"posterior": "learned"}),
        ({"posterior": "learned", "log_var_init": -1.0}, {"posterior": "fixed"}),
        ({"sigma": 0.5}, {"posterior": "point"}),
        ({"noise_on": "values", "noise_anneal": 0.01}, {"posterior": "point"}),
        ({"kl_warmup": 0.2}, {"kl_schedule": "constant"}),
    ],
    ids=str,
)
def test_a_change_leaves_out_what_it_has_no_use_for(given, change):
    with pytest.raises(ConfigError, match="not use it"):
        SAEConfig(**given | change).resolve(500)
    resolved = SAEConfig(**given).switch_architecture(**change).resolve(500)
    assert vars(resolved).items() >= change.items()
    assert resolved.resolve(500) == resolved, "what is resolved is accepted again"


def test_another_architecture_has_its_own_defaults():
    unused = SAEConfig(log_var_init=1.0)  # by a fixed posterior
    for start in (SAEConfig(posterior="learned"), unused):
        vaease = start.switch_architecture(architecture="vaease").resolve(100)
        assert (vaease.log_var_init, vaease.gamma_init, vaease.active_gate) == (-0.5, 0.1, 0.05)


@pytest.mark.parametrize(
    ("architecture", "given", "becomes"),
    [
        ("vsae", "selection", "both"),  # it selects all features anyway
        ("vsae", "values", "values"),
        ("vsae_top_k", "selection", "selection"),
    ],
)
def test_an_sae_of_all_features_takes_no_noise_on_the_selection(architecture, given, becomes):
    changed = SAEConfig(noise_on=given).switch_architecture(architecture=architecture)
    assert changed.resolve(100).noise_on == becomes


@pytest.mark.parametrize("change", [{"architecture": "vsae"}, {"noise_on": "values"}])
def test_where_noise_selects_nothing_a_ratio_takes_the_place_of_survival(change):
    start = preset("recommended")
    changed = start.sae.switch_architecture(**change)
    assert (changed.survival, changed.noise_to_signal) == (None, 0.3)
    assert start.with_settings(change, "x").sae == changed
    ratio = start.with_settings(change | {"noise_to_signal": 0.1}, "x").sae
    assert ratio.noise_to_signal == 0.1


def test_one_noise_takes_the_place_of_another():
    for name, value in (("sigma", 0.5), ("noise_to_signal", 0.2), ("survival", 0.4)):
        for start in ("recommended", "strong-noise", "paper"):
            sae = preset(start).with_settings({name: value, "noise_on": "both"}, "x").sae
            assert {n: getattr(sae, n) for n in NOISES} == dict.fromkeys(NOISES) | {name: value}


def test_a_given_zero_is_kept():
    resolved = SAEConfig(beta=0.0, auxk_alpha=0.0, warmup=0).resolve(100)
    assert (resolved.beta, resolved.auxk_alpha, resolved.in_steps(100)["warmup"]) == (0.0, 0.0, 0)


LENGTHS = [*range(1, 300), 999, 1000, 1001, 4096, 30_011, 2**16 + 1, 100_003, 999_983, 10**6]


def test_a_number_of_steps_goes_through_a_share_and_back():
    """Every number of a run, for many lengths. Those whose product is not exact are tried one by one."""
    for steps in LENGTHS:
        counts = np.arange(steps + 1)
        back = counts / steps * steps
        assert np.abs(back - counts).max() < 1e-7, steps
        inexact = counts[back < counts].tolist()
        for row in SCHEDULES.values():
            for count in (*inexact[:: len(inexact) // 999 + 1], steps // 10, steps // 5, steps):
                assert row.count(row.share(count, steps), steps) == max(count, row.least)


def test_another_length_derives_defaults_again_and_keeps_the_share_of_other_schedules():
    given = {"warmup": 0.05, "decay_start": 0.75, "noise_anneal": 0.5, "k_anneal": 0.25}
    sae = SAEConfig(**given, kl_warmup=0)
    schedules = ("warmup", "decay_start", "noise_anneal", "k_anneal", "kl_warmup")
    assert [sae.in_steps(200)[name] for name in schedules] == [10, 150, 100, 50, 0]
    lengths = (100, 20_000, 200_000)
    assert [SAEConfig().in_steps(steps)["warmup"] for steps in lengths] == [10, 1000, 1000]


@pytest.mark.parametrize("steps", [1, 2, 3, 10])
@pytest.mark.parametrize(
    "given",
    [
        {"warmup": 0.06, "decay_start": 0.1},
        {"warmup": 0.9},
        {"architecture": "relu", "sparsity_warmup": 0.09, "decay_start": 0.15},
        {"architecture": "relu", "decay_start": 0.25},
        {"decay_start": 0.75, "noise_anneal": 0.5, "k_anneal": 0.009},
    ],
    ids=str,
)
def test_schedules_of_a_very_short_run_are_possible(steps, given):
    """A mistake that nobody typed would be said otherwise."""
    sae = SAEConfig(**given).resolve(steps)
    given = sae.to_flags({"warmup": None, "decay_start": None} | sae.options, steps)
    type(sae)().with_flags(given, steps).with_defaults(steps)


def test_a_decay_after_the_warm_up_stays():
    given = SAEConfig(warmup=0.06, decay_start=0.1)
    assert [given.in_steps(steps)["decay_start"] for steps in (1000, 20, 9)] == [100, 2, None]


def test_a_config_of_an_earlier_version_has_steps():
    """Its default is a default again: in a longer run, it follows from that."""
    run = {"steps": 20_000, "batch_size": 8}
    steps = {"warmup_steps": 1000, "decay_start": 15_000, "kl_warmup_steps": 0}
    defaults = {"k_anneal_steps": None}
    shares = {"warmup": None, "decay_start": 0.75, "kl_warmup": 0}
    assert in_shares(run | steps | defaults) == run | shares | {"k_anneal": None}
    assert in_shares(run | shares) == run | shares, "as this version writes it"


def assert_same_weights(one, other):
    left, right = one.state_dict(), other.state_dict()
    assert left.keys() == right.keys()
    assert all(t.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize(
    ("model", "given", "defaults"),
    [(VariationalTopKAutoEncoder, (D, F, K), POSTERIOR), (VAEase, (D, F), VAEASE)],
    ids=["vsae", "vaease"],
)
def test_a_model_without_options_has_the_defaults_of_its_group(model, given, defaults):
    t.manual_seed(0)
    bare = model(*given)
    t.manual_seed(0)
    assert_same_weights(bare, model(*given, **defaults))


@pytest.mark.parametrize(
    ("trainer", "given", "defaults"),
    [
        (VariationalTopKTrainer, {"k": K}, VSAE),
        (VAEaseTrainer, {}, VAEASE),
        (ProbabilisticTopKTrainer, {"k": K}, GATES),
    ],
    ids=["vsae", "vaease", "probabilistic_top_k"],
)
def test_a_trainer_takes_every_option_and_has_the_defaults_of_its_settings(
    trainer, given, defaults
):
    bare, told = trainer(**STARTED, **given), trainer(**STARTED, **defaults)
    assert bare.config == told.config
    chosen = {name: value for name, value in defaults.items() if value is not None}
    assert bare.config.items() >= chosen.items()
    assert_same_weights(bare.ae, told.ae)


@pytest.mark.parametrize("cls", CONFIGS.values(), ids=lambda cls: cls.__name__)
def test_every_option_has_a_help_text(cls):
    texts = help_texts(cls)
    for option in fields(cls):
        assert len(option.metadata.get("help", "") or texts[option.name]) > 10, option.name


def test_upstreams_trainers_have_the_defaults_that_our_groups_say():
    """The help texts say them, and upstream's trainers take what is not given from themselves."""
    compared = set()
    for row in TRAINED.values():
        if row.is_ours or row.name == "probabilistic_top_k":  # it reads them from our groups
            continue
        classes = [cls for cls in import_class(row.trainer).__mro__ if "trainers" in cls.__module__]
        parameters = {n: p for cls in classes for n, p in inspect.signature(cls).parameters.items()}
        for name, default in CONFIGS[row.name]().options.items():
            theirs = getattr(parameters.get(name), "default", inspect.Parameter.empty)
            if default is not None and theirs is not inspect.Parameter.empty:
                assert theirs == default, (row.name, name)
                compared.add(name)
    ours = {"threshold_twice"}
    assert compared == {"auxk_alpha", "l1_penalty", "sparsity_penalty", "target_l0"} | ours


def test_a_schedule_that_is_not_given_is_a_share_of_the_run():
    options = SAEConfig().with_defaults(100)
    assert options.in_steps(100)["kl_warmup"] == 10
    assert options.with_defaults(100) == options, "a config builds the same again"
    assert SAEConfig(kl_warmup=0).in_steps(100)["kl_warmup"] == 0


def test_the_last_step_has_k_itself():
    """BatchTopK's threshold is that of k features, and learns nothing before."""
    for name in ("batch_top_k", "matryoshka"):
        sae = CONFIGS[name]()
        assert sae.with_flags({"k_anneal_steps": 99}, 100).in_steps(100)["k_anneal"] == 99
        with pytest.raises(ConfigError, match=r"^k_anneal_steps=99: expected .*less than steps=99"):
            sae.with_flags({"k_anneal_steps": 99}, 99)


def test_each_group_of_a_matryoshka_has_a_feature():
    thirds = (0.3333333333,) * 3
    assert MatryoshkaConfig(k=1, dict_size=4, group_fractions=thirds)
    assert MatryoshkaConfig(k=1, dict_size=4, group_fractions=(0.5, 0.3, 0.2)), "2, 1 and 1"
    with pytest.raises(ConfigError, match=r"^dict_size=3: "):
        MatryoshkaConfig(k=1, dict_size=3, group_fractions=thirds)
    with pytest.raises(ConfigError, match=r"^dict_size=15: "):
        MatryoshkaConfig(k=1, dict_size=15)
    with pytest.raises(ConfigError, match="sum to 1"):
        MatryoshkaConfig(group_fractions=(0.3333333,) * 3)


@pytest.mark.parametrize("name", ["kl_warmup", "noise_anneal", "k_anneal"])
def test_a_schedule_may_be_as_long_as_the_run(name):
    typed = {f"{name}_steps": 100}
    assert SAEConfig().with_flags(typed, 100) == SAEConfig(**{name: 1})
    with pytest.raises(ConfigError, match=f"^{name}_steps=100: expected .*steps=99"):
        SAEConfig().with_flags(typed, 99)
