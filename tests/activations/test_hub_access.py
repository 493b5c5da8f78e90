"""Without a network: what is in the cache loads, and the rest is refused at once, in one line."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading

import datasets
import huggingface_hub
import pytest
from datasets.packaged_modules.json.json import Json
from texts import write_jsonl

from dictionary_learning_ext.activations import hub_access
from dictionary_learning_ext.activations.hub_access import why_unreachable
from dictionary_learning_ext.activations.text import open_text

CALLS = """
import json, sys
from dictionary_learning_ext.activations.language_models import load_language_model, width_of
from dictionary_learning_ext.activations.text import open_text
from dictionary_learning_ext.errors import UserError

found = {}
for name, call in {
    "model": lambda: load_language_model("nobody/nothing"),
    "width": lambda: width_of("nobody/nothing"),
    "cached": lambda: load_language_model("somebody/cached").config.hidden_size,
    "text": lambda: open_text("nobody/nothing"),
}.items():
    try:
        found[name] = str(call())
    except UserError as error:
        found[name] = f"{type(error).__name__}: {error}"
print(json.dumps(found))
"""


@pytest.fixture
def closed_port():
    """A port of this machine that nothing listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]  # bound and not listening: connections are refused


def test_offline(closed_port, tiny_lm_dir, tmp_path):
    snapshot = tmp_path / "hub" / "models--somebody--cached" / "snapshots" / ("0" * 40)
    shutil.copytree(tiny_lm_dir, snapshot)
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40)
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HF_", "HUGGINGFACE_")) and "proxy" not in name.lower()
    }
    environment |= {"HF_HOME": str(tmp_path), "HF_ENDPOINT": f"http://127.0.0.1:{closed_port}"}
    done = subprocess.run(
        [sys.executable, "-c", CALLS], env=environment, capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["cached"] == "16"
    for name in ("model", "width"):
        assert found[name].startswith("LanguageModelError: language model 'nobody/nothing'")
        assert "save_pretrained" in found[name]
    assert found["text"].startswith("TextError: ")
    assert ".jsonl" in found["text"]
    for name in ("model", "width", "text"):
        assert f"no connection to the hub (http://127.0.0.1:{closed_port})" in found[name]
    assert "etr" not in done.stderr  # "Retrying in 1s", "retries"


@pytest.fixture
def asked(monkeypatch):
    """Stands in for the hub."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_ETAG_TIMEOUT", raising=False)
    hub_access._answers.cache_clear()

    def answer_with(head):
        session = type("Session", (), {"head": staticmethod(head)})
        monkeypatch.setattr(huggingface_hub.utils, "get_session", lambda: session)

    yield answer_with
    hub_access._answers.cache_clear()


def test_any_answer_is_a_connection(asked):
    asked(lambda url, timeout: "403 Forbidden")
    assert why_unreachable() is None


def test_a_hub_that_never_answers_is_given_up(asked, monkeypatch):
    never = threading.Event()
    monkeypatch.setattr(hub_access, "_SECONDS", 0.05)
    asked(lambda url, timeout: never.wait(60))
    assert "no connection" in str(why_unreachable())
    never.set()


@pytest.mark.parametrize("is_there", [True, False])
def test_the_hub_is_asked_once(is_there, asked):
    calls = []

    def head(url, timeout):
        calls.append(url)
        if not is_there:
            raise OSError("no network")

    asked(head)
    answers = {why_unreachable() for _ in range(3)}
    assert len(answers) == 1
    assert (None in answers) == is_there
    assert len(calls) == 1


@pytest.mark.parametrize(("variable", "seconds"), [(None, 2.0), ("7", 7.0)])
def test_the_wait_is_the_one_of_the_environment(variable, seconds, asked, monkeypatch):
    if variable:
        monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", variable)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_ETAG_TIMEOUT", int(variable))
    waits = []
    asked(lambda url, timeout: waits.append(timeout))
    why_unreachable()
    assert waits == [seconds]


def test_a_data_set_in_the_cache_is_read(asked, monkeypatch, tmp_path):
    """As `datasets` keeps one that it has downloaded: the hub is not asked for it."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    rows = write_jsonl(tmp_path / "rows.jsonl", ["once", "upon", "a time"])
    files = {"train": [str(rows)]}
    folder = tmp_path / "somebody___stories" / "default" / "0.0.0" / ("0" * 40)
    builder = Json(dataset_name="stories", data_files=files, cache_dir=str(tmp_path))
    builder.download_and_prepare(str(folder))

    def unreachable(url, timeout):
        raise OSError("no network")

    asked(unreachable)
    assert list(open_text("somebody/stories")) == ["once", "upon", "a time"]
    assert not datasets.config.HF_HUB_OFFLINE, "as before"


def test_offline_mode_asks_for_nothing(asked, monkeypatch):
    asked(lambda url, timeout: pytest.fail("asked"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in str(why_unreachable())
