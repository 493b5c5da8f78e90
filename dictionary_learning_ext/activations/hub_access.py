"""Whether the Hugging Face hub can be reached, found before a library tries for half a minute."""

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

logger = logging.getLogger(__name__)

_WAIT = "HF_HUB_ETAG_TIMEOUT"  # huggingface_hub's own wait for a first answer
_SECONDS = 2.0


def why_unreachable() -> str | None:
    """Why the hub can't be asked for anything, or None if it can.

    The first call takes two seconds at most, or HF_HUB_ETAG_TIMEOUT; the answer is kept for the
    process.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set, so the hub isn't asked"
    if _answers(constants.ENDPOINT):
        return None
    return f"there is no connection to the hub ({constants.ENDPOINT})"


@cache
def _answers(endpoint: str) -> bool:
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    seconds = float(constants.HF_HUB_ETAG_TIMEOUT) if _WAIT in os.environ else _SECONDS
    reached = threading.Event()

    def ask() -> None:
        try:
            get_session().head(endpoint, timeout=seconds)
            reached.set()
        except Exception as error:  # requests' or httpx's, by the version of huggingface_hub
            logger.debug("%s does not answer: %s", endpoint, error)

    # In a thread of its own: looking up a name has no time limit.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(seconds)
    return reached.is_set()


@contextmanager
def data_sets_from_the_cache() -> Iterator[None]:
    """Inside, `datasets` reads from its cache and asks the hub for nothing."""
    import datasets.config
    from huggingface_hub import constants

    modules: Any = (constants, datasets.config)
    before = [module.HF_HUB_OFFLINE for module in modules]
    for module in modules:
        module.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = value
