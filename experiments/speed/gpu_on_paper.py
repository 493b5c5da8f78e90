"""A training step on an H100, on paper: operations, bytes, memory and milliseconds, counted on the meta device.

    python -m experiments.speed.gpu_on_paper bench     # it needs no GPU
    python -m experiments.speed.gpu_on_paper tables    # write the page's tables again

The trainers' own steps run on tensors without numbers, and a dispatch mode sees every operation. Each is taken
to run as fast as the GPU's peak allows: its FLOPs at the peak of their dtype, or its bytes at the memory's,
whichever takes longer. Nothing overlaps. So a real step takes longer.
"""

import argparse
import re
import time
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, NamedTuple
from unittest import mock

import torch as t
import torch.optim.adam as torchs_adam
from dictionary_learning.trainers import top_k as upstreams
from dictionary_learning.trainers.top_k import TopKTrainer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from dictionary_learning_ext import VariationalTopKTrainer
from dictionary_learning_ext.trainers import step as plain
from dictionary_learning_ext.trainers.optimizers import UnitNorm
from experiments import raw_results
from experiments.pages import table
from experiments.raw_results import RESULTS
from experiments.speed.timing import equations, trainer_arguments
from experiments.stages import Page, Stages

B, D, K = 4096, 2304, 64
SIZES = (65_536, 2**20)  # F
GPUS = 8
"""Over which a split dictionary is counted."""
BYTES_PER_SECOND, BYTES_BETWEEN_GPUS = 3.35e12, 450e9
"""The bandwidths of the H100 SXM's memory and of its NVLink in each direction, from NVIDIA's data sheet."""
PEAKS = {t.bfloat16: 989e12, t.float32: 495e12}
"""FLOP/s of the H100 SXM without structured sparsity, from NVIDIA's data sheet. float32 products are in TF32."""
STEP = 2000  # after the warm-ups
TOKENS = 10_000_000  # after as many a feature can be dead

SELECTING = equations(noise_on="selection", dtype="bfloat16")  # noise as `vsae train` has it
OURS, UPSTREAM = "vSAE, bf16", "upstream TopK, TF32"
SUBJECTS: dict[str, tuple[type, dict[str, Any]]] = {
    OURS: (VariationalTopKTrainer, SELECTING),
    "noise on both": (VariationalTopKTrainer, SELECTING | {"noise_on": "both"}),
    "noise on values": (VariationalTopKTrainer, SELECTING | {"noise_on": "values"}),
    "KL of selected features": (VariationalTopKTrainer, SELECTING | {"kl_scope": "selected"}),
    "without KL": (VariationalTopKTrainer, SELECTING | {"beta": 0.0}),
    "learned posterior": (
        VariationalTopKTrainer,
        equations(noise_on="selection", dtype="bfloat16", posterior="learned"),
    ),
    "rectified": (VariationalTopKTrainer, SELECTING | {"rectify": True}),
    UPSTREAM: (TopKTrainer, {}),
}
PARTS = {
    "encode": ((plain, "means"),),
    "noise and selection": ((plain, "draw_code"), (plain, "mean_selection")),
    "KL": ((plain, "mean_kl"),),
    "decode": ((plain, "decode"),),
    "AuxK": ((plain, "dead_features_loss"),),
    "backward": ((t.Tensor, "backward"),),
    "weight passes and Adam": (
        (UnitNorm, "step"),
        (upstreams, "remove_gradient_parallel_to_decoder_directions"),
        (t.nn.utils, "clip_grad_norm_"),
        (torchs_adam, "adam"),
        (upstreams, "set_decoder_norm_to_unit_norm"),
    ),
}
"""The functions that compute each part of our step. Upstream's are only told apart by the last two."""
REST = "the rest"


class Operation(NamedTuple):
    """What is counted of one."""

    flops: int
    bytes: int
    ms: float


class Count(TorchDispatchMode):
    """Counts within a `with`: operations by part, memory, and how often the host waits for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = K
        """What the host gets when it reads a number of the device, e.g. how many features are dead."""
        self.known: dict[int, int] = {}
        """What it gets from one tensor, by its id."""
        self.live = 0
        """Bytes."""
        self._part = REST
        self._held: set[int] = set()
        self.start()

    def start(self) -> None:
        """Count from here. Memory that is held stays counted."""
        self.parts: defaultdict[str, list[Operation]] = defaultdict(list)
        self.waits, self.peak = 0, self.live

    @contextmanager
    def by_part(self) -> Iterator[None]:
        """What runs within a function of PARTS is of its part; what that calls, too."""
        with ExitStack() as stack:
            for part, functions in PARTS.items():
                for owner, name in functions:
                    counted = self._of(part, getattr(owner, name))
                    stack.enter_context(mock.patch.object(owner, name, counted))
            yield

    def _of(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            outer = self._part
            self._part = part if outer == REST else outer
            try:
                return function(*arguments, **options)
            finally:
                self._part = outer

        return call

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, func.overloadpacket.__name__
        if name == "_local_scalar_dense" and args[0].is_meta:
            self.waits += 1
            return self.known.get(id(args[0]), self.answer)
        out = func(*args, **kwargs)
        made = [one for one in tree_leaves(out) if isinstance(one, t.Tensor) and one.is_meta]
        for one in made:
            self._hold(one.untyped_storage())
        if moved := _bytes_moved(func, name, args, kwargs, made):
            flops, dtype = 0, t.float32
            if func.overloadpacket in flop_registry:
                flops = flop_registry[func.overloadpacket](*args, **kwargs, out_val=out)
                dtype = args[-1].dtype
            seconds = max(flops / PEAKS[dtype], moved / BYTES_PER_SECOND)
            self.parts[self._part].append(Operation(flops, moved, 1000 * seconds))
        return out

    def _hold(self, storage: t.UntypedStorage) -> None:
        key, n_bytes = storage._cdata, storage.nbytes()
        if key in self._held:
            return
        self._held.add(key)
        self.live += n_bytes
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, key, n_bytes).atexit = False

    def _free(self, key: int, n_bytes: int) -> None:
        self._held.remove(key)
        self.live -= n_bytes


_PASSES = {"topk": 5}
"""How often an operation reads its input, if more than once. torch's topk on CUDA looks for the k-th largest float32
8 bits at a time, and reads a last time to collect (TensorTopK.cu, namespace mbtopk)."""
_BY_INDEX = {
    **{name: "index" for name in ("gather", "scatter", "scatter_", "scatter_add", "index_add_")},
    "_embedding_bag": "indices",
    "_embedding_bag_forward_only": "indices",
    "_embedding_bag_per_sample_weights_backward": "indices",
}
"""Operations that touch one argument only where another says, with the name of the other."""
_OVERWRITES = re.compile(r"(copy|fill|zero|normal)_$")
_MAKES = re.compile(r"(new_|empty|zeros|ones|full|arange|scalar_tensor)")
"""Operations that read nothing."""


def _bytes_moved(func: Any, name: str, args: Any, kwargs: Any, made: list[t.Tensor]) -> int:
    """What an operation reads and writes: each operand once, with the exceptions above. A view moves nothing."""
    arguments = func._schema.arguments
    values = dict(zip((one.name for one in arguments), args, strict=False)) | kwargs
    at, first, moved, written = _BY_INDEX.get(name), True, 0, False
    known = set()
    for argument in arguments:
        tensors = [
            one
            for one in tree_leaves(values.get(argument.name))
            if isinstance(one, t.Tensor) and one.is_meta
        ]
        writes = argument.alias_info is not None and argument.alias_info.is_write
        writes = writes and not (name == "_fused_adam_" and argument.name == "grads")
        for one in tensors:
            known.add(one.untyped_storage()._cdata)
            size = _distinct_bytes(one)
            if at is not None and first:
                row = one.shape[-1] if at == "indices" else 1
                size = min(size, values[at].numel() * row * one.itemsize)
            first = False
            reads = not (_MAKES.match(name) or (writes and _OVERWRITES.search(name)))
            moved += size * (reads * _PASSES.get(name, 1) + writes)
            written |= writes
    new = [one for one in made if one.untyped_storage()._cdata not in known]
    if not new and not written:
        return 0
    is_empty = name.startswith(("empty", "new_empty"))
    return 0 if is_empty else moved + sum(map(_distinct_bytes, new))


def _distinct_bytes(tensor: t.Tensor) -> int:
    """The bytes of the elements that lie in memory: one that a stride of 0 repeats counts once."""
    sizes = (n for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
    return t.Size(sizes).numel() * tensor.itemsize


class _CpuGenerator(t.Generator):
    """A generator on the CPU, whatever device is asked for: no number is drawn from it."""

    def __new__(cls, device: Any = None):
        return super().__new__(cls)


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Within it, trainers on the meta device take the path that they take on a GPU."""
    with ExitStack() as stack:
        for place in (
            "torch.optim.optimizer._get_fused_kernels_supported_devices",
            "torch.optim.optimizer._get_foreach_kernels_supported_devices",
            "torch.utils._foreach_utils._get_foreach_kernels_supported_devices",
        ):
            stack.enter_context(mock.patch(place, return_value=["meta"]))
        stack.enter_context(mock.patch.object(t, "Generator", _CpuGenerator))
        # Our steps turn autocast off, upstream's do without it; it doesn't know the meta device.
        stack.enter_context(mock.patch.object(t, "autocast", return_value=nullcontext()))
        stack.enter_context(mock.patch.object(t.Tensor, "is_cuda", True, create=True))
        yield


def counted(subject: str, dict_size: int, *, are_dead: bool = False) -> Count:
    """The step of a subject after its warm-ups.

    Arguments:
        are_dead: whether features are dead, so that AuxK works.
    """
    trainer_class, options = SUBJECTS[subject]
    with as_on_a_gpu(), Count() as count:
        arguments = trainer_arguments(D, dict_size, K) | {"device": "meta"}
        with t.device("meta"):  # upstream's trainer makes its weights on the default device
            trainer = trainer_class(**arguments, **options)
        count.answer = 2 * TOKENS if are_dead else 0
        count.known[id(trainer.ae.k)] = K  # which upstream reads in each step
        x_BD = t.empty(B, D, device="meta")
        trainer.update(STEP, x_BD)
        count.start()
        with count.by_part():
            trainer.update(STEP + 1, x_BD)
    return count


def summary(count: Count) -> dict[str, Any]:
    parts = {
        name: {
            "flops": sum(each.flops for each in operations),
            "bytes": sum(each.bytes for each in operations),
            "operations": len(operations),
            "ms": sum(each.ms for each in operations),
        }
        for name, operations in count.parts.items()
    }
    total = {
        what: sum(part[what] for part in parts.values())
        for what in ("flops", "bytes", "operations", "ms")
    }
    return total | {"peak": count.peak, "waits": count.waits, "parts": parts}


def measure(_: argparse.Namespace) -> None:
    began = time.monotonic()
    found = {
        name: {
            str(dict_size): {
                "none can be dead": summary(counted(name, dict_size)),
                "some are dead": summary(counted(name, dict_size, are_dead=True)),
                "share": summary(counted(name, dict_size // GPUS)),
            }
            for dict_size in SIZES
        }
        for name in SUBJECTS
    }
    raw_results.write(RESULTS / "gpu_on_paper.json", raw_results.about(began) | {"steps": found})


def ms_of_messages() -> float:
    """The time of a split step's messages: K candidates a row from each GPU to all, and the sum of the partial reconstructions."""
    candidates = (GPUS - 1) * B * K * (4 + 4)  # a value, and the feature's number
    partial = 2 * (GPUS - 1) / GPUS * B * D * 4
    return 1000 * (candidates + partial) / BYTES_BETWEEN_GPUS


def tables(content: dict[str, Any]) -> list[str]:
    lines = [f"{raw_results.about_line(content)}; B = {B:,}, D = {D:,}, k = {K}"]
    columns = ["ms", "more while features are dead", "GB at the peak", "operations", "waits"]
    for dict_size in map(str, SIZES):
        rows = {}
        for name, by_size in content["steps"].items():
            early, dead, share = by_size[dict_size].values()
            rows[name] = [
                f"{early['ms']:.1f}",
                f"{dead['ms'] - early['ms']:.1f}",
                f"{early['peak'] / 1e9:.1f}",
                f"{early['operations']}",
                f"{early['waits']}",
                *(
                    [f"{share['ms'] + ms_of_messages():.1f}", f"{share['peak'] / 1e9:.1f}"]
                    if name != UPSTREAM
                    else ["", ""]
                ),
            ]
        split = [f"split over {GPUS}: ms", "GB at the peak"]
        lines += ["", *table(f"F = {int(dict_size):,}", rows, [*columns, *split])]
    for dict_size in map(str, SIZES):
        parts = {
            part: [f"{of['ms']:.1f}", f"{of['bytes'] / 1e9:.1f}", f"{of['operations']}"]
            for part, of in content["steps"][OURS][dict_size]["none can be dead"]["parts"].items()
        }
        corner = f"{OURS}, F = {int(dict_size):,}"
        lines += ["", *table(corner, parts, ["ms", "GB moved", "operations"])]
    return lines


STAGES = Stages("speed.gpu_on_paper", {"bench": measure}, {"gpu_on_paper": Page(tables)})

if __name__ == "__main__":
    STAGES.run()
