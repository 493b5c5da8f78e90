"""Tables as aligned text and as Markdown."""

import re
import textwrap
from collections.abc import Sequence
from typing import Any

_GAP = "  "


def text_table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    width: int | None = None,
    repeated: int = 1,
) -> str:
    """Aligned columns: the first to the left, the others to the right, with a line under the head.

    Arguments:
        width: of the terminal. A wider table gets heads of several lines. If that is not enough, its
            columns are divided into blocks one below the other.
        repeated: how many of the first columns each block has, if they take half of it at most.
    """
    heads = [[head] for head in header]
    cells = [[[cell] for cell in row] for row in rows]
    if width is not None and _total(_widths(heads, cells)) > width:
        cells = [
            [_broken(row[0], max(12, width // 3)), *rest]
            for row, (_, *rest) in zip(rows, cells, strict=True)
        ]
        heads = [
            [header[0]],
            *(_wrapped(header[i], [row[i] for row in rows]) for i in range(1, len(header))),
        ]
    widths = _widths(heads, cells)
    while width is not None and repeated > 1 and _total(widths[:repeated]) > width // 2:
        repeated -= 1
    first = list(range(repeated))
    blocks = [first]
    for column in range(repeated, len(header)):
        block = [*blocks[-1], column]
        is_too_wide = width is not None and _total([widths[i] for i in block]) > width
        if is_too_wide and len(blocks[-1]) > repeated:
            blocks.append([*first, column])
        else:
            blocks[-1] = block
    return "\n\n".join(_block(block, heads, cells, widths) for block in blocks)


def _widths(heads: list[list[str]], cells: list[list[list[str]]]) -> list[int]:
    columns = zip(heads, *cells, strict=True)
    return [max(len(line) for cell in column for line in cell) for column in columns]


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + len(_GAP) * (len(widths) - 1)


def _wrapped(head: str, cells: Sequence[str]) -> list[str]:
    """A head in lines that are no wider than its column, where its words allow it."""
    width = max(map(len, [*head.split(), *cells, ""]))
    lines = textwrap.wrap(head, max(1, width), break_long_words=False, break_on_hyphens=False)
    return lines or [""]


def _broken(name: str, width: int) -> list[str]:
    """A long name in lines, broken after "_", "/" and spaces."""
    lines = [""]
    for part in re.findall(r"[^_/ ]*[_/ ]?", name):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append(_GAP)
        lines[-1] += part
    return lines


def _block(
    columns: list[int], heads: list[list[str]], cells: list[list[list[str]]], widths: list[int]
) -> str:
    """The lines of some of the columns."""
    depth = max(len(heads[i]) for i in columns)
    head = [[""] * (depth - len(heads[i])) + heads[i] for i in columns]
    chosen = [[row[i] for i in columns] for row in cells]
    lines = [line for row in [head, *chosen] for line in _lines(row, [widths[i] for i in columns])]
    return "\n".join([*lines[:depth], "-" * max(map(len, lines[:depth])), *lines[depth:]])


def _lines(row: list[list[str]], widths: list[int]) -> list[str]:
    """One row, whose cells may have several lines."""
    depth = max(map(len, row))
    first, *others = ([*cell, *[""] * (depth - len(cell))] for cell in row)
    return [
        _GAP.join(
            [first[i].ljust(widths[0])]
            + [cell[i].rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        ).rstrip()
        for i in range(depth)
    ]


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown. Bars in cells are escaped."""
    lines = [
        "| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |"
        for row in [header, *rows]
    ]
    return "\n".join([lines[0], "|---" * len(header) + "|", *lines[1:]])


def setting_text(value: Any) -> str:
    """A setting, as tables show it."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
