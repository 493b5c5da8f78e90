"""Tokens to read a language model's activations at, and how often it runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from dictionary_learning_ext.activations.language_models import Pretrained


def some_tokens(seed: int = 0) -> tuple[Tensor, Tensor]:
    ids = torch.randint(2, 304, (3, 10), generator=torch.Generator().manual_seed(seed))
    return ids, torch.ones_like(ids)


@contextmanager
def counted_passes() -> Iterator[list[int]]:
    """How many contexts each forward pass of a GPT-NeoX reads, in a list that grows."""
    passes: list[int] = []

    def count(module: nn.Module, args: Any) -> None:
        if isinstance(module, nn.Embedding):
            passes.append(len(args[0]))

    handle = register_module_forward_pre_hook(count)
    try:
        yield passes
    finally:
        handle.remove()


def half_on_disk() -> dict[str, int | str]:
    """A device_map of the embedded model."""
    module: Any = Pretrained("embedded").empty()
    parts = [f"gpt_neox.{name}" for name, _ in module.gpt_neox.named_children() if name != "layers"]
    parts += [f"gpt_neox.layers.{n}" for n in range(len(module.gpt_neox.layers))]
    parts += [name for name, _ in module.named_children() if name != "gpt_neox"]
    return {part: "disk" if n % 2 else "cpu" for n, part in enumerate(parts)}
