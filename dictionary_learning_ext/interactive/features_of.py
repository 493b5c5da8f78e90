"""Which tokens excite a feature, in Python: what a report measures, without the page.

features = features_of("runs/NAME")
features.top(17)                  # the contexts in which it is strongest
features[17]                      # a card in a notebook
features.search(" Emma")          # features that fire on a token
"""

from collections.abc import Iterator
from pathlib import Path

from nnsight import LanguageModel

from ..activations.inputs import ContextBatch, first_tokens, with_activations
from ..activations.whole_documents import WholeDocuments
from ..config.checks import require
from ..config.run import RunConfig
from ..errors import Setting, TextError
from ..features.collector import FeatureCollector
from ..report.sinks import SinkFinder
from .feature_set import Features
from .given_text import Text, documents_of
from .opening import SAE, Hook, OpenedSAE, open_sae


def features_of(
    sae: SAE,
    lm: LanguageModel | str | Path | None = None,
    text: Text | None = None,
    *,
    hook: Hook | None = None,
    tokens: int = RunConfig.eval_tokens,
    contexts: int = 8,
    ctx_len: int | None = None,
    device: str = "cpu",
    seed: int = 0,
) -> Features:
    """Measure what the features of an SAE do on a text.

    Tokens that the run left out of its training are left out, and so are attention sinks (see
    `SinkFinder`), as in a report.

    Arguments:
        sae: a dictionary that takes raw activations, as `load_dictionary` returns it, or a run folder.
        lm: nnsight's language model, or its name or folder. None: the run folder's.
        text: None is the run folder's held-out text, in the contexts that training has. Otherwise a
            text itself, a list of them, or where to read them, see `documents_of`. Each document is
            read whole, in contexts of its own.
        hook: a hook point or its name. None: the run folder's.
        tokens: at most how many are measured.
        contexts: at most how many are kept of each feature, for `top` and `search`.
        ctx_len: tokens in a context. None: the run's, or 128.
        device: where to load what isn't loaded yet.
        seed: of the contexts that are drawn at random.

    Raises: a UserError that says what to change.
    """
    require(contexts >= 1, "contexts", contexts, "at least 1")
    if text is None and not isinstance(sae, str | Path):
        raise TextError(
            "no text: a dictionary doesn't say which it was trained on",
            instead=("give a text, e.g. ", Setting("text", "embedded")),
        )
    opened = open_sae(sae, lm, hook, device=device, ctx_len=ctx_len, stored=text is None)
    dictionary = opened.dictionary
    collector = FeatureCollector(dictionary, tokens, top=contexts, profile_tokens=1, seed=seed)
    finder = SinkFinder(opened.language_model.tokenizer)
    measured = 0
    for batch in _batches(opened, text, tokens):
        batch = finder.without_sinks(batch)
        measured += int(batch.wanted_BL.sum())
        collector.add(batch)
    if not measured:
        raise TextError(
            "the text has no token to measure on: expected at least one; give a longer text"
        )
    statistics = collector.statistics()
    return Features(opened, statistics, finder.sinks())


def _batches(opened: OpenedSAE, text: Text | None, tokens: int) -> Iterator[ContextBatch]:
    """Contexts of the text given, or else of the run's held-out text."""
    _, model, hook, run, inputs = opened
    if text is None:
        return inputs.contexts(hook.name, "heldout", tokens)
    documents = documents_of(text)
    stream = WholeDocuments(documents, model.tokenizer, run.ctx_len, packing=run.text_packing)
    return first_tokens(with_activations(stream, run, model, hook), tokens)
