"""Which runs of a sweep are trained together."""

from dictionary_learning_ext.config.run import TrainConfig
from dictionary_learning_ext.sweep.runner import chunks_of

CONFIGS = dict.fromkeys("abcd", TrainConfig())


def started(folder, *steps):
    for step in steps:
        point = folder / "resume" / f"step_{step:08d}"
        point.mkdir(parents=True)
        (point / "complete.json").touch()
    folder.mkdir(exist_ok=True)
    (folder / "config.json").touch()


def together(folder, **options):
    return ["".join(chunk.configs) for chunk in chunks_of(CONFIGS, folder, None, 3, **options)]


def test_runs_are_divided_as_if_none_had_ended(tmp_path):
    assert together(tmp_path) == ["abc", "d"]
    assert together(tmp_path, without="b") == ["ac", "d"]


def test_a_run_that_is_missing_starts_in_a_chunk_of_its_own(tmp_path):
    started(tmp_path / "a", 20, 30)
    started(tmp_path / "c", 10, 20)
    assert together(tmp_path) == ["ac", "b", "d"]


def test_runs_without_a_common_resume_point_are_trained_apart(tmp_path):
    started(tmp_path / "a", 10)
    started(tmp_path / "b", 30)
    started(tmp_path / "c")
    assert together(tmp_path) == ["a", "b", "c", "d"]
