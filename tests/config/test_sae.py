"""An SAE's settings: defaults, checks, help texts, and what trainers make of them."""

import copy
import inspect
import math
import pickle
from dataclasses import fields, replace

import pytest
import torch as t

from dictionary_learning_ext.commands.flags import help_texts
from dictionary_learning_ext.config.architectures import TRAINED, import_class, upstream_lr
from dictionary_learning_ext.config.checks import Follows
from dictionary_learning_ext.config.presets import PRESETS, preset
from dictionary_learning_ext.config.sae import (
    CONFIGS,
    NOISES,
    MatryoshkaConfig,
    ProbabilisticTopKConfig,
    VAEaseConfig,
    VSAETopKConfig,
    in_units,
    option_names,
    sae_settings,
    share_of_run,
)
from dictionary_learning_ext.errors import ConfigError
from dictionary_learning_ext.trainers.probabilistic_top_k import ProbabilisticTopKTrainer
from dictionary_learning_ext.trainers.vaease import VAEaseTrainer
from dictionary_learning_ext.trainers.variational_top_k import VariationalTopKTrainer

D, F, K = 8, 16, 4
STARTED = {"steps": 40, "activation_dim": D, "dict_size": F, "layer": 0, "lm_name": "tiny"}
STARTED |= {"warmup_steps": 4, "seed": 0, "device": "cpu"}
"""What a trainer is given beside its options."""
MAY_BE_NONE = {"decay_start", "init_from", "noise_anneal_steps", "sigma"}


@pytest.mark.parametrize("architecture", TRAINED)
def test_what_is_resolved_is_complete_and_is_accepted_again(architecture):
    resolved = CONFIGS[architecture](dict_size=64).resolve(500)
    assert not [value for value in vars(resolved).values() if isinstance(value, Follows)]
    assert {n for n, value in vars(resolved).items() if value is None} <= MAY_BE_NONE
    assert resolved.warmup_steps == 50
    assert resolved.resolve(500) == resolved
    assert sae_settings(architecture, resolved.to_dict()) == resolved, "as a config.json has it"
    assert pickle.loads(pickle.dumps(resolved)) == copy.deepcopy(resolved) == resolved


@pytest.mark.parametrize(
    "given",
    [{"kl_schedule": "constant"}, {"posterior": "point"}, {"posterior": "learned"}],
    ids=str,
)
def test_settings_without_use_for_an_option_are_accepted_again(given):
    resolved = VSAETopKConfig(**given).resolve(500)
    assert resolved.resolve(500) == resolved
    read = sae_settings("vsae_top_k", resolved.to_dict())
    assert read.resolve(500) == resolved
    assert read.of_steps(500, 1000).resolve(1000).warmup_steps == 100


def test_numbers_and_lists_are_kept_in_one_form():
    assert repr(VSAETopKConfig(beta=1)) == repr(VSAETopKConfig(beta=1.0))
    listed = MatryoshkaConfig(group_fractions=[0.5, 0.5])
    assert listed.group_fractions == (0.5, 0.5)
    hash(listed)


@pytest.mark.parametrize(("k", "energy"), [(16, 128), (16, 1), (64, 128)])
def test_noise_to_signal_is_the_noises_energy_over_the_activations(k, energy):
    """r = k sigma^2 / E||x||^2."""
    sigma = VSAETopKConfig(k=k, noise_to_signal=0.3).sigma_of(energy)
    assert k * sigma**2 / energy == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("given", "change"),
    [
        ({"sigma": 0.5}, {"posterior": "learned"}),
        ({"posterior": "learned", "log_var_init": -1.0}, {"posterior": "fixed"}),
        ({"noise_to_signal": 0.5, "noise_on": "selection"}, {"posterior": "point"}),
        ({"noise_on": "values", "noise_anneal_steps": 5}, {"posterior": "point"}),
        ({"kl_warmup_steps": 100}, {"kl_schedule": "constant"}),
    ],
    ids=str,
)
def test_a_change_leaves_out_what_it_has_no_use_for(given, change):
    with pytest.raises(ConfigError, match=f"^({'|'.join(given)})="):
        VSAETopKConfig(**given | change).resolve(500)
    resolved = VSAETopKConfig(**given).start_for(**change).resolve(500)
    assert vars(resolved).items() >= change.items()


def test_another_architecture_has_its_own_defaults():
    unused = VSAETopKConfig(log_var_init=1.0)  # by a fixed posterior
    for start in (VSAETopKConfig(posterior="learned"), unused):
        vaease = start.start_for("vaease").resolve(100)
        assert (vaease.log_var_init, vaease.gamma_init, vaease.active_gate) == (-0.5, 0.1, 0.05)


@pytest.mark.parametrize("architecture", TRAINED)
def test_a_presets_learning_rate_and_penalty_are_those_of_its_own_kind(architecture):
    """TopK's family shares the rate, so that comparisons are matched."""
    recommended, row = preset("recommended").sae, TRAINED[architecture]
    own = recommended.start_for(architecture).resolve(8000)
    is_tuned_alike = row.default_lr is None
    assert own.lr == (recommended.resolve(8000).lr if is_tuned_alike else row.lr(own.dict_size))
    if architecture == "vsae_as_published":
        assert own.beta == 1.0
    assert VSAETopKConfig(lr=3e-3).start_for(architecture).lr == 3e-3, "a number stays"


@pytest.mark.parametrize(
    ("architecture", "given", "becomes"),
    [
        ("vsae", "selection", "both"),  # it selects all features anyway
        ("vsae", "values", "values"),
        ("vsae_top_k", "selection", "selection"),
    ],
)
def test_an_sae_of_all_features_takes_no_noise_on_the_selection(architecture, given, becomes):
    changed = VSAETopKConfig(noise_on=given).start_for(architecture)
    assert changed.resolve(100).noise_on == becomes


@pytest.mark.parametrize("name", NOISES)
def test_one_noise_takes_the_place_of_another(name):
    for start in (name for name in PRESETS if name != "paper-as-run"):
        sae = preset(start).with_settings({name: 0.4, "noise_on": "both"}, "x").sae
        assert getattr(sae, name) == 0.4
        assert sae.to_dict().keys() & {*NOISES} == {name}


def test_a_given_zero_is_kept():
    resolved = VSAETopKConfig(beta=0.0, auxk_alpha=0.0, warmup_steps=0).resolve(100)
    assert (resolved.beta, resolved.auxk_alpha, resolved.warmup_steps) == (0.0, 0.0, 0)


def test_defaults_are_shares_of_the_run_and_given_steps_stay():
    lengths = (5, 100, 20_000)
    defaults = [VSAETopKConfig().resolve(steps) for steps in lengths]
    assert [sae.warmup_steps for sae in defaults] == [0, 10, 1000]
    assert [sae.kl_warmup_steps for sae in defaults] == [1, 10, 2000]
    given = VSAETopKConfig(warmup_steps=3, kl_warmup_steps=0, noise_anneal_steps=4)
    for steps in lengths:
        resolved = given.resolve(steps)
        assert resolved.warmup_steps == 3
        assert (resolved.kl_warmup_steps, resolved.noise_anneal_steps) == (0, 4)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("architecture", ["relu", "vsae_top_k"])
@pytest.mark.parametrize("steps", [1, 2, 3, 10])
def test_the_defaults_of_a_very_short_run_are_possible(steps, architecture, name):
    resolved = preset(name).sae.start_for(architecture).resolve(steps)
    assert resolved.decay_start is None or resolved.warmup_steps < resolved.decay_start < steps


def test_a_decay_begins_before_the_last_step():
    """Upstream's schedule divides by the steps that are left."""
    assert VSAETopKConfig(decay_start=19).resolve(20).decay_start == 19
    with pytest.raises(ConfigError, match=r"^decay_start=20: .*steps=20"):
        VSAETopKConfig(decay_start=20).resolve(20)


def test_a_longer_run_from_a_config_has_its_schedules_scaled():
    was = preset("recommended").sae.resolve(4000)
    scaled = was.of_steps(4000, 1000)
    names = ("warmup_steps", "decay_start", "noise_anneal_steps", "kl_warmup_steps")
    assert [getattr(scaled.resolve(1000), name) for name in names] == [100, 750, 500, 100]
    assert was.of_steps(4000, 1).resolve(1).decay_start is None, "so short a run has no decay"
    assert 29 / 100 * 200 < 58, "the share is rounded, not cut"
    assert VSAETopKConfig(warmup_steps=29).of_steps(100, 200).resolve(200).warmup_steps == 58
    longest = VSAETopKConfig().resolve(20_000)
    assert longest.of_steps(20_000, 40_000).resolve(40_000).warmup_steps == 1000, "at most"


@pytest.mark.parametrize(
    ("trainer", "given", "settings"),
    [
        (VariationalTopKTrainer, {"k": K}, VSAETopKConfig(k=K, dict_size=F)),
        (VAEaseTrainer, {}, VAEaseConfig(dict_size=F)),
        (ProbabilisticTopKTrainer, {"k": K}, ProbabilisticTopKConfig(k=K, dict_size=F)),
    ],
    ids=["vsae", "vaease", "probabilistic_top_k"],
)
def test_a_trainer_builds_the_settings_that_its_options_say(trainer, given, settings):
    """The vSAE's for activations of E||x||^2 = 1, where the settings' own units have D."""
    bare = trainer(**STARTED, **given)
    whole = in_units(replace(settings, warmup_steps=4).resolve(40), 1 / D)
    assert bare.settings == whole
    told = trainer(**STARTED | given | whole.trainer_arguments())
    assert told.config == bare.config
    arguments = whole.trainer_arguments()
    if arguments.pop("noise_to_signal", None) is not None:
        arguments["sigma"] = math.sqrt(0.3 / K)
    assert bare.config.items() >= arguments.items()
    left, right = bare.ae.state_dict(), told.ae.state_dict()
    assert all(t.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("cls", CONFIGS.values(), ids=lambda cls: cls.__name__)
def test_every_option_has_a_help_text(cls):
    texts, by_name = help_texts(cls), {each.name: each for each in fields(cls)}
    for name in option_names(cls):
        metadata = by_name[name].metadata if name in by_name else {}
        assert metadata.get("help") or texts[name], name


def test_upstreams_trainers_have_the_defaults_that_our_groups_say():
    """The help texts say them."""
    compared = set()
    for row in TRAINED.values():
        if row.trainer is None or not row.trainer.startswith("dictionary_learning."):
            continue
        parameters = inspect.signature(import_class(row.trainer)).parameters
        for each in fields(CONFIGS[row.name]):
            theirs = getattr(parameters.get(each.name), "default", inspect.Parameter.empty)
            is_stated = each.default is not None and not isinstance(each.default, Follows)
            if is_stated and each.name != "seed" and theirs is not inspect.Parameter.empty:
                assert theirs == each.default, (row.name, each.name)
                compared.add(each.name)
    assert compared >= {"auxk_alpha", "l1_penalty"}


def test_upstreams_own_rate_is_known():
    """The tuned one is a multiple of it. Without a rate tuned here, it is the default."""
    for row in TRAINED.values():
        parameter = inspect.signature(import_class(row.trainer)).parameters.get("lr")
        if parameter is not None and parameter.default is not None:
            assert parameter.default == row.lr(1024), row.name
    top_k = import_class(TRAINED["top_k"].trainer)
    for size in (33, 512, 1000, 65_536):
        sizes = {"activation_dim": 4, "dict_size": size, "k": 1, "steps": 9, "warmup_steps": 0}
        trained = top_k(**sizes, layer=0, lm_name="tiny", device="cpu")
        assert trained.lr == upstream_lr(size)


def test_each_group_of_a_matryoshka_has_a_feature():
    thirds = (0.3333333333,) * 3
    assert MatryoshkaConfig(k=1, dict_size=4, group_fractions=thirds)
    assert MatryoshkaConfig(k=1, dict_size=4, group_fractions=(0.5, 0.3, 0.2)), "2, 1 and 1"
    with pytest.raises(ConfigError, match=r"^dict_size=3: "):
        MatryoshkaConfig(k=1, dict_size=3, group_fractions=thirds)
    with pytest.raises(ConfigError, match=r"^dict_size=15: "):
        MatryoshkaConfig(k=1, dict_size=15)
    with pytest.raises(ConfigError, match=r"^group_fractions="):
        MatryoshkaConfig(group_fractions=(0.3333333,) * 3)


@pytest.mark.parametrize("name", ["kl_warmup_steps", "noise_anneal_steps"])
def test_a_schedule_may_be_as_long_as_the_run(name):
    sae = VSAETopKConfig(**{name: 100})
    assert getattr(sae.resolve(100), name) == 100
    with pytest.raises(ConfigError, match=f"^{name}=100: expected .*steps=99"):
        sae.resolve(99)


def test_a_share_of_the_run_is_exact():
    """3/4 of a run, whatever its length."""
    for steps in (*range(4, 400, 4), 10**6, 4 * 10**8):
        assert share_of_run(0.75).value(None, steps) == steps * 3 // 4
