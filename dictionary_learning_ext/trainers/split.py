"""A dictionary split by features: what its processes send each other.

With N parts of F/N features and a batch of B x D, each process sends in a step:

    the reconstruction            B x D, summed over parts; the same again for AuxK
    the K largest                 K candidates per row and selection; the K largest of all N K are kept
    the gradient at b_dec         D, summed
    the norm, the KL and counts   one number each

The rest needs only a part's own features. The reconstruction's gradient is the same in all processes, so no gradient
is averaged.
"""

import warnings
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch as t
import torch.distributed as dist
import torch.distributed.checkpoint as checkpoint
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from ..config.run import most_parts
from ..errors import CheckpointError, first_line
from .parts import Part, Selection


class SplitPart(Part):
    """A split dictionary in a single part: all features, with the same noise as in several parts.

    Arguments:
        dict_size: F of the whole dictionary.
    """

    is_split = True
    index = 0
    """which of the parts this is"""

    def __init__(self, dict_size: int):
        self.dict_size = dict_size

    def features(self, dict_size: int) -> slice:
        size = dict_size // self.count
        return slice(self.index * size, (self.index + 1) * size)

    def start_step(self, step: int, seed: int | None, generator: t.Generator) -> None:
        assert seed is not None, "the parts have one"
        generator.manual_seed(seed_of(seed, step))

    def draw(
        self, like: t.Tensor, generator: t.Generator | None, fill: Callable[..., Any]
    ) -> t.Tensor:
        """See `Part.draw`. Features are divided into as many blocks as there can be parts, each with its own seed."""
        assert generator is not None, "it holds the seed"
        n_blocks, own = most_parts(self.dict_size), self.features(self.dict_size)
        width = self.dict_size // n_blocks
        blocks = range(own.start // width, own.stop // width)
        rows = like.numel() // like.shape[-1]
        drawn = like.new_empty(len(blocks), rows, width, requires_grad=False)
        of_block = t.Generator(like.device)
        for block, out in zip(blocks, drawn, strict=True):
            fill(out, generator=of_block.manual_seed(seed_of(generator.initial_seed(), block)))
        return drawn.transpose(0, 1).reshape(like.shape)


class MeshPart(SplitPart):
    """One of several parts of a split dictionary.

    Arguments:
        mesh: a 1-D mesh of the parts' processes, which must all call the same methods in the same order. Their number
            divides `most_parts(dict_size)`.
    """

    def __init__(self, dict_size: int, mesh: DeviceMesh):
        super().__init__(dict_size)
        self.mesh = mesh
        self.index, self.count = mesh.get_local_rank(), mesh.size()
        self.is_first = self.index == 0

    def sum(self, x: t.Tensor) -> t.Tensor:
        return self.together(Partial(), x).full_tensor()

    def mean(self, x: t.Tensor) -> t.Tensor:
        return self.sum(x) / self.count

    def max(self, x: t.Tensor) -> t.Tensor:
        numbers = x.long() if x.dtype == t.bool else x
        return self.together(Partial("max"), numbers).full_tensor().to(x.dtype)

    def any(self, flag: bool) -> bool:
        return bool(self.max(t.tensor(flag, device=self.mesh.device_type)))

    def shared(self, x: t.Tensor) -> t.Tensor:
        if not x.requires_grad:
            return x
        return self.together(Replicate(), x).to_local(grad_placements=[Partial()])

    def together(self, placement: Any, x: t.Tensor) -> DTensor:
        """The parts' tensors as one DTensor: their sum (Partial), their concatenation (Shard), or the same in all."""
        return DTensor.from_local(x, self.mesh, [placement], run_check=False)

    @t.no_grad()
    def select(self, indices: t.Tensor, keys: t.Tensor, k: int) -> Selection:
        """See `Part.select`. Among equal numbers, earlier parts come first, and within a part the order of its topk."""
        (rows, n), first = keys.shape, self.index * keys.shape[1]
        own_BK = keys.where(~keys.isnan(), t.inf)  # NaN ranks highest here, too
        of_parts_NBK = self.together(Shard(0), own_BK[None]).full_tensor()
        all_BM = of_parts_NBK.transpose(0, 1).reshape(rows, self.count * n)
        largest_BK = all_BM.topk(min(k, self.count * n), sorted=False).values
        lowest_B1 = largest_BK.amin(-1, keepdim=True)
        is_tied_BM, is_above_BM = all_BM == lowest_B1, all_BM > lowest_B1
        n_tied_B1 = k - is_above_BM.sum(-1, keepdim=True)
        is_kept_BM = is_above_BM | (is_tied_BM & (is_tied_BM.cumsum(-1) <= n_tied_B1))
        return Selection(indices, largest_BK, is_kept_BM[:, first : first + n])

    def own(self, name: str, whole: t.Tensor) -> t.Tensor:
        if name not in DIVIDED:
            return whole
        own = self.features(self.dict_size)
        return whole.narrow(DIVIDED[name], own.start, own.stop - own.start)

    def gathered(self, state: dict[str, t.Tensor]) -> dict[str, t.Tensor] | None:
        """See `Part.gathered`. Gathers tensor by tensor, so a device never holds more than one of them whole."""
        found = {}
        for name, own in state.items():
            whole = self._gathered(own, DIVIDED[name]) if name in DIVIDED else own
            if whole is not None:
                found[name] = whole.cpu()
        return found if self.is_first else None

    def _gathered(self, own: t.Tensor, dim: int) -> t.Tensor | None:
        own, whole, parts = own.detach().movedim(dim, 0).contiguous(), None, None
        if self.is_first:
            whole = own.new_empty(self.count * len(own), *own.shape[1:])
            parts = list(whole.chunk(self.count))
        dist.gather(own, parts, group=self.mesh.get_group(), group_dst=0)
        return None if whole is None else whole.movedim(0, dim)


def seed_of(*numbers: int) -> int:
    """A seed that is practically independent for different numbers."""
    return int.from_bytes(sha256(repr(numbers).encode()).digest()[:8], "big") >> 1


# --- all parts' weights, and resume points

DIVIDED = {
    "encoder.weight": 0,
    "encoder.bias": 0,
    "decoder.weight": 1,
    "log_var_encoder.weight": 0,
    "log_var_encoder.bias": 0,
}
"""The feature dimension of each tensor that is split. All other tensors are the same in all parts."""


def write_divided(trainer: Any, state: dict[str, Any], path: Path) -> dict[str, Any]:
    """Write the split tensors of a trainer's state to a folder: weights, what the optimiser keeps of each weight, and
    tokens since features fired. All parts' processes call it, and each writes its own part.

    Returns: the rest of the state, which is the same in all parts. It has None for each tensor that was written.

    Raises: CheckpointError, in all parts, if one can't write.
    """
    own, optimizer = {}, state["optimizer"]
    of_weights = {i: dict(each) for i, each in optimizer["state"].items()}
    rest = {"ae": dict(state["ae"]), "counts": dict(state["counts"])}
    rest = state | rest | {"optimizer": optimizer | {"state": of_weights}}
    for where, key, name, dim, _ in _places(trainer, rest):
        own[name] = where[key].movedim(dim, 0).contiguous()
        where[key] = None
    try:
        _call(checkpoint.save, trainer.part, own, path)
    except checkpoint.CheckpointException as error:
        raise CheckpointError(f"{path} can't be written ({_first_failure(error)})") from error
    return rest


def read_divided(trainer: Any, state: dict[str, Any], path: Path) -> None:
    """Read this part of what `write_divided` wrote, in any number of parts, and add it to the rest of the state.

    Raises: CheckpointError, in all parts, if a file is missing or damaged.
    """
    places = _places(trainer, state)
    own = {name: t.empty_like(like.movedim(dim, 0).contiguous()) for *_, name, dim, like in places}
    try:
        _call(checkpoint.load, trainer.part, own, path)
    except checkpoint.CheckpointException as error:
        failure = _first_failure(error)
        raise CheckpointError(f"{path}: incomplete or damaged resume point ({failure})") from error
    for where, key, name, dim, _ in places:
        where[key] = own[name].movedim(0, dim)


def _first_failure(error: checkpoint.CheckpointException) -> str:
    """The error of the first part that failed."""
    return first_line(next(iter(error.failures.values()))[0])


def _places(
    trainer: Any, state: dict[str, Any]
) -> list[tuple[dict[str, Any], str, str, int, t.Tensor]]:
    """For each split tensor of a trainer's state: the dict that holds it, its key there, its name in the files, its
    feature dimension, and a tensor of its shape."""
    places = []
    for i, (name, like) in enumerate(trainer.ae.named_parameters()):
        if (dim := DIVIDED.get(name)) is None:
            continue
        places.append((state["ae"], name, f"ae.{name}", dim, like.detach()))
        of_weight = state["optimizer"]["state"].get(i, {})
        for key, value in of_weight.items():
            if value is None or value.shape == like.shape:
                places.append((of_weight, key, f"{key}.{name}", dim, like.detach()))
    counts = "num_tokens_since_fired"
    return [*places, (state["counts"], counts, counts, 0, getattr(trainer, counts))]


def _call(
    save_or_load: Callable[..., Any], part: SplitPart, own: dict[str, t.Tensor], path: Path
) -> None:
    """Call torch's `save` or `load` with the tensors of all parts, given this part's."""
    if isinstance(part, MeshPart):
        whole = {name: part.together(Shard(0), x) for name, x in own.items()}
        save_or_load(whole, checkpoint_id=path, process_group=part.mesh.get_group())
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's: that there is one process
        save_or_load(own, checkpoint_id=path, no_dist=True)
