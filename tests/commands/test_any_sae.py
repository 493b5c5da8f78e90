"""The commands that measure, on SAEs of other libraries: what they print and write, and what they refuse."""

import json
import re
import shutil
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch as t
import transformers
from dictionary_learning.training import trainSAE
from export_folders import of_gemma_scope, of_sae_lens, of_sparsify
from guide import ROOT, lines, our_words
from measurement import of_one_setting
from small_commands import content, refused

from dictionary_learning_ext import (
    VariationalTopKTrainer,
    agreement,
    features_of,
    load_dictionary,
    trainer_options,
)
from dictionary_learning_ext.cli import main
from dictionary_learning_ext.export.exporter import export
from dictionary_learning_ext.run_folder import sae_names
from dictionary_learning_ext.run_folder.sae_folder import find_sae

HOOK = "blocks.0.hook_resid_post"
QUICK = ["--tokens", "300"]


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """The exports of a TopK SAE for SAELens and for sparsify, by the library."""
    base = tmp_path_factory.mktemp("exports")
    folder = shutil.copytree(trained / "top_k", base / "top_k")
    forms = {"SAELens": "sae-lens", "sparsify": "sparsify"}
    places = {
        name: export(folder, form, base / form, tokens=64).folder for name, form in forms.items()
    }
    return places | {"sparsify": places["sparsify"] / "layers.1", "ours": folder}


@pytest.fixture
def where(tiny_lm_dir, text):
    return ["--model", str(tiny_lm_dir), "--data", text]


@pytest.fixture
def sparse(tmp_path):
    """Two SAEs of sparsify, of two sizes. Their files name no model."""
    return [
        of_sparsify(tmp_path / f"seed{seed}" / "layers.0", seed, f_size)
        for seed, f_size in ((0, 32), (1, 48))
    ]


@pytest.mark.parametrize("library", ["SAELens", "sparsify"])
def test_an_export_is_measured_as_the_run_folder_it_is_of(
    library, exported, where, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    theirs = exported[library]
    out, before = find_sae(theirs).results, content(theirs)
    assert main(["eval", str(theirs), "--tokens", "200", *where]) == 0
    assert f"wrote {out / 'metrics.json'}" in capsys.readouterr().out
    assert main(["eval", str(exported["ours"]), "--tokens", "200"]) == 0
    found, expected = (
        json.loads((folder / "metrics.json").read_text()) for folder in (out, exported["ours"])
    )
    for name in ("fve", "l0", "loss_reconstructed", "alive"):
        assert found[name] == pytest.approx(expected[name], rel=1e-4)

    # What it was measured on is remembered: no flag is needed.
    capsys.readouterr()
    assert main(["compare", str(exported["ours"]), str(theirs)]) == 0
    assert capsys.readouterr().out.count(f"{found['fve']:.4f}") == 2
    assert main(["report", str(theirs), "--against", str(exported["ours"]), *QUICK]) == 0
    assert f"{found['fve']:.4f}" in (out / "report.html").read_text(encoding="utf-8")
    assert main(["reproduce", str(theirs), "--csv", str(tmp_path / "own.csv")]) == 0
    assert len((tmp_path / "own.csv").read_text().splitlines()) == 33
    assert main(["reproduce", str(theirs)]) == 0
    assert (out / "features.csv").is_file()
    assert content(theirs) == before


@pytest.mark.parametrize("tokens", ["0", "200"])
def test_one_of_ours_and_one_of_saelens(tokens, exported, where, tmp_path, capsys):
    """The same SAE, so everything returns."""
    folders = [str(exported["ours"]), str(exported["SAELens"])]
    capsys.readouterr()
    assert main(["reproduce", *folders, "--tokens", tokens, "--all", *where]) == 0
    out = capsys.readouterr().out
    rows = {line.split("  ")[0]: line.split()[-1] for line in out.splitlines() if line}
    assert rows["PW-MCC"] == "1.0000"
    assert ("Jaccard index" in rows) == (tokens != "0")
    if tokens != "0":
        assert rows["Jaccard index"] == "1.0000"
    json_flags = ["--tokens", "0", "--json", *where]
    assert main(["reproduce", *folders, *json_flags]) == 0
    assert of_one_setting(capsys.readouterr().out)["mean"]["direction_0.9"] == 1


@pytest.mark.parametrize("tokens", ["0", "200"])
def test_two_of_sparsify_of_two_sizes(tokens, sparse, where, capsys):
    command = ["reproduce", *map(str, sparse), "--tokens", tokens, "--json"]
    if tokens == "0":
        assert main(command) == 0  # neither model nor text is asked for
    else:
        line = refused(command, capsys)
        assert "which language model" in line
        assert "lm_name" not in line
        assert "give model; or use tokens=0" in line
        assert main([*command, *where]) == 0
    found = of_one_setting(capsys.readouterr().out)
    assert found["tokens"] == int(tokens)
    small, large = found["saes"].values()
    assert large["as_direction"]["0.7"] == pytest.approx(small["as_direction"]["0.7"] * 32 / 48)
    a, b = (load_dictionary(folder)[0] for folder in sparse)
    assert found["pairs"][0]["pw_mcc"] == pytest.approx(agreement(a, b).pair.pw_mcc)


def test_results_go_to_another_place_on_request(sparse, trained, where, tmp_path, capsys):
    folders = [*sparse, of_sae_lens(tmp_path / "third", hook_name=HOOK)]
    out, folders = tmp_path / "elsewhere", [*map(str, folders)]
    assert main(["eval", *folders, "--tokens", "64", *where, "--out", str(out)]) == 0
    written = [line.removeprefix("wrote ") for line in capsys.readouterr().out.splitlines()[-3:]]
    assert [Path(path).parent for path in written] == [
        find_sae(one).results_in(out) for one in folders
    ]
    assert main(["eval", *folders, "--tokens", "32", *where, "--out", str(out)]) == 0
    assert all(list((Path(path).parent / "evaluations").iterdir()) for path in written)
    run = trained / "top_k"
    before = content(run)
    assert main(["eval", str(run), "--tokens", "64", "--out", str(out)]) == 0
    assert (find_sae(run).results_in(out) / "metrics.json").is_file()
    assert content(run) == before


def test_features_in_python(exported, tiny_lm_dir, text):
    ours = features_of(exported["ours"], tokens=200)
    theirs = features_of(
        exported["SAELens"],
        tiny_lm_dir,
        hook="blocks.1.hook_resid_post",
        text=[Path(text).read_text()],
    )
    assert theirs.dictionary.dict_size == 32
    again = features_of(
        load_dictionary(exported["SAELens"])[0],
        tiny_lm_dir,
        ["the cat"],
        hook="blocks.1.hook_resid_post",
    )
    assert t.equal(again.directions, theirs.directions)
    assert ours.directions.allclose(theirs.directions, atol=1e-6)
    assert agreement(exported["ours"], exported["SAELens"]).pair.pw_mcc == pytest.approx(1)


def test_nothing_is_written_into_a_foreign_folder(sparse, where, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = str(sparse[0])
    before = content(sparse[0])
    assert f"run `vsae eval {folder}`" in refused(["compare", folder], capsys)
    for command in ("eval", "reproduce"):
        assert main([command, folder, "--tokens", "64", *where]) == 0
    assert main(["report", folder, *QUICK, *where]) == 0
    written = {path.name for path in find_sae(folder).results.iterdir()}
    assert written >= {"metrics.json", "features.csv", "report.html"}
    for words in (["export", folder, "--format=sae-lens"], ["push", folder, "me/a", "--dry-run"]):
        line = refused(words, capsys)
        assert f"an SAE of sparsify; `vsae {words[0]}` takes run folders" in line
    assert content(sparse[0]) == before


def test_one_whose_files_say_nothing_of_left_out_tokens_is_read_as_the_other(
    exported, where, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    ours = shutil.copytree(exported["ours"], tmp_path / "ours")
    config = json.loads((ours / "config.json").read_text())
    config["run"]["settings"]["max_norm_multiple"] = 4.0
    (ours / "config.json").write_text(json.dumps(config))
    theirs = shutil.copytree(exported["SAELens"], tmp_path / "theirs")
    settings = json.loads((theirs / "cfg.json").read_text())
    del settings["metadata"]["max_norm_multiple"]  # SAELens's own files have none
    (theirs / "cfg.json").write_text(json.dumps(settings))
    both = [str(theirs), str(ours)]
    assert main(["reproduce", *both, "--tokens", "200", "--json", *where]) == 0
    assert of_one_setting(capsys.readouterr().out)["pairs"][0]["jaccard"] == 1
    flags = ["--tokens", "64", *where]
    assert main(["eval", both[0], "--max-norm-multiple", "4", *flags]) == 0
    assert main(["reproduce", *both, "--tokens", "200", *where]) == 0


@pytest.mark.parametrize("library", ["SAELens", "sparsify"])
def test_what_no_file_names_is_asked_for_by_its_flag(library, tmp_path, where, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if library == "SAELens":
        folder = of_sae_lens(tmp_path / "theirs", hook_name=None)
    else:
        folder = of_sparsify(tmp_path / "layers.0.mlp")
    command = ["eval", str(folder), "--tokens", "64"]
    assert "; give model and hook (" in refused(command, capsys)
    assert "; give hook (" in refused([*command, *where], capsys)
    assert main([*command, *where, "--hook", HOOK]) == 0
    capsys.readouterr()
    assert main(command) == 0, "it is remembered"


def test_two_places_are_refused_unless_the_flag_says_that_they_are_one(tmp_path, where, capsys):
    hooks = ["blocks.1.hook_resid_pre", HOOK, "blocks.1.hook_resid_post"]
    names = ["x/gpt2", "gpt2-small", "y/gpt2"]
    saes = [
        of_sae_lens(tmp_path / str(seed), seed, hook_name=hook, model_name=name)
        for seed, (hook, name) in enumerate(zip(hooks, names, strict=True))
    ]
    line = refused(["reproduce", saes[0], saes[1], "--tokens", "0"], capsys)
    assert "model='gpt2-small', but" in line
    command = ["reproduce", str(saes[0]), "--tokens", "0", "--model", "gpt2"]
    assert main([*command, str(saes[1])]) == 0, "a block's input is the output of the one before"
    assert "hook='blocks.1.hook_resid_post'" in refused([*command, saes[2]], capsys)


# --- the guide's commands of public SAEs

WIDTH = 16  # of the tiny language model below


@pytest.fixture(scope="module")
def deep_lm_dir(tiny_lm_dir, tmp_path_factory):
    """The tiny language model with as many layers as the guide's commands name."""
    folder = shutil.copytree(tiny_lm_dir, tmp_path_factory.mktemp("deep") / "lm")
    config = transformers.AutoConfig.from_pretrained(folder, num_hidden_layers=13)
    assert config.hidden_size == WIDTH
    t.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def as_gemma_scope(folder, seed, f_size, itself):
    of_gemma_scope(folder, WIDTH, f_size)


def as_sae_lens(folder, seed, f_size, itself):
    about = {"hook_name": "blocks.8.hook_resid_pre", "model_name": "gpt2-small"}
    if not itself:
        of_sae_lens(folder, seed, f_size, d=WIDTH, **about)
        return
    sae_lens = pytest.importorskip("sae_lens", reason="needs SAELens (the SAE Bench environment)")
    sae = sae_lens.StandardSAE(sae_lens.StandardSAEConfig(d_in=WIDTH, d_sae=f_size))
    for name, value in about.items():
        setattr(sae.cfg.metadata, name, value)
    randomised(sae, seed).save_model(folder)


def as_sparsify(folder, seed, f_size, itself):
    if not itself:
        of_sparsify(folder, seed, f_size)
        return
    sparsify = pytest.importorskip("sparsify", reason="needs sparsify (the SAE Bench environment)")
    config = sparsify.SparseCoderConfig(num_latents=f_size, k=4)
    randomised(sparsify.SparseCoder(WIDTH, config), seed).save_to_disk(folder)


def randomised(sae, seed):
    generator = t.Generator().manual_seed(seed)
    with t.no_grad():
        for value in sae.parameters():
            value.copy_(t.randn(value.shape, generator=generator))
    return sae


WRITERS = {"google": as_gemma_scope, "jbloom": as_sae_lens, "dwightware4": as_sparsify}


def commands_of_public_saes():
    page = (ROOT / "docs/any_sae.md").read_text(encoding="utf-8")
    _, _, section = page.partition("## Two public ones, without training")
    kind, block = re.findall(r"```(\w+)\n(.*?)```", section, re.S)[0]
    assert kind == "text", "it needs the hub"
    return [words for line in lines(block) if (words := our_words(line)) is not None]


@pytest.mark.parametrize(
    "itself",
    [
        pytest.param(False, id="in its layout"),
        pytest.param(True, id="that it wrote itself", marks=pytest.mark.extra),
    ],
)
@pytest.mark.parametrize("owner", WRITERS)
def test_public_saes_get_from_the_hubs_names_to_the_table(
    owner, itself, deep_lm_dir, text, tmp_path, monkeypatch, capsys
):
    if itself and owner == "google":
        pytest.skip("no library writes Gemma Scope's files")
    (words,) = (words for words in commands_of_public_saes() if words[1].startswith(owner))
    names, hub = words[1:3], tmp_path / "hub"
    for seed, name in enumerate(names):
        is_larger = owner != "dwightware4" and seed == 1
        WRITERS[owner](hub / name, seed, 48 if is_larger else 32, itself)
    downloads = []

    def download(repo, *, allow_patterns):
        assert any((hub / repo).glob(allow_patterns[0].rpartition("/")[0]))
        downloads.append(repo)
        return str(hub / repo)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(sae_names, "_releases", dict)
    monkeypatch.setattr(sae_names, "_fetched", sae_names._fetched.__wrapped__)
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()  # sparsify prints when it is imported
    assert main([*words, "--tokens", "0", "--json"]) == 0
    directions = of_one_setting(capsys.readouterr().out)
    assert len(directions["saes"]) == 2
    assert downloads
    where = ["--model", str(deep_lm_dir), "--data", text]  # the last of two equal flags counts
    assert main([*words, "--tokens", "300", *where]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for what in ("as a direction", "in what they do", "FVE", "random tokens"):
        assert what in said
    hook = words[words.index("--hook") :][:2] if "--hook" in words else []
    one = ["reproduce", names[0], *hook, *where, "--tokens", "300", "--csv", "own.csv"]
    assert main(one) == 0
    assert len((tmp_path / "own.csv").read_text().splitlines()) == 33


def test_an_sae_of_own_activations_needs_nothing_but_them(tmp_path, monkeypatch, capsys, caplog):
    """`trainSAE` was given batches: its lm_name and layer are of no model."""
    monkeypatch.chdir(tmp_path)
    x_ND = t.randn(400, 16, generator=t.Generator().manual_seed(0))
    (tmp_path / "acts").mkdir()
    np.save("acts/x.npy", x_ND.numpy())
    options = trainer_options("recommended", activation_dim=16, dict_size=32, k=4, steps=3)
    place = {"lm_name": "mine", "layer": 0, "device": "cpu"}
    config = {"trainer": VariationalTopKTrainer, **place, **options}
    trainSAE(iter(x_ND.split(50)), [config], 3, save_dir="runs/x", device="cpu")
    folder = "runs/x/trainer_0"
    line = refused(["eval", folder], capsys)
    assert "lm_name='mine'" in line
    assert "activations=FOLDER" in line
    caplog.clear()
    assert main(["eval", folder, "--activations", "acts"]) == 0
    assert [each.message for each in caplog.records if "trust" in each.message] == []
    assert find_sae(folder).required_metrics["fve"] is not None
    assert main(["reproduce", folder, "--activations", "acts"]) == 0
    assert main(["export", folder, "--format", "sae-lens", "--activations", "acts"]) == 0
