"""Upstream's own code traces a language model as nnsight 0.3 does. `make test-newest` has a newer one."""

import pytest
from nnsight import LanguageModel

upstreams_tracing = pytest.mark.skipif(
    not hasattr(LanguageModel, "dispatch_model"), reason="upstream's tracing needs nnsight 0.3"
)
