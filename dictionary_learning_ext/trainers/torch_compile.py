"""torch.compile in a process that has imported nnsight."""

from collections.abc import Iterator
from contextlib import contextmanager

import nnsight
from torch._subclasses.fake_tensor import FakeTensor


@contextmanager
def torchs_own_fake_tensors() -> Iterator[None]:
    """Within it, torch's FakeTensor is without nnsight 0.3's patches, which break torch.compile."""
    patcher = getattr(nnsight, "DEFAULT_PATCHER", None)  # later versions patch nothing
    patches = [] if patcher is None else [p for p in patcher.patches if p.parent is FakeTensor]
    for patch in patches:
        patch.restore()
    try:
        yield
    finally:
        for patch in patches:
            patch.patch()
