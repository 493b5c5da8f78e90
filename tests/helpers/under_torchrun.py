"""What tests run in the ranks of a run, see torchrun.py.

Scenarios are what `FourRanks` runs: functions of what they are given, e.g. the settings of a run, and of a folder.
"""

import atexit
import io
import logging
import os
import signal
from contextlib import nullcontext, redirect_stderr, redirect_stdout, suppress
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch as t
from interrupted_runs import sae_of

from dictionary_learning_ext import train
from dictionary_learning_ext.activations.batches import Batches
from dictionary_learning_ext.activations.cache_writer import _Writer, write_cache
from dictionary_learning_ext.cli import main
from dictionary_learning_ext.config.architectures import TRAINED
from dictionary_learning_ext.config.sae import CONFIGS, option_names
from dictionary_learning_ext.errors import (
    Interrupted,
    NonFiniteError,
    TrainingError,
    UserError,
)
from dictionary_learning_ext.training import loop
from dictionary_learning_ext.training.processes import join
from dictionary_learning_ext.training.sae_run import SAERun

VARIANTS = {
    "learned": {"posterior": "learned", "beta": 0.1},
    "fading": {"noise_to_signal": 0.3, "noise_on": "selection", "noise_anneal_steps": 10},
    "aux": {"dead_feature_threshold": 100, "noise_on": "selection"},
    "values": {"noise_on": "values", "kl_scope": "selected"},
}
"""Options of vsae_top_k that are tested beside the defaults of every architecture."""


def saes():
    """An SAE of every architecture, and more of ours."""
    every = {name: sae_of(name) for name in TRAINED}
    dying = {
        f"{name}_aux": sae_of(name, dead_feature_threshold=100)
        for name in TRAINED
        if "dead_feature_threshold" in option_names(CONFIGS[name]) and not TRAINED[name].is_ours
    }
    return every | dying | {name: sae_of(**given) for name, given in VARIANTS.items()}


HOOKS = {name: "blocks.1.hook_mlp_out" for name in ("vaease", "top_k", "fading", "batch_top_k_aux")}
"""Those that are not at the run's own hook point."""


def continued(run, _):
    """Continue a run of every architecture. Returns which of them this process has trained."""
    own, original = {}, SAERun.update

    def update(self, step, x_BD):
        own[self.name] = step
        original(self, step, x_BD)

    with patch.object(SAERun, "update", update):
        train(run, saes(), HOOKS, resume=True)
    return list(own)


def interrupted(run, _):
    """Train every architecture at once until a signal to the last process. Returns why it ended."""
    original = SAERun.update
    is_last = int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1

    def update(self, step, x_BD):
        original(self, step, x_BD)
        if is_last and step == 33:
            os.kill(os.getpid(), signal.SIGTERM)

    with patch.object(SAERun, "update", update):
        try:
            train(run, saes(), HOOKS)
        except Interrupted as stop:
            return str(stop)


def one_fails(run, _):
    """Train three SAEs, of which one's numbers are no longer finite and one's trainer raises."""
    original = SAERun.update

    def update(self, step, x_BD):
        if self.name == "a" and step == 5:
            x_BD = x_BD * t.nan
        lacking = patch.object(self.trainer, "update", side_effect=MemoryError("too little"))
        with lacking if self.name == "b" and step == 6 else nullcontext():
            original(self, step, x_BD)

    with patch.object(SAERun, "update", update):
        try:
            train(run, {"a": sae_of(dict_size=64), "b": sae_of(), "c": sae_of()})
        except TrainingError as error:
            return str(error)


def sinks(run, _):
    run = replace(run, max_norm_multiple=None)
    train(run, {"a": sae_of(), "b": sae_of(), "c": sae_of()}, {"b": "blocks.1.hook_resid_post"})


def not_shared(run, folder):
    """Each process has another text, other activations, and run folders of its own: why it ends."""
    rank = os.environ["RANK"]
    own = folder / rank
    for name in ("text", "rows", "run/resume"):
        (own / name).mkdir(parents=True)
    (own / "text" / "a.txt").write_text(f"the cat {rank}\n" * 900)
    np.save(own / "rows" / "a.npy", np.full((4000, 16), rank, np.float32))
    (own / "run" / "resume" / f"step_{rank}.pt").touch()
    differ = {
        "text": {"run": replace(run, data=str(own / "text"))},
        "activations": {"run": replace(run, activations=str(own / "rows"))},
        "run folders": {"run": replace(run, save_dir="run"), "resume": True},
    }
    said = {}
    former = Path.cwd()
    os.chdir(own)
    for what, given in differ.items():
        try:
            train(saes={"a": sae_of()}, **given)
        except UserError as error:
            said[what] = str(error)
    try:
        run = differ["text"]["run"]
        write_cache("cache", run, run.hooks, 100, group=join().ranks)
    except UserError as error:
        said["cache"] = str(error)
    os.chdir(former)
    return said


def failing(what, rank, run):
    """`vsae train`, in which something goes wrong on one rank."""
    is_the_one = int(os.environ["RANK"]) == rank
    following, started = Batches.next, []

    def next_batches(self):
        started.append(1)
        if is_the_one and len(started) == 6:
            if what == "nan":
                raise NonFiniteError("3 activations are NaN")
            if what == "stopped":
                os.kill(os.getpid(), signal.SIGSTOP)
        return following(self)

    with patch.object(Batches, "next", next_batches):
        timeout = ["--rank-timeout=8"] if what == "stopped" else []
        return main(["train", *flags_of(run), *timeout])


def commands(run, folder):
    """Mistakes on the command line. Returns each one's exit code and what it printed."""
    seen = {}
    base = ["train", f"--model={run.model}", f"--data={run.data}", "--steps=12", "--dict-size=32"]
    base += ["--k=4", "--eval-tokens=0", "--n-ctxs=8", "--ctx-len=32"]
    for name, flags in {
        "device": [*base, "--batch-size=96", "--device=cuda"],
        "one_device": [*base, "--batch-size=96", "--device=cuda:0"],
        "sweep": ["sweep", "nothing.yaml"],
        "flag": [*base, "--stepz=3"],
    }.items():
        out = io.StringIO()
        with redirect_stderr(out), redirect_stdout(io.StringIO()):
            code = main([*flags, *([f"--save-dir={folder / name}"] if flags[0] == "train" else [])])
        seen[name] = [code, out.getvalue()]
    return seen


def flags_of(run):
    given = [f"--{n.replace('_', '-')}={v}" for n, v in vars(run).items() if v is not None]
    return [*given, "--dict-size=32", "--k=4"]


def in_turn(commands, _):
    """The exit code of each command."""
    return [main(words) for words in commands]


def cache_stopped(command, _):
    """`vsae cache` that a signal to rank 1 stops after its first file. Returns the exit code."""
    original = _Writer._save

    def save(self, manifest, *given):
        original(self, manifest, *given)
        if os.environ["RANK"] == "1" and manifest.files:
            os.kill(os.getpid(), signal.SIGTERM)

    with patch.object(_Writer, "_save", save):
        return main(command)


def lost(run, folder):
    """Errors that nccl might raise where its results are used. Returns what is printed for each."""
    seen = {}

    def failing(*_, **__):
        raise t.distributed.DistBackendError(
            "NCCL error in: NCCLUtils.cpp:94, remote error\n\nmore"
        )

    for owner, name in [
        (Batches, "mean_squared_norms"),
        (Batches, "next"),
        (loop.Run, "_check_and_log"),
    ]:
        out, there = io.StringIO(), replace(run, save_dir=str(folder / f"run_{name}"))
        with (
            patch.object(owner, name, failing),
            redirect_stderr(out),
            redirect_stdout(io.StringIO()),
        ):
            code = main(["train", *flags_of(there)])
        seen[name] = [code, out.getvalue()]
    return seen


def split_parts(_, folder):
    """What a process sees of a dictionary's parts."""
    import split_parts

    return split_parts.seen(folder)


def split_runs(given, _):
    import split_runs

    split_runs.train_each(*given)


def serve(jobs):
    """Run the scenarios that come through a pipe, until one is None or the process of the tests has ended."""
    processes = join()
    with suppress(EOFError):
        while (job := jobs.recv()) is not None:
            scenario, given, folder = job
            logging.getLogger().handlers.clear()  # `main` logs to stderr as it is at its first call
            processes.meet()
            jobs.send(globals()[scenario](given, folder))
    # `lost` has put aside what does this at exit. Left undone, gloo's thread may free its last tensor while
    # Python ends, and that aborts the process.
    atexit.unregister(t.distributed.destroy_process_group)
    t.distributed.destroy_process_group()
