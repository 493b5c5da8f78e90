"""Does a run that is killed at any moment end as if it had not been? kill -9, many times.

    python -m experiments.robustness.fault_injection train     # about 10 minutes on 2 cores
    python -m experiments.robustness.fault_injection tables    # write the page's tables again

One run of two SAEs from one buffer on the embedded language model is killed over and over. A child
process notes what it is doing: a step, a fill, or a save. One of these is drawn at random, and the
child is killed a random moment after it begins. The next child resumes where the last was killed. A
round ends when the run does, and rounds are added until there were enough kills. In the end everything
must be bit-identical to the same run left alone.
"""

import argparse
import json
import multiprocessing
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from dataclasses import replace
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import torch as t

from dictionary_learning_ext.config.run import RunConfig
from dictionary_learning_ext.config.sae import SAEConfig
from experiments import raw_results
from experiments.raw_results import RESULTS, about_line
from experiments.stages import Page, Stages

BEGIN, STEP, FILL, SAVE = range(4)
PHASES = ("begin", "step", "fill", "save")
RAW = RESULTS / "fault_injection.json"
SAES = {
    "top_k": SAEConfig(architecture="top_k", k=16, dict_size=512, lr=2e-3),
    "vsae": SAEConfig(k=16, dict_size=512, lr=2e-3, noise_on="selection", noise_anneal_steps=60),
}


def child(settings: dict[str, Any], phase: "Synchronized[int]") -> None:
    """The run, telling what it does."""
    from dictionary_learning_ext.activations.buffer import Batches
    from dictionary_learning_ext.run_folder import resume_points as resume
    from dictionary_learning_ext.training.loop import train
    from dictionary_learning_ext.training.sae_run import SAERun

    def telling(owner: Any, name: str, number: int) -> None:
        original = getattr(owner, name)

        def told(*args, **kwargs):
            before, phase.value = phase.value, number
            result = original(*args, **kwargs)
            phase.value = before if number == SAVE else number
            return result

        setattr(owner, name, told)

    telling(SAERun, "update", STEP)
    telling(Batches, "_refill", FILL)
    telling(resume, "save_point", SAVE)
    t.set_num_threads(2)
    run = RunConfig(**settings)
    train(run, SAES, resume=Path(run.save_dir or "", "vsae", "config.json").exists())


def complete(folder: Path) -> int:
    """How many whole resume points each SAE has, at least."""
    from dictionary_learning_ext.errors import CheckpointError
    from dictionary_learning_ext.run_folder.resume_points import load_point, steps_of

    counts = []
    for name in SAES:
        whole = 0
        for step in steps_of(folder / name):
            try:
                load_point(folder / name, step)
                whole += 1
            except CheckpointError:
                pass  # it counts as none
        counts.append(whole)
    return min(counts)


def outcome(folder: Path, steps: int) -> dict[str, Any]:
    """All that a run leaves, but for the dates."""
    from dictionary_learning_ext.run_folder.resume_points import load_point

    point = load_point(folder, steps)
    return {
        "ae.pt": t.load(folder / "ae.pt", weights_only=True),
        "trainer": point.trainer,
        "buffer": point.run["buffer"],
        "metrics.jsonl": (folder / "metrics.jsonl").read_text(),
        "metrics.json": json.loads((folder / "metrics.json").read_text()),
    }


def compare(one: Any, other: Any) -> Counter:
    """How many tensors and other values are bit-identical, and how many are not."""
    if isinstance(one, t.Tensor):
        return Counter({"tensors equal" if t.equal(one, other) else "DIFFERENT": 1})
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return Counter({"DIFFERENT": 1})
        return sum((compare(one[key], other[key]) for key in one), Counter())
    return Counter({"values equal" if one == other else "DIFFERENT": 1})


def measure(flags: argparse.Namespace) -> None:
    draw = random.Random(flags.seed)
    base = Path(tempfile.mkdtemp())
    run = RunConfig(
        steps=120,
        batch_size=512,
        n_ctxs=32,
        eval_tokens=5_000,
        eval_documents=8,
        log_steps=10,
        save_every="8",
        save_dir=str(base / "whole"),
    )
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dictionary_learning_ext.training.loop"])

    def start(settings: RunConfig) -> tuple[Any, "Synchronized[int]"]:
        phase = context.Value("i", 0)
        process = context.Process(target=child, args=(vars(settings), phase))
        process.start()
        return process, phase

    process, _ = start(run)
    process.join()
    assert process.exitcode == 0, "the run that is left alone failed"
    wanted = {name: outcome(base / "whole" / name, run.steps) for name in SAES}

    killed, lines, equal = Counter(), [], Counter()
    gaps = rounds = 0
    while killed.total() < flags.kills:
        rounds += 1
        folder = base / f"round{rounds}"
        settings = replace(run, save_dir=str(folder))
        had_point = False
        while True:
            process, phase = start(settings)
            target, moment = draw.choice((STEP, FILL, SAVE)), draw.uniform(0, 2.5)
            later = draw.uniform(0, 0.03)
            not_before = None
            while process.is_alive():
                if not_before is None and phase.value:
                    not_before = time.monotonic() + moment
                if not_before and time.monotonic() >= not_before and phase.value == target:
                    break
                process.join(0.0005)
            process.join(later)
            found = PHASES[phase.value]
            process.kill()
            process.join()
            if process.exitcode != -signal.SIGKILL:
                break
            killed[found] += 1
            points = complete(folder)
            gaps += had_point and points == 0
            had_point = had_point or points > 0
            lines.append(f"{killed.total():3d}  round {rounds}  in a {found:5s}  points {points}")
            print(lines[-1], flush=True)
        assert process.exitcode == 0, f"a resumed run failed: {process.exitcode}"
        for name in SAES:
            equal += compare(wanted[name], outcome(folder / name, run.steps))
        shutil.rmtree(folder)
    shutil.rmtree(base)

    content = {
        "settings": {"date": time.strftime("%Y-%m-%d"), "torch": t.__version__},
        "flags": f"--kills {flags.kills} --seed {flags.seed}",
        "steps": run.steps,
        "save_every": run.save_every,
        "rounds": rounds,
        "killed": killed,
        "gaps": gaps,
        "equal": equal,
        "lines": lines,
    }
    raw_results.write(RAW, content)
    if never := {PHASES[number] for number in (STEP, FILL, SAVE)} - killed.keys():
        raise SystemExit(
            f"no kill in a {' or a '.join(sorted(never))}: is it still timed where it happens?"
        )
    if gaps or equal["DIFFERENT"]:
        STAGES.write_page(RAW.stem, RAW)
        raise SystemExit(f"{equal['DIFFERENT']} values are not bit-identical; {gaps} gaps")


def tables(content: dict[str, Any]) -> list[str]:
    killed = content["killed"]
    phases = ", ".join(f"{count} in a {name}" for name, count in killed.items())
    return [
        f"{about_line(content['settings'])}, `{content['flags']}`",
        "",
        f"{sum(killed.values())} kills in {content['rounds']} rounds ({phases}) of a run of "
        f"{content['steps']} steps of two SAEs on the embedded language model, a resume point every "
        f"{content['save_every']} steps.",
        "",
        f"- Moments after the first point without a complete one: {content['gaps']}.",
        "- What the rounds left, against the run left alone (weights, optimiser, counters, generators, "
        "text position, metrics): "
        f"{', '.join(f'{n} {what}' for what, n in content['equal'].items())}.",
        "",
        "```",
        *content["lines"],
        "```",
    ]


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kills", type=int, default=50, help="at least so many")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")


STAGES = Stages(
    "robustness.fault_injection",
    {"train": measure},
    {"fault_injection": Page(tables)},
    options=options,
)

if __name__ == "__main__":
    STAGES.run()
