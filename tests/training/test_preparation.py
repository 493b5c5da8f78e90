"""What is refused before torch is imported."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from dictionary_learning_ext import RunConfig, SAEConfig
from dictionary_learning_ext.errors import ConfigError
from dictionary_learning_ext.training.plan import hook_points_of
from dictionary_learning_ext.training.plan import plan as prepared

SCRIPT = """
import json, sys
from dictionary_learning_ext.cli import main
for case in json.loads(sys.argv[1]):
    assert main(["train", *case]) == 2, case
heavy = [name for name in ("torch", "numpy", "nnsight", "transformers") if name in sys.modules]
assert not heavy, heavy
"""


def test_a_bad_value_is_refused_before_torch_is_imported(tmp_path):
    (tmp_path / "runs" / "there").mkdir(parents=True)
    (tmp_path / "runs" / "there" / "ae.pt").write_bytes(b"weights")
    cases = {
        "--k 600": "--k 600: expected 1 to --dict-size 512",
        "--decay-start 5000": "--decay-start 5000: expected between",
        "--normalize none": "expected --normalize sqrt_d or unit",
        "--architecture relu --k 3": "architecture relu does not use it",
        "--data ./nothing.txt": "no file './nothing.txt': expected an existing file",
        "--save-dir runs/there": "already holds a run (ae.pt)",
        "--k many": "--k many: expected a whole number",
    }
    words = json.dumps([case.split() for case in cases])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, words],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    for line, said in zip(done.stderr.splitlines(), cases.values(), strict=True):
        assert said in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]


def test_a_run_that_resumes_may_have_its_folder(tmp_path):
    (tmp_path / "ae.pt").write_bytes(b"weights")
    run = RunConfig(save_dir=str(tmp_path), data=str(tmp_path / "moved.txt"))
    saes, folders = prepared(run, {"x": SAEConfig()}, resume=True)
    assert saes["x"].warmup_steps == 120
    assert folders == {"x": tmp_path}
    with pytest.raises(ConfigError, match="already holds a run"):
        prepared(run, {"x": SAEConfig()}, resume=False)


@pytest.mark.parametrize("wandb", ["online", "offline"])
def test_a_sweeps_agent_trains_one_sae_at_a_time(wandb, tmp_path, monkeypatch):
    """It gives one run of wandb, which two SAEs would share."""
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    run = RunConfig(save_dir=str(tmp_path / "runs"), wandb=wandb)
    prepared(run, {"a": SAEConfig()}, resume=False)
    two = {"a": SAEConfig(), "b": SAEConfig()}
    prepared(replace(run, wandb="disabled"), two, resume=False)
    with pytest.raises(ConfigError, match=r"one SAE, .* got 2 \(a, b\); give a single hook, e"):
        prepared(run, two, resume=False)


def test_each_sae_has_its_hook_point_or_the_runs():
    saes = {"a": SAEConfig(), "b": SAEConfig()}
    run = RunConfig(hook="blocks.1.hook_mlp_out")
    assert hook_points_of(run, saes, None) == dict.fromkeys(saes, run.hook)
    assert hook_points_of(run, saes, {"b": "x"}) == {"a": run.hook, "b": "x"}
    with pytest.raises(ConfigError, match=r"hooks has 'c', which is no SAE: expected any of a, b"):
        hook_points_of(run, saes, {"c": "x"})
