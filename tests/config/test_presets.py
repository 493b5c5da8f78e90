"""Presets: whole, the paper's, scaled, and the quickstart's SAEs."""

from dictionary_learning_ext.config.presets import PRESETS, preset, quickstart
from dictionary_learning_ext.config.sae import OPTION_NAMES, TopKConfig, VSAETopKConfig
from dictionary_learning_ext.run_folder.matching import measured_on


def test_presets_are_whole_and_keep_to_the_paper():
    for name in PRESETS:
        config = preset(name)
        config.sae.resolve(config.run.steps, config.run.batch_size)
    as_run = preset("paper-as-run")
    assert (as_run.sae.posterior, as_run.sae.rectify, as_run.sae.lr) == ("point", True, 8e-4)
    assert (as_run.run.normalize, as_run.run.batch_size) == ("unit", 192)


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


def test_quickstart_and_recommended_are_measured_the_same_way():
    """Otherwise `vsae eval`, `report` and `bench` refuse them beside each other."""
    runs = [measured_on(preset(name).run) for name in ("quickstart", "recommended")]
    assert runs[0] == runs[1]


def test_a_presets_schedules_scale_with_its_steps():
    own, longer = preset("recommended"), preset("recommended", steps=4000)
    assert (own.sae.decay_start, own.sae.noise_anneal_steps, own.run.steps) == (750, 500, 1000)
    assert (longer.sae.decay_start, longer.sae.noise_anneal_steps, longer.run.steps) == (
        3000,
        2000,
        4000,
    )
    assert preset("paper", steps=7).run.steps == 7


def test_the_quickstarts_saes_differ_only_in_the_posterior():
    saes = [sae.resolve(100, 8) for sae in quickstart(steps=100, seed=3).values()]
    flat = [sae.to_flat() for sae in saes]
    differ = {name for name in OPTION_NAMES if len({each[name] for each in flat}) > 1}
    variational = vars(VSAETopKConfig()).keys() - vars(TopKConfig()).keys()
    assert differ <= {"architecture"} | variational
