"""Which tokens of a fill are outliers, and what is said of them."""

from pathlib import Path
from typing import Any

import torch
from buffers import endless, make_buffer
from nnsight import LanguageModel
from planted_sinks import with_sinks
from transformers import PreTrainedTokenizerFast

from dictionary_learning_ext.activations.outliers import NormRecord, Outliers


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
    assert str(outliers) == (
        "Some activations are far larger than the rest: the largest norm is 200 times the median (400 "
        "against 2). 20 of 160 tokens are above 20 times the median: position 0 of each context. They "
        "dominate the loss and FVE. Add --max-norm-multiple 10 to leave them out (the preset "
        "recommended does)."
    )
    assert "137.7 times the median (23,000 against 167)" in str(
        outliers._replace(largest=23_000.0, median=167.0)
    )


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


def test_a_buffer_finds_those_of_its_first_fill(lm_dir_of: Any, tiny_lm: LanguageModel):
    lm = with_sinks(Path(lm_dir_of("gpt2")))
    buffer = make_buffer(lm, endless())
    outliers = buffer.outliers()
    assert buffer.fills == 1
    assert outliers.where == "position 0 of each context"
    assert outliers.tokens == len(buffer.activations)
    norms_N = buffer.activations.norm(dim=1)
    assert outliers.largest == float(norms_N.max())
    assert outliers.number == int((norms_N > 20 * norms_N.median()).sum())
    buffer.refresh()
    assert buffer.outliers() == outliers
    assert make_buffer(lm, endless(), max_norm_multiple=10).outliers() is None
    assert make_buffer(tiny_lm, endless()).outliers() is None
