"""Tokens that activate a feature strongly, found by gradient ascent through the language model.

    synthesise("runs/NAME", [17])

The ascent is on *soft* tokens. A soft token is a distribution p = softmax(theta / temperature) over the vocabulary, and the
language model gets its mean embedding p E. The objective is the feature's pre-activation (a vSAE's mean mu, up to a
constant) at the last token, so a feature outside the top k has a gradient, too. The temperature falls from step to step.
Every few steps the SAE's own encoder scores the *hard* tokens, the most likely ones. The best of them are returned.

Shapes: R restarts, L tokens, V vocabulary, D = activation_dim, F features, N sequences.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch as t
from dictionary_learning.dictionary import Dictionary

from ..activations.hook_points import Place, input_device, read_by_hooks
from ..activations.language_models import CausalLM
from ..config.checks import require
from ..config.run import RunConfig
from ..evaluation.folders import SAE, Hook, open_sae, require_feature
from ..trainers.dictionaries import as_input
from .directions import encoder_directions

if TYPE_CHECKING:
    from nnsight import LanguageModel

_SCORED_EVERY = 10
_LEARNING_RATE = 0.5  # Adam's
_LAST_TEMPERATURE = 0.1  # falls from 1 geometrically


class Synthesis(NamedTuple):
    """One feature's best tokens, and how random ones compare."""

    feature: int
    text: str
    input_ids: list[int]
    activation: float
    """The feature's activation at the last of these tokens in the language model; 0 if it is not selected there."""
    random: float
    """The largest activation over as many random sequences as were scored."""


def synthesise(
    sae: SAE,
    features: Sequence[int],
    lm: "LanguageModel | str | Path | None" = None,
    *,
    hook: Hook | None = None,
    length: int = 6,
    restarts: int = 4,
    steps: int = 80,
    seed: int = 0,
    device: str = RunConfig.device,
) -> list[Synthesis]:
    """For each feature, the tokens found that activate it most at the last of them.

    Arguments:
        sae, lm, hook, device: as for `features_of`.
        features: the features' numbers.
        length: L, tokens in a sequence.
        restarts: R, the random starts of each feature.
        steps: steps of Adam on theta.
        seed: seeds the starts and the random sequences.

    Raises: ConfigError if a feature or a number is out of range.
    """
    for name, value in (("length", length), ("restarts", restarts), ("steps", steps)):
        require(value >= 1, name, value, "at least 1")
    opened = open_sae(sae, lm, hook, device=device)
    (dictionary,) = opened.saes.values()
    numbers = [require_feature(feature, dictionary.dict_size) for feature in features]
    model = opened.inputs.require_language_model("tokens are synthesised for it", "give lm")
    reader = _Reader(dictionary, model, opened.hook_point.place.sides[0])
    generator = t.Generator().manual_seed(seed)
    shape = (restarts * -(-steps // _SCORED_EVERY), length)
    random_NL = t.randint(len(reader.embedding_VD), shape, generator=generator)
    random_F = reader.encode(random_NL.to(reader.embedding_VD.device)).max(0).values
    found = []
    for feature in numbers:
        generator.manual_seed(seed * 1_000_003 + feature)  # whatever other features there are
        start_RLV = t.randn(restarts, length, len(reader.embedding_VD), generator=generator)
        ids, activation = _climb(reader, feature, start_RLV, steps)
        text = model.tokenizer.decode(ids)
        found.append(Synthesis(feature, text, ids, activation, float(random_F[feature])))
    return found


def _climb(
    reader: "_Reader", feature: int, start_RLV: t.Tensor, steps: int
) -> tuple[list[int], float]:
    """The best hard tokens of an ascent, and the feature's activation at the last of them."""
    embedding_VD = reader.embedding_VD
    theta_RLV = start_RLV.to(embedding_VD.device).requires_grad_(True)
    direction_D = encoder_directions(reader.dictionary)[feature].to(theta_RLV.device)
    optimizer = t.optim.Adam([theta_RLV], lr=_LEARNING_RATE)
    best_ids, best = [], -t.inf
    for step in range(steps):
        temperature = _LAST_TEMPERATURE ** (step / max(1, steps - 1))
        soft_RLV = (theta_RLV / temperature).softmax(-1)
        x_RD = reader.read(soft_RLV.to(embedding_VD) @ embedding_VD)
        (theta_RLV.grad,) = t.autograd.grad(-(x_RD @ direction_D).sum(), theta_RLV)
        optimizer.step()
        if (step + 1) % _SCORED_EVERY == 0 or step == steps - 1:
            ids_RL = theta_RLV.argmax(-1)
            activation, row = reader.encode(ids_RL)[:, feature].max(0)
            if activation > best:
                best_ids, best = ids_RL[row].tolist(), float(activation)
    return best_ids, best


class _Reader:
    """Runs the language model from embeddings to the last token's activation at a place.

    Attributes:
        embedding_VD: of the tokens that the tokenizer has.
    """

    def __init__(self, dictionary: Dictionary, model: CausalLM, place: Place):
        self.dictionary: Any = dictionary
        self._model, self._place = model.module, place
        embed: Any = model.module.get_input_embeddings()
        tokens = t.arange(min(len(embed.weight), len(model.tokenizer)))
        with t.no_grad():  # through the module, because some scale the embeddings
            self.embedding_VD: t.Tensor = embed(tokens.to(input_device(model.module)))

    def read(self, embeddings_NLD: t.Tensor) -> t.Tensor:
        """Activations at the last token, (N, D), differentiable."""
        (x_NLD,) = read_by_hooks(self._model, [self._place], {"inputs_embeds": embeddings_NLD})
        return x_NLD[:, -1].float().to(embeddings_NLD.device)

    @t.no_grad()
    def encode(self, ids_NL: t.Tensor) -> t.Tensor:
        """The SAE's features at the last of the hard tokens, (N, F)."""
        x_ND = self.read(self.embedding_VD[ids_NL])
        return self.dictionary.encode(as_input(self.dictionary, x_ND)).to(x_ND)
