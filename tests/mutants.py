"""How many small faults do the tests notice?

    make mutants                                       # about two hours on two cores
    make mutants MUTANTS='--folders evaluation'        # some sub-packages
    make mutants MUTANTS=--survivors                   # those that the last run missed
    make mutants-saebench                              # the sub-packages that need SAE Bench's environment

The faults ("mutants") are made by cosmic-ray's operators. A seeded random sample is drawn from those of each
sub-package, and each is run against the sub-package's tests: those of its own module first, and the slow ones
last. Survivors that can't be noticed, because the program does the same with them, are named in
equivalent.toml with the reason and left out of the score. A run fails if too few are noticed in a
folder.

A mutant runs in a forked child of a process that has imported torch and the like, which saves most of its
time. It is ended when it has taken much more CPU time than the tests do, and counts as noticed.
"""

import argparse
import contextlib
import hashlib
import importlib
import importlib.util
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "dictionary_learning_ext"
SURVIVORS = ROOT / "build" / "mutants.json"
LEAST = {
    "trainers": 0.9,
    "trainers/kernels": 0.9,
    "run_folder": 0.8,
    "activations": 0.9,
    "evaluation": 0.9,
    "codes": 0.9,
    "features": 0.9,
    "training": 0.8,
    "report": 0.9,
    "sweep": 0.8,
    "sae_bench": 0.9,
    "export": 0.9,
}
"""The share that must be noticed, by folder."""
OF_SAE_BENCH = ("sae_bench", "export")
"""The folders whose tests meet libraries that only SAE Bench's environment has."""
BEYOND = 20.0
"""CPU seconds that a mutant may take beyond twice what the tests of its folder take without it."""
MEMORY = 8 << 30  # bytes that a mutant may allocate
UNLIKELY = re.compile(
    "|".join(
        f"core/{name}"
        for name in (
            "ReplaceBinaryOperator_.*_(RShift|LShift|BitXor|Mod)",
            "ReplaceBinaryOperator_(Add|Sub|Mul|Div|FloorDiv|Mod|Pow)_(BitOr|BitAnd)",
            "ReplaceBinaryOperator_(BitOr|BitAnd)_(Add|Mul|Div|FloorDiv|Pow)",
            "ReplaceComparisonOperator_(Eq|NotEq|Lt|LtE|Gt|GtE)_(Is|IsNot)",
            "ReplaceComparisonOperator_(Is|IsNot)_(Eq|NotEq|Lt|LtE|Gt|GtE)",
            "ReplaceUnaryOperator_.*_(UAdd|Not|Invert)",
            "RemoveDecorator",
        )
    )
)
"""The operators that nobody would type by mistake."""
LOGS = re.compile(r"(logger|log|warnings)\.(debug|info|warning|error|exception|warn)$")


# The sample.


@dataclass(frozen=True)
class Mutant:
    """One fault."""

    module: str
    """The file, below the package."""
    operator: str
    occurrence: int
    """What cosmic-ray is asked for."""
    line: int
    """The line in the file, from 1."""
    before: str
    after: str
    """The first line that differs."""

    @property
    def folder(self) -> str:
        return folder_of(self.module)

    def __str__(self) -> str:
        return f"{self.module}:{self.line}\n    - {self.before}\n    + {self.after}"


class Place(NamedTuple):
    """A way to mutate one place. Its name stays the same when other lines are edited."""

    operator: str
    occurrence: int
    start: tuple[int, int]
    name: str


def folder_of(module: str) -> str:
    """The folder of LEAST that a module counts to."""
    parent = Path(module).parent.as_posix()
    return parent if parent in LEAST else module.split("/")[0]


def operators() -> dict[str, Any]:
    """cosmic-ray's operators that take no arguments, but for the unlikely ones."""
    from cosmic_ray.plugins import get_operator, operator_names  # pyright: ignore[reportMissingImports]

    classes = {name: get_operator(name) for name in operator_names() if not UNLIKELY.match(name)}
    return {name: operator() for name, operator in classes.items() if not operator.arguments()}


def mutated(source: str, operator: Any, occurrence: int) -> str:
    from cosmic_ray.mutating import mutate_code  # pyright: ignore[reportMissingImports]

    return mutate_code(source, operator, occurrence) or source


def matters(node: Any, position: tuple[int, int]) -> bool:
    """Whether a mutation could change what a program does, other than a message's words."""
    while node is not None:
        if node.type in {"raise_stmt", "assert_stmt"}:
            return False
        note = node.children[1] if node.type == "annassign" else getattr(node, "annotation", None)
        if note is not None and note.start_pos <= position < note.end_pos:
            return False
        # zip(strict=True) and dataclass(frozen=True) are for what can't happen, as assert is.
        if node.type == "argument" and node.children[0].get_code().strip() in {"strict", "frozen"}:
            return False
        if node.type in {"atom_expr", "power"}:
            function = "".join(child.get_code() for child in node.children[:-1]).strip()
            if LOGS.search(function):
                return False
        node = node.parent
    return True


def places(module: str, source: str, used: dict[str, Any]) -> Iterator[Place]:
    """All mutations of a file."""
    from cosmic_ray.ast import ast_nodes, get_ast  # pyright: ignore[reportMissingImports]

    lines, nodes = source.splitlines(), list(ast_nodes(get_ast(source)))
    for name, operator in used.items():
        seen, occurrence = Counter(), -1
        for node in nodes:
            for start, _ in operator.mutation_positions(node):
                occurrence += 1
                text = lines[start[0] - 1].strip()
                seen[text] += 1
                if matters(node, start):
                    yield Place(name, occurrence, start, f"{module}|{text}|{seen[text]}|{name}")


def rank(seed: int, name: str) -> str:
    """The places of the lowest ranks are drawn."""
    return hashlib.sha256(f"{seed}|{name}".encode()).hexdigest()


def drawn(used: dict[str, Any], folder: str, size: int, seed: int) -> list[Mutant]:
    """A random sample of a folder's places, each with one of its mutations. It hardly changes with edits."""
    sources, chosen = {}, []
    for file in sorted((ROOT / PACKAGE / folder).rglob("*.py")):
        module = file.relative_to(ROOT / PACKAGE).as_posix()
        if file.name == "__init__.py" or folder_of(module) != folder:
            continue
        sources[module] = file.read_text(encoding="utf-8")
        by_start = defaultdict(list)
        for place in places(module, sources[module], used):
            by_start[place.start].append(place)
        for ways in by_start.values():
            place = min(ways, key=lambda way: rank(seed, way.name))
            chosen.append((rank(seed + 1, place.name), module, place))
    mutants = []
    for _, module, place in sorted(chosen):
        if len(mutants) == size:
            break
        after = mutated(sources[module], used[place.operator], place.occurrence)
        if mutant := described(module, place, sources[module], after):
            mutants.append(mutant)
    return mutants


def described(module: str, place: Place, source: str, after: str) -> Mutant | None:
    """None where the mutation changes nothing or is no Python."""
    try:
        compile(after, module, "exec")
    except SyntaxError:
        return None
    pairs = zip(source.splitlines(), after.splitlines(), strict=False)
    for number, (one, other) in enumerate(pairs, 1):
        if one != other:
            return Mutant(
                module, place.operator, place.occurrence, number, one.strip(), other.strip()
            )
    return None


def equivalents() -> Callable[[Mutant], bool]:
    """Whether a mutant does the same as the program. Prints those listed of lines that are gone."""
    import toml

    text = Path(__file__).with_name("equivalent.toml").read_text(encoding="utf-8")
    listed = toml.loads(text)["mutant"]
    files = (ROOT / PACKAGE).rglob("*.py")
    package = "\n".join(file.read_text(encoding="utf-8") for file in files)
    for one in listed:
        if one["before"] not in package:
            print(f"equivalent.toml: no line of the package holds {one['before']!r}")
    known = {(one.get("module"), one["before"], one["after"]) for one in listed}
    return lambda mutant: (
        not known.isdisjoint(
            (module, mutant.before, mutant.after) for module in (None, mutant.module)
        )
    )


# Running it.


def tests_of(module: str) -> list[str]:
    """The test files of a module's sub-package: its own first, then those of its own folder."""
    own, folder = Path(module).stem, (ROOT / "tests" / module).parent

    def distance(path: Path) -> tuple[bool, bool, str]:
        is_own = path.parent == folder and path.stem.startswith(f"test_{own}")
        return not is_own, path.parent != folder, str(path)

    found = (ROOT / "tests" / module.split("/")[0]).rglob("test_*.py")
    return [str(path.relative_to(ROOT)) for path in sorted(found, key=distance)]


class SlowLast:
    """A pytest plugin: the slow tests after the others."""

    @staticmethod
    def pytest_collection_modifyitems(items: list[Any]) -> None:
        items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


def import_what_takes_long() -> None:
    for name in ("datasets", "dictionary_learning", "nnsight", "sklearn", "transformers"):
        importlib.import_module(name)
    import hypothesis
    import torch

    torch.set_num_threads(1)
    # A counterexample is enough; it needs not be the smallest.
    phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
    hypothesis.settings.register_profile("mutants", phases=phases, database=None, deadline=None)
    hypothesis.settings.load_profile("mutants")


class Slot:
    """A copy of the tree, in which one mutant runs at a time."""

    def __init__(self, folder: Path):
        self.tree, self.log = folder / "tree", folder / "log"
        listed = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
        names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout
        for name in filter(None, names.split("\0")):
            (self.tree / name).parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).is_file():
                shutil.copy2(ROOT / name, self.tree / name)
        # Compiled once; a mutated file is known by its content.
        compile_all = [sys.executable, "-m", "compileall", "-q", "--invalidation-mode"]
        subprocess.run([*compile_all, "checked-hash", PACKAGE], cwd=self.tree, check=True)

    def start(self, tests: list[str], mutant: Mutant | None, used: dict[str, Any], limit: float):
        """Fork a child that runs the tests on the mutant, or on the package as it is."""
        self.mutant, self.started, self.limit = mutant, time.monotonic(), limit
        if mutant is not None:
            self.file = self.tree / PACKAGE / mutant.module
            self.original = self.file.read_text(encoding="utf-8")
            after = mutated(self.original, used[mutant.operator], mutant.occurrence)
            self.file.write_text(after, encoding="utf-8")
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self._run(tests, limit)
            finally:
                os._exit(70)

    def _run(self, tests: list[str], limit: float) -> None:
        """In the child."""
        os.setsid()
        output = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        resource.setrlimit(resource.RLIMIT_CPU, (int(limit), int(limit) + 5))
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.chdir(self.tree)
        os.environ |= {"PYTHONPATH": str(self.tree), "PYTHONDONTWRITEBYTECODE": "1"}
        sys.dont_write_bytecode = True
        sys.path.insert(0, str(self.tree))
        for name in [name for name in sys.modules if name.partition(".")[0] == "experiments"]:
            del sys.modules[name]  # the tests find this tree's
        import pytest

        flags = ["-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=1", "--tb=short"]
        basetemp = f"--basetemp={self.tree.parent / 'tmp'}"
        code = pytest.main([*flags, basetemp, *tests], plugins=[SlowLast()])
        module = sys.modules.get(PACKAGE)
        inside = module is None or Path(str(module.__file__)).is_relative_to(self.tree)
        sys.stdout.flush()
        os._exit(int(code) if inside else 71)

    def ended(self) -> tuple[int, float] | None:
        """How the child ended and its CPU seconds, or None while it runs."""
        pid, status, usage = os.wait4(self.pid, os.WNOHANG)
        if pid == 0:
            if time.monotonic() - self.started < 6 * self.limit:
                return None
            os.killpg(self.pid, signal.SIGKILL)
            _, status, usage = os.wait4(self.pid, 0)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # what it left running
        if self.mutant is not None:
            self.file.write_text(self.original, encoding="utf-8")
        return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime


Job = tuple[Any, list[str], Mutant | None, float]
"""A key, the tests, a mutant or None, and how many CPU seconds it may take."""


def run_all(jobs: list[Job], slots: list[Slot], used: Any) -> Iterator[tuple[Any, float]]:
    """Run jobs. Yields the key and the CPU seconds of each whose tests pass, as they end, and for others
    (None, seconds).

    Raises: SystemExit where tests fail without a mutant, or can't be run.
    """
    waiting, free, busy = list(reversed(jobs)), list(slots), {}
    while waiting or busy:
        while waiting and free:
            key, tests, mutant, limit = waiting.pop()
            slot = free.pop()
            slot.start(tests, mutant, used, limit)
            busy[slot] = key
        time.sleep(0.02)
        for slot in list(busy):
            if (end := slot.ended()) is not None:
                code, seconds = end
                free.append(slot)
                key = busy.pop(slot)
                if code in (70, 71) or (code and slot.mutant is None):
                    log = slot.log.read_text()[-3000:]
                    raise SystemExit(f"{key}: could not be run, or failed without a mutant\n{log}")
                yield None if code else key, seconds


# The score.


def too_low(ran: Mapping[str, int], alive: Mapping[str, int]) -> list[str]:
    """The folders, each in a sentence, in which too few mutants were noticed."""
    return [
        f"{folder}: {n - alive.get(folder, 0)} of {n} were noticed; expected {LEAST[folder]:.0%}"
        for folder, n in ran.items()
        if n - alive.get(folder, 0) < LEAST[folder] * n
    ]


def table(ran: Counter[str], alive: Counter[str], equivalent: Counter[str]) -> str:
    """The scores of each folder and of all together."""
    lines = [f"{'':18}{'mutants':>8}{'noticed':>8}{'score':>7}{'equivalent':>12}"]
    rows = {one: (ran[one], alive[one], equivalent[one]) for one in ran}
    total = (ran.total(), alive.total(), equivalent.total())
    for name, (n, left, same) in {**rows, "all": total}.items():
        score = f"{(n - left) / max(n, 1):.0%}"
        lines.append(f"{name:18}{n:8}{n - left:8}{score:>7}{same:12}")
    return "\n".join(lines)


def last_survivors() -> dict[str, list[dict[str, Any]]]:
    """Those of the last run of each folder."""
    return json.loads(SURVIVORS.read_text(encoding="utf-8")) if SURVIVORS.is_file() else {}


def note(survivors: list[Mutant], folders: list[str]) -> None:
    """Write the survivors of these folders, and keep those of the others."""
    found = {one: [asdict(each) for each in survivors if each.folder == one] for one in folders}
    SURVIVORS.parent.mkdir(exist_ok=True)
    SURVIVORS.write_text(json.dumps(last_survivors() | found, indent=1), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Plants small faults, and counts those that the tests notice."
    )
    parser.add_argument("--sample", type=int, default=60, help="how many mutants of each folder")
    parser.add_argument("--seed", type=int, default=0, help="draws the sample")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    own = [folder for folder in LEAST if folder not in OF_SAE_BENCH]
    parser.add_argument("--folders", nargs="+", choices=list(LEAST), default=own)
    parser.add_argument("--survivors", action="store_true", help="only those of the last run")
    parser.add_argument("--list", action="store_true", help="show the sample, run nothing")
    args = parser.parse_args()

    if {*args.folders} & {*OF_SAE_BENCH} and importlib.util.find_spec("sae_bench") is None:
        parser.error(
            f"the tests of {' and '.join(OF_SAE_BENCH)} need SAE Bench: `make mutants-saebench`"
        )
    used, is_equivalent = operators(), equivalents()
    sample = [one for name in args.folders for one in drawn(used, name, args.sample, args.seed)]
    if args.survivors:
        lines = {(one["before"], one["after"]) for own in last_survivors().values() for one in own}
        sample = [one for one in sample if (one.before, one.after) in lines]
    equivalent = Counter(one.folder for one in sample if is_equivalent(one))
    sample = [one for one in sample if not is_equivalent(one)]
    if args.list:
        print(*sample, sep="\n")
        return 0
    import_what_takes_long()
    work = ROOT / "build" / "mutants"
    shutil.rmtree(work, ignore_errors=True)
    slots = [Slot(work / str(number)) for number in range(args.jobs)]
    folders, limits = list(dict.fromkeys(one.folder for one in sample)), {}
    alone: list[Job] = [(folder, tests_of(f"{folder}/x.py"), None, 1200.0) for folder in folders]
    for folder, seconds in run_all(alone, slots, used):
        print(f"tests/{folder}: {seconds:.0f} s of CPU without a mutant", flush=True)
        limits[folder] = 2 * seconds + BEYOND
    survivors, total = [], 0.0
    jobs: list[Job] = [(one, tests_of(one.module), one, limits[one.folder]) for one in sample]
    for number, (survivor, seconds) in enumerate(run_all(jobs, slots, used), 1):
        total += seconds
        if survivor is not None:
            survivors.append(survivor)
            print(f"{number}/{len(sample)} survived ({seconds:.0f} s): {survivor}", flush=True)
            note(survivors, folders)
    note(survivors, folders)
    shutil.rmtree(work, ignore_errors=True)

    ran, alive = (Counter(one.folder for one in some) for some in (sample, survivors))
    print(f"\n{table(ran, alive, equivalent)}\n{total / 60:.0f} minutes of CPU")
    low = [] if args.survivors else too_low(ran, alive)
    print(*low, sep="\n")
    return 1 if low else 0


if __name__ == "__main__":
    sys.exit(main())
