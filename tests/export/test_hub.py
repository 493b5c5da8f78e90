"""What is uploaded to the hub, its card as huggingface_hub's own classes read it, and every refusal.

Only the hub's own functions are replaced.
"""

import json
import logging
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch as t
from huggingface_hub import ModelCard
from huggingface_hub.errors import HfHubHTTPError

from dictionary_learning_ext import RunConfig, load_dictionary, train
from dictionary_learning_ext.cli import main
from dictionary_learning_ext.config.sae import TopKConfig, VSAETopKConfig
from dictionary_learning_ext.errors import CheckpointError, HubError
from dictionary_learning_ext.export.hub import card_of, push
from dictionary_learning_ext.export.local_paths import without_local_paths
from dictionary_learning_ext.run_folder.sae_folder import find_sae

TOKEN = "hf_abcdefghijklmnop"
TEXT = "roneneldan/TinyStories"


@pytest.fixture(scope="module")
def runs(tiny_lm_dir, text, tmp_path_factory):
    """A folder of two run folders: "vsae", which was measured, and "top_k", which was not."""
    folder = tmp_path_factory.mktemp("runs")
    run = RunConfig(
        model=str(tiny_lm_dir),
        data=text,
        steps=4,
        batch_size=32,
        n_ctxs=8,
        ctx_len=32,
        eval_tokens=64,
        eval_documents=2,
        save_dir=str(folder),
    )
    saes = {
        "vsae": VSAETopKConfig(k=4, dict_size=32, beta=0.25),
        "top_k": TopKConfig(k=4, dict_size=32),
    }
    train(run, saes)
    (folder / "top_k" / "metrics.json").unlink()
    return folder


@pytest.fixture(autouse=True)
def no_token(monkeypatch, tmp_path):
    """As on a machine that never logged in."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))


@pytest.fixture
def token(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)


class Hub:
    """The hub's end of create_repo, repo_info and upload_folder: keeps what it is sent."""

    def __init__(self, private=None):
        self.private, self.contents, self.asked = private, {}, None

    def create_repo(self, repo, *, private, exist_ok):
        assert exist_ok
        self.asked = private
        self.private = private if self.private is None else self.private  # the hub's own rule

    def repo_info(self, repo):
        return SimpleNamespace(private=self.private)

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        paths = [path for path in Path(folder_path).rglob("*") if path.is_file()]
        self.contents = {p.relative_to(folder_path).as_posix(): p.read_bytes() for p in paths}
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")


@pytest.fixture
def hub(monkeypatch, token):
    """Puts a Hub in the place of huggingface_hub's functions."""

    def replace(one):
        for name in ("create_repo", "repo_info", "upload_folder"):
            monkeypatch.setattr(huggingface_hub, name, getattr(one, name))
        return one

    return replace


@pytest.fixture
def downloaded(hub, tmp_path):
    """Pushes a folder with a format, and gives a folder of what the hub then holds."""

    def of(folder, form):
        one = hub(Hub())
        push(folder, "jane/saes", formats=[form], tokens=200)
        for name, content in one.contents.items():
            (tmp_path / "hub" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "hub" / name).write_bytes(content)
        return tmp_path / "hub"

    return of


def refusal(status):
    """The error that huggingface_hub raises for a response of the hub."""
    http = __import__(HfHubHTTPError.__bases__[0].__module__.split(".")[0])  # its HTTP library
    request = http.Request("POST", "https://huggingface.co/api/repos/create")
    response = http.Response(status, request=request) if hasattr(http, "Client") else None
    if response is None:  # requests
        response = http.Response()
        response.status_code, response.request = status, request
    return HfHubHTTPError(f"{status} of the hub\nRequest ID: 1", response=response)


def unreachable():
    """The error of its HTTP library without a network."""
    http = __import__(HfHubHTTPError.__bases__[0].__module__.split(".")[0])
    error = getattr(http, "ConnectError", None) or http.ConnectionError
    return error("Name or service not known")


# --- what is uploaded


def changed(folder, change, tmp_path):
    """A copy of a run folder, with the text of its config.json changed."""
    copy = shutil.copytree(folder, tmp_path / "sae", dirs_exist_ok=True)
    path = copy / "config.json"
    path.write_text(change(path.read_text()))
    return copy


def test_a_push_is_the_layout_of_sae_bench_with_a_card(runs, hub, tmp_path):
    one = hub(Hub())
    runs = shutil.copytree(runs, tmp_path / "runs")
    (runs / "vsae" / "features.csv").write_text("feature,error_share\n")
    for inside in ("codes", "resume", ".bench_cache", "eval_results", "exports", "report_files"):
        (runs / "vsae" / inside).mkdir(exist_ok=True)
        (runs / "vsae" / inside / "anything.pt").touch()
    pushed = push(runs, "jane/saes")
    files = {f"{n}/{f}" for n in ("top_k", "vsae") for f in ("ae.pt", "config.json")}
    beside = {"README.md", "vsae/metrics.json", "vsae/features.csv"}
    assert set(one.contents) == files | beside
    assert pushed.files == {name: len(content) for name, content in one.contents.items()}
    assert one.asked is pushed.is_private is True
    assert pushed.url == "https://hub/jane/saes/commit/1"
    for name, content in one.contents.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    assert load_dictionary(tmp_path / "vsae")[0].k == 4
    push(runs / "top_k", "jane/saes", public=True)
    assert set(one.contents) == {"README.md", "top_k/ae.pt", "top_k/config.json"}
    assert one.asked is False


def test_the_card_has_settings_metrics_and_how_to_load(runs):
    text = push(runs, "jane/saes", dry_run=True).card
    fve = json.loads((runs / "vsae" / "metrics.json").read_text())["fve"]
    assert f"{fve:.4f}" in text
    assert "# saes" in text.splitlines()
    assert "| beta |  | 0.25 |" in text, "of the second column alone"
    assert "blocks.1.hook_resid_post" in text
    assert "snapshot_download('jane/saes') + '/top_k'" in text
    assert "sae_lens" not in text
    assert "Not measured." in push(runs / "top_k", "jane/saes", dry_run=True).card


def test_the_card_names_the_language_model_and_the_text_if_the_hub_has_them(runs, tmp_path):
    def of_the_hub(text):
        config = json.loads(text)
        config["trainer"]["lm_name"] = "EleutherAI/pythia-70m"
        config["run"]["settings"]["data"] = "roneneldan/TinyStories"
        return json.dumps(config)

    folder = changed(runs / "top_k", of_the_hub, tmp_path)
    found = ModelCard(push(folder, "jane/saes", dry_run=True).card).data
    assert found.base_model == ["EleutherAI/pythia-70m"]
    assert found.datasets == ["roneneldan/TinyStories"]
    local = ModelCard(push(runs / "top_k", "jane/saes", dry_run=True).card).data
    assert local.base_model is local.datasets is None


def test_a_folder_of_upstreams_is_pushed_with_its_results(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def of_upstream(text):
        return json.dumps({"trainer": json.loads(text)["trainer"], "buffer": {"d_submodule": 16}})

    folder = changed(runs / "top_k", of_upstream, tmp_path)
    results = find_sae(folder).results
    results.mkdir(parents=True)
    metrics = json.loads((runs / "vsae" / "metrics.json").read_text())
    metrics["of"] = {"weights": find_sae(folder).hash}
    (results / "metrics.json").write_text(json.dumps(metrics | {"of": {"weights": "others"}}))
    files = set(push(folder, "jane/saes", dry_run=True).files)
    (results / "metrics.json").write_text(json.dumps(metrics))
    pushed = push(folder, "jane/saes", dry_run=True)
    assert set(pushed.files) - files == {"sae/metrics.json"}, "unless it is of other weights"
    assert set(pushed.files) == {"README.md", *(f"sae/{name}" for name in OURS)}
    assert "Not measured" not in pushed.card


def test_no_local_path_and_no_token_goes_or_is_said(runs, hub, tiny_lm_dir, text, capsys, caplog):
    caplog.set_level(logging.DEBUG)
    one = hub(Hub())
    assert main(["push", str(runs), "jane/saes"]) == 0
    out = capsys.readouterr().out
    written = b"".join(one.contents[n] for n in one.contents if not n.endswith(".pt")).decode()
    assert tiny_lm_dir.name in written
    for secret in (str(tiny_lm_dir.parent), str(Path(text).parent), str(runs), TOKEN):
        assert secret not in written
    assert TOKEN not in out + caplog.text


def test_a_dry_run_and_the_card_need_no_token_and_no_network(runs, capsys):
    assert main(["push", str(runs), "jane/saes", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert f"{(runs / 'vsae' / 'ae.pt').stat().st_size:,} vsae/ae.pt" in out
    assert "private repository: jane/saes" in out
    assert push(runs, "jane/saes", dry_run=True).card in out


# --- for other libraries


@pytest.fixture
def mixed(trained, tmp_path):
    """A folder of run folders of which sparsify holds one, and SAELens two."""
    for name in ("top_k", "jump_relu", "vaease"):
        shutil.copytree(trained[0][name], tmp_path / "mixed" / name)
    return tmp_path / "mixed"


def test_other_libraries_find_their_files_beside_ours(mixed, capsys):
    argv = ["push", str(mixed), "jane/saes", "--dry-run", "--format", "sae-lens", "sparsify"]
    assert main(argv) == 0
    out = capsys.readouterr().out
    listed = {line.split()[1] for line in out.splitlines() if re.match(r" +[\d,]+ ", line)}
    ours = {f"{n}/{f}" for n in ("top_k", "jump_relu", "vaease") for f in OURS}
    of_sae_lens = {f"{n}/{f}" for n in ("top_k", "jump_relu") for f in OF_SAE_LENS}
    of_sparsify = {f"top_k/layers.1/{f}" for f in ("cfg.json", "export.json", "sae.safetensors")}
    assert listed == {"README.md"} | ours | of_sae_lens | of_sparsify
    assert "VAEase can't be exported as sae-lens" in out
    assert "jump_relu: sparsify has" in out


OURS = ("ae.pt", "config.json", "metrics.json")
OF_SAE_LENS = ("cfg.json", "sae_weights.safetensors")


def test_a_card_says_how_each_format_is_loaded():
    config = {"trainer": {"dict_class": "AutoEncoderTopK", "layer": 1}}
    places = {"sae-lens": "a", "sparsify": "a/layers.1"}
    text = card_of("jane/saes", {"a": config, "b": config}, {}, places)
    assert "from_pretrained('jane/saes', 'a')" in text
    assert "hookpoint='a/layers.1'" in text


@pytest.mark.extra
def test_sae_lens_loads_it_from_the_hub(mixed, downloaded, monkeypatch, x):
    sae_lens = pytest.importorskip("sae_lens", reason="needs SAELens (the SAE Bench environment)")
    loaders = sae_lens.loading.pretrained_sae_loaders
    repository = downloaded(mixed, "sae-lens")

    def download(repo_id, filename, force_download):
        assert repo_id == "jane/saes"
        if not (repository / filename).is_file():
            raise huggingface_hub.errors.EntryNotFoundError(filename)
        return str(repository / filename)

    monkeypatch.setattr(loaders, "hf_hub_download", download)
    assert "SAE.from_pretrained('jane/saes', 'jump_relu')" in (repository / "README.md").read_text()
    for name in ("top_k", "jump_relu"):
        theirs, ours = (
            sae_lens.SAE.from_pretrained("jane/saes", name),
            load_dictionary(mixed / name)[0],
        )
        t.testing.assert_close(theirs(x), ours(x), rtol=0, atol=1e-5)


@pytest.mark.extra
def test_sparsify_loads_it_from_the_hub(mixed, downloaded, monkeypatch, x):
    sparse_coder = pytest.importorskip("sparsify.sparse_coder", reason="needs eai-sparsify")
    repository = downloaded(mixed, "sparsify")

    def download(name, allow_patterns):
        assert name == "jane/saes"
        return str(repository)

    monkeypatch.setattr(sparse_coder, "snapshot_download", download)
    line = "SparseCoder.load_from_hub('jane/saes', hookpoint='top_k/layers.1')"
    assert line in (repository / "README.md").read_text()
    ours, coder = load_dictionary(mixed / "top_k")[0], sparse_coder.SparseCoder
    for theirs in (
        coder.load_from_hub("jane/saes", hookpoint="top_k/layers.1"),
        *coder.load_many("jane/saes", layers=["top_k/layers.1"]).values(),
    ):
        with t.no_grad(), t.compiler.set_stance("force_eager"):
            t.testing.assert_close(theirs(x).sae_out, ours(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("/home/jane/models/tiny", "tiny"),
        ("~/text.txt", "text.txt"),
        ("../models/tiny/", "tiny"),
        ("./tiny", "tiny"),
        ("work/models/tiny", "tiny"),
        ("/", "local"),
        ("file:///home/jane/cache", "cache"),
        ("runs/smollm2-135m", "smollm2-135m"),
        ("texts/private_corpus.txt", "private_corpus.txt"),
        ("EleutherAI/pythia-70m", "EleutherAI/pythia-70m"),
        ("embedded", "embedded"),
        ("blocks.0.hook_resid_post", "blocks.0.hook_resid_post"),
        ("https://host/a/b.jsonl", "https://host/a/b.jsonl"),
    ],
)
def test_local_paths_are_cut_to_their_names_and_hub_names_stay(given, expected):
    content = {"run": {"model": given, "n": 3}, "more": [given, None]}
    cleaned = without_local_paths(content)
    assert cleaned == {"run": {"model": expected, "n": 3}, "more": [expected, None]}


# --- refusals


def test_a_public_repository_needs_the_flag_public(runs, hub, capsys):
    one = hub(Hub(private=False))
    assert main(["push", str(runs), "jane/saes"]) == 2
    error = capsys.readouterr().err
    assert "nothing was uploaded; " in error
    assert one.contents == {}
    assert main(["push", str(runs), "jane/saes", "--public"]) == 0
    assert "(public)" in capsys.readouterr().out
    assert one.contents


def test_a_token_is_needed(runs, capsys):
    assert main(["push", str(runs), "jane/saes"]) == 2
    assert "no token for the hub; log in with `hf" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("where", "error", "message"),
    [
        ("create_repo", unreachable(), "(Name or service"),
        ("create_repo", refusal(401), "(401)"),
        ("upload_folder", refusal(500), "(500 of"),
    ],
    ids=["unreachable", "401", "500"],
)
def test_what_the_hub_or_the_network_refuse(where, error, message, runs, hub, monkeypatch, capsys):
    hub(Hub())

    def refuse(*args, **kwargs):
        raise error

    monkeypatch.setattr(huggingface_hub, where, refuse)
    assert main(["push", str(runs), "jane/saes"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert TOKEN not in line


def an_empty_folder(folder, runs):
    folder.mkdir()


def a_damaged_sae(folder, runs):
    shutil.copytree(runs / "top_k", folder / "one")
    (folder / "one" / "ae.pt").write_bytes(b"PK")


REFUSED = [
    (an_empty_folder, "saes", r"^'saes': expected OWNER/NAME, e\.g\. "),
    (an_empty_folder, "jane/my saes", r"^'jane/my saes': expected OWNER/NAME, e\.g\. "),
    (an_empty_folder, "jane/saes", r"expected a file config\.json"),
    (a_damaged_sae, "jane/saes", "missing or damaged"),
]


@pytest.mark.parametrize(("make", "repo", "message"), REFUSED)
def test_what_can_not_be_pushed_is_called_what_it_is(make, repo, message, runs, tmp_path):
    make(tmp_path / "it", runs)
    with pytest.raises((HubError, CheckpointError), match=message):
        push(tmp_path / "it", repo, dry_run=True)
