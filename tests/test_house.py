"""The layout of the repository: sizes, names, and tests that mirror the package."""

import ast
from collections import defaultdict

import pytest
from slow_tests import SLOW
from source_tree import PACKAGE, ROOT, module_files

LONGEST = 350  # lines
TESTS_OF_ALL = {"helpers", "embedded", "experiments", "mutants", "gpu"}
"""Folders of tests that mirror no sub-package: experiments/ has its own test of its files, tests/
experiments/test_index.py."""


@pytest.mark.parametrize("folder", [PACKAGE, "experiments"])
def test_no_file_is_too_long(folder):
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in (ROOT / folder).rglob("*.py")
    }
    assert lengths
    longer = {name: length for name, length in lengths.items() if length > LONGEST}
    assert not longer, f"more than {LONGEST} lines: {longer}"


def repeated(places):
    """The names that stand in more than one place."""
    return {name: where for name, where in places.items() if len(where) > 1}


def test_no_two_classes_have_one_name():
    places = defaultdict(list)
    for module, path in module_files().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(f"{module}:{node.lineno}")
    assert len(places) > 30
    assert not repeated(places)


def test_no_two_modules_have_one_file_name():
    places = defaultdict(list)
    for path in module_files().values():
        if path.name != "__init__.py":
            places[path.name].append(str(path.relative_to(ROOT)))
    assert not repeated(places)


def test_tests_mirror_the_package():
    """tests/<sub-package>/test_<module>.py tests a module that is there; an aspect may follow."""
    modules = set(module_files())
    strangers = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        folder = path.parent.relative_to(ROOT / "tests")
        if not folder.parts or folder.parts[0] in TESTS_OF_ALL:
            continue
        words = path.stem.removeprefix("test_").split("_")
        names = {"_".join(words[:n]) for n in range(1, len(words) + 1)}
        if not modules & {".".join([*folder.parts, name]) for name in names}:
            strangers.append(str(path.relative_to(ROOT)))
    assert not strangers, f"no such module in the package: {strangers}"


def test_every_sub_package_has_tests():
    parts = {name.partition(".")[0] for name in module_files() if "." in name}
    without = [
        part for part in sorted(parts) if not list((ROOT / "tests" / part).glob("test_*.py"))
    ]
    assert not without


def test_every_slow_test_is_there():
    written = {
        node.name
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }
    assert written >= SLOW, f"tests/helpers/slow_tests.py names no test: {sorted(SLOW - written)}"
