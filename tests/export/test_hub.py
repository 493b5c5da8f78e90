"""What is uploaded to the hub, and every refusal. Only the hub's own functions are replaced."""

import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError

from dictionary_learning_ext import RunConfig, SAEConfig, load_dictionary, train
from dictionary_learning_ext.cli import main
from dictionary_learning_ext.export.hub import push

TOKEN = "hf_abcdefghijklmnop"


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
        "vsae": SAEConfig(architecture="vsae_top_k", k=4, dict_size=32, beta=0.25),
        "top_k": SAEConfig(architecture="top_k", k=4, dict_size=32),
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


# --- what goes


def test_a_push_is_the_layout_of_sae_bench_with_a_card(runs, hub, tmp_path):
    one = hub(Hub())
    pushed = push(runs, "jane/saes")
    assert set(one.contents) == {
        "README.md",
        "top_k/ae.pt",
        "top_k/config.json",
        "vsae/ae.pt",
        "vsae/config.json",
        "vsae/metrics.json",
    }
    assert pushed.files == {name: len(content) for name, content in one.contents.items()}
    assert (one.asked, pushed.is_private, pushed.url) == (
        True,
        True,
        "https://hub/jane/saes/commit/1",
    )
    for name, content in one.contents.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    assert load_dictionary(tmp_path / "vsae")[0].k == 4


def test_the_card_has_settings_metrics_and_how_to_load(runs, hub):
    one = hub(Hub())
    push(runs, "jane/saes")
    card = one.contents["README.md"].decode()
    fve = json.loads((runs / "vsae" / "metrics.json").read_text())["fve"]
    assert card.startswith("---\n")
    assert f"{fve:.4f}" in card
    assert "| beta |  | 0.25 |" in card, "of the second column alone"
    assert "blocks.0.hook_resid_post" in card
    assert "snapshot_download('jane/saes') + '/top_k'" in card
    assert "vsae export FOLDER --format sae-bench" in card


def test_one_folder_alone_and_not_measured(runs, hub):
    one = hub(Hub())
    push(runs / "top_k", "jane/saes", public=True)
    assert set(one.contents) == {"README.md", "top_k/ae.pt", "top_k/config.json"}
    card = one.contents["README.md"].decode()
    assert "Not measured." in card
    assert "can read this repository as it is" in card
    assert one.asked is False


def test_the_card_knows_where_sae_bench_would_put_an_sae(runs, hub, tmp_path):
    """Its loader takes every SAE to be at its layer's output."""
    folder = shutil.copytree(runs / "top_k", tmp_path / "top_k")
    path = folder / "config.json"
    written = path.read_text()
    for hook, is_known in {
        "blocks.0.hook_mlp_out": False,
        "blocks.0.hook_resid_pre": False,
        "resid_post_layer_0": True,  # upstream's names are free
    }.items():
        path.write_text(written.replace('"blocks.0.hook_resid_post"', f'"{hook}"'))
        one = hub(Hub())
        push(folder, "jane/saes")
        card = one.contents["README.md"].decode()
        assert f"for {hook} of" in card
        assert ("can read this repository as it is" in card) is is_known, hook


@pytest.mark.parametrize(
    ("model", "shown"), [("EleutherAI/pythia-70m", True), ("embedded", False), ("/a/b/c", False)]
)
def test_the_card_names_a_base_model_only_if_the_hub_has_it(model, shown, runs, hub, tmp_path):
    folder = tmp_path / "sae"
    folder.mkdir()
    for name in ("ae.pt", "config.json"):
        (folder / name).write_bytes((runs / "top_k" / name).read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config["trainer"]["lm_name"] = model
    (folder / "config.json").write_text(json.dumps(config))
    one = hub(Hub())
    push(folder, "jane/saes")
    card = one.contents["README.md"].decode()
    assert (f"base_model:\n- {model}" in card) is shown
    assert ("base_model" in card) is shown


def test_no_local_path_and_no_token_goes_or_is_said(runs, hub, tiny_lm_dir, text, capsys, caplog):
    caplog.set_level(logging.DEBUG)
    one = hub(Hub())
    assert main(["push", str(runs), "jane/saes"]) == 0
    out = capsys.readouterr().out
    assert "shortened to their last names: data, lm_name, model, save_dir" in out
    written = b"".join(one.contents[n] for n in one.contents if not n.endswith(".pt")).decode()
    assert tiny_lm_dir.name in written
    for secret in (str(tiny_lm_dir.parent), str(Path(text).parent), str(runs), TOKEN):
        assert secret not in written
    assert TOKEN not in out + caplog.text


def test_a_local_text_and_model_of_two_parts_are_not_declared_as_the_hubs(runs, hub, tmp_path):
    folder = shutil.copytree(runs / "top_k", tmp_path / "sae")
    config = json.loads((folder / "config.json").read_text())
    config["trainer"]["lm_name"] = "runs/my-model"
    config["run"]["settings"]["data"] = "texts/private.txt"
    (folder / "config.json").write_text(json.dumps(config))
    one = hub(Hub())
    push(folder, "jane/saes")
    card = one.contents["README.md"].decode()
    assert "base_model" not in card
    assert "datasets:" not in card
    written = card + one.contents["sae/config.json"].decode()
    assert "runs/my-model" not in written
    assert "texts/private" not in written


def test_a_dry_run_lists_names_and_sizes_without_token_or_network(runs, capsys):
    assert main(["push", str(runs), "jane/saes", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert f"{(runs / 'vsae' / 'ae.pt').stat().st_size:,} vsae/ae.pt" in out
    assert (
        "Nothing was uploaded. Without --dry-run, the files go to a private repository: jane/saes"
        in out
    )


def test_the_card_can_be_read_before_it_goes(runs, hub, capsys):
    one = hub(Hub())
    assert main(["push", str(runs), "jane/saes", "--show-card"]) == 0
    shown = capsys.readouterr().out
    assert one.contents == {}, "nothing was uploaded"
    push(runs, "jane/saes")
    assert shown == one.contents["README.md"].decode() + "\n"


# --- refusals


def test_a_public_repository_needs_the_flag_public(runs, hub, capsys):
    one = hub(Hub(private=False))
    assert main(["push", str(runs), "jane/saes"]) == 2
    assert (
        "already exists and is public; nothing was uploaded; to push to a public"
        in capsys.readouterr().err
    )
    assert one.contents == {}
    assert main(["push", str(runs), "jane/saes", "--public"]) == 0
    assert "(public)" in capsys.readouterr().out
    assert one.contents


def test_without_a_token(runs, capsys):
    assert main(["push", str(runs), "jane/saes"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "no token for the hub; log in with `hf auth login`" in line


@pytest.mark.parametrize("bad", ["hf_abc\x01def", "hf_abcé"])
def test_a_malformed_token_is_not_shown(bad, runs, monkeypatch, capsys):
    """The HTTP library would print the header."""
    monkeypatch.setenv("HF_TOKEN", bad)
    assert main(["push", str(runs), "jane/saes"]) == 2
    error = capsys.readouterr().err
    assert "token is malformed" in error
    assert "hf_abc" not in error


def test_offline(runs, token, capsys):
    """Really: the tests run with HF_HUB_OFFLINE."""
    assert main(["push", str(runs), "jane/saes"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "the hub can't be reached, or refused the request" in line
    assert "HF_HUB_OFFLINE" in line


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (unreachable(), "can't be reached, or refused the request (Name or service not known)"),
        (refusal(401), "the hub refused the token (401)"),
        (refusal(403), "an account that may write to jane"),
        (refusal(500), "can't be reached, or refused the request (500 of the hub)"),
    ],
    ids=["unreachable", "401", "403", "500"],
)
@pytest.mark.parametrize("where", ["create_repo", "upload_folder"])
def test_what_the_hub_or_the_network_refuse(where, error, message, runs, hub, monkeypatch, capsys):
    hub(Hub())

    def refuse(*args, **kwargs):
        raise error

    monkeypatch.setattr(huggingface_hub, where, refuse)
    assert main(["push", str(runs), "jane/saes"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert TOKEN not in line


@pytest.mark.parametrize("repo", ["saes", "jane/my/saes", "jane/my saes", "jane/-saes", "/saes"])
def test_a_bad_name(repo, runs, capsys):
    assert main(["push", str(runs), repo, "--dry-run"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"vsae: {repo!r}: expected OWNER/NAME, e.g. jane/my-saes" in line


def test_a_folder_that_holds_no_sae_or_a_damaged_one(runs, tmp_path, capsys):
    assert main(["push", str(tmp_path), "jane/saes", "--dry-run"]) == 2
    assert "expected a file config.json" in capsys.readouterr().err
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "ae.pt").write_bytes(b"PK")
    (tmp_path / "one" / "config.json").write_bytes((runs / "top_k" / "config.json").read_bytes())
    assert main(["push", str(tmp_path), "jane/saes", "--dry-run"]) == 2
    assert "incomplete or damaged AutoEncoderTopK" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "what"),
    [
        ("manifest.json", "a cache"),
        ("manifest.unfinished.json", "a cache"),
        ("sae_weights.safetensors", "an export for sae-lens"),
        ("sae.safetensors", "an export for sparsify or safetensors"),
    ],
)
def test_a_folder_of_another_kind_is_called_what_it_is(file, what, tmp_path, capsys):
    (tmp_path / file).touch()
    (tmp_path / "config.json").touch()
    assert main(["push", str(tmp_path), "jane/saes", "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path} is {what}; push takes a run folder, an export for dictionary-l" in said
