"""Runs in several processes, see tests/helpers/torchrun.py, and signals to them."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
from dataclasses import replace

import pytest
import torch as t
from caches import write_small
from forks import ended
from interrupted_runs import assert_equal, one_thread, results, stopped_at, written
from planted_sinks import saved_with_sinks
from torchrun import Ranks, printed_by, rank_of, torchrun
from under_torchrun import HOOKS, failing, flags_of, saes

from dictionary_learning_ext import train
from dictionary_learning_ext.cli import main
from dictionary_learning_ext.config.sae import VSAETopKConfig
from dictionary_learning_ext.errors import ConfigError, Interrupted, TrainingError
from dictionary_learning_ext.run_folder.files import resume_point
from dictionary_learning_ext.run_folder.reading import read_history, read_run
from dictionary_learning_ext.run_folder.resume_points import load_point, steps_of
from dictionary_learning_ext.training.processes import (
    ONE_PROCESS,
    Processes,
    interrupts,
    launched,
)

LOST = "another process of the run ended or didn't answer"
OTHER_HOOK = "blocks.1.hook_mlp_out"  # of one SAE in under_torchrun.py


@pytest.fixture(scope="module")
def of_four(anywhere, lm_dir_of, four_ranks, tmp_path_factory):
    """The folder of several scenarios, what four ranks return of each, and print, and the settings of two runs: one of
    text, which one process begins and four end, and one of a cache, which four begin."""
    folder = tmp_path_factory.mktemp("several")
    text = replace(anywhere, steps=48, batch_size=48, n_ctxs=48, lm_batch_size=4, text_passes=None)
    cache = str(folder / "cache_of_text")
    write_small(cache, text, 4000, (text.hook, OTHER_HOOK))
    runs = {
        "text": replace(text, max_norm_multiple=1.5, save_every="20"),
        "cache": replace(text, activations=cache),
    }
    few = replace(text, steps=12, eval_tokens=0)

    with_sinks = replace(
        few, eval_tokens=100, model=saved_with_sinks(lm_dir_of("gpt2"), folder / "sinks_lm")
    )
    cache = str(folder / "cache_with_sinks")
    write_small(cache, with_sinks, 4000, (text.hook, "blocks.1.hook_resid_post"))

    def given(name, run):
        return replace(run, save_dir=str(folder / name))

    stopped = {name: given(f"stopped_{name}", run) for name, run in runs.items()}
    with pytest.MonkeyPatch.context() as patch, one_thread():
        stopped_at(34, patch)
        with pytest.raises(Interrupted):
            train(stopped["text"], saes(), HOOKS)
    newest = resume_point(folder / "stopped_text" / "top_k", 34)
    newest.write_bytes(newest.read_bytes()[:1000])  # all continue from the one before
    scenarios = {"continued": stopped["text"], "interrupted": stopped["cache"]}
    scenarios |= {"one_fails": given("one_fails", few), "lost": given("lost/run", few)}
    scenarios |= {"commands": few, "not_shared": given("not_shared/run", few)}
    scenarios |= {"sinks": given("sinks/run", replace(with_sinks, activations=cache))}
    return folder, four_ranks.run(folder, scenarios), runs


@pytest.fixture(scope="module")
def of_one(of_four):
    """The folders of the same runs in one process, by the source and the SAE."""
    folder, _, runs = of_four
    with one_thread():
        return {
            name: train(replace(run, save_dir=str(folder / f"{name}1")), saes(), HOOKS)
            for name, run in runs.items()
        }


@pytest.mark.slow
@pytest.mark.parametrize("source", ["text", "cache"])
def test_every_architecture_continues_in_another_number_of_processes(of_four, of_one, source):
    """A text's run is begun in one and ends in four, a cache's the other way round. Logs, resume points and evaluations are
    bit-identical, too."""
    folder, found, runs = of_four
    steps, where = runs[source].steps, folder / f"stopped_{source}"
    if source == "cache":
        (said,) = set(found["interrupted"][0])
        assert "by SIGTERM at step 34; continue with `torchrun --nproc-per-node 4 " in said
        assert {steps_of(where / name)[-1] for name in saes()} == {34}
        with one_thread():
            train(replace(runs[source], save_dir=str(where)), saes(), HOOKS, resume=True)
    for name, whole in of_one[source].items():
        assert_equal(results(whole, steps), results(where / name, steps))


@pytest.mark.slow
def test_each_sae_is_trained_by_one_process(of_four):
    ranks, _ = of_four[1]["continued"]
    assert sorted(name for own in ranks for name in own) == sorted(saes())
    assert max(map(len, ranks)) - min(map(len, ranks)) <= 1


@pytest.mark.slow
def test_an_sae_that_fails_ends_alone_and_every_process_says_so(of_four):
    folder, found, _ = of_four
    ranks, printed = found["one_fails"]
    (said,) = set(ranks)
    assert "a: failed at or before step 5: not finite" in said
    assert "b: failed at or before step 6: MemoryError" in said
    assert f"trained and saved: {folder / 'one_fails' / 'c'}" in said
    assert (folder / "one_fails" / "c" / "ae.pt").is_file()
    assert "b: its trainer raised at step 6\nTraceback" in printed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("text", "rank 1 has text=.*, but rank 0 has text="),
        ("activations", "rank 1 has activations=.*, but rank 0 has activations="),
        ("run folders", "resume point in .* on storage that all machines share"),
        ("cache", "rank 1 has .*text=.*, but rank 0 has "),
    ],
)
def test_what_all_must_share_is_compared_at_the_start(of_four, what, said):
    ranks, _ = of_four[1]["not_shared"]
    assert ranks[0][what] == ranks[1][what]
    assert re.search(said, ranks[0][what])


@pytest.mark.slow
def test_with_a_cache_each_hook_points_sinks_are_said_once(of_four):
    _, printed = of_four[1]["sinks"]
    for hook in ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post"):
        assert printed.count(f"{hook}: some activations are far larger") == 1


@pytest.mark.slow
def test_mistakes_of_several_processes_are_one_line(of_four):
    folder, found, _ = of_four
    ranks, _ = found["commands"]
    assert {code for rank in ranks for code, _ in rank.values()} == {2}
    lines = {}
    for name in ranks[0]:
        (lines[name],) = filter(None, (rank[name][1].strip() for rank in ranks))
    if t.cuda.is_available():
        assert "use device='cuda'" in lines["one_device"]
    else:
        assert all(lines[n].endswith("; use device='cpu'") for n in ("device", "one_device"))
    assert "`vsae train`" in lines["sweep"]
    assert lines["sweep"].endswith("run `vsae sweep` without it")
    assert "--stepz" in lines["flag"]
    assert all(line.count("\n") == 0 for line in lines.values())
    assert not list((folder / "commands").glob("*/config.json"))


@pytest.mark.slow
def test_an_error_that_is_raised_later_than_its_call_is_one_line(of_four):
    """As nccl's are."""
    folder, found, _ = of_four
    ranks, printed = found["lost"]
    assert "Traceback" not in printed
    for name in ranks[0]:
        assert [rank[name][0] for rank in ranks] == [2] * 4, name
        said = [line for rank in ranks for line in re.findall("vsae: .*", rank[name][1])]
        assert len(said) == 1, name
        assert LOST in said[0]
        is_prepared = name != "mean_squared_norms"  # before it, nothing is written
        assert (f"train --resume {folder}" in said[0]) == is_prepared, name
        assert ("start it" in said[0]) != is_prepared, name
        assert all("Traceback" not in rank[name][1] for rank in ranks), name


# --- the command, which is interrupted, killed and resumed


@pytest.fixture
def run(run):
    return replace(run, steps=20, batch_size=48, eval_tokens=0)


@pytest.fixture
def flags(run):
    return ["train", *flags_of(replace(run, steps=150, eval_tokens=200))]


def after_some_steps(process, folder, lines=4):
    """Wait until a run has logged as many lines more."""
    lines += written(folder)
    while process.poll() is None and written(folder) < lines:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.01)


@pytest.mark.ci
@pytest.mark.slow
def test_machines_share_a_run_that_one_process_ends(flags, run, tmp_path):
    """Two launchers stand for two machines. Two SAEs at two hook points: one line, and a resume point of each."""
    hooks, folder, whole = (run.hook, OTHER_HOOK), tmp_path / "run", tmp_path / "whole"
    command = [*flags, f"--hook={','.join(hooks)}", "--eval-every=29"]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        endpoint = f"localhost:{free.getsockname()[1]}"
    meeting = ["--nnodes=2", "--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}"]
    machines = [torchrun(1, *command, meeting=meeting) for _ in range(2)]
    after_some_steps(machines[0], folder / run.hook)
    machines[1].send_signal(signal.SIGTERM)
    errors = "".join(map(printed_by, machines))
    assert set(re.findall(r"exitcode +: (-?\d+)", errors)) == {"143"}, errors
    (line,) = re.findall("vsae: .*", errors)
    step = int(re.findall("at step ([0-9]+)", line)[0])
    again = "torchrun --nnodes 2 --nproc-per-node 1 -m dictionary_learning_ext train --resume"
    assert line == f"vsae: stopped by SIGTERM at step {step}; continue with `{again} {folder}`"
    assert {steps_of(folder / hook)[-1] for hook in hooks} == {step}
    with one_thread():
        assert main(["train", "--resume", str(folder)]) == 0
        assert main([*command, f"--save-dir={whole}"]) == 0
    for hook in hooks:
        assert_equal(results(whole / hook, 150), results(folder / hook, 150))
        measured = [x["step"] for x in read_history(folder / hook) if "heldout/loss_added" in x]
        assert measured == [*range(0, 150, 29), 150]


@pytest.mark.ci
@pytest.mark.slow
def test_a_killed_rank_ends_the_others(flags, tmp_path):
    """Of the real torchrun."""
    folder = tmp_path / "run"
    process = torchrun(2, *flags, "--steps=100000")
    after_some_steps(process, folder)
    rank_of(process, 0).kill()
    error = printed_by(process)
    assert process.returncode != 0
    (line,) = re.findall("vsae: .*", error)  # behind the progress bar of a rank 0 that was killed
    assert LOST in line
    assert_resumable(line, folder)
    assert "]: Traceback" not in error, "torchrun's own has no rank before it"


def assert_resumable(line, folder):
    """The line says how to continue, and there is a point."""
    resume = f"`torchrun --nproc-per-node 2 -m dictionary_learning_ext train --resume {folder}`"
    assert resume in line
    load_point(folder, steps_of(folder)[-1])


def failing_ranks(what, rank, run, tmp_path):
    """Two ranks, of which one fails."""
    given = what, rank, replace(run, save_every="2")
    return Ranks(failing, [given] * 2, tmp_path / "printed")


@pytest.mark.slow
def test_a_rank_that_fails_says_why_and_ends_the_run(run, tmp_path):
    folder = tmp_path / "run"
    statuses, printed = failing_ranks("nan", 1, run, tmp_path).ended()
    assert statuses == [2, 2]
    lines = re.findall("vsae: .*", printed)
    assert sum("step 5: 3 activations" in line for line in lines) == 1
    (lost,) = (line for line in lines if LOST in line)
    assert f"train --resume {folder}`" in lost
    assert steps_of(folder) == [2, 4], "no point is written after an error"


@pytest.mark.ci
@pytest.mark.slow
def test_a_rank_that_hangs_ends_the_run_after_the_timeout(run, tmp_path):
    """--rank-timeout 8."""
    ranks = failing_ranks("stopped", 0, run, tmp_path)
    hanging, other = ranks.processes
    assert ended(other) == [2]
    assert hanging.is_alive()
    hanging.kill()
    _, printed = ranks.ended()
    (line,) = re.findall("vsae: .*", printed)
    assert LOST in line
    assert_resumable(line, tmp_path / "run")
    assert "Traceback" not in printed
    assert steps_of(tmp_path / "run")[-1] == 4


# --- without other processes


@pytest.mark.commands
def test_one_process_needs_no_others(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "4")  # as SLURM or a notebook may have it
    assert launched() is ONE_PROCESS
    assert ONE_PROCESS.largest(3, True) == [3, 1]
    assert ONE_PROCESS.are_all(True)
    assert ONE_PROCESS.command == "vsae"
    assert ONE_PROCESS.device("cuda:1") == "cuda:1"


@pytest.mark.parametrize(
    ("more", "command"),
    [
        ({}, "srun --ntasks=1 --ntasks-per-node=1 torchrun --nproc-per-node 6 -m "),
        ({"SLURM_STEP_NUM_NODES": "2"}, "srun --ntasks=2 --ntasks-per-node=1 torchrun --nnodes 2 "),
        ({"SLURM_STEP_NUM_TASKS": "1"}, None),
        ({"WANDB_SWEEP_ID": "abc"}, None),
    ],
)
def test_several_tasks_of_srun_are_refused_with_the_command_that_works(
    run, tmp_path, monkeypatch, more, command, capsys
):
    """SLURM_NTASKS may be that of the allocation, in which one process was started."""
    given = {"SLURM_STEP_NUM_TASKS": "6", "SLURM_NTASKS": "6", "SLURM_PROCID": "0"} | more
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    code = main(["train", *flags_of(replace(run, steps=1))])
    assert (tmp_path / "run").exists() == (code == 0), "refused before anything is written"
    error = capsys.readouterr().err
    assert code == (0 if command is None else 2), error
    assert command is None or command in error.splitlines()[-1]


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    used = []
    monkeypatch.setattr(t.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(t.cuda, "set_device", used.append)
    assert [Processes(r, 2, r, 2).device("cuda") for r in range(2)] == ["cuda:0", "cuda:1"]
    assert Processes(3, 4, 1, 2).device("cuda") == "cuda:1", "of the second machine"
    assert Processes(1, 2, 0, 1).device("cuda:1") == "cuda:1", "one process on each machine"
    assert used == [0, 1, 1, 1]
    assert Processes(0, 2, 0, 2).device("cpu") == "cpu"
    with pytest.raises(ConfigError, match="use device='cuda'"):
        Processes(0, 2, 0, 2).device("cuda:0")
    with pytest.raises(ConfigError, match=r"2 CUDA devices, .*-per-node 2$"):
        Processes(2, 3, 2, 3).device("cuda")
    assert used == [0, 1, 1, 1]


def test_a_run_resumes_with_the_device_that_was_given(run, tmp_path, monkeypatch):
    """Not with that of rank 0, which the processes can't share."""
    asked = []

    def device(self, device):
        asked.append(device)
        return "cpu:0"

    monkeypatch.setattr(Processes, "device", device)
    train(run, {"x": VSAETopKConfig(dict_size=32, k=4)})
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["run"]["settings"]["device"] == "cpu"
    assert config["trainer"]["device"] == config["buffer"]["device"] == "cpu:0"
    (tmp_path / "run" / "ae.pt").unlink()
    train(*read_run(tmp_path / "run"), resume=True)
    assert asked == ["cpu", "cpu"]


def test_all_must_read_the_same(monkeypatch):
    alike = {"language model": "a" * 64, "tokenizer": "b" * 64}
    ONE_PROCESS.require_alike(alike, "copy it")
    other = alike | {"tokenizer": "c" * 64}
    monkeypatch.setattr(Processes, "gather", lambda self, what: [what, alike, other])
    with pytest.raises(
        TrainingError, match=r"rank 2 has tokenizer='ccc.*, but rank 0 has tokenizer='bbb.*copy"
    ):
        Processes(0, 3).require_alike(alike, "copy it")


# --- signals


@pytest.fixture
def former_handlers():
    """What the signals did before, which is put back."""
    former = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    yield former
    for each, handler in former.items():
        signal.signal(each, handler)


def stopped():
    """One of several processes that gets more signals, where it may finish something and where it may not."""
    with interrupts(Processes(0, 2)) as signals:
        with signals.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        signals.check()


def stopped_before_the_first_step():
    with interrupts(Processes(0, 2)):
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("is not interrupted")


@pytest.mark.parametrize("how", [stopped, stopped_before_the_first_step])
def test_of_several_processes_one_obeys_the_first_signal_alone(how, former_handlers):
    """torchrun sends SIGTERM to all when one has ended: it must not end one that is about to write."""
    with pytest.raises(Interrupted) as stop:
        how()
    assert stop.value.signal == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


def test_of_several_processes_one_that_ends_well_gives_its_handlers_back(former_handlers):
    with interrupts(Processes(0, 2)):
        assert signal.getsignal(signal.SIGTERM) != former_handlers[signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) == former_handlers[signal.SIGTERM]
