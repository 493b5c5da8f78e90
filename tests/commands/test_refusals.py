"""Mistakes on the command line, as they are typed: each is one line, and nothing is written.

A line names the flag, what was given for it and what is expected. It exits with status 2; other ends of
a command are in tests/test_cli.py, and the refusals of `vsae bench` and `vsae export` with theirs.
"""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from small_commands import content, refused

REFUSED = {
    # A command
    "trian": "'trian': no such command; expected train, eval … did you mean 'train'?",
    "report": "expected FOLDER [FOLDER ...] (see",
    # As in upstream, SAELens or sparsify
    "train --learning-rate 1e-3": "no such flag: --learning-rate; use --lr 1e-3 (see",
    "train --layer 2": "no such flag: --layer; use --hook blocks.2.hook_resid_post (see",
    "train --expansion-factor 4": "no such flag: --expansion-factor; use --dict-size F, where F = 4 x",
    "train --activation-dim 8": "no such flag: --activation-dim; the width follows from the model",
    "train --l1_coefficient=5": "no such flag: --l1-coefficient; use --l1-penalty 5 --architecture relu (",
    "train --architecture TopK": "architecture='TopK': expected … did you mean 'top_k'?",
    "train --k 8,16": "--k 8,16: expected a whole number … `k: {values: [8,16]}` … `vsae sweep FILE`",
    "train --k [8,16]": "expected a whole number … {values: [8,16]}",
    "train --seed 0,1": "--seed 0,1: expected a whole number; use --seeds 0,1 (see",
    "train {small} --hook model.layers.2": "'model.layers.2' … use e.g. blocks.2.hook_resid_post",
    "train {small} --hook model.layers.1.mlp": "'model.layers.1.mlp' … use e.g. blocks.1.hook_mlp_out",
    "train --config {tmp}": "{tmp}: holds the folders of SAEs … e.g. {tmp}/vsae",
    "cache": "expected CACHE (see",
    "report --against runs/a runs/b": "expected FOLDER … --against takes all words after it: type it last",
    "export run --format saelens": "--format saelens: … did you mean 'sae-lens'? (see",
    # A flag that there is not
    "train --dict-siz=3 --foo": "no such flag: --dict-siz; did you mean --dict-size? (see",
    "train -k 32": "-k: flags start with two dashes; did you mean --k?",
    "train --architecture top_k --beta 0": "--beta 0: architecture top_k does not use it; leave it out",
    "train --posterior point --noise-anneal-steps 5": "noise_anneal_steps=5: posterior point does not",
    # A value that is missing or of another type
    "export run": "expected --format, one of sae-bench",
    "train --lr": "--lr: expected a finite number, or none after it (see",
    "train --k many": "--k many: expected a whole number (see",
    "train --architecture matryoshka --group-fractions half": "--group-fractions half: expected "
    "numbers separated by spaces, e.g. 0.25 0.75",
    # A name that there is not
    "train --preset papper": "preset='papper': expected one of recommended … paper … did you mean 'paper'",
    "train {small} --hook blocks.9.hook_resid_post": "blocks.9 … blocks.{0..2}",
    "train --hook blocks.7.hook_resid_pre": "blocks.7 … blocks.{0..3} … use e.g. blocks.3.hook_resid_pre",
    "train --model no/such --hook 2": "no hook point '2' … blocks.N.KIND",
    "train {small} --data nobody/nothing": "data: nobody/nothing: … embedded",
    "train {small} --data {bytes}": "bytes.txt is not UTF-8: it contains byte",
    "train {small} --data {exe}": "data: {tmp}/exe.exe: not a text file; expected one of .txt, .jsonl",
    "train --resume {tmp}/nope": "nope: no such folder; expected a run folder, e.g. runs/NAME",
    "compare {measured} --columns fvee": "columns='fvee'",
    # A value that is out of range, or that doesn't go with the others
    "train {small} --sigma -0.5": "sigma=-0.5: expected above 0 … use posterior='point'",
    "train --config x --preset paper": "--preset and --config: give only one of them",
    "train {small} --noise-to-signal 0.36 --sigma 0.5": "leave out sigma or noise_to_signal",
    "train {small} --save-dir {file}/run": "can't be written",
    "eval {run} --model embedded": "activation_dim=16, but blocks.1 … of embedded is 128 wide",
    "train {small} --data {empty}": "{tmp}/empty.txt' (every 20th document) has 0 tokens; expected at least",
    "cache {tmp}/cache {read} --ctx-len=4096": "ctx_len=4096: expected at most 128",
    "sweep": "give one of: a sweep file, --results FOLDER",
    "sweep --results {tmp} --steps 9": "--steps: only works with a sweep file",
    "sweep --results {tmp} --save-dir x": "--save-dir: only works with a sweep file",
    "sweep --results {tmp}/nope": "nope: no such folder; expected one of a sweep",
    "sweep {tmp}": "a folder; to show a sweep's results, use --results {tmp}; expected a sweep file",
    "sweep {sweep} --max-runs 3": "max_runs=3: expected at least 4, the runs of {tmp}",
    "sweep {sweep} --device=cpu --devices cpu,cpu": "--device and --devices: give only one",
}

BAD_TEXTS = {
    "bytes.txt": b"the cat \xff\xfe sat" + b"the cat sat on the mat. " * 4000,
    "empty.txt": b"\n" * 10_000,
    "exe.exe": b"the cat",
}


@pytest.fixture
def sweeps(flags, tmp_path):
    """A file of four SAEs."""
    parameters = {"k": {"values": [2, 4]}, "seed": {"values": [0, 1]}}
    command = ["vsae", "train", *flags, "${args}"]
    sweep = {"name": "s", "method": "grid", "parameters": parameters, "command": command}
    (tmp_path / "sweep.yaml").write_text(json.dumps(sweep))  # JSON is YAML
    return {"sweep": tmp_path / "sweep.yaml"}


@pytest.mark.slow
@pytest.mark.parametrize("typed", REFUSED)
def test_a_mistake_is_one_line_that_says_what_to_type(
    typed, small, flags, folder, sweeps, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (folder / "metrics.json").write_text('{"fve": 0.5}')
    read = [flag for flag in flags if flag.startswith(("--model", "--data", "--ctx-len"))]
    places = {"small": shlex.join(small), "read": shlex.join(read), "run": folder, **sweeps}
    places |= {"tmp": tmp_path, "file": tmp_path / "file", "measured": folder}
    for name, raw in BAD_TEXTS.items():
        places[Path(name).stem] = tmp_path / name
        (tmp_path / name).write_bytes(raw)
    before = content(tmp_path)
    words = shlex.split(typed.format(**places))
    line = refused(words, capsys)
    parts = REFUSED[typed].replace("{tmp}", str(tmp_path)).split(" … ")
    assert re.search(".*".join(map(re.escape, parts)), line), line
    assert line.endswith(f" (see `vsae {words[0]} --help`)") == ("(see" in line)
    assert content(tmp_path) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_sweeps_device_that_is_not_there_is_named(sweeps, capsys):
    line = refused(["sweep", sweeps["sweep"], "--devices=cuda:0,cuda:1"], capsys)
    assert line.startswith("vsae: devices='cuda:0': ")
    assert line.endswith("; use devices='cpu'")


def test_bench_without_its_extra_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr("dictionary_learning_ext.commands.bench.find_spec", lambda _: None)
    line = refused(["bench", "runs/any"], capsys)
    assert ".venv-saebench/bin/pip install -e '.[sae-bench]'" in line
    assert "pip install 'dictionary-learning-ext" not in line, "it would make this one older"


@pytest.mark.parametrize(
    ("name", "raw"), [("config.json", b"{"), ("model.safetensors", b"x" * 100), ("code", b"")]
)
def test_a_damaged_language_model_is_one_line(name, raw, tiny_lm_dir, flags, tmp_path, capsys):
    lm = shutil.copytree(tiny_lm_dir, tmp_path / "lm")
    if name == "code":
        (lm / "model.safetensors").unlink()
        torch.save({"x": Path("runs")}, lm / "pytorch_model.bin")
    else:
        (lm / name).write_bytes(raw)
    line = refused(["train", *flags, f"--model={lm}", f"--save-dir={tmp_path / 'run'}"], capsys)
    assert str(lm) in line
    assert "weights_only" not in line, "torch's advice would execute what is in the file"
    assert not (tmp_path / "run").exists()
