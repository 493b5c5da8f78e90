"""A cache behind a URL is the one that a folder would hold, and is read through copies on the disk."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest
from caches import HOOK, OTHER, TOKENS, write_small
from texts import error_of

from dictionary_learning_ext import train
from dictionary_learning_ext.activations.cache_manifest import MANIFEST, read_manifest
from dictionary_learning_ext.activations.remote import Copies, Remote
from dictionary_learning_ext.activations.stored import FileReader, open_stored
from dictionary_learning_ext.cli import main
from dictionary_learning_ext.config.sae import SAEConfig
from dictionary_learning_ext.errors import ActivationsError
from dictionary_learning_ext.run_folder.files import LOCK

HOOKS = (HOOK, OTHER)


@pytest.fixture(autouse=True)
def users_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))


def files_in(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in Path(folder).rglob("*")
        if path.is_file() and path.name != LOCK
    }


def files_behind(url):
    remote = Remote(url)
    files, root = fsspec.url_to_fs(url)
    return {name: files.cat_file(f"{root}/{name}") for name in remote.sizes()}


@pytest.fixture
def url(small_cache):
    """A cache in memory, which fsspec reaches as it reaches a bucket."""
    url = "memory://bucket/cache"
    files, root = fsspec.url_to_fs(url)
    files.put(str(small_cache), root, recursive=True)
    files.rm_file(f"{root}/{LOCK}")
    yield url
    files.rm(root, recursive=True)


def test_a_stopped_cache_behind_a_url_is_continued_to_the_bytes_of_a_folder(
    small_cache, cached_run
):
    class Killed(BaseException):
        pass

    calls, url = [], "memory://bucket/new"

    def before_batch():
        calls.append(1)
        if len(calls) == 4:
            raise Killed

    with pytest.raises(Killed):
        write_small(url, cached_run, hooks=HOOKS, before_batch=before_batch)
    assert error_of(lambda: open_stored(url), ActivationsError)
    said = []
    write_small(url, cached_run, hooks=HOOKS, on_plan=said.append)
    assert "are there" in said[0]
    assert files_behind(url) == files_in(small_cache)
    assert not list(Remote(url).local.rglob("*.arrow")), "no room is taken on the disk"
    files = replace(cached_run, ctx_len=16)
    assert "ctx_len=32, not 16" in error_of(
        lambda: write_small(url, files, hooks=HOOKS), ActivationsError
    )


def test_what_is_trained_from_a_url_is_what_is_trained_from_its_folder(
    url, small_cache, tmp_path, cached_run
):
    weights = []
    for place, limit in ((url, 1e-4), (small_cache, 20.0)):
        settings = open_stored(place).settings | {"activations": str(place), "hook": HOOK}
        run = replace(
            cached_run, steps=30, batch_size=256, n_ctxs=32, save_steps="none", eval_tokens=256,
            cache_dir_size=limit, save_dir=str(tmp_path / f"run{len(weights)}"), **settings,
        )  # fmt: skip
        train(run, {"sae": SAEConfig(dict_size=32, k=4)})
        weights.append(Path(run.save_dir, "ae.pt").read_bytes())
    assert weights[0] == weights[1]


@pytest.fixture
def reading(url):
    """The manifest's files, the copies of it, at most two files', and what was asked of the remote."""
    remote, asked = Remote(url), []
    manifest = read_manifest(Path(remote.local)) or open_stored(url).manifest
    get = remote.get

    def counted(name, path):
        asked.append(name)
        get(name, path)

    remote.get = counted
    limit = 2.5 * manifest.files[0].bytes
    return manifest.files, Copies(remote, manifest.all_files, limit), asked


def test_the_next_files_are_copied_ahead_and_the_oldest_copies_make_room(reading):
    files, copies, asked = reading
    order = [copies.path_of(file) for file in reversed(files)]
    copies.will_be_read(order)
    copies.fetch(order[0])
    while len(asked) < 3:
        time.sleep(0.01)
    assert sorted(asked) == [file.name for file in files[1:4]], "it, and the next two"
    for path in order:
        copies.fetch(path)
    assert sorted(asked) == sorted(file.name for file in files), "each once"
    assert [path.exists() for path in order] == [False, False, True, True]
    copies.fetch(order[0])
    assert files[3].name in asked[4:], "it was gone"


@pytest.mark.parametrize("what", ["missing", "cut", "changed"])
def test_a_part_that_is_missing_or_changed_is_named(what, url):
    files, root = fsspec.url_to_fs(url)
    name = f"{root}/data-00001.arrow"
    content = files.cat_file(name)
    files.rm_file(name)
    if what != "missing":
        files.pipe_file(name, content[:-1] if what == "cut" else content[:-1] + b"x")

    def read():
        stored = open_stored(url)
        FileReader(HOOK, stored.copies).read(stored.parts["train"][1])

    said = error_of(read, ActivationsError)
    assert said.startswith(f"{url}/data-00001.arrow: ")


@pytest.mark.parametrize("wrong", ["nothing://bucket/cache", "memory://bucket/none"])
def test_a_url_that_holds_nothing_is_refused_in_a_line(wrong):
    assert wrong in error_of(lambda: open_stored(wrong), ActivationsError)


# --- S3, by a server in a process of its own


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """moto's: what s3_server.py prints."""
    pytest.importorskip("s3fs")
    pytest.importorskip("moto")
    script = Path(__file__).parents[1] / "helpers" / "s3_server.py"
    # It knows no key until it has made one, and from the fifth request on it checks who asks.
    first = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "first")
    process = subprocess.Popen(
        [sys.executable, script],
        env=os.environ | first | {"INITIAL_NO_AUTH_ACTION_COUNT": "4"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    yield process.stdout.readline().split()
    process.stdin.close()
    process.wait(60)


@pytest.fixture
def s3(server, monkeypatch):
    address, _, key, secret = server
    for name, value in {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    return "s3://bucket/cache"


@pytest.mark.slow
def test_s3_holds_a_cache_whose_command_was_killed_and_continued(
    s3, server, cached_run, tmp_path, monkeypatch
):
    command = [
        *("cache", s3, f"--model={cached_run.model}", f"--data={cached_run.data}", "--ctx-len=32"),
        *(f"--hook={HOOK}", "--eval-tokens=300", "--eval-documents=3", f"--tokens={20 * TOKENS}"),
        *("--file-mb=1", "--text-passes=5"),
    ]
    process = subprocess.Popen([sys.executable, "-m", "dictionary_learning_ext", *command])
    remote = Remote(s3)
    while process.poll() is None and "data-00001.arrow" not in remote.sizes():
        time.sleep(0.05)
    assert process.poll() is None, "it ended by itself"
    process.kill()
    process.wait(60)
    assert MANIFEST not in remote.sizes()
    for place in (s3, str(tmp_path / "whole")):
        assert main([place if word == s3 else word for word in command]) == 0
    assert files_behind(s3) == files_in(tmp_path / "whole")

    monkeypatch.setenv("AWS_ENDPOINT_URL", server[1])  # which is slow
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    stored = open_stored(s3)
    local = open_stored(tmp_path / "whole")
    for parts in zip(stored.parts["train"], local.parts["train"], strict=True):
        one, other = (
            FileReader(HOOK, each.copies).read(part)
            for each, part in zip((stored, local), parts, strict=True)
        )
        assert np.array_equal(one.x_NLD, other.x_NLD)


@pytest.mark.slow
def test_wrong_credentials_are_said(s3, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    said = error_of(lambda: open_stored(s3), ActivationsError)
    assert said.startswith(s3)
    assert "credentials" in said
