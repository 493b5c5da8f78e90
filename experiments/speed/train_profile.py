"""Where the time of a whole `vsae train` goes, with the preset's defaults.

    python -m experiments.speed.train_profile bench     # about 3 minutes
    python -m experiments.speed.train_profile tables    # write the page again

The command runs in a process of its own, twice: on the embedded model, and on a language model of
Pythia-70M's shape (random weights). Timers stand around the functions that do the work. A timer's time
leaves out what is timed inside it, so the rows add up to the whole.
"""

import argparse
import functools
import importlib
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch as t

from experiments.pages import table
from experiments.raw_results import RESULTS
from experiments.speed.timing import header, page_by_cpu, write_for_this_cpu
from experiments.stages import Stages, in_child

TIMED = {
    "language model": ("activations.hook_points", "SharedPass.read"),
    "language model's losses": ("evaluation.measure", "language_model_losses"),
    "loading the language model": ("activations.language_models", "load_language_model"),
    "looking whether the text suffices": ("activations.inputs", "require_enough_text"),
    "text and tokens": ("activations.tokens", "ContextStream.next_batch"),
    "shuffling and the rest of filling": ("activations.buffer", "Batches._refill"),
    "handing out batches": ("activations.buffer", "ResidualBuffer.__next__"),
    "SAE steps": ("training.sae_run", "SAERun.update"),
    "logging": ("training.sae_run", "SAERun.check_and_log"),
    "resume points": ("training.sae_run", "SAERun.save_point"),
    "measuring the SAE": ("training.loop", "measure"),
    "the rest of train": ("training.loop", "train"),
}
RUNS: dict[str, list[str]] = {
    "embedded": [],
    "Pythia-70M's shape": ["--n-ctxs", "1024", "--steps", "200", "--batch-size", "2048"],
}


def owner_of(module: str, name: str) -> Any:
    """The module or the class that holds a function of the package."""
    owner: Any = importlib.import_module(f"dictionary_learning_ext.{module}")
    for cls in name.split(".")[:-1]:
        owner = getattr(owner, cls)
    return owner


class Timers:
    """The seconds inside each timed function, without those inside the others."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._open: list[str] = []
        self._since = time.perf_counter()

    def switch(self, to: str | None) -> None:
        """Begin a part, or with None end the one that began last."""
        now = time.perf_counter()
        if self._open:
            part = self._open[-1]
            self.seconds[part] = self.seconds.get(part, 0.0) + now - self._since
        self._since = now
        if to is None:
            self._open.pop()
        else:
            self._open.append(to)

    def around(self, part: str, module: str, name: str) -> None:
        """Time a function or a method, wherever it is called from `module`."""
        owner, last = owner_of(module, name), name.rpartition(".")[2]
        function = getattr(owner, last)

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self.switch(part)
            try:
                return function(*args, **kwargs)
            finally:
                self.switch(None)

        setattr(owner, last, timed)


def print_seconds(run: str) -> str:
    """In this process: one run's seconds by part, as JSON."""
    timers = Timers()
    timers.switch("imports and the command line")
    from dictionary_learning_ext import cli

    for part, (module, name) in TIMED.items():
        timers.around(part, module, name)
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["train", "--save-dir", str(Path(folder) / "run"), *RUNS[run]]
        if run != "embedded":
            from experiments.speed.whole_runs import make_language_model

            timers.switch("making the model")
            arguments += ["--model", str(make_language_model(Path(folder) / "lm"))]
            timers.switch(None)
        if cli.main(arguments):
            raise SystemExit(f"vsae {' '.join(arguments)} failed")
    timers.switch(None)
    timers.seconds.pop("making the model", None)
    return json.dumps(timers.seconds)


def measure(_: argparse.Namespace) -> None:
    t.set_num_threads(2)
    runs = {run: json.loads(in_child(STAGES.name, "bench", "--only", run)) for run in RUNS}
    content = {"header": header("preset recommended", "nnsight", "transformers"), "runs": runs}
    write_for_this_cpu(RESULTS / "benchmark_train.json", content)


def tables(content: dict[str, Any]) -> list[str]:
    """The page, from the raw results alone."""
    return page_by_cpu(content, tables_of_cpu)


def tables_of_cpu(content: dict[str, Any]) -> list[str]:
    lines = [content["header"]]
    for run, seconds in content["runs"].items():
        total = sum(seconds.values())
        ordered = sorted(seconds.items(), key=lambda item: -item[1])
        rows = {part: [f"{value:.2f}", f"{value / total:.0%}"] for part, value in ordered}
        title = " ".join(["vsae train,", run, *RUNS[run]])
        lines += ["", *table(title, rows | {"all": [f"{total:.1f}", ""]}, ["seconds", "share"])]
    return lines


STAGES = Stages("speed.train_profile", {"bench": measure}, tables, child=print_seconds)

if __name__ == "__main__":
    STAGES.run()
