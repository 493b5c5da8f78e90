"""What the package imports, read from its source: imports inside functions count too."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PACKAGE = "dictionary_learning_ext"


class Import(NamedTuple):
    """A module imports another.

    Attributes:
        importer: its name within the package, e.g. "training.loop"; "" is the package itself.
        imported: likewise for a module of the package, else None.
        library: the top-level name of another package, else None.
        place: file and line.
    """

    importer: str
    imported: str | None
    library: str | None
    place: str

    @property
    def text(self) -> str:
        target = self.library or f"{PACKAGE}.{self.imported}".rstrip(".")
        return f"{self.place} imports {target}"


def module_files(root: Path = ROOT / PACKAGE) -> dict[str, Path]:
    """Every module of the package by its name within it; a sub-package has its folder's name."""
    files = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


def imports(root: Path = ROOT / PACKAGE) -> Iterator[Import]:
    """Every import statement of the package, relative ones resolved."""
    files = module_files(root)
    for importer, path in files.items():
        package = importer if path.name == "__init__.py" else importer.rpartition(".")[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Import | ast.ImportFrom):
                continue
            place = f"{path.relative_to(root.parent)}:{node.lineno}"
            for name in _absolute(node, package):
                top, _, inner = name.partition(".")
                if top != PACKAGE:
                    yield Import(importer, None, top, place)
                    continue
                while inner not in files:  # a class or function of a module
                    inner = inner.rpartition(".")[0]
                yield Import(importer, inner, None, place)


def _absolute(node: ast.Import | ast.ImportFrom, package: str) -> Iterator[str]:
    """The full names that a statement imports."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    base = node.module or ""
    if node.level:
        parts = [PACKAGE, *package.split(".")] if package else [PACKAGE]
        parts = parts[: len(parts) - node.level + 1]
        base = ".".join([*parts, base]).rstrip(".")
    yield from (f"{base}.{alias.name}" for alias in node.names)
