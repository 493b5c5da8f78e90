"""Tokens that activate a feature strongly, found by gradient ascent through the language model.

The ascent is on *soft* tokens. A soft token is a distribution p = softmax(theta / temperature) over
the vocabulary, and the model gets its mean embedding p E. The objective is the feature's
pre-activation (a vSAE's mean mu, up to a constant) at the last token, so a feature outside the TopK
has a gradient too. The temperature falls from step to step. Every few steps the SAE's own encoder
scores the *hard* tokens, the most likely ones. The best hard sequence found is returned.

Shapes: F chosen features, R restarts each, S = F R sequences, L tokens, V vocabulary, D width.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch as t
from dictionary_learning.dictionary import Dictionary
from einops import rearrange
from transformers import PreTrainedModel

from ..activations.hook_points import HookPoint, input_device, run_to
from ..config.checks import require
from ..evaluation.folders import require_feature
from ..trainers.dictionaries import as_input
from .directions import encoder_directions

_THETA_ELEMENTS = 1 << 23  # S x L x V optimised at a time
_RESCORE_EVERY = 10
_LEARNING_RATE = 0.5  # Adam's
_LAST_TEMPERATURE = 0.1  # falls from 1 geometrically


class Synthesis(NamedTuple):
    """One feature's best sequence, and how random ones compare."""

    feature: int
    input_ids: list[int]
    activation: float
    """The feature's activation at the last of these tokens in the real model; 0 if it is not
    selected there."""
    random: float
    """The largest activation over as many random sequences as were scored."""


def synthesise(
    dictionary: Dictionary,
    model: PreTrainedModel,
    hook: HookPoint,
    features: Sequence[int],
    *,
    length: int = 6,
    restarts: int = 4,
    steps: int = 80,
    seed: int = 0,
) -> list[Synthesis]:
    """For each feature, the tokens found that activate it most at the last of them.

    Arguments:
        dictionary: any class that `load_dictionary` returns. It takes raw activations.
        model: any decoder that takes `inputs_embeds`.
        hook: where the dictionary was trained.
        features: the features' numbers.
        length: L, tokens per sequence.
        restarts: R, sequences per feature, each from its own random start.
        steps: steps of Adam on theta.
        seed: seeds the starts and the random sequences.

    Raises: ConfigError if a feature or a number is out of range.
    """
    features = [require_feature(feature, dictionary.dict_size) for feature in features]
    for name, value in (("length", length), ("restarts", restarts), ("steps", steps)):
        require(value >= 1, name, value, "at least 1")
    if not features:
        return []
    reader = _Reader(dictionary, model, hook)
    scored = restarts * -(-steps // _RESCORE_EVERY)
    generator = t.Generator().manual_seed(seed)
    random_SL = t.randint(reader.vocabulary, (scored, length), generator=generator)
    random_F = reader.encode(random_SL.to(reader.embedding_VD.device)).max(0).values.tolist()
    at_once = max(1, _THETA_ELEMENTS // (restarts * length * reader.vocabulary))
    found = []
    for start in range(0, len(features), at_once):
        part = features[start : start + at_once]
        found += _ascended(reader, part, length, restarts, steps, seed)
    return [
        Synthesis(feature, ids, activation, random_F[feature])
        for feature, (ids, activation) in zip(features, found, strict=True)
    ]


def _ascended(
    reader: "_Reader", features: list[int], length: int, restarts: int, steps: int, seed: int
) -> list[tuple[list[int], float]]:
    """Each feature's best hard tokens, and its activation at the last of them."""
    embedding_VD = reader.embedding_VD
    device = embedding_VD.device
    feature_S = t.tensor(features, device=device).repeat_interleave(restarts)
    direction_SD = encoder_directions(reader.dictionary).to(device)[feature_S]
    # A feature's starts don't depend on which other features are synthesised with it.
    starts = []
    for feature in features:
        generator = t.Generator().manual_seed(seed * 1_000_003 + feature)
        starts.append(t.randn(restarts, length, reader.vocabulary, generator=generator))
    theta_SLV = t.cat(starts).to(device).requires_grad_(True)
    best_S = t.full((len(feature_S),), -t.inf, device=device)
    best_ids_SL = t.zeros(*theta_SLV.shape[:2], dtype=t.long, device=device)
    optimizer = t.optim.Adam([theta_SLV], lr=_LEARNING_RATE)
    for step in range(steps):
        temperature = _LAST_TEMPERATURE ** (step / max(1, steps - 1))
        soft_SLV = (theta_SLV / temperature).softmax(-1)
        x_SD = reader.read(soft_SLV.to(embedding_VD) @ embedding_VD)
        objective = (x_SD * direction_SD).sum()
        optimizer.zero_grad()
        (-objective).backward()
        optimizer.step()
        if step % _RESCORE_EVERY == _RESCORE_EVERY - 1 or step == steps - 1:
            ids_SL = theta_SLV.argmax(-1)
            score_S = reader.encode(ids_SL).gather(1, feature_S[:, None]).squeeze(1)
            is_better_S = score_S > best_S
            best_S = t.where(is_better_S, score_S, best_S)
            best_ids_SL = t.where(is_better_S[:, None], ids_SL, best_ids_SL)
    score_FR = rearrange(best_S, "(f r) -> f r", r=restarts)
    ids_FRL = rearrange(best_ids_SL, "(f r) l -> f r l", r=restarts)
    return [
        (ids_FRL[row, best].tolist(), float(score_FR[row, best]))
        for row, best in enumerate(score_FR.argmax(1).tolist())
    ]


class _Reader:
    """Runs the language model from embeddings to the last token's activation at the hook point."""

    def __init__(self, dictionary: Dictionary, model: PreTrainedModel, hook: HookPoint):
        self.dictionary: Any = dictionary
        self._model, self._place = model, hook.place
        embed: Any = model.get_input_embeddings()
        self.vocabulary: int = len(embed.weight)
        with t.no_grad():  # through the module, because some scale the embeddings
            everything = t.arange(self.vocabulary, device=input_device(model))
            self.embedding_VD: t.Tensor = embed(everything)

    def read(self, embeddings_SLD: t.Tensor) -> t.Tensor:
        """Activations at the last token, (S, D), differentiable."""
        (x_SLD,) = run_to(self._model, [self._place], inputs_embeds=embeddings_SLD)
        return x_SLD[:, -1].float().to(embeddings_SLD.device)

    @t.no_grad()
    def encode(self, ids_SL: t.Tensor) -> t.Tensor:
        """The SAE's features at the last of the hard tokens, (S, F)."""
        x_SD = self.read(self.embedding_VD[ids_SL])
        return self.dictionary.encode(as_input(self.dictionary, x_SD)).to(x_SD)
