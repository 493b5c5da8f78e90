"""Which tokens the rule leaves out, and what is said of outliers. Its reader is tested in test_rows."""

from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from dictionary_learning_ext.activations.positions import (
    NormRecord,
    Outliers,
    PositionRule,
    left_out,
)


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
    assert PositionRule(tokenizer).by_norm(norms_BL, wanted_BL).equal(wanted_BL)
    wanted_BL[0] = False  # nothing is wanted, so there is no median
    assert not rule.by_norm(norms_BL, wanted_BL).any()


def test_padding_and_beginning_of_text_are_left_out(tokenizer: PreTrainedTokenizerFast):
    ids = torch.tensor([[0, 50, 51, 52], [53, 0, 54, 1]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    assert PositionRule(tokenizer).by_token(ids, mask).equal(mask.bool())
    without_bos = PositionRule(tokenizer, remove_bos=True).by_token(ids, mask)
    assert without_bos.equal(mask.bool() & (ids != 0))


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


def found(tokenizer: Any, far: dict[tuple[int, int], float], contexts: int = 20) -> Any:
    """Outliers among contexts of 8 tokens 60 whose norm is 2, but for (context, position)s."""
    record = NormRecord()
    for context in range(contexts):
        rows, ids = torch.full((8, 4), 1.0), torch.full((8,), 60)
        for (other, position), norm in far.items():
            if other == context:
                rows[position] = norm / 2
                ids[position] = 70 + position
        record.add(rows, ids, torch.arange(8))
    return record.outliers(tokenizer)


def test_only_norms_above_20_times_the_median_are_outliers(tokenizer: PreTrainedTokenizerFast):
    assert NormRecord().outliers(tokenizer) is None
    assert found(tokenizer, {}) is None
    assert found(tokenizer, {(3, 2): 39.0}) is None
    assert found(tokenizer, {(3, 2): 41.0}).number == 1


def test_the_first_position_is_named(tokenizer: PreTrainedTokenizerFast):
    outliers = found(tokenizer, {(context, 0): 400.0 for context in range(20)})
    assert outliers == Outliers(20, 160, 400.0, 2.0, "position 0 of each context")
    said = str(outliers)
    assert "the largest norm is 200 times the median (400 against 2). 20 of 160 tokens" in said
    assert "position 0 of each context" in said
    assert "Add --max-norm-multiple 10" in said


def test_a_token_at_several_positions_is_named(tokenizer: PreTrainedTokenizerFast):
    record = NormRecord()
    for place in range(6):
        rows, ids = torch.ones(8, 4), torch.full((8,), 60)
        rows[place], ids[place] = 100.0, 41
        if place == 2:
            rows[7], ids[7] = 200.0, 42
        record.add(rows, ids, torch.arange(8))
    outliers: Any = record.outliers(tokenizer)
    assert outliers.where == f"token {tokenizer.decode([41])!r}, position 7 of contexts"


def test_what_is_left_is_counted(tokenizer: PreTrainedTokenizerFast):
    far = {(context, context % 8): 100.0 for context in range(8)}
    assert found(tokenizer, far).where.endswith(" and 5 others")
