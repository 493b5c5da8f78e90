"""The data that SAE Bench evaluates on: folders of sets, and the embedded books."""

import shlex

import pytest

from dictionary_learning_ext.cli import main

pytest.importorskip("sae_bench", reason="needs the extra: pip install -e '.[saebench]'")

import pandas as pd

from dictionary_learning_ext.sae_bench import bench_data


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
