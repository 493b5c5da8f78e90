"""Texts and language models that are damaged are refused in one line, and no key reaches a file."""

import re
import shutil

import pytest
from small_commands import refused

from dictionary_learning_ext.cli import main


def written(name, raw):
    def make(folder):
        path = folder / name
        path.write_bytes(raw)
        return path

    return make


WORDS = b"the cat sat on the mat. " * 4000


BAD_TEXTS = {
    "invalid UTF-8": (written("a.txt", b"the cat \xff\xfe sat" + WORDS), "UTF-8"),
    "null bytes": (written("a.txt", WORDS.replace(b"cat", b"c\x00t")), "holds a null byte"),
    "only empty lines": (written("a.txt", b"\n" * 10_000), "has no documents"),
    "too short": (written("a.txt", b"the cat"), "expected 384 for 12 steps"),
    "lines that are no JSON": (written("a.jsonl", b'{"text": "a"}\nnothing\n'), "line 2"),
    "rows without text": (written("a.jsonl", b'{"body": "a"}\n'), "text"),
    "a text that is a number": (written("a.jsonl", b'{"text": 3}\n'), "text"),
    "no parquet": (written("a.parquet", WORDS), "parquet"),
    "no zstandard": (written("a.jsonl.zst", WORDS), "zst"),
    "a file of another kind": (written("a.exe", WORDS), r"\.txt"),
}


@pytest.mark.parametrize("case", BAD_TEXTS)
def test_a_bad_text(case, flags, tmp_path, capsys):
    make, message = BAD_TEXTS[case]
    given_text = f"--data={make(tmp_path)}"
    line = refused(["train", *flags, given_text, f"--save-dir={tmp_path / 'run'}"], capsys)
    assert re.search(message, line), line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "raw",
    [WORDS.replace(b". ", b"\n\n\n\n"), WORDS * 110],
    ids=["empty lines", "a line of 10 MB"],
)
def test_an_odd_text_that_can_be_read(raw, flags, tmp_path):
    path = written("a.txt", raw)(tmp_path)
    assert main(["train", *flags, f"--data={path}", f"--save-dir={tmp_path / 'run'}"]) == 0


def test_damaged_language_models(tiny_lm_dir, flags, tmp_path, capsys):
    for name, raw, message in (
        ("config.json", b"{", "can't be loaded"),
        ("model.safetensors", b"x" * 100, "can't be loaded"),
    ):
        lm = shutil.copytree(tiny_lm_dir, tmp_path / name)
        (lm / name).write_bytes(raw)
        arguments = ["train", *flags, f"--model={lm}", f"--save-dir={tmp_path / 'run'}"]
        line = refused(arguments, capsys)
        assert message in line, line
        assert not (tmp_path / "run").exists()


def test_no_key_reaches_a_file(flags, tmp_path, monkeypatch):
    keys = {name: f"SECRET{i}" * 5 for i, name in enumerate(("WANDB_API_KEY", "HF_TOKEN"))}
    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    run = tmp_path / "run"
    assert main(["train", *flags, "--wandb=offline", f"--save-dir={run}"]) == 0
    import wandb

    wandb.teardown()
    files = [path for path in run.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    for path in files:
        assert not any(value.encode() in path.read_bytes() for value in keys.values()), path
