"""An export against the SAE that it is of: how exact it is, what it leaves behind, mistakes."""

import json
import os
import re
import resource
import shutil

import numpy as np
import pytest
import torch as t
import transformers
from export_folders import (
    FORMATS,
    edit_config,
    edit_weights,
    files_under,
    without_negatives,
)
from small_commands import content
from tokenizers.processors import TemplateProcessing

from dictionary_learning_ext import load_dictionary
from dictionary_learning_ext.activations.inputs import open_inputs
from dictionary_learning_ext.cli import main
from dictionary_learning_ext.errors import ConfigError, UserError
from dictionary_learning_ext.evaluation.metrics import changes_since
from dictionary_learning_ext.export.exporter import export
from dictionary_learning_ext.run_folder.sae_folder import find_sae


def test_a_threshold_that_was_never_set_is_kept_by_upstreams_own_class(folder_of):
    folder = folder_of("batch_top_k")
    without_a_threshold(folder)
    assert export(folder, "dictionary-learning", tokens=200).difference.codes == 0


@pytest.mark.parametrize("name", ["jump_relu", "gated", "relu_new"])
def test_a_decoder_of_any_norms_is_exact_where_no_number_of_features_is_kept(name, folder_of):
    folder = folder_of(name)
    stretch(folder)
    difference = export(folder, "sae-lens", tokens=200).difference
    assert (difference.is_exact, difference.codes) == (True, 0)


@pytest.mark.parametrize("name", ["vsae", "rectified", "top_k"])
@pytest.mark.parametrize("form", FORMATS)
def test_an_export_without_negative_activations_is_exact(form, name, folder_of):
    exported = export(folder_of(name), form, tokens=500)
    assert exported.difference.reconstruction <= 1e-6
    assert (exported.difference.codes, exported.difference.tokens) == (0, 500)
    assert exported.folder.name == form


def test_the_difference_is_what_a_direct_computation_gives(folder_of, trained):
    folder, run = folder_of("signed"), trained[1]
    exported = export(folder, "dictionary-learning", allow_inexact=True, tokens=400)
    sae = load_dictionary(folder)[0]
    x = next(open_inputs(run, [run.hook]).held_out(run.hook, 400).batches)
    f, x_hat = sae.encode(x), sae(x)
    other_f, other_x_hat = without_negatives(sae, x)
    relative = (x_hat - other_x_hat).norm(dim=1) / x_hat.norm(dim=1)
    assert exported.difference.reconstruction == pytest.approx(relative.max().item(), rel=1e-4)
    assert exported.difference.codes == ((f - other_f).abs() > 1e-4).any(1).double().mean().item()
    assert exported.difference.reconstruction > 0.01
    record = json.loads((exported.folder / "config.json").read_text())["export"]
    assert record["max_relative_difference"] == exported.difference.reconstruction
    assert not (exported.folder / "metrics.json").exists(), "those are the signed SAE's"


def test_the_metrics_of_an_exact_export_are_of_its_own_weights(folder_of):
    exported = find_sae(export(folder_of("rectified"), "dictionary-learning", tokens=200).folder)
    assert exported.metrics is not None
    assert changes_since(exported, exported.metrics) == []


@pytest.mark.parametrize("form", ["sae-lens", "sparsify"])
def test_an_export_has_the_mode_that_the_umask_says(form, folder_of):
    before = os.umask(0o027)
    try:
        there = export(folder_of("top_k"), form, tokens=200).folder
    finally:
        os.umask(before)
    for path in [there, *there.rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~0o027, path


def test_a_folder_of_run_folders_is_exported_run_by_run(trained, tmp_path, capsys):
    names = ("batch_top_k", "relu", "top_k", "vaease")
    for name in names:
        shutil.copytree(trained[0][name], tmp_path / name)
    damaged = shutil.copytree(trained[0]["relu"], tmp_path / "a_damaged_one") / "config.json"
    damaged.write_text("{")
    argv = ["export", str(tmp_path), "--format", "sae-lens", "--tokens", "200"]
    assert main(argv) == 2
    said = capsys.readouterr()
    assert "2 of 5 SAEs" in said.err
    assert "VAEase can't be exported" in said.out
    assert f"not exported: {damaged}: " in said.out
    there = {name: tmp_path / name / "exports" / "sae-lens" for name in names[:3]}
    for path in there.values():
        assert files_under(path) == ["cfg.json", "sae_weights.safetensors"]
    for name in ("vaease", "a_damaged_one"):
        shutil.rmtree(tmp_path / name)
    assert main(argv) == 0, "the same exports"
    shutil.copy(tmp_path / "relu" / "ae.pt", kept := tmp_path / "kept.pt")
    weights = t.load(kept, weights_only=True)
    t.save({name: 2 * value for name, value in weights.items()}, tmp_path / "relu" / "ae.pt")
    capsys.readouterr()
    assert main(argv) == 2, "one is of other weights"
    said = capsys.readouterr()
    assert "1 of 3 SAEs" in said.err
    assert "relu/exports/sae-lens': already there, and not this export" in said.out
    shutil.copy(kept, tmp_path / "relu" / "ae.pt")
    (tmp_path / "out" / "top_k").mkdir(parents=True)  # an empty folder may be given
    assert main([*argv, "--out", str(tmp_path / "out")]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == list(names[:3])
    assert "already there" not in capsys.readouterr().out
    assert files_under(tmp_path / "out" / "top_k") == ["cfg.json", "sae_weights.safetensors"]


def test_it_says_which_tokens_training_left_out_and_how_contexts_began(
    folder_of, tiny_lm_dir, tmp_path
):
    """For SAELens by its own names, and for sparsify in a file that its reader doesn't see."""
    folder = folder_of("top_k")
    model = shutil.copytree(tiny_lm_dir, tmp_path / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    bos = (tokenizer.bos_token, tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos[0]} $A", special_tokens=[bos]
    )
    tokenizer.save_pretrained(model)
    path = folder / "config.json"
    config = json.loads(path.read_text())

    def said(form, name, **settings):
        config["run"]["settings"] |= settings
        path.write_text(json.dumps(config))
        out = export(folder, form, tmp_path / f"{form}{len(settings)}", tokens=50, model=str(model))
        content = json.loads((out.folder / name).read_text())
        content = content.get("metadata", content)
        return [content[k] for k in ("prepend_bos", "exclude_special_tokens", "max_norm_multiple")]

    places = {"sae-lens": "cfg.json", "sparsify": "layers.1/export.json"}
    for form, name in places.items():
        assert said(form, name, max_norm_multiple=None) == [False, False, None]
    given = {"text_packing": "truncate", "remove_bos": True, "max_norm_multiple": 10.0}
    for form, name in places.items():
        assert said(form, name, **given) == [True, [bos[1]], 10.0]


def no_spoiling(folder):
    pass


def stretch(folder):
    def times_1_5(state):
        state["W_dec" if "W_dec" in state else "decoder.weight"].mul_(1.5)

    edit_weights(folder, times_1_5)


def overflowing(folder):
    edit_weights(folder, lambda state: state["encoder.bias"].fill_(3e38))


def without_a_threshold(folder):
    edit_weights(folder, lambda state: state["threshold"].fill_(-1.0))


def rename_trainer(folder):
    edit_config(folder, trainer_class="MyTrainer")


REFUSED = [
    ("vsae", no_spoiling, "--format sea-lens", "--format sea-lens: expected one of .*sae-lens"),
    ("vsae", no_spoiling, "--format sae-lens --out .", r"out='\.': already there, and not this"),
    ("vsae", no_spoiling, "--format sae-lens --out vsae/ae.pt/x", "can't be written.*another out"),
    ("vsae", stretch, "--format sae-lens", r"norms are 1\.5 to 1\.5.*dictionary-learning"),
    ("vsae", overflowing, "--format sae-lens", "not finite"),
    ("vaease", no_spoiling, "--format sae-lens", "VAEase .*load_dictionary"),
    ("batch_top_k", without_a_threshold, "--format sae-lens", "threshold .*dictionary-learning"),
    ("relu", rename_trainer, "--format sae-bench", "no loader.*'MyTrainer'"),
    (
        "magnitude",
        no_spoiling,
        "--format sparsify --allow-inexact",
        "largest values; use format=",
    ),
    (
        "signed",
        no_spoiling,
        "--format sae-bench",
        "not exact.*rectify=False.*allow_inexact=True to",
    ),
]


@pytest.mark.parametrize(
    ("name", "spoil", "flags", "message"),
    REFUSED,
    ids=[f"{name} {spoil.__name__} {flags}" for name, spoil, flags, _ in REFUSED],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    name, spoil, flags, message, folder_of, monkeypatch, capsys
):
    folder = folder_of(name)
    spoil(folder)
    monkeypatch.chdir(folder.parent)
    before = files_under(folder.parent)
    assert main(["export", name, *flags.split()]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    (line,) = (each for each in said if each.strip() and not each.startswith("held-out: "))
    assert re.search(message, line), line
    assert files_under(folder.parent) == before
    assert not (folder / "exports").exists()
    assert not list(folder.parent.glob(".export.*"))


@pytest.mark.parametrize("form", FORMATS)
def test_the_same_export_again_succeeds_and_another_one_is_refused(form, folder_of, tmp_path):
    """As after a kill at the end of the first."""
    folder, out = folder_of("top_k"), tmp_path / "out"
    first = export(folder, form, out, tokens=64)
    before = content(out)
    assert export(folder, form, out, tokens=64) == first
    assert export(folder, form, out, tokens=96).difference.tokens == 96
    assert content(out) == before
    weights = t.load(folder / "ae.pt", weights_only=True)
    t.save(weights | {"b_dec": weights["b_dec"] + 1}, folder / "ae.pt")
    with pytest.raises(ConfigError, match=re.escape(str(out))):
        export(folder, form, out, tokens=64)
    assert content(out) == before


def test_an_sae_of_own_activations_is_compared_on_them(tmp_path):
    """No language model is known."""
    own, rows = tmp_path / "own", np.random.default_rng(0).standard_normal((2000, 16))
    own.mkdir()
    np.save(own / "x.npy", rows.astype("f4"))
    size = ["--steps=3", "--batch-size=32", "--n-ctxs=8", "--ctx-len=32", "--dict-size=32", "--k=4"]
    folder = str(tmp_path / "run")
    of = [f"--activations={own}", f"--save-dir={folder}", "--eval-tokens=0"]
    assert main(["train", *size, *of]) == 0
    for form in ("sae-lens", "dictionary-learning"):
        assert export(folder, form).difference.tokens == 100
    for form in ("sparsify", "sae-bench"):
        with pytest.raises(UserError, match="use format="):
            export(folder, form)


def test_what_a_killed_export_left_is_removed(folder_of, tmp_path):
    left = tmp_path / ".export.00000000"
    left.mkdir()
    (left / "ae.pt").touch()
    export(folder_of("top_k"), "sae-lens", tmp_path / "out", tokens=64)
    assert not left.exists()


@pytest.mark.parametrize("form", FORMATS)
def test_a_full_disk_leaves_nothing_behind(form, folder_of, monkeypatch):
    folder = folder_of("vsae")
    before = files_under(folder)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))  # ae.pt needs more
    try:
        with pytest.raises(UserError, match="choose another out"):
            export(folder, form, tokens=200)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files_under(folder) == before
