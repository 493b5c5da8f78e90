"""Steer a language model with the features of an SAE.

with steer(lm, "blocks.0.hook_resid_post", sae, {17: 4.0}):
    with lm.generate("Once upon", max_new_tokens=20):
        output = lm.generator.output.save()

Shapes: B contexts, L tokens, D = activation_dim, F features, S features that are steered.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch as t
from einops import rearrange

from ..activations.hook_points import hooked
from ..activations.language_models import is_nnsights
from ..config.checks import require_choice
from ..errors import ConfigError
from ..evaluation.folders import SAE, Hook, open_sae, require_feature
from ..trainers.dictionaries import as_input, sides
from .directions import decoder_directions

if TYPE_CHECKING:
    from nnsight import LanguageModel

SteerMode = Literal["add", "clamp"]


@contextmanager
def steer(
    lm: "LanguageModel",
    hook: Hook | None,
    sae: SAE,
    features: Mapping[int, float],
    *,
    mode: SteerMode = "add",
) -> Iterator[None]:
    """Change the contributions of some features to the activations, at every token, while the block runs.

        add     x + sum_i value_i d_i
        clamp   x + sum_i (value_i - f_i(x)) d_i

    where x is the language model's activation at the hook point (of a transcoder, f is of x, and the sum is added to y),
    f(x) = sae.encode(x), and d_i is what one unit of feature i adds to the reconstruction (of unit length in a vSAE). Both
    modes change x only along the d_i, so the part of x that the SAE doesn't reconstruct stays. All f_i are computed from the
    same x: clamping one feature doesn't take account of clamping another.

    **Units.** A value has the unit of a feature's activation, as `encode` returns it and `Features.top` shows it. The factor
    of `--normalize` is in the weights that `load_dictionary` returns, so there is nothing to convert.

    **Which passes.** All passes in the block are steered: `lm.generate`, `lm.trace`, and `lm._module.generate` or a plain
    call of it. A torch hook on the hook point's module does it, because nnsight and transformers both run that module, and an
    nnsight intervention would only last for one trace. Within a trace, nnsight reads and changes this module's activations
    before they are steered; later modules get the steered ones.

    All tokens are steered, also the prompt's and attention sinks. Blocks may be nested: each acts on the activations that
    the outer ones leave, so a clamp inside an addition undoes the addition of its feature. The steering ends with the block,
    also if an exception ends it.

    Arguments:
        lm: the nnsight model. Its weights are loaded if they aren't yet.
        hook: a hook point or its name. None: that of the run folder.
        sae: a dictionary, as `load_dictionary` returns it, or a run folder.
        features: a value for each feature, by its number.
        mode: "add" or "clamp".

    Raises: ConfigError for a feature that the SAE doesn't have, or an SAE of another width;
        LanguageModelError for a hook point that the model doesn't have.
    """
    require_choice("mode", mode, SteerMode)
    if not is_nnsights(lm):
        raise ConfigError(
            f"lm is a {type(lm).__name__}: expected the nnsight LanguageModel that generates, e.g."
            " lm = load_language_model('embedded')"
        )
    if not isinstance(features, Mapping):
        raise ConfigError(
            name="features", value=features, expected="a value for each, e.g. {17: 5.0}"
        )
    opened = open_sae(sae, lm, hook)
    (sae,) = opened.saes.values()
    dictionary: Any = sae
    numbers = [require_feature(feature, dictionary.dict_size) for feature in features]
    values_S = t.tensor(list(features.values()), dtype=t.float32)
    directions_SD = decoder_directions(dictionary, numbers)
    hook_point = opened.hook_point

    def change(x_BLD: t.Tensor) -> t.Tensor:
        x_BLD, y_BLD = sides(dictionary, x_BLD)
        d_SD, v_S = directions_SD.to(x_BLD.device), values_S.to(x_BLD.device)
        if mode == "add":
            return y_BLD + (v_S @ d_SD).to(y_BLD)
        x_ND = rearrange(x_BLD, "b l d -> (b l) d")
        f_NS = dictionary.encode(as_input(dictionary, x_ND))[:, numbers].to(d_SD)
        added_ND = (v_S - f_NS) @ d_SD
        return y_BLD + rearrange(added_ND, "(b l) d -> b l d", b=x_BLD.shape[0]).to(y_BLD)

    with hooked(hook_point.place, change):
        yield
