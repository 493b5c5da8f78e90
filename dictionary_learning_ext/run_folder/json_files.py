"""Reading JSON from the disk: its shape is checked once, so that values that are there have the right types.

Imports no torch.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..config.checks import described, is_of_type
from ..errors import CheckpointError, first_line

Shape = Any
"""What a file holds, see `read_json`."""


@contextmanager
def readable() -> Iterator[None]:
    """Turn an error of the disk into a CheckpointError. FileNotFoundError passes through."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:  # e.g. another user's folder, or a name that is too long
        raise CheckpointError(
            f"{error.filename}: can't be read ({error.strerror}); check the path and who may read it"
        ) from error


def read_json(path: Path, shape: Shape, repair: str = "", line: bytes | None = None) -> Any:
    """The JSON in a file, or in a line of it.

    Arguments:
        shape: a type, or the shape of each value of an object, by name. Values may be missing; `...`
            stands for all names that aren't listed.
        repair: what the message ends with.

    Raises: CheckpointError if it isn't JSON of that shape; FileNotFoundError.
    """
    content = path.read_bytes() if line is None else line
    try:
        found = json.loads(content.decode("utf-8"))
    # ValueError: not UTF-8, not JSON. RecursionError: nested without end.
    except (ValueError, RecursionError) as error:
        cause = f"{type(error).__name__}: {first_line(error)}"
        raise CheckpointError(f"{path}: not valid JSON ({cause})", instead=repair) from error
    if wrong := misshapen(found, shape):
        raise CheckpointError(f"{path}: {wrong}", instead=repair)
    return found


def misshapen(value: Any, shape: Shape, name: str = "") -> str | None:
    """What in JSON hasn't the expected shape, see `read_json`; None if all has."""
    if not isinstance(shape, dict):
        if is_of_type(value, shape):
            return None
        found = f"{name} is" if name else "holds"
        return f"{found} {repr(value)[:50]}, expected {described(shape)}"
    if not isinstance(value, dict):
        return misshapen(value, dict, name)
    for each, inner in value.items():
        expected = shape.get(each, shape.get(..., Any))
        if wrong := misshapen(inner, expected, f"{name}.{each}" if name else each):
            return wrong
    return None
