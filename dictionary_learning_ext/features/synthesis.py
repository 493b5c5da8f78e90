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
from nnsight import LanguageModel

from ..activations.hook_points import HookPoint, run_to
from ..config.checks import require
from ..errors import ConfigError, Setting
from ..trainers.dictionaries import as_input
from .directions import encoder_directions

_THETA_ELEMENTS = 1 << 23  # S x L x V optimised at a time
_RESCORE_EVERY = 10


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
    model: LanguageModel,
    hook: HookPoint,
    features: Sequence[int],
    *,
    length: int = 6,
    restarts: int = 4,
    steps: int = 80,
    learning_rate: float = 0.5,
    temperatures: tuple[float, float] = (1.0, 0.1),
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
        learning_rate: Adam's learning rate.
        temperatures: at the first and at the last step. It falls geometrically in between.
        seed: seeds the starts and the random sequences.

    Raises: ConfigError if a feature or a number is out of range, or the model does not take
        `inputs_embeds`.
    """
    n = dictionary.dict_size
    for feature in features:
        require(0 <= feature < n, "feature", feature, f"0 to {n - 1}, as the SAE has {n}")
    for name, value in (("length", length), ("restarts", restarts), ("steps", steps)):
        require(value >= 1, name, value, "at least 1")
    if not features:
        return []
    reader = _Reader(model, hook)
    scored = restarts * -(-steps // _RESCORE_EVERY)
    random_F = _random_best(reader, dictionary, list(features), length, scored, seed)
    at_once = max(1, _THETA_ELEMENTS // (restarts * length * reader.vocabulary))
    found = []
    for start in range(0, len(features), at_once):
        part = list(features[start : start + at_once])
        ascent = _Ascent(reader, dictionary, part, length, restarts, seed)
        found += ascent.run(steps, learning_rate, temperatures)
    return [
        Synthesis(feature, ids, activation, random)
        for feature, (ids, activation), random in zip(features, found, random_F, strict=True)
    ]


class _Ascent:
    """Gradient ascent for several features at once."""

    def __init__(
        self,
        reader: "_Reader",
        dictionary: Dictionary,
        features: list[int],
        length: int,
        restarts: int,
        seed: int,
    ):
        self._reader, self._dictionary = reader, dictionary
        device = reader.embedding_VD.device
        self._feature_S = t.tensor(features, device=device).repeat_interleave(restarts)
        self._direction_SD = encoder_directions(dictionary).to(device)[self._feature_S]
        # A feature's starts don't depend on which other features are synthesised with it.
        starts = []
        for feature in features:
            generator = t.Generator().manual_seed(seed * 1_000_003 + feature)
            starts.append(t.randn(restarts, length, reader.vocabulary, generator=generator))
        self._theta_SLV = t.cat(starts).to(device).requires_grad_(True)
        self._restarts = restarts
        self._best_S = t.full((len(self._feature_S),), -t.inf, device=device)
        self._best_ids_SL = t.zeros(*self._theta_SLV.shape[:2], dtype=t.long, device=device)

    def run(
        self, steps: int, learning_rate: float, temperatures: tuple[float, float]
    ) -> list[tuple[list[int], float]]:
        optimizer = t.optim.Adam([self._theta_SLV], lr=learning_rate)
        first, last = temperatures
        for step in range(steps):
            temperature = first * (last / first) ** (step / max(1, steps - 1))
            soft_SLV = (self._theta_SLV / temperature).softmax(-1)
            embedding_VD = self._reader.embedding_VD
            x_SD = self._reader.read(soft_SLV.to(embedding_VD) @ embedding_VD)
            objective = (x_SD * self._direction_SD).sum()
            optimizer.zero_grad()
            (-objective).backward()
            optimizer.step()
            if step % _RESCORE_EVERY == _RESCORE_EVERY - 1 or step == steps - 1:
                self._rescore()
        score_FR = rearrange(self._best_S, "(f r) -> f r", r=self._restarts)
        best_F = score_FR.argmax(1)
        ids_FRL = rearrange(self._best_ids_SL, "(f r) l -> f r l", r=self._restarts)
        return [
            (ids_FRL[row, best].tolist(), float(score_FR[row, best]))
            for row, best in enumerate(best_F.tolist())
        ]

    @t.no_grad()
    def _rescore(self) -> None:
        ids_SL = self._theta_SLV.argmax(-1)
        features_SF = self._reader.encode(ids_SL, self._dictionary)
        score_S = features_SF.gather(1, rearrange(self._feature_S, "s -> s 1")).squeeze(1)
        is_better_S = score_S > self._best_S
        self._best_S = t.where(is_better_S, score_S, self._best_S)
        is_better_S1 = rearrange(is_better_S, "s -> s 1")
        self._best_ids_SL = t.where(is_better_S1, ids_SL, self._best_ids_SL)


def _random_best(
    reader: "_Reader",
    dictionary: Dictionary,
    features: list[int],
    length: int,
    n: int,
    seed: int,
) -> list[float]:
    """Each feature's largest activation at the end of n random sequences, shared by all."""
    generator = t.Generator().manual_seed(seed)
    ids_SL = t.randint(reader.vocabulary, (n, length), generator=generator)
    best_F = reader.encode(ids_SL.to(reader.embedding_VD.device), dictionary).max(0).values
    return best_F[features].tolist()


class _Reader:
    """Runs the language model from embeddings to the last token's activation at the hook point."""

    def __init__(self, model: LanguageModel, hook: HookPoint):
        self._model, self._place = model, hook.place
        language_model: Any = model._model
        embed = language_model.get_input_embeddings()
        self.vocabulary: int = len(embed.weight)
        with t.no_grad():  # through the module, because some scale the embeddings
            everything = t.arange(self.vocabulary, device=embed.weight.device)
            self.embedding_VD: t.Tensor = embed(everything)

    def read(self, embeddings_SLD: t.Tensor) -> t.Tensor:
        """Activations at the last token, (S, D), differentiable."""
        try:
            (x_SLD,) = run_to(self._model, [self._place], inputs_embeds=embeddings_SLD)
        except TypeError as error:
            kind = type(self._model._model).__name__
            raise ConfigError(
                f"a {kind} does not take inputs_embeds ({error}): expected a language model "
                "that does, to synthesise tokens",
                instead=("use ", Setting("synthesise", 0), " or another language model"),
            ) from error
        return x_SLD[:, -1].float()

    @t.no_grad()
    def encode(self, ids_SL: t.Tensor, dictionary: Dictionary) -> t.Tensor:
        """The SAE's features at the last of the hard tokens, (S, F)."""
        sae: Any = dictionary
        x_SD = self.read(self.embedding_VD[ids_SL])
        return sae.encode(as_input(sae, x_SD)).to(x_SD)
