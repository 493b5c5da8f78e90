"""What fixtures train, kept between runs of pytest in build/kept.

The key is a hash of the sources that make it: of the package up to training and its commands, of the fixtures, and of
torch's version. So a change in the report, in exports or in a test leaves it, and a change in a trainer makes it anew.
"""

import fcntl
import functools
import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from source_tree import ROOT

from dictionary_learning_ext import RunConfig, train
from dictionary_learning_ext.config.sae import SAEConfig

ABOVE_TRAINING = ("report", "sweep", "sae_bench", "sae_lens.py", "export")
PACKAGE = ROOT / "dictionary_learning_ext"
MOST = 3
"""Keys whose folders stay on the disk."""


@functools.cache
def _folder_of_this_key() -> Path:
    files = [
        file
        for file in PACKAGE.rglob("*.py")
        if file.relative_to(PACKAGE).parts[0] not in ABOVE_TRAINING
    ]
    files += [*(ROOT / "tests/helpers").glob("*.py"), *(ROOT / "tests").rglob("conftest.py")]
    key = hashlib.sha256(torch.__version__.encode())
    for file in sorted(files):
        key.update(str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes() + b"\0")
    folder = ROOT / "build" / "kept" / key.hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    folder.touch()
    by_use = sorted(folder.parent.iterdir(), key=lambda one: one.stat().st_mtime, reverse=True)
    for old in by_use[MOST:]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def kept(name: str, make: Callable[[Path], object]) -> Path:
    """The folder of this name, which `make` fills the first time. Leave it as it is. One process makes it, others wait."""
    folder = _folder_of_this_key() / name
    whole = folder.with_name(f"{name}.whole")
    with folder.with_name(f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not whole.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            whole.touch()
    return folder


def kept_runs(
    name: str, run: RunConfig, saes: dict[str, SAEConfig], folder: Path
) -> dict[str, Path]:
    """The run folders of these SAEs, by name: copies in `folder`, which is made, of what is trained once."""
    made = kept(name, lambda place: train(replace(run, save_dir=str(place)), saes))
    shutil.copytree(made, folder)
    return {sae: folder / sae for sae in saes}
