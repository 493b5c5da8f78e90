"""Tables as aligned text and as Markdown."""

from collections.abc import Sequence


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns: the first to the left, the others to the right, with a line under the head."""
    table = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        )
        for row in table
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown. Bars in cells are escaped."""
    lines = [
        "| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |"
        for row in [header, *rows]
    ]
    return "\n".join([lines[0], "|---" * len(header) + "|", *lines[1:]])
