"""Which features a token keeps: the noise, the K largest, and what the mean alone selects.

`draw_code` is the definition, computed by torch: on GPUs, in float64, and where numba can't compile.
In float32 on a CPU a compiled form gives the same distribution, of other numbers (`compiled.py`).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch as t

from ...config.sae import NoiseOn, SelectBy
from . import compiled
from .encode import BatchLogVariance, BatchMeans, DrawnLogVariance


class Draw(NamedTuple):
    """How each row's K features and their values are drawn from N(mu, (noise_scale std)^2)."""

    k: int
    noise_on: NoiseOn
    """both: I = TopK(z), values z_I. values: I = TopK(mu), values z_I; only these are drawn. selection:
    I = TopK(z), values mu_I"""
    noise_scale: float
    """tau. 0 draws nothing and gives the mean's code"""
    generator: t.Generator | None
    """on the device of the means; None for torch's own"""
    select_by: SelectBy = "value"
    """value: TopK(z) is the K largest z. magnitude: the K largest |z|"""

    @property
    def noise_chooses(self) -> bool:
        """Whether noise decides which features are kept."""
        return self.noise_scale != 0 and self.noise_on != "values"


class DrawnCode(NamedTuple):
    """The code of some rows, and what the mean alone selects there."""

    indices_BK: t.Tensor
    """each row's selected features"""
    values_BK: t.Tensor
    """their values in the code"""
    mu_BK: t.Tensor
    """their means"""
    fired_F: t.Tensor
    """whether the mean's selection of any row holds the feature (bool). If noise chooses, ties with the
    K-th largest (in magnitude, if that selects) count. A mean of 0 counts only if nothing is drawn, as
    upstream counts a ReLU's zeros"""
    smallest_B: t.Tensor
    """each row's smallest positive selected mean, or the smallest magnitude above 0 if it selects by
    magnitude; inf if it has none"""
    survived_B: t.Tensor
    """how many of the K that the mean alone selects are among each row's selected features"""
    log_var: DrawnLogVariance | None
    """of a learned posterior"""

    @classmethod
    def joined(cls, parts: Sequence["DrawnCode"]) -> "DrawnCode":
        """The parts' rows, one after the other."""
        if len(parts) == 1:
            return parts[0]
        indices, values, mus, fired, smallest, survived, log_vars = zip(*parts, strict=True)
        log_var = None if log_vars[0] is None else DrawnLogVariance.joined(log_vars)
        rows = t.cat(indices), t.cat(values), t.cat(mus)
        return cls(*rows, t.stack(fired).any(0), t.cat(smallest), t.cat(survived), log_var)


def draw_code(mu_BF: t.Tensor, std: t.Tensor, how: Draw) -> tuple[t.Tensor, t.Tensor]:
    """Draw each row's K selected features and their values, by torch.

    Arguments:
        mu_BF: the posterior's means, fp32 or wider.
        std: its standard deviations: (B, F), (B, 1) for one of each row, or 0-dim for one value.

    Returns: indices (B, K) and values (B, K).
    """
    generator, scale = how.generator, how.noise_scale
    if not how.noise_chooses:
        values_BK, indices_BK = _top_k(mu_BF, how.k, how.select_by)
        if scale != 0:
            noise_BK = t.empty_like(values_BK).normal_(generator=generator)
            has_each = std.dim() > 0 and std.shape[-1] == mu_BF.shape[-1]
            std_BK = std.gather(-1, indices_BK) if has_each else std
            values_BK = values_BK + noise_BK * (std_BK * scale)
        return indices_BK, values_BK

    z_BF = t.empty_like(mu_BF).normal_(generator=generator).mul_(std * scale).add_(mu_BF)
    values_BK, indices_BK = _top_k(z_BF, how.k, how.select_by)
    return indices_BK, mu_BF.gather(-1, indices_BK) if how.noise_on == "selection" else values_BK


def draw_batch(
    means: BatchMeans,
    sigma: t.Tensor,
    log_var: BatchLogVariance | None,
    how: Draw,
    rows_at_once: int,
) -> DrawnCode:
    """Draw a batch's code, as `draw_code` does, and find what the mean alone selects.

    Arguments:
        sigma: the standard deviation, 0-dim, or (B, 1) for one of each row. Not used with `log_var`.
        log_var: the log-variance of the learned posterior; otherwise None.
        rows_at_once: how many rows one thread works through at once, in the compiled form.
    """
    if compiled.serves(means.weight_FD, means.unfinished_dtype):
        return _draw_compiled(means, sigma, log_var, how, rows_at_once)
    parts: list[DrawnCode] = []
    for rows in means.row_blocks(len(means.bias_F)):
        mu_BF = means.of(rows)
        rows_log_var = None if log_var is None else log_var.of(rows)
        std = _rows_sigma(sigma, rows) if rows_log_var is None else rows_log_var.std_BF
        indices_BK, values_BK = draw_code(mu_BF, std, how)
        mu_BK = mu_BF.gather(1, indices_BK)
        if how.noise_chooses:
            compared_BF = compared(mu_BF, how.select_by)
            fired_F, smallest_B, survived_B = _mean_selection(compared_BF, indices_BK)
        else:
            fires_BK = t.ones_like(mu_BK) if how.noise_scale == 0 else mu_BK.ne(0).to(mu_BK.dtype)
            fired_F = mu_BF.new_zeros(mu_BF.shape[1])
            fired_F = fired_F.index_add_(0, indices_BK.flatten(), fires_BK.flatten()) > 0
            compared_BK = compared(mu_BK, how.select_by)
            smallest_B = _smallest_positive(compared_BK)
            survived_B = t.full_like(smallest_B, how.k)
        drawn = None if rows_log_var is None else rows_log_var.drawn(indices_BK)
        code = indices_BK, values_BK, mu_BK, fired_F, smallest_B, survived_B
        parts.append(DrawnCode(*code, drawn))
    return DrawnCode.joined(parts)


def _rows_sigma(sigma: t.Tensor, rows: slice) -> t.Tensor:
    return sigma[rows] if sigma.dim() else sigma


def top_k(
    values_BF: t.Tensor,
    k: int,
    rows_at_once: int,
    *,
    rectified: bool = False,
    select_by: SelectBy = "value",
) -> tuple[t.Tensor, t.Tensor]:
    """Each row's K largest and their indices, in any order. NaN counts as the largest.

    Arguments:
        rows_at_once: see `draw_batch`.
        rectified: they come from a ReLU, so that many are 0. Which of these are taken must be as in
            upstream's topk.
        select_by: see `Draw`. The values keep their signs.
    """
    if compiled.serves(values_BF) and not rectified:
        by_magnitude = select_by == "magnitude"
        return compiled.top_k(values_BF, k, rows_at_once, by_magnitude=by_magnitude)
    return _top_k(values_BF, k, select_by)


def compared(values: t.Tensor, select_by: SelectBy) -> t.Tensor:
    """The numbers whose largest are kept: the values themselves, or their magnitudes."""
    return values.abs() if select_by == "magnitude" else values


def _top_k(values_BF: t.Tensor, k: int, select_by: SelectBy) -> tuple[t.Tensor, t.Tensor]:
    values_BK, indices_BK = compared(values_BF, select_by).topk(k, dim=-1, sorted=False)
    return values_BF.gather(-1, indices_BK) if select_by == "magnitude" else values_BK, indices_BK


def _mean_selection(mu_BF: t.Tensor, indices_BK: t.Tensor) -> tuple[t.Tensor, t.Tensor, t.Tensor]:
    """`DrawnCode.fired_F`, `smallest_B` and `survived_B` where noise chooses. Nothing here waits for a GPU.

    Arguments:
        mu_BF: the means, or their magnitudes.
        indices_BK: the features that the noise selects.
    """
    largest_BK = mu_BF.topk(indices_BK.shape[-1], sorted=False).values
    least_B1 = largest_BK.amin(-1, keepdim=True)
    fires_BF = (mu_BF >= least_B1) & (mu_BF != 0)
    survived_B = (mu_BF.gather(-1, indices_BK) >= least_B1).sum(-1).to(mu_BF.dtype)
    return fires_BF.any(0), _smallest_positive(largest_BK), survived_B


def _smallest_positive(values_BK: t.Tensor) -> t.Tensor:
    """Each row's; inf if it has none."""
    return values_BK.masked_fill(values_BK <= 0, t.inf).amin(-1)


def _draw_compiled(
    means: BatchMeans,
    sigma: t.Tensor,
    log_var: BatchLogVariance | None,
    how: Draw,
    rows_at_once: int,
) -> DrawnCode:
    """`draw_batch` by the compiled kernel. One number of the generator seeds the noise of all rows."""
    noise = compiled.Noise(None, 0.0, 0)
    if how.noise_scale != 0:
        key = int(t.randint(2**63 - 1, (1,), generator=how.generator))
        noise = compiled.Noise(how.noise_on, how.noise_scale, key)
    batch = len(means.centred_BD)
    out = compiled.DrawnRows(batch, how.k, by_magnitude=how.select_by == "magnitude")

    def draw_rows(rows: slice) -> tuple[t.Tensor, DrawnLogVariance | None]:
        rows_log_var = None if log_var is None else log_var.of(rows)
        std = _rows_sigma(sigma, rows) if rows_log_var is None else rows_log_var.std_BF
        products_BF, bias_F, rectify = means.unfinished(rows)
        fired_F = out.draw(rows, products_BF, bias_F, rectify, std, noise)
        if means.rectify and how.noise_scale == 0 and not (out.values_BK[rows] > 0).all():
            fired_F = out.draw_as_upstream(rows, means.of(rows))
        return fired_F, None if rows_log_var is None else rows_log_var.drawn(out.indices_BK[rows])

    parts = compiled.map_row_blocks(draw_rows, batch, rows_at_once)
    fired_F = t.stack([fired_F for fired_F, _ in parts]).any(0)
    log_vars = [part for _, part in parts if part is not None]
    drawn_log_var = DrawnLogVariance.joined(log_vars) if log_vars else None
    rows = out.indices_BK, out.values_BK, out.mu_BK
    return DrawnCode(*rows, fired_F, out.smallest_B, out.survived_B, drawn_log_var)
