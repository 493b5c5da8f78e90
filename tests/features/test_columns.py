"""The numbers of every feature, in CSV files."""

import csv

import numpy as np
import torch as t
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from measurement import codes_of_rows

from dictionary_learning_ext.features import columns
from dictionary_learning_ext.features.columns import Column, FeaturesOfSAE, write_numbers


def test_a_file_of_several_is_empty_where_an_sae_has_no_such_number(monkeypatch, tmp_path):
    numbers = (
        Column("a", "", "", lambda one: one.scores, form=".1f"),
        Column("b", "", "", lambda one: one.codes and one.codes.count_F, form=""),
        Column("c", "", "", lambda one: {"_x": [1.0, None]}, form=".0f"),
        Column("d", "", "", lambda one: 1 / 0, files=("report",)),
    )
    monkeypatch.setattr(columns, "NUMBERS", numbers)
    t.manual_seed(0)
    codes = codes_of_rows(AutoEncoderTopK(4, 2, 1), t.randn(30, 4))
    scores: list = [np.array([0.5, np.nan]), np.array([2.0, 3.0])]
    saes = [
        ("p", FeaturesOfSAE(codes, scores=scores[0])),
        ("q", FeaturesOfSAE(None, scores=scores[1])),
    ]
    write_numbers(tmp_path / "x.csv", saes, "several")
    with (tmp_path / "x.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    count = [str(each) for each in codes.count_F]
    assert rows == [
        ["sae", "feature", "a", "b", "c_x"],
        ["p", "0", "0.5", count[0], "1"],
        ["p", "1", "", count[1], ""],
        ["q", "0", "2.0", "", "1"],
        ["q", "1", "3.0", "", ""],
    ]
