"""The names in a run folder stand in one file, and what a folder holds decides whether it is free."""

import ast
import re
from pathlib import Path

import pytest

import dictionary_learning_ext
from dictionary_learning_ext.errors import ConfigError
from dictionary_learning_ext.run_folder import files as names

PACKAGE = Path(dictionary_learning_ext.__file__).parent
NAMES = {value for name, value in vars(names).items() if name.isupper() and isinstance(value, str)}
NAMES |= set(names.RUN_FILES)
WORDS = {name for name in NAMES if name.isalpha()}
"""Names that are also ordinary words, as a flag's; they count only where a path is made of them."""


def literals(source: str) -> list[str]:
    """The names of run files in a module's strings. Those in prose, which has spaces, don't count."""
    tree, found = ast.parse(source), []
    in_paths = {
        id(node.right)
        for node in ast.walk(tree)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
            continue
        if any(character.isspace() for character in node.value):
            continue
        parts = node.value.split("/")
        is_path = len(parts) > 1 or id(node) in in_paths
        found += [part for part in parts if part in (NAMES if is_path else NAMES - WORDS)]
    return found


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("path = folder / 'ae.pt'", ["ae.pt"]),
        ("folder.glob('*/config.json')", ["config.json"]),
        ("f'{within}ae.pt'", ["ae.pt"]),
        ("folder / 'resume'", ["resume"]),
        ("folder.glob('checkpoints/*')", ["checkpoints"]),
        ("given['resume']", []),
        ("raise Error(f'{folder}: no ae.pt there')", []),
        ("'''Writes ae.pt.'''", []),
    ],
)
def test_the_search_finds_paths_and_leaves_prose(source, found):
    assert literals(source) == found


DATASETS_OWN = {"activations/cached_files.py": ["state.json"]}
"""A cache's folder has the names that Hugging Face datasets gives: they are no run folder's."""


def test_no_module_spells_a_name_of_its_own():
    assert {"ae.pt", "report_files", "sweep.json", ".lock", "resume"} <= NAMES
    modules = [path for path in PACKAGE.rglob("*.py") if path != Path(names.__file__)]
    assert len(modules) > 50
    spelt = {
        str(path.relative_to(PACKAGE)): found
        for path in modules
        if (found := literals(path.read_text(encoding="utf-8")))
    }
    assert spelt == DATASETS_OWN, "import them from run_folder/files.py"


@pytest.mark.parametrize("name", names.RUN_FILES)
def test_a_folder_that_holds_one_of_a_runs_files_is_not_free(name, tmp_path):
    names.require_free(tmp_path, overwrite=False)
    (tmp_path / name).mkdir()
    with pytest.raises(ConfigError) as refused:
        names.require_free(tmp_path, overwrite=False)
    assert f"already holds a run ({name})" in str(refused.value)
    names.require_free(tmp_path, overwrite=True)


def test_other_files_leave_a_folder_free_and_a_file_is_no_folder(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / names.LOCK).write_text("")
    names.require_free(tmp_path, overwrite=False)
    names.require_free(tmp_path / "missing", overwrite=False)
    with pytest.raises(ConfigError, match="expected a folder, but it is a file"):
        names.require_free(tmp_path / "notes.txt", overwrite=True)


def test_where_checkpoints_and_reports_are(tmp_path):
    assert names.checkpoint(tmp_path, 20) == tmp_path / "checkpoints" / "ae_20.pt"
    assert names.resume_point(tmp_path, 20) == tmp_path / "resume" / "step_00000020"
    assert names.report_files(tmp_path / "report.html") == tmp_path / "report_files"


def test_an_evaluation_at_other_settings_has_a_name_made_of_them(tmp_path):
    assert names.evaluation(tmp_path, {}) == tmp_path / "metrics.json"
    beside = tmp_path / "evaluations"
    assert names.evaluation(tmp_path, {"step": 7, "tokens": 9}) == beside / "step_7_tokens_9.json"
    texts = ["a/text.txt", "b/text.txt", "../..", "x" * 500, "a b"]
    paths = [names.evaluation(tmp_path, {"data": text}) for text in texts]
    assert len(set(paths)) == len(texts), "of one last name too"
    for path in paths:
        assert path.parent == beside
        assert re.fullmatch(r"data_[\w.-]{1,80}\.json", path.name)
