"""What commands print of several SAEs: names, the legend, and what is not matched."""

import pytest

from dictionary_learning_ext.config.sae import SAEConfig
from dictionary_learning_ext.errors import ConfigError
from dictionary_learning_ext.evaluation.metrics import METRICS, shown_in
from dictionary_learning_ext.evaluation.tables import (
    chosen,
    legend,
    notes,
    printed,
    symptoms,
    table,
    usual_columns,
)


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


def measured(tokens=2048, **changes):
    values = {metric.key: 0.5 for metric in shown_in("compare")}
    return values | {"tokens": tokens, "measured_on": {"data": "a.txt", **changes}}


def config(architecture="vsae_top_k", lr=None, trainer_lr=2e-4, **settings):
    trainer = {"dict_class": "X", "lr": trainer_lr}
    settings = {"architecture": architecture, "posterior": None, "lr": lr, "k": 8, **settings}
    return {"trainer": trainer, "run": {"settings": settings}}


def test_folders_of_upstreams_are_shown_with_their_class():
    results = {f"runs/trainer_{i}": {"fve": 0.5} for i in range(2)}
    trainers = {"TopKTrainer": "AutoEncoderTopK", "VariationalTopKTrainer": "Variational"}
    configs = {
        folder: {"trainer": {"trainer_class": trainer, "dict_class": dictionary}}
        for folder, (trainer, dictionary) in zip(results, trainers.items(), strict=True)
    }
    text = printed(results, chosen("fve"), configs)
    assert "trainer_0 (AutoEncoderTopK)  0.5" in text
    (row,) = [line for line in text.splitlines() if line.endswith(" VariationalTopKTrainer")]
    assert row.split()[:2] == ["trainer_1", "(Variational)"]
    assert "(" not in printed(results, chosen("fve")).split("FVE (")[0]


def test_the_table_has_a_row_each_and_a_dash_where_nothing_was_measured():
    head, _, first, second = table({"a": {"fve": 0.5}, "b": {"fve": None}}).splitlines()
    assert head.split()[0] == "FVE"
    assert first.split()[:2] == ["a", "0.5000"]
    assert set(first.split()[2:]) == {"-"}
    assert set(second.split()[1:]) == {"-"}


def test_it_fits_the_terminal_and_explains_every_metric_that_it_shows():
    results = {f"runs/quickstart/{'x' * 12}_vsae_{name}": measured() for name in "abc"}
    text = printed(results)
    assert max(map(len, text.splitlines())) <= 80
    words = " ".join(text.split())
    for metric in shown_in("compare"):
        better = f" ({metric.better} is better)" if metric.better else ""
        assert f"{metric.label}{better}: {metric.in_words or metric.definition}" in words
    assert "matched" not in text


def test_a_wider_terminal_has_all_metrics_in_one_block(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    both = printed({"a": measured(), "b": measured()})
    line = next(line for line in both.splitlines() if line.startswith("a "))
    assert len(line.split()) == 1 + len(shown_in("compare"))


def test_a_single_sae_is_not_named():
    metrics = [METRICS[key] for key in ("fve", "l0")]
    head, _, line = table({"a_very_long_name": {"fve": 0.5, "l0": 8.0}}, metrics).splitlines()
    assert (head.split(), line.split()) == (["FVE", "L0"], ["0.5000", "8.0"])
    lines = printed({f"runs/{'long_' * 20}": measured()}).splitlines()
    assert not any("long_" in line for line in lines)
    assert any(line.startswith("0.5000  ") for line in lines)
    assert max(map(len, lines)) <= 80


def test_the_truth_has_columns_where_it_is_known():
    of_truth = {metric.key: None for metric in METRICS.values() if metric.is_of_truth}
    assert len(of_truth) == 4
    unknown = measured() | of_truth
    heads = [metric.key for metric in usual_columns({"a": unknown, "b": {"fve": 0.5}})]
    assert heads == [m.key for m in shown_in("compare") if m.key not in of_truth]
    assert "true MCC" not in printed({"a": unknown})
    both = {"a": unknown, "b": unknown | {"true_mcc": 0.25}}
    extra = [m.key for m in usual_columns(both) if m.key not in heads]
    assert extra == ["true_mcc"]
    assert "0.2500" in table(both)
    assert chosen("true_mcc") == [METRICS["true_mcc"]], "by its name it is always shown"


def test_other_columns_by_key():
    metrics = chosen("loss_zero, fve,fve")
    assert [metric.key for metric in metrics] == ["loss_zero", "fve"]
    assert printed({"a": {"fve": 0.5}}, metrics).splitlines()[0].split() == ["CE,", "zeros", "FVE"]
    with pytest.raises(ConfigError, match=r"columns='fve,l3': no metric 'l3'; .*fve,frac_recov"):
        chosen("fve,l3")
    with pytest.raises(ConfigError, match=r"; did you mean 'loss_reconstructed'\?$"):
        chosen("fve,loss_recon")


@pytest.mark.parametrize("key", METRICS)
def test_no_explanation_refers_to_another_one(key):
    assert "the same" not in legend([METRICS[key]], 1000)


def test_other_tokens_or_text_are_marked_and_shown():
    results = {"runs/a": measured(100_352), "runs/b": measured(51_200), "runs/c": measured(100_352)}
    lines = printed(results).splitlines()
    assert any(line.startswith("b *  0.5000") for line in lines)
    assert any(line.startswith("c    0.5000") for line in lines)
    place = next(i for i, line in enumerate(lines) if line.startswith("* Not a matched comparison"))
    assert [line.split() for line in lines[place + 2 : place + 7]] == [
        ["tokens"],
        ["-" * len(lines[place + 3])],
        ["a", "100352"],
        ["b", "*", "51200"],
        ["c", "100352"],
    ]
    assert "b *  b.txt" in printed({"a": measured(), "b": measured(data="b.txt")})


def test_settings_that_differ_beside_the_architecture_are_shown():
    results = {"a": measured(), "b": measured()}
    one = config(beta=0.1, eval_tokens=100, save_dir="x")
    other = config("top_k", beta=None, eval_tokens=200, save_dir="y")
    assert "Trained with" not in printed(results, None, {"a": one, "b": other})
    assert "Trained with" not in printed(results)
    other = config("top_k", lr=2e-3, trainer_lr=2e-3, k=16)
    lines = printed(results, None, {"a": one, "b": other}).splitlines()
    place = lines.index("These training settings also differ:")
    assert [line.split() for line in (lines[place + 2], *lines[place + 4 : place + 6])] == [
        ["lr", "k"],
        ["a", "0.0002", "8"],
        ["b", "0.002", "16"],
    ]


def test_what_was_measured_as_it_was_trained_is_shown_once():
    results = {"a": measured(hook="h1"), "b": measured(hook="h2")}
    one, other = config(hook="h1"), config(hook="h2")
    text = printed(results, None, {"a": one, "b": other})
    assert text.count("h1") == 1
    assert "also differ" not in text
    assert "also differ" in printed(results, None, {"a": one, "b": config(hook="h2", k=16)})
    assert "also differ" in printed(results, None, {"a": one, "b": config(hook="h3")})


def test_posteriors_that_differ_are_no_other_training():
    results = {"a": measured(), "b": measured()}
    same = {"data": "a", "steps": 9, "batch_size": 4, "dict_size": 32, "seed": 0}
    text = printed(results, None, {n: config(**same, beta=b) for n, b in (("a", 0.5), ("b", 1.0))})
    assert "from the same initial weights. Their posteriors differ:\n\n   beta\n" in text
    assert "also differ" not in text


def test_below_the_table_stands_what_ce_left_alone_and_what_was_not_measured_once():
    rules = {"remove_bos": True, "max_norm_multiple": 10.0}
    alone = {"fve": None, "positions_left_alone": 64, "loss_positions": 8192}
    alone |= {"measured_on": rules, "not_measured": {"fve": "no variance", "cossim": "0 / 0"}}
    results = {"a": alone, "b": alone, "c": alone | {"positions_left_alone": 0}}
    assert notes(results, [METRICS["fve"]]) == [
        "a, b: CE: 64 of 8,192 positions left alone: beginning-of-text tokens (--remove-bos) and outliers "
        "(--max-norm-multiple 10)",
        "FVE: not measured: no variance",
    ]
    assert "\nFVE: not measured: no variance\n" in printed(results)
    results["runs/c"] = results.pop("c") | {"not_measured": {}}
    assert "a, b: FVE: not measured: no variance" in notes(results, [METRICS["fve"]])
    assert notes({"a": {"fve": 0.5}}, [METRICS["fve"]]) == []


GOOD = {
    "fve": 0.95, "alive": 0.97, "noise_to_signal": 0.1, "kl_per_token": 2.0, "tokens": 4096, "l0": 8.0
}  # fmt: skip
SMALL = SAEConfig(dict_size=64)


@pytest.mark.parametrize(
    ("bad", "at_limit", "said"),
    [
        ({"noise_to_signal": 0.21}, {"noise_to_signal": 0.2}, ["The noise"]),
        ({"fve": 0.49}, {"fve": 0.5}, ["The reconstruction"]),
        ({"fve": 0.4, "kl_per_token": 0.001}, {"kl_per_token": 0.001}, ["The reconstr", "The KL"]),
        ({"alive": 0.74}, {"alive": 0.75}, ["More than a quarter"]),
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
    assert symptoms(GOOD | {"noise_to_signal": 0.5}, SAEConfig(noise_anneal_steps=5)) == []
    few = GOOD | {
        "alive": 0.5,
        "tokens": 79,
    }  # at l0 = 8 of 64, 80 tokens select the average 10 times
    assert symptoms(few, SMALL) == []
    assert len(symptoms(few | {"tokens": 80}, SMALL)) == 1
