"""The return score: its signals against loops in float64, planted cases."""

import csv
import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch as t
from dictionary_learning.dictionary import AutoEncoder, AutoEncoderNew, JumpReluAutoEncoder
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from export_folders import edit_weights
from kept import kept_runs
from measurement import codes_of_rows
from scipy.stats import rankdata, spearmanr
from sklearn.metrics import roc_auc_score

from dictionary_learning_ext import RunConfig, load_dictionary
from dictionary_learning_ext.cli import main
from dictionary_learning_ext.codes import encoding
from dictionary_learning_ext.config.sae import BatchTopKConfig, VSAETopKConfig
from dictionary_learning_ext.errors import NonFiniteError
from dictionary_learning_ext.evaluation.folders import open_folders
from dictionary_learning_ext.export.exporter import export
from dictionary_learning_ext.features.return_score import (
    FEW_SELECTIONS,
    SIGNALS,
    ReturnScoreError,
    ReturnScores,
    caveat_on,
    fits,
    has_noise,
    margins,
    ranks,
    return_scores,
    return_scores_if_any,
    return_scores_of,
    scores_table,
    signals_of,
    thresholds,
)
from dictionary_learning_ext.trainers.variational_top_k import VariationalTopKAutoEncoder

N, D, F, K = 70, 6, 15, 3


@pytest.fixture(scope="module")
def folders(tiny_lm_dir, text, tmp_path_factory):
    """Run folders of a vSAE and of a BatchTopK."""
    run = RunConfig(
        model=str(tiny_lm_dir),
        data=text,
        steps=20,
        batch_size=64,
        n_ctxs=8,
        ctx_len=32,
        eval_tokens=500,
    )
    batch = BatchTopKConfig(dict_size=32, k=4)
    saes = {"vsae": VSAETopKConfig(dict_size=32, k=4), "batch": batch}
    return kept_runs("scored", run, saes, tmp_path_factory.mktemp("scored") / "runs")


@pytest.fixture(scope="module")
def folder(folders):
    return folders["vsae"]


@pytest.fixture(scope="module")
def batch_top_k(folders):
    """Its threshold is that of some tokens, and no activation is as large: 20 steps find none."""
    sae, _ = load_dictionary(folders["batch"])
    opened = open_folders([folders["batch"]])
    x_ND = next(opened.inputs.held_out(opened.run.hook, 600).batches)
    kept_NF = sae.encode(x_ND, use_threshold=False)
    least = kept_NF[kept_NF > 0].min()
    edit_weights(folders["batch"], lambda state: state["threshold"].fill_(0.999 * least))
    return folders["batch"]


def vsae(f=F, k=K, **options):
    return VariationalTopKAutoEncoder(D, f, k, **options)


class AgainstTheError(AutoEncoderTopK):
    """Its features make the error larger: dropping one lowers it. See `drawn`."""


def drawn(sae, seed=0):
    """An SAE with random weights, of which the last feature never fires."""
    generator = t.Generator().manual_seed(seed)
    for parameter in sae.parameters():
        parameter.data = t.randn(parameter.shape, generator=generator)
    bias = sae.b_enc if isinstance(sae, JumpReluAutoEncoder) else sae.encoder.bias
    bias.data[-1] = -1e4
    if isinstance(sae, JumpReluAutoEncoder):
        sae.threshold.data.abs_()
    elif hasattr(sae, "threshold"):
        sae.threshold.fill_(0.7)
    if isinstance(sae, AgainstTheError):
        sae.decoder.weight.data = -sae.encoder.weight.data.T
    return sae


def tokens(n=N, seed=1):
    return t.randn(n, D, generator=t.Generator().manual_seed(seed))


def scored(sae, *parts, said=None):
    return return_scores_of(codes_of_rows(sae, *parts), sae, said)


@t.no_grad()
def slowly(sae, x):
    """The signals, one token and feature at a time."""
    sae, x = sae.double(), x.double()
    f = sae.encode(x).numpy()
    directions = (sae.decode(t.eye(F).double()) - sae.decode(t.zeros(1, F).double())).numpy()
    encoder = (sae.W_enc.T if hasattr(sae, "W_enc") else sae.encoder.weight).numpy()
    error = (x - sae.decode(t.from_numpy(f))).square().sum(1).numpy()
    length = np.linalg.norm(directions, axis=1)
    unit = directions / length[:, None]
    has_threshold = isinstance(sae, JumpReluAutoEncoder | BatchTopKSAE)
    exceeded = sae.threshold.numpy() * length if has_threshold else None
    found = {name: np.full(F, np.nan) for name in SIGNALS}
    rises = np.zeros(F)
    for i in range(F):
        at = [n for n in range(len(x)) if f[n, i] != 0]
        if not at:
            continue
        margins = []
        for n in at:
            without = f[n].copy()
            without[i] = 0
            left = (x[n] - sae.decode(t.from_numpy(without))).square().sum()
            rises[i] += float(left) - error[n]
            written = np.abs(f[n]) * length
            least = min(v for v in written if v != 0) if exceeded is None else exceeded[i]
            margins.append(np.log(written[i] / least))
        size = np.abs(f[at, i])
        cosines = [unit[i] @ unit[j] for j in range(F) if j != i]
        found["firing_rate"][i] = len(at) / len(x)
        found["error_share"][i] = rises[i]
        found["margin"][i] = np.mean(margins)
        found["shape"][i] = size.mean() / np.sqrt((size**2).mean())
        found["encoder_norm"][i] = np.linalg.norm(encoder[i]) * length[i]
        found["nearest"][i] = max(cosines)
        found["crowding"][i] = sum(max(c, 0) ** 2 for c in cosines)
    found["error_share"] /= error.sum()
    return found


@pytest.mark.parametrize(
    "sae",
    [
        AutoEncoderTopK(D, F, K),
        BatchTopKSAE(D, F, K),
        vsae(),
        vsae(select_by="magnitude", noise_on="selection"),
        vsae(posterior="learned"),
        vsae(posterior="point", rectify=True),
        AgainstTheError(D, F, K),
        JumpReluAutoEncoder(D, F),
        AutoEncoder(D, F),
        AutoEncoderNew(D, F),
    ],
    ids=[
        *["TopK", "BatchTopK", "vSAE", "magnitude", "learned", "point", "against"],
        *["JumpReLU", "ReLU", "ReLU, any norm"],
    ],
)
def test_the_signals_are_those_of_a_loop_and_batches_make_no_difference(sae, monkeypatch):
    drawn(sae)
    x = tokens()
    whole = signals_of(codes_of_rows(sae, x), sae)
    monkeypatch.setattr(encoding, "_BLOCK_ELEMENTS", 8 * F)
    in_parts = signals_of(codes_of_rows(sae, x[:31], x[31:]), sae)
    expected = slowly(sae, x)
    assert set(whole) == set(SIGNALS)
    assert 0 < np.isnan(whole["margin"]).sum() < F / 2
    for name in SIGNALS:
        np.testing.assert_allclose(whole[name], expected[name], rtol=2e-3, atol=2e-5, err_msg=name)
        np.testing.assert_allclose(in_parts[name], whole[name], rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("sae", [drawn(AutoEncoderTopK(D, F, K)), drawn(vsae())])
def test_the_score_is_the_order_of_the_regression_and_what_never_fires_is_last(sae):
    codes = codes_of_rows(sae, tokens())
    signals, scores = signals_of(codes, sae), return_scores_of(codes, sae)
    fit = fits()["with_noise" if isinstance(sae, VariationalTopKAutoEncoder) else "without_noise"]
    rank = {name: np.zeros(F) for name in SIGNALS}
    alive = np.isfinite(signals["margin"])
    for name, value in signals.items():
        rank[name][alive] = (2 * rankdata(value[alive]) - alive.sum() - 1) / alive.sum()
        np.testing.assert_allclose(ranks(signals)[name][alive], rank[name][alive])
    log_odds = np.sum([fit.rank[n] * rank[n] + fit.square[n] * rank[n] ** 2 for n in fit.rank], 0)
    assert (scores.score_F[~alive] == 0).all()
    assert not alive.all()
    order = np.argsort(log_odds[alive])
    assert (np.diff(scores.score_F[alive][order]) > 0).all()
    lower = [(scores.score_F < score).mean() * 100 for score in scores.score_F[alive]]
    np.testing.assert_allclose(scores.score_F[alive], np.array(lower) + 50 / F)
    assert scores.tokens == N


def test_the_scale_of_activations_makes_no_difference():
    sae, x = drawn(vsae(noise_on="selection")), tokens()
    before = scored(sae, x)
    sae.scale_biases(7.0)
    np.testing.assert_allclose(scored(sae, 7.0 * x).score_F, before.score_F)


def test_how_features_and_directions_share_their_length_makes_no_difference():
    """SAELens's and Gemma Scope's decoders have directions of any length."""
    sae, x = drawn(JumpReluAutoEncoder(D, F)), tokens()
    before = codes_of_rows(sae, x)
    signals, scores = signals_of(before, sae), return_scores_of(before, sae)
    length_F = t.linspace(0.1, 9.0, F)
    with t.no_grad():
        sae.W_dec /= length_F[:, None]
        for each in (sae.W_enc, sae.b_enc, sae.threshold):
            each *= length_F
    after = codes_of_rows(sae, x)
    for name, signal in signals.items():
        np.testing.assert_allclose(signals_of(after, sae)[name], signal, rtol=1e-3, err_msg=name)
    np.testing.assert_allclose(return_scores_of(after, sae).score_F, scores.score_F)


def test_a_margin_is_over_the_tokens_smallest_or_the_features_own_threshold():
    sae, x = drawn(JumpReluAutoEncoder(D, F)), tokens(9)
    sae.threshold.data[1] = 0.0
    codes = codes_of_rows(sae, x)
    length_F = sae.W_dec.detach().norm(dim=1)
    written_FN = (sae.encode(x).detach() * length_F).T
    feature_M, token_M = written_FN.nonzero(as_tuple=True)  # in the order of the features
    size_M = written_FN[feature_M, token_M]
    smallest_N = written_FN.where(written_FN > 0, t.inf).amin(0)
    without = t.from_numpy(margins(codes, AutoEncoder(D, F), length_F.numpy())).float()
    t.testing.assert_close(without, (size_M / smallest_N[token_M]).log(), rtol=1e-4, atol=1e-5)
    assert thresholds(sae) is not None
    own_M = t.from_numpy(margins(codes, sae, length_F.numpy())).float()
    is_there_M = feature_M != 1
    ratio_M = sae.encode(x).detach()[token_M, feature_M] / sae.threshold.detach()[feature_M]
    t.testing.assert_close(own_M[is_there_M], ratio_M[is_there_M].log(), rtol=1e-4, atol=1e-5)
    assert (own_M > 0).all()
    assert own_M.isfinite().all()
    assert own_M[~is_there_M].min() > own_M[is_there_M].max(), "0 is no threshold"


@pytest.mark.parametrize(
    ("sae", "expected"),
    [
        (JumpReluAutoEncoder(D, F), True),
        (BatchTopKSAE(D, F, K), True),
        (AutoEncoderTopK(D, F, K), False),
        (vsae(), False),
        (AutoEncoder(D, F), False),
    ],
)
def test_which_saes_have_thresholds(sae, expected):
    assert (thresholds(sae) is not None) is expected


def alike(ours, theirs, **where):
    """Whether the scores of a BatchTopK with its k and of the JumpReLU that it was saved as are the same order."""
    one, other = (
        next(iter(return_scores([folder], 600, **where).values())) for folder in (ours, theirs)
    )
    assert load_dictionary(theirs)[1]["trainer"]["k"] is None
    assert len(np.unique(one.score_F)) > 10
    assert spearmanr(one.score_F, other.score_F).statistic >= 0.95
    for name in SIGNALS:
        np.testing.assert_allclose(other.signals[name], one.signals[name], rtol=1e-4, atol=1e-4)


def test_a_batch_topk_and_its_jumprelu_have_one_order(batch_top_k, tiny_lm_dir, text, tmp_path):
    exported = export(batch_top_k, "sae-lens", tmp_path / "out", tokens=64).folder
    alike(batch_top_k, exported, model=str(tiny_lm_dir), data=text)


def test_a_batch_topk_that_saelens_itself_saves_as_a_jumprelu_has_the_order_of_the_batch_topk(
    batch_top_k, tiny_lm_dir, text, tmp_path
):
    sae_lens = pytest.importorskip("sae_lens", reason="needs SAELens (the SAE Bench environment)")
    ours, config = load_dictionary(batch_top_k)
    weights = ours.state_dict()
    f_size, d = weights["encoder.weight"].shape
    sizes = {"d_in": d, "d_sae": f_size, "k": int(weights["k"])}
    theirs = sae_lens.BatchTopKTrainingSAE(sae_lens.BatchTopKTrainingSAEConfig(**sizes))
    length_F = t.linspace(0.5, 2.0, f_size)  # SAELens trains directions of any length
    with t.no_grad():
        theirs.W_enc.copy_(weights["encoder.weight"].T / length_F)
        theirs.b_enc.copy_(weights["encoder.bias"] / length_F)
        theirs.W_dec.copy_(weights["decoder.weight"].T * length_F[:, None])
        theirs.b_dec.copy_(weights["b_dec"])
        theirs.topk_threshold.fill_(float(weights["threshold"]))
    about = {"hook_name": config["trainer"]["submodule_name"], "context_size": 32}
    for name, value in about.items():
        setattr(theirs.cfg.metadata, name, value)
    theirs.save_inference_model(tmp_path)
    assert json.loads((tmp_path / "cfg.json").read_text())["architecture"] == "jumprelu"
    alike(batch_top_k, tmp_path, model=str(tiny_lm_dir), data=text)


@pytest.mark.parametrize(
    ("make", "least"),
    [
        (AutoEncoderTopK, 0.8),
        (
            lambda d, f, k: VariationalTopKAutoEncoder(d, f, k, noise_on="selection", sigma=0.3),
            0.95,
        ),
    ],
    ids=["TopK", "vSAE"],
)
def test_true_directions_score_above_random_ones(make, least):
    """Half of an SAE's directions are those that made the data, the other half are random.

    It guards the coefficients: two earlier fits failed here. It is no evidence for the score.
    """
    generator = t.Generator().manual_seed(0)
    n, d, k, n_true = 20_000, 128, 8, 256
    both_FD = t.nn.functional.normalize(t.randn(2 * n_true, d, generator=generator), dim=1)
    rate_T = t.arange(1, n_true + 1) ** -0.7
    fires_NT = t.rand(n, n_true, generator=generator) < rate_T / rate_T.sum() * k
    size_NT = 0.3 + t.empty(n, n_true).exponential_(generator=generator)
    noise_ND = 0.05 * t.randn(n, d, generator=generator)
    place_F = t.randperm(2 * n_true, generator=generator)
    is_true_F = (place_F < n_true).numpy()
    sae = make(d, 2 * n_true, k)
    sae.encoder.weight.data, sae.decoder.weight.data = both_FD[place_F], both_FD[place_F].T
    scores = scored(sae, (fires_NT * size_NT) @ both_FD[:n_true] + noise_ND)
    assert roc_auc_score(is_true_F, scores.score_F) > least
    assert scores.fifth_F[is_true_F].mean() > scores.fifth_F[~is_true_F].mean() + 1


def on(n) -> Any:
    """Codes of n tokens."""
    return SimpleNamespace(tokens=n)


def test_fifths():
    score = np.array([0, 0, 0, 35, 45, 55, 65, 75, 85, 95.0])
    rate = np.array([np.nan, np.nan, np.nan, 4, 1, 1, 1, 1, 1, 1.0])
    scores = ReturnScores(score, {"firing_rate": rate, "error_share": rate}, on(1), 0.0)
    assert scores.counts == {5: 2, 4: 2, 3: 2, 2: 1, 1: 3}
    assert scores.selections == {5: 0.2, 4: 0.2, 3: 0.2, 2: 0.4, 1: 0.0}
    came_back = np.array([0, 0, 1, 0, 0, 1, 1, 1, 0, 1.0])
    assert scores.shares(came_back) == {5: 0.5, 4: 1.0, 3: 0.5, 2: 0.0, 1: pytest.approx(1 / 3)}
    half_dead = ReturnScores(np.array([0, 0, 50, 90.0]), {"firing_rate": rate[:4]}, on(1), 0.5)
    assert half_dead.shares(np.ones(4)) == {5: 1.0, 4: None, 3: 1.0, 2: None, 1: 1.0}


def test_the_table_counts_the_features_that_were_never_selected_where_there_are_some():
    rate = np.array([np.nan, np.nan, 4, 1])
    some = ReturnScores(
        np.array([0, 0, 35, 95.0]), {"firing_rate": rate, "error_share": rate}, on(9), 0.5
    )
    none = ReturnScores(
        np.array([35, 95.0]), {"firing_rate": rate[2:], "error_share": rate[2:]}, on(9), 0.0
    )
    assert "Never selected on these tokens: 2" in scores_table(some)
    assert "Never selected" not in scores_table(none)


def test_many_near_dead_features_are_warned_of():
    sae, x = drawn(AutoEncoderTopK(D, F, K)), tokens(2000)
    many = replace(scored(sae, x), codes=on(10**6))
    rarely = np.nan_to_num(many.signals["firing_rate"]) < 0.1 * K / F
    assert many.near_dead == pytest.approx(rarely.mean())
    assert many.near_dead > 0.2
    assert "near-dead" in str(many.warnings)
    assert replace(many, near_dead=0.09).warnings == []
    few = replace(many, near_dead=0.09, codes=on(100))
    assert "100 tokens" in str(few.warnings)
    rate = many.signals["firing_rate"] / (100 * np.nansum(many.signals["firing_rate"]) / F)
    (said,) = replace(few, signals={"firing_rate": rate * 0.3}, codes=on(100)).warnings
    assert "selected 0.3 times" in said
    assert f"give {round(100 * FEW_SELECTIONS / 0.3):,} tokens" in said


def test_activations_that_are_not_finite_are_said():
    sae = drawn(AutoEncoderTopK(D, F, K))
    sae.encoder.weight.data.fill_(t.nan)
    with pytest.raises(NonFiniteError):
        scored(sae, tokens())


@pytest.mark.parametrize(
    ("sae", "expected"),
    [
        (vsae(), True),
        (vsae(posterior="learned"), True),
        (vsae(posterior="point"), False),
        (AutoEncoderTopK(D, F, K), False),
    ],
)
def test_which_fit_is_taken_follows_from_the_noise(sae, expected):
    assert has_noise(sae) is expected


def test_an_sae_without_k_has_scores_unless_every_feature_fires_at_every_token():
    sae = drawn(AutoEncoder(D, F))
    sparse = codes_of_rows(sae, tokens())
    scores = return_scores_of(sparse, sae)
    rate_F = np.nan_to_num(scores.signals["firing_rate"])
    assert scores.near_dead == pytest.approx((rate_F < 0.1 * rate_F.sum() / F).mean())
    assert return_scores_if_any(sparse, sae) is not None
    sae.encoder.bias.data.fill_(1e3)
    dense = codes_of_rows(sae, tokens())
    assert return_scores_if_any(dense, sae) is None
    with pytest.raises(ReturnScoreError, match=rf"AutoEncoder\).* all {F} ") as refused:
        return_scores_of(dense, sae)
    assert "vsae reproduce FOLDER SECOND_FOLDER" in str(refused.value)


OURS = "dictionary_learning"


def of(library, architecture="jumprelu"):
    return {"foreign": {"format": library, "architecture": architecture}}


@pytest.mark.parametrize(
    ("sae", "config", "model", "new"),
    [
        (AutoEncoderTopK(D, F, K), {}, "embedded", []),
        (AutoEncoderTopK(D, F, K), {}, "gpt2", ["gpt2"]),
        (AutoEncoderTopK(D, F, K), of("sparsify"), "embedded", ["sparsify"]),
        (vsae(noise_on="selection"), {}, "embedded", []),
        (vsae(), {}, "embedded", ["vSAE"]),
        (vsae(posterior="point"), of("SAELens", "abstopk"), "embedded", ["SAELens", "abstopk"]),
        (
            JumpReluAutoEncoder(D, F),
            of("Gemma Scope"),
            "google/gemma-2-2b",
            ["Gemma Scope", "google/gemma-2-2b", "JumpReLU", "embedded"],
        ),
        (
            AutoEncoderTopK(D, F, K),
            {"trainer": {"trainer_class": "ProbabilisticTopKTrainer"}},
            "gpt2",
            ["gpt2"],
        ),
    ],
)
def test_what_the_score_was_not_tested_on_is_named(sae, config, model, new):
    said = caveat_on(sae, config, model)
    assert (said is None) is (not new)
    known = {OURS, "embedded", "gpt2", "JumpReLU", "SAELens", "Gemma Scope", "sparsify", "abstopk"}
    for name in known | {"google/gemma-2-2b"}:
        assert (name in (said or "")) is (name in new), name
    assert scored(sae, tokens()).warnings != []  # of few tokens
    scores = scored(sae, tokens(), said=said)
    assert scores.caveat == said
    assert (said in scores.warnings) is bool(new)


def test_one_folder_is_ordered_and_its_scores_are_written(folder, capsys, tmp_path):
    main(["reproduce", str(folder), "--tokens", "600"])
    said = capsys.readouterr().out
    assert "top fifth" in said
    assert f"wrote {folder / 'return_scores.csv'}" in said
    (scores,) = return_scores([folder], 600).values()
    with (folder / "return_scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["feature", "score", *SIGNALS]
    assert [float(row["score"]) for row in rows] == pytest.approx(scores.score_F, abs=0.051)
    margins = [float(row["margin"] or "nan") for row in rows]
    assert margins == pytest.approx(scores.signals["margin"], rel=1e-4, nan_ok=True)
    main(["reproduce", str(folder), "--tokens", "600", "--csv", str(tmp_path / "a.csv")])
    written = [path.read_text() for path in (tmp_path / "a.csv", folder / "return_scores.csv")]
    assert written[0] == written[1]
    capsys.readouterr()
    main(["reproduce", str(folder), "--tokens", "600", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["scores"] == pytest.approx(scores.score_F, abs=0.051)
    assert found["by_fifth"]["counts"] == {str(n): count for n, count in scores.counts.items()}
