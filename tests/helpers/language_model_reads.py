"""Tokens to read a language model's activations at, and the one line of what can't be read."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dictionary_learning_ext.errors import LanguageModelError


def some_tokens(seed: int = 0) -> tuple[Tensor, Tensor]:
    ids = torch.randint(2, 304, (3, 10), generator=torch.Generator().manual_seed(seed))
    return ids, torch.ones_like(ids)


def one_line_error(call: Callable[[], Any]) -> str:
    with pytest.raises(LanguageModelError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message
