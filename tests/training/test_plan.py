"""What a run will train, and what is refused before a language model is loaded, or torch."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from caches import write_small
from small_commands import refused

from dictionary_learning_ext import RunConfig
from dictionary_learning_ext.activations import inputs
from dictionary_learning_ext.activations.language_models import Pretrained
from dictionary_learning_ext.config.sae import VSAETopKConfig
from dictionary_learning_ext.errors import ActivationsError, ConfigError
from dictionary_learning_ext.training.plan import plan, require_memory, with_hook_names
from dictionary_learning_ext.training.processes import Processes, resuming_command

GB = 10**9
SCRIPT = """
import json, sys
from dictionary_learning_ext.cli import main
for case in json.loads(sys.argv[1]):
    assert main(["train", *case]) == 2, case
heavy = [name for name in ("torch", "numpy", "nnsight", "transformers") if name in sys.modules]
assert not heavy, heavy
"""


@pytest.mark.commands
def test_a_bad_value_is_refused_before_torch_is_imported(tmp_path):
    (tmp_path / "runs" / "there").mkdir(parents=True)
    (tmp_path / "runs" / "there" / "ae.pt").write_bytes(b"weights")
    for folder in ("runs/lm", "runs/many/one"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "config.json").write_text('{"model_type": "gpt2"}')
    trained = '{"trainer": {"dict_class": "AutoEncoderTopK"}}'
    (tmp_path / "runs/many/one/config.json").write_text(trained)
    cases = {
        "--k 600": "k=600: expected 1 to dict_size=512",
        "--decay-start 9000": "decay_start=9000: expected between 800 and steps=8000",
        "--normalize none": "normalize='none': expected sqrt_d or unit",
        "--architecture relu --k 3": "architecture relu does not use it",
        "--data ./nothing.txt": "data: ./nothing.txt: no such file; expected an existing file",
        "--save-dir runs/there": "holds ae.pt but no config.json",
        "--save-dir runs/lm --overwrite": "holds a config.json that isn't from a run",
        f"--save-dir {'x' * 300}": "File name too long",
        "--save-dir runs/many": "save_dir='runs/many': expected a folder of its own, and this one holds other runs: one",
        "--init-from runs/none": "init_from='runs/none': expected the folder of a trained SAE",
        "--k many": "--k many: expected a whole number",
        "--hook blocks.4.hook_mlp_out": "blocks.{0..3}.KIND",
        "--model a/b --hook late": "no hook point 'late'",
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


A, B = VSAETopKConfig(), VSAETopKConfig(dict_size=64)


def test_the_command_that_continues_names_the_folder():
    assert resuming_command([Path("a/x"), Path("a/y")]) == "vsae train --resume a"
    assert resuming_command([Path()]) == "vsae train --resume ."


def test_a_run_that_resumes_may_have_its_folder(tmp_path):
    (tmp_path / "ae.pt").write_bytes(b"weights")
    run = RunConfig(save_dir=str(tmp_path), data=str(tmp_path / "moved.txt"))
    (job,) = plan(run, {"x": VSAETopKConfig()}, resume=True).jobs
    assert job.config.sae.dead_feature_threshold == 100 * 1024 // 32, "resolved"
    assert (job.name, job.folder) == ("x", tmp_path)
    with pytest.raises(ConfigError, match=r"ae\.pt"):
        plan(run, {"x": VSAETopKConfig()})


def test_of_a_run_that_resumes_finished_and_failed_saes_are_left_out(tmp_path):
    run = RunConfig(save_dir=str(tmp_path))
    names = ("finished", "failed", "left")
    for name in names:
        (tmp_path / name).mkdir()
    (tmp_path / "failed" / "failed.json").write_text("{}")
    for name in ("ae.pt", "metrics.json"):
        (tmp_path / "finished" / name).touch()
    planned = plan(run, dict.fromkeys(names, VSAETopKConfig()), resume=True)
    assert [[job.name for job in stage.jobs] for stage in planned.stages()] == [["left"]]


@pytest.mark.parametrize("wandb", ["online", "offline"])
def test_a_sweeps_agent_trains_one_sae_at_a_time(wandb, tmp_path, monkeypatch):
    """It gives one run of wandb, which two SAEs would share."""
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    run = RunConfig(save_dir=str(tmp_path / "runs"), wandb=wandb)
    plan(run, {"a": A})
    plan(replace(run, wandb="disabled"), {"a": A, "b": B})
    with pytest.raises(ConfigError, match=r"^wandb='.*a, b; .* hook"):
        plan(run, {"a": A, "b": B})


@pytest.mark.parametrize("saes", [VSAETopKConfig(), [VSAETopKConfig()], {}, {"a": 4}, None])
def test_saes_are_given_by_name(saes):
    with pytest.raises(ConfigError, match=r"^saes="):
        plan(RunConfig(), saes)


def test_each_sae_has_a_folder_and_its_hook_point_or_the_runs(tmp_path):
    run = RunConfig(hook="blocks.1.hook_mlp_out", save_dir=str(tmp_path))
    other = "blocks.0.hook_attn_out"
    jobs = plan(run, {"a": A, "b": B}, {"b": other}).jobs
    assert [(job.name, job.hook) for job in jobs] == [("a", run.hook), ("b", other)]
    assert [job.folder for job in jobs] == [tmp_path / "a", tmp_path / "b"]
    assert plan(run, {"a": A}).folders[0] == tmp_path
    with pytest.raises(ConfigError, match=r"'c'.* a, b"):
        plan(run, {"a": A, "b": B}, {"c": "x"})


# --- the default hook point


def test_the_default_hook_point_is_a_middle_layer_of_any_model(tiny_lm_dir, tmp_path):
    run = RunConfig(model=str(tiny_lm_dir), save_dir=str(tmp_path))
    planned = plan(run, {"a": A, "b": B, "c": A}, {"b": "blocks.0.hook_mlp_out", "c": "middle"})
    middle = "blocks.1.hook_resid_post"
    assert Pretrained(str(tiny_lm_dir)).n_blocks == 3
    assert planned.settings.hook == middle
    assert [job.hook for job in planned.jobs] == [middle, "blocks.0.hook_mlp_out", middle]
    (job,) = plan(RunConfig(), {"a": A}).jobs
    assert job.hook == f"blocks.{Pretrained('embedded').n_blocks // 2}.hook_resid_post"


def test_the_middle_layer_is_one_of_several_hook_points(tiny_lm_dir):
    run = with_hook_names(RunConfig(model=str(tiny_lm_dir), hook="middle,blocks.0.hook_mlp_out"))
    assert run.hooks == ["blocks.1.hook_resid_post", "blocks.0.hook_mlp_out"]
    with pytest.raises(ConfigError, match=r"^hook=.*blocks\.1\.hook_resid_post"):
        with_hook_names(replace(run, hook="blocks.1.hook_resid_post,middle"))


def test_the_hook_point_of_stored_activations_is_their_own(small_cache, cached_run, tmp_path):
    write_small(tmp_path / "one", cached_run, hooks=["blocks.0.hook_resid_post"])
    stored = replace(cached_run, activations=str(tmp_path / "one"), hook=RunConfig.hook)
    assert plan(stored, {"a": A}).settings.hook == "blocks.0.hook_resid_post"
    several = replace(stored, hook="middle,blocks.0.hook_mlp_out")
    assert with_hook_names(several).hooks == ["blocks.0.hook_resid_post", "blocks.0.hook_mlp_out"]
    with pytest.raises(ActivationsError, match="choose one with hook"):
        plan(replace(stored, activations=str(small_cache)), {"a": A})


# --- memory


@pytest.fixture
def machine(monkeypatch):
    """A machine of so many bytes, whatever this one has."""

    def of(total):
        memory = psutil.virtual_memory()._replace(total=total, available=total // 2)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)

    return of


def test_too_large_an_sae_is_refused_before_anything_is_loaded(
    flags, machine, monkeypatch, tmp_path, capsys
):
    machine(24 * GB)
    monkeypatch.setattr(inputs, "load_model", lambda *_, **__: pytest.fail("it was loaded"))
    save_dir = tmp_path / "run"
    command = ["train", *flags, "--dict-size=1000000000", f"--save-dir={save_dir}"]
    line = refused(command, capsys)
    assert "machine has 24GB; lower dict_size" in line
    assert not save_dir.exists()


def test_memory_must_hold_every_sae(tmp_path, machine):
    saes = {"a": VSAETopKConfig(dict_size=64, k=4), "b": VSAETopKConfig(dict_size=32, k=4)}
    jobs = plan(RunConfig(save_dir=str(tmp_path)), saes).jobs
    widths = {jobs[0].hook: 16}
    needed = 4 * 4 * 2 * (64 + 32) * 16  # weights, gradients, two averages; encoder and decoder
    machine(needed)
    require_memory(jobs, widths, "cpu")
    machine(needed - 1)
    with pytest.raises(ConfigError, match=r"lower dict_size"):
        require_memory(jobs, widths, "cpu")


@pytest.mark.parametrize(
    ("count", "dealt"),
    [
        (1, [["a", "b", "c", "d"]]),
        (2, [["b"], ["a", "c", "d"]]),
        (3, [["b"], ["a"], ["c", "d"]]),
        (5, [["b"], ["a"], ["c"], ["d"], []]),
    ],
)
def test_each_process_has_its_share_of_a_plan_the_largest_saes_dealt_first(count, dealt, tmp_path):
    """On a machine of its own: so is its memory."""
    saes = {"a": VSAETopKConfig(dict_size=64, k=4), "b": VSAETopKConfig(dict_size=256, k=4)}
    saes |= {"c": VSAETopKConfig(dict_size=32, k=4), "d": VSAETopKConfig(dict_size=32, k=4)}
    late = "blocks.3.hook_mlp_out"
    planned = plan(RunConfig(save_dir=str(tmp_path)), saes, {"c": late, "d": late})
    ranks = [Processes(rank, count) for rank in range(count)]
    for rank, names in zip(ranks, dealt, strict=True):
        assert [job.name for job in planned.jobs_of(rank)] == names
        assert planned.in_memory_of(rank, "cpu") == planned.jobs_of(rank)
    spoken_for = [hook for rank in ranks for hook in planned.new_hooks_of(rank)]
    assert sorted(spoken_for) == sorted(planned.hooks), "each hook point once"


def test_the_processes_of_a_machine_share_its_memory_unless_each_has_a_gpu(tmp_path):
    planned = plan(RunConfig(save_dir=str(tmp_path)), {"a": A, "b": B})
    second = Processes(rank=3, count=4, local_rank=1, local_count=2)
    assert [planned.in_memory_of(second, device) for device in ("cpu", "cuda:1")] == [[], []]
    alone = Processes(rank=1, count=2, local_rank=1, local_count=2)
    names = [[job.name for job in planned.in_memory_of(alone, d)] for d in ("cpu", "cuda:1")]
    assert names == [["a", "b"], ["b"]]


def test_a_language_model_in_parts_is_for_one_process(monkeypatch):
    run = RunConfig(device_map="auto")
    plan(run, {"a": A})
    for name, value in {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(ConfigError, match=r"device_map='auto'.*2 processes"):
        plan(run, {"a": A})
