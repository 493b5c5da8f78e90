"""Tables of SAEs as commands print them, and names of SAEs."""

import re
from pathlib import Path

import pytest

from dictionary_learning_ext.config.names import automatic_name
from dictionary_learning_ext.config.presets import preset
from dictionary_learning_ext.config.run import TrainConfig
from dictionary_learning_ext.config.sae import TopKConfig, VSAETopKConfig
from dictionary_learning_ext.evaluation import tables
from dictionary_learning_ext.evaluation.metrics import shown_in
from dictionary_learning_ext.evaluation.symptoms import symptoms
from dictionary_learning_ext.evaluation.tables import (
    chosen,
    labels_of,
    results_table,
)
from dictionary_learning_ext.run_folder.sae_folder import SAEFolder


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture(autouse=True)
def nothing_has_changed(monkeypatch):
    monkeypatch.setattr(tables, "changes_since", lambda folder, metrics: [])


def measured(tokens=2048, **changes):
    values = {metric.key: 0.5 for metric in shown_in("compare")}
    return values | {"tokens": tokens, "measured_on": {"data": "a.txt", **changes}}


def shown(results, configs=None, metrics=None, further=None):
    """What is results_table of folders that were trained alike, if nothing else is given."""
    configs = configs or dict.fromkeys(results, config())
    return results_table(results, as_folders(configs), metrics, further)


def as_folders(configs):
    return {name: SAEFolder(name, Path(name), content) for name, content in configs.items()}


def config(architecture="vsae_top_k", lr=None, trainer_lr=2e-4, **settings):
    trainer = {"dict_class": "X", "lr": trainer_lr}
    settings = {"architecture": architecture, "posterior": None, "lr": lr, "k": 8, **settings}
    return {"trainer": trainer, "run": {"settings": settings}}


def test_folders_of_upstreams_are_called_by_their_architecture():
    results = {f"runs/trainer_{i}": {"fve": 0.5} for i in range(2)}
    trainers = {"TopKTrainer": "AutoEncoderTopK", "BatchTopKTrainer": "BatchTopKSAE"}
    configs = {
        folder: {"trainer": {"trainer_class": trainer, "dict_class": dictionary}}
        for folder, (trainer, dictionary) in zip(results, trainers.items(), strict=True)
    }
    text = results_table(results, as_folders(configs), chosen("fve"))
    assert [line.split() for line in text.splitlines()[2:4]] == [
        ["top_k", "0.5000"],
        ["batch_top_k", "0.5000"],
    ]


def test_it_fits_the_terminal(monkeypatch):
    results = {f"runs/quickstart/{'x' * 12}_vsae_{name}": measured() for name in "abc"}
    text = shown(results)
    assert max(map(len, text.splitlines())) <= 80
    assert "matched" not in text
    monkeypatch.setenv("COLUMNS", "200")
    both = shown({"a": measured(), "b": measured()})
    line = next(line for line in both.splitlines() if line.startswith("a "))
    assert len(line.split()) == 1 + len(shown_in("compare"))


def test_other_tokens_or_text_are_marked_and_shown():
    results = {"runs/a": measured(100_352), "runs/b": measured(51_200), "runs/c": measured(100_352)}
    text = shown(results)
    assert "\nb *  0.5000" in text
    assert "\nc    0.5000" in text
    _, settings = text.split("* Not a matched comparison")
    assert re.search(r"tokens\n-+\na +100352\nb \* +51200\nc +100352$", settings)
    assert "b *  b.txt" in shown({"a": measured(), "b": measured(data="b.txt")})


def of_two_seeds(config):
    """config.json of two seeds of a setting, by their automatic names, as training writes it."""
    configs = {}
    for seed in range(2):
        run = config.with_settings({"seed": seed, "data_seed": seed}, "x")
        run = run.resolved
        settings = run.to_dict()
        trainer = {"dict_class": "X"}
        configs[f"runs/{automatic_name(run)}"] = {"trainer": trainer, "run": {"settings": settings}}
    return configs


def test_four_automatic_folders_fit_80_columns_and_show_each_difference_once():
    """Seeds that have their own data seed; sigma that nobody set and noise_to_signal gives."""
    here = {"model": "embedded", "data": "embedded", "max_norm_multiple": 10.0}
    here |= {"dtype": "float32", "ctx_len": 128}
    recommended = preset("recommended").with_settings(here, "x")
    for other, shown_once, unset in (
        (
            preset("paper", 1000).with_settings(here, "x"),
            ["lr", "sigma", "noise_on"],
            ["data_seed"],
        ),
        (
            recommended.with_settings({"k": 64}, "x"),
            ["k"],
            ["sigma", "data_seed", "noise_to_signal"],
        ),
        (recommended.with_settings({"noise_to_signal": 0.4}, "x"), ["noise_to_signal"], ["sigma"]),
    ):
        configs = of_two_seeds(recommended) | of_two_seeds(other)
        folders = {folder: measured() for folder in configs}
        further = {"returning > 0.7": dict.fromkeys(configs, "25.0%")}
        text = shown(folders, configs, None, further)
        assert max(map(len, text.splitlines())) <= 80
        heads = [line.split() for line in text.splitlines() if not re.search("seed=[01]", line)]
        words = [word for head in heads for word in head]
        names = list(
            labels_of({n: sae.trained_as for n, sae in as_folders(configs).items()}).values()
        )
        assert all(text.count(f"{name} ") == text.count(f"{names[0]} ") > 0 for name in names)
        for name in shown_once:
            assert words.count(name) + (f"{name}=" in text) == 1, (name, text)
        assert not {*unset, "seed"} & {*words}, text


GOOD = {
    "fve": 0.95,
    "alive": 0.97,
    "noise_to_signal": 0.1,
    "kl_per_token": 2.0,
    "tokens": 4096,
    "l0": 8.0,
}
SMALL = VSAETopKConfig(dict_size=64, noise_anneal_steps=None)


@pytest.mark.parametrize(
    ("bad", "at_limit", "said"),
    [
        ({"noise_to_signal": 0.21}, {"noise_to_signal": 0.2}, ["The noise"]),
        ({"fve": 0.49}, {"fve": 0.5}, ["The reconstruction"]),
        ({"fve": 0.4, "kl_per_token": 0.001}, {"kl_per_token": 0.001}, ["The reconstr", "The KL"]),
        ({"alive": 0.74}, {"alive": 0.75}, ["More than"]),
        ({"loss_added": 0.51, "frac_recovered": 0.98}, {"loss_added": 0.5}, ["The language"]),
        ({"loss_added": 3.4, "frac_recovered": 0.4}, {"frac_recovered": 0.4}, ["The language"]),
        (
            {"loss_added": 0.1, "frac_recovered": 0.49},
            {"loss_added": 0.1, "frac_recovered": 0.5},
            ["The language"],
        ),
        ({"loss_added": -0.06}, {"loss_added": -0.01}, ["The loss added"]),
    ],
    ids=str,
)
def test_each_symptom_is_said_beyond_its_limit(bad, at_limit, said):
    lines = symptoms(GOOD | bad, SMALL)
    assert len(lines) == len(said)
    for line, start in zip(lines, said, strict=True):
        assert line.startswith(start)
        assert line.endswith("in docs/settings.md.")
    assert symptoms(GOOD | at_limit, SMALL) == symptoms(GOOD, SMALL) == []


def test_a_risen_error_is_said_alone_with_its_learning_rate():
    def said(*errors, **options):
        history = [{"step": step, "l2_loss": error} for step, error in enumerate(errors)]
        bad = GOOD | {"fve": -1e15, "alive": 0.1}
        return symptoms(bad, TopKConfig(dict_size=64, **options).resolve(100), history)

    (line,) = said(128.0, None, 2e17, lr=1e3)
    assert "lr=1000, whose default is 0.004" in line
    (line,) = said(128.0, 130.0, lr=1e-9)
    assert "lr=1e-09. " in line
    assert len(said(128.0, 127.0, lr=1e3)) == 2, "it has not risen"


# --- names


def called(folders, *changes):
    """The labels of SAEs in these folders, with these settings."""
    configs = {}
    for folder, change in zip(folders, changes, strict=True):
        settings = TrainConfig().with_settings(change, "x").to_dict()
        trainer = {"dict_class": "VariationalTopKAutoEncoder"}
        configs[folder] = {"trainer": trainer, "run": {"settings": settings}}
    return list(labels_of({n: sae.trained_as for n, sae in as_folders(configs).items()}).values())


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["runs/q/a", "runs/q/b"], ["a", "b"]),
        (["r/1/a", "r/2/a", "r/2/b"], ["1/a", "2/a", "2/b"]),
        (["a/x", "b/y/x"], ["a/x", "y/x"]),
        (["runs/a"], ["a"]),
        (["runs/a", "runs/a/"], ["runs/a", "runs/a/"]),
    ],
)
def test_chosen_names_are_kept_as_far_as_they_differ(folders, names):
    assert called(folders, *({"k": i + 1} for i in range(len(folders)))) == names


AUTOMATIC = [f"s/vsae_k8_F64_seed0_{i:06x}" for i in range(4)]


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ([{"k": 8, "seed": 1}, {"k": 16, "seed": 1}], ["k=8", "k=16"]),
        ([{"k": 8, "seed": 0}, {"k": 16, "seed": 1}], ["k=8", "k=16"]),
        ([{"beta": 0.0}, {"beta": 0.03}], ["beta=0", "beta=0.03"]),
        ([{"seed": 1, "data_seed": 5}, {"seed": 2, "data_seed": 6}], ["seed=1", "seed=2"]),
        (
            [{"seed": 1, "data_seed": 5}, {"seed": 1, "data_seed": 6}],
            ["data_seed=5", "data_seed=6"],
        ),
        (
            [{"noise_to_signal": 0.3, "k": 2}, {"noise_to_signal": 0.3, "k": 4}],
            ["k=2", "k=4"],
        ),
        (
            [{"hook": "blocks.0.hook_resid_post"}, {"hook": "blocks.2.hook_resid_post"}],
            ["blocks.0", "blocks.2"],
        ),
        (
            [{"architecture": "top_k", "beta": None}, {"beta": 0.1}, {"beta": 0.2}],
            ["top_k", "vsae_top_k beta=0.1", "vsae_top_k beta=0.2"],
        ),
        ([{}, {}], ["vsae_k8_F64_seed0_000000", "vsae_k8_F64_seed0_000001"]),
        ([{}], ["vsae_k8_F64_seed0_000000"]),
    ],
)
def test_automatic_names_give_way_to_the_settings_that_differ(changes, names):
    changes = [{n: v for n, v in change.items() if v is not None} for change in changes]
    assert called(AUTOMATIC[: len(changes)], *changes) == names
