"""What is shown of one feature: its strongest contexts, and its effects on the logits."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..features.directions import LogitLens
from ..features.kept_contexts import FeatureContexts
from ..features.token_text import token_text
from ..report.feature_pages import visible


@dataclass(frozen=True, repr=False)
class TopContext:
    """A token at which a feature is active, and the tokens around it: W of them."""

    activation: float
    """The feature's activation at the token. It has the largest magnitude in its context."""
    token: str
    """The token as text, with its leading space."""
    tokens: list[str]
    """The tokens around it and itself: up to 16 before it and 8 after it, W in all."""
    ids: list[int]
    """Their W ids."""
    activations: list[float]
    """The feature's activation at each of the W tokens. 0 where it is not selected."""
    at: int
    """The token's place among the W."""
    context: int
    """The number of the context in the order of reading, from 0."""
    position: int
    """The token's place in the context, from 0."""

    def __repr__(self) -> str:
        shown = [visible(token) for token in self.tokens]
        before, after = "".join(shown[: self.at]), "".join(shown[self.at + 1 :])
        return f"{self.activation:8.3g}  {before}«{shown[self.at]}»{after}"

    @property
    def shaded(self) -> list[tuple[str, float, bool]]:
        """For each token its visible text, its activation over the largest, and whether it is `at`."""
        return [
            (visible(token), activation / abs(self.activation), place == self.at)
            for place, (token, activation) in enumerate(
                zip(self.tokens, self.activations, strict=True)
            )
        ]


class TopContexts(tuple[TopContext, ...]):
    """The contexts in which a feature is strongest, the strongest first."""

    def __repr__(self) -> str:
        return "\n".join(map(repr, self)) or "(no context: never selected)"


def top_contexts(kept: FeatureContexts, feature: int, n: int, tokenizer: Any) -> TopContexts:
    """The first n of a feature's contexts, or all if fewer were kept."""
    found = []
    for row in range(min(n, kept.value_FT.shape[1])):
        value = float(kept.value_FT[feature, row])
        if math.isnan(value):
            break  # those that a feature doesn't have come last
        inside = [place for place, i in enumerate(kept.ids_FTW[feature, row].tolist()) if i >= 0]
        ids = kept.ids_FTW[feature, row, inside].tolist()
        tokens = [token_text(tokenizer, token) for token in ids]
        at = kept.at - inside[0]
        found.append(
            TopContext(
                activation=value,
                token=tokens[at],
                tokens=tokens,
                ids=ids,
                activations=kept.activations_FTW[feature, row, inside].tolist(),
                at=at,
                context=int(kept.context_FT[feature, row]),
                position=int(kept.position_FT[feature, row]),
            )
        )
    return TopContexts(found)


class TokenEffect(NamedTuple):
    """What one unit of a feature's activation adds to a token's logit."""

    token: str
    logit: float


class LogitEffects(NamedTuple):
    """The tokens whose logits a feature's direction raises and lowers most; see `LogitLens`.

    Only the path through the final norm and the unembedding counts. Effects are up to a positive
    factor, which is the same for all features and tokens of a language model.
    """

    raised: list[TokenEffect]
    """The largest effect first."""
    lowered: list[TokenEffect]
    """The most negative effect first."""

    def __repr__(self) -> str:
        return "\n".join(
            f"{name:7} " + ", ".join(f"{visible(token)!r} {logit:+.3g}" for token, logit in effects)
            for name, effects in zip(("raises", "lowers"), self, strict=True)
        )


def logit_effects(
    lens: LogitLens, directions_FD: Any, feature: int, n: int, tokenizer: Any
) -> LogitEffects:
    """The n tokens that a feature raises, and the n that it lowers most."""
    found = []
    for ranked in lens.ranked(directions_FD[feature : feature + 1], n):
        pairs = zip(ranked.indices_Fn[0].tolist(), ranked.values_Fn[0].tolist(), strict=True)
        found.append([TokenEffect(token_text(tokenizer, i), logit) for i, logit in pairs])
    return LogitEffects(*found)
