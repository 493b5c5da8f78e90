"""What the JSON files of an SAE's folder hold. `files.read_json` checks them where they are read. Imports no torch.

Only values that are read have a shape. A key may be missing, and other keys may hold anything.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..config.checks import SCALE, Range, annotations_of, described, is_of_type
from ..config.run import RunConfig
from ..config.sae import CONFIGS, SAEConfig


@dataclass(frozen=True)
class Object:
    """A JSON object."""

    keys: Mapping[str, Any] = field(default_factory=dict)
    """The shape of the value at each key: an Object, a Range, or a type as of a setting."""
    others: Any = Any
    """The shape of the values at all other keys."""
    or_null: bool = False
    """Whether null may stand in its place."""


def damage(value: Any, shape: Any, where: str = "") -> str | None:
    """What is wrong with a value, e.g. "trainer.k: expected a whole number, got null"; None if it has the shape.

    Arguments:
        where: the keys that lead to the value, for the message.
    """
    if isinstance(shape, Range):
        is_in = is_of_type(value, float) and shape.holds(value)
        return None if is_in else _unexpected(shape.words, value, where)
    if not isinstance(shape, Object):
        return None if is_of_type(value, shape) else _unexpected(described(shape), value, where)
    if value is None and shape.or_null:
        return None
    if not isinstance(value, dict):
        return _unexpected("an object", value, where)
    parts = (
        damage(part, shape.keys.get(name, shape.others), f"{where}.{name}" if where else name)
        for name, part in value.items()
    )
    return next((problem for problem in parts if problem), None)


def _unexpected(expected: str, value: Any, where: str) -> str:
    text = json.dumps(value)
    text = text if len(text) <= 40 else f"{text[:40]}…"
    return f"{where + ': ' if where else ''}expected {expected}, got {text}"


def _settings(*classes: type) -> dict[str, Any]:
    """The types of settings in a file. All may be null."""
    return {name: hint | None for cls in classes for name, (hint, _) in annotations_of(cls).items()}


_RUN = _settings(RunConfig)
_OF_SAES = _settings(*CONFIGS.values(), SAEConfig)
_SETTINGS = Object(_RUN | _OF_SAES | {"decay_start": float | None})  # 0.3 wrote a share
CONFIG_JSON = Object(
    {
        "trainer": Object(
            {
                "dict_class": str,
                "trainer_class": str | None,
                **dict.fromkeys(("activation_dim", "dict_size", "k"), int | None),
                "norm_factor": SCALE,
                **dict.fromkeys(("lm_name", "submodule_name"), str | None),
                "var_flag": Literal[0, 1],
            }
        ),
        "buffer": Object(
            {
                "ctx_len": int | None,
                **dict.fromkeys(("text", "text_column", "packing"), str | None),
                "remove_bos": bool | None,
                "max_norm_multiple": float | None,
            }
        ),
        "run": Object({"settings": _SETTINGS, "versions": Object(others=str | None)}),
    }
)
"""config.json of this package, of upstream, and of Baker & Li."""
METRICS_JSON = Object(
    {
        "measured_on": Object(_RUN),
        "of": Object(others=str | None),
        "not_measured": Object(others=str),
    },
    others=float | None,
)
"""metrics.json, and a line of metrics.jsonl."""
RANDOM_TOKENS_JSON = Object({"of": str}, others=float | None)
"""RANDOM_TOKENS of files.py."""
_ABOUT = {
    **dict.fromkeys(("model_name", "hook_name", "dataset_path", "text_column"), str | None),
    "context_size": int | None,
    "max_norm_multiple": float | None,
    "model_from_pretrained_kwargs": Object(or_null=True),
}
CFG_JSON = Object(
    {
        **_ABOUT,
        **dict.fromkeys(("architecture", "activation_fn", "activation_fn_str"), str | None),
        **dict.fromkeys(("hook_point", "activation"), str | None),
        **dict.fromkeys(("d_in", "d_sae", "num_latents"), int | None),
        "expansion_factor": int,
        **dict.fromkeys(("k", "norm_scaling_factor"), float | None),
        "activation_fn_kwargs": Object({"k": int | None}, or_null=True),
        "metadata": Object(_ABOUT, or_null=True),
    }
)
"""cfg.json of SAELens and sparsify, and export.json."""
SPARSIFY_RUN = Object(
    {
        **dict.fromkeys(("model", "dataset", "text_column"), str | None),
        "ctx_len": int | None,
    }
)
"""The config.json that sparsify's trainer writes beside an SAE's folder."""
