"""Attention sinks: named once in a report, and on none of its cards and pages."""

import pytest
import torch as t
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from planted_sinks import saved_with_sinks
from report_runs import BARE, data_of, train

from dictionary_learning_ext.activations.inputs import ContextBatch
from dictionary_learning_ext.cli import main
from dictionary_learning_ext.features.collector import FeatureCollector
from dictionary_learning_ext.report.sinks import SinkFinder

LENGTH, WIDTH, FEATURES = 8, 6, 12


@pytest.fixture
def sae():
    """Feature 0 reads the first direction, feature 1 its opposite, the others anything else."""
    t.manual_seed(0)
    one = AutoEncoderTopK(WIDTH, FEATURES, FEATURES).requires_grad_(False)
    one.encoder.weight[:, 0] = 0.0
    one.encoder.weight[:2] = t.tensor([[1.0], [-1.0]]) * t.eye(WIDTH)[0]
    one.encoder.bias[2:] = 1.0
    return one


def batch_of(n_contexts, seed=0):
    generator = t.Generator().manual_seed(seed)
    shape = (n_contexts, LENGTH)
    return ContextBatch(
        t.randint(2, 9, shape, generator=generator),
        t.ones(shape, dtype=t.bool),
        t.randn(*shape, WIDTH, generator=generator),
    )


def found(sae, batches, tokenizer):
    finder, collector = SinkFinder(tokenizer), FeatureCollector(sae, 1000)
    for batch in batches:
        collector.add(finder.without_sinks(batch))
    statistics = collector.statistics()
    return finder.sinks(), statistics


def test_a_planted_sink_is_found_and_is_no_features_strongest_context(sae, tiny_lm):
    batches = [batch_of(5), batch_of(4, seed=1)]
    for batch in batches:
        batch.x_BLD[:, 0] = 400 * t.eye(WIDTH)[0]
        batch.wanted_BL[0, -2:] = False
    sinks, statistics = found(sae, batches, tiny_lm.tokenizer)
    assert sinks.tokens == 9
    assert sinks.where == "position 0 of each context"
    assert 400 / 4 < sinks.norm_ratio < 400
    assert statistics.tokens == 9 * (LENGTH - 1) - 4
    assert statistics.top.position_FT[:, 0].min() > 0
    assert statistics.max_F.max() < 10


def test_tokens_somewhat_above_the_others_stay(sae, tiny_lm):
    batch = batch_of(5)
    batch.x_BLD[:, 0] *= 4
    sinks, statistics = found(sae, [batch], tiny_lm.tokenizer)
    assert sinks is None
    assert statistics.tokens == 5 * LENGTH


def test_activations_that_are_mostly_zero_have_no_sinks(sae, tiny_lm):
    batch = batch_of(5)
    batch.x_BLD[:, 1:] = 0.0
    sinks, statistics = found(sae, [batch], tiny_lm.tokenizer)
    assert sinks is None
    assert statistics.tokens == 5 * LENGTH


def test_the_report_names_them_once(lm_dir_of, text, tmp_path):
    model = saved_with_sinks(lm_dir_of("gpt2"), tmp_path / "lm")
    none = ["--max-norm-multiple", "None"]
    run = train(model, text, tmp_path / "run", "--eval-tokens", "0", *none)
    assert main(["report", str(run), *BARE]) == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    assert page.count("outliers") == 1
    assert "(position 0 of each context)" in page
    for one in data_of(page)["saes"][0]["pages"].values():
        places = {place for _, _, place, *_ in one["top"] + one["sampled"]}
        assert 0 not in places

    without = train(model, text, tmp_path / "without", "--max-norm-multiple", "10")
    assert main(["report", str(without), *BARE]) == 0
    assert "outliers" not in (without / "report.html").read_text(encoding="utf-8")
