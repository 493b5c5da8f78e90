"""How well the seeds of a setting agree, as tables of many run folders show it."""

import json
import shutil

import numpy as np
import pytest

from dictionary_learning_ext import load_dictionary
from dictionary_learning_ext.features.directions import decoder_directions
from dictionary_learning_ext.features.reproducibility import reproducibility
from dictionary_learning_ext.report.many_runs import SEED_METRICS, SeedScores, of_seeds


def test_they_are_means_over_all_pairs(seeds):
    scores = of_seeds(seeds)
    assert scores is not None
    found = reproducibility(
        {one.name: decoder_directions(load_dictionary(one)[0]) for one in seeds}
    )
    less_null = np.mean([pair.pw_mcc - pair.null for pair in found.pairs.values()])
    shares = [
        np.mean(found.matches(one.name, other.name) >= 0.7)
        for one in seeds
        for other in seeds
        if one != other
    ]
    assert scores.values["pw_mcc_less_null"] == pytest.approx(less_null)
    assert scores.values["returning"] == pytest.approx(np.mean(shares))
    assert (scores.n, scores.share_batches) == (3, False)


def test_copies_are_one_sae_and_one_is_nothing_to_compare(seeds, tmp_path, caplog):
    copied = tmp_path / "copy"
    shutil.copytree(seeds[0], copied)
    assert of_seeds([]) is None
    assert of_seeds(seeds[:1]) is None
    assert of_seeds([seeds[0], copied]) is None
    both, all_three = of_seeds(seeds[:2]), of_seeds([seeds[0], copied, seeds[1]])
    assert both == all_three
    assert not caplog.records


def test_seeds_of_one_data_seed_share_batches(seeds, tmp_path):
    copied = tmp_path / "copy"
    shutil.copytree(seeds[1], copied)
    config = json.loads((copied / "config.json").read_text())
    config["run"]["settings"]["data_seed"] = 0
    (copied / "config.json").write_text(json.dumps(config))
    scores = of_seeds([seeds[0], copied])
    assert scores is not None
    assert scores.share_batches


def test_upstreams_folders_name_no_data_seed_so_nothing_is_said_of_their_batches(seeds, tmp_path):
    folders = [tmp_path / "trainer_0", tmp_path / "trainer_1"]
    for former, folder in zip(seeds[:2], folders, strict=True):
        shutil.copytree(former, folder)
        config = json.loads((folder / "config.json").read_text())
        del config["run"]
        (folder / "config.json").write_text(json.dumps(config))
    scores = of_seeds(folders)
    assert scores is not None
    assert not scores.share_batches


def test_a_folder_that_can_not_be_read_is_named(seeds, tmp_path, caplog):
    assert of_seeds([seeds[0], tmp_path / "nowhere"]) is None
    assert "which features come back was not measured: " in caplog.text
    assert "nowhere: no such folder" in caplog.text


def test_they_are_shown_with_a_star_where_batches_were_shared():
    values = {"pw_mcc_less_null": 0.12345, "returning": 0.6789}
    less_null, returning = SEED_METRICS
    own, shared = SeedScores(values, 3, False), SeedScores(values, 3, True)
    assert (less_null.text(own), returning.text(own)) == ("0.1235", "67.9%")
    assert (less_null.text(shared), returning.text(shared)) == ("0.1235 *", "67.9% *")
    assert less_null.text(None) == "-"
