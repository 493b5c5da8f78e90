"""Which tokens the rule leaves out. Its reader is tested in test_rows."""

from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from dictionary_learning_ext.activations.positions import PositionRule, left_out
from dictionary_learning_ext.errors import ConfigError


def test_an_outlier_is_judged_against_the_median_of_all_tokens_read_together():
    rule = PositionRule(max_norm_multiple=10)
    norms_BL = torch.tensor([[100.0, 1.0, 1.0], [10.0, 10.1, 1.0]])
    wanted_BL = torch.tensor([[True, True, True], [True, True, False]])
    kept_BL = rule.by_norm(norms_BL, wanted_BL)  # the median of 100, 1, 1, 10, 10.1 is 10
    assert kept_BL.equal(wanted_BL & (norms_BL < 101))
    wanted_BL[1] = False  # then it is 1
    assert rule.by_norm(norms_BL, wanted_BL).tolist() == [[False, True, True], [False] * 3]
    assert PositionRule().by_norm(norms_BL, wanted_BL).equal(wanted_BL)
    wanted_BL[0] = False  # nothing is wanted, so there is no median
    assert not rule.by_norm(norms_BL, wanted_BL).any()


def test_padding_and_beginning_of_text_are_left_out(tokenizer: PreTrainedTokenizerFast):
    ids = torch.tensor([[0, 50, 51, 52], [53, 0, 54, 1]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    assert PositionRule(tokenizer).by_token(ids, mask).equal(mask.bool())
    without_bos = PositionRule(tokenizer, remove_bos=True).by_token(ids, mask)
    assert without_bos.equal(mask.bool() & (ids != 0))


def test_a_multiple_of_1_is_refused():
    with pytest.raises(ConfigError, match=r"max_norm_multiple=1\.0"):
        PositionRule(max_norm_multiple=1.0)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({}, ""),
        ({"max_norm_multiple": 12.5}, "outliers (--max-norm-multiple 12.5)"),
        (
            {"remove_bos": True, "max_norm_multiple": 10.0},
            "beginning-of-text tokens (--remove-bos) and outliers (--max-norm-multiple 10)",
        ),
    ],
)
def test_it_says_what_it_leaves_out(rule: dict[str, Any], said: str):
    assert left_out(**rule) == said
