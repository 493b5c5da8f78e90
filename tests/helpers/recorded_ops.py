"""Which of torch's operations ran: how a test sees the form that a computation took."""

from collections import Counter

from torch.utils._python_dispatch import TorchDispatchMode


class RecordedOps(TorchDispatchMode):
    """Counts the operations of this thread within a `with`, by torch's own names, e.g. mm, topk."""

    def __init__(self):
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))

    @property
    def code_form(self) -> str:
        """How products with codes were taken: sparse, dense, or mixed (only `project` dense)."""
        is_sparse = any(name.startswith("_embedding_bag") for name in self.counts)
        is_dense = self.counts["put_"] + self.counts["scatter_"] > 0
        assert is_sparse != is_dense, f"both forms or none: {self.counts}"
        if not is_sparse:
            return "dense"
        return "sparse" if self.counts["_embedding_bag_per_sample_weights_backward"] else "mixed"
