"""Run a language model with other activations in place of its own at one submodule.

Shapes: B contexts, L tokens, D = the submodule's width, V = the vocabulary.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from nnsight import LanguageModel
from torch import Tensor

Change = Callable[[Tensor], Tensor]
"""Takes the activations, (B, L, D), and returns what the model continues with; what it was given to
change nothing."""


@contextmanager
def changing(submodule: Any, io: Literal["in", "out"], change: Change) -> Iterator[None]:
    """Change a submodule's activations in every forward pass within the block.

    Arguments:
        submodule: nnsight's envoy of the module whose activations are changed.
        io: the side of the module.
        change: called once per forward pass, with the activations in the model's dtype and on its
            device.
    """
    module: torch.nn.Module = submodule._module

    def changed_output(_module: Any, _args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (change(output[0]), *output[1:])
        return change(output)

    def changed_input(_module: Any, args: Any, kwargs: Any) -> Any:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": change(kwargs["hidden_states"])}

    if io == "out":
        handle = module.register_forward_hook(changed_output)
    else:
        handle = module.register_forward_pre_hook(changed_input, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def logits_with(
    model: LanguageModel,
    submodule: Any,
    io: Literal["in", "out"],
    input_ids_BL: Tensor,
    mask_BL: Tensor,
    change: Change,
) -> Tensor:
    """The model's logits, (B, L, V), in its dtype, with changed activations, see `changing`.

    Arguments:
        model: the language model.
        input_ids_BL: int64. Padding must be on the right: the model counts positions from the left.
        mask_BL: 0 at padding.
    """
    language_model: Any = model._model
    device = language_model.device
    with changing(submodule, io, change):
        return language_model(
            input_ids=input_ids_BL.to(device), attention_mask=mask_BL.to(device), use_cache=False
        ).logits
