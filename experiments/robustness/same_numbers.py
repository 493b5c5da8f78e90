"""Do two commits train the same SAEs? Weights and metrics must be equal, bit for bit.

    python -m experiments.robustness.same_numbers BEFORE [AFTER]     # 6 minutes on 2 cores

Each commit is checked out in a worktree and trains every architecture, and a vSAE of every kind,
for 100 steps on the embedded model: two seeds in float32, one in bfloat16. Then AFTER resumes a run
that BEFORE left at step 50. Compared are all tensors of ae.pt, all lines of metrics.jsonl, and all
numbers of metrics.json. AFTER is the working tree if it isn't given. The page goes to
results/same_numbers.md.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch as t

from dictionary_learning_ext.config.architectures import TRAINED
from experiments.pages import table, write

ROOT = Path(__file__).parents[2]
STEPS, HALF = 100, 50
SHARED: dict[str, Any] = {"dict_size": 256, "lr": 1e-3, "dead_feature_threshold": 4096}
OF_ARCHITECTURES: dict[str, dict[str, Any]] = {
    "vsae_top_k": {"k": 16},
    "vsae": {"sigma": 0.2},
    "top_k": {"k": 16, "dead_feature_threshold": 4096},
    "batch_top_k": {"k": 16},
    "matryoshka": {"k": 16},
    "relu": {},
    "jump_relu": {},
    "vaease": {},
    "probabilistic_top_k": {"k": 16},
}
"""Settings of an SAE of each architecture."""
KINDS: dict[str, dict[str, Any]] = {
    "fixed, noise on both": {"k": 16},
    "fixed, noise on values": {"k": 16, "noise_on": "values", "sigma": 0.3},
    "fixed, noise on selection": {
        "k": 16,
        "noise_on": "selection",
        "sigma": 0.3,
        "noise_anneal_steps": 60,
        "kl_scope": "selected",
        "beta": 0.1,
    },
    "fixed, rectified": {"k": 64, "rectify": True, "sigma": 0.2, "kl_schedule": "cosine"},
    "fixed, by magnitude": {"k": 16, "select_by": "magnitude", "sigma": 0.3},
    "fixed, k annealed": {"k": 16, "k_anneal_steps": 60},
    "fixed, frozen decoder": {"k": 16, "freeze_decoder": True},
    "learned": {"k": 16, "posterior": "learned", "log_var_init": -3.0, "beta": 0.3},
    "learned, noise on values": {
        "k": 16,
        "posterior": "learned",
        "noise_on": "values",
        "kl_scope": "selected",
    },
    "point": {"k": 16, "posterior": "point", "beta": 0.1},
    "point, upstream's TopK": {"k": 16, "posterior": "point", "rectify": True, "beta": 0.0},
}
"""Settings of vSAEs beyond those that they share."""


def settings() -> dict[str, dict[str, Any]]:
    """Each SAE's settings, by its folder's name.

    Raises: RuntimeError if an architecture has no entry in `OF_ARCHITECTURES`.
    """
    if missing := [name for name in TRAINED if name not in OF_ARCHITECTURES]:
        raise RuntimeError(
            f"no settings in OF_ARCHITECTURES for {', '.join(missing)}; add an entry"
        )
    found = {
        name: {"architecture": name, "dict_size": 256} | OF_ARCHITECTURES[name] for name in TRAINED
    }
    return found | {f"vsae_{i}": SHARED | own for i, own in enumerate(KINDS.values())}


def train_all(out: Path, resume: bool) -> None:
    """What a commit does: in its own worktree, by the package's public names."""
    from dictionary_learning_ext import RunConfig, SAEConfig, train

    package = sys.modules["dictionary_learning_ext"].__file__
    if not str(package).startswith(os.environ["PYTHONPATH"]):
        raise RuntimeError(f"imported {package}, not the worktree {os.environ['PYTHONPATH']}")
    run_name: str
    dtype: Any
    for run_name, seed, dtype in RUNS:
        run = RunConfig(
            steps=STEPS,
            batch_size=512,
            n_ctxs=64,
            dtype=dtype,
            eval_tokens=8192,
            eval_documents=8,
            log_steps=20,
            save_every=str(HALF),
            save_dir=str(out / run_name),
        )
        saes = {sae: SAEConfig(seed=seed, **own) for sae, own in settings().items()}
        train(run, saes, resume=resume)


RUNS = [("seed0", 0, "float32"), ("seed1", 1, "float32"), ("bf16", 0, "bfloat16")]


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


def run_in(tree: Path, out: Path, *, resume: bool = False) -> None:
    """Train everything with the package of a tree."""
    script = out.parent / "train_all.py"
    code = Path(__file__).read_text(encoding="utf-8")
    # The file itself, without what it needs of the rest of experiments/.
    script.write_text(code.replace("from experiments.pages import table, write\n", ""))
    words = [sys.executable, str(script), str(out), str(resume)]
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_WAIT_POLICY": "PASSIVE"}
    subprocess.run(words, check=True, cwd=tree, env=environment)


def rewind(out: Path) -> None:
    """Leave the runs as they were when stopped after the point at half."""
    for folder in (path.parent for path in out.glob("*/*/config.json")):
        for name in ("ae.pt", "metrics.json"):
            (folder / name).unlink()
        shutil.rmtree(folder / "resume" / f"step_{STEPS:08d}")


def differences(one: Path, other: Path) -> dict[str, list[str]]:
    """By SAE: what differs between two folders of runs."""
    found: dict[str, list[str]] = {}
    folders = [path.parent for path in sorted(one.glob("*/*/config.json"))]
    for folder in folders:
        twin = other / folder.relative_to(one)
        own = found.setdefault(str(folder.relative_to(one)), [])
        here, there = (t.load(f / "ae.pt", weights_only=True) for f in (folder, twin))
        names = here.keys() | there.keys()
        own += [
            f"ae.pt: {name}"
            for name in sorted(names)
            if name not in here or name not in there or not t.equal(here[name], there[name])
        ]
        lines, others = ((f / "metrics.jsonl").read_text() for f in (folder, twin))
        own += ["metrics.jsonl"] if lines != others else []
        first, second = (json.loads((f / "metrics.json").read_text()) for f in (folder, twin))
        own += [f"metrics.json: {n}" for n in sorted(first) if first[n] != second.get(n)]
    if len(folders) != len(RUNS) * len(settings()):
        raise RuntimeError(f"{len(folders)} SAEs in {one}: expected {len(RUNS) * len(settings())}")
    return found


def main(before: str, after: str | None) -> int:
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with tree_of(before) as tree:
            run_in(tree, folder / "before")
        with tree_of(after) as tree:
            run_in(tree, folder / "after")
            found = {"": differences(folder / "before", folder / "after")}
            shutil.copytree(folder / "before", folder / "resumed")
            rewind(folder / "resumed")
            run_in(tree, folder / "resumed", resume=True)
            found["resumed"] = differences(folder / "before", folder / "resumed")
    rows = {
        f"{sae}": ["; ".join(found[kind][sae]) or "equal" for kind in found] for sae in found[""]
    }
    differ = sum(bool(what) for of_kind in found.values() for what in of_kind.values())
    names = [
        subprocess.run(
            ["git", "-C", str(ROOT), "rev-parse", "--short", revision or "HEAD"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for revision in (before, after)
    ]
    write(
        "same_numbers.md",
        [
            "# The same numbers before and after",
            "",
            f"{time.strftime('%Y-%m-%d')}, commits {' and '.join(names)}, torch {t.__version__}, "
            f"{(time.monotonic() - began) / 60:.0f} minutes. `vsae_N` is the N-th of "
            f"{', '.join(f'{i}: {kind}' for i, kind in enumerate(KINDS))}.",
            "",
            *table("run/SAE", rows, ["trained from scratch", "resumed at step 50"]),
            "",
            f"{differ} of {2 * len(rows)} differ.",
        ],
    )
    return 1 if differ else 0


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[2] in ("True", "False"):
        train_all(Path(sys.argv[1]), sys.argv[2] == "True")
    elif len(sys.argv) in (2, 3):
        sys.exit(main(sys.argv[1], sys.argv[2] if len(sys.argv) == 3 else None))
    else:
        sys.exit(__doc__)
