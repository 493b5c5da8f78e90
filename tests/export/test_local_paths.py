"""Which paths are cut to their names."""

import pytest

from dictionary_learning_ext.export.hub import without_local_paths


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("/home/jane/models/tiny", "tiny"),
        ("~/text.txt", "text.txt"),
        ("../models/tiny/", "tiny"),
        ("./tiny", "tiny"),
        ("C:\\Users\\jane\\tiny", "tiny"),
        ("work/models/tiny", "tiny"),
        ("/", "local"),
        ("runs/smollm2-135m", "smollm2-135m"),
        ("texts/private_corpus.txt", "private_corpus.txt"),
        ("EleutherAI/pythia-70m", "EleutherAI/pythia-70m"),
        ("embedded", "embedded"),
        ("blocks.0.hook_resid_post", "blocks.0.hook_resid_post"),
        ("https://host/a/b.jsonl", "https://host/a/b.jsonl"),
    ],
)
def test_local_paths_are_cut_to_their_names_and_hub_names_stay(given, expected):
    content = {"run": {"model": given, "n": 3}, "more": [given, None]}
    cleaned, keys = without_local_paths(content)
    assert cleaned == {"run": {"model": expected, "n": 3}, "more": [expected, None]}
    assert keys == ([] if given == expected else ["model", "more"])


def test_a_name_of_two_parts_that_is_here_is_local(tmp_path, monkeypatch):
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    assert without_local_paths("models/tiny") == ("models/tiny", [])
    monkeypatch.chdir(tmp_path)
    assert without_local_paths("models/tiny") == ("tiny", [""])
