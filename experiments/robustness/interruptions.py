"""Does a command that is interrupted and typed again leave what it would have left uninterrupted?

    python -m experiments.robustness.interruptions train     # about 10 minutes on 2 cores
    python -m experiments.robustness.interruptions tables    # write the page's tables again

Every command is a process of its own, on the embedded language model, with one thread. Most are forked
from one that has imported the package, which takes longer than all that follows. Each part is
written as soon as it is measured, and a later call measures the parts that are missing.

- kill -9 of `vsae cache` (a new cache, and one that grows), `report`, `export` and `bench` (core alone).
  Half of the moments are drawn from the duration of a run left alone, one in each equal piece of it.
  The others come up to 20 ms after a file is written; which one is drawn. What was there before the
  command must then be whole: as it was, or as the command would have left it. Then the same command
  runs again.
- Signals to `vsae train`, which is then continued as it says; two writers of one folder; and a rank of
  torchrun that is killed.
- Ctrl-C and kill -9 of `vsae quickstart` and `explain`, which asks models that stand in for language models. Each then runs
  again as it was typed.

In the end, every folder is compared file by file with that of a run left alone: no file more or less,
and the same bytes but for dates, times and ids. Only locks are left out.

`bench` needs SAE Bench, and is skipped without it. To add it, run
`.venv-saebench/bin/python -m experiments.robustness.interruptions train`, too.
"""

import argparse
import contextlib
import hashlib
import multiprocessing
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from experiments import raw_results
from experiments.pages import table
from experiments.raw_results import RESULTS, about, about_line
from experiments.stages import Page, Stages

ROOT = Path(__file__).parents[2]
RAW = RESULTS / "interruptions.json"
HISTORY = "run/metrics.jsonl"
TRAIN = (
    "train --save-dir run --steps 60 --batch-size 256 --n-ctxs 128 --dict-size 256 --k 8 "
    "--eval-tokens 20000 --eval-documents 8 --save-every 20 --log-steps 5"
)
TORCHRUN = "python -m torch.distributed.run --standalone"
CACHE = "cache c --eval-tokens 2000 --eval-documents 4 --file-mb 1 --tokens"
REPORT = "report run --tokens 2000 --map-tokens 500 --map-features 64 --synthesise 0 --pages"
BENCH = "bench run --evals core --tokens"
QUICKSTART = "quickstart --save-dir quick --steps 30 --eval-tokens 2000"
EXPLAIN = "explain run --explainer words --features 6 --tokens 4000 --endpoint"
PRELOADED = [
    f"dictionary_learning_ext.{name}"
    for name in (
        "cli",
        "training.loop",
        "report.page",
        "export.exporter",
        "activations.cache_writer",
        "explain.runner",
    )
]
_LEFT_OUT = (".lock",)
_DATED = re.compile(
    rb'\d{4}-\d\d-\d\d \d\d:\d\d|"date": "[^"]*"|"datetime_epoch_millis": \d+|"eval_id": "[^"]*"'
    rb'|"wall_seconds": [\d.]+'
)
_POINT = re.compile(r"/resume/step_\d+\.pt$")
_RANDOM = re.compile(r"(?<=\.)([0-9a-f]{8}\.)?[a-z0-9_]{8}(?=/|$)")
"""The end of a temporary's name: random, and before that, of an export, a hash of where it goes."""


# --- folders and processes


def states(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Size, time and inode of every file below a folder, but for locks."""
    found = {}
    for where, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(FileNotFoundError):
                path = os.path.join(where, name)
                about = os.stat(path)
                name = _RANDOM.sub("*", os.path.relpath(path, folder))
                found[name] = (about.st_size, about.st_mtime_ns, about.st_ino)
    return {name: state for name, state in found.items() if not name.endswith(".lock")}


def contents(folder: Path) -> dict[str, str]:
    """A hash of every file below a folder, but for those that are left out. Dates, times and ids are left out."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if "__pycache__" in path.parts:
            continue
        if path.is_file() and path.name not in _LEFT_OUT:
            content = path.read_bytes()
            if path.suffix in (".json", ".html"):
                content = _DATED.sub(b"", content)
            elif path.parent.name == "resume" and zipfile.is_zipfile(path):
                content = _values_in(path)
            name = _RANDOM.sub("*", path.relative_to(folder).as_posix())
            found[name] = hashlib.sha256(content).hexdigest()
        elif path.is_dir() and not any(path.iterdir()):
            found[_RANDOM.sub("*", path.relative_to(folder).as_posix()) + "/"] = "empty"
    return found


def _values_in(path: Path) -> bytes:
    """What a resume point holds. Its bytes also depend on which equal strings in it are one object."""
    import torch as t

    def values(held: Any) -> Any:
        if isinstance(held, t.Tensor):
            raw = held.contiguous().reshape(-1).view(t.uint8).numpy().tobytes()
            return str(held.dtype), tuple(held.shape), hashlib.sha256(raw).hexdigest()
        if isinstance(held, dict):
            return [(name, values(each)) for name, each in held.items()]
        return [values(each) for each in held] if isinstance(held, list | tuple) else held

    return repr(values(t.load(path, map_location="cpu", weights_only=True))).encode()


def differences(found: dict[str, str], expected: dict[str, str]) -> dict[str, list[str]]:
    """Files that there shouldn't be, that are missing, and that have another content."""
    return {
        "left over": sorted(found.keys() - expected.keys()),
        "missing": sorted(expected.keys() - found.keys()),
        "different": sorted(
            name for name in found.keys() & expected.keys() if found[name] != expected[name]
        ),
    }


def damaged(found: dict[str, str], before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Which of the files that were there before are neither as they were nor as they are to become."""
    return [
        name
        for name, content in before.items()
        if found.get(name) not in (content, after.get(name))
    ]


def run_vsae(words: list[str], folder: Path, output: Path, is_telling: bool) -> None:
    """`vsae`, in a process that multiprocessing has forked.

    Arguments:
        output: where what it prints goes.
        is_telling: whether it tells when it fills the buffer and when it evaluates.
    """
    from dictionary_learning_ext.activations.buffer import Batches
    from dictionary_learning_ext.cli import main
    from dictionary_learning_ext.training import loop

    def telling(owner: Any, name: str, mark: str) -> None:
        original = getattr(owner, name)

        def told(*args, **kwargs):
            print(mark, flush=True)
            return original(*args, **kwargs)

        setattr(owner, name, told)

    with output.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(folder)
    if is_telling:
        telling(Batches, "_refill", "FILL")
        telling(loop, "measure", "EVALUATION")
    sys.exit(main(words))


_FORKS = multiprocessing.get_context("forkserver")


class Child:
    """A command in a process of its own, watched: what it says, and which files it writes.

    It is forked from a process that has imported the package, unless it starts with `python -m`.

    Arguments:
        command: as it is typed, without `vsae`.
        folder: where it runs.

    Attributes:
        began: when, in seconds of `time.monotonic`.
        wrote: the names of the files that have appeared or changed, each once.
    """

    def __init__(self, command: str, folder: Path, *, is_telling: bool = False):
        words = shlex.split(command)
        self.command, self.folder, self.wrote = command, folder, []
        self._before = states(folder)
        self._output = folder.with_name(f"{folder.name}.{time.monotonic_ns()}.txt")
        self.began = time.monotonic()
        if words[:2] == ["python", "-m"]:
            with self._output.open("wb") as output:
                self.process = subprocess.Popen(
                    [sys.executable, *words[1:]], cwd=folder, stdout=output, stderr=output
                )
        else:
            arguments = (words, folder, self._output, is_telling)
            self.process = _FORKS.Process(target=run_vsae, args=arguments)
            self.process.start()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    @property
    def said(self) -> str:
        try:
            return self._output.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""

    @property
    def last_line(self) -> str:
        """What it said last, without progress bars and what `run_vsae` tells."""
        lines = [line.rpartition("\r")[2].strip() for line in self.said.splitlines()]
        ours = [line for line in lines if line.startswith("vsae: ")]
        lines = [line for line in lines if line and not re.search("it/s|tok/s|^[A-Z]+$", line)]
        return (ours or lines or [""])[-1]

    @property
    def code(self) -> int | None:
        """Its exit code, or minus the number of the signal that ended it. None until then."""
        if isinstance(self.process, subprocess.Popen):
            return self.process.poll()
        return self.process.exitcode

    def send(self, number: signal.Signals) -> None:
        if self.code is None:
            os.kill(int(self.process.pid or 0), number)

    def waited_for(self, reached: "Moment") -> bool:
        """Watch until `reached`. False if it ends before."""
        while True:
            has_ended = self.code is not None
            for name, state in states(self.folder).items():
                if state != self._before.get(name) and name not in self.wrote:
                    self.wrote.append(name)
            if has_ended or reached(self):
                return not has_ended
            time.sleep(0.004)

    def came_to(self, reached: "Moment", what: str) -> "Child":
        """Itself, at `reached`. Raises a SystemExit with all that it said if it ends before."""
        if not self.waited_for(reached):
            raise SystemExit(f"{self.command}: ended before {what}: {self.said}")
        return self

    def ended(self) -> int:
        """Its exit code, at its end."""
        self.waited_for(lambda child: False)
        assert self.code is not None
        return self.code

    def succeeded(self) -> "Child":
        """Itself, at its end. Raises a SystemExit with all that it said if it failed."""
        if code := self.ended():
            raise SystemExit(f"exit code {code} of {self.command}: {self.said}")
        return self


Moment = Callable[[Child], bool]
"""Whether a command has come so far."""


def after_seconds(seconds: float) -> Moment:
    return lambda child: child.seconds >= seconds


def after_writing(name: str) -> Moment:
    return lambda child: name in child.wrote


def after_locking(child: Child) -> bool:
    return any(child.folder.glob("*/.lock"))


def after_saying(text: str) -> Moment:
    return lambda child: text in child.said


def after_mapping(library: str) -> Moment:
    """After a process has begun to load a library. On Linux only."""

    def reached(child: Child) -> bool:
        try:
            return library in Path(f"/proc/{child.process.pid}/maps").read_text(encoding="utf-8")
        except OSError:  # it has ended
            return False

    return reached


def after_logging(lines: int) -> Moment:
    def reached(child: Child) -> bool:
        try:
            return (child.folder / HISTORY).read_bytes().count(b"\n") >= lines
        except FileNotFoundError:
            return False

    return reached


def continued(child: Child, command: str) -> str:
    """What to type after a command has ended: what it says itself, or else what docs say."""
    if found := re.search("(?:continue with|last resume point with) `(.+?)`", child.said):
        typed = found[1].removeprefix("vsae ")
        return typed.replace("torchrun", TORCHRUN) if "torchrun" in typed else typed
    if "run the same command again" in child.said or not (child.folder / "run").is_dir():
        return command
    return "train --resume run"


class Places:
    """New folders to work in, all below one."""

    def __init__(self, base: Path):
        self._base, self._count = base, 0

    def new(self, template: Path | None = None) -> Path:
        """An empty folder, or a copy of a template."""
        self._count += 1
        place = self._base / str(self._count)
        if template is None:
            place.mkdir()
        else:
            shutil.copytree(template, place)
        return place

    def after(self, *commands: str, template: Path | None = None) -> Path:
        """A folder in which some commands have run."""
        place = self.new(template)
        for command in commands:
            Child(command, place).succeeded()
        return place


# --- kill -9


@dataclass(frozen=True)
class Killed:
    """A command to kill.

    Attributes:
        before: what runs in the folder first.
        trained: whether the folder holds a trained SAE before that.
    """

    command: str
    before: tuple[str, ...] = ()
    trained: bool = True


KILLED = {
    "cache": Killed(f"{CACHE} 24000", trained=False),
    "cache that grows": Killed(f"{CACHE} 30000", (f"{CACHE} 9000",), trained=False),
    "report": Killed(f"{REPORT} 16", (f"{REPORT} 4",)),
    "export": Killed(
        "export run --format safetensors --tokens 2000",
        ("export run --format dictionary-learning --allow-inexact --tokens 1000",),
    ),
    "bench": Killed(f"{BENCH} 4096", (f"{BENCH} 2048",)),
}


def killed(flags: argparse.Namespace, places: Places, name: str) -> dict[str, Any]:
    """Kill a command at every moment, and type it again."""
    case, draw = KILLED[name], random.Random(f"{flags.seed} {name}")
    template = places.after(TRAIN) if case.trained else places.new()
    template = places.after(*case.before, template=template)
    whole = Child(case.command, places.new(template)).succeeded()
    seconds = whole.seconds
    before, wanted = contents(template), contents(whole.folder)
    rows, missed = [], 0
    while len(rows) < flags.kills:
        piece, is_by_file = len(rows) // 2, (len(rows) + missed) % 2
        child = Child(case.command, places.new(template))
        if is_by_file:
            reached = child.waited_for(after_writing(draw.choice(whole.wrote)))
            time.sleep(draw.uniform(0, 0.02))
        else:
            share = (piece + draw.random()) / ((flags.kills + 1) // 2)
            reached = child.waited_for(after_seconds(share * seconds))
        child.send(signal.SIGKILL)
        if not reached or child.ended() != -signal.SIGKILL:
            missed, seconds = missed + 1, min(seconds, child.seconds)
            if missed > 3 * flags.kills:
                raise SystemExit(f"{name}: {missed} runs ended before they could be killed")
            continue
        stage = child.wrote[-1] if child.wrote else ""
        then = contents(child.folder)
        again = Child(case.command, child.folder)
        code = again.ended()
        row = {
            "after": stage,
            "said": child.last_line,
            "done": then == wanted,
            "damaged": damaged(then, before, wanted),
            "exit again": code,
            "said again": again.last_line if code else "",
            **differences(contents(child.folder), wanted),
        }
        rows.append(row)
        print(f"{name}: {row}", flush=True)
    return {"command": case.command, "seconds": seconds, "rows": rows}


# --- signals, writers, processes


def signals(flags: argparse.Namespace, places: Places) -> dict[str, Any]:
    """Interrupt a training, and continue it as it says."""
    draw = random.Random(f"{flags.seed} signals")
    wanted = contents(places.after(TRAIN))
    rows: list[dict[str, Any]] = []

    def interrupt(
        what: str,
        reached: Moment,
        *numbers: signal.Signals,
        pause: float,
        command: str = TRAIN,
    ) -> None:
        child = Child(command, places.new(), is_telling=True).came_to(reached, what)
        for number in numbers:
            time.sleep(pause)
            child.send(number)
        code = child.ended()
        files = len(contents(child.folder))
        then = continued(child, TRAIN)
        again = Child(then, child.folder)
        row = {
            "what": what,
            "exit": code,
            "said": child.last_line,
            "traceback": bool(re.search(r'cli\.py", line \d+, in main', child.said)),
            "files": files,
            "then": then,
            "exit again": again.ended(),
            **differences(contents(child.folder), wanted),
        }
        rows.append(row)
        print(row, flush=True)

    ctrl_c, terminate = signal.SIGINT, signal.SIGTERM
    for pause in (0, draw.uniform(0, 0.02), draw.uniform(0.02, 0.2)):
        what = f"SIGTERM twice in training, {1000 * pause:.0f} ms apart"
        interrupt(what, after_logging(4), terminate, terminate, pause=pause)
    typed = f"python -m dictionary_learning_ext {TRAIN}"
    for what, moment, pause in (
        ("Python starts", after_seconds(0), draw.uniform(0.05, 0.3)),
        ("the package is imported", after_seconds(0.6), draw.uniform(0, 2)),
        ("torch is imported", after_mapping("libtorch"), draw.uniform(0, 0.5)),
        ("the language model is loaded", after_locking, draw.uniform(0, 0.1)),
    ):
        interrupt(f"SIGINT while {what}", moment, ctrl_c, pause=pause, command=typed)
    for what, moment, pause in (
        ("the buffer is filled for the first time", after_saying("FILL"), draw.uniform(0, 0.1)),
        ("the SAE is evaluated", after_saying("EVALUATION"), draw.uniform(0, 0.3)),
    ):
        interrupt(f"SIGINT while {what}", moment, ctrl_c, pause=pause)
    for what, moment, pause in (
        ("the buffer is filled for the first time", after_saying("FILL"), draw.uniform(0, 0.1)),
        ("the SAE is evaluated", after_saying("EVALUATION"), draw.uniform(0, 0.3)),
    ):
        interrupt(f"SIGTERM while {what}", moment, terminate, pause=pause)
    return {"command": TRAIN, "rows": rows}


def typed_again(
    command: str,
    moments: Iterable[tuple[str, Moment, signal.Signals]],
    places: Places,
    template: Path,
) -> list[dict[str, Any]]:
    """Send a signal to a command at each moment, and type the same command again."""
    wanted = contents(places.after(command, template=template))
    rows = []
    for what, moment, number in moments:
        what = f"{number.name} {what}"
        child = Child(command, places.new(template)).came_to(moment, what)
        child.send(number)
        code = child.ended()
        again = Child(command, child.folder)
        row = {
            "what": what,
            "exit": code,
            "said": child.last_line if number != signal.SIGKILL else "",
            "traceback": "Traceback (most recent call last)" in child.said,
            "then": "the same",
            "exit again": again.ended(),
            **differences(contents(child.folder), wanted),
        }
        # That of the interruption stays beside the last one.
        row["left over"] = [name for name in row["left over"] if not _POINT.search(name)]
        rows.append(row)
        print(row, flush=True)
    return rows


def quickstart(flags: argparse.Namespace, places: Places) -> dict[str, Any]:
    ctrl_c, kill = signal.SIGINT, signal.SIGKILL
    moments = (
        ("while activations are cached", after_writing("quick/cache/heldout/state.json"), ctrl_c),
        ("in the training of the first seed", after_writing("quick/vsae_seed0/metrics.jsonl"), kill),
        ("in the training of the second seed", after_writing("quick/vsae_seed1/metrics.jsonl"), ctrl_c),
        ("before the report", after_saying("Writing the report"), ctrl_c),
    )  # fmt: skip
    rows = typed_again(QUICKSTART, moments, places, places.new())
    return {"command": QUICKSTART, "rows": rows}


def explain(flags: argparse.Namespace, places: Places) -> dict[str, Any]:
    from experiments.language_models.explanations import serve, words

    answered: list[float] = []

    def slowly(messages: list[dict[str, str]]) -> str:
        time.sleep(0.1)
        answered.append(time.monotonic())
        return words(messages)

    def after_answers(n: int) -> Moment:
        """After as many of this command's."""
        return lambda child: sum(when > child.began for when in answered) >= n

    server = serve({"words": slowly})
    command = f"{EXPLAIN} http://127.0.0.1:{server.server_port}/v1"
    moments = (
        ("while the text is read", after_saying("…"), signal.SIGINT),
        ("after 3 answers", after_answers(3), signal.SIGINT),
        ("after 15 answers", after_answers(15), signal.SIGINT),
        ("after 15 answers", after_answers(15), signal.SIGKILL),
    )
    rows = typed_again(command, moments, places, places.after(TRAIN))
    server.shutdown()
    return {"command": f"{EXPLAIN} URL", "rows": rows}


def writers(flags: argparse.Namespace, places: Places) -> dict[str, Any]:
    """Start a second command while a first one writes, which is stopped meanwhile."""
    cache = f"{CACHE} 24000"
    wanted = {command: contents(places.after(command)) for command in (TRAIN, cache)}
    training, caching = HISTORY, "c/data-00000.arrow"
    rows: list[dict[str, Any]] = []
    for first_command, appeared, second_command in (
        (TRAIN, training, TRAIN),
        (TRAIN, training, f"{TRAIN} --overwrite"),
        (TRAIN, training, "train --resume run"),
        (TRAIN, training, cache.replace(" c ", " run ")),
        (cache, caching, cache),
        (cache, caching, TRAIN.replace("save-dir run", "save-dir c")),
        (cache, caching, TRAIN.replace("save-dir run", "save-dir other --activations c")),
    ):
        first = Child(first_command, places.new()).came_to(after_writing(appeared), appeared)
        first.send(signal.SIGSTOP)
        second = Child(second_command, first.folder)
        code = second.ended()
        first.send(signal.SIGCONT)
        row = {
            "first": first_command,
            "second": second_command,
            "exit": code,
            "said": second.last_line.replace(str(first.process.pid), "PID"),
            "exit again": first.ended(),
            **differences(contents(first.folder), wanted[first_command]),
        }
        rows.append(row)
        print(row, flush=True)
    # Both from the start: either may be the first.
    place = places.new()
    both = [Child(TRAIN, place) for _ in range(2)]
    codes = [child.ended() for child in both]
    refused = both[codes.index(max(codes))]
    other = both[1 - both.index(refused)]
    row = {
        "first": TRAIN,
        "second": "the same, at the same time",
        "exit": max(codes),
        "said": refused.last_line.replace(str(other.process.pid), "PID"),
        "exit again": min(codes),
        **differences(contents(place), wanted[TRAIN]),
    }
    print(row, flush=True)
    return {"rows": [*rows, row]}


def processes(flags: argparse.Namespace, places: Places) -> dict[str, Any]:
    """Kill one of two ranks, and continue as the other says."""
    import psutil

    command = f"{TORCHRUN} --nproc-per-node 2 -m dictionary_learning_ext {TRAIN}"
    draw = random.Random(f"{flags.seed} processes")
    wanted = contents(places.after(command))
    rows: list[dict[str, Any]] = []
    # Once before the first resume point, which comes before the fifth line.
    for rank, at_line in ((0, draw.randint(6, 11)), (1, draw.randint(6, 11)), (1, 3)):
        child = Child(command, places.new()).came_to(after_logging(at_line), f"line {at_line}")
        for process in psutil.Process(child.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if process.environ().get("RANK") == str(rank):
                    process.kill()
        code, then = child.ended(), continued(child, command)
        again = Child(then, child.folder)
        code_again = again.ended()
        said = re.findall("vsae: .*", child.said)
        resumed = re.search(r"resuming from step (\d+)", again.said)
        row = {
            "rank": rank,
            "logged": at_line,
            "exit": code,
            "said": said[-1] if said else "",
            "then": then,
            "resumed from": int(resumed[1]) if resumed else 0,
            "exit again": code_again,
            **differences(contents(child.folder), wanted),
        }
        rows.append(row)
        print(row, flush=True)
    return {"command": command, "rows": rows}


# --- the stage


def measure(flags: argparse.Namespace) -> None:
    parts: dict[str, Callable[[Places], dict[str, Any]]] = {
        name: lambda places, name=name: killed(flags, places, name) for name in KILLED
    }
    for part in (signals, writers, processes, quickstart, explain):
        parts[part.__name__] = lambda places, part=part: part(flags, places)
    is_new = flags.again and not flags.parts
    content = {} if is_new else raw_results.read_or(RAW, {})
    has_sae_bench = find_spec("sae_bench") is not None
    # The commands inherit it. It is ignored where a shell has started this one in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(ROOT)}
    _FORKS.set_forkserver_preload([*PRELOADED, *["sae_bench.evals.core.main"][:has_sae_bench]])
    for name, part in parts.items():
        is_wanted = name in (flags.parts or parts)
        if not is_wanted or (name in content.get("parts", {}) and not flags.again):
            continue
        if name == "bench" and not has_sae_bench:
            print(
                f"{name}: skipped, as {sys.executable} has no SAE Bench; run this again with the Python "
                "that has it, e.g. .venv-saebench/bin/python",
                flush=True,
            )
            continue
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as base:
            found = part(Places(Path(base)))
        content = {
            "settings": about(began, content.get("settings")),
            "flags": f"--kills {flags.kills} --seed {flags.seed}",
            "parts": content.get("parts", {}) | {name: found},
        }
        raw_results.write(RAW, content)
    wrong = {
        name: count
        for name, part in content.get("parts", {}).items()
        if (count := sum(not is_right(row) for row in part["rows"]))
    }
    if wrong:
        STAGES.write_page(RAW.stem, RAW)
        raise SystemExit(f"not as a run left alone, by part: {wrong}")


def problems(row: dict[str, Any]) -> dict[str, list[str]]:
    """The files of a row that are not as they should be, by what is wrong with them."""
    kinds = ("damaged", "left over", "missing", "different")
    return {kind: row[kind] for kind in kinds if row.get(kind)}


def is_right(row: dict[str, Any]) -> bool:
    is_refused_as_done = row.get("done") and row["exit again"] == 2
    failed = row["exit again"] and not is_refused_as_done
    return was_interrupted(row) and not (problems(row) or row.get("traceback") or failed)


def was_interrupted(row: dict[str, Any]) -> bool:
    """Whether the command ended as one that is interrupted, or refused, does. `killed` sees to that itself."""
    if "exit" not in row:
        return True
    if "second" in row:
        return row["exit"] == 2
    if "rank" in row:
        return row["exit"] != 0
    return row["exit"] < 0 or row["exit"] in (130, 143)


# --- the page


def tables(content: dict[str, Any]) -> list[str]:
    parts = content["parts"]
    lines = [f"{about_line(content['settings'])}, `{content['flags']}`, one thread", ""]
    counts = {
        name: [str(len(parts[name]["rows"])), str(sum(map(is_right, parts[name]["rows"])))]
        for name in _DETAILS
        if name in parts
    }
    lines += table("", counts, ["interruptions", "with the result of a run left alone"])
    for name, (head, corner, columns, cells) in _DETAILS.items():
        if name in parts:
            rows = {str(n): cells(row) for n, row in enumerate(parts[name]["rows"], 1)}
            about_part = ["", head.format(**parts[name])] if head else []
            lines += [*about_part, "", *table(corner, rows, columns)]
    return lines


def _outcome(row: dict[str, Any]) -> str:
    """What is wrong with a row, or what is right."""
    wrong = [
        f"{kind}: {', '.join(f'`{name}`' for name in found)}"
        for kind, found in problems(row).items()
    ]
    if row.get("traceback"):
        wrong.append("a traceback")
    if not was_interrupted(row):
        wrong.append(f"not interrupted: exit code {row['exit']}")
    if wrong or not is_right(row):
        return "; ".join([*wrong, f"exit code {row['exit again']} of the second"])
    return "the same; it was done, so the second was refused" if row["exit again"] else "the same"


def _of_kill(row: dict[str, Any]) -> list[str]:
    said = [f"said `{row['said']}`"] if row["said"].endswith("…") else []
    wrote = [f"wrote `{row['after']}`"] if row["after"] else []
    return [", ".join([*wrote, *said]) or "nothing yet", _outcome(row)]


def _of_signal(row: dict[str, Any]) -> list[str]:
    return [row["what"], str(row["exit"]), row["said"], f"`{_short(row['then'])}`", _outcome(row)]


def _of_typed_again(row: dict[str, Any]) -> list[str]:
    return [row["what"], str(row["exit"]), row["said"], _outcome(row)]


def _of_writers(row: dict[str, Any]) -> list[str]:
    return [*(f"`{_short(row[one])}`" for one in ("first", "second")), row["said"], _outcome(row)]


def _of_rank(row: dict[str, Any]) -> list[str]:
    said = re.sub(r"\(\[.*\);", "(what gloo says);", row["said"])
    return [str(row["rank"]), said, str(row["resumed from"]), _outcome(row)]


def _short(command: str) -> str:
    """A command without the flags that all of them share."""
    for flags in (TRAIN.partition("--steps")[2], CACHE.partition("--eval")[2]):
        command = command.replace(flags, "…")
    return command


_KILL = (["it had", "after the same command again"], _of_kill)
_DETAILS: dict[str, tuple[str, str, list[str], Callable[[dict[str, Any]], list[str]]]] = {
    **{
        name: ("`vsae {command}`, {seconds:.1f} s when left alone", "kill", *_KILL)
        for name in KILLED
    },
    "signals": (
        "`vsae {command}`",
        "signal",
        ["when", "exit code", "it said", "then", "result"],
        _of_signal,
    ),
    "writers": (
        "",
        "two writers",
        ["first", "second", "it said", "the first's result"],
        _of_writers,
    ),
    "processes": (
        "`{command}`",
        "kill",
        ["rank killed", "it said", "resumed from step", "result"],
        _of_rank,
    ),
    **{
        name: (
            "`vsae {command}`",
            name,
            ["when", "exit code", "it said", "result"],
            _of_typed_again,
        )
        for name in ("quickstart", "explain")
    },
}


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kills", type=int, default=8, help="of each command")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--parts", nargs="+", default=[], help="only these; all if none is named")
    parser.add_argument("--again", action="store_true", help="measure what is there already, too")


STAGES = Stages(
    "robustness.interruptions",
    {"train": measure},
    {"interruptions": Page(tables)},
    options=options,
)

if __name__ == "__main__":
    STAGES.run()
