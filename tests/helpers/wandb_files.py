"""Reads what wandb wrote offline: its own protobuf records, in LevelDB's log format.

wandb 0.31's own reader is inside its Go program and reads for uploading only.
"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

_BLOCK, _HEADER = 32768, 7  # bytes


def records(path: Path) -> Iterator[Any]:
    """Every record of a run-<id>.wandb file, in order."""
    data, position, parts = path.read_bytes(), _HEADER, b""  # after wandb's own header
    while position + _HEADER <= len(data):
        if _BLOCK - position % _BLOCK < _HEADER:  # a header never crosses a block
            position += _BLOCK - position % _BLOCK
            continue
        length, kind = struct.unpack_from("<HB", data, position + 4)
        parts += data[position + _HEADER : position + _HEADER + length]
        position += _HEADER + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record: Any = wandb_internal_pb2.Record()  # pyright: ignore[reportAttributeAccessIssue]
            record.ParseFromString(parts)
            parts = b""
            yield record


def history(path: Path) -> list[dict[str, Any]]:
    """The logged rows."""
    return [
        {
            item.key or item.nested_key[0]: json.loads(item.value_json)
            for item in record.history.item
        }
        for record in records(path)
        if record.WhichOneof("record_type") == "history"
    ]
