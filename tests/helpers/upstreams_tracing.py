"""Upstream's own code traces a language model as nnsight 0.3 does. `make test-newest` has a newer one."""

import pytest
from nnsight import LanguageModel

_IS_MISSING, _REASON = (
    not hasattr(LanguageModel, "dispatch_model"),
    "upstream's tracing needs nnsight 0.3",
)
upstreams_tracing = pytest.mark.skipif(_IS_MISSING, reason=_REASON)


def require_upstreams_tracing():
    """Skip the rest of a test."""
    if _IS_MISSING:
        pytest.skip(_REASON)
