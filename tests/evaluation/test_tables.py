"""Tables of SAEs: what commands print, what SAEs are called, and text in columns."""

import re
from dataclasses import replace

import pytest

from dictionary_learning_ext.config.names import automatic_name
from dictionary_learning_ext.config.presets import preset
from dictionary_learning_ext.config.run import TrainConfig
from dictionary_learning_ext.config.sae import SAEConfig
from dictionary_learning_ext.errors import ConfigError
from dictionary_learning_ext.evaluation.metrics import METRICS, shown_in
from dictionary_learning_ext.evaluation.tables import (
    chosen,
    file_names,
    labels,
    markdown_table,
    notes,
    results_table,
    symptoms,
    table,
    text_table,
    usual_columns,
)


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


def measured(tokens=2048, **changes):
    values = {metric.key: 0.5 for metric in shown_in("compare")}
    return values | {"tokens": tokens, "measured_on": {"data": "a.txt", **changes}}


def shown(results, configs=None, metrics=None, further=None):
    """What is results_table of folders that were trained alike, if nothing else is given."""
    return results_table(results, configs or dict.fromkeys(results, config()), metrics, further)


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
    text = results_table(results, configs, chosen("fve"))
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


def test_a_single_sae_is_not_named():
    lines = shown({f"runs/{'long_' * 20}": measured()}).splitlines()
    assert not any("long_" in line for line in lines)
    assert any(line.startswith("0.5000  ") for line in lines)
    assert max(map(len, lines)) <= 80


def test_the_truth_has_columns_where_it_is_known():
    of_truth = {metric.key: None for metric in METRICS.values() if metric.is_of_truth}
    assert len(of_truth) == 4
    unknown = measured() | of_truth
    heads = [metric.key for metric in usual_columns({"a": unknown, "b": {"fve": 0.5}})]
    assert heads == [m.key for m in shown_in("compare") if m.key not in of_truth]
    assert "true MCC" not in shown({"a": unknown})
    both = {"a": unknown, "b": unknown | {"true_mcc": 0.25}}
    extra = [m.key for m in usual_columns(both) if m.key not in heads]
    assert extra == ["true_mcc"]
    assert "0.2500" in table(both)
    assert table(both, "fve,l0") == table(both, [METRICS["fve"], METRICS["l0"]])
    assert chosen("true_mcc") == [METRICS["true_mcc"]], "by its name it is always shown"


def test_what_is_no_metric_has_a_column_where_a_folder_has_it():
    results = {"a": measured(), "b": measured(), "c": measured()}
    further = {"returning > 0.7": {"a": "50.0%", "b": "25.0%"}, "explanations": {}}
    lines = [line.split() for line in shown(results, None, chosen("fve"), further).splitlines()]
    assert lines[0] == ["FVE", "returning", ">", "0.7"]
    assert lines[2:5] == [["a", "0.5000", "50.0%"], ["b", "0.5000", "25.0%"], ["c", "0.5000", "-"]]


def test_other_columns_by_key():
    metrics = chosen("loss_zero, fve,fve")
    assert [metric.key for metric in metrics] == ["loss_zero", "fve"]
    assert shown({"a": {"fve": 0.5}}, None, metrics).splitlines()[0].split() == [
        "CE,",
        "zeros",
        "FVE",
    ]
    with pytest.raises(ConfigError, match=r"columns='fve,l3': .*'l3'; .*fve,frac_recov"):
        chosen("fve,l3")
    with pytest.raises(ConfigError, match=r" 'loss_reconstructed'\?$"):
        chosen("fve,loss_recon")


def test_other_tokens_or_text_are_marked_and_shown():
    results = {"runs/a": measured(100_352), "runs/b": measured(51_200), "runs/c": measured(100_352)}
    text = shown(results)
    assert "\nb *  0.5000" in text
    assert "\nc    0.5000" in text
    _, settings = text.split("* Not a matched comparison")
    assert re.search(r"tokens\n-+\na +100352\nb \* +51200\nc +100352$", settings)
    assert "b *  b.txt" in shown({"a": measured(), "b": measured(data="b.txt")})


def test_settings_that_differ_beside_the_architecture_are_shown():
    results = {"a": measured(), "b": measured()}
    one = config(beta=0.1, eval_tokens=100, save_dir="x")
    other = config("top_k", lr=2e-3, trainer_lr=2e-3, k=16)
    lines = results_table(results, {"a": one, "b": other}).splitlines()
    place = lines.index("These training settings also differ:")
    assert [line.split() for line in (lines[place + 2], *lines[place + 4 : place + 6])] == [
        ["architecture", "lr", "k"],
        ["a", "vsae_top_k", "0.0002", "8"],
        ["b", "top_k", "0.002", "16"],
    ]
    alike = config("top_k", beta=None, eval_tokens=200, save_dir="y")
    lines = results_table(results, {"a": one, "b": alike}).splitlines()
    assert [line.split() for line in lines[-2:]] == [["a", "vsae_top_k"], ["b", "top_k"]]
    assert "also differ" not in results_table(results, {"a": alike, "b": alike})


def of_two_seeds(config):
    """config.json of two seeds of a setting, by their automatic names, as training writes it."""
    configs = {}
    for seed in range(2):
        run = config.updated({"seed": seed, "data_seed": seed}, "x")
        run = replace(run, sae=run.sae.resolve(run.run.steps))
        settings = replace(run, sae=run.sae.with_sigma(128, run.run.normalize)).to_dict()
        trainer = {"dict_class": "X"}
        configs[f"runs/{automatic_name(run)}"] = {"trainer": trainer, "run": {"settings": settings}}
    return configs


def test_four_automatic_folders_fit_80_columns_and_show_each_difference_once():
    """Seeds that have their own data seed; sigma that nobody set and noise_to_signal gives."""
    here = {"model": "embedded", "data": "embedded", "max_norm_multiple": 10.0}
    here |= {"dtype": "float32", "ctx_len": 128}
    recommended = preset("recommended").updated(here, "x")
    for other, shown_once, unset in (
        (preset("paper", 1000).updated(here, "x"), ["lr", "sigma", "noise_on"], ["data_seed"]),
        (recommended.updated({"k": 64}, "x"), ["k"], ["sigma", "data_seed", "noise_to_signal"]),
        (recommended.updated({"noise_to_signal": 0.5}, "x"), ["noise_to_signal"], ["sigma"]),
    ):
        configs = of_two_seeds(recommended) | of_two_seeds(other)
        folders = {folder: measured() for folder in configs}
        further = {"returning > 0.7": dict.fromkeys(configs, "25.0%")}
        text = shown(folders, configs, None, further)
        assert max(map(len, text.splitlines())) <= 80
        heads = [line.split() for line in text.splitlines() if not re.search("seed=[01]", line)]
        words = [word for head in heads for word in head]
        names = list(labels(configs).values())
        assert all(text.count(f"{name} ") == text.count(f"{names[0]} ") > 0 for name in names)
        for name in shown_once:
            assert words.count(name) + (f"{name}=" in text) == 1, (name, text)
        assert not {*unset, "seed"} & {*words}, text


def test_what_was_measured_as_it_was_trained_is_shown_once():
    results = {"a": measured(hook="h1"), "b": measured(hook="h2")}
    one, other = config(hook="h1"), config(hook="h2")
    text = results_table(results, {"a": one, "b": other})
    assert text.count("h1") == 1
    assert "also differ" not in text
    assert "also differ" in results_table(results, {"a": one, "b": config(hook="h2", k=16)})
    assert "also differ" in results_table(results, {"a": one, "b": config(hook="h3")})


def test_below_the_table_stands_what_ce_left_alone_and_what_was_not_measured_once():
    rules = {"remove_bos": True, "max_norm_multiple": 10.0}
    alone = {"fve": None, "positions_left_alone": 64, "loss_positions": 8192}
    alone |= {"measured_on": rules, "not_measured": {"fve": "no variance", "cossim": "0 / 0"}}
    results = {"a": alone, "b": alone, "c": alone | {"positions_left_alone": 0}}
    names = dict(zip(results, results, strict=True))
    alone_in, not_measured = notes(results, names, [METRICS["fve"]])
    assert alone_in.startswith("a, b: CE: 64 of 8,192 positions ")
    assert "--remove-bos" in alone_in
    assert "--max-norm-multiple 10" in alone_in
    assert not_measured == "FVE: not measured: no variance"
    assert "\nFVE: not measured: no variance" in shown(results)
    results["runs/c"] = results.pop("c") | {"not_measured": {}}
    assert "a, b: FVE: not measured: no variance" in notes(
        results, {**names, "runs/c": "c"}, [METRICS["fve"]]
    )
    assert notes({"a": {"fve": 0.5}}, names, [METRICS["fve"]]) == []


GOOD = {
    "fve": 0.95,
    "alive": 0.97,
    "noise_to_signal": 0.1,
    "kl_per_token": 2.0,
    "tokens": 4096,
    "l0": 8.0,
}
SMALL = SAEConfig(dict_size=64)


@pytest.mark.parametrize(
    ("bad", "at_limit", "said"),
    [
        ({"noise_to_signal": 0.21}, {"noise_to_signal": 0.2}, ["The noise"]),
        ({"fve": 0.49}, {"fve": 0.5}, ["The reconstruction"]),
        ({"fve": 0.4, "kl_per_token": 0.001}, {"kl_per_token": 0.001}, ["The reconstr", "The KL"]),
        ({"alive": 0.74}, {"alive": 0.75}, ["More than"]),
        ({"frac_recovered": 0.49}, {"frac_recovered": 0.5}, ["The language"]),
        ({"frac_recovered": 1.11}, {"frac_recovered": 1.0}, ["CE recovered"]),
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


def test_what_says_nothing_is_no_symptom():
    assert symptoms(dict.fromkeys(GOOD), SAEConfig(architecture="relu", dict_size=64)) == []
    assert symptoms(GOOD | {"noise_to_signal": 0.5}, SAEConfig(noise_anneal=0.5)) == []
    few = GOOD | {
        "alive": 0.5,
        "tokens": 79,
    }  # at l0 = 8 of 64, 80 tokens select the average 10 times
    assert symptoms(few, SMALL) == []
    assert len(symptoms(few | {"tokens": 80}, SMALL)) == 1


# --- names


def called(folders, *changes):
    """The labels of SAEs in these folders, with these settings."""
    configs = {}
    for folder, change in zip(folders, changes, strict=True):
        settings = TrainConfig().updated(change, "x").to_dict()
        trainer = {"dict_class": "VariationalTopKAutoEncoder"}
        configs[folder] = {"trainer": trainer, "run": {"settings": settings}}
    return list(labels(configs).values())


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
        ([{"k": 8}, {"k": 16, "seed": 1}], ["k=8 seed=0", "k=16 seed=1"]),
        ([{"beta": 0.0}, {"beta": 0.03}], ["beta=0", "beta=0.03"]),
        ([{"seed": 1, "data_seed": 5}, {"seed": 2, "data_seed": 6}], ["seed=1", "seed=2"]),
        (
            [{"seed": 1, "data_seed": 5}, {"seed": 1, "data_seed": 6}],
            ["data_seed=5", "data_seed=6"],
        ),
        (
            [{"noise_to_signal": 0.3, "sigma": 0.1, "k": 2}, {"noise_to_signal": 0.3, "k": 4}],
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


def test_a_label_has_as_many_settings_as_fit_or_as_it_takes():
    many = {"lr": 0.001, "warmup_steps": 10, "decay_start": 20, "batch_size": 64, "steps": 99}
    first, second = called(AUTOMATIC[:2], {"k": 8}, {"k": 16} | many)
    assert first == "k=8"
    assert len(second) <= 40, second
    twins = called(AUTOMATIC[:3], {"k": 8}, {"k": 16} | many, {"k": 16, "seed": 1} | many)
    assert len(set(twins)) == 3


def test_chosen_and_automatic_names_side_by_side():
    folders = ["runs/a", *AUTOMATIC[:2]]
    assert called(folders, {"k": 4}, {"k": 8}, {"k": 16}) == ["a", "k=8", "k=16"]


# --- text in columns

HEADER = ["", "FVE", "a wide label"]
ROWS = [["runs/a", "0.9000", "-"], ["b", "-12.3", "1"]]


def test_columns_are_aligned_and_a_wide_table_gets_heads_of_several_lines_and_then_blocks():
    assert text_table(HEADER, ROWS, width=28).splitlines() == [
        "           FVE  a wide label",
        "----------------------------",
        "runs/a  0.9000             -",
        "b        -12.3             1",
    ]
    assert text_table(HEADER, ROWS, width=20).splitlines() == [
        "           FVE",
        "--------------",
        "runs/a  0.9000",
        "b        -12.3",
        "",
        "            a",
        "         wide",
        "        label",
        "-------------",
        "runs/a      -",
        "b           1",
    ]


def test_blocks_repeat_as_many_columns_as_are_asked_for():
    table = text_table(["k", "lr", "first", "second"], [["8", "0.1", "1", "2"]], 16, repeated=2)
    assert [line.split() for line in table.splitlines() if line.startswith("k")] == [
        ["k", "lr", "first"],
        ["k", "lr", "second"],
    ]


@pytest.mark.parametrize("width", [1, 20, 40, 80])
def test_no_cell_is_lost_and_no_line_is_wider_than_it_must_be(width):
    header = ["", *(f"metric {i}" for i in range(20))]
    rows = [[f"runs/name_{j}", *(f"{i}.{j}" for i in range(20))] for j in range(3)]
    lines = text_table(header, rows, width).splitlines()
    words = " ".join(lines).split()
    assert all(words.count(cell) == 1 for row in rows for cell in row[1:])
    assert words.count("metric") == 20
    assert max(map(len, lines)) <= max(width, len("runs/name_0  metric"))


def test_markdown_escapes_bars_in_the_head_and_in_cells():
    lines = [r"|  | a\|b |", "|---|---|", r"| x\|y\|z | 1 |"]
    assert markdown_table(["", "a|b"], [["x|y|z", "1"]]).splitlines() == lines


def test_no_two_labels_have_one_file_name():
    names = file_names(["x/y", "x_y", "x_y_2", "x y", "z"])
    assert list(names.values()) == ["x_y", "x_y_2", "x_y_2_2", "x_y_3", "z"]
