"""What is logged, and wandb, which may fail at any time: training does not notice, and the user does."""

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import psutil
import pytest
import torch as t
from forks import ended, forked
from interrupted_runs import a_point, resumed, sae_of, stopped_at
from wandb_files import history, records

from dictionary_learning_ext import train
from dictionary_learning_ext.cli import main
from dictionary_learning_ext.config.run import RunConfig, TrainConfig
from dictionary_learning_ext.errors import ConfigError, Interrupted, TrainingError
from dictionary_learning_ext.run_folder.reading import read_history
from dictionary_learning_ext.training.logs import RunLog
from dictionary_learning_ext.training.sae_run import SAERun


def opened(folder, mode="offline", **options):
    folder.mkdir(exist_ok=True)
    config = TrainConfig(sae_of(), RunConfig(wandb=mode, wandb_project="p"))
    log = RunLog(folder, config, 1.0)
    log.open_wandb("g", **options)
    return log


def without_wandb_from_the_third_line_on(words):
    """`vsae train`, whose wandb process is killed in the middle of the run."""
    original, logged = RunLog.log, []

    def log(self, metrics):
        original(self, metrics)
        logged.append(metrics)
        if len(logged) == 3:
            (service,) = (one for one in psutil.Process().children() if "wandb" in one.name())
            service.kill()

    RunLog.log = log
    return main(words)


@pytest.mark.slow
def test_a_dead_wandb_process_is_said_and_does_not_stop_the_run(
    tiny_lm_dir, text, tmp_path, own_wandb
):
    run = tmp_path / "run"
    flags = f"--model={tiny_lm_dir} --data={text} --steps=400 --batch-size=32 --n-ctxs=8"
    flags += f" --ctx-len=32 --dict-size=32 --k=4 --eval-tokens=0 --log-steps=2 --save-dir={run}"
    printed = tmp_path / "printed"
    command = ["train", "--wandb=offline", *flags.split()]
    statuses = ended(forked(without_wandb_from_the_third_line_on, command, printed=printed))
    error = printed.read_text()
    assert statuses == [0], error
    assert error.count("wandb failed") == 1
    assert "metrics.jsonl has" in error
    assert "Traceback" not in error
    assert (run / "ae.pt").exists()
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 201


class FakeRun:
    """Remembers what a run of wandb is told."""

    server: ClassVar[dict[str, float]] = {}  # the summary that the server has of a run

    def __init__(self, options):
        self.options, self.id = options, options["id"] or "new"
        self.summary = dict(self.server if options["mode"] == "online" else {})
        self.steps, self.ended, self.preempted = [], [], False
        self.told, self.step_metric, self.artifacts = [], None, []

    def define_metric(self, name, step_metric):
        assert name == "*"
        self.step_metric = step_metric

    def log(self, metrics):
        assert self.step_metric == "step"
        self.steps.append(metrics["step"])
        self.told.append(metrics)

    def finish(self, exit_code):
        self.ended.append(exit_code)

    def log_artifact(self, artifact):
        self.artifacts.append(artifact)

    def mark_preempting(self):
        self.preempted = True


@pytest.fixture
def fake_runs(monkeypatch):
    """The runs of wandb that were opened, in order."""
    runs = []

    def init(**options):
        runs.append(FakeRun(options))
        return runs[-1]

    monkeypatch.setattr("wandb.init", init)
    for name in ("WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    return runs


def test_a_run_logs_each_step_and_its_evaluation_and_ends_with_0(run, fake_runs):
    (folder,) = train(replace(run, wandb="offline", eval_every=30), {"x": sae_of()}).values()
    (told,) = fake_runs
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert told.told == [json.loads(line) for line in lines]
    assert "heldout/fve" in told.told[0]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert told.summary["eval/fve"] == metrics["fve"]
    assert told.ended == [0]
    assert told.options["config"]["norm_factor"] != 1.0


@pytest.mark.parametrize(("group", "expected"), [("a sweep", "a sweep"), (None, "runs")])
def test_runs_are_quiet_and_grouped_by_the_sweep_or_their_folder(
    group, expected, run, fake_runs, tmp_path
):
    where = str(tmp_path / "runs" / "one")
    train(replace(run, wandb="offline", save_dir=where), {"x": sae_of()}, group=group)
    (told,) = fake_runs
    assert told.options["group"] == expected
    assert told.options["settings"].quiet


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_a_resumed_run_is_told_what_the_server_has_not(mode, run, fake_runs, monkeypatch):
    """Offline, there is no server to ask, so each process logs all its steps."""
    stopped_at(33, monkeypatch)
    with pytest.raises(Interrupted):
        train(replace(run, wandb=mode), {"x": sae_of()})
    assert fake_runs[0].ended == [128 + signal.SIGINT]
    monkeypatch.setattr(FakeRun, "server", {"step": fake_runs[0].steps[-1]})
    resumed(run.save_dir)
    first, second = fake_runs
    assert second.options["id"] == first.id
    steps = [line["step"] for line in read_history(Path(run.save_dir))]
    assert second.steps == (steps if mode == "offline" else steps[len(first.steps) :])
    assert first.steps == steps[: len(first.steps)]
    assert second.ended == [0]


def test_wandbs_charts_are_over_the_step(tmp_path, own_wandb, monkeypatch):
    """In the file that wandb itself writes offline."""
    for name in ("WANDB_SWEEP_ID", "WANDB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    log = opened(tmp_path / "run")
    for step in (0, 100):
        log.log({"step": step, "fve": 0.5})
    log.close(0)
    own_wandb()  # it has then written its files
    (path,) = tmp_path.glob("run/wandb/offline-run-*/run-*.wandb")
    assert [(row["step"], row["fve"]) for row in history(path)] == [(0, 0.5), (100, 0.5)]
    defined = [each.metric for each in records(path) if each.WhichOneof("record_type") == "metric"]
    assert ("*", "step") in [(metric.glob_name, metric.step_metric) for metric in defined]


def test_a_run_that_was_stopped_before_its_first_line_logs_step_0(tmp_path, fake_runs):
    config = TrainConfig(sae_of(), RunConfig(wandb="offline"))
    log = RunLog(tmp_path, config, 1.0)
    log.resume(a_point(wandb_id="before"), "group")
    log.log({"step": 0.0})
    assert fake_runs[0].steps == [0]


def test_a_resume_without_a_network_keeps_the_runs_id_for_the_next_one(tmp_path, monkeypatch):
    monkeypatch.setattr("wandb.init", lambda **_: 1 / 0)
    log = RunLog(tmp_path, TrainConfig(sae_of(), RunConfig(wandb="online")), 1.0)
    log.resume(a_point(wandb_id="before"), "group")
    assert log.state()["wandb_id"] == "before"


def test_what_was_trained_without_a_network_is_logged_once_there_is_one(
    tmp_path, fake_runs, monkeypatch
):
    monkeypatch.setattr(FakeRun, "server", {"step": 0})
    log = RunLog(tmp_path, TrainConfig(sae_of(), RunConfig(wandb="online")), 1.0)
    for step in (0.0, 10.0):
        log.log({"step": step})
    log.resume(a_point(11, **log.state() | {"wandb_id": "before"}), "group")
    assert fake_runs[0].steps == [10]


def test_what_is_not_finite_is_left_out_and_so_it_is_when_a_run_is_told_again(tmp_path, fake_runs):
    config = TrainConfig(sae_of(), RunConfig(wandb="offline"))
    log = RunLog(tmp_path, config, 1.0)
    log.open_wandb("group")
    log.log({"step": 0.0, "fve": t.nan, "loss": 2.0})
    point = a_point(1, **log.state() | {"wandb_id": None})
    RunLog(tmp_path, config, 1.0).resume(point, "group")
    live, again = fake_runs
    assert live.told == again.told == [{"step": 0.0, "loss": 2.0}]
    (line,) = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert line["fve"] is None
    assert list(line["not_measured"]) == ["fve"], "with the reason"


@pytest.mark.parametrize("code", [0, 1])
def test_the_sae_of_a_run_that_succeeded_is_uploaded_and_no_other(code, tmp_path, fake_runs):
    config = TrainConfig(sae_of(), RunConfig(wandb="offline", wandb_artifacts=True))
    log = RunLog(tmp_path, config, 1.0)
    log.open_wandb("g")
    (tmp_path / "ae.pt").write_bytes(b"weights")
    log.close(code)
    assert [[*each.manifest.entries] for each in fake_runs[0].artifacts] == [["ae.pt"]] * (
        code == 0
    )


def test_an_sae_that_failed_ends_its_run_with_1_and_no_others(run, fake_runs, monkeypatch):
    original = SAERun.update

    def poisoned(self, step, x_BD):
        original(self, step, x_BD * t.nan if self.name == "bad" and step == 15 else x_BD)

    monkeypatch.setattr(SAERun, "update", poisoned)
    with pytest.raises(TrainingError, match="bad: failed"):
        train(replace(run, wandb="offline"), {"bad": sae_of(), "good": sae_of("top_k")})
    ended = {told.options["name"]: told.ended for told in fake_runs}
    assert ended["bad"] == [1]
    assert ended["good"] != [1]


@pytest.mark.parametrize("code", [0, 1, 128 + signal.SIGTERM])
@pytest.mark.parametrize("is_agents", [True, False])
def test_only_an_agents_run_that_sigterm_ended_is_handed_out_again(
    is_agents, code, tmp_path, fake_runs, monkeypatch
):
    if is_agents:
        monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
        monkeypatch.setenv("WANDB_RUN_ID", "agents")
    opened(tmp_path / "run", id="own").close(code)
    (told,) = fake_runs
    assert told.options["id"] == ("agents" if is_agents else "own")
    assert told.options["group"] == ("sweep" if is_agents else "g")
    assert told.preempted == (is_agents and code == 128 + signal.SIGTERM)
    assert told.ended == [code]


def test_online_without_a_login_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(ConfigError, match=r"wandb='online': .*wandb='offline'"):
        opened(tmp_path / "run", mode="online")
