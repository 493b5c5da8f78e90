"""Do two commits give the same numbers? Weights, metrics, settings and exports must be equal, bit for bit.

    python -m experiments.robustness.same_numbers BEFORE [AFTER] [--only CASE,...]

Each commit is checked out in a worktree and runs the cases of `same_numbers_cases`. Then AFTER resumes
the runs that BEFORE left half way. AFTER is the working tree if it isn't given. Compared are all
tensors, and all values of .json, .jsonl and .csv files, but for dates and versions. A case that fails
counts as a difference. The page goes to results/same_numbers.md, unless cases were chosen with --only.
"""

import argparse
import csv
import gzip
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch as t
from safetensors.torch import load_file

from dictionary_learning_ext.run_folder.files import remove

from . import same_numbers_cases as cases

ROOT = Path(__file__).parents[2]
IGNORED = {*cases.DELETED, "date", "versions", "text_passes"}
"""Keys of files whose values may differ. text_passes was 1 by default and is a cap now, without a default."""
HAS_SAE_LENS = importlib.util.find_spec("sae_lens") is not None
SHOWN = 8
"""Differences on the page, of each case."""


def _jsonl(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


READERS: dict[str, Callable[[Path], Any]] = {
    ".pt": lambda path: t.load(path, map_location="cpu", weights_only=True),
    ".safetensors": load_file,
    ".npy": lambda path: t.from_numpy(np.load(path)),
    ".arrow": lambda path: hashlib.sha256(path.read_bytes()).hexdigest(),
    ".json": lambda path: json.loads(path.read_text(encoding="utf-8")),
    ".jsonl": lambda path: _jsonl(path.read_text(encoding="utf-8")),
    ".gz": lambda path: _jsonl(gzip.decompress(path.read_bytes()).decode("utf-8")),
    ".csv": lambda path: list(csv.DictReader(path.read_text(encoding="utf-8").splitlines())),
}
"""By a file's suffix: what it holds. Other files are not compared."""
NOT_COMPARED = ("logged.json",)
"""Beside resume points: how far it was logged."""


def compared_files(folder: Path) -> set[Path]:
    """The files of a folder that are compared, relative to it."""
    files = (path.relative_to(folder) for path in folder.rglob("*"))
    return {
        path
        for path in files
        if path.suffix in READERS and path.name not in NOT_COMPARED and "scratch" not in path.parts
    }


def differences(one: Any, other: Any, name: str = "") -> Iterator[str]:
    """Where two values of the readers differ, and how."""
    if isinstance(one, t.Tensor) and isinstance(other, t.Tensor):
        if one.dtype != other.dtype or one.shape != other.shape:
            yield f"{name}: {one.dtype} {tuple(one.shape)}, {other.dtype} {tuple(other.shape)}"
        elif one.numel() and not t.equal(_bits(one), _bits(other)):
            largest = float((one.double() - other.double()).abs().max())
            yield f"{name}: tensors differ by up to {largest:.2g}"
    elif isinstance(one, dict) and isinstance(other, dict):
        for key in [*one, *(key for key in other if key not in one)]:
            if key in IGNORED:
                continue
            if key not in one or key not in other:
                yield f"{name}.{key}: only {'before' if key in one else 'after'}"
            else:
                yield from differences(one[key], other[key], f"{name}.{key}")
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple):
        if len(one) != len(other):
            yield f"{name}: length {len(one)}, {len(other)}"
        else:
            for i, pair in enumerate(zip(one, other, strict=True)):
                yield from differences(*pair, f"{name}[{i}]")
    elif repr(one) != repr(other):  # NaN equals NaN, and 0.0 is not -0.0
        yield f"{name}: {repr(one)[:80]}, {repr(other)[:80]}"


def _bits(x: t.Tensor) -> t.Tensor:
    return x.detach().contiguous().flatten().view(t.uint8)


def differences_of_case(one: Path, other: Path) -> list[str]:
    """How a case's folder differs between two commits."""
    found = [
        f"error in {which}: {(folder / 'error.txt').read_text().strip().splitlines()[-1]}"
        for which, folder in (("BEFORE", one), ("AFTER", other))
        if (folder / "error.txt").exists()
    ]
    mine, theirs = compared_files(one), compared_files(other)
    if not mine:
        found.append("BEFORE wrote no file")
    found += [f"{path}: only before" for path in sorted(mine - theirs)]
    found += [f"{path}: only after" for path in sorted(theirs - mine)]
    for path in sorted(mine & theirs):
        if (one / path).read_bytes() == (other / path).read_bytes():
            continue
        try:
            values = [READERS[path.suffix](folder / path) for folder in (one, other)]
        except Exception as error:
            found.append(f"{path}: can't be read ({error!r})")
        else:
            found += [f"{path}{each}" for each in differences(*values)]
    return found


@contextmanager
def tree_of(revision: str | None) -> Iterator[Path]:
    """A worktree of a commit, or the working tree."""
    if revision is None:
        yield ROOT
        return
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), revision], check=True)
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def run_in(tree: Path, out: Path, names: list[str], *, resume: bool = False) -> None:
    """Run cases with the package of a tree, in the folder `out`. Their module is beside it."""
    out.mkdir(exist_ok=True)
    code = f"from {Path(cases.__file__).stem} import run; run({names}, {resume})"
    paths = [str(tree), str(out.parent), os.environ.get("PYTHONPATH", "")]
    environment = {"PYTHONPATH": os.pathsep.join(paths), "OMP_WAIT_POLICY": "PASSIVE"}
    print(f"{out.name}:", file=sys.stderr, flush=True)
    done = subprocess.run([sys.executable, "-c", code], cwd=out, env=os.environ | environment)
    if done.returncode:  # each case catches its own errors
        print(f"the cases of {out.name} ended with {done.returncode}", file=sys.stderr)


def rewind(folder: Path) -> None:
    """Leave the runs in a folder as they were when stopped after their point at half."""
    for resume in list(folder.rglob("resume")):
        points = sorted(resume.glob("step_*"))
        if len(points) > 1:
            remove(points[-1])
            for name in ("ae.pt", "metrics.json"):
                (resume.parent / name).unlink(missing_ok=True)


def results(before: str, after: str | None, names: list[str]) -> dict[str, dict[str, list[str]]]:
    """The differences of each case, under "fresh", and "resumed" if its runs are resumed."""
    resumed = [case.__name__ for case in cases.RESUMED if case.__name__ in names]
    found: dict[str, dict[str, list[str]]] = {name: {} for name in names}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shutil.copy(cases.__file__, folder)
        cases.write_inputs(folder / "inputs")
        with tree_of(before) as tree:
            run_in(tree, folder / "before", names)
        with tree_of(after) as tree:
            run_in(tree, folder / "after", names)
            for name in resumed:
                shutil.copytree(folder / "before" / name, folder / "resumed" / name)
                rewind(folder / "resumed" / name)
            run_in(tree, folder / "resumed", resumed, resume=True)
        for name in names:
            for kind, other in (("fresh", "after"), ("resumed", "resumed")):
                if kind == "fresh" or name in resumed:
                    pair = (folder / "before" / name, folder / other / name)
                    found[name][kind] = differences_of_case(*pair)
    return found


def page(found: dict[str, dict[str, list[str]]], heading: str) -> list[str]:
    """The page's lines."""
    from experiments.pages import table

    def verdict(of_case: dict[str, list[str]], kind: str) -> str:
        if kind not in of_case:
            return ""
        return f"differs ({len(of_case[kind])})" if of_case[kind] else "equal"

    kinds = ("fresh", "resumed")
    rows = {
        name: [
            (cases.CASES[name].__doc__ or "").strip().rstrip("."),
            *(verdict(found[name], kind) for kind in kinds),
        ]
        for name in found
    }
    every = {f"{name}, {kind}": found[name][kind] for name in found for kind in found[name]}
    lines = ["# The same numbers before and after", "", heading, ""]
    lines += table("case", rows, ["what runs", "from scratch", "resumed half way"])
    lines += ["", f"{sum(map(bool, every.values()))} of {len(every)} differ."]
    for name, differing in every.items():
        if differing:
            more = [f"- and {len(differing) - SHOWN} more"] if len(differing) > SHOWN else []
            lines += ["", f"{name}:", "", *(f"- `{each}`" for each in differing[:SHOWN]), *more]
    if not HAS_SAE_LENS:
        lines += ["", "The synthetic model was left out: sae_lens is not installed."]
    return lines


def _commit(revision: str | None) -> str:
    git = ["git", "-C", str(ROOT)]
    short = [*git, "rev-parse", "--short", revision or "HEAD"]
    name = subprocess.run(short, capture_output=True, text=True, check=True).stdout.strip()
    changed = [*git, "diff", "--quiet", "HEAD", "--", "dictionary_learning_ext"]
    is_changed = revision is None and subprocess.run(changed).returncode
    return f"{name} with changes" if is_changed else name


def main(words: list[str]) -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("before")
    parser.add_argument("after", nargs="?")
    parser.add_argument("--only", help=f"some of {', '.join(cases.CASES)}")
    flags = parser.parse_args(words)
    names = list(cases.CASES) if flags.only is None else flags.only.split(",")
    if unknown := [name for name in names if name not in cases.CASES]:
        parser.error(f"no case {unknown[0]!r}; expected some of {','.join(cases.CASES)}")
    if not HAS_SAE_LENS:
        names = [name for name in names if name != "synthetic"]
    began = time.monotonic()
    commits = " and ".join(_commit(revision) for revision in (flags.before, flags.after))
    found = results(flags.before, flags.after, names)
    minutes = (time.monotonic() - began) / 60
    heading = (
        f"{time.strftime('%Y-%m-%d')}, commits {commits}, torch {t.__version__}, "
        f"{minutes:.0f} minutes."
    )
    lines = page(found, heading)
    if flags.only is None:
        page_file = Path(__file__).parents[1] / "results" / "same_numbers.md"
        page_file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    return int(any(found[name][kind] for name in found for kind in found[name]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
