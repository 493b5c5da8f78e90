"""What tests run in several processes: torchrun … under_torchrun.py FOLDER GIVEN.

GIVEN is JSON: the names of scenarios, which are functions here, and what each is given, e.g. the settings
of a run. They run one after the other. Every rank writes what it saw to FOLDER/SCENARIO/<rank>.json.
"""

import atexit
import io
import json
import logging
import os
import signal
import sys
import threading
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from unittest.mock import patch

import torch as t
from interrupted_runs import sae_of
from small_trainers import BATCH, F, K, built

from dictionary_learning_ext import train
from dictionary_learning_ext.activations.buffer import Batches
from dictionary_learning_ext.cli import main
from dictionary_learning_ext.config.architectures import TRAINED
from dictionary_learning_ext.config.run import RunConfig
from dictionary_learning_ext.config.sae import CONFIGS
from dictionary_learning_ext.errors import CheckpointError, NonFiniteError, UserError
from dictionary_learning_ext.trainers.variational_top_k import VariationalTopKTrainer
from dictionary_learning_ext.training import heartbeat, loop, sae_run
from dictionary_learning_ext.training.loop import _Loop
from dictionary_learning_ext.training.processes import joined
from dictionary_learning_ext.training.sae_run import SAERun

PATIENCE = timedelta(seconds=30)
"""What is 15 minutes in a run. On a busy machine one process may import torch seconds after another."""
SHORT = timedelta(seconds=8)
"""Once all have started."""
VARIANTS = {
    "learned": {"posterior": "learned", "beta": 0.1},
    "relative": {"posterior": "relative", "noise_on": "selection"},
    "aux": {"dead_feature_threshold": 100, "noise_on": "selection"},
    "values": {"noise_on": "values", "kl_scope": "selected"},
}
"""Of vsae_top_k, beside the defaults of every architecture."""


def saes():
    """An SAE of every architecture, and more of ours."""
    every = {name: sae_of(name) for name in TRAINED}
    dying = {
        f"{name}_aux": sae_of(name, dead_feature_threshold=100)
        for name in TRAINED
        if "dead_feature_threshold" in CONFIGS[name]().options and not TRAINED[name].is_ours
    }
    return every | dying | {name: sae_of(**given) for name, given in VARIANTS.items()}


def digest(values):
    """Of tensors and numbers."""
    parts = [v.detach().cpu().numpy().tobytes() if isinstance(v, t.Tensor) else v for v in values]
    return sha256(repr(parts).encode()).hexdigest()


def state_of(one):
    """All that must be equal on all ranks: norm factor, weights, buffers, optimiser, counters."""
    trainer = one.trainer.state()
    moments = [v for s in trainer.optimizer.state.values() for v in s.values()]
    counters = [getattr(trainer, "num_tokens_since_fired", 0)]
    skipped = [getattr(trainer.optimizer, "skipped_steps", 0)]
    weights = trainer.ae.state_dict().values()
    return digest([one.norm_factor, *weights, *moments, *counters, *skipped])


def architectures(run, _):
    """Train every architecture at once, one of them at another hook point.

    Returns each one's state after every step.
    """
    seen = {}
    original = SAERun.update

    def update(self, step, x_BD):
        if self.name == "values" and step == 5 and os.environ["RANK"] == "1":
            x_BD = x_BD * t.nan  # only on one rank, and the step is skipped on all
        original(self, step, x_BD)
        seen.setdefault(self.name, []).append(state_of(self))

    with patch.object(SAERun, "update", update):
        try:
            train(run, saes(), {"vaease": "blocks.1.hook_mlp_out"})
        except UserError as error:
            seen["error"] = str(error)
    return seen


def errors(run, folder):
    """Runs that fail on one rank, one after the other. Returns the error that each rank sees."""
    seen = {}

    def attempt(name, run=run, *, resume=False):
        run = replace(run, save_dir=str(folder / name))
        try:
            train(run, {"x": sae_of()}, resume=resume)
            seen[name] = "none"
        except UserError as error:
            seen[name] = f"{type(error).__name__}: {error}"

    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    following, log = Batches.next, SAERun.check_and_log

    def full(*_, **__):
        raise CheckpointError("run can't be written (No space left on device)")

    def failing(error):
        """The eleventh step's batches can't be read on rank 1."""

        def next_batches(self):
            if rank == 1 and self.tokens_seen() == {10 * run.batch_size // count}:
                raise error
            return following(self)

        return patch.object(Batches, "next", next_batches)

    def full_on_rank_0(self, *args):
        return full() if rank == 0 else log(self, *args)

    with failing(NonFiniteError("3 activations are NaN")):
        attempt("bad_activations")
    with failing(AttributeError("a bug")):
        attempt("bug")
    with patch.object(sae_run.resume_points, "save_point", full):
        attempt("disk_full_at_a_point")
    with patch.object(SAERun, "check_and_log", full_on_rank_0):
        attempt("disk_full_at_the_log")
    short = folder / f"{rank}.txt"  # on rank 1's machine the text is another
    words = Path(run.data).read_text()
    short.write_text(words[:5000] if rank == 1 else words)
    attempt("text_ends", replace(run, data=str(short)))
    attempt("no_text", replace(run, data=str(folder / "gone.txt")) if rank == 1 else run)
    attempt("finished", replace(run, steps=2, eval_tokens=0))
    with patch.object(loop, "report_finished", full):  # as where wandb can't start
        attempt("finished", replace(run, steps=2, eval_tokens=0), resume=True)
    return seen


def commands(run, folder):
    """Mistakes on the command line. Returns each one's exit code and what it printed."""
    seen = {}
    base = ["train", f"--model={run.model}", f"--data={run.data}", "--steps=12", "--dict-size=32"]
    base += ["--k=4", "--eval-tokens=0", "--n-ctxs=8", "--ctx-len=32"]
    for name, flags in {
        "batch": [*base, "--batch-size=100"],
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


def asleep(run, _):
    """`vsae train`, of which the last rank stops at the sixth step. Its process still answers."""
    hang(run, threading.Event().wait)


def stopped(run, _):
    """The same, and its process doesn't answer."""
    hang(run, lambda: os.kill(os.getpid(), signal.SIGSTOP))


def hang(run, how):
    update, rank, count = SAERun.update, int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])

    def hanging(self, step, x_BD):
        if step == 5 and rank == count - 1:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            how()
        update(self, step, x_BD)

    heartbeat.PATIENCE = SHORT
    with patch.object(SAERun, "update", hanging):
        sys.exit(main(["train", *flags_of(run)]))


def busy(_given, _folder):
    """One rank computes for longer than the others' patience, then waits for others that read slowly."""
    long = 1.5 * SHORT.total_seconds()
    with joined() as processes, patch.object(heartbeat, "PATIENCE", SHORT):
        with processes.together():
            if processes.is_first:
                started = time.process_time()
                while time.process_time() < started + long:
                    pass
        with processes.together():
            if not processes.is_first:
                started = time.monotonic()
                while time.monotonic() < started + long:
                    time.sleep(0.05)  # as one that asks now and then whether a file is unlocked
    return "done"


def flags_of(run):
    given = [f"--{n.replace('_', '-')}={v}" for n, v in vars(run).items() if v is not None]
    return [*given, "--dict-size=32", "--k=4"]


def in_turn(commands, _):
    """The exit code of each command."""
    return [main(words) for words in commands]


def late_errors(run, folder):
    """Errors that nccl might raise where its results are used. Returns what is printed for each."""
    seen = {}

    def failing(*_, **__):
        raise t.distributed.DistBackendError(
            "NCCL error in: NCCLUtils.cpp:94, remote error\n\nmore"
        )

    for owner, name in [
        (VariationalTopKTrainer, "update"),
        (VariationalTopKTrainer, "check"),
        (Batches, "next"),
        (_Loop, "_leave_out_failed"),
        (loop, "build_trainer"),
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


CASES = {
    "vsae_both": ("vsae_top_k", {"beta": 0.1}),
    "vsae_values": ("vsae_top_k", {"beta": 0.1, "noise_on": "values", "rectify": True}),
    "vsae_selected": ("vsae_top_k", {"beta": 0.1, "kl_scope": "selected"}),
    "vsae_learned": ("vsae_top_k", {"posterior": "learned", "beta": 0.5}),
    "vsae_auxk": ("vsae_top_k", {"dead_feature_threshold": 40, "beta": 0.0}),
    "vsae_relative": ("vsae_top_k", {"posterior": "relative", "beta": 0.1}),
    "vsae": ("vsae", {"beta": 0.1}),
    "vaease": ("vaease", {}),
    "probabilistic_top_k_auxk": ("probabilistic_top_k", {"dead_feature_threshold": 40}),
    "top_k": ("top_k", {"auxk_alpha": 0.0}),
    "relu": ("relu", {}),
}
"""What equals one process on the union of the batches."""


def equality(_run, _folder):
    """Steps in float64 beside one process on the union of the batches. Returns what differs most."""
    seen = {}
    with joined() as processes:
        ranks = processes.ranks
        share = BATCH // ranks.count
        for name, (architecture, options) in CASES.items():
            ours, whole = (built(architecture, lr=1e-2, **options) for _ in range(2))
            for trainer in (ours, whole):
                trainer.ae.double()
                trainer.state().threshold_start_step = 3
            weights = [p.data for p in ours.ae.parameters()]
            for weight in weights:
                weight += ranks.rank  # the ranks start from those of rank 0
            ours.join(ranks)
            before = whole.ae.state_dict()["encoder.weight"].clone()
            numbers = F if options.get("noise_on") != "values" else K
            dead = 0
            for step in range(40):
                x = t.randn(BATCH, 16, generator=t.Generator().manual_seed(step)).double() + 0.3
                x *= t.linspace(0.5, 2, BATCH)[:, None]  # the shares differ
                if hasattr(whole, "generator"):  # this rank's rows get the noise they get there
                    ours.generator.set_state(whole.generator.get_state())
                    skipped = t.empty(ranks.rank * share, numbers).double()
                    skipped.normal_(generator=ours.generator)
                ours.update(step, x[ranks.rank * share :][:share])
                whole.update(step, x)
                dead = max(dead, int(getattr(whole.state(), "dead_features", 0)))
            seen[name] = {
                **{
                    key: float((value.double() - whole.ae.state_dict()[key].double()).abs().max())
                    for key, value in ours.ae.state_dict().items()
                },
                "dead": dead,
                "fired": bool(
                    t.equal(
                        *(
                            getattr(one.state(), "num_tokens_since_fired", t.zeros(1))
                            for one in (ours, whole)
                        )
                    )
                ),
                "moved": float((whole.ae.state_dict()["encoder.weight"] - before).abs().max()),
                "strided": not all(weight.is_contiguous() for weight in weights),
                "equal": digest(ours.ae.state_dict().values()),
            }
    return seen


if __name__ == "__main__":
    heartbeat.PATIENCE = PATIENCE
    with joined() as processes:
        for scenario, given in json.loads(sys.argv[2]).items():
            folder = Path(sys.argv[1]) / scenario
            logging.getLogger().handlers.clear()  # `main` logs to stderr as it is at its first call
            with processes.together():
                folder.mkdir(exist_ok=True)
            if processes.is_first:
                print(f"\nscenario {scenario}", file=sys.stderr, flush=True)
            with processes.together():
                given = RunConfig(**given) if isinstance(given, dict) else given
            result = globals()[scenario](given, folder)
            (folder / f"{processes.rank}.json").write_text(json.dumps(result))
    # A ProcessError of `late_errors` has put aside what does this at exit. Left undone, gloo's thread may
    # free its last tensor while Python ends, and that aborts the process.
    atexit.unregister(t.distributed.destroy_process_group)
    t.distributed.destroy_process_group()
