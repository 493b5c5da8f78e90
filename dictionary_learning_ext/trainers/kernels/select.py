"""Selects each token's features, compiled for CPUs: the noise, the K largest, and what the mean alone selects.

The K largest are found with a threshold that is guessed and narrowed while a block of rows is in cache. Each row
has its own random stream, whatever the threads and batches (`row_kernels.py`).
"""

from typing import NamedTuple

import torch as t

from ...config.sae import SelectBy
from ..step import Draw, largest
from . import compiled
from .encode import BatchLogVariance, BatchMeans, DrawnLogVariance


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
    largest mean (or magnitude) count as selected. A mean of 0 only counts in a step without noise, as a ReLU's zeros
    do upstream"""
    smallest_B: t.Tensor
    """each row's smallest positive selected mean (or magnitude); inf if it has none"""
    survived_B: t.Tensor
    """how many of each row's selected features the mean alone selects, too"""
    log_var: DrawnLogVariance | None
    """the log-variances of the selected features; None unless sigma is learned"""


def draw_batch(
    means: BatchMeans, sigma: t.Tensor, log_var: BatchLogVariance | None, how: Draw
) -> DrawnCode:
    """Draw a batch's code. One number from the generator seeds the noise of all rows.

    Arguments:
        sigma: the noise's standard deviation, 0-dim or (B, 1). Unused with `log_var`.
        log_var: the learned log-variance; otherwise None.
    """
    noise = compiled.Noise(None, 0.0, 0)
    if how.noise_scale != 0:
        key = int(t.randint(2**63 - 1, (1,), generator=how.generator))
        noise = compiled.Noise(how.noise_on, how.noise_scale, key)
    batch = len(means.centred_BD)
    out = compiled.DrawnRows(batch, how.k, by_magnitude=how.select_by == "magnitude")

    def draw_rows(rows: slice) -> tuple[t.Tensor, DrawnLogVariance | None]:
        rows_log_var = None if log_var is None else log_var.of(rows)
        rows_sigma = sigma[rows] if sigma.dim() else sigma
        std = rows_sigma if rows_log_var is None else rows_log_var.std_BF
        products_BF, bias_F = means.unfinished(rows)
        fired_F = out.draw(rows, products_BF, bias_F, std, noise)
        if means.rectify and how.noise_scale == 0 and not (out.values_BK[rows] > 0).all():
            fired_F = out.draw_as_upstream(rows, products_BF)
        return fired_F, None if rows_log_var is None else rows_log_var.drawn(out.indices_BK[rows])

    parts = compiled.map_row_blocks(draw_rows, batch, compiled.ROWS_AT_ONCE)
    fired_F = t.stack([fired_F for fired_F, _ in parts]).any(0)
    log_vars = [part for _, part in parts if part is not None]
    drawn_log_var = DrawnLogVariance.joined(log_vars) if log_vars else None
    rows = out.indices_BK, out.values_BK, out.mu_BK
    return DrawnCode(*rows, fired_F, out.smallest_B, out.survived_B, drawn_log_var)


def top_k(
    values_BF: t.Tensor,
    k: int,
    *,
    rectified: bool = False,
    select_by: SelectBy = "value",
) -> tuple[t.Tensor, t.Tensor]:
    """Each row's K largest values and their indices, in any order, on any device. NaN ranks highest.

    Arguments:
        rectified: whether the values come from a ReLU. Then zeros are chosen as upstream's topk chooses them.
        select_by: see `Draw`. Values keep their signs.
    """
    if compiled.serves(values_BF) and not rectified:
        return compiled.top_k(values_BF, k, by_magnitude=select_by == "magnitude")
    indices_BK = largest(values_BF, k, select_by).indices
    return values_BF.gather(-1, indices_BK), indices_BK
