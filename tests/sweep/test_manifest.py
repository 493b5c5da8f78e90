"""sweep.json: which sweep a folder holds, and how far it is."""

import json

import pytest

from dictionary_learning_ext.config.run import RunConfig, TrainConfig
from dictionary_learning_ext.config.sae import SAEConfig
from dictionary_learning_ext.errors import ConfigError
from dictionary_learning_ext.sweep.runner import begin, progress, read

CONFIG = TrainConfig()


def finished(folder, eval_tokens=100):
    folder.mkdir()
    settings = {"run": {"settings": {"eval_tokens": eval_tokens}}}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / ("metrics.json" if eval_tokens else "ae.pt")).touch()


def start(folder, names="abc", config=CONFIG, **changes):
    return begin(
        dict.fromkeys(names, config),
        folder,
        **{"at_once": None, "memory_allows": 2, "command": "vsae x", **changes},
    )


def test_the_first_start_counts(tmp_path):
    first = start(tmp_path, name="n")
    assert (first.at_once, first.runs, first.name) == (2, ["a", "b", "c"], "n")
    assert start(tmp_path, names="cba", memory_allows=9, command="y") == first == read(tmp_path)
    with pytest.raises(ConfigError, match="at_once=3: this sweep was started with 2"):
        start(tmp_path, at_once=3)


def test_fewer_are_trained_at_once_after_memory_ran_out(tmp_path):
    start(tmp_path, at_once=3)
    (tmp_path / "a").mkdir()
    assert start(tmp_path, at_once=1).at_once == start(tmp_path).at_once == 1


def test_another_sweep_gives_way_unless_it_has_written_a_run(tmp_path):
    start(tmp_path)
    other = start(tmp_path, names="xy", command="vsae y")
    assert (other.runs, other.command) == (["x", "y"], "vsae y")
    assert read(tmp_path) == other
    (tmp_path / "y").mkdir()
    with pytest.raises(ConfigError, match=r"holds another sweep of 2 runs, e\.g\. x; choose"):
        start(tmp_path)
    assert read(tmp_path) == other


def test_what_differs_from_another_sweep_is_named(tmp_path):
    def configs(ks, **of_run):
        return {
            str(k): TrainConfig(SAEConfig(k=k).resolve(steps, 512), RunConfig(**of_run))
            for k in ks
            for steps in [of_run.get("steps", RunConfig.steps)]
        }

    def said(**changes):
        with pytest.raises(ConfigError) as error:
            begin(configs(**changes), tmp_path, at_once=None, memory_allows=2)
        return str(error.value)

    begin(configs([4, 2]), tmp_path, at_once=None, memory_allows=2)
    (tmp_path / "2").mkdir()
    begin(configs([2, 4]), tmp_path, at_once=None, memory_allows=2)
    assert said(ks=[2, 8]).endswith(
        "another sweep of 2 runs with k='4,2', not 2,8; choose another save_dir"
    )
    assert " with k='4,2', not 2,3,4,5,6,…; choose" in said(ks=range(2, 10))
    assert " with k='4,2', not 2 and steps='1200', not 9; choose" in said(ks=[2], steps=9)


def test_progress_counts_what_is_missing_and_what_failed(tmp_path):
    assert progress(tmp_path) is None, "no sweep"
    start(tmp_path)
    assert progress(tmp_path) == "0 of 3 runs are finished; run `vsae x` again to continue"
    finished(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "failed.json").touch()
    assert progress(tmp_path) == (
        "1 of 3 runs are finished; 1 failed, see failed.json in b; run `vsae x` again to continue"
    )
    finished(tmp_path / "c", eval_tokens=0)
    assert progress(tmp_path) == "2 of 3 runs are finished; 1 failed, see failed.json in b"
    (tmp_path / "b" / "failed.json").unlink()
    (tmp_path / "b").rmdir()
    finished(tmp_path / "b")
    assert progress(tmp_path) is None


def test_without_a_command_the_same_one_continues_and_a_damaged_file_is_named(tmp_path):
    start(tmp_path, names="a", command=None)
    assert progress(tmp_path) == (
        "0 of 1 runs are finished; run the same `vsae sweep` command again to continue"
    )
    for content in ("{", "[]", '{"runs": 3}'):
        (tmp_path / "sweep.json").write_text(content)
        with pytest.raises(ConfigError, match=r"sweep\.json: damaged; delete it and rerun"):
            read(tmp_path)
