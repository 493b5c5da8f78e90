"""Selects each token's features, compiled for CPUs: the noise, the K largest, and what the mean alone selects.

The K largest are found with a threshold that is guessed and narrowed while a block of rows is in cache, and the B K of
a batch by counting. Each row has its own random stream, whatever the threads and batches (`row_kernels.py`).
"""

import torch as t

from ..step import Draw, largest
from . import compiled
from .compiled import BatchNoise, DrawnCode, SharedCode
from .encode import BatchMeans


def draw_batch(means: BatchMeans, sigma: t.Tensor, how: Draw) -> DrawnCode:
    """Draw a batch's code. One number from the generator seeds the noise of all rows.

    Arguments:
        sigma: the noise's standard deviation, 0-dim.
    """
    noise = BatchNoise()
    if how.noise_scale != 0:
        key = int(t.randint(2**63 - 1, (1,), generator=how.generator))
        noise = BatchNoise(how.noise_on, how.noise_scale, key)
    batch = len(means.centred_BD)
    if how.over_batch:
        return _draw_over_batch(means, float(sigma) * how.noise_scale, how, noise.key)
    drawn = DrawnCode(batch, how.k)

    def draw_rows(rows: slice) -> t.Tensor:
        products_BF, bias_F = means.unfinished(rows)
        fired_F = drawn.draw(rows, products_BF, bias_F, sigma, noise)
        if means.rectify and how.noise_scale == 0 and not (drawn.values_BK[rows] > 0).all():
            fired_F = drawn.draw_as_upstream(rows, products_BF)
        return fired_F

    fired = compiled.map_row_blocks(draw_rows, batch, compiled.BLOCK_ROWS)
    drawn.fired_F = t.stack(fired).any(0)
    return drawn


def _draw_over_batch(means: BatchMeans, std: float, how: Draw, key: int) -> DrawnCode:
    size = len(means.centred_BD), len(means.bias_F)
    shared = SharedCode(*size, how.k, std if how.noise_chooses else 0.0, key)
    drawn = shared.draw(means.unfinished)
    if how.noise_scale == 0 or how.noise_on == "selection":
        drawn.values_BK.copy_(drawn.mu_BK)
    elif how.noise_on == "values":
        drawn.values_BK.normal_(generator=how.generator).mul_(std).add_(drawn.mu_BK)
    drawn.values_BK.relu_()
    return drawn


def top_k(values_BF: t.Tensor, k: int, *, rectified: bool = False) -> tuple[t.Tensor, t.Tensor]:
    """Each row's K largest values and their indices, in any order, on any device. NaN ranks highest.

    Arguments:
        rectified: whether the values come from a ReLU. Then zeros are chosen as upstream's topk chooses them.
    """
    if rectified or not compiled.is_available(values_BF):
        indices_BK = largest(values_BF, k, "value").indices
        return values_BF.gather(-1, indices_BK), indices_BK
    batch, n_features = values_BF.shape
    drawn, bias_F = DrawnCode(batch, k), t.zeros(n_features)

    def draw_rows(rows: slice) -> None:
        drawn.draw(rows, values_BF[rows], bias_F, t.zeros(()), BatchNoise())

    compiled.map_row_blocks(draw_rows, batch, compiled.BLOCK_ROWS)
    return drawn.values_BK, drawn.indices_BK
