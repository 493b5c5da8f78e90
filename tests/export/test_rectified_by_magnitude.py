"""A rectified SAE that selects by magnitude: its means are not negative, so its readers need no signs."""

import pytest
import torch as t
from dictionary_learning.utils import load_dictionary as load_upstream
from export_folders import edit_config, edit_weights, without_negatives

from dictionary_learning_ext import load_dictionary
from dictionary_learning_ext.export.exporter import export


@pytest.mark.parametrize(
    "form",
    [
        "dictionary-learning",
        pytest.param(
            "sae-lens",
            marks=pytest.mark.extra,
        ),
    ],
)
def test_it_is_read_as_a_plain_top_k(form, folder_of, x):
    folder = folder_of("magnitude")
    edit_config(folder, rectify=True)
    edit_weights(folder, lambda state: state["rectify_code"].fill_(True))
    ours = load_dictionary(folder)[0]
    assert (ours.rectify, ours.select_by) == (True, "magnitude")
    f, x_hat = without_negatives(ours, x)
    assert f.count_nonzero() > 0
    t.testing.assert_close(ours.encode(x), f, rtol=0, atol=1e-5)
    exported = export(folder, form, tokens=200)
    if form == "sae-lens":
        sae_lens = pytest.importorskip("sae_lens", reason="needs the SAE Bench environment")

        theirs = sae_lens.SAE.load_from_disk(exported.folder)
    else:
        theirs = load_upstream(str(exported.folder), "cpu")[0]
    t.testing.assert_close(theirs.encode(x), f, rtol=0, atol=1e-5)
    t.testing.assert_close(theirs(x), x_hat, rtol=0, atol=1e-5)
