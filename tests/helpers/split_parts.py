"""What tests/trainers/test_split.py runs in four processes.

Each of four processes holds a part of a dictionary, and beside it the whole one, which gets the same noise. Then each
pair of them holds two parts, and the pairs share the cases out. The trainers' states at step STOPPED are left in a
folder.
"""

import logging
from collections import Counter
from hashlib import sha256

import torch as t
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.utils._python_dispatch import TorchDispatchMode
from variational_trainers import F, data, make_trainer

from dictionary_learning_ext.trainers.parts import WHOLE
from dictionary_learning_ext.trainers.probabilistic_top_k import ProbabilisticTopKTrainer
from dictionary_learning_ext.trainers.split import (
    DIVIDED,
    MeshPart,
    SplitPart,
    read_divided,
    write_divided,
)

STEPS, STOPPED = 12, 5
K = 4

CASES = {
    "-".join(options): dict(zip(("posterior", "noise_on", "kl_scope"), options, strict=True))
    for options in (
        ("fixed", "both", "all"),
        ("fixed", "values", "selected"),
        ("fixed", "selection", "all"),
        ("learned", "both", "all"),
        ("learned", "both", "selected"),
        ("learned", "values", "all"),
        ("learned", "selection", "selected"),
    )
}
CASES |= {
    "point": {"posterior": "point", "rectify": True},
    "learned, rectified": {"posterior": "learned", "rectify": True, "noise_on": "values"},
    "by magnitude": {"select_by": "magnitude"},
    "fading": {"noise_on": "selection", "noise_anneal_steps": 9},
    "k above a part's features": {"noise_on": "selection", "k": 30},
    "bf16": {"dtype": "bfloat16", "noise_on": "selection"},
    "probabilistic": {"cls": ProbabilisticTopKTrainer},
}
FEW = ("fixed-both-all", "fading", "bf16", "probabilistic")
"""The cases of four parts, and of two in float32."""


def trainer_of(case, part=WHOLE, dtype=t.float32):
    """A trainer for which features die and gradients are clipped."""
    options = {"dead_feature_threshold": 60, "lr": 1e-2, "k": K} | CASES[case]
    if "cls" not in options:
        options.setdefault("beta", 0.1)
    trainer = make_trainer(part=part, **options)
    return trainer if dtype == t.float32 else in_float64(trainer)


def in_float64(trainer):
    trainer.ae.double()
    return trainer


def furthest(own, whole):
    """The largest difference of a part's weights from those of the whole dictionary's state dict."""
    return max(
        float((value.double() - own.part.own(name, whole[name]).double()).abs().max())
        for name, value in own.ae.state_dict().items()
    )


def shared_digest(trainer):
    """A hash of all that must be bit-identical in all parts."""
    state = trainer.state_dict()
    values = [v for n, v in state["ae"].items() if n not in DIVIDED]
    values += [trainer.dead_features, trainer.optimizer.skipped_steps]
    values += [trainer.optimizer.state[trainer.ae.b_dec][n] for n in ("exp_avg", "exp_avg_sq")]
    return sha256(repr([v.detach().numpy().tobytes() for v in values]).encode()).hexdigest()


def watched_norms(optimizer):
    """A list to which each step adds the norm of its gradients."""
    norms, norm_of = [], optimizer._gradient_norm

    def watched():
        norm = norm_of()
        norms.append(float(norm))
        return norm

    optimizer._gradient_norm = watched
    return norms


def equality(mesh, dtype, cases):
    """STEPS steps of each case, beside the whole dictionary's."""
    part, seen = MeshPart(F, mesh), {}
    for case in cases:
        if dtype == t.float64 and case == "bf16":
            continue
        whole, own = (trainer_of(case, one, dtype) for one in (SplitPart(F), part))
        norms, dead, losses = watched_norms(whole.optimizer), 0, 0.0
        for step in range(STEPS):
            x = data(seed=step, dtype=dtype)
            losses = max(losses, abs(float(whole.update(step, x) - own.update(step, x))))
            dead = max(dead, int(whole.dead_features))
        x = data(seed=STEPS, dtype=dtype)
        logged = [trainer.metrics(STEPS, x) for trainer in (whole, own)]
        seen[case] = {
            "weights": furthest(own, whole.ae.state_dict()),
            "loss": losses,
            "metrics": max(abs(a - b) for a, b in zip(*(m.values() for m in logged), strict=True)),
            "fired": t.equal(
                own.num_tokens_since_fired, whole.num_tokens_since_fired[part.features(F)]
            ),
            "dead": dead,
            "clipped": max(norms) > 1,
            "shared": shared_digest(own),
        }
    return seen


def start(mesh):
    """Whether the initial weights are bit-identical to those of a trainer without parts."""
    part = MeshPart(F, mesh)
    own, plain = trainer_of("point", part), trainer_of("point")
    state = plain.ae.state_dict()
    return all(t.equal(v, part.own(n, state[n])) for n, v in own.ae.state_dict().items())


def selection(mesh):
    """The K largest of rows with many equal numbers and NaN. Returns this part's features that are kept."""
    part = MeshPart(F, mesh)
    numbers_BF = t.randint(6, (50, F), generator=t.Generator().manual_seed(1)).float()
    numbers_BF[0, [3, F - 2]] = t.nan
    numbers_BF[1] = -t.inf
    own = numbers_BF[:, part.features(F)]
    found = own.topk(K, sorted=False)
    kept = part.select(found.indices, found.values, K)
    features = kept.indices + part.features(F).start
    return [row[is_kept].tolist() for row, is_kept in zip(features, kept.is_kept, strict=True)]


def not_finite(mesh):
    """A batch with NaN. Returns how many steps were skipped, and whether the weights stayed."""
    own = trainer_of("fixed-both-all", MeshPart(F, mesh))
    before = own.ae.encoder.weight.clone()
    own.update(0, data().masked_fill(t.arange(8) == 3, t.nan))
    return [int(own.optimizer.skipped_steps), t.equal(own.ae.encoder.weight, before)]


class Sent(TorchDispatchMode):
    """Counts the bytes that this process hands to each kind of collective."""

    def __init__(self):
        super().__init__()
        self.bytes = Counter()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op.namespace == "_c10d_functional" and op._opname.startswith("all_"):
            self.bytes[op._opname] += args[0].numel() * args[0].element_size()
        return op(*args, **(kwargs or {}))


def sent(mesh):
    """The bytes of a step, by batch size; without dead features."""
    found = {}
    for batch in (32, 64):
        own = make_trainer(part=MeshPart(F, mesh), k=K, beta=0.1)
        own.update(0, data(batch))  # its first look for dead features
        with Sent() as count:
            own.update(1, data(batch))
        found[batch] = dict(count.bytes)
    return found


def advance(trainer, steps):
    for step in steps:
        trainer.update(step, data(seed=step, dtype=t.float64))


def save(trainer, folder):
    state = write_divided(trainer, trainer.state_dict(), folder / "divided")
    if trainer.part.is_first:
        t.save(state, folder / "state.pt")


def restored(case, part, folder):
    """A trainer where `save` left one, in any number of parts."""
    trainer = trainer_of(case, part, t.float64)
    state = t.load(folder / "state.pt", weights_only=True)
    read_divided(trainer, state, folder / "divided")
    trainer.load_state_dict(state)
    return trainer


def stopped(mesh, folder):
    """Train to STOPPED, leave the state in a folder, and go on. Rank 0 writes the weights at the end."""
    (place := folder / "stopped_by_4").mkdir(exist_ok=True)
    trainer = trainer_of("learned-both-all", MeshPart(F, mesh), t.float64)
    advance(trainer, range(STOPPED))
    save(trainer, place)
    advance(trainer, range(STOPPED, STEPS))
    if (whole := trainer.part.gathered(trainer.ae.state_dict())) is not None:
        t.save(whole, place / "ae.pt")


def resumed(mesh, folder):
    """From where four parts were stopped, with as many as there are. Returns how far the weights are from theirs."""
    trainer = restored("learned-both-all", MeshPart(F, mesh), folder / "stopped_by_4")
    advance(trainer, range(STOPPED, STEPS))
    return furthest(trainer, t.load(folder / "stopped_by_4" / "ae.pt", weights_only=True))


def seen_by(mesh, folder, cases, cases_in_float32):
    """What a process of this mesh sees."""
    return {
        "float64": equality(mesh, t.float64, cases),
        "float32": equality(mesh, t.float32, cases_in_float32),
        "start": start(mesh),
        "selection": selection(mesh),
        "not finite": not_finite(mesh),
        "sent": sent(mesh),
        "resumed": resumed(mesh, folder),
    }


def seen(folder):
    """What this process sees, by the number of parts."""
    four = init_device_mesh("cpu", (4,))
    pairs = init_device_mesh("cpu", (2, 2), mesh_dim_names=("pairs", "parts"))
    pair = pairs.get_local_rank("pairs")
    logging.disable()
    stopped(four, folder)
    dist.barrier()
    found = {
        4: seen_by(four, folder, FEW, FEW),
        2: seen_by(pairs["parts"], folder, list(CASES)[pair::2], FEW[pair::2]),
    }
    logging.disable(logging.NOTSET)
    return found
