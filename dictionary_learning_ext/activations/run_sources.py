"""Which source a run's batches come from."""

from collections.abc import Callable, Iterable

from ..config.run import RunConfig
from ..config.synthetic_models import is_synthetic
from .cached_run import CachedSources
from .language_model_run import LanguageModelSources
from .sources import RunSources
from .synthetic_run import SyntheticSources
from .tokens import WHOLE, Share


def open_sources(
    run: RunConfig,
    hooks: Iterable[str],
    before_batch: Callable[[], None] | None = None,
    share: Share = WHOLE,
) -> RunSources:
    """The batches of every hook point of a run: of a language or synthetic model, or stored ones.

    Arguments:
        before_batch: called before each batch of the language model, or each read; it may raise.
        share: what this process reads, and how many share a batch.
    """
    if is_synthetic(run.model):
        kind = SyntheticSources
    else:
        kind = LanguageModelSources if run.activations is None else CachedSources
    return kind(run, hooks, before_batch, share)
