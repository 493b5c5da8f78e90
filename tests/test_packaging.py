"""The package as it is released: its dependencies, its version, its sdist and wheel."""

import os
import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from unittest.mock import patch

import pytest
import yaml
from packaging.requirements import Requirement
from source_tree import PACKAGE, ROOT, imports

MODULES = {"pyyaml": "yaml", "scikit-learn": "sklearn"}
"""Distributions whose module has another name."""
BENCH = {
    "sae_bench",
    "sae_lens",
    "sae_probes",
    "transformer_lens",
    "pandas",
    "jaxtyping",
}
"""What comes with SAE Bench, and is imported in sae_bench/ alone."""


@pytest.fixture(scope="module")
def settings():
    """What setup.py hands to setuptools."""
    with patch("setuptools.setup") as setup:
        runpy.run_path(str(ROOT / "setup.py"))
    return setup.call_args.kwargs


def modules(requirements):
    names = [Requirement(text).name for text in requirements]
    return {MODULES.get(name, name.replace("-", "_")) for name in names}


def test_what_is_imported_is_declared_and_what_is_declared_is_imported(settings):
    core, bench = set(), set()
    for each in imports():
        if each.library and each.library not in sys.stdlib_module_names:
            (bench if each.importer.startswith("sae_bench") else core).add(each.library)
    declared = modules(settings["install_requires"])
    # sae_lens is an extra's, typing_extensions is for type checkers, which bring it, and zstandard is for datasets.
    assert core - {"sae_lens", "typing_extensions"} == declared - {"zstandard"}
    extra = modules(settings["extras_require"]["sae-bench"])
    assert bench - declared <= extra | BENCH
    assert bench >= BENCH


def test_every_dependency_has_a_lower_bound(settings):
    lists = [settings["install_requires"], settings["extras_require"]["dev"]]
    for text in (text for requirements in lists for text in requirements):
        operators = {bound.operator for bound in Requirement(text).specifier}
        assert operators & {">=", "=="}, text


def test_the_version_is_stated_alike(settings):
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    (version, date), *former = re.findall(r"^## \[([\d.]+)\] - (\d{4}-\d\d-\d\d)$", changelog, re.M)
    assert former
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert settings["version"] == version == citation["version"]
    assert str(citation["date-released"]) == date
    assert {"cff-version", "message", "title", "authors"} <= set(citation)


# --- the sdist and the wheel


def run(*command, **options):
    """The output of a command that succeeds, without this repository on its path."""
    surroundings = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, env=surroundings, **options
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist and the wheel that `make wheel` builds, from a copy of the tree."""
    tree, out = tmp_path_factory.mktemp("tree") / "tree", tmp_path_factory.mktemp("dist")
    left_out = shutil.ignore_patterns(
        ".git",
        ".venv*",
        "build",
        "dist",
        "runs",
        "wandb",
        "*.egg-info",
        "__pycache__",
        ".*_cache",
        ".hypothesis",
    )
    shutil.copytree(ROOT, tree, ignore=left_out)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, tree)
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return sdist, wheel


def files_of_the_package():
    return {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / PACKAGE).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(built):
    with zipfile.ZipFile(built[1]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == files_of_the_package()
