"""Two SAEs compared in Python."""

import json
import logging
import shutil

import pytest
import torch as t
from dictionary_learning.trainers.top_k import AutoEncoderTopK

from dictionary_learning_ext import agreement, load_dictionary
from dictionary_learning_ext.features.reproducibility import ReproducibilityError, reproducibility


@pytest.fixture
def saes():
    t.manual_seed(0)
    return AutoEncoderTopK(8, 12, 2), AutoEncoderTopK(8, 12, 2)


def test_it_is_the_reproducibility_of_the_two(saes):
    a, b = saes
    found = agreement(a, b)
    expected = reproducibility({"a": a.decoder.weight.data.T, "b": b.decoder.weight.data.T})
    assert found.names == ["a", "b"]
    assert found.pair.pw_mcc == pytest.approx(expected.pairs["a", "b"].pw_mcc, abs=1e-6)
    assert found.pair.null == pytest.approx(expected.pairs["a", "b"].null, abs=1e-6)
    assert found.returning("b") == expected.returning("b")
    first, *rest = repr(found).splitlines()
    assert first.startswith(f"a and b: PW-MCC {found.pair.pw_mcc:.4f} (null {found.pair.null:.4f})")
    assert [line[:2] for line in rest] == ["a:", "b:"]


def test_a_shuffled_dictionary_agrees_with_itself(saes):
    a, b = saes
    order = t.randperm(12)
    b.decoder.weight.data = a.decoder.weight.data[:, order]
    found = agreement(a, b)
    assert found.pair.pw_mcc == pytest.approx(1, abs=1e-6)
    assert order[found.pair.matched_F].tolist() == list(range(12))
    assert found.returning("a") == {0.7: 1.0, 0.9: 1.0}


def test_run_folders_are_loaded_and_what_makes_them_alike_is_said(trained, caplog):
    with caplog.at_level(logging.WARNING):
        found = agreement(trained / "vsae", str(trained / "top_k"))
    assert "saw the same batches" in caplog.text
    mixed = agreement(load_dictionary(trained / "vsae")[0], trained / "top_k")
    assert mixed.pair.pw_mcc == found.pair.pw_mcc


def test_what_the_command_refuses_is_refused(trained, tmp_path):
    ours = trained / "vsae"
    with pytest.raises(ReproducibilityError, match="is given twice"):
        agreement(ours, f"{ours}/../vsae")
    elsewhere = shutil.copytree(ours, tmp_path / "elsewhere")
    config = json.loads((elsewhere / "config.json").read_text())
    config["run"]["settings"]["hook"] = "blocks.1.hook_resid_post"
    (elsewhere / "config.json").write_text(json.dumps(config))
    with pytest.raises(ReproducibilityError, match=r"hook='blocks\.1\.hook_resid_post'"):
        agreement(ours, elsewhere)


def test_other_shapes_can_not_be_compared(saes):
    with pytest.raises(ReproducibilityError, match="expected the same of both"):
        agreement(saes[0], AutoEncoderTopK(8, 16, 2))


def test_a_pair_is_of_two(saes):
    directions = [sae.decoder.weight.data.T for sae in (*saes, saes[0])]
    found = reproducibility(dict(zip("abc", directions, strict=True)))
    with pytest.raises(ReproducibilityError, match="there are 3 SAEs"):
        _ = found.pair
