"""Whole runs, language model, buffer and all: against upstream's `trainSAE`, and where the time goes.

    python -m experiments.speed.whole_runs bench      # against upstream: 10 minutes
    python -m experiments.speed.whole_runs profile    # a `vsae train`, part by part: 3 minutes
    python -m experiments.speed.whole_runs tables     # write the pages' tables again

The larger language model has Pythia-70M's shape (random weights); the text is the shipped books.
"""

import argparse
import functools
import importlib
import json
import logging
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch as t
from dictionary_learning.buffer import ActivationBuffer
from dictionary_learning.trainers.top_k import TopKTrainer
from dictionary_learning.training import trainSAE
from nnsight import LanguageModel
from transformers import AutoTokenizer, GPTNeoXConfig, GPTNeoXForCausalLM

from dictionary_learning_ext import open_text, train
from dictionary_learning_ext.activations.language_models import EMBEDDED_MODEL
from dictionary_learning_ext.config.run import Dtype
from dictionary_learning_ext.config.sae import SAEConfig
from experiments.pages import table
from experiments.raw_results import RESULTS
from experiments.speed.timing import (
    SEED,
    header,
    page_by_cpu,
    trainer_arguments,
    write_for_this_cpu,
)
from experiments.stages import Page, Stages, in_child
from experiments.trained_saes import run_settings, sae_settings

NAME = "speed.whole_runs"


def make_language_model(folder: Path) -> Path:
    """A model of Pythia-70M's shape, with the embedded model's tokenizer."""
    config = GPTNeoXConfig(
        hidden_size=512,
        num_hidden_layers=6,
        num_attention_heads=8,
        intermediate_size=2048,
        vocab_size=50_304,
    )
    t.manual_seed(SEED)
    GPTNeoXForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(EMBEDDED_MODEL).save_pretrained(folder)
    return folder


# Against upstream, at layer 0. First one SAE of k = 64, in two orders whose mean is shown. Then twelve: k =
# 64, 128, 256, 512 with three seeds each. Ours are trained in one run from one buffer. Upstream's are
# trained in twelve runs (one of each k is timed and counted three times) and in one call of `trainSAE`.

BATCH, F, N_CTXS, STEPS_ONE, STEPS_TWELVE = 2048, 2048, 1024, 128, 96
KS, SEEDS = (64, 128, 256, 512), (0, 1, 2)
Run = Callable[[Path], object]
"""A run that writes to a folder."""


def upstream(model: Path, ks: list[int], steps: int) -> Run:
    """One call of `trainSAE` on upstream's buffer."""

    def run(folder: Path) -> None:
        lm: Any = LanguageModel(str(model), device_map="cpu", dispatch=True)
        submodule = lm.gpt_neox.layers[0]
        buffer = ActivationBuffer(
            iter(open_text("embedded", passes=2)),
            lm,
            submodule,
            d_submodule=512,
            n_ctxs=N_CTXS,
            ctx_len=128,
            refresh_batch_size=32,
            out_batch_size=BATCH,
        )
        configs = [
            {"trainer": TopKTrainer, **trainer_arguments(512, F, k), "steps": steps} for k in ks
        ]
        trainSAE(buffer, configs, steps=steps, save_dir=str(folder), device="cpu")

    return run


def ours(model: Path, saes: dict[str, SAEConfig], steps: int, dtype: Dtype) -> Run:
    """One run of ours."""
    settings = run_settings(
        model=str(model),
        hook="blocks.0.hook_resid_post",
        text_passes=2,
        steps=steps,
        batch_size=BATCH,
        n_ctxs=N_CTXS,
        dtype=dtype,
        eval_tokens=0,
    )
    return lambda folder: train(replace(settings, save_dir=str(folder)), saes)


def seconds(runs: dict[str, Run], *, twice: bool) -> dict[str, float]:
    """The wall time of each; or the mean of two, the second time in the other order."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for order in (list(runs), list(reversed(runs)) if twice else []):
        for name in order:
            with tempfile.TemporaryDirectory() as folder:
                started = time.perf_counter()
                runs[name](Path(folder) / "run")
                times[name].append(time.perf_counter() - started)
                print(f"{name}: {times[name][-1]:.1f} s", flush=True)
    return {name: sum(values) / len(values) for name, values in times.items()}


def vsaes(ks: tuple[int, ...], seeds: tuple[int, ...]) -> dict[str, SAEConfig]:
    return {
        f"k{k}_seed{seed}": sae_settings(k=k, dict_size=F, seed=seed) for k in ks for seed in seeds
    }


def measure_against_upstream(_: argparse.Namespace) -> None:
    t.set_num_threads(2)
    logging.getLogger("httpx").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as base:
        model = make_language_model(Path(base) / "lm")
        one = seconds(
            {
                "upstream trainSAE, TopK": upstream(model, [64], STEPS_ONE),
                "vSAE, float32": ours(model, vsaes((64,), (0,)), STEPS_ONE, "float32"),
                "vSAE, bfloat16": ours(model, vsaes((64,), (0,)), STEPS_ONE, "bfloat16"),
            },
            twice=True,
        )
        twelve = seconds(
            {f"k={k}": upstream(model, [k], STEPS_TWELVE) for k in KS}
            | {
                "one call": upstream(model, [k for k in KS for _ in SEEDS], STEPS_TWELVE),
                "vSAE, bfloat16": ours(model, vsaes(KS, SEEDS), STEPS_TWELVE, "bfloat16"),
                "vSAE, float32": ours(model, vsaes(KS, SEEDS), STEPS_TWELVE, "float32"),
            },
            twice=False,
        )
    setting = f"B={BATCH} D=512 F={F}, {N_CTXS} contexts of 128 in the buffer, seed {SEED}"
    packages = ("dictionary-learning", "nnsight", "transformers")
    content = {"header": header(setting, *packages), "one": one, "twelve": twelve}
    write_for_this_cpu(RESULTS / "benchmark_pipeline.json", content)


def tables_against_upstream(content: dict[str, Any]) -> list[str]:
    one, twelve = content["one"], content["twelve"]
    apart = sum(twelve[f"k={k}"] for k in KS) * len(SEEDS)
    rows = {
        name: [
            f"{value:.1f}",
            f"{STEPS_ONE * BATCH / value:,.0f}",
            f"{one['upstream trainSAE, TopK'] / value:.2f}",
        ]
        for name, value in one.items()
    }
    rows_twelve = {
        f"12 vSAEs in one run, {dtype}": [
            f"{own:.0f}",
            f"{apart:.0f}",
            f"{apart / own:.2f}",
            f"{twelve['one call']:.0f}",
            f"{twelve['one call'] / own:.2f}",
        ]
        for dtype in ("float32", "bfloat16")
        for own in (twelve[f"vSAE, {dtype}"],)
    }
    return [
        content["header"],
        "",
        *table(f"one SAE, k=64, {STEPS_ONE} steps", rows, ["seconds", "tokens/s", "over upstream"]),
        "",
        *table(
            f"12 SAEs, {STEPS_TWELVE} steps",
            rows_twelve,
            ["seconds", "12 TopK in 12 upstream runs", "ratio", "in one `trainSAE`", "ratio"],
        ),
    ]


# The profile: the command runs in a process of its own, on the embedded model and on the larger one, with
# the preset's defaults. Timers stand around the functions that do the work. A timer's time leaves out what
# is timed inside it, so the rows add up to the whole.

TIMED = {
    "language model": "dictionary_learning_ext.activations.passes:SharedPasses.read",
    "language model's losses": "dictionary_learning_ext.evaluation.measure:_summed_loss",
    "loading the language model": "dictionary_learning_ext.activations.language_models:Pretrained.load",
    "looking whether the text suffices": (
        "dictionary_learning_ext.activations.inputs:require_held_out"
    ),
    "text and tokens": "dictionary_learning_ext.activations.tokens:ContextStream.next_batch",
    "shuffling and the rest of filling": (
        "dictionary_learning_ext.activations.batches:Batches._refill"
    ),
    "handing out batches": "dictionary_learning_ext.activations.buffer:ResidualBuffer.__next__",
    "SAE steps": "dictionary_learning_ext.training.sae_run:SAERun.update",
    "logging": "dictionary_learning_ext.training.sae_run:SAERun.check_and_log",
    "resume points": "dictionary_learning_ext.training.sae_run:SAERun.write_resume_point",
    "measuring the SAE": "dictionary_learning_ext.training.loop:measure",
    "the rest of train": "dictionary_learning_ext.training.loop:train",
}
"""What is timed, by its part: where it is called, which for a function may be another module than its own."""
PROFILED: dict[str, list[str]] = {
    "embedded": [],
    "Pythia-70M's shape": ["--n-ctxs", "1024", "--steps", "200", "--batch-size", "2048"],
}


def owner_of(place: str) -> tuple[Any, str]:
    """The module or the class that holds a function of TIMED, and the function's name."""
    module, _, names = place.partition(":")
    *classes, name = names.split(".")
    return functools.reduce(getattr, classes, importlib.import_module(module)), name


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

    def around(self, part: str, place: str) -> None:
        """Time a function or a method, wherever it is called from its module."""
        owner, name = owner_of(place)
        function = getattr(owner, name)

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self.switch(part)
            try:
                return function(*args, **kwargs)
            finally:
                self.switch(None)

        setattr(owner, name, timed)


def seconds_by_part(run: str) -> str:
    """In this process: one run's seconds by part, as JSON."""
    timers = Timers()
    timers.switch("imports and the command line")
    from dictionary_learning_ext import cli

    for part, place in TIMED.items():
        timers.around(part, place)
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["train", "--save-dir", str(Path(folder) / "run"), *PROFILED[run]]
        if run != "embedded":
            timers.switch("making the model")
            arguments += ["--model", str(make_language_model(Path(folder) / "lm"))]
            timers.switch(None)
        if cli.main(arguments):
            raise SystemExit(f"vsae {' '.join(arguments)} failed")
    timers.switch(None)
    timers.seconds.pop("making the model", None)
    return json.dumps(timers.seconds)


def measure_profile(_: argparse.Namespace) -> None:
    t.set_num_threads(2)
    runs = {run: json.loads(in_child(NAME, "profile", "--only", run)) for run in PROFILED}
    content = {"header": header("preset recommended", "nnsight", "transformers"), "runs": runs}
    write_for_this_cpu(RESULTS / "benchmark_train.json", content)


def tables_of_profile(content: dict[str, Any]) -> list[str]:
    lines = [content["header"]]
    for run, seconds in content["runs"].items():
        total = sum(seconds.values())
        ordered = sorted(seconds.items(), key=lambda item: -item[1])
        rows = {part: [f"{value:.2f}", f"{value / total:.0%}"] for part, value in ordered}
        title = " ".join(["vsae train,", run, *PROFILED[run]])
        lines += ["", *table(title, rows | {"all": [f"{total:.1f}", ""]}, ["seconds", "share"])]
    return lines


STAGES = Stages(
    NAME,
    {"bench": measure_against_upstream, "profile": measure_profile},
    {
        "benchmark_pipeline": Page(page_by_cpu(tables_against_upstream)),
        "benchmark_train": Page(page_by_cpu(tables_of_profile)),
    },
    child={"profile": seconds_by_part},
)

if __name__ == "__main__":
    STAGES.run()
