"""Each export against the library that it is for, and against the SAE that it is of."""

import json
import re
import resource
import shutil
from pathlib import Path

import pytest
import torch as t
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from dictionary_learning.utils import load_dictionary as load_upstream
from safetensors.torch import load_file

from dictionary_learning_ext import RunConfig, SAEConfig, load_dictionary, train
from dictionary_learning_ext.activations.run_inputs import held_out, open_model
from dictionary_learning_ext.cli import main
from dictionary_learning_ext.errors import UserError
from dictionary_learning_ext.export.exporter import export, measure
from dictionary_learning_ext.export.local_paths import without_local_paths

D, F, K = 16, 32, 4
FORMATS = ("sae-bench", "dictionary-learning", "sae-lens", "safetensors")
EVERY_CLASS = ("signed", "vsae", "top_k", "batch_top_k", "relu", "jump_relu", "matryoshka")


@pytest.fixture(scope="module")
def trained(tiny_lm_dir, text, tmp_path_factory):
    """Run folders of every class, trained a little; "signed" selects some negative means."""
    run = RunConfig(
        model=str(tiny_lm_dir),
        data=text,
        hook="blocks.1.hook_resid_post",
        steps=12,
        batch_size=32,
        n_ctxs=8,
        ctx_len=32,
        eval_tokens=64,
        eval_documents=4,
        save_dir=str(tmp_path_factory.mktemp("runs")),
    )
    # A threshold is set by half of the run, without which BatchTopK encodes nothing.
    saes = {
        "signed": SAEConfig("vsae", dict_size=F),
        "vsae": SAEConfig("vsae_top_k", k=K, dict_size=F, posterior="learned"),
        "rectified": SAEConfig("vsae_top_k", k=F, dict_size=F, rectify=True),
        "vaease": SAEConfig("vaease", dict_size=F),
        "top_k": SAEConfig("top_k", k=K, dict_size=F),
        "batch_top_k": SAEConfig("batch_top_k", k=K, dict_size=F),
        "relu": SAEConfig("relu", dict_size=F),
        "jump_relu": SAEConfig("jump_relu", dict_size=F),
        "matryoshka": SAEConfig("matryoshka", k=K, dict_size=F, group_fractions=(0.5, 0.5)),
    }
    return train(run, saes), run


@pytest.fixture
def folder_of(trained, tmp_path):
    """A copy of a run folder, that a test may spoil."""

    def copy(name):
        shutil.copytree(trained[0][name], tmp_path / name)
        return tmp_path / name

    return copy


@pytest.fixture
def x():
    return 3 * t.randn(200, D, generator=t.Generator().manual_seed(0))


def edit_config(folder, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["trainer"] |= changes
    path.write_text(json.dumps(config))


def edit_weights(folder, change):
    state = t.load(folder / "ae.pt")
    change(state)
    t.save(state, folder / "ae.pt")


def without_negatives(sae, x):
    """What a plain TopK SAE makes of the weights, by its equation, in (features, x_hat)."""
    mu = (x - sae.b_dec) @ sae.encoder.weight.T + sae.encoder.bias
    kth = mu.sort(dim=1).values[:, -int(sae.k), None]
    f = t.where(mu >= kth, mu, 0.0).clamp_min(0)
    return f, f @ sae.decoder.weight.T + sae.b_dec


def files_under(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# --- exactness


@pytest.mark.parametrize("name", ["vsae", "rectified", "top_k"])
@pytest.mark.parametrize("form", FORMATS)
def test_an_export_without_negative_activations_is_exact(form, name, folder_of):
    exported = export(folder_of(name), form, tokens=500)
    assert exported.difference.reconstruction <= 1e-6
    assert (exported.difference.codes, exported.difference.tokens) == (0, 500)
    assert exported.folder.name == form


@pytest.mark.parametrize("form", FORMATS[:-1])
def test_one_with_negative_activations_is_refused_and_leaves_nothing(form, folder_of):
    folder = folder_of("signed")
    before = files_under(folder)
    with pytest.raises(UserError, match=r"not exact.*rectify=False.*--allow-inexact"):
        export(folder, form, tokens=500)
    assert files_under(folder) == before
    assert not (folder / "exports").exists()


def test_the_difference_is_what_a_direct_computation_gives(folder_of, trained):
    folder, run = folder_of("signed"), trained[1]
    exported = export(folder, "dictionary-learning", allow_inexact=True, tokens=400)
    sae = load_dictionary(folder)[0]
    buffer, _ = held_out(run, *open_model(run), 400)
    x = next(buffer)
    f, x_hat = sae.encode(x), sae(x)
    other_f, other_x_hat = without_negatives(sae, x)
    relative = (x_hat - other_x_hat).norm(dim=1) / x_hat.norm(dim=1)
    assert exported.difference.reconstruction == pytest.approx(relative.max().item(), rel=1e-4)
    assert exported.difference.codes == ((f - other_f).abs() > 1e-4).any(1).double().mean().item()
    assert exported.difference.reconstruction > 0.01
    record = json.loads((exported.folder / "config.json").read_text())["export"]
    assert record["max_relative_difference"] == exported.difference.reconstruction
    assert not (exported.folder / "metrics.json").exists(), "those are the signed SAE's"


def test_measure_counts_the_tokens_whose_code_differs():
    sae = AutoEncoderTopK(D, F, K)
    other = AutoEncoderTopK(D, F, K)
    other.load_state_dict(sae.state_dict())
    x = t.eye(D)
    first = int(sae.encode(x)[0].argmax())
    with t.no_grad():
        other.encoder.bias[first] += 1e-3
    expected = (sae.encode(x) - other.encode(x)).abs().amax(1) > 1e-5
    assert 0 < expected.sum() < D
    assert measure(sae, other, x.split(5)).codes == expected.double().mean().item()


# --- what is written


def test_upstream_reads_a_vsae_as_its_own_top_k(folder_of, x):
    folder = folder_of("vsae")
    out = export(folder, "dictionary-learning", tokens=200).folder
    theirs, config = load_upstream(str(out), "cpu")
    ours = load_dictionary(folder)[0]
    assert type(theirs) is AutoEncoderTopK
    assert config["trainer"]["trainer_class"] == "TopKTrainer"
    f, x_hat = without_negatives(ours, x)
    t.testing.assert_close(theirs.encode(x), f, rtol=1e-5, atol=1e-5)
    t.testing.assert_close(theirs(x), x_hat, rtol=1e-5, atol=1e-5)
    assert theirs.threshold == ours.threshold
    assert json.loads((out / "metrics.json").read_text())["tokens"] == 64


@pytest.mark.parametrize("name", ["batch_top_k", "relu", "jump_relu", "matryoshka"])
def test_upstreams_other_classes_stay_what_they_are(name, folder_of, x):
    folder = folder_of(name)
    out = export(folder, "dictionary-learning", tokens=200).folder
    theirs, original = load_upstream(str(out), "cpu")[0], load_upstream(str(folder), "cpu")[0]
    assert type(theirs) is type(original)
    assert t.equal(theirs(x), original(x))


@pytest.mark.parametrize("name", ["signed", "rectified", "top_k"])
def test_the_safetensors_states_an_equation_that_holds(name, folder_of, x):
    folder = folder_of(name)
    out = export(folder, "safetensors", tokens=200).folder
    config = json.loads((out / "config.json").read_text())
    weights = load_file(out / "sae.safetensors")
    for key, shape in config["shapes"].items():
        assert list(weights[key].shape) == [config[side] for side in shape]
    mu = (x - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]
    f = t.where(mu >= mu.sort(dim=1).values[:, -config["k"], None], mu, 0.0)
    if config["rectify"]:
        f = f.clamp_min(0)
    ours = load_dictionary(folder)[0]
    t.testing.assert_close(f @ weights["W_dec"] + weights["b_dec"], ours(x), rtol=1e-5, atol=1e-5)
    assert config["hook_name"] == "blocks.1.hook_resid_post"


@pytest.mark.parametrize("form", FORMATS)
def test_no_export_tells_where_the_files_lay(form, folder_of, tiny_lm_dir, text):
    exported = export(folder_of("top_k"), form, tokens=200)
    assert {"model", "data"} <= set(exported.cut_paths)
    for path in exported.folder.rglob("*.json"):
        written = path.read_text()
        assert str(Path(text).parent) not in written
        assert str(tiny_lm_dir.parent) not in written
    (config, *_) = exported.folder.rglob("c*f*g.json")
    assert tiny_lm_dir.name in config.read_text()


def test_a_block_s_input_is_the_output_of_the_one_before_to_sae_bench(folder_of):
    folder = folder_of("top_k")
    path = folder / "config.json"
    path.write_text(path.read_text().replace("blocks.1.hook_resid_post", "blocks.1.hook_resid_pre"))
    out = export(folder, "sae-bench", tokens=200).folder
    trainer = json.loads(next(out.rglob("config.json")).read_text())["trainer"]
    assert (trainer["layer"], trainer["submodule_name"]) == (0, "blocks.0.hook_resid_post")


def test_an_upstream_folder_needs_model_and_hook(folder_of, tiny_lm_dir, text):
    """Upstream's `trainSAE` writes no "run" and no hook point that we know."""
    folder = folder_of("top_k")
    path = folder / "config.json"
    config = json.loads(path.read_text())
    del config["run"], config["trainer"]["submodule_name"]
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match="give --model and --hook"):
        export(folder, "sae-lens")
    place = {"model": str(tiny_lm_dir), "hook": "blocks.1.hook_resid_post", "data": text}
    out = export(folder, "sae-lens", tokens=200, **place).folder
    metadata = json.loads((out / "cfg.json").read_text())["metadata"]
    assert metadata["hook_name"] == "blocks.1.hook_resid_post"


def test_the_name_that_upstream_s_demo_gives_a_hook_is_no_contradiction(folder_of):
    folder = folder_of("top_k")
    edit_config(folder, submodule_name="resid_post_layer_1")
    with pytest.raises(UserError, match=r"no hook point 'resid_post'"):
        export(folder, "sae-bench", hook="resid_post")
    hook = "blocks.1.hook_resid_post"
    assert export(folder, "sae-bench", tokens=200, hook=hook).difference.is_exact


def test_an_empty_folder_may_be_given(folder_of, tmp_path):
    (tmp_path / "out").mkdir()
    export(folder_of("top_k"), "sae-lens", tmp_path / "out", tokens=200)
    assert files_under(tmp_path / "out") == ["cfg.json", "sae_weights.safetensors"]


def test_a_language_model_that_has_moved_can_be_given(folder_of, tiny_lm_dir, tmp_path):
    folder = folder_of("top_k")
    gone = "/gone/" + tiny_lm_dir.name
    path = folder / "config.json"
    path.write_text(path.read_text().replace(str(tiny_lm_dir), gone))
    with pytest.raises(UserError, match=r"top_k: an export is compared.*/gone/.*--model"):
        export(folder, "sae-lens")
    assert export(folder, "sae-lens", tokens=200, model=str(tiny_lm_dir)).difference.is_exact


def test_a_short_held_out_text_is_compared_as_far_as_it_goes(folder_of, caplog):
    difference = export(folder_of("top_k"), "sae-lens", tokens=50_000).difference
    assert 0 < difference.tokens < 50_000
    assert f"compared on {difference.tokens} tokens" in caplog.text


# --- mistakes


def no_spoiling(folder):
    pass


def stretch(folder):
    def times_1_5(state):
        state["W_dec" if "W_dec" in state else "decoder.weight"].mul_(1.5)

    edit_weights(folder, times_1_5)


def cut_short(folder):
    path = folder / "ae.pt"
    path.write_bytes(path.read_bytes()[:1000])


def not_finite(folder):
    edit_weights(folder, lambda state: state["b_dec"].fill_(float("nan")))


def overflowing(folder):
    edit_weights(folder, lambda state: state["encoder.bias"].fill_(3e38))


def narrow(folder):
    def keep_half(state):
        for key in ("encoder.weight", "encoder.bias"):
            state[key] = state[key][:8]
        state["decoder.weight"] = state["decoder.weight"][:, :8]

    edit_weights(folder, keep_half)
    edit_config(folder, dict_size=8)


def rename_trainer(folder):
    edit_config(folder, trainer_class="MyTrainer")


@pytest.mark.parametrize(
    ("name", "spoil", "flags", "message"),
    [
        ("vsae", no_spoiling, "--format sea-lens", r"sea-lens.*'sae-lens'"),
        ("vsae", no_spoiling, "", r"--format \{sae-bench"),
        ("vsae", no_spoiling, "--format sae-lens --tokens 0", r"tokens=0: expected above 0"),
        ("vsae", no_spoiling, "--format sae-lens --model embedded", r"not on embedded"),
        ("vsae", no_spoiling, "--format sae-lens --data ./none.txt", r"none\.txt"),
        ("vsae", no_spoiling, "--format sae-lens --out .", r"not empty.*--out"),
        ("vsae", no_spoiling, "--format sae-lens --out vsae/ae.pt/x", r"can't be written.*--out"),
        ("vsae", cut_short, "--format sae-lens", r"ae\.pt: incomplete or damaged"),
        ("vsae", shutil.rmtree, "--format sae-lens", r"no such folder"),
        ("vsae", stretch, "--format sae-lens", r"norms are 1\.5 to 1\.5.*safetensors"),
        ("vsae", stretch, "--format sae-bench", r"norms are 1\.5 to 1\.5"),
        ("jump_relu", stretch, "--format sae-bench", r"norms are 1\.5 to 1\.5"),
        ("vsae", not_finite, "--format safetensors", r"NaN or infinite"),
        ("vsae", overflowing, "--format safetensors", r"reconstructions are not finite"),
        ("top_k", narrow, "--format sae-bench", r"dict_size=8.*activation_dim=16"),
        ("relu", no_spoiling, "--format sae-lens", r"takes TopK SAEs.*AutoEncoder"),
        ("vaease", no_spoiling, "--format safetensors", r"is a VAEase.*load_dictionary"),
        ("relu", rename_trainer, "--format sae-bench", r"no loader.*'MyTrainer'"),
    ],
    ids=lambda value: value if isinstance(value, str) else getattr(value, "__name__", None),
)
def test_a_mistake_is_one_line(name, spoil, flags, message, folder_of, monkeypatch, capsys):
    folder = folder_of(name)
    spoil(folder)
    monkeypatch.chdir(folder.parent)
    assert main(["export", name, *flags.split()]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(message, line), line
    assert not (folder / "exports").exists()
    assert not list(folder.parent.glob(".export.*"))


def test_no_layer_s_output_is_none_that_sae_bench_could_read(folder_of):
    folder = folder_of("top_k")
    path = folder / "config.json"
    path.write_text(path.read_text().replace("blocks.1.hook_resid_post", "blocks.0.hook_resid_pre"))
    with pytest.raises(UserError, match=r"blocks\.0\.hook_resid_pre.*hook_resid_post"):
        export(folder, "sae-bench", tokens=200)


@pytest.mark.parametrize("form", FORMATS)
def test_a_full_disk_leaves_nothing_behind(form, folder_of, monkeypatch):
    folder = folder_of("vsae")
    before = files_under(folder)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))  # ae.pt needs more
    try:
        with pytest.raises(UserError, match=r"can't be written.*nothing was written"):
            export(folder, form, tokens=200)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files_under(folder) == before


# --- local paths


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("/home/jane/models/tiny", "tiny"),
        ("~/text.txt", "text.txt"),
        ("../models/tiny/", "tiny"),
        ("./tiny", "tiny"),
        ("C:\\Users\\jane\\tiny", "tiny"),
        ("work/models/tiny", "tiny"),
        ("/", "local"),
        ("EleutherAI/pythia-70m", "EleutherAI/pythia-70m"),
        ("embedded", "embedded"),
        ("blocks.0.hook_resid_post", "blocks.0.hook_resid_post"),
        ("https://host/a/b.jsonl", "https://host/a/b.jsonl"),
    ],
)
def test_local_paths_are_cut_to_their_names_and_hub_names_stay(given, expected):
    content = {"run": {"model": given, "n": 3}, "more": [given, None]}
    cleaned, keys = without_local_paths(content)
    assert cleaned == {"run": {"model": expected, "n": 3}, "more": [expected, None]}
    assert keys == ([] if given == expected else ["model", "more"])


# --- SAELens and SAE Bench


def test_sae_lens_loads_a_vsae_and_agrees(folder_of, tiny_lm_dir, x):
    sae_lens = pytest.importorskip("sae_lens", reason="needs SAELens (the SAE Bench environment)")
    folder = folder_of("vsae")
    out = export(folder, "sae-lens", tokens=200).folder
    theirs = sae_lens.SAE.load_from_disk(out).double()
    ours = load_dictionary(folder)[0].double()
    assert type(theirs).__name__ == "TopKSAE"
    x = x.double()
    f, x_hat = without_negatives(ours, x)
    t.testing.assert_close(theirs.encode(x), f, rtol=0, atol=1e-5)
    t.testing.assert_close(theirs(x.view(4, 50, D)), x_hat.view(4, 50, D), rtol=0, atol=1e-5)
    metadata = theirs.cfg.metadata
    assert metadata.model_name == tiny_lm_dir.name
    assert metadata.hook_name == "blocks.1.hook_resid_post"
    assert (metadata.context_size, metadata.prepend_bos) == (32, False)
    theirs.fold_W_dec_norm()  # what SAEDashboard does first
    t.testing.assert_close(theirs(x), x_hat, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", EVERY_CLASS)
def test_sae_bench_s_own_loader_reads_an_export(name, folder_of, tiny_lm_dir, x, monkeypatch):
    """Unmodified, unregistered, offline, in the export as its working directory."""
    runner = pytest.importorskip(
        "sae_bench.custom_saes.run_all_evals_dictionary_learning_saes",
        reason="needs SAE Bench (the SAE Bench environment)",
    )
    folder = folder_of(name)
    out = export(folder, "sae-bench", allow_inexact=True, tokens=200).folder
    monkeypatch.chdir(out)
    (location,) = runner.get_all_hf_repo_autoencoders("local/saes")
    assert location == name
    theirs = runner.load_dictionary_learning_sae(
        "local/saes", location, tiny_lm_dir.name, "cpu", t.float32
    )
    ours = load_dictionary(folder)[0]
    f = ours.encode(x) if name not in ("signed", "vsae") else without_negatives(ours, x)[0]
    assert f.count_nonzero() > 0
    t.testing.assert_close(theirs.encode(x), f, rtol=1e-5, atol=1e-5)
    t.testing.assert_close(theirs(x), ours.decode(f), rtol=1e-5, atol=1e-5)
    assert theirs.cfg.hook_name == "blocks.1.hook_resid_post"
    architecture = "topk" if name in ("signed", "vsae", "top_k") else theirs.cfg.architecture
    assert theirs.cfg.architecture == architecture
