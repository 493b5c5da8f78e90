"""Drawing a code on a CPU in float32: runs `row_kernels.py` on several threads.

A thread encodes some rows and draws their code while their means are in cache. numba compiles the
kernel once per installation. Where numba can't, torch does the same.
"""

import atexit
import functools
import logging
import re
import shutil
import sys
import tempfile
import threading
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch as t

from ...config.sae import NoiseOn, SelectBy
from .drawn_code import DrawnCode
from .log_variance import BatchLogVariance, DrawnLogVariance
from .means import BatchMeans
from .row_blocks import map_row_blocks

logger = logging.getLogger(__name__)


def serves(weight: t.Tensor, products: t.dtype = t.float32) -> bool:
    """Whether the compiled form takes products of this dtype with these weights: float32 on a CPU."""
    return weight.device.type == "cpu" and weight.dtype == t.float32 and _compiles(products)


def draw_batch(
    means: BatchMeans,
    sigma: t.Tensor,
    log_var: BatchLogVariance | None,
    k: int,
    noise_on: NoiseOn,
    noise_scale: float,
    generator: t.Generator,
    rows_at_once: int,
    *,
    select_by: SelectBy,
) -> DrawnCode:
    """See `selection.draw_batch`. One number of the generator seeds the noise of all rows."""
    key = int(t.randint(2**63 - 1, (1,), generator=generator)) if noise_scale != 0 else 0
    noise = _Noise(noise_on if noise_scale != 0 else None, noise_scale, key)
    out = _Drawn(len(means.centred_BD), len(means.bias_F), k, select_by)

    def draw_rows(rows: slice) -> tuple[t.Tensor, DrawnLogVariance | None]:
        rows_log_var = None if log_var is None else log_var.of(rows)
        std = sigma if rows_log_var is None else rows_log_var.std_BF
        products_BF, bias_F, rectify = means.unfinished(rows)
        fired_F = out.draw(rows, products_BF, bias_F, rectify, std, noise)
        if means.rectify and noise_scale == 0 and not (out.values_BK[rows] > 0).all():
            fired_F = out.draw_as_upstream(rows, means.of(rows))
        return fired_F, None if rows_log_var is None else rows_log_var.drawn(out.indices_BK[rows])

    parts = map_row_blocks(draw_rows, len(means.centred_BD), rows_at_once)
    fired_F = t.stack([fired_F for fired_F, _ in parts]).any(0)
    log_vars = [part for _, part in parts if part is not None]
    drawn_log_var = DrawnLogVariance.joined(log_vars) if log_vars else None
    return DrawnCode(
        out.indices_BK, out.values_BK, out.mu_BK, fired_F, out.smallest_B, drawn_log_var
    )


def top_k(
    values_BF: t.Tensor, k: int, rows_at_once: int, *, select_by: SelectBy
) -> tuple[t.Tensor, t.Tensor]:
    """See `selection.top_k`."""
    batch, n_features = values_BF.shape
    out, bias_F = _Drawn(batch, n_features, k, select_by), t.zeros(n_features)

    def take(rows: slice) -> None:
        out.draw(rows, values_BF[rows], bias_F, False, t.zeros(()), _Noise(None, 0.0, 0))

    map_row_blocks(take, len(values_BF), rows_at_once)
    return out.values_BK, out.indices_BK


class _Noise(NamedTuple):
    """What the noise is: see `row_kernels.draw_rows`."""

    on: NoiseOn | None
    scale: float
    key: int


class _Drawn:
    """The tensors that the kernel writes, for a batch; see `DrawnCode`."""

    def __init__(self, batch: int, n_features: int, k: int, select_by: SelectBy = "value"):
        self.k = k
        self.by_magnitude = select_by == "magnitude"
        with t.inference_mode(False):  # other threads write to them
            self.indices_BK = t.empty(batch, k, dtype=t.int64)
            self.values_BK, self.mu_BK = t.empty(2, batch, k)
            self.smallest_B = t.empty(batch)
        outputs = (self.indices_BK, self.values_BK, self.mu_BK, self.smallest_B)
        self._arrays = [output.numpy() for output in outputs]

    def draw(
        self,
        rows: slice,
        products_BF: t.Tensor,
        bias_F: t.Tensor,
        rectify: bool,
        std: t.Tensor,
        noise: _Noise,
    ) -> t.Tensor:
        """Fill in some rows. Returns what fired in them."""
        kernels = _kernels()
        is_bf16 = products_BF.dtype == t.bfloat16
        fired_F = t.zeros(len(bias_F), dtype=t.bool)
        kernels.draw_rows(
            (products_BF.view(t.uint16) if is_bf16 else products_BF).detach().numpy(),
            bias_F.detach().numpy(),
            rectify,
            self.by_magnitude,
            std.detach().reshape(-1, std.shape[-1] if std.dim() else 1).numpy(),
            kernels.NOISE_CODES[noise.on],
            np.float32(noise.scale),
            _normal_values(),
            np.uint64(noise.key),
            rows.start,
            self.k,
            *(array[rows] for array in self._arrays),
            fired_F.numpy(),
        )
        return fired_F

    def draw_as_upstream(self, rows: slice, mu_BF: t.Tensor) -> t.Tensor:
        """`draw` without noise, where a ReLU leaves fewer than K positive means: upstream's topk decides
        which zeros are selected.
        """
        values_BK, indices_BK = mu_BF.topk(self.k, sorted=False)
        self.indices_BK[rows] = indices_BK
        self.values_BK[rows] = self.mu_BK[rows] = values_BK
        self.smallest_B[rows] = values_BK.masked_fill(values_BK <= 0, t.inf).amin(-1)
        fired_F = t.zeros(mu_BF.shape[1], dtype=t.bool)
        fired_F[indices_BK.flatten()] = True
        return fired_F


@functools.cache
def _normal_values() -> np.ndarray:
    """The mean of N(0, 1) over each of 2^16 intervals that are equally likely: float32."""
    edges = t.special.ndtri(t.arange(2**16 + 1, dtype=t.float64) / 2**16)
    density = t.exp(-(edges**2) / 2) / (2 * t.pi) ** 0.5
    return (2**16 * (density[:-1] - density[1:])).float().numpy()


@functools.cache
def _kernels() -> ModuleType:
    """`row_kernels`. Where numba has no folder for its cache, it gets one that lives as long as the process."""
    try:
        from . import row_kernels
    except RuntimeError as error:
        if "no locator" not in str(error):
            raise
        import numba

        folder = tempfile.mkdtemp(prefix="numba-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        numba.config.CACHE_DIR = folder  # pyright: ignore[reportAttributeAccessIssue]
        logger.warning(
            "numba can write neither beside the package nor in the home folder: each process compiles "
            "the selection of features again; set NUMBA_CACHE_DIR to a folder that can be written"
        )
        from . import row_kernels
    return row_kernels


@functools.cache
def _compiles(products: t.dtype) -> bool:
    """Compile the kernel for a dtype of products, or load it from numba's cache.

    Where numba can't compile it, this returns False, and warns once.
    """
    notice = threading.Timer(
        1.0, logger.warning, ["compiling the selection of features (once; it is cached)"]
    )
    notice.start()
    try:
        products_BF = t.zeros(1, 4, dtype=products)
        noise = _Noise("both", 1.0, 0)
        _Drawn(1, 4, 1).draw(slice(0, 1), products_BF, t.zeros(4), False, t.ones(()), noise)
    except (ImportError, OSError, RuntimeError, *_numba_errors()) as error:
        _warn_once(f"numba can't compile the selection of features; torch does it: {_plain(error)}")
        return False
    finally:
        notice.cancel()
    return True


def _plain(error: BaseException) -> str:
    """Its message, without the colours that numba adds where colorama is installed."""
    return re.sub(r"\x1b\[[0-9;]*m", "", str(error))


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning("%s", message)


def _numba_errors() -> tuple[type[Exception], ...]:
    """numba's own errors; none where numba can't be imported."""
    errors = sys.modules.get("numba.core.errors")
    return () if errors is None else (errors.NumbaError,)
