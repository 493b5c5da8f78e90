"""Read JSON files. Imports no torch."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, first_line


@contextmanager
def readable() -> Iterator[None]:
    """Turn OSErrors inside the block, but for FileNotFoundError, into CheckpointErrors."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:  # e.g. another user's folder, or a name that is too long
        raise CheckpointError(
            f"{error.filename}: can't be read ({error.strerror}); check the path and who may read it"
        ) from error


def read_json(path: Path, repair: str = "", line: bytes | None = None) -> dict[str, Any]:
    """The JSON object in a file, or in a line of it.

    Arguments:
        repair: advice for the message.

    Raises: CheckpointError if it is not a JSON object; FileNotFoundError.
    """
    content = path.read_bytes() if line is None else line
    try:
        found = json.loads(content.decode("utf-8"))
    except ValueError as error:
        cause = f"{type(error).__name__}: {first_line(error)}"
        raise CheckpointError(f"{path}: not valid JSON ({cause})", instead=repair) from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: expected a JSON object", instead=repair)
    return found
