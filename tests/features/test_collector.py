"""Feature statistics against brute force."""

import pytest
import torch as t
from dictionary_learning.dictionary import AutoEncoder
from dictionary_learning.trainers.top_k import AutoEncoderTopK

from dictionary_learning_ext.activations.inputs import ContextBatch
from dictionary_learning_ext.errors import ConfigError, NonFiniteError, TextError
from dictionary_learning_ext.features.collector import FeatureCollector
from dictionary_learning_ext.trainers.variational_auto_encoder import VariationalTopKAutoEncoder

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
    )


def collected(sae, batch, step=CONTEXTS, **options):
    collector = FeatureCollector(sae.requires_grad_(False), batch.wanted_BL.numel(), **options)
    for start in range(0, CONTEXTS, step):
        collector.add(ContextBatch(*(part[start : start + step] for part in batch)))
    return collector.statistics()


@pytest.fixture(params=SAES)
def sae(request):
    t.manual_seed(0)
    return SAES[request.param]()


@t.no_grad()
def activations(sae, batch, step):
    """Of every token, zero where it is not wanted: (B, L, F).

    In the collector's steps: a matrix product's last bits depend on its size.
    """
    f_BLF = t.cat([sae.encode(x.flatten(0, 1)) for x in batch.x_BLD.split(step)])
    return f_BLF.view(CONTEXTS, LENGTH, -1) * batch.wanted_BL[:, :, None]


@pytest.mark.parametrize("step", [CONTEXTS, 5, 1])
def test_the_numbers_equal_brute_force(sae, batch, step):
    found = collected(sae, batch, step)
    f_NF = activations(sae, batch, step).flatten(0, 1)
    assert found.tokens == int(batch.wanted_BL.sum())
    for i in range(FEATURES):
        on = f_NF[:, i][f_NF[:, i] != 0]
        assert found.count_F[i] == len(on)
        assert found.negative_F[i] == (on < 0).sum()
        if not len(on):
            assert found.max_F[i].isnan()
            assert found.mean_F[i].isnan()
            continue
        assert found.max_F[i] == on[on.abs().argmax()], "with its sign"
        assert found.mean_F[i].item() == pytest.approx(on.double().mean().item(), rel=1e-5)
        width = float(found.bin_width_F[i])
        bins = found.histogram_FH.shape[1]
        assert bins * width > on.abs().max() >= bins * width / 2
        edges = t.arange(bins + 1, dtype=t.float64) * width
        expected = t.histogram(on.abs().double(), edges).hist.long()
        assert found.histogram_FH[i].equal(expected)


@pytest.mark.parametrize("step", [CONTEXTS, 5, 1])
def test_the_top_contexts_equal_brute_force(sae, batch, step):
    top = collected(sae, batch, step, top=3, before=2, after=1).top
    f_BLF = activations(sae, batch, step)
    for i in range(FEATURES):
        peaks = []
        for context in range(CONTEXTS):
            on = [(abs(float(f)), -place) for place, f in enumerate(f_BLF[context, :, i]) if f]
            if on:
                peaks.append((max(on)[0], -context, max(on)[1]))
        peaks = sorted(peaks, reverse=True)[:3]
        values_T = top.value_FT[i][~top.value_FT[i].isnan()]
        assert values_T.abs().tolist() == [size for size, _, _ in peaks]
        for row, (_, context, place) in enumerate(peaks):
            context, place = -context, -place
            assert (top.context_FT[i, row], top.position_FT[i, row]) == (context, place)
            assert top.value_FT[i, row] == f_BLF[context, place, i], "with its sign"
            for w, at in enumerate(range(place - 2, place + 2)):
                inside = 0 <= at < LENGTH
                expected = int(batch.input_ids_BL[context, at]) if inside else -1
                assert top.ids_FTW[i, row, w] == expected
                assert top.activations_FTW[i, row, w] == (f_BLF[context, at, i] if inside else 0)


def test_the_sample_is_of_selections_without_replacement_and_whole_if_there_is_room(batch):
    t.manual_seed(0)
    sae = AutoEncoderTopK(WIDTH, FEATURES, 1)
    f_BLF = activations(sae, batch, 5)
    for kept in (3, 200):
        sampled = collected(sae, batch, 5, sampled=kept).sampled
        for i in range(FEATURES):
            there = ~sampled.value_FT[i].isnan()
            places = list(
                zip(sampled.context_FT[i][there], sampled.position_FT[i][there], strict=True)
            )
            assert len(places) == min(kept, int((f_BLF[:, :, i] != 0).sum()))
            assert len({(int(context), int(place)) for context, place in places}) == len(places)
            values = [float(f_BLF[context, place, i]) for context, place in places]
            assert values == sampled.value_FT[i][there].tolist() == sorted(values, reverse=True)


def test_a_sample_of_negative_activations_starts_with_the_largest_magnitude(batch):
    t.manual_seed(0)
    sae = VariationalTopKAutoEncoder(WIDTH, FEATURES, 4, select_by="magnitude")
    found = collected(sae, batch)
    sizes_FT = found.sampled.value_FT.abs().nan_to_num(-1.0)
    assert (found.sampled.value_FT < 0).any()
    assert sizes_FT.equal(sizes_FT.sort(dim=1, descending=True).values)


def test_the_sample_is_uniform(batch):
    """Over many features and seeds, early and late contexts are drawn alike."""
    t.manual_seed(0)
    sae = AutoEncoderTopK(WIDTH, FEATURES, FEATURES)
    sae.encoder.bias.data.fill_(50)  # all are always selected
    samples = [collected(sae, batch, 5, seed=seed).sampled.context_FT for seed in range(6)]
    drawn = t.cat(samples).flatten()
    expected = batch.wanted_BL.sum(1) / batch.wanted_BL.sum()
    counts = drawn.bincount(minlength=CONTEXTS)
    chi_square = ((counts - len(drawn) * expected) ** 2 / (len(drawn) * expected)).sum()
    assert chi_square < 70  # 36 degrees of freedom: beyond 70 once in 1,700


def test_the_profiles_are_the_activations_at_drawn_tokens(sae, batch):
    f_NF = activations(sae, batch, 5).flatten(0, 1)[batch.wanted_BL.flatten()]
    whole = collected(sae, batch, 5, profile_tokens=10_000).profiles_NF
    assert t.equal(t.tensor(whole.toarray()), f_NF)
    few = t.tensor(collected(sae, batch, 5, profile_tokens=40).profiles_NF.toarray())
    # Of 40 places drawn from all, those after the last wanted token do not come.
    assert 30 <= len(few) <= 40
    places = [int((f_NF == row).all(1).nonzero()[0]) for row in few if row.any()]
    assert places == sorted(places)
    assert places[-1] > len(f_NF) // 2  # drawn from all tokens


def test_no_more_activations_than_the_limit_are_made_at_a_time(batch, monkeypatch):
    limit = 3 * LENGTH * FEATURES
    sae, sizes = AutoEncoderTopK(WIDTH, FEATURES, 4), []
    encode = sae.encode

    def counting(x):
        sizes.append(len(x) * FEATURES)
        return encode(x)

    monkeypatch.setattr(sae, "encode", counting)
    found = collected(sae, batch, batch_elements=limit)
    assert max(sizes) == limit
    assert found.tokens == int(batch.wanted_BL.sum())


def test_the_profiles_stop_at_their_limit(batch):
    sae = AutoEncoderTopK(WIDTH, FEATURES, 4)
    assert collected(sae, batch, 5).profiles_NF.nnz > 100
    profiles = collected(sae, batch, 5, profile_entries=100).profiles_NF
    assert profiles.nnz <= 100
    assert 20 <= profiles.shape[0] <= 40  # k = 4, some of it zeros


@pytest.mark.parametrize("kind", ["top_k", "relu"])
def test_an_sae_in_bf16_takes_activations_in_fp32(kind, batch):
    sae = SAES[kind]().bfloat16()
    rounded = batch._replace(x_BLD=batch.x_BLD.bfloat16())
    assert collected(sae, batch).max_F.equal(collected(sae, rounded).max_F)


def test_a_damaged_sae_is_one_line(batch):
    sae = AutoEncoderTopK(WIDTH, FEATURES, 4)
    sae.encoder.bias.data[3] = t.nan
    with pytest.raises(NonFiniteError, match=r"ae\.pt is damaged"):
        collected(sae, batch)


def test_statistics_of_nothing_are_one_line():
    with pytest.raises(TextError, match="no batch of contexts was added"):
        FeatureCollector(AutoEncoderTopK(WIDTH, FEATURES, 4), 10).statistics()


def test_numbers_out_of_range_are_refused():
    with pytest.raises(ConfigError, match="top=0: expected at least 1"):
        FeatureCollector(AutoEncoderTopK(WIDTH, FEATURES, 4), 10, top=0)
