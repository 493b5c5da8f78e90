"""The features of an SAE, measured on a text, and one of them; both show themselves in a notebook.

Shapes: F features, D = activation_dim.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch as t

from ..config.checks import require
from ..errors import ConfigError, LanguageModelError, Setting
from ..features.collector import FeatureStatistics
from ..features.directions import LogitLens, decoder_directions
from ..features.token_text import token_text
from ..report.analysis import ranking_of
from ..report.feature_pages import top_tokens, visible
from ..report.rendering import rendered
from ..report.sinks import Sinks
from .feature_parts import LogitEffects, TopContexts, logit_effects, top_contexts
from .opening import OpenedSAE, require_feature

_ROWS = 20


class Features:
    """What the features of an SAE do on a text. `features_of` makes it.

    `features[17]` is one of them, and iterating yields all F. A feature is *selected* at a token if
    its activation there is not zero. Activations are those of `dictionary.encode`, of the language
    model's own activations (a vSAE's mean).

    Attributes:
        dictionary, language_model, hook_point: what was measured.
        statistics: everything that was measured, see `FeatureStatistics`.
        tokens: the number of tokens measured on.
        sinks: the attention sinks that were left out, as in a report; None if there were none.
    """

    def __init__(self, opened: OpenedSAE, statistics: FeatureStatistics, sinks: Sinks | None):
        self.dictionary = opened.dictionary
        self.language_model = opened.language_model
        self.hook_point = opened.hook_point
        self.statistics = statistics
        self.tokens = statistics.tokens
        self.sinks = sinks
        self._tokenizer: Any = opened.language_model.tokenizer

    @property
    def density(self) -> t.Tensor:
        """The share of the tokens at which each feature is selected, (F,), float64."""
        return self.statistics.frequency_F

    @property
    def largest(self) -> t.Tensor:
        """Each feature's activation of the largest magnitude, with its sign, (F,); NaN for one that was
        never selected."""
        return self.statistics.max_F

    @cached_property
    def directions(self) -> t.Tensor:
        """What one unit of each feature adds to the reconstruction, (F, D), float32."""
        return decoder_directions(self.dictionary)

    @cached_property
    def ranking(self) -> list[int]:
        """The features that were selected, those that fire most consistently on one token first."""
        return ranking_of(self.statistics)

    def top(self, feature: int, n: int = 5) -> TopContexts:
        """The n contexts in which a feature is strongest, each with the token at which it is.

        Strength is the magnitude of an activation, which may be negative. A context counts once. There
        are fewer if the feature was selected in fewer.

        Raises: ConfigError if there is no such feature, or n contexts were not kept.
        """
        feature = require_feature(feature, len(self))
        kept = self.statistics.top.value_FT.shape[1]
        more = ("for more, give features_of ", Setting("contexts", n))
        require(1 <= n <= kept, "n", n, f"1 to {kept}, the contexts kept", instead=more)
        return top_contexts(self.statistics.top, feature, n, self._tokenizer)

    def logits(self, feature: int, n: int = 8) -> LogitEffects:
        """The n tokens whose logits a feature's direction raises most, and the n that it lowers most.

        Raises: ConfigError if there is no such feature; LanguageModelError if the language model has
            no final norm or unembedding to measure it by.
        """
        feature = require_feature(feature, len(self))
        vocabulary = self._lens.vocabulary
        require(
            1 <= n <= vocabulary, "n", n, f"1 to {vocabulary}, the tokens of the language model"
        )
        return logit_effects(self._lens, self.directions, feature, n, self._tokenizer)

    def search(self, token: str) -> list[int]:
        """The features that fire on a token, by the kept contexts in which they are strongest.

        Arguments:
            token: its text. Case and spaces around it don't matter.

        Returns: the features with such a context. Those with the largest share of them come first,
            of these the one with the largest activation, by magnitude.

        Raises: ConfigError if the language model's tokenizer splits the text into several tokens.
        """
        wanted = _plain(token)
        top = self.statistics.top
        ids_FT = top.ids_FTW[:, :, top.at]
        texts = {
            i: _plain(token_text(self._tokenizer, i)) for i in ids_FT.unique().tolist() if i >= 0
        }
        matching = t.tensor([i for i, text in texts.items() if text == wanted], dtype=t.int32)
        n_F = (is_there_FT := ~top.value_FT.isnan()).sum(1)
        share_F = (t.isin(ids_FT, matching) & is_there_FT).sum(1) / n_F.clamp(min=1)
        found = share_F.nonzero().flatten().tolist()
        if not found:
            self._require_one_token(token)
        return sorted(found, key=lambda i: (-float(share_F[i]), -abs(float(self.largest[i])), i))

    def _require_one_token(self, text: str) -> None:
        word = text.strip()
        cases = (word, word.lower(), word.capitalize(), word.upper())
        forms = {text, *cases, *(f" {form}" for form in cases)}
        ids = {form: self._tokenizer.encode(form, add_special_tokens=False) for form in forms}
        if all(len(each) != 1 for each in ids.values()):
            parts = ", ".join(repr(token_text(self._tokenizer, i)) for i in ids[text])
            raise ConfigError(
                f"{text!r} is not one token of this language model but {len(ids[text])}: expected one;"
                f" search for one of {parts or 'its tokens'}"
            )

    @cached_property
    def _lens(self) -> LogitLens:
        return LogitLens(self.language_model)

    def __len__(self) -> int:
        return self.dictionary.dict_size

    def __getitem__(self, feature: int) -> "Feature":
        """Raises ConfigError if there is no such feature."""
        return Feature(self, require_feature(feature, len(self)))

    def __iter__(self) -> Iterator["Feature"]:
        return (Feature(self, number) for number in range(len(self)))

    def __repr__(self) -> str:
        sinks = f" ({self.sinks.tokens:,} attention sinks left out)" if self.sinks else ""
        return (
            f"{len(self):,} features at {self.hook_point.name}, {int(self.statistics.alive_F.sum()):,}"
            f" of them selected in {self.tokens:,} tokens{sinks}"
        )

    def _repr_html_(self) -> str:
        shown = [self[number] for number in self.ranking[:_ROWS]]
        return rendered("feature_table.html", features=self, shown=shown, visible=visible)


class Feature:
    """One feature of `Features`.

    Attributes:
        number: its place in the dictionary.
    """

    def __init__(self, features: Features, number: int):
        self.features = features
        self.number = number

    @property
    def density(self) -> float:
        """The share of the tokens at which it is selected."""
        return float(self.features.density[self.number])

    @property
    def largest(self) -> float:
        """Its activation of the largest magnitude, with its sign; NaN if it was never selected."""
        return float(self.features.largest[self.number])

    @property
    def fires_on(self) -> list[str]:
        """The tokens at which it is strongest in its kept contexts, the most frequent first: up to 4."""
        tokens = top_tokens(self.features.statistics.top, self.number)
        return [token_text(self.features.language_model.tokenizer, i) for i in tokens]

    def top(self, n: int = 5) -> TopContexts:
        """See `Features.top`."""
        return self.features.top(self.number, n)

    def logits(self, n: int = 8) -> LogitEffects:
        """See `Features.logits`."""
        return self.features.logits(self.number, n)

    @property
    def _kept(self) -> TopContexts:
        """All of its kept contexts, for a card: up to 8."""
        return self.top(min(8, self.features.statistics.top.value_FT.shape[1]))

    @property
    def _effects(self) -> tuple[LogitEffects | None, str]:
        """Its effects on the logits, or why they can't be measured."""
        try:
            return self.logits(), ""
        except LanguageModelError as error:
            return None, str(error)

    def _heading(self) -> str:
        return (
            f"feature {self.number}: selected at {self.density:.3%} of {self.features.tokens:,} tokens,"
            f" largest activation {self.largest:.3g}"
        )

    def __repr__(self) -> str:
        effects, why_not = self._effects
        return "\n".join([self._heading(), repr(self._kept), repr(effects) if effects else why_not])

    def _repr_html_(self) -> str:
        effects, why_not = self._effects
        return rendered(
            "feature_card.html",
            heading=self._heading(),
            contexts=self._kept,
            effects=effects,
            why_not=why_not,
            visible=visible,
        )


def _plain(text: str) -> str:
    return text.strip().lower() or text
