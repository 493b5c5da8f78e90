"""SAEs in SAE Bench's interface: dictionaries of every class, and SAEs on the hub."""

import json

import pytest
import torch as t
import transformers
from bench_saes import PLACE, D, F, K, result_in
from dictionary_learning.dictionary import (
    AutoEncoder,
    AutoEncoderNew,
    GatedAutoEncoder,
    JumpReluAutoEncoder,
)
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
from dictionary_learning.trainers.top_k import AutoEncoderTopK

from dictionary_learning_ext import VAEase, VariationalTopKAutoEncoder, load_dictionary
from dictionary_learning_ext.errors import BenchError

pytest.importorskip("sae_bench", reason="needs the extra: pip install -e '.[sae-bench]'")

import pandas as pd
import sae_bench.custom_saes.run_all_evals_dictionary_learning_saes as upstream_runner  # pyright: ignore[reportMissingImports]

from dictionary_learning_ext.sae_bench import adapter

pytestmark = pytest.mark.extra


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
        "vsae_fixed_both_magnitude": VariationalTopKAutoEncoder(D, F, K, select_by="magnitude"),
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
    sae = adapter.BenchSAE(dictionary, **PLACE)
    assert sae.cfg.architecture == architecture
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
        sae = adapter.BenchSAE(dictionary, **PLACE)
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
    with pytest.raises(BenchError, match=r"1\.0e-01; .*1e-05"):
        adapter.BenchSAE(dictionary, **PLACE)


def test_a_vaease_is_loaded_with_a_unit_norm_decoder(tmp_path):
    model = VAEase(D, F)
    model.decoder.weight.data *= t.rand(F) + 0.5
    model.variance_encoder.bias.data[::2] = 8.0
    t.save(model.state_dict(), tmp_path / "ae.pt")
    config = {"trainer": {"dict_class": "VAEase", "activation_dim": D, "dict_size": F}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    sae = adapter.load_bench_sae(tmp_path, **PLACE)
    assert sae.check_decoder_norms()
    assert sae.cfg.architecture == "vaease"
    x = 3 * t.randn(20, D)
    assert t.allclose(sae(x), load_dictionary(tmp_path)[0](x), atol=1e-5)
    assert t.equal((sae.encode(x) != 0).any(0), t.arange(F) % 2 == 1)


WORDS = "the cat and dog sat on a mat by door in times of best worst"


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
    words = WORDS.split()
    drawn = t.randint(len(words), (400, 60), generator=t.Generator().manual_seed(0))
    texts = [" ".join(words[i] for i in row) for row in drawn]
    pd.DataFrame({"text": texts}).to_parquet(webtext / "train.parquet")
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
    whole = upstream_runner.core.multiple_evals
    few = {"n_eval_reconstruction_batches": 2, "n_eval_sparsity_variance_batches": 4}
    monkeypatch.setattr(upstream_runner.core, "multiple_evals", lambda **all: whole(**(all | few)))
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
    result = result_in(path, "core")
    assert result["sae_cfg_dict"]["architecture"] == "vsae_fixed_values"
    assert result["eval_result_metrics"]["sparsity"]["l0"] == pytest.approx(K, abs=0.01)


def test_the_loader_fetches_an_sae_and_its_config_from_the_hub(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def download(repo_id, filename, local_dir):
        assert repo_id == "me/saes"
        path = tmp_path / local_dir / filename
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((trained["vsae"] / path.name).read_bytes())

    monkeypatch.setattr(adapter, "hf_hub_download", download)
    trainer = json.loads((trained["vsae"] / "config.json").read_text())["trainer"]
    sae = adapter.load_our_sae(
        "me/saes", "run/ae.pt", trainer["lm_name"], t.device("cpu"), t.float32
    )
    assert t.equal(sae.W_dec, load_dictionary(trained["vsae"])[0].decoder.weight.t())
