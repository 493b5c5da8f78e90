"""`vsae hooks` and `vsae cache`, as they are typed."""

import os
import re
import shlex
import signal

import pytest
from caches import HOOK, OTHER
from forks import wait_for
from small_commands import refused
from texts import write_jsonl
from torchrun import Ranks

from dictionary_learning_ext.activations import cache_writer
from dictionary_learning_ext.activations.cache_writer import write_contexts
from dictionary_learning_ext.activations.hook_points import find_hook
from dictionary_learning_ext.cli import main
from dictionary_learning_ext.run_folder.cache_manifest import read_manifest
from dictionary_learning_ext.run_folder.files import LOCK

KINDS = ("resid_post", "resid_pre", "attn_out", "mlp_out")


@pytest.mark.parametrize(
    "family", ["gpt_neox", "llama", "gpt2", "gemma", "gemma3", "qwen", "qwen3"]
)
def test_the_names_are_those_that_can_be_read(family, lm_dir_of, lm_of, tmp_path, capsys):
    assert main(["hooks", "--model", str(lm_dir_of(family))]) == 0
    heading, *lines = capsys.readouterr().out.splitlines()
    assert heading.split() == ["hook", "point", "width"]
    names = [line.split()[0] for line in lines]
    of_block = [*(f"blocks.0.hook_{kind}" for kind in KINDS), "blocks.0.mlp.hook_in"]
    assert len(names) == len(set(names)) == 5 * 3
    assert names[:5] == of_block
    for line in lines:
        name, width = line.split()
        assert find_hook(lm_of(family), name).activation_dim == int(width)


def test_no_weights_are_needed(lm_dir_of, tmp_path, capsys):
    config = (lm_dir_of("gpt2") / "config.json").read_text()
    (tmp_path / "config.json").write_text(config)
    assert main(["hooks", f"--model={tmp_path}"]) == 0
    assert "blocks.2.hook_resid_post" in capsys.readouterr().out


@pytest.fixture
def flags(cached_run):
    return shlex.split(
        f"--model {cached_run.model} --data {cached_run.data} --ctx-len 32 --eval-tokens 300"
        f" --eval-documents 3 --hook {HOOK}"
    )


def test_it_says_what_it_needs_and_how_to_train(flags, tmp_path, capsys):
    folder = tmp_path / "cache"
    assert main(["cache", str(folder), *flags[:-2], "--tokens=2000", "--dtype=float16"]) == 0
    assert flags[-2:] == ["--hook", HOOK]
    said = capsys.readouterr().out
    assert said.startswith("2,000 tokens need ")
    assert f"cached 2,016 tokens in {folder}; " in said
    assert f"train --activations {folder}" in said
    manifest = read_manifest(folder)
    assert manifest.settings.dtype == "float16"
    assert list(manifest.settings.hooks) == [HOOK], "a middle layer"


def test_a_url_is_refused(capsys):
    line = refused(["cache", "s3://bucket/cache"], capsys)
    assert "'s3://bucket/cache': expected a folder; copy it there afterwards" in line


def test_several_hook_points_are_separated_by_commas(flags, tmp_path, capsys):
    folder = tmp_path / "cache"
    assert main(["cache", str(folder), *flags, f"--hook={HOOK},{OTHER}", "--tokens=1000"]) == 0
    assert list(read_manifest(folder).settings.hooks) == [HOOK, OTHER]
    said = capsys.readouterr().out
    assert said.endswith(f" --activations {folder} --hook {HOOK}\nor with --hook {OTHER}\n")


def files_of_unfinished(cache):
    manifest = read_manifest(cache)
    return 0 if manifest is None or manifest.finished else len(manifest.files)


@pytest.mark.slow
def test_a_stopped_command_is_continued_by_the_same_command(flags, tmp_path, monkeypatch, capsys):
    command = ["cache", str(tmp_path / "cache"), *flags, "--tokens=40000", "--file-mb=1"]
    written = []

    def stopped(*given):
        write_contexts(*given)
        written.append(given)
        if len(written) == 2:  # the held-out part, and the first file
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(cache_writer, "write_contexts", stopped)
        assert main(command) == 143
    said = capsys.readouterr().err
    assert "SIGTERM; run the same command" in said
    assert files_of_unfinished(tmp_path / "cache") == 1
    assert main(command) == 0
    assert main(["cache", str(tmp_path / "whole"), *command[2:]]) == 0
    manifests = [read_manifest(tmp_path / name) for name in ("cache", "whole")]
    assert manifests[0] == manifests[1]
    assert len(manifests[0].files) > 2
    assert not list((tmp_path / "cache").glob(".data*"))


# --- several processes


def files_in(folder):
    """Every file's content, by name."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != LOCK]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.mark.slow
def test_four_processes_write_what_one_writes(flags, four_ranks, tmp_path):
    """Documents of any length, of several hook points, with padding; a text that ends. And one
    process completes what a signal to one of four has stopped."""
    texts = [f"the cat {n} " * (1 + n % 13) for n in range(3000)]
    text = write_jsonl(tmp_path / "short.jsonl", texts)
    padded = [f"--data={text}", "--text-packing=truncate", "--dtype=float16", "--tokens=30000"]
    kinds = {
        "pack": [f"--hook={HOOK},{OTHER}", "--tokens=32000", "--lm-batch-size=20"],
        "truncate": [*padded, f"--hook={HOOK},{OTHER}", "--ctx-len=64"],
        "ends": ["--tokens=10_000_000", "--eval-tokens=0"],
    }
    several, one = (
        {
            name: ["cache", str(tmp_path / f"{name}_{count}"), *flags, "--file-mb=1", *more]
            for name, more in kinds.items()
        }
        for count in (4, 1)
    )
    others = [[*several["pack"], "--tokens=1"], [*several["pack"], "--dtype=float16"]]
    stopped = ["cache", str(tmp_path / "stopped"), *several["pack"][2:]]
    given = {"cache_stopped": stopped, "in_turn": [*several.values(), *others]}
    found = four_ranks.run(tmp_path, given)
    codes, printed = found["in_turn"]
    assert codes == [[0, 0, 0, 0, 2]] * 4, printed
    (line,) = re.findall("vsae: .*", printed)
    assert "has dtype='float32', but this command has dtype='float16'" in line
    for name in kinds:
        assert main(one[name]) == 0
        assert files_in(tmp_path / f"{name}_4") == files_in(tmp_path / f"{name}_1"), name
    assert len(read_manifest(tmp_path / "pack_1").files) == 5

    codes, printed = found["cache_stopped"]
    assert codes == [143] * 4, printed
    (line,) = re.findall("vsae: .*", printed)
    assert line.startswith("vsae: stopped by SIGTERM; ")
    assert "run the same command again to continue the cache" in line
    assert files_of_unfinished(tmp_path / "stopped") == 1
    assert main(stopped) == 0
    assert files_in(tmp_path / "stopped") == files_in(tmp_path / "pack_1")


@pytest.mark.slow
def test_a_killed_cache_is_continued_by_another_number_of_processes(flags, tmp_path):
    def command(name):
        more = ["--tokens=200000", "--text-passes=10", "--file-mb=1"]
        return ["cache", str(tmp_path / name), *flags, *more]

    ranks = Ranks(main, [(command("cache"),)] * 3, tmp_path / "printed")
    *_, last = ranks.processes
    wait_for(lambda: files_of_unfinished(tmp_path / "cache"), last)
    last.kill()
    statuses, said = ranks.ended()
    assert statuses == [2, 2, -signal.SIGKILL], said
    assert "Traceback" not in said
    (line,) = re.findall("vsae: .*", said)
    assert "another process of the run ended or didn't answer" in line
    assert "run the same command again to continue the cache" in line
    assert 1 <= files_of_unfinished(tmp_path / "cache") < 13
    assert main(command("cache")) == 0
    assert main(command("whole")) == 0
    assert files_in(tmp_path / "cache") == files_in(tmp_path / "whole")
