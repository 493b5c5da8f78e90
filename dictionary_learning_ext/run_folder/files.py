"""The names of the files in a run folder, reading JSON, atomic writes, and a lock for one writer. Imports no torch."""

import contextlib
import csv
import errno
import fcntl
import glob
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TextIO

from ..config.names import automatic_name
from ..config.run import TrainConfig
from ..errors import CheckpointError, ConfigError, first_line, in_shell
from .schema import Object, damage

logger = logging.getLogger(__name__)

_HASHED_WHOLE = 1 << 26
"""The size in bytes up to which a whole file is hashed."""
_PART = 1 << 16
"""The size in bytes of each of the 256 parts that are hashed of a larger file."""

# --- names

RUNS = Path("runs")
"""The folder that holds run folders by default."""
RESULTS = Path("results")
"""The folder for the results of other libraries' SAEs, see `SAEFolder.results`."""
WEIGHTS = "ae.pt"
"""Upstream's state dict, of a dictionary that takes raw activations."""
CONFIG = "config.json"
"""Upstream's "trainer" and "buffer", and our "run"."""
HISTORY = "metrics.jsonl"
"""A line of metrics for each logged step."""
HELD_OUT_PREFIX = "heldout/"
"""The prefix of metrics on held-out tokens in such a line. The other metrics are of the step's batch."""
EVALUATION = "metrics.json"
"""The final evaluation."""
NOT_MEASURED = "not_measured"
"""A key of metrics.jsonl and metrics.json: the reasons why metrics are null."""
OF = "of"
"""A key of metrics.json: what was measured, see identity.py."""
OTHER_EVALUATIONS = "evaluations"
"""Evaluations at other settings than those of metrics.json, see `evaluation`."""
FAILED = "failed.json"
"""The error of an SAE whose training failed."""
CHECKPOINTS = "checkpoints"
"""The weights during training, see `checkpoint`."""
RESUME = "resume"
"""The resume points, see `resume_point`."""
EXPORTS = "exports"
"""A folder for each format of `vsae export`."""
BENCH_RESULTS = "eval_results"
"""SAE Bench's JSON, a folder for each evaluation."""
BENCH_CACHE = ".bench_cache"
"""Activations and probes that the SAEs of a `vsae bench` share."""
FEATURES = "features.csv"
"""The features' error_share, a row for each feature, see `vsae reproduce`."""
CODES = "codes/heldout.safetensors"
"""The SAE's codes of held-out text: each token's selected features and their activations."""
RANDOM_TOKENS = "codes/random_tokens.json"
"""How much of dictionaries of random tokens comes back on that text, see features/random_tokens.py."""
REPORT_PAGE = "report.html"
"""The page of `vsae report`. Its data is in the folder `report_files`."""
INDEX = "index.html"
"""The page of `vsae report` in a folder of run folders, which lists them."""
WANDB = "wandb"
"""wandb's files, a folder for each of its runs. Not in RUN_FILES, as wandb starts before the run."""
LOCK = ".lock"
"""The process that writes to the folder holds a lock on this file."""
SWEEP_MANIFEST = "sweep.json"
"""The sweep's settings, in the folder of its run folders."""
SWEEP_TABLE = "results.csv"
"""A row for each run of a sweep."""
SWEEP_SETTINGS = "results_by_setting.csv"
"""A row for each setting of a sweep: the mean and standard deviation over its seeds."""
SWEEP_PAGE = "results.html"


def folder_of(config: TrainConfig) -> Path:
    """The run folder of a run of one SAE."""
    return Path(config.run.save_dir or RUNS / automatic_name(config))


def checkpoint(folder: Path, step: int) -> Path:
    """The weights before a step, under upstream's name."""
    return folder / CHECKPOINTS / f"ae_{step}.pt"


def evaluation(folder: Path, other_settings: dict[str, Any]) -> Path:
    """The file of an evaluation: metrics.json, or one named by the settings that differ from those of metrics.json."""
    if not other_settings:
        return folder / EVALUATION
    names = (f"{name}_{_in_file_name(value)}" for name, value in other_settings.items())
    return folder / OTHER_EVALUATIONS / f"{'_'.join(names)}.json"


def _in_file_name(value: Any) -> str:
    """A setting's value as part of a file name. A path is shortened to its last part and a hash."""
    text = str(value)
    if re.fullmatch(r"[\w.-]{1,60}", text):
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:6]
    return f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', Path(text).name)[:60]}_{digest}"


def resume_point(folder: Path, step: int) -> Path:
    """The file of a resume point."""
    return folder / RESUME / f"step_{step:08d}.pt"


def divided(folder: Path, step: int) -> Path:
    """The folder with the parts of a split SAE that belong to a resume point."""
    return resume_point(folder, step).with_suffix(".parts")


def read_json(
    path: Path, shape: Object, repair: str = "copy it again", line: bytes | None = None
) -> dict[str, Any]:
    """The JSON object in a file, or in a line of it.

    Arguments:
        shape: what the file holds, see schema.py.
        repair: advice for the message.

    Raises: CheckpointError if it is not JSON or has another shape; FileNotFoundError.
    """
    content = path.read_bytes() if line is None else line
    try:
        found = json.loads(content.decode("utf-8"))
    except ValueError as error:
        cause = f"{type(error).__name__}: {first_line(error)}"
        raise CheckpointError(f"{path}: not valid JSON ({cause})", instead=repair) from error
    if problem := damage(found, shape):
        raise CheckpointError(f"{path}: damaged ({problem})", instead=repair)
    return found


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    return _sha256_of(path, _state(path), only_parts=False)


def fingerprint_of(files: Iterable[Path]) -> list[Any]:
    """The name, size and SHA-256 of each file. Only 256 parts of a file over 64 MB are hashed."""
    found = []
    for file in files:
        size, *_ = state = _state(file)
        found.append([file.name, size, _sha256_of(file, state, only_parts=size > _HASHED_WHOLE)])
    return found


def hash_of_files(files: Iterable[Path]) -> str:
    """A hash of `fingerprint_of` files, in hex."""
    return hashlib.sha256(repr(fingerprint_of(files)).encode()).hexdigest()


def _state(path: Path) -> tuple[int, int, int]:
    """A file's size and times, which change if its content does."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


@cache
def _sha256_of(path: Path, state: tuple[int, int, int], *, only_parts: bool) -> str:
    """Computed once for each state of the file, as weights may be large."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        if only_parts:
            for i in range(256):
                file.seek(i * (state[0] - _PART) // 255)
                digest.update(file.read(_PART))
        else:
            while part := file.read(1 << 20):
                digest.update(part)
    return digest.hexdigest()


def at_home(path: str | Path) -> Path:
    """A path with ~ expanded, if the user is known."""
    return Path(os.path.expanduser(path))


def target_of(path: str | Path) -> Path:
    """An absolute path without symbolic links. (Path.resolve raises errors for a link to itself.)"""
    return Path(os.path.realpath(path))


def require_folder_name(name: str, what: str) -> None:
    """Raise a ConfigError unless a name is a plain folder name.

    Arguments:
        what: what is named, for the message, e.g. "SAE name".
    """
    if name in ("", ".", "..") or Path(name).name != name or "\0" in name:
        raise ConfigError(f"{what} {name!r}: expected a plain folder name, e.g. 'top_k'")


def report_files(page: Path) -> Path:
    """The folder with the data of a report's page."""
    return page.with_name(f"{page.stem}_files")


def page_at(out: str | Path, name: str) -> Path:
    """`out` if it is an .html file, or else the page of this name in the folder `out`."""
    return Path(out) if Path(out).suffix.lower() == ".html" else Path(out) / name


RUN_FILES = (
    WEIGHTS,
    CONFIG,
    HISTORY,
    EVALUATION,
    OTHER_EVALUATIONS,
    FAILED,
    CHECKPOINTS,
    EXPORTS,
    BENCH_RESULTS,
    BENCH_CACHE,
    FEATURES,
    str(Path(CODES).parent),
    REPORT_PAGE,
    report_files(Path(REPORT_PAGE)).name,
    RESUME,
)
"""The files that a run and later commands write to its folder. Another run that overwrites it deletes them."""


def require_free(folder: Path, overwrite: bool) -> None:
    """Raise a ConfigError if a folder holds a run that may not be overwritten, or files of a run's names that no run
    wrote; a CheckpointError if its name is too long."""
    with writing(folder):
        there = [name for name in RUN_FILES if (folder / name).exists()]
    if not there:
        return
    what, instead = f"already holds a run ({', '.join(there)})", "choose another save_dir"
    if CONFIG not in there:
        what = f"holds {', '.join(there)} but no {CONFIG}, so they may not be a run's"
        instead += ", or delete them yourself"
    elif not is_of_a_run(folder / CONFIG):
        what = f"holds a {CONFIG} that isn't from a run, e.g. a language model's"
    elif overwrite:
        return
    else:
        instead += ", or overwrite it with overwrite=True"
        if not {WEIGHTS, FAILED} & {*there}:
            what = f"already holds an unfinished run ({', '.join(there)})"
            instead = f"continue it with `vsae train --resume {in_shell(folder)}`, {instead}"
    raise ConfigError(what, name="save_dir", value=str(folder), instead=instead)


def is_of_a_run(config: Path) -> bool:
    """Whether a config.json is a run's, ours or upstream's. One that can't be read counts as damaged."""
    try:
        trainer = read_json(config, Object()).get("trainer")
    except (CheckpointError, OSError):
        return True
    return isinstance(trainer, dict) and "dict_class" in trainer


# --- writing

REPAIR = "copy it again or train again"
"""What to do about a damaged file of a run."""
SAVE_DIR = "save_dir"
"""The setting that messages name by default when a folder can't be written."""


@contextmanager
def writing(path: Path, given_by: str = SAVE_DIR) -> Iterator[None]:
    """Turn an OSError inside the block into a CheckpointError that says what to do. Of nested blocks, the outermost one's path is
    named.

    Arguments:
        given_by: what gives the path, which the user can change: a setting, e.g. save_dir, or words, e.g. "disk for this
            folder".
    """
    try:
        yield
    except (OSError, CheckpointError) as error:
        cause = error.__cause__ if isinstance(error, CheckpointError) else error
        if not isinstance(cause, OSError):
            raise
        remedy = "free some space or choose" if is_disk_full(cause) else "choose"
        raise CheckpointError(
            f"{path} can't be written ({cause.strerror or cause})",
            instead=f"{remedy} another {given_by}",
        ) from cause


def require_writable(path: Path, given_by: str = SAVE_DIR) -> None:
    """Raise a CheckpointError if a file can't be written. Call it before a long computation; it leaves nothing behind."""
    with writing(path, given_by):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        parents = path.absolute().parents
        there = next(one for one in parents if one.exists() or one.is_symlink())
        with tempfile.TemporaryFile(dir=there):
            pass


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error says that the disk or a quota is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def sync(path: Path) -> None:
    """fsync a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path, given_by: str = SAVE_DIR) -> Iterator[Path]:
    """Yield an empty temporary file, to be written in place, which then replaces `path` atomically.

    Raises: CheckpointError if it can't be written; `path` is then unchanged.
    """
    with writing(path, given_by):
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary_in(path.parent, path.name, Path.touch) as unfinished:
            yield unfinished
            sync(unfinished)
            unfinished.replace(path)


@contextmanager
def temporary_in(
    parent: Path, name: str, make: Callable[[Path], None] = Path.mkdir
) -> Iterator[Path]:
    """A new folder or file in `parent`, which is deleted at the end unless it was renamed.

    It is locked until then. So one without a lock was left by a killed process, and the next one of this name deletes
    it.
    """
    remove_left_behind(parent, name)
    while True:
        path = parent / f".{name}.{secrets.token_hex(4)}"
        make(path)
        with _lock(path, fcntl.LOCK_EX):
            if not path.exists():  # another process deleted it before it was locked
                continue
            try:
                yield path
            finally:
                with contextlib.suppress(OSError):
                    remove(path)
            return


def remove_left_behind(parent: Path, name: str | None = None) -> None:
    """Delete what killed processes left in `parent`: temporary files and folders of one name, or all."""
    own = "*" if name is None else glob.escape(name)
    for left in parent.glob(f".{own}.{'[0-9a-f]' * 8}"):
        with _lock(left, fcntl.LOCK_EX | fcntl.LOCK_NB) as is_held, contextlib.suppress(OSError):
            if is_held:
                remove(left)


@contextmanager
def _lock(path: Path, how: int) -> Iterator[bool]:
    """Hold a lock on a file or folder. Yields False if another process has it, it is gone, or its disk has no locks."""
    with contextlib.ExitStack() as stack:
        try:
            descriptor = os.open(path, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, how)
        except OSError:
            yield False
        else:
            yield True


def write_json(path: Path, content: Any, given_by: str = SAVE_DIR) -> None:
    """Write a JSON file atomically. Raises CheckpointError if it can't be written."""
    write_text(path, json.dumps(content, indent=2, default=str) + "\n", given_by)


def write_text(path: Path, text: str, given_by: str = SAVE_DIR) -> None:
    """Write a text file atomically. Raises CheckpointError if it can't be written."""
    with replacing(path, given_by) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_rows(file: TextIO, rows: Iterable[Iterable[Any]], line_end: str = "\r\n") -> None:
    """Write rows of a CSV file. An apostrophe precedes text that a spreadsheet would run as a formula."""
    writer = csv.writer(file, lineterminator=line_end)
    writer.writerows(map(_without_formula, row) for row in rows)


def _without_formula(value: Any) -> Any:
    if not isinstance(value, str) or not value.startswith(("=", "+", "-", "@", "\t", "\r", "\n")):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def remove(path: Path) -> None:
    """Delete a file, a folder or a link, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path, given_by: str = SAVE_DIR) -> Iterator[None]:
    """Lock a folder for one writer. It is created if missing, and deleted if it is still empty at the end.

    The operating system releases the lock however the process ends.

    Raises: ConfigError if another process holds the lock; CheckpointError if the folder can't be written.
    """
    with contextlib.ExitStack() as stack:
        with writing(folder, given_by):
            folder.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context((folder / LOCK).open("a+", encoding="utf-8"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                raise ConfigError(
                    f"{folder}: {file.read().strip() or 'another process'} is writing there",
                    instead=f"wait until it ends or choose another {given_by}",
                ) from error
            except OSError as error:
                without = "this file system has no locks (%s); make sure that no other process writes there"
                logger.warning(f"%s: {without}", folder, error.strerror)
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
        try:
            yield
        finally:
            if folder.is_dir() and {path.name for path in folder.iterdir()} <= {LOCK}:
                remove(folder)


@contextmanager
def all_locked(folders: Iterable[Path]) -> Iterator[None]:
    """`locked` for several folders."""
    with contextlib.ExitStack() as stack:
        for folder in folders:
            stack.enter_context(locked(folder))
        yield
