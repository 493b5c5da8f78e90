"""The mutants that are left out of the score are of the program as it is."""

from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib", reason="from Python 3.11 on")
HERE = Path(__file__).parent
LISTED = tomllib.loads((HERE / "equivalent.toml").read_text(encoding="utf-8"))["mutant"]


def test_no_entry_is_out_of_date():
    package = HERE.parents[1] / "dictionary_learning_ext"
    gone = [
        (one["module"], one["before"])
        for one in LISTED
        if not (package / one["module"]).is_file()
        or one["before"] not in (package / one["module"]).read_text(encoding="utf-8")
    ]
    assert len(LISTED) > 10
    assert not gone, "delete them from equivalent.toml, or correct them"
