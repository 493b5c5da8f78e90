"""What an SAE can be named by: folders here, places on a stand-in for the hub, SAELens's releases; and where results are."""

import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch as t
import yaml
from export_folders import of_baker_li, of_gemma_scope, of_sae_lens, of_sparsify
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError

from dictionary_learning_ext import load_dictionary
from dictionary_learning_ext.errors import CheckpointError, HubError
from dictionary_learning_ext.run_folder import sae_names
from dictionary_learning_ext.run_folder.files import sha256_of
from dictionary_learning_ext.run_folder.sae_folder import find_run, find_sae
from dictionary_learning_ext.run_folder.trained_on import trained_on

TABLE = {
    "gpt2-small-res": {
        "repo_id": "me/reformatted",
        "model": "gpt2",
        "saes": [
            {"id": "blocks.8.hook_resid_pre", "path": "layer_8"},
            {"id": "layer_9/width_16k", "path": "layer_8", "norm_scaling_factor": 2.0},
        ],
        "config_overrides": {"dataset_path": "of/the_table"},
    },
    "gemma-scope-2b-pt-res-canonical": {
        "repo_id": "google/gemma-scope-2b-pt-res",
        "model": "gemma-2-2b",
        "conversion_func": "gemma_2",
        "saes": [{"id": "layer_1/width_16k/canonical", "path": "layer_1/width_16k/average_l0_82"}],
    },
    "scope": {
        "repo_id": "google/scope",
        "model": "gemma",
        "conversion_func": "gemma_3",
        "saes": [{"id": "layer_0", "path": "layer_0"}],
    },
}

SCOPE = "google/gemma-scope-2b-pt-res/layer_1/width_16k/average_l0_82"


@pytest.fixture
def hub(tmp_path, monkeypatch, trained):
    """The hub's repositories: a folder with what each holds, and what was asked for."""
    repositories, asked = tmp_path / "hub", []
    of_sae_lens(repositories / "me" / "reformatted" / "layer_8")
    of_sparsify(repositories / "me" / "sparse" / "layers.1")
    beside = {"model": "some/model", "dataset": "some/text", "ctx_len": 64}
    (repositories / "me" / "sparse" / "config.json").write_text(json.dumps(beside))
    shutil.copytree(trained / "vsae", repositories / "me" / "pushed" / "vsae")
    of_sae_lens(repositories / "me" / "one")
    of_gemma_scope(repositories / SCOPE)
    of_baker_li(repositories / "me" / "vsaes" / "trainer_0")

    def download(repo, *, allow_patterns):
        asked.append((repo, allow_patterns))
        if repo == "closed/saes":
            raise GatedRepoError("403", response=SimpleNamespace(headers={}, request=None))
        if not (repositories / repo).is_dir():
            raise LocalEntryNotFoundError("offline, and not in the cache")
        snapshot = tmp_path / "cache" / f"{repo}_{len(asked)}"
        snapshot.mkdir(parents=True)
        for path in (p for pattern in allow_patterns for p in (repositories / repo).glob(pattern)):
            copy = snapshot / path.relative_to(repositories / repo)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    for cached in (sae_names._fetched, sae_names._releases):
        cached.cache_clear()
    yield repositories, asked
    for cached in (sae_names._fetched, sae_names._releases):
        cached.cache_clear()


@pytest.fixture
def without_saelens(monkeypatch):
    monkeypatch.setattr(sae_names, "find_spec", lambda name: None)


@pytest.fixture
def table(tmp_path, monkeypatch):
    """SAELens's table of releases, where SAELens need not be."""
    package = tmp_path / "packages" / "sae_lens"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('takes long to import')")
    (package / "pretrained_saes.yaml").write_text(yaml.safe_dump(TABLE))
    for name in [name for name in sys.modules if name.partition(".")[0] == "sae_lens"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(package.parent)


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("me/reformatted/layer_8", "me/reformatted/layer_8"),
        ("me/sparse/layers.1", "me/sparse/layers.1"),
        ("me/pushed/vsae", "me/pushed/vsae"),
        ("me/one", "me/one"),
        ("me/vsaes/trainer_0", "me/vsaes/trainer_0"),
        (SCOPE, SCOPE),
    ],
)
def test_a_place_on_the_hub_is_an_sae_of_any_format(name, folder, hub, without_saelens):
    repositories, asked = hub
    sae, config = load_dictionary(name)
    expected, own = load_dictionary(repositories / folder)
    assert all(t.equal(v, expected.state_dict()[n]) for n, v in sae.state_dict().items())
    assert config["trainer"] == own["trainer"]
    find_sae(name)
    ((repo, patterns),) = asked  # once
    assert repo == "/".join(name.split("/")[:2])
    inside = "".join(f"{part}/" for part in name.split("/")[2:])
    assert f"{inside}cfg.json" in patterns
    assert not any("*" in pattern for pattern in patterns), "nothing else of a large repository"
    run = trained_on(find_sae(name), None if "sparse" in name else "given/model")
    assert run.hook == "blocks.1.hook_resid_post" if name != "me/pushed/vsae" else "blocks.0"


def test_nothing_here_is_looked_for_on_the_hub(hub, tmp_path):
    (tmp_path / "mine").mkdir()
    for name in ("runs/typo", "mine/typo", "./me/one", "../me/one", "typo", str(tmp_path / "typo")):
        with pytest.raises(CheckpointError, match=re.escape(Path(name).name)):
            find_sae(name)
    assert hub[1] == []


def test_what_the_hub_has_not_says_what_to_give(hub, without_saelens):
    with pytest.raises(HubError, match=r"nobody/nothing/here: .*OWNER/REPO.*sae-lens"):
        find_sae("nobody/nothing/here")
    with pytest.raises(HubError, match=r"me/sparse .*'layers\.7'; .*OWNER"):
        find_sae("me/sparse/layers.7")
    with pytest.raises(HubError, match=r"closed/saes .*`hf auth login`"):
        find_sae("closed/saes/layer_0")


def test_a_release_of_saelens_is_found_in_its_table(hub, table):
    repositories, _ = hub
    name = "gpt2-small-res/blocks.8.hook_resid_pre"
    sae, _ = load_dictionary(name)
    expected, _ = load_dictionary(repositories / "me" / "reformatted" / "layer_8")
    assert t.equal(sae.encoder.weight, expected.encoder.weight)
    for either in (name, "me/reformatted/layer_8"):  # by its place on the hub, too
        assert trained_on(find_sae(either), "given/model").data == "of/the_table"
    run = trained_on(find_sae("gemma-scope-2b-pt-res-canonical/layer_1/width_16k/canonical"))
    assert (run.model, run.hook) == ("google/gemma-2-2b", "blocks.1.hook_resid_post")
    with pytest.raises(HubError, match=r"'layer_7'; .*blocks.8.hook_resid_pre, layer"):
        find_sae("gpt2-small-res/layer_7")
    with pytest.raises(CheckpointError, match=r"scope .*'gemma_3'"):
        find_sae("scope/layer_0")


def test_the_scale_in_the_table_is_folded_in(hub, table):
    """As SAELens does (`fold_activation_norm_scaling_factor`)."""
    folder = hub[0] / "me" / "reformatted" / "layer_8"
    plain, _ = load_dictionary(folder)
    settings = json.loads((folder / "cfg.json").read_text())
    settings["normalize_activations"] = "expected_average_only_in"
    (folder / "cfg.json").write_text(json.dumps(settings))
    scaled, _ = load_dictionary("gpt2-small-res/layer_9/width_16k")
    x = t.randn(20, plain.activation_dim, generator=t.Generator().manual_seed(0))
    t.testing.assert_close(scaled.encode(x), plain.encode(2 * x))
    t.testing.assert_close(scaled(x), plain(2 * x) / 2)
    with pytest.raises(CheckpointError, match="'expected_average_only_in' in cfg"):
        load_dictionary("gpt2-small-res/blocks.8.hook_resid_pre")


def test_a_command_for_run_folders_does_not_ask_the_hub(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked"))
    with pytest.raises(CheckpointError, match=r"exps/vsea: .*`vsae export`"):
        find_run("exps/vsea", "export")


def test_results_of_a_run_are_in_its_folder_and_of_others_in_results(
    hub, table, trained, tmp_path, monkeypatch
):
    run = trained / "vsae"
    assert find_sae(run).results == run
    assert find_sae("me/pushed/vsae").results.parts[0] == "results", "not in the hub's cache"

    theirs = of_sae_lens(tmp_path / "a folder" / "sæ")
    found = find_sae(theirs).results
    digest = sha256_of(theirs / "sae_weights.safetensors")
    assert found == Path(f"results/a-folder_sæ_{digest[:8]}")
    monkeypatch.chdir(theirs.parent)
    assert find_sae("sæ").results == found, "however it is spelled"
    assert find_sae("sæ").results_in("/elsewhere").parent == Path("/elsewhere")
    other = of_sae_lens(tmp_path / "other", seed=7)
    shutil.copy(other / "sae_weights.safetensors", theirs)
    assert find_sae("sæ").results != found, "other weights are another SAE"
    release = find_sae("gpt2-small-res/blocks.8.hook_resid_pre").results
    assert release.name.startswith("gpt2-small-res_blocks.8.hook_resid_pre_")
    with pytest.raises(CheckpointError, match="runs/typo"):
        find_sae("runs/typo")


def test_two_folders_of_trainsae_of_one_name_have_results_each(trained, tmp_path):
    first, second = (
        shutil.copytree(trained / name, tmp_path / name / "trainer_0") for name in ("top_k", "vsae")
    )
    for folder in (first, second):
        config = json.loads((folder / "config.json").read_text())
        del config["run"]
        (folder / "config.json").write_text(json.dumps(config))
    found = [find_sae(folder).results.name for folder in (first, second)]
    assert found[0].startswith("top_k_trainer_0_")
    assert found[1].startswith("vsae_trainer_0_")
