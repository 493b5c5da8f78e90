"""SAE Bench on our checkpoints: its real code, small. Skipped without the extra `saebench`."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch as t
import transformers
from dictionary_learning.dictionary import (
    AutoEncoder,
    AutoEncoderNew,
    GatedAutoEncoder,
    JumpReluAutoEncoder,
)
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
from dictionary_learning.trainers.top_k import AutoEncoderTopK

from dictionary_learning_ext import (
    RunConfig,
    SAEConfig,
    VAEase,
    VariationalTopKAutoEncoder,
    load_dictionary,
    train,
)
from dictionary_learning_ext.activations.buffer import ResidualBuffer
from dictionary_learning_ext.activations.language_models import (
    find_hook,
    load_language_model,
    read_residual,
)
from dictionary_learning_ext.activations.text import open_text
from dictionary_learning_ext.cli import main
from dictionary_learning_ext.errors import BenchError
from dictionary_learning_ext.evaluation.measure import Measurement, language_model_losses

pytest.importorskip("sae_bench", reason="needs the extra: pip install -e '.[saebench]'")

import datasets
import pandas as pd
import sae_bench.custom_saes.run_all_evals_dictionary_learning_saes as upstream_runner  # pyright: ignore[reportMissingImports]
import sae_bench.evals.core.main as core  # pyright: ignore[reportMissingImports]
import sae_bench.evals.scr_and_tpp.main as scr_and_tpp  # pyright: ignore[reportMissingImports]
from sae_bench.sae_bench_utils import graphing_utils  # pyright: ignore[reportMissingImports]
from sae_bench.sae_bench_utils.general_utils import (  # pyright: ignore[reportMissingImports]
    load_and_format_sae,
)
from sae_lens.training.activations_store import (  # pyright: ignore[reportMissingImports]
    ActivationsStore,
)

from dictionary_learning_ext.sae_bench import (
    ablation,
    adapter,
    configuration,
    data,
    evaluations,
    lens_model,
    runner,
    usage,
)
from dictionary_learning_ext.sae_bench.comparison_table import curve, rows_of, table
from dictionary_learning_ext.sae_bench.paper_figures import write_figures

D, F, K = 16, 64, 4
SMALL = {"tokens": 2048, "train_size": 40, "test_size": 20, "data": "embedded"}
FLAGS = "--tokens 2048 --train-size 40 --test-size 20 --data embedded"
FOUR = ("core", "scr", "tpp", "sparse_probing")


@pytest.fixture(autouse=True)
def gradients():
    """SAE Bench switches them off and leaves them off."""
    with t.enable_grad():
        yield


@pytest.fixture(scope="module")
def trained(tiny_lm_dir, text, tmp_path_factory):
    """Run folders of a TopK SAE and a vSAE on the tiny model. Leave them as they are."""
    folder = tmp_path_factory.mktemp("trained")
    run = RunConfig(
        model=str(tiny_lm_dir),
        data=text,
        save_dir=str(folder),
        steps=60,
        batch_size=64,
        n_ctxs=8,
        ctx_len=32,
        eval_tokens=0,
    )
    return train(
        run,
        {
            "top_k": SAEConfig(architecture="top_k", dict_size=F, k=K),
            "vsae": SAEConfig(dict_size=F, k=K, noise_on="values", sigma=0.1, beta=0.1),
        },
    )


@pytest.fixture(scope="module")
def benched(trained):
    """The two, with floor, ceiling and size-matched control."""
    return runner.bench(
        list(trained.values()), evals=FOUR, floor=True, size_matched=True, again=True, **SMALL
    )


@pytest.fixture
def one(trained, tmp_path):
    """A copy of the vSAE's folder."""
    folder = tmp_path / "one"
    folder.mkdir()
    for name in ("ae.pt", "config.json"):
        (folder / name).write_bytes((trained["vsae"] / name).read_bytes())
    return folder


def place(**changes):
    return {
        "model_name": "tiny",
        "hook_name": "blocks.0.hook_resid_post",
        "hook_layer": 0,
        "architecture": "vsae",
    } | changes


# --- the adapter


def dictionaries():
    t.manual_seed(0)
    relu = AutoEncoder(D, F)
    relu.normalize_decoder()
    april = AutoEncoderNew(D, F)
    jump = JumpReluAutoEncoder(D, F)
    batch = BatchTopKSAE(D, F, K)
    matryoshka = MatryoshkaBatchTopKSAE(D, F, K, [F // 2, F // 2])
    for dictionary in (april.decoder.weight.data, matryoshka.W_dec.data.T, jump.W_dec.data.T):
        dictionary /= dictionary.norm(dim=0)
    for by_threshold in (batch, matryoshka):
        by_threshold.threshold.fill_(0.5)
    return {
        "vsae_fixed_both": VariationalTopKAutoEncoder(D, F, K),
        "vsae_learned_values": VariationalTopKAutoEncoder(
            D, F, K, posterior="learned", noise_on="values"
        ),
        "vsae_point": VariationalTopKAutoEncoder(D, F, K, posterior="point"),
        "vaease": VAEase(D, F),
        "topk": AutoEncoderTopK(D, F, K),
        "batch_topk": batch,
        "matryoshka_batch_topk": matryoshka,
        "standard": relu,
        "standard_april_update": april,
        "jumprelu": jump,
        "gated": GatedAutoEncoder(D, F),
    }


@pytest.mark.parametrize("architecture", list(dictionaries()))
@pytest.mark.parametrize("shape", [(7, D), (3, 5, D)])
def test_encoding_is_the_dictionarys_deterministic_and_fresh(architecture, shape):
    dictionary = dictionaries()[architecture]
    assert adapter.architecture_of(dictionary) == architecture
    sae = adapter.BenchSAE(dictionary, **place())
    assert sae.check_decoder_norms()
    x = t.randn(shape, generator=t.Generator().manual_seed(1)) * 3
    f = sae.encode(x)
    assert f.shape == (*shape[:-1], F)
    assert (f != 0).any()
    expected = dictionary.encode(x.reshape(-1, D)).reshape(f.shape)
    assert t.equal(f, expected)
    x_hat = sae.decode(f)
    assert t.allclose(sae(x), x_hat)
    assert t.allclose(x_hat, f @ sae.W_dec + sae.b_dec, atol=1e-5), "W_dec is the decoder"
    f[..., 0] = 0  # as SCR and TPP do
    assert t.equal(sae.encode(x), expected)


def test_w_enc_is_the_encoder():
    for name, dictionary in dictionaries().items():
        sae = adapter.BenchSAE(dictionary, **place())
        x = t.randn(9, D) * 3
        f = sae.encode(x)
        pre = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
        if name in ("jumprelu", "standard_april_update"):  # these do not subtract the bias
            pre = x @ sae.W_enc + sae.b_enc
        if name not in ("gated", "vaease"):  # these have a factor of their own
            assert t.allclose(f[f != 0], pre[f != 0], atol=1e-5), name


def test_a_decoder_that_is_not_of_unit_norm_is_refused():
    dictionary = VariationalTopKAutoEncoder(D, F, K)
    dictionary.decoder.weight.data[:, 3] *= 1.1
    with pytest.raises(BenchError, match=r"off unit norm by 1\.0e-01; expected at most 1e-05"):
        adapter.BenchSAE(dictionary, **place())


def test_a_vaease_is_loaded_with_a_unit_norm_decoder(tmp_path):
    model = VAEase(D, F)
    model.decoder.weight.data *= t.rand(F) + 0.5
    model.variance_encoder.bias.data[::2] = 8.0
    t.save(model.state_dict(), tmp_path / "ae.pt")
    config = {"trainer": {"dict_class": "VAEase", "activation_dim": D, "dict_size": F}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    where = {name: value for name, value in place().items() if name != "architecture"}
    sae = adapter.load_bench_sae(tmp_path, **where)
    assert sae.check_decoder_norms()
    assert sae.cfg.architecture == "vaease"
    x = 3 * t.randn(20, D)
    assert t.allclose(sae(x), load_dictionary(tmp_path)[0](x), atol=1e-5)
    assert t.equal((sae.encode(x) != 0).any(0), t.arange(F) % 2 == 1)


def test_a_mask_leaves_the_most_used_features():
    kept = usage.most_used([5, 0, 9, 7], 2)
    assert kept.tolist() == [False, False, True, True]
    assert usage.in_use([100, 0, 90, 1]) == 2, "1 is below a tenth of the mean"
    sae = adapter.BenchSAE(VariationalTopKAutoEncoder(D, F, K), **place())
    mask = t.zeros(F, dtype=t.bool)
    mask[: F // 2] = True
    x = t.randn(50, D)
    f, whole = adapter.masked(sae, mask).encode(x), sae.encode(x)
    assert t.equal(f[:, : F // 2], whole[:, : F // 2])
    assert not f[:, F // 2 :].any()
    assert whole[:, F // 2 :].any()


def test_encoding_once_gives_sae_benchs_ablations():
    sae = adapter.BenchSAE(VariationalTopKAutoEncoder(D, F, K), **place())
    sae.dictionary.b_dec.data.normal_()
    sets = [t.randn(7, 5, D), t.randn(4, 6, D)]
    for acts in sets:
        acts[1, 2:] = 0  # padded
    theirs = scr_and_tpp.ablated_precomputed_activations
    with ablation.encoding_once():
        ours = scr_and_tpp.ablated_precomputed_activations
        assert ours is not theirs
        for n in (1, 9):
            mask = t.arange(F) % 7 < n
            for acts in sets:
                t.testing.assert_close(ours(acts, sae, mask, 3), theirs(acts, sae, mask, 3))
        for _ in range(3):  # each in the memory, and with the id, that the one before has left
            other = t.randn(7, 5, D)
            t.testing.assert_close(ours(other, sae, mask, 3), theirs(other, sae, mask, 3))
            del other
    assert scr_and_tpp.ablated_precomputed_activations is theirs


def test_floor_and_ceiling_are_of_the_same_place():
    sae = adapter.BenchSAE(VariationalTopKAutoEncoder(D, F, K), **place())
    random, identity = adapter.random_sae(sae), adapter.identity_sae(sae)
    x = t.randn(20, D)
    assert int((random.encode(x) != 0).sum(1).max()) <= K
    assert t.equal(identity(x), x)
    for bound in (random, identity):
        assert bound.cfg.hook_name == sae.cfg.hook_name
    assert t.equal(adapter.random_sae(sae).W_dec, random.W_dec), "seeded"


# --- the language model


@pytest.mark.parametrize("family", ["gpt_neox", "llama", "qwen"])
@pytest.mark.parametrize("place", ["blocks.1.hook_resid_post", "blocks.1.hook_resid_pre"])
def test_transformer_lens_gives_the_training_activations(family, place, lm_of):
    model = lm_of(family)
    hook = find_hook(model, place)
    hooked = lens_model.hooked_transformer(model, hook, family)
    assert lens_model.check_activations(hooked, model, hook) < 1e-5


def test_a_model_that_was_processed_is_refused(lm_of):
    model = lm_of("gpt_neox")
    hook = find_hook(model, "blocks.1.hook_resid_post")
    hooked = lens_model.hooked_transformer(model, hook, "tiny")
    hooked.process_weights_(center_writing_weights=True)
    with pytest.raises(BenchError, match=r"TransformerLens's activations differ .* at most 1e-04"):
        lens_model.check_activations(hooked, model, hook)


# --- the runner


def test_every_result_is_in_sae_benchs_schema_and_where_it_looks(benched, trained):
    assert benched.failures == {}
    for name, folder in trained.items():
        for evaluation in FOUR:
            path = folder / "eval_results" / evaluation / f"{name}_custom_sae_eval_results.json"
            assert runner.finished(path, evaluation) == benched.results[name][evaluation]
    files = graphing_utils.find_eval_results_files([str(trained["vsae"] / "eval_results")])
    read = graphing_utils.get_eval_results([f for f in files if "/core/" in f])
    assert read["vsae_custom_sae"]["sae_class"] == "vsae_fixed_values"
    assert "vsae_fixed_values" in graphing_utils.TRAINER_COLORS


def test_caches_are_gone_and_nothing_is_in_the_installed_package(benched, trained):
    assert not (trained["top_k"] / ".bench_cache").exists()
    installed = Path(core.__file__).parents[2]
    assert not list(installed.glob("artifacts/**/*tiny*"))


def test_n_is_at_most_a_tenth_of_the_dictionary(benched):
    assert benched.results["vsae"]["scr"]["eval_config"]["n_values"] == [2, 5]
    assert list(curve(benched.results["vsae"]["tpp"], "total_metric")) == [2, 5]
    assert configuration.capped_n_values(512) == (2, 5, 10, 20, 50)
    with pytest.raises(BenchError, match="dict_size=19"):
        configuration.capped_n_values(19)


def test_our_figures_stand_beside_theirs(benched):
    rows = rows_of(benched.results["top_k"])
    assert rows["FVE (ours)"] <= 1
    assert rows["L0"] == pytest.approx(K, abs=0.01)
    assert rows_of(benched.results["identity"])["FVE (ours)"] == pytest.approx(1)
    assert "top_k" in table(benched)


def test_the_size_matched_control_has_as_many_features_as_the_other(benched):
    used = {
        label: usage.in_use(benched.results[label]["core"]["eval_result_unstructured"]["selected"])
        for label in ("top_k", "vsae")
    }
    if len(set(used.values())) == 1:
        pytest.skip("both use as many")
    denser = max(used, key=lambda label: used[label])
    assert benched.matched == {denser: f"{denser}_top{min(used.values())}"}
    assert set(benched.results[benched.matched[denser]]) == {"scr", "tpp"}


def test_figures_are_drawn(benched, tmp_path):
    paths = write_figures(benched, tmp_path)
    assert [path.name for path in paths] == [
        "figure_3_reconstruction.png",
        "figure_4_scr.png",
        "figure_5_tpp.png",
    ]
    assert all(path.stat().st_size > 10_000 for path in paths)


def test_what_is_finished_is_not_repeated_unless_it_changed(one, caplog):
    def ran():
        outcome = runner.bench([one], evals=["core"], **SMALL)
        assert outcome.failures == {}
        return outcome.results["one"]["core"]["eval_id"]

    first = ran()
    assert ran() == first
    path = next(one.glob("eval_results/core/*.json"))
    whole = path.read_text()
    path.write_text(whole[: len(whole) // 2])
    second = ran()
    assert second != first, "half a file is no result"
    state = t.load(one / "ae.pt", weights_only=True)
    state["b_dec"] += 0.1
    t.save(state, one / "ae.pt")
    assert ran() != second, "of another SAE"
    assert "another SAE, model or settings" in caplog.text
    outcome = runner.bench([one], evals=["core"], again=True, **SMALL)
    assert outcome.results["one"]["core"]["eval_id"] not in (first, second)


def test_a_failure_says_why_and_does_not_stop_the_others(one, capsys, monkeypatch):
    def broken(*_):
        print("what SAE Bench prints")
        raise IndexError("no features\nfound")

    monkeypatch.setitem(evaluations.EVALUATIONS, "absorption", broken)
    assert main(["bench", str(one), "--evals", "absorption,core", *shlex.split(FLAGS)]) == 2
    log = one / "eval_results" / "absorption" / "one.log"
    said = "vsae: failed: absorption of one: IndexError: no features (see "
    assert said + str(log) in capsys.readouterr().err
    assert list(one.glob("eval_results/core/*.json"))
    assert not list(one.glob("eval_results/absorption/*.json"))
    assert "what SAE Bench prints" in log.read_text()
    assert "Traceback" in log.read_text()


def test_absorption_says_that_a_model_does_not_know_first_letters(one, tmp_path):
    outcome = runner.bench([one], evals=["absorption"], **SMALL)
    with pytest.raises(BenchError, match=r"not hold enough first letters: .* find \d+ with F1"):
        outcome.check()


def test_a_full_disk_keeps_what_is_finished(one, monkeypatch):
    runner.bench([one], evals=["core"], **SMALL)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.save", full)  # where SAE Bench writes activations
    outcome = runner.bench([one], evals=["core", "tpp"], **SMALL)
    assert list(outcome.results["one"]) == ["core"]
    with pytest.raises(BenchError, match=r"tpp of one: OSError: .*No space left"):
        outcome.check()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--evals core,scrr", r"evals='scrr': expected some of core,scr"),
        ("--evals ,", r"evals='': expected"),
        ("--model elsewhere", r"trained on model .*, not on elsewhere"),
        ("--hook blocks.1.hook_resid_post", r"trained on hook blocks\.0.*, not on blocks\.1"),
        ("--data ./nowhere", r"--data ./nowhere: no such folder; give embedded, hub"),
        ("--evals tpp --compare", r"size-matched control needs core"),
        ("--evals tpp --train-size 100000", r"train_set_size=100000: .* at most \d+"),
    ],
)
def test_a_mistake_is_one_line(flags, message, one, capsys):
    assert main(["bench", str(one), "--data", "embedded", *shlex.split(flags)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(message, error), error


def test_a_set_that_is_not_there_is_named_with_the_folder_that_would_serve(one, tmp_path, capsys):
    flags = shlex.split(f"--evals tpp --data {tmp_path}")
    assert main(["bench", str(one), *flags]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"{tmp_path}/LabHC/bias_in_bios (train and test .parquet, hard_text" in error
    for name in ("LabHC/bias_in_bios", "canrager/amazon_reviews_mcauley_1and5"):
        (tmp_path / name).mkdir(parents=True)
    data.require_sets(
        data.open_bench_data(str(tmp_path), tmp_path), ["LabHC/bias_in_bios_class_set1"]
    )


def test_an_unknown_repo_is_one_line(capsys):
    assert main(["bench", "nobody/nothing"]) == 2
    assert "no such repo on the hub" in capsys.readouterr().err


# --- the books


@pytest.mark.parametrize(
    ("text", "gender"),
    [
        ("He gave his hat.", "male"),
        ("She said that HER hat was hers.", "female"),
        ("He gave her his hat.", None),
        ("He went.", None),
        ("The hat.", None),
    ],
)
def test_a_passages_gender_is_its_pronouns(text, gender):
    assert data.gender_of(text) == gender


def test_the_books_fill_what_is_asked_of_them(tmp_path):
    sets = data.open_bench_data("embedded", tmp_path)
    frames = {p: pd.read_parquet(tmp_path / data.BOOKS / f"{p}.parquet") for p in ("train", "test")}
    assert not set(frames["train"]["hard_text"]) & set(frames["test"]["hard_text"])
    for which, part in enumerate(("train", "test")):
        cells = frames[part].groupby(["profession", "gender"]).size()
        assert sets.class_sizes is not None
        assert sets.class_sizes[which] == 4 * cells.min()


# --- agreement


def test_core_agrees_with_our_evaluation_on_the_same_tokens():
    """Two implementations of one model in float32: their logits differ by about 1e-6, their
    losses' gap, by which the score divides, is several nats."""
    model = load_language_model("embedded")
    hook = find_hook(model, "blocks.1.hook_resid_post")
    hooked = lens_model.hooked_transformer(model, hook, "embedded")
    t.manual_seed(0)
    dictionary = VariationalTopKAutoEncoder(128, 256, 32).eval()
    sae = adapter.BenchSAE(dictionary, **place(hook_name=hook.name, hook_layer=1))
    ctx_len, stream = 32, open_text("embedded", split="heldout")
    documents = [text for text, _ in zip(stream, range(16), strict=False) if len(text) > 400]
    documents = documents[: len(documents) // 4 * 4]
    rows = model.tokenizer(documents, truncation=True, max_length=ctx_len)["input_ids"]
    assert {len(row) for row in rows} == {ctx_len}
    config = core.CoreEvalConfig(
        batch_size_prompts=4,
        n_eval_reconstruction_batches=len(rows) // 4,
        n_eval_sparsity_variance_batches=len(rows) // 4,
        context_size=ctx_len,
        compute_ce_loss=True,
        compute_sparsity_metrics=True,
        compute_variance_metrics=True,
    )
    load_and_format_sae("sae", sae, "cpu")
    dataset = datasets.Dataset.from_dict({"tokens": rows}).to_iterable_dataset()
    store = ActivationsStore.from_sae(hooked, sae, dataset, context_size=ctx_len)
    theirs, _ = core.run_evals(sae, store, hooked, config)

    buffer = ResidualBuffer(
        open_text("embedded"), model, hook.submodule, n_ctxs=8, ctx_len=ctx_len, out_batch_size=64
    )
    losses = language_model_losses(dictionary, buffer, documents)
    tokens = t.tensor(rows)
    measurement = Measurement(dictionary)
    measurement.add(read_residual(model, hook, tokens, t.ones_like(tokens)).flatten(0, 1))
    ours = measurement.figures()
    preserved = theirs["model_performance_preservation"]
    for name, mine in {
        "ce_loss_score": losses["frac_recovered"],
        "ce_loss_without_sae": losses["loss_original"],
        "ce_loss_with_sae": losses["loss_reconstructed"],
        "ce_loss_with_ablation": losses["loss_zero"],
    }.items():
        assert preserved[name] == pytest.approx(mine, rel=1e-4), name
    assert theirs["sparsity"]["l0"] == pytest.approx(ours["l0"], abs=1e-3)
    assert theirs["reconstruction_quality"]["cossim"] == pytest.approx(ours["cossim"], rel=1e-4)
    assert 0.05 < losses["frac_recovered"] < 0.95


# --- SAE Bench's own runner, and Pythia-70M


def words(n):
    generator = t.Generator().manual_seed(0)
    some = [
        "the",
        "cat",
        "and",
        "dog",
        "sat",
        "on",
        "a",
        "mat",
        "by",
        "door",
        "in",
        "times",
        "of",
        "best",
        "worst",
    ]
    return [
        " ".join(some[i] for i in t.randint(len(some), (60,), generator=generator))
        for _ in range(n)
    ]


def test_its_unmodified_runner_takes_our_checkpoint_once_registered(
    trained, tokenizer, tmp_path, monkeypatch
):
    """Offline: a model and a text in folders of their hub names, and the repo as downloaded."""
    monkeypatch.chdir(tmp_path)
    t.manual_seed(0)
    config = transformers.GPTNeoXConfig(
        vocab_size=304,
        hidden_size=D,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=16,
        max_position_embeddings=128,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
    )
    lm = tmp_path / "EleutherAI" / "pythia-70m-deduped"
    transformers.GPTNeoXForCausalLM(config).save_pretrained(lm)
    tokenizer.save_pretrained(lm)
    webtext = tmp_path / "Skylion007" / "openwebtext"
    webtext.mkdir(parents=True)
    pd.DataFrame({"text": words(400)}).to_parquet(webtext / "train.parquet")
    settings = json.loads((trained["vsae"] / "config.json").read_text())
    settings["trainer"]["lm_name"] = "EleutherAI/pythia-70m-deduped"
    for folder in ("downloaded_saes/me_saes/run", "downloaded_saes/run"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "config.json").write_text(json.dumps(settings))
        (tmp_path / folder / "ae.pt").write_bytes((trained["vsae"] / "ae.pt").read_bytes())

    monkeypatch.delitem(upstream_runner.TRAINER_LOADERS, "VariationalTopKTrainer", raising=False)
    arguments = {"repo_id": "me/saes", "model_name": "pythia-70m-deduped"}
    with pytest.raises(KeyError, match="VariationalTopKTrainer"):
        upstream_runner.verify_saes_load(
            sae_locations=["run"], device="cpu", dtype=t.float32, **arguments
        )
    adapter.register()
    upstream_runner.run_evals(
        **arguments,
        sae_locations=["run"],
        llm_batch_size=16,
        llm_dtype="float32",
        device="cpu",
        eval_types=["core"],
        random_seed=42,
    )
    path = tmp_path / "eval_results" / "core" / "saes_run_custom_sae_eval_results.json"
    result = runner.finished(path, "core")
    assert result is not None
    assert result["sae_cfg_dict"]["architecture"] == "vsae_fixed_values"
    assert result["eval_result_metrics"]["sparsity"]["l0"] == pytest.approx(K, abs=0.01)


def test_pythia_70m_as_far_as_it_goes_without_its_weights(tokenizer, text, tmp_path, monkeypatch):
    """Its exact configuration, random weights, in a folder of its hub name: train and bench."""
    monkeypatch.chdir(tmp_path)
    config = transformers.GPTNeoXConfig(
        vocab_size=50304,
        hidden_size=512,
        num_hidden_layers=6,
        num_attention_heads=8,
        intermediate_size=2048,
        max_position_embeddings=2048,
        hidden_act="gelu",
        layer_norm_eps=1e-5,
        use_parallel_residual=True,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    t.manual_seed(0)
    lm = tmp_path / "EleutherAI" / "pythia-70m"
    transformers.GPTNeoXForCausalLM(config).save_pretrained(lm)
    tokenizer.save_pretrained(lm)
    flags = f"--preset paper --data {text} --steps 3 --batch-size 64 --n-ctxs 4 --ctx-len 32"
    flags += " --decay-start None --eval-tokens 0 --save-dir run"
    assert main(["train", *shlex.split(flags)]) == 0
    flags = f"--evals core,tpp {FLAGS} --tokens 512"
    assert main(["bench", "run", *shlex.split(flags)]) == 0
    result = json.loads(next(Path("run/eval_results/tpp").glob("*.json")).read_text())
    assert result["eval_config"]["model_name"] == "pythia-70m"
    assert result["sae_cfg_dict"]["d_sae"] == 2048
    assert result["eval_config"]["n_values"] == [2, 5, 10, 20, 50, 100]
