"""Directions of random tokens, and a start from them (`--start data`). Shapes: N tokens, D activation_dim, F dict_size."""

import logging
from typing import Any

import torch as t

from .dictionaries import weights_by_feature

logger = logging.getLogger(__name__)

TWINS = 0.7
"""The cosine from which two directions count as the same."""
_BLOCK = 256


@t.no_grad()
def token_directions(
    x_ND: t.Tensor, count: int, generator: t.Generator, *, twins: float | None = None
) -> t.Tensor:
    """The directions of `count` random tokens: their activations less the mean of all, of norm 1. (count, D), float32.

    Tokens are taken in a random order, each at most once. One that equals the mean has no direction, and is left out.

    Arguments:
        x_ND: activations of any float dtype and in any unit.
        generator: a CPU generator.
        twins: leave out a token whose direction has a cosine of at least this with that of a token taken before.

    Returns: fewer than `count` if there are too few such tokens.
    """
    sums = [part.double().sum(0) for part in x_ND.split(1 << 14)]
    mean_D = (t.stack(sums).sum(0) / len(x_ND)).float()
    found_FD, n_found = x_ND.new_empty(count, x_ND.shape[1], dtype=t.float32), 0
    for rows in t.randperm(len(x_ND), generator=generator).split(_BLOCK):
        given_BD = x_ND[rows.to(x_ND.device)].float() - mean_D
        norm_B = given_BD.norm(dim=1)
        taken_BD = given_BD[norm_B > 0] / norm_B[norm_B > 0, None]
        if twins is not None:
            is_new_B = ((taken_BD @ found_FD[:n_found].T) < twins).all(1)
            taken_BD = _without_twins(taken_BD[is_new_B], twins)
        taken_BD = taken_BD[: count - n_found]
        found_FD[n_found : n_found + len(taken_BD)] = taken_BD
        n_found += len(taken_BD)
        if n_found == count:
            break
    return found_FD[:n_found]


def _without_twins(x_BD: t.Tensor, twins: float) -> t.Tensor:
    """The rows whose cosine with every row kept before them is below `twins`."""
    is_twin_BB, kept = ((x_BD @ x_BD.T) >= twins).cpu(), list[int]()
    for row in range(len(x_BD)):
        if not is_twin_BB[row, kept].any():
            kept.append(row)
    return x_BD[kept]


@t.no_grad()
def start_from_data(trainer: Any, first_fill_ND: t.Tensor, dict_size: int, seed: int) -> None:
    """Let the encoder and the decoder of a trainer that has taken no step start as directions of random tokens, no two of
    them twins. Their norms stay those of the architecture's random start, 1 for most. Biases stay too.

    If there are too few such tokens, the other features start at random, and a warning says so.

    Arguments:
        first_fill_ND: activations to choose from, in any unit.
        dict_size: F of the whole dictionary, of which the trainer may have a part.
    """
    generator = t.Generator().manual_seed(seed)
    found_FD = token_directions(first_fill_ND, dict_size, generator, twins=TWINS)
    if len(found_FD) < dict_size:
        logger.warning(
            "start='data': %d of the %d tokens of the first fill have a cosine below %g with each other; the other %d "
            "features start at random",
            *(len(found_FD), len(first_fill_ND), TWINS, dict_size - len(found_FD)),
        )
    own_FD = found_FD[trainer.part.features(dict_size)]
    for weight_FD in weights_by_feature(trainer.ae):
        start_FD = weight_FD[: len(own_FD)]
        start_FD.copy_(own_FD.to(start_FD) * start_FD.norm(dim=1, keepdim=True))
