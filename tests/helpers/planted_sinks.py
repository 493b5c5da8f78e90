"""A tiny GPT-2 whose first position has a norm far above the others', as attention sinks have."""

import json
from pathlib import Path
from typing import Any

import torch

from dictionary_learning_ext.activations.language_models import load_language_model


def with_sinks(lm_dir: Path, side: str = "right", dtype: torch.dtype = torch.float32) -> Any:
    """The random GPT-2 in `lm_dir` with sinks at position 0 and a tokenizer that pads on `side`.

    Its positions are learned: tokens that padding moves to the right get other activations.
    """
    lm: Any = load_language_model(str(lm_dir), dtype=dtype)
    lm.tokenizer.padding_side = side
    with torch.no_grad():
        lm._module.transformer.wpe.weight[1:].mul_(10)
        lm._module.transformer.wpe.weight[0].mul_(1000)
        lm._module.lm_head.weight.mul_(20)  # or its losses are those of chance; tied to wte
    return lm


def saved_with_sinks(lm_dir: Path, out: Path, side: str = "right") -> str:
    """The same written to a folder, whose path is returned."""
    lm = with_sinks(lm_dir, side)
    lm._module.save_pretrained(out)
    lm.tokenizer.save_pretrained(out)
    config = Path(out) / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"padding_side": side}))
    return str(out)
