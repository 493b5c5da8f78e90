"""The data that SAE Bench evaluates on: folders of sets, and the embedded books."""

import shlex
from types import SimpleNamespace

import pytest

from dictionary_learning_ext.cli import main

pytest.importorskip("sae_bench", reason="needs the extra: pip install -e '.[saebench]'")

import pandas as pd

from dictionary_learning_ext.sae_bench import data as bench_data
from dictionary_learning_ext.sae_bench.runner import digest


def test_a_missing_set_is_named_with_the_folder_to_put_it_into(one, tmp_path, capsys):
    flags = shlex.split(f"--evals tpp --data {tmp_path}")
    assert main(["bench", str(one), *flags]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"{tmp_path}/LabHC/bias_in_bios (train and test .parquet with columns hard_text" in error
    for name in ("LabHC/bias_in_bios", "canrager/amazon_reviews_mcauley_1and5"):
        (tmp_path / name).mkdir(parents=True)
    bench_data.require_sets(
        bench_data.open_bench_data(str(tmp_path), tmp_path), ["LabHC/bias_in_bios_class_set1"]
    )


def test_sets_in_a_folder_are_told_apart_by_place_and_content(tmp_path):
    config = SimpleNamespace(dataset_names=["LabHC/bias_in_bios_class_set1"])
    found = []
    for name, content in (("a", "one"), ("b", "one"), ("b", "another")):
        path = tmp_path / name / "LabHC" / "bias_in_bios" / "train.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        data = bench_data.open_bench_data(str(tmp_path / name), tmp_path)
        found.append(digest(*bench_data.local_files(data, config)))
        assert found[-1] == digest(*bench_data.local_files(data, config))
    assert len(set(found)) == 3


def test_results_on_the_books_and_on_the_hubs_sets_have_no_files_in_their_key(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name, of in (("embedded", bench_data.BOOKS), ("hub", "LabHC/bias_in_bios")):
        data = bench_data.open_bench_data(name, tmp_path)
        assert bench_data.local_files(data, SimpleNamespace(dataset_names=[of])) == []


@pytest.mark.parametrize(
    ("text", "gender"),
    [
        ("He gave his hat.", "male"),
        ("She said that HER hat was hers.", "female"),
        ("He gave her his hat.", None),
        ("He went.", None),
        ("The hat.", None),
    ],
)
def test_a_passages_gender_is_its_pronouns(text, gender):
    assert bench_data.gender_of(text) == gender


def test_the_books_fill_what_is_asked_of_them(tmp_path):
    sets = bench_data.open_bench_data("embedded", tmp_path)
    frames = {
        p: pd.read_parquet(tmp_path / bench_data.BOOKS / f"{p}.parquet") for p in ("train", "test")
    }
    assert not set(frames["train"]["hard_text"]) & set(frames["test"]["hard_text"])
    for which, part in enumerate(("train", "test")):
        cells = frames[part].groupby(["profession", "gender"]).size()
        assert sets.class_sizes is not None
        assert sets.class_sizes[which] == 4 * cells.min()
