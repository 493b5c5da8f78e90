"""The rule by itself; what is read by it is tested with its reader."""

import torch
from transformers import PreTrainedTokenizerFast

from dictionary_learning_ext.activations.position_rule import PositionRule, left_out


def test_an_outlier_is_judged_against_the_median_of_all_tokens_read_together(
    tokenizer: PreTrainedTokenizerFast,
):
    rule = PositionRule(tokenizer, max_norm_multiple=10)
    norms_BL = torch.tensor([[100.0, 1.0, 1.0], [10.0, 10.1, 1.0]])
    wanted_BL = torch.tensor([[True, True, True], [True, True, False]])
    kept_BL = rule.by_norm(norms_BL, wanted_BL)  # the median of 100, 1, 1, 10, 10.1 is 10
    assert kept_BL.equal(wanted_BL & (norms_BL < 101))
    wanted_BL[1] = False  # then it is 1
    assert rule.by_norm(norms_BL, wanted_BL).tolist() == [[False, True, True], [False] * 3]


def test_without_a_multiple_every_norm_is_kept(tokenizer: PreTrainedTokenizerFast):
    wanted_BL = torch.tensor([[True, False]])
    norms_BL = torch.tensor([[1e9, 1.0]])
    assert PositionRule(tokenizer).by_norm(norms_BL, wanted_BL).equal(wanted_BL)


def test_it_says_what_it_leaves_out():
    assert left_out() == ""
    assert left_out(max_norm_multiple=12.5) == "outliers (--max-norm-multiple 12.5)"
    assert left_out(remove_bos=True) == "beginning-of-text tokens (--remove-bos)"
