"""A dictionary that is split by features: what the processes that hold its parts tell each other.

With N parts of F/N features, each process sends in a step, B rows of D:

    the reconstruction    B x D, added over the parts; AuxK's as much again
    the K largest         K candidates a row, each time features are chosen; the K largest of the N K are kept
    the gradient at b_dec D, added
    the norm, the KL and counts   a number each

All else needs only the part's own features. The gradient of the reconstruction is the same everywhere, so none is averaged.
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

from ..config.checks import require
from ..config.run import most_parts
from ..errors import CheckpointError, first_line
from .parts import Part, Selection


class SplitPart(Part):
    """The only part of a split dictionary: all features, with the noise that they get in several parts.

    Arguments:
        dict_size: F, of the whole dictionary.
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
        """See `Part.draw`. Each of the most parts that there can be has numbers of its own."""
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
    """One of several parts.

    Arguments:
        mesh: the processes that hold them, in one dimension. They call the same methods in the same order.
    """

    def __init__(self, dict_size: int, mesh: DeviceMesh):
        super().__init__(dict_size)
        self.mesh = mesh
        self.index, self.count = mesh.get_local_rank(), mesh.size()
        self.is_first = self.index == 0
        most = most_parts(dict_size)
        expected = f"a power of two, at most {most} as dict_size={dict_size!r}"
        require(most % self.count == 0, "split", self.count, expected)

    def sum(self, x: t.Tensor) -> t.Tensor:
        return self.together(Partial(), x).full_tensor()

    def mean(self, x: t.Tensor) -> t.Tensor:
        return self.sum(x) / self.count

    def max(self, x: t.Tensor) -> t.Tensor:
        numbers = x.long() if x.dtype == t.bool else x
        return self.together(Partial("max"), numbers).full_tensor().to(x.dtype)

    def any(self, flag: bool) -> bool:
        return bool(self.max(t.tensor(flag, device=self.mesh.device_type)))

    def used(self, x: t.Tensor) -> t.Tensor:
        if not x.requires_grad:
            return x
        return self.together(Replicate(), x).to_local(grad_placements=[Partial()])

    def together(self, placement: Any, x: t.Tensor) -> DTensor:
        """What the parts have together: a sum of these (Partial), these one after the other (Shard), or the same."""
        return DTensor.from_local(x, self.mesh, [placement], run_check=False)

    @t.no_grad()
    def select(self, indices: t.Tensor, compared: t.Tensor, k: int) -> Selection:
        """See `Part.select`. Of equal numbers the first part's are kept, and within a part those that its topk puts first."""
        (rows, n), first = compared.shape, self.index * compared.shape[1]
        own_BK = compared.where(~compared.isnan(), t.inf)  # NaN is the largest here, too
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
        """See `Part.gathered`. One tensor after the other is gathered, so the device holds one of them whole."""
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
    """A seed that is as good as independent for any other numbers."""
    return int.from_bytes(sha256(repr(numbers).encode()).digest()[:8], "big") >> 1


# --- all parts' weights, and resume points

DIVIDED = {
    "encoder.weight": 0,
    "encoder.bias": 0,
    "decoder.weight": 1,
    "log_var_encoder.weight": 0,
    "log_var_encoder.bias": 0,
}
"""The dimension of features of the tensors of a dictionary that are divided. The others are the same in all parts."""


def write_divided(trainer: Any, state: dict[str, Any], path: Path) -> dict[str, Any]:
    """Write what is divided of a `trainer_state` to a folder: weights, Adam's averages and the tokens since features
    fired. Every part's process calls it, and each writes its own.

    Returns: the rest of the state, the same in all parts.

    Raises: CheckpointError, in all parts, if a disk refuses.
    """
    own, adam = {}, state["optimizer"]
    averages = {i: dict(each) for i, each in adam["state"].items()}
    rest = {"ae": dict(state["ae"]), "attributes": dict(state["attributes"])}
    rest = state | rest | {"optimizer": adam | {"state": averages}}
    for where, key, name, dim, _ in _places(trainer, rest):
        own[name] = where.pop(key).movedim(dim, 0).contiguous()
    try:
        _call(checkpoint.save, trainer.part, own, path)
    except checkpoint.CheckpointException as error:
        raise CheckpointError(f"{path} can't be written ({_first_failure(error)})") from error
    return rest


def read_divided(trainer: Any, state: dict[str, Any], path: Path) -> None:
    """Put into the rest of a trainer's state what `write_divided` wrote to a folder, in any number of parts.

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
    """What went wrong in the first of the parts where something did."""
    return first_line(next(iter(error.failures.values()))[0])


def _places(
    trainer: Any, state: dict[str, Any]
) -> list[tuple[dict[str, Any], str, str, int, t.Tensor]]:
    """Where a trainer's state has each divided tensor: its dict and the key there, its name among all, the dimension of
    features, and a tensor like it."""
    places = []
    for i, (name, like) in enumerate(trainer.ae.named_parameters()):
        if (dim := DIVIDED.get(name)) is None:
            continue
        places.append((state["ae"], name, f"ae.{name}", dim, like.detach()))
        if (averages := state["optimizer"]["state"].get(i)) is not None:
            for key in ("exp_avg", "exp_avg_sq"):
                places.append((averages, key, f"{key}.{name}", dim, like.detach()))
    counts = "num_tokens_since_fired"
    return [*places, (state["attributes"], counts, counts, 0, getattr(trainer, counts))]


def _call(
    save_or_load: Callable[..., Any], part: SplitPart, own: dict[str, t.Tensor], path: Path
) -> None:
    """Save or load the tensors of all parts, of which these are here."""
    if isinstance(part, MeshPart):
        whole = {name: part.together(Shard(0), x) for name, x in own.items()}
        save_or_load(whole, checkpoint_id=path, process_group=part.mesh.get_group())
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's: that there is one process
        save_or_load(own, checkpoint_id=path, no_dist=True)
