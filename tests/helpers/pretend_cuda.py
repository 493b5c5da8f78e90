"""A stand-in for CUDA devices, on a machine without any: it finds what would fail or wait on a real one.

    with PretendCuda(devices=2) as cuda:
        trainer = built("vsae_top_k", device="cuda:1")
        trainer.update(0, x.to("cuda:1"))
        cuda.syncs.clear()
        trainer.update(1, x)      # raises if x is still on the CPU
        assert not cuda.syncs     # each place where the host waited for the device

A tensor of a pretended device is an ordinary one of the CPU, whose storage is marked with the device. It says that
it is on the device, and so does all that is computed from it. So numbers and shapes are real, and resume points,
reports and language models work.

Caught: operations on tensors, or with a generator, of different devices (RuntimeError); numpy arrays of a tensor that
is not on the CPU (TypeError); operations for which the host waits (`PretendCuda.syncs`).

Not shown: speed, memory, streams, kernels that CUDA lacks, autocast on a device, and what happens in other threads.
An explicit device="cpu" in `new_zeros`, `zeros_like` and their like is taken for the tensor's own device, because
torch passes it on in the same way.

Leaving the `with` undoes it all, but for one thing: torch then takes CUDA for initialised. So the error of a later
`torch.empty(0, device="cuda")` is a RuntimeError instead of an AssertionError.
"""

import sys
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock
from weakref import WeakValueDictionary

import torch
from torch import Tensor, UntypedStorage
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CPU = torch.device("cpu")
_DEVICE = torch.Tensor.device  # the getter that torch defines
_TO, _TOLIST, _NUMPY = torch.Tensor.to, torch.Tensor.tolist, torch.Tensor.numpy
_GENERATOR, _TENSOR, _CLONE = torch.Generator, torch.tensor, torch.UntypedStorage.clone
_PARSE_TO = torch._C._nn._parse_to
_PACKAGE = "dictionary_learning"
"""How the packages begin whose lines `PretendCuda.syncs` names: ours and upstream's."""

_WAITING = {
    *("_local_scalar_dense", "nonzero", "masked_select", "equal", "bincount", "repeat_interleave"),
    *("_unique2", "unique_dim", "unique_consecutive", "linalg_eigh", "_linalg_eigh"),
}
"""The operations for which the host waits: their results, or the results' sizes, are numbers on the host."""
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
"""Those that take indices from the CPU, too. Masks among the indices are counted, and the host waits for that."""
_COPYING = {"copy_", "_to_copy"}
"""Those whose tensors may be on different devices."""
_TAKES_NO_SCALARS = {"cat", "stack", "_fused_adam_"}
"""Those that take no 0-dim tensor of the CPU among a device's, as others do."""


class PretendCuda(TorchDispatchMode):
    """Within a `with`, this process has some CUDA devices.

    Arguments:
        devices: how many.

    Attributes:
        syncs: what the host waited for: an operation and the lines of the package that led to it.
    """

    def __init__(self, devices: int = 1):
        super().__init__()
        self.syncs: list[str] = []
        self._n_devices, self._current = devices, 0
        self._patches = ExitStack()
        self._generators = WeakValueDictionary()
        """Those made here, by their address: operations get another Python object for the same one."""

    def __enter__(self) -> "PretendCuda":
        cuda, patches = torch.cuda, self._patches
        _device_constructors()  # which torch collects once: not what replaces them here
        of_cuda = {
            "_lazy_init": lambda: None,
            "is_available": lambda: True,
            "device_count": lambda: self._n_devices,
            "current_device": lambda: self._current,
            "set_device": self._set_device,
            "mem_get_info": lambda device=None: (79 * 2**30, 80 * 2**30),
            "is_bf16_supported": lambda *_, **__: True,
        }
        of_tensors = {
            "device": property(_device_of),
            "is_cuda": property(lambda x: x.device.type == "cuda"),
            "is_cpu": property(lambda x: x.device.type == "cpu"),
            "get_device": lambda x: -1 if x.device.index is None else x.device.index,
            "to": lambda x, *args, **options: self._to(x, *args, **options),
            "cpu": lambda x, **_: x.to("cpu"),
            "cuda": lambda x, device="cuda", **options: x.to(device, **options),
            "tolist": lambda x: _TOLIST(x.to("cpu")),
            "numpy": _to_numpy,
            "__array__": _to_numpy,
        }
        for owner, replaced in ((cuda, of_cuda), (torch.Tensor, of_tensors)):
            for name, value in replaced.items():
                patches.enter_context(mock.patch.object(owner, name, value, create=True))
        patches.enter_context(mock.patch.object(torch, "Generator", self._generator_class()))
        patches.enter_context(mock.patch.object(torch, "tensor", self._new_tensor))
        patches.enter_context(mock.patch.object(torch._C._nn, "_parse_to", _parsed_to))
        patches.enter_context(mock.patch.object(torch.UntypedStorage, "clone", _cloned))
        for module in map(import_module, ("torch.optim.optimizer", "torch.nn.utils.clip_grad")):
            name = "_group_tensors_by_device_and_dtype"
            grouped = _by_marked_device(getattr(module, name))
            patches.enter_context(mock.patch.object(module, name, grouped))
        registry = torch.serialization._package_registry
        patches.enter_context(
            mock.patch.object(torch.serialization, "_package_registry", [*registry])
        )
        torch.serialization.register_package(0, _marked_as, self._restored)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._patches.close()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = func.overloadpacket.__name__
        leaves = tree_leaves((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        on_cuda = {x.device for x in tensors if x.is_cuda}
        asked, device = kwargs.get("device"), next(iter(on_cuda), CPU)
        if asked is not None and asked.type == "cuda":
            device, kwargs["device"] = self._numbered(asked), CPU
        if device != CPU or any(isinstance(leaf, _GENERATOR) for leaf in leaves):
            self._require_one_device(name, device, on_cuda, leaves)
            self._note_waiting(name, args, kwargs, tensors, device)
        out = func(*args, **kwargs)
        if device != CPU:
            own = {x.untyped_storage()._cdata for x in tensors}
            for result in tree_leaves(out):
                if isinstance(result, Tensor) and result.untyped_storage()._cdata not in own:
                    _mark(result.untyped_storage(), device)
        return out

    def _require_one_device(
        self, name: str, device: torch.device, on_cuda: set[torch.device], leaves: list[Any]
    ) -> None:
        """Raise a RuntimeError, as CUDA does, where tensors and generators are on several devices."""
        for generator in leaves:
            if isinstance(generator, _GENERATOR):
                marked = self._generators.get(generator._cdata, generator).device
                if marked != device:
                    raise RuntimeError(
                        f"{name}: the generator is on {marked}, and the tensors on {device}: {_lines()}"
                    )
        if name in _COPYING:
            return
        of_cpu = [x for x in leaves if isinstance(x, Tensor) and not x.is_cuda]
        if name not in _TAKES_NO_SCALARS:
            of_cpu = [x for x in of_cpu if x.dim()]
        are_indices = name in _INDEXING and leaves[0].is_cuda
        if len(on_cuda) > 1 or (on_cuda and of_cpu and not are_indices):
            found = sorted({*map(str, on_cuda), *(["cpu"] if of_cpu else [])})
            shapes = [tuple(x.shape) for x in of_cpu]
            raise RuntimeError(
                f"{name}: expected all tensors on one device, found {' and '.join(found)} (on the CPU: "
                f"{shapes}): {_lines()}"
            )

    def _note_waiting(
        self,
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tensors: list[Tensor],
        device: torch.device,
    ) -> None:
        waits = name in _WAITING and kwargs.get("output_size") is None
        if name in _INDEXING:
            indices = [index for index in args[1] if index is not None]
            is_masked = [index.dtype in (torch.bool, torch.uint8) for index in indices]
            fills = name != "index" and all(is_masked) and args[2].numel() == 1  # as masked_fill
            waits = (any(is_masked) and not fills) or not all(index.is_cuda for index in indices)
        elif name == "copy_":
            waits = self._waits_for_copy(args[1].device, args[0].device, len(args) > 2 and args[2])
        elif name == "_to_copy":
            waits = self._waits_for_copy(tensors[0].device, device, kwargs.get("non_blocking"))
        if waits:
            self.syncs.append(f"{name}: {_lines()}")

    def _waits_for_copy(
        self, source: torch.device, target: torch.device, non_blocking: Any
    ) -> bool:
        """A copy within a device, between two, or (if so asked) to a device leaves the host free."""
        return source != target and (target == CPU or (source == CPU and not non_blocking))

    # --- what replaces torch's own

    def _to(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        copy = options.pop("copy", False)
        device, dtype, non_blocking, memory_format = _parsed_to(*args, **options)
        target = x.device if device is None else self._numbered(device)
        if target == x.device or x.is_meta or target.type not in ("cpu", "cuda"):
            moves = {} if target == x.device else {"device": target}
            moves |= {} if memory_format is None else {"memory_format": memory_format}
            return _TO(x, dtype=dtype or x.dtype, copy=copy, **moves)
        if self._waits_for_copy(x.device, target, non_blocking):
            self.syncs.append(f"to {target}: {_lines()}")
        return _Moved.apply(_TO(x, dtype=dtype or x.dtype), target)  # pyright: ignore

    def _new_tensor(self, data: Any, *, device: Any = None, **options: Any) -> Tensor:
        made = _TENSOR(data, **options)
        return made if device is None else made.to(device)

    def _generator_class(self) -> type:
        numbered, generators = self._numbered, self._generators

        class Generator(_GENERATOR):
            """A generator of the CPU that says which device it is of."""

            def __new__(cls, device: Any = "cpu") -> Any:
                made = super().__new__(cls, "cpu")
                made.marked = numbered(device)
                generators[made._cdata] = made
                return made

            @property
            def device(self) -> torch.device:
                return self.marked

        return Generator

    def _restored(self, storage: UntypedStorage, location: str) -> UntypedStorage | None:
        """What `torch.load` makes of a storage that was on a device, or is wanted there."""
        if location.startswith("cuda"):
            _mark(storage, self._numbered(location))
            return storage
        return None

    def _set_device(self, device: Any) -> None:
        self._current = self._numbered(device if isinstance(device, int) else str(device)).index

    def _numbered(self, device: Any) -> torch.device:
        """A device as a tensor names it. Raises a RuntimeError if there is none of its number."""
        device = torch.device(device)
        if device.type != "cuda":
            return device
        index = self._current if device.index is None else device.index
        if index >= self._n_devices:
            raise RuntimeError(f"CUDA error: invalid device ordinal {index}")
        return torch.device("cuda", index)


class _Moved(torch.autograd.Function):
    """A copy on another device. Its gradient goes back."""

    @staticmethod
    def forward(ctx, x: Tensor, target: torch.device) -> Tensor:  # pyright: ignore
        ctx.source = x.device
        copy = x.clone()
        _mark(copy.untyped_storage(), target)
        return copy

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore
        return grad.to(ctx.source), None


def _mark(storage: UntypedStorage, device: torch.device) -> None:
    storage.pretended = device  # pyright: ignore


def _device_of(x: Tensor) -> torch.device:
    device = _DEVICE.__get__(x)
    if device.type != "cpu" or x.layout != torch.strided:
        return device
    return getattr(x.untyped_storage(), "pretended", device)


def _parsed_to(*args: Any, **options: Any) -> Any:
    """What the arguments of `to` ask for, of a tensor or of a module."""
    if args and isinstance(args[0], Tensor):
        args = (args[0].device, args[0].dtype, *args[1:])
    return _PARSE_TO(*args, **options)


def _to_numpy(x: Tensor, *args: Any, **options: Any) -> Any:
    if x.is_cuda:
        raise TypeError(f"can't convert a tensor of {x.device} to numpy: {_lines()}")
    return _NUMPY(x) if not args else _NUMPY(x).astype(args[0])


def _cloned(storage: UntypedStorage) -> UntypedStorage:
    """For deepcopy, which copies a tensor's storage."""
    clone = _CLONE(storage)
    if marked := getattr(storage, "pretended", None):
        _mark(clone, marked)
    return clone


def _marked_as(storage: UntypedStorage) -> str | None:
    """Where `torch.save` says that a storage is."""
    marked = getattr(storage, "pretended", CPU)
    return None if marked == CPU else str(marked)


def _by_marked_device(group: Any) -> Any:
    """Torch's grouping of tensors for optimisers and clipping, by what the tensors say."""

    def grouped(lists: Any, with_indices: bool = False) -> Any:
        return {
            (next(x.device for x in tensors[0] if x is not None), dtype): (tensors, indices)
            for (_, dtype), (tensors, indices) in group(lists, with_indices).items()
        }

    return grouped


def _lines() -> str:
    """The lines of our package, or of upstream's, that led here, the innermost first; at most three."""
    found, frame = [], sys._getframe(1)
    while frame is not None and len(found) < 3:
        if frame.f_globals.get("__name__", "").startswith(_PACKAGE):
            found.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}")
        frame = frame.f_back
    return " < ".join(found) or "no line of the package"
