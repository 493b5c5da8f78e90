"""Counts what torch's operations would compute, move and hold on a GPU, on tensors without numbers.

`as_on_a_gpu` lets trainers take a GPU's path on the meta device. `Count` is a dispatch mode: it sees
every operation with its shapes, dtypes and memory, and none is computed.

An operation's FLOPs are by the formulas of torch.utils.flop_counter. Its bytes are those of its
operands, each read or written once: no cache keeps anything from one operation to the next, and none
reads anything twice. `_PASSES` and `_BY_INDEX` are the exceptions.
"""

import re
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch as t
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

Places = Mapping[str, Sequence[tuple[Any, str]]]
"""Where each part of a step is computed: (owner, name of its function)."""

LARGE = 2**20
"""Bytes of the smallest tensor that is counted as one."""

_PASSES = {"topk": lambda dtype: dtype.itemsize + 1}
"""How often an operation reads its input, where it is more than once. torch's topk on CUDA looks for the
k-th largest 8 bits at a time, and reads a last time to collect (TensorTopK.cu, namespace mbtopk)."""
_BY_INDEX = {
    name: ("self", "index")
    for name in ("gather", "take", "put_", "scatter_", "scatter_add_", "index_add_")
} | {
    name: ("weight", "indices")
    for name in ("embedding", "_embedding_bag", "_embedding_bag_per_sample_weights_backward")
}
"""Operations that touch a tensor only where another says, with the names of both: an element or a row each."""
_ONLY_READ = {"_fused_adam_": {"grads"}}
"""Arguments that a schema marks as written and the operation only reads."""
_OVERWRITES = re.compile(r"(copy|fill|zero|normal|uniform)_$")
_MAKES = re.compile(r"(new_|empty|zeros|ones|full|arange|scalar_tensor)")
"""Operations that read nothing."""


@dataclass
class Part:
    """What one part of a step takes."""

    flops: int = 0
    bytes: int = 0
    tensors: int = 0
    """new ones of at least `LARGE` bytes"""
    costs: list[tuple[int, t.dtype, int]] = field(default_factory=list)
    """of each operation: its FLOPs, the dtype they are in, and its bytes"""


@dataclass
class _Memory:
    """A storage, as the parts see it."""

    made_by: str
    bytes_from_outside: dict[str, int] = field(default_factory=dict)
    """by the part that reads them: what another part has made"""
    bytes_made: int = 0


class Count(TorchDispatchMode):
    """Counts within a `with`.

    Arguments:
        answer: what the host gets when it reads a number of the device, e.g. how many features are dead.
    """

    def __init__(self, answer: int = 0):
        super().__init__()
        self.answer = answer
        self.known: dict[int, int] = {}
        """what the host gets from one tensor, by its id"""
        self.live = self.peak = 0
        """bytes"""
        self._alive: dict[int, int] = {}
        self._within: list[str] = []
        self.start()

    def start(self) -> None:
        """Count from here. Memory that is held stays counted."""
        self.parts: defaultdict[str, Part] = defaultdict(Part)
        self.reads = 0
        """how often the host waited for a number of the device"""
        self.peak = self.live
        self._memory: dict[int, _Memory] = {}
        self._moved: defaultdict[str, int] = defaultdict(int)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What runs here is of this part. Within another it stays the other's, unless that selects."""
        outer = self._within[-1] if self._within else None
        self._within.append(name if outer in (None, SELECTION) else outer)
        try:
            yield
        finally:
            self._within.pop()

    @contextmanager
    def by_part(self, places: Places) -> Iterator[None]:
        """The functions of these places are of their parts."""
        with ExitStack() as stack:
            for name, functions in places.items():
                for owner, function in functions:
                    original = getattr(owner, function)
                    wrapped = self._within_part(name, original)
                    stack.enter_context(mock.patch.object(owner, function, wrapped))
            yield

    def _within_part(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            with self.part(name):
                return function(*arguments, **options)

        return call

    def bytes_between_parts(self) -> dict[str, int]:
        """Bytes of each part, if it were one kernel that keeps to itself what no other part reads.

        It reads once what others have made, and writes once what others read or what stays.
        """
        moved = defaultdict(int, self._moved)
        for key, memory in self._memory.items():
            self._leave(memory, moved, stays=key in self._alive)
        return dict(moved)

    @staticmethod
    def _leave(memory: _Memory, moved: defaultdict[str, int], *, stays: bool) -> None:
        for part, n_bytes in memory.bytes_from_outside.items():
            moved[part] += n_bytes
        if memory.bytes_made and (stays or memory.bytes_from_outside):
            moved[memory.made_by] += memory.bytes_made

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name == "_local_scalar_dense" and args[0].is_meta:
            self.reads += 1
            return self.known.get(id(args[0]), self.answer)
        if name == "index_put_" and any(i is not None and i.dtype == t.bool for i in args[1]):
            out = args[0]  # meta tensors can't tell how many a mask selects; nothing is computed
        else:
            out = func(*args, **kwargs)
        self._count(func, name, args, kwargs, out)
        return out

    def _count(self, func: Any, name: str, args: Any, kwargs: Any, out: Any) -> None:
        given = _by_argument(func, args, kwargs)
        read, written = _accesses(name, given, out)
        part_name = self._within[-1] if self._within else REST
        part = self.parts[part_name]
        for tensor, _ in written:
            storage = tensor.untyped_storage()
            if storage._cdata not in self._alive:
                self._hold(storage)
                part.tensors += storage.nbytes() >= LARGE
        moved = sum(n_bytes for _, n_bytes in [*read, *written])
        if moved == 0:
            return
        flops, dtype = 0, t.float32
        if func.overloadpacket in flop_registry:
            flops = flop_registry[func.overloadpacket](*args, **kwargs, out_val=out)
            dtype = args[-1].dtype
        elif name.startswith("_embedding_bag"):
            tensors = {argument: found[0] for argument, _, found in given if found}
            weight_FD = tensors["weight"]
            flops, dtype = 2 * tensors["indices"].numel() * weight_FD.shape[1], weight_FD.dtype
        part.flops += flops
        part.bytes += moved
        part.costs.append((flops, dtype, moved))
        self._note_parts(part_name, read, written)

    def _note_parts(self, part: str, read: "_Touched", written: "_Touched") -> None:
        for tensor, n_bytes in read:
            memory = self._of(tensor)
            if memory.made_by != part:
                former = memory.bytes_from_outside.get(part, 0)
                n_bytes = min(n_bytes, _distinct_bytes(tensor))
                memory.bytes_from_outside[part] = max(former, n_bytes)
        for tensor, n_bytes in written:
            memory, key = self._of(tensor), tensor.untyped_storage()._cdata
            if memory.made_by != part:
                self._leave(memory, self._moved, stays=memory.made_by != _BEFORE)
                memory = self._memory[key] = _Memory(part)
            memory.bytes_made = max(memory.bytes_made, n_bytes)

    def _of(self, tensor: t.Tensor) -> _Memory:
        key = tensor.untyped_storage()._cdata
        return self._memory.setdefault(key, _Memory(_BEFORE))

    def _hold(self, storage: t.UntypedStorage) -> None:
        key, n_bytes = storage._cdata, storage.nbytes()
        self._alive[key] = n_bytes
        self.live += n_bytes
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, key).atexit = False

    def _free(self, key: int) -> None:
        self.live -= self._alive.pop(key)
        if (memory := self._memory.pop(key, None)) is not None:
            self._leave(memory, self._moved, stays=False)


SELECTION = "noise and selection"
REST = "the rest"
_BEFORE = "before the step"
_Touched = list[tuple[t.Tensor, int]]


def _by_argument(func: Any, args: Any, kwargs: Any) -> list[tuple[str, bool, list[t.Tensor]]]:
    """Each argument's name, whether it is written, and its tensors on the device."""
    arguments = func._schema.arguments
    values = {argument.name: value for argument, value in zip(arguments, args, strict=False)}
    values |= kwargs
    found = []
    for argument in arguments:
        leaves = tree_leaves(values.get(argument.name))
        tensors = [leaf for leaf in leaves if isinstance(leaf, t.Tensor) and leaf.is_meta]
        is_written = argument.alias_info is not None and argument.alias_info.is_write
        found.append((argument.name, is_written, tensors))
    return found


def _accesses(
    name: str, given: list[tuple[str, bool, list[t.Tensor]]], out: Any
) -> tuple[_Touched, _Touched]:
    """What an operation reads and what it writes: tensors, with the bytes of each."""
    tensors = {argument: found for argument, _, found in given}
    passes = _PASSES.get(name, lambda _: 1)
    indexed, by = _BY_INDEX.get(name, (None, None))

    def touched(argument: str, tensor: t.Tensor) -> int:
        whole = _distinct_bytes(tensor)
        if argument != indexed or by is None:
            return whole
        row = tensor.shape[-1] if indexed == "weight" else 1
        return min(whole, tensors[by][0].numel() * row * tensor.itemsize)

    read: _Touched = []
    written: _Touched = []
    for argument, may_write, found in given:
        writes = may_write and argument not in _ONLY_READ.get(name, ())
        overwrites = writes and (
            argument == "out" or _OVERWRITES.match(name) or argument == indexed
        )
        reads = not overwrites or name.endswith("add_")
        for tensor in found:
            if writes:
                written.append((tensor, touched(argument, tensor)))
            if reads and not _MAKES.match(name):
                read.append((tensor, touched(argument, tensor) * passes(tensor.dtype)))
    inputs = {tensor.untyped_storage()._cdata for _, _, found in given for tensor in found}
    made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, t.Tensor) and leaf.is_meta]
    new = [tensor for tensor in made if tensor.untyped_storage()._cdata not in inputs]
    if not written and not new:  # a view
        return [], []
    is_empty = name.startswith(("empty", "new_empty"))
    written += [(tensor, 0 if is_empty else _distinct_bytes(tensor)) for tensor in new]
    return read, written


def _distinct_bytes(tensor: t.Tensor) -> int:
    """Of its elements in memory; one that is repeated by a stride of 0 counts once."""
    sizes = (n for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
    return t.Size(sizes).numel() * tensor.itemsize


class _CpuGenerator(t.Generator):
    """A generator on the CPU, whatever device is asked for: no number is drawn from it."""

    def __new__(cls, device: Any = None):
        return super().__new__(cls)


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Within it, trainers on the meta device take the path that they take on a GPU."""
    devices = {
        f"torch.optim.optimizer._get_{kind}_kernels_supported_devices": ["meta"]
        for kind in ("fused", "foreach")
    }
    with ExitStack() as stack:
        for place, found in devices.items():
            stack.enter_context(mock.patch(place, return_value=found))
        stack.enter_context(mock.patch.object(t, "Generator", _CpuGenerator))
        # Our steps turn autocast off, upstream's do without it; it doesn't know the meta device.
        stack.enter_context(mock.patch.object(t, "autocast", return_value=nullcontext()))
        stack.enter_context(mock.patch.object(t.Tensor, "is_cuda", True, create=True))
        yield
