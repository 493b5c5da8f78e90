"""`make mutants`: plants small faults, one at a time, and counts those that the tests notice.

The faults ("mutants") are made by cosmic-ray's operators. A seeded random sample is drawn from all
of them, and each is run against the tests of its sub-package: those of its own module first, and
the slow ones last. What no test notices is listed as a survivor. Survivors that cannot be noticed,
because the program does the same with them, are named in equivalent.toml with the reason and left
out of the score. A full run fails if too few are noticed in a folder, see scores.py.

A mutant runs in a forked child of a process that has imported torch and the like, which saves most
of its time. It is ended when it has taken much more CPU time than the tests do, and counts as noticed.
"""

import argparse
import contextlib
import importlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cosmic_ray.config
from cosmic_ray.mutating import mutate_code
from sample import HERE, PACKAGE, ROOT, Mutant, drawn, equivalents, operators
from scores import survivors_in, table, too_low, write_survivors

SURVIVORS = ROOT / "build" / "mutants.json"
MEMORY = 8 << 30  # bytes that a mutant may allocate


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
        from slow_tests import SLOW

        items.sort(key=lambda item: getattr(item, "originalname", item.name) in SLOW)


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
            mutated = mutate_code(self.original, used[mutant.operator], mutant.occurrence)
            assert mutated is not None
            self.file.write_text(mutated, encoding="utf-8")
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


def run_all(jobs: list[Job], slots: list[Slot], used: Any):
    """Run jobs. Yields each one's key, exit code, CPU seconds and slot, as they end."""
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
                free.append(slot)
                yield busy.pop(slot), *end, slot


def main() -> int:
    config = cosmic_ray.config.load_config(HERE / "cosmic-ray.toml")
    all_folders = [Path(path).name for path in config["module-path"]]
    parser = argparse.ArgumentParser(
        description="Plants small faults, and counts those that the tests notice."
    )
    parser.add_argument("--sample", type=int, default=300, help="how many mutants")
    parser.add_argument("--seed", type=int, default=0, help="draws the sample")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--folders", nargs="+", choices=all_folders, default=all_folders)
    parser.add_argument("--survivors", action="store_true", help="only those of the last run")
    parser.add_argument("--list", action="store_true", help="show the sample, run nothing")
    args = parser.parse_args()

    used, known = operators(config), equivalents()
    sample = drawn(config, all_folders, args.sample, args.seed)
    sample = [mutant for mutant in sample if mutant.folder in args.folders]
    if args.survivors:
        last = {
            (one["module"], one["before"], one["after"])
            for survivors in survivors_in(SURVIVORS).values()
            for one in survivors
        }
        sample = [one for one in sample if (one.module, one.before, one.after) in last]
    equivalent = [one for one in sample if (one.module, one.before, one.after) in known]
    sample = [one for one in sample if one not in equivalent]
    if args.list:
        print(*sample, sep="\n")
        return 0
    import_what_takes_long()
    work = ROOT / "build" / "mutants"
    shutil.rmtree(work, ignore_errors=True)
    slots = [Slot(work / str(number)) for number in range(args.jobs)]
    folders = list(dict.fromkeys(one.folder for one in sample))
    limits = {}
    for folder, code, seconds, slot in run_all(
        [(folder, tests_of(f"{folder}/x.py"), None, 1200.0) for folder in folders], slots, used
    ):
        if code != 0:
            print(f"tests/{folder} fails without a mutant:\n{slot.log.read_text()[-3000:]}")
            return 1
        print(f"tests/{folder}: {seconds:.0f} s of CPU without a mutant", flush=True)
        limits[folder] = 2 * seconds + config.timeout
    survivors, total = [], 0.0
    jobs: list[Job] = [(one, tests_of(one.module), one, limits[one.folder]) for one in sample]
    for number, (mutant, code, seconds, slot) in enumerate(run_all(jobs, slots, used), 1):
        total += seconds
        if code in (70, 71):
            print(f"could not run {mutant}:\n{slot.log.read_text()[-3000:]}")
            return 1
        if code == 0:
            survivors.append(mutant)
            print(f"{number}/{len(sample)} survived ({seconds:.0f} s): {mutant}", flush=True)
            _note(survivors, folders)
    _note(survivors, folders)
    shutil.rmtree(work, ignore_errors=True)

    ran, alive = (Counter(one.folder for one in some) for some in (sample, survivors))
    reasons = [(one.folder, known[one.module, one.before, one.after]) for one in equivalent]
    print("\n" + table(ran, alive, reasons))
    print(f"{total / 60:.0f} minutes of CPU")
    is_full = args.folders == all_folders and not args.survivors
    low = too_low(ran, alive) if is_full else []
    if low:
        print(*low, sep="\n")
    return 1 if low else 0


def _note(survivors: list[Mutant], folders: list[str]) -> None:
    """Write the survivors so far, of the folders of this run."""
    found = {one: [asdict(each) for each in survivors if each.folder == one] for one in folders}
    write_survivors(SURVIVORS, found)


if __name__ == "__main__":
    sys.exit(main())
