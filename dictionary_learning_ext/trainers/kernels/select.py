"""Selects each token's features, compiled for CPUs: the noise, the K largest, and what the mean alone selects.

The K largest are found with a threshold that is guessed and narrowed while a block of rows is in cache. Each row
has its own random stream, whatever the threads and batches (`row_kernels.py`).
"""

from typing import NamedTuple

import torch as t

from ..step import Draw, largest
from . import compiled
from .encode import BatchMeans


class DrawnCode(NamedTuple):
    """The code of a batch, and what the mean alone selects."""

    indices_BK: t.Tensor
    """each row's selected features"""
    values_BK: t.Tensor
    """their values in the code"""
    mu_BK: t.Tensor
    """their means"""
    fired_F: t.Tensor
    """whether the mean selects the feature in any row (bool). If noise decides the selection, ties with the K-th
    largest mean count as selected. A mean of 0 only counts in a step without noise, as a ReLU's zeros
    do upstream"""
    smallest_B: t.Tensor
    """each row's smallest positive selected mean; inf if it has none"""


def draw_batch(means: BatchMeans, sigma: t.Tensor, how: Draw) -> DrawnCode:
    """Draw a batch's code. One number from the generator seeds the noise of all rows.

    Arguments:
        sigma: the noise's standard deviation, 0-dim.
    """
    noise = compiled.BatchNoise(None, 0.0, 0)
    if how.noise_scale != 0:
        key = int(t.randint(2**63 - 1, (1,), generator=how.generator))
        noise = compiled.BatchNoise(how.noise_on, how.noise_scale, key)
    batch = len(means.centred_BD)
    out = compiled.DrawnRows(batch, how.k)

    def draw_rows(rows: slice) -> t.Tensor:
        products_BF, bias_F = means.unfinished(rows)
        fired_F = out.draw(rows, products_BF, bias_F, sigma, noise)
        if means.rectify and how.noise_scale == 0 and not (out.values_BK[rows] > 0).all():
            fired_F = out.draw_as_upstream(rows, products_BF)
        return fired_F

    parts = compiled.map_row_blocks(draw_rows, batch, compiled.BLOCK_ROWS)
    rows = out.indices_BK, out.values_BK, out.mu_BK
    return DrawnCode(*rows, t.stack(parts).any(0), out.smallest_B)


def top_k(values_BF: t.Tensor, k: int, *, rectified: bool = False) -> tuple[t.Tensor, t.Tensor]:
    """Each row's K largest values and their indices, in any order, on any device. NaN ranks highest.

    Arguments:
        rectified: whether the values come from a ReLU. Then zeros are chosen as upstream's topk chooses them.
    """
    if compiled.is_available(values_BF) and not rectified:
        return compiled.top_k_on_cpu(values_BF, k)
    indices_BK = largest(values_BF, k, "value").indices
    return values_BF.gather(-1, indices_BK), indices_BK
