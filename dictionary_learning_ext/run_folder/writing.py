"""Writing so that nothing is lost: a whole file or none, and one writer per folder."""

import contextlib
import errno
import json
import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, ConfigError, Setting
from .names import LOCK

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None

logger = logging.getLogger(__name__)

SAVE_DIR = Setting("save_dir")


@contextmanager
def writing(path: Path, elsewhere: Setting | str = SAVE_DIR) -> Iterator[None]:
    """Turn an error of the disk into a CheckpointError that says what to do.

    Arguments:
        elsewhere: the setting that says where it is written, or a word for it.
    """
    try:
        yield
    except OSError as error:
        is_full = is_of_a_full_disk(error)
        remedy = "free some space or choose" if is_full else "choose"
        is_new_file = is_full and not os.path.exists(path)
        is_kept = _holds_something(path.parent if is_new_file else path)
        whose = "its folder" if is_new_file else "it"
        kept = f"; what {whose} held before is still there" if is_kept else ""
        raise CheckpointError(
            f"{path} can't be written ({error.strerror or error})",
            instead=(f"{remedy} another ", elsewhere, kept),
        ) from error


def is_of_a_full_disk(error: OSError) -> bool:
    """Whether more space would help."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def _holds_something(path: Path) -> bool:
    """Whether it is a file, or a folder that holds more than our locks and temporary files."""
    try:
        if path.is_dir():
            return any(not each.name.startswith(".") for each in path.iterdir())
        return path.exists()
    except OSError:  # it can't be read
        return False


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk. Windows opens no folders."""
    if fcntl is None and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY if fcntl else os.O_RDWR)  # Windows syncs what is written
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path, elsewhere: Setting | str = SAVE_DIR) -> Iterator[Path]:
    """A temporary path next to `path`, which it replaces if all goes well.

    Raises: CheckpointError if the disk refuses; `path` is then unchanged.
    """
    with writing(path, elsewhere):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            sync(temporary)
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any, elsewhere: Setting | str = SAVE_DIR) -> None:
    """Write `content`, atomically. Raises CheckpointError if the disk refuses."""
    write_text(path, json.dumps(content, indent=2, default=str) + "\n", elsewhere)


def write_text(path: Path, text: str, elsewhere: Setting | str = SAVE_DIR) -> None:
    """Write a text file, atomically. Raises CheckpointError if the disk refuses."""
    with replacing(path, elsewhere) as temporary:
        temporary.write_text(text, encoding="utf-8")


def remove(path: Path) -> None:
    """Delete a file or a folder, if it exists. Of a link, only the link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def locked(folders: Iterable[Path], elsewhere: Setting | str = SAVE_DIR) -> Iterator[None]:
    """Be the only process that writes to these folders. They are created if missing.

    The operating system releases the locks however the process ends. A folder that is still empty
    at the end is deleted. On Windows, nothing keeps a second process away.

    Arguments:
        elsewhere: see `writing`.

    Raises: ConfigError if another process holds one; CheckpointError if the disk refuses.
    """
    with contextlib.ExitStack() as stack:
        for folder in folders:
            stack.enter_context(_locked(folder, elsewhere))
        yield


@contextmanager
def _locked(folder: Path, elsewhere: Setting | str) -> Iterator[None]:
    with writing(folder, elsewhere):
        folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        try:
            yield
        finally:
            if not any(folder.iterdir()):
                remove(folder)
        return
    with writing(folder, elsewhere):
        file = (folder / LOCK).open("a+", encoding="utf-8")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise ConfigError(
                f"{folder}: {file.read().strip() or 'another process'} is writing there",
                instead=("wait until it ends or choose another ", elsewhere),
            ) from error
        except OSError as error:
            logger.warning(
                "%s: this file system has no locks (%s); make sure that no other process writes there",
                folder,
                error.strerror,
            )
        with writing(folder, elsewhere):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
        try:
            yield
        finally:
            if [path.name for path in folder.iterdir()] == [LOCK]:
                remove(folder)
