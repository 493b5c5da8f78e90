"""Feature statistics and contexts against brute force; the order of features, and attention sinks."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch as t
from dictionary_learning.dictionary import AutoEncoder
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from planted_sinks import saved_with_sinks
from report_runs import QUICK, data_of, train

from dictionary_learning_ext import features_of
from dictionary_learning_ext.activations.positions import PositionRule, norms
from dictionary_learning_ext.activations.rows import ContextBatch
from dictionary_learning_ext.cli import main
from dictionary_learning_ext.codes import contexts, table
from dictionary_learning_ext.codes.codes import encode
from dictionary_learning_ext.codes.contexts import Reading
from dictionary_learning_ext.codes.sinks import sinks_of, warn_of_sinks
from dictionary_learning_ext.codes.table import BINS, FeatureTable
from dictionary_learning_ext.config.run import SINK_MULTIPLE
from dictionary_learning_ext.errors import TextError
from dictionary_learning_ext.trainers.variational_top_k import VariationalTopKAutoEncoder

CONTEXTS, LENGTH, WIDTH, FEATURES = 37, 11, 8, 24


SAES = {
    "top_k": lambda: AutoEncoderTopK(WIDTH, FEATURES, 4),
    "signed vsae": lambda: VariationalTopKAutoEncoder(WIDTH, FEATURES, 18),
    "vsae by magnitude": lambda: VariationalTopKAutoEncoder(
        WIDTH, FEATURES, 4, select_by="magnitude"
    ),
    "dense vsae": lambda: VariationalTopKAutoEncoder(WIDTH, FEATURES, FEATURES),
    "relu": lambda: AutoEncoder(WIDTH, FEATURES),
}


@pytest.fixture
def batch():
    generator = t.Generator().manual_seed(1)
    return ContextBatch(
        t.randint(100, (CONTEXTS, LENGTH), generator=generator),
        t.rand(CONTEXTS, LENGTH, generator=generator) > 0.1,
        3 * t.randn(CONTEXTS, LENGTH, WIDTH, generator=generator),
        t.zeros(CONTEXTS, LENGTH, dtype=t.bool),
    )


def collected(sae, batch, step=CONTEXTS, **options):
    starts = range(0, CONTEXTS, step)
    batches = [ContextBatch(*(part[i : i + step] for part in batch)) for i in starts]
    (codes,) = encode([sae.requires_grad_(False)], batches)
    return FeatureTable(codes, **options)


@pytest.fixture(params=SAES)
def sae(request):
    t.manual_seed(0)
    return SAES[request.param]()


@t.no_grad()
def activations(sae, batch, step):
    """Activations of every token, zero where it is not wanted: (B, L, F).

    In the encoder's steps: a matrix product's last bits depend on its size.
    """
    f_BLF = t.zeros(CONTEXTS, LENGTH, FEATURES)
    parts = zip(batch.x_BLD.split(step), batch.wanted_BL.split(step), strict=True)
    f_BLF[batch.wanted_BL] = t.cat([sae.encode(x[wanted]) for x, wanted in parts])
    return f_BLF


@pytest.mark.parametrize("step", [CONTEXTS, 5])
def test_the_numbers_equal_brute_force(sae, batch, step):
    found = collected(sae, batch, step)
    f_NF = activations(sae, batch, step).flatten(0, 1)
    assert found.codes.tokens == int(batch.wanted_BL.sum())
    for i in range(FEATURES):
        on = f_NF[:, i][f_NF[:, i] != 0]
        assert found.codes.count_F[i] == len(on)
        assert found.negative_F[i] == (on < 0).sum()
        if not len(on):
            assert found.codes.largest_F[i].isnan()
            assert found.mean_F[i].isnan()
            continue
        assert found.codes.largest_F[i] == on[on.abs().argmax()], "with its sign"
        assert found.mean_F[i].item() == pytest.approx(on.double().mean().item(), rel=1e-5)
        width = float(found.bin_width_F[i])
        bins = BINS
        assert bins * width > on.abs().max() >= bins * width / 2
        edges = t.arange(bins + 1, dtype=t.float64) * width
        expected = t.histogram(on.abs().double(), edges).hist.long()
        histogram = found.histogram(i)
        assert histogram.tolist() == expected[: len(histogram)].tolist()
        assert not expected[len(histogram) :].any()


@pytest.mark.parametrize("step", [CONTEXTS, 1])
def test_the_top_contexts_equal_brute_force(sae, batch, step, monkeypatch):
    monkeypatch.setattr(contexts, "BEFORE", 2)
    monkeypatch.setattr(contexts, "AFTER", 1)
    top = collected(sae, batch, step, top=3).strongest
    f_BLF = activations(sae, batch, step)
    for i in range(FEATURES):
        peaks = []
        for context in range(CONTEXTS):
            on = [(abs(float(f)), -place) for place, f in enumerate(f_BLF[context, :, i]) if f]
            if on:
                peaks.append((max(on)[0], -context, max(on)[1]))
        peaks = sorted(peaks, reverse=True)[:3]
        kept = top.of(i)
        assert [abs(one.activation) for one in kept] == [size for size, _, _ in peaks]
        for one, (_, context, place) in zip(kept, peaks, strict=True):
            context, place = -context, -place
            assert (one.context, one.position) == (context, place)
            assert one.activation == f_BLF[context, place, i], "with its sign"
            inside = slice(max(0, place - 2), min(LENGTH, place + 2))
            assert one.ids == batch.input_ids_BL[context, inside].tolist()
            assert one.activations == f_BLF[context, inside, i].tolist()
            assert one.at == place - inside.start


@pytest.mark.parametrize("kind", ["top_k", "vsae by magnitude"])
def test_the_sample_is_of_selections_without_replacement_and_whole_if_there_is_room(
    kind, batch, monkeypatch
):
    """The largest magnitude first."""
    t.manual_seed(0)
    sae = SAES[kind]()
    f_BLF = activations(sae, batch, 5)
    for kept in (3, CONTEXTS * LENGTH):
        monkeypatch.setattr(table, "SAMPLED", kept)
        sampled = collected(sae, batch, 5).sampled
        for i in range(FEATURES):
            drawn = sampled.of(i)
            places = [(one.context, one.position) for one in drawn]
            assert len(places) == min(kept, int((f_BLF[:, :, i] != 0).sum()))
            assert len(set(places)) == len(places)
            values = [float(f_BLF[context, place, i]) for context, place in places]
            assert values == [one.activation for one in drawn]
            assert values == sorted(values, key=abs, reverse=True)


def test_the_sample_is_uniform(batch):
    """Over many features and seeds, early and late contexts are drawn alike."""
    t.manual_seed(0)
    sae = AutoEncoderTopK(WIDTH, FEATURES, FEATURES)
    sae.encoder.bias.data.fill_(50)  # all are always selected
    samples = [collected(sae, batch, 5, seed=seed) for seed in range(6)]
    places_N = samples[0].codes.reading.place_N
    drawn = t.from_numpy(
        np.concatenate([places_N[one.sampled.rows_FT.ravel()] // LENGTH for one in samples])
    )
    expected = batch.wanted_BL.sum(1) / batch.wanted_BL.sum()
    counts = drawn.bincount(minlength=CONTEXTS)
    chi_square = ((counts - len(drawn) * expected) ** 2 / (len(drawn) * expected)).sum()
    assert chi_square < 70  # 36 degrees of freedom: beyond 70 once in 1,700


@pytest.mark.parametrize("kind", ["top_k", "relu"])
def test_an_sae_in_bf16_takes_activations_in_fp32(kind, batch):
    sae = SAES[kind]().bfloat16()
    rounded = batch._replace(x_BLD=batch.x_BLD.bfloat16())
    assert collected(sae, batch).codes.largest_F.equal(collected(sae, rounded).codes.largest_F)


def test_a_text_without_tokens_is_refused():
    with pytest.raises(TextError):
        encode([SAES["top_k"]()], [])


def test_consistent_features_come_first_and_rare_ones_last():
    """A feature that was seen twice is not the most consistent one."""
    tokens_F = [[0] * 2, [*range(8)], [1] * 6 + [2] * 2, [3] * 8, [4] * 7 + [5]]
    padded = np.array([tokens + [-1] * (8 - len(tokens)) for tokens in tokens_F])
    features = object.__new__(FeatureTable)
    count_F = np.array([len(tokens) for tokens in tokens_F])
    kept = SimpleNamespace(ids_FT=padded)
    codes = SimpleNamespace(firing_rate_F=count_F / 1000, count_F=count_F)
    vars(features).update(strongest=kept, sampled=kept, codes=codes)
    assert features.ranking == [3, 4, 2, 1, 0]


# --- attention sinks


@pytest.fixture
def reads_first():
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
        t.zeros(shape, dtype=t.bool),
    )


def without_sinks(batch):
    """As reading leaves them out."""
    rule = PositionRule(max_norm_multiple=SINK_MULTIPLE)
    kept_BL = rule.by_norm(norms(batch.x_BLD), batch.wanted_BL)
    return batch._replace(wanted_BL=kept_BL, is_sink_BL=batch.wanted_BL & ~kept_BL)


def found(sae, batches, tokenizer):
    (codes,) = encode([sae], map(without_sinks, batches))
    return sinks_of(codes.reading, tokenizer), FeatureTable(codes)


def test_a_planted_sink_is_found_and_is_no_features_strongest_context(reads_first, tiny_lm):
    batches = [batch_of(5), batch_of(4, seed=1)]
    for batch in batches:
        batch.x_BLD[:, 0] = 400 * t.eye(WIDTH)[0]
        batch.wanted_BL[0, -2:] = False
    sinks, statistics = found(reads_first, batches, tiny_lm.tokenizer)
    assert sinks.tokens == 9
    assert sinks.where == "position 0 of each context"
    assert statistics.codes.tokens == 9 * (LENGTH - 1) - 4
    strongest = [one.of(feature) for one in [statistics.strongest] for feature in range(FEATURES)]
    assert min(kept[0].position for kept in strongest if kept) > 0
    assert statistics.codes.largest_F.max() < 10


@pytest.mark.parametrize("at_others", [0.25, 0.0], ids=["somewhat above", "mostly zero"])
def test_tokens_that_are_no_sinks_stay(at_others, reads_first, tiny_lm):
    batch = batch_of(5)
    batch.x_BLD[:, 1:] *= at_others
    sinks, statistics = found(reads_first, [batch], tiny_lm.tokenizer)
    assert sinks is None
    assert statistics.codes.tokens == 5 * LENGTH


def batch_with(far):
    """20 contexts of 8 tokens 60 of norm 2, except for `far`: by (context, position), a token and its norm."""
    x_BLD, ids_BL = t.ones(20, 8, 4), t.full((20, 8), 60)
    for place, (token, norm) in far.items():
        x_BLD[place], ids_BL[place] = norm / 2, token
    wanted_BL = t.ones(20, 8, dtype=t.bool)
    return without_sinks(ContextBatch(ids_BL, wanted_BL, x_BLD, ~wanted_BL))


def sinks_among(far, tokenizer):
    return sinks_of(Reading.of(batch_with(far)), tokenizer)


def test_only_norms_above_10_times_the_median_are_sinks(tokenizer):
    assert sinks_among({}, tokenizer) is None
    assert sinks_among({(3, 2): (70, 19.0)}, tokenizer) is None
    assert sinks_among({(3, 2): (70, 21.0)}, tokenizer).tokens == 1


def test_a_token_at_several_positions_is_named_and_what_is_left_is_counted(tokenizer):
    far = {(context, context): (41, 200.0) for context in range(6)}
    found = sinks_among(far | {(2, 7): (42, 400.0)}, tokenizer)
    assert found.where == f"token {tokenizer.decode([41])!r}, position 7 of contexts"
    far = {(context, context): (70 + context, 200.0) for context in range(8)}
    assert sinks_among(far, tokenizer).where.endswith(" and 5 others")


def test_before_training_they_are_warned_of_with_the_largest_norm(tokenizer, caplog):
    batches = [batch_with({(n, 0): (41, norm)}) for n, norm in enumerate((200.0, 400.0, 2.0))]
    inputs = SimpleNamespace(
        contexts=lambda *_: iter(batches), language_model=SimpleNamespace(tokenizer=tokenizer)
    )
    warn_of_sinks(inputs, ["a hook"], 480)
    (record,) = caplog.records
    assert record.args == ("a hook", "200", "position 0 of contexts")


@pytest.mark.slow
def test_the_report_names_them_once(lm_dir_of, text, tmp_path):
    model = saved_with_sinks(lm_dir_of("gpt2"), tmp_path / "lm")
    none = ["--max-norm-multiple", "None"]
    run = train(model, text, tmp_path / "run", "--eval-tokens", "0", *none)
    assert main(["report", str(run), *QUICK]) == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    assert page.count("outliers") == 1
    assert "(position 0 of each context)" in page
    for one in data_of(page)["saes"][0]["pages"].values():
        places = {place for _, _, place, *_ in one["top"] + one["sampled"]}
        assert 0 not in places

    rule = ["--eval-tokens", "0", "--max-norm-multiple", "10"]
    without = train(model, text, tmp_path / "without", *rule)
    named = features_of(run, tokens=600).sinks
    assert features_of(without, tokens=600).sinks == named, "those that training left out, too"
