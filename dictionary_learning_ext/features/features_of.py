"""Features of an SAE in Python: their activations on a text, the contexts in which they fire, and the tokens they promote.

features = features_of("runs/NAME")
features.top(17)                  # the contexts in which it is strongest
features[17]                      # a card in a notebook
features.search(" Emma")          # features that fire on a token

Shapes: F features, D = activation_dim.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch as t

from ..activations.hook_points import HookPoint, find_hook
from ..activations.inputs import first_tokens, with_activations
from ..activations.language_models import CausalLM, is_nnsights, wrapped
from ..activations.text import open_text
from ..activations.text_files import SUFFIXES
from ..activations.tokens import whole_documents
from ..codes.codes import Codes, FeatureOfCodes, encode
from ..codes.contexts import TopContexts, plain, token_text, visible
from ..codes.sinks import sinks_of
from ..codes.table import FeatureTable
from ..config.checks import require
from ..config.run import RunConfig
from ..errors import ConfigError, LanguageModelError, TextError
from ..evaluation.folders import (
    SAE,
    Hook,
    OpenedFolders,
    open_sae,
    require_feature,
)
from .directions import LogitLens, decoder_directions
from .html import rendered

if TYPE_CHECKING:
    from nnsight import LanguageModel

_ROWS = 20


Text = str | Path | Iterable[str]
"""A text, several texts, or where to read them, see `documents_of`."""


def encode_text(
    sae: SAE,
    text: Text | None = None,
    lm: "LanguageModel | str | Path | None" = None,
    *,
    hook: Hook | None = None,
    tokens: int = RunConfig.eval_tokens,
    ctx_len: int | None = None,
    device: str = RunConfig.device,
    keep: bool = True,
) -> Codes:
    """Encode a text with an SAE: the activations of its features at each token, without the zeros.

        codes = encode_text("runs/NAME")
        codes.feature(7).contexts()
        codes.to_scipy()

    Arguments: see `features_of`.
        keep: read the codes of held-out text that are kept beside a run folder's SAE, or keep them there. With a language
            model that is given as an object they are never kept.

    Raises: a UserError that says what to change.
    """
    how = {"device": device, "ctx_len": ctx_len, "keep": keep}
    return _codes_of(open_sae(sae, lm, hook, stored=text is None, **how), text, tokens)


def _codes_of(opened: OpenedFolders, text: Text | None, tokens: int) -> Codes:
    (dictionary,) = opened.saes.values()
    require(tokens >= 1, "tokens", tokens, "at least 1")
    if text is None and not opened.folders:
        raise TextError(
            "no text: a dictionary doesn't say which it was trained on",
            instead="give a text, e.g. text='embedded'",
        )
    tokenizer = opened.tokenizer(
        "features are measured on tokens", "give lm, and a text to read, e.g. text='embedded'"
    )
    if text is None:
        (codes,) = opened.codes(tokens).values()
        return replace(codes, tokenizer=tokenizer)
    model, run = opened.inputs.language_model, opened.run
    assert model is not None, "no activations are stored"
    whole = whole_documents(documents_of(text), tokenizer, run.ctx_len, packing=run.text_packing)
    batches = first_tokens(with_activations(whole, run, model, opened.hook_point), tokens)
    (codes,) = encode([dictionary], batches, tokenizer=tokenizer)
    return codes


def features_of(
    sae: SAE,
    lm: "LanguageModel | str | Path | None" = None,
    text: Text | None = None,
    *,
    hook: Hook | None = None,
    tokens: int = RunConfig.eval_tokens,
    contexts: int = 8,
    ctx_len: int | None = None,
    device: str = RunConfig.device,
    seed: int = 0,
    keep: bool = True,
) -> "Features":
    """Measure what the features of an SAE do on a text.

    Tokens that the run left out of its training are left out, and so are attention sinks, as in everything
    that is measured (see `Inputs.contexts`).

    Arguments:
        sae: a dictionary that takes raw activations, as `load_dictionary` returns it, or the name of an SAE: a run
            folder, another library's folder, or a place on the hub, see run_folder/sae_names.py.
        lm: nnsight's language model, or its name or folder. None: the run folder's.
        text: a text, a list of texts, or where to read them, see `documents_of`. Each document is read whole, in
            contexts of its own. None: the run folder's held-out text, in the contexts of its training.
        hook: a hook point or its name. None: the run folder's.
        tokens: at most how many to measure on.
        contexts: how many to keep of each feature, at most, for `Feature.fires_on` and `search`.
        ctx_len: tokens in a context. None: the run's, or 128.
        device: where to load what isn't loaded yet.
        seed: seeds the contexts that are drawn.
        keep: see `encode_text`.

    Raises: a UserError that says what to change.
    """
    require(contexts >= 1, "contexts", contexts, "at least 1")
    how = {"device": device, "ctx_len": ctx_len, "keep": keep}
    opened = open_sae(sae, lm, hook, stored=text is None, **how)
    codes, given = _codes_of(opened, text, tokens), lm if is_nnsights(lm) else None
    return Features(opened, given, codes, top=contexts, seed=seed)


class Features(FeatureTable):
    """The features of an SAE and what they do on a text, as `features_of` returns them.

    `features[17]` is one feature, and iterating yields all F. A feature is *selected* at a token if its activation there is
    not zero. Activations are those that `dictionary.encode` computes (of a vSAE, the mean) from the language model's.

    Attributes:
        dictionary: the SAE.
        codes: the features' activations at each token.
        tokens: the number of tokens measured on.
        sinks: the attention sinks that were left out; None if there were none.
    """

    def __init__(
        self,
        opened: OpenedFolders,
        given: "LanguageModel | None",
        codes: Codes,
        **options: int,
    ):
        super().__init__(codes, **options)
        (self.dictionary,) = opened.saes.values()
        self.tokens, self._tokenizer = codes.tokens, codes.tokenizer
        self.sinks = sinks_of(codes.reading, codes.tokenizer)
        self._opened, self._given = opened, given

    @cached_property
    def _loaded(self) -> CausalLM:
        """The language model, loaded on first use. Kept codes often make that unnecessary."""
        return self._opened.inputs.require_language_model("it is asked for", "give lm")

    @cached_property
    def language_model(self) -> "LanguageModel":
        """The nnsight model: the given one, or one around the loaded model."""
        return self._given or wrapped(self._loaded)

    @cached_property
    def hook_point(self) -> HookPoint:
        """The hook point in `language_model` that was measured."""
        return find_hook(self.language_model, self._opened.run.site)

    @property
    def firing_rate(self) -> t.Tensor:
        """The share of the tokens at which each feature is selected, (F,), float64."""
        return self.codes.firing_rate_F

    @property
    def largest(self) -> t.Tensor:
        """Each feature's activation of the largest magnitude, with its sign, (F,); NaN for one that was
        never selected."""
        return self.codes.largest_F

    @property
    def error_share(self) -> t.Tensor:
        """How much the summed squared error rises when a feature is dropped, as a share of that error, (F,), float64.
        Features with a large one come back more often when the same settings are trained again."""
        return t.from_numpy(self.codes.error_share_F)

    @cached_property
    def directions(self) -> t.Tensor:
        """What one unit of each feature adds to the reconstruction, (F, D), float32."""
        return decoder_directions(self.dictionary)

    def top(self, feature: int, n: int = 5) -> TopContexts:
        """The n contexts in which a feature has its largest activations, by magnitude. Each context counts once.

        There are fewer if the feature was selected in fewer contexts.

        Raises: ConfigError if there is no such feature, or n is below 1.
        """
        require(n >= 1, "n", n, "at least 1")
        found: Any = self[feature].contexts(n)  # the tokenizer is known, so they have their text
        return found

    def logits(self, feature: int, n: int = 8) -> "LogitEffects":
        """The n tokens whose logits a feature's direction raises most, and the n that it lowers most.

        Raises: ConfigError if there is no such feature; LanguageModelError if the language model has
            no final norm or unembedding to measure it by.
        """
        feature = require_feature(feature, len(self))
        found = []
        for ranked in self._lens.ranked(self.directions[feature : feature + 1], n):
            pairs = zip(ranked.indices_Fn[0].tolist(), ranked.values_Fn[0].tolist(), strict=True)
            found.append(
                [TokenEffect(token_text(self._tokenizer, i), effect) for i, effect in pairs]
            )
        return LogitEffects(*found)

    def search(self, token: str) -> list[int]:
        """The features that fire on a token in any of their kept contexts.

        Arguments:
            token: the token's text. Case and outer spaces don't matter.

        Returns: the numbers of the features. Those in which such contexts are the largest share come first. Of equal ones,
            the feature with the largest activation, by magnitude.

        Raises: ConfigError if the language model's tokenizer splits the text into several tokens.
        """
        wanted = plain(token)
        ids_FT = self.strongest.ids_FT
        tokens = [i for i in np.unique(ids_FT).tolist() if i >= 0]
        matching = [i for i in tokens if plain(token_text(self._tokenizer, i)) == wanted]
        is_there_FT = ids_FT >= 0
        n_found_F = (np.isin(ids_FT, matching) & is_there_FT).sum(1)
        share_F = n_found_F / is_there_FT.sum(1).clip(min=1)
        found = np.flatnonzero(share_F).tolist()
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
        return LogitLens(self._loaded.module)

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
            f"{len(self):,} features at {self._opened.run.site}, {int((self.codes.count_F > 0).sum()):,}"
            f" of them selected in {self.tokens:,} tokens{sinks}"
        )

    def _repr_html_(self) -> str:
        shown = [self[number] for number in self.ranking[:_ROWS]]
        return rendered(
            "features", "feature_table.html", features=self, shown=shown, visible=visible
        )


class Feature(FeatureOfCodes):
    """One feature of `Features`.

    Attributes:
        number: its index in the SAE.
    """

    def __init__(self, features: Features, number: int):
        super().__init__(features.codes, number)
        self.features = features

    @property
    def fires_on(self) -> list[str]:
        """The up to 4 most frequent tokens at which it is strongest, in its kept contexts."""
        tokens = self.features.strongest.tokens(self.number)
        return [token_text(self.codes.tokenizer, i) for i in tokens]

    @property
    def _logits_or_reason(self) -> "tuple[LogitEffects | None, str]":
        """Its effects on the logits, or why they can't be measured."""
        try:
            return self.features.logits(self.number), ""
        except LanguageModelError as error:
            return None, str(error)

    def _heading(self) -> str:
        return f"{super().__repr__()}, largest activation {self.largest:.3g}"

    def __repr__(self) -> str:
        effects, why_not = self._logits_or_reason
        return "\n".join(
            [self._heading(), repr(self.contexts()), repr(effects) if effects else why_not]
        )

    def _repr_html_(self) -> str:
        effects, why_not = self._logits_or_reason
        return rendered(
            "features",
            "feature_card.html",
            heading=self._heading(),
            contexts=self.contexts(),
            effects=effects,
            why_not=why_not,
            visible=visible,
        )


class TokenEffect(NamedTuple):
    """A token, and what one unit of a feature's activation adds to its logit."""

    token: str
    logit: float


class LogitEffects(NamedTuple):
    """The tokens whose logits a feature's direction raises and lowers most; see `LogitLens`.

    Only the path through the final norm and the unembedding counts. Effects are known up to a positive factor, which all
    features and tokens of a language model share.
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


def documents_of(text: Text) -> Iterator[str]:
    """The documents of a text.

    Arguments:
        text: one of
            - a text: one document;
            - "embedded", or a file or folder, as a Path or a str. Its held-out part is read first, then what is for training;
            - an iterable of documents, e.g. a list, or `open_text("roneneldan/TinyStories")`. In a list, no text is taken
              for a path.

    Raises: TextError if there is no such file or folder.
    """
    if isinstance(text, str) and not _is_a_path(text):
        return iter([text])
    if isinstance(text, str | Path):
        return chain.from_iterable(open_text(str(text), split=s) for s in ("heldout", "train"))
    return iter(text)


def _is_a_path(text: str) -> bool:
    """Whether a str is a path or "embedded". Raises TextError for one that looks like a data set on the hub."""
    if text == "embedded" or os.path.exists(text):
        return True
    is_one_word = len(text.split()) == 1
    if is_one_word and "/" in text and not text.endswith(SUFFIXES):
        raise TextError(
            "there is no such file or folder",
            name="text",
            value=text,
            instead=f"for a data set on the hub, use open_text({text!r}); for this word itself, text={[text]!r}",
        )
    return is_one_word and text.endswith(SUFFIXES)  # `open_text` says that it isn't there
