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
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from dataclasses import replace
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
from dictionary_learning_ext.training import loop, sae_run
from dictionary_learning_ext.training.processes import join
from dictionary_learning_ext.training.sae_run import SAERun

VARIANTS = {
    "learned": {"posterior": "learned", "beta": 0.1},
    "survival": {"survival": 0.5, "noise_on": "selection"},
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
        if "dead_feature_threshold" in CONFIGS[name]().options and not TRAINED[name].is_ours
    }
    return every | dying | {name: sae_of(**given) for name, given in VARIANTS.items()}


def digest(values):
    """Of tensors and numbers."""
    parts = [v.detach().cpu().numpy().tobytes() if isinstance(v, t.Tensor) else v for v in values]
    return sha256(repr(parts).encode()).hexdigest()


def state_of(one):
    """All that must be equal on all ranks: norm factor, weights, buffers, optimiser, counters."""
    trainer = one.trainer.state_holder()
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


def failing(what, rank, run):
    """`vsae train`, in which something goes wrong on one rank. It ends the process."""
    run, is_the_one = RunConfig(**run), int(os.environ["RANK"]) == rank
    following, update, started = Batches.next, SAERun.update, []

    def next_batches(self):
        started.append(1)
        if what == "nan" and is_the_one and len(started) == 6:
            raise NonFiniteError("3 activations are NaN")
        if what == "bug" and is_the_one and len(started) == 6:
            raise AttributeError("a bug")
        return following(self)

    def updated(self, step, x_BD):
        if is_the_one and step == 5 and what in ("asleep", "stopped"):
            threading.Event().wait() if what == "asleep" else os.kill(os.getpid(), signal.SIGSTOP)
        update(self, step, x_BD)

    def save_point(*_):
        raise CheckpointError("run can't be written (No space left on device)")

    full = patch.object(sae_run.resume_points, "save_point", save_point)
    with (
        patch.object(Batches, "next", next_batches),
        patch.object(SAERun, "update", updated),
        full if what == "disk full" else nullcontext(),
    ):
        sys.exit(main(["train", *flags_of(run), "--rank-timeout=8"]))


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


def flags_of(run):
    given = [f"--{n.replace('_', '-')}={v}" for n, v in vars(run).items() if v is not None]
    return [*given, "--dict-size=32", "--k=4"]


def in_turn(commands, _):
    """The exit code of each command."""
    return [main(words) for words in commands]


def lost(run, folder):
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
        (loop, "_check_and_log"),
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
    "vsae_survival": ("vsae_top_k", {"survival": 0.5, "beta": 0.1}),
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
    ranks = join().ranks
    share = BATCH // ranks.count
    for name, (architecture, options) in CASES.items():
        ours, whole = (built(architecture, lr=1e-2, **options) for _ in range(2))
        for trainer in (ours, whole):
            trainer.ae.double()
            trainer.state_holder().threshold_start_step = 3
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
            dead = max(dead, int(getattr(whole.state_holder(), "dead_features", 0)))
        seen[name] = {
            **{
                key: float((value.double() - whole.ae.state_dict()[key].double()).abs().max())
                for key, value in ours.ae.state_dict().items()
            },
            "dead": dead,
            "fired": bool(
                t.equal(
                    *(
                        getattr(one.state_holder(), "num_tokens_since_fired", t.zeros(1))
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
    scenarios = json.loads(sys.argv[2])
    if "failing" in scenarios:
        failing(*scenarios["failing"])
    processes = join()
    for scenario, given in scenarios.items():
        folder = Path(sys.argv[1]) / scenario
        logging.getLogger().handlers.clear()  # `main` logs to stderr as it is at its first call
        folder.mkdir(exist_ok=True)
        processes.meet()
        if processes.is_first:
            print(f"\nscenario {scenario}", file=sys.stderr, flush=True)
        given = RunConfig(**given) if isinstance(given, dict) else given
        result = globals()[scenario](given, folder)
        (folder / f"{processes.rank}.json").write_text(json.dumps(result))
    # `lost` has put aside what does this at exit. Left undone, gloo's thread may free its last tensor while
    # Python ends, and that aborts the process.
    atexit.unregister(t.distributed.destroy_process_group)
    t.distributed.destroy_process_group()
