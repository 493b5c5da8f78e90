"""Batches of synthetic activations, and which of their true features fire.

The model is SAELens's. `synthetic_rows.py` draws its rows on the CPU, so a batch is the same on every device.
A row depends only on the stream's seed and the row's number. So the number of rows is enough to resume.

Shapes: B rows, D = the width of a row, T true features.
"""

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch as t

from ..config.synthetic_models import SyntheticSettings, synthetic_settings
from ..errors import ConfigError, first_line
from ..run_folder.files import sha256_of, temporary_folder
from ..trainers.kernels.compiled import compiled_module, logging_compilation, map_row_blocks
from .buffer import BatchSource
from .rows import drawn_seed

logger = logging.getLogger(__name__)

_NORM_ROWS, _ROWS_AT_ONCE = 16_384, 128
_SAMPLER = 2
"""Part of a model's hash. Increase it when the same settings draw other rows, so that no run resumes with them."""


def users_caches() -> Path:
    """The folder in the user's cache for everything that can be computed or fetched again."""
    given = Path(os.environ.get("XDG_CACHE_HOME") or "")
    return (given if given.is_absolute() else Path.home() / ".cache") / "dictionary_learning_ext"


def draw_model(model: str) -> Any:
    """SAELens's `SyntheticModel` of `synthetic:NAME`, always the same one. `.save(folder)` saves it.

    A named model is drawn once and kept in the user's cache folder ($XDG_CACHE_HOME or ~/.cache).

    Raises: ConfigError if there is no such model, it can't be read, or SAELens isn't installed.
    """
    settings = synthetic_settings(model)
    try:
        import sae_lens.synthetic as sae_lens  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError(
            name="model",
            value=model,
            expected=f"SAELens, which draws these models ({error})",
            instead="install it: pip install 'dictionary-learning-ext[synthetic]'",
        ) from error
    kept = users_caches() / f"{model.replace(':', '-')}-{model_hash(model)[:16]}"
    folder = settings.folder or kept
    if settings.folder is None and not folder.is_dir():
        drawn = _draw(model, sae_lens)
        _keep(drawn, folder)
        return drawn
    try:
        return sae_lens.SyntheticModel.load_from_disk(folder)
    except Exception as error:  # JSON, safetensors and SAELens raise different ones
        again = "save it again" if settings.folder else "delete the folder to draw it again"
        raise ConfigError(
            name="model",
            value=model,
            expected=f"a model that SAELens can read in {folder} ({first_line(error)})",
            instead=again,
        ) from error


def _draw(model: str, sae_lens: Any) -> Any:
    settings = synthetic_settings(model)
    config = sae_lens.SyntheticModelConfig.from_dict(settings.config)
    more_orthogonal, config.orthogonalization = config.orthogonalization, None
    drawn = sae_lens.SyntheticModel(config)
    if more_orthogonal is not None:
        vectors_TD = drawn.feature_dict.feature_vectors
        logger.info("%s: making %s directions more orthogonal", model, f"{settings.features:,}")
        vectors_TD.data = _more_orthogonal(
            vectors_TD, steps=more_orthogonal.num_steps, lr=more_orthogonal.lr
        )
        config.orthogonalization = more_orthogonal
    return drawn


def _keep(drawn: Any, folder: Path) -> None:
    """Save a model atomically. Logs a warning if the folder can't be written."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(folder.parent, folder.name) as unfinished:
            drawn.save(unfinished)
            unfinished.rename(folder)
    except OSError as error:
        if not folder.is_dir():  # otherwise another process was first
            logger.warning(
                "the synthetic model can't be kept, so the next run draws it again (%s); set XDG_CACHE_HOME to"
                " a folder that can be written",
                first_line(error),
            )


def _more_orthogonal(vectors_TD: t.Tensor, *, steps: int, lr: float) -> t.Tensor:
    """SAELens's `orthogonalize_embeddings`, up to rounding, in a fraction of the time.

    The loss is the sum of (v_i . v_j)^2 over i != j, plus T (|v_i|^2 - 1)^2 for each i. SAELens takes the gradient
    through all T^2 products. Here it is 4 V (V'V), where V'V has D^2 entries, corrected for the terms i = j.
    """
    v_TD = t.nn.functional.normalize(vectors_TD.detach(), dim=1, eps=1e-8)
    optimizer = t.optim.Adam([v_TD], lr=lr)
    for _ in range(steps):
        squares_T1 = v_TD.square().sum(1, keepdim=True)
        own_T1 = len(v_TD) * (squares_T1 - 1) - squares_T1
        v_TD.grad = 4 * (v_TD @ (v_TD.T @ v_TD) + own_T1 * v_TD)
        optimizer.step()
    return t.nn.functional.normalize(v_TD, dim=1, eps=1e-8)


def model_hash(model: str) -> str:
    """A hash of a synthetic model's settings, of its saved weights if there are any, and of SAELens's version."""
    settings = synthetic_settings(model)
    made_from = {**_hashed_settings(settings), "sae_lens": metadata.version("sae-lens")}
    if settings.folder is not None:
        files = sorted(settings.folder.iterdir())
        made_from["files"] = [sha256_of(path) for path in files if path.is_file()]
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()


def _hashed_settings(settings: SyntheticSettings) -> dict[str, Any]:
    return {**settings.config, "noise_std": settings.noise_std, "sampler": _SAMPLER}


class _Groups(NamedTuple):
    """The groups of siblings in a model's trees, as arguments of `synthetic_rows.draw_rows`."""

    parentless_A: np.ndarray
    groups_T: np.ndarray
    members_G: np.ndarray
    excludes_G: np.ndarray
    scales_G: np.ndarray
    siblings: np.ndarray

    @classmethod
    def of(cls, roots: list[Any], features: int) -> "_Groups":
        """The groups in SAELens's `HierarchyNode`s. The children of a node without a feature belong to its parent."""
        groups: list[tuple[int, list[int], bool, bool]] = []
        nodes = [(root, -1) for root in roots]
        for node, parent in nodes:  # grows
            here = parent if node.feature_index is None else node.feature_index
            nodes += [(child, here) for child in node.children]
            members = [c.feature_index for c in node.children if c.feature_index is not None]
            excludes = node.mutually_exclusive_children and len(members) > 1
            if members and (here >= 0 or excludes):
                scales = here >= 0 and node.scale_children_by_parent
                groups.append((here, members, excludes, scales))
        groups.sort(key=lambda group: group[0])
        siblings = np.array([member for group in groups for member in group[1]], np.int64)
        return cls(
            np.setdiff1d(np.arange(features), siblings),
            np.searchsorted([group[0] for group in groups], np.arange(-1, features + 1)),
            np.cumsum([0, *(len(group[1]) for group in groups)]),
            np.array([group[2] for group in groups], bool),
            np.array([group[3] for group in groups], bool),
            siblings,
        )


class Sampler:
    """Draws rows with the distribution of a synthetic model, plus Gaussian noise.

    Arguments:
        drawn: what `draw_model` returns.
        noise_std: standard deviation of the noise in each dimension.
    """

    def __init__(self, drawn: Any, noise_std: float = 0.0):
        generator = drawn.activation_generator
        probability_T = generator.firing_probabilities.double()
        threshold_T, weights_TR = t.special.ndtri(1 - probability_T), t.zeros(len(probability_T), 1)
        if generator.low_rank_correlation is not None:
            weights_TR, own_T = generator.low_rank_correlation
            threshold_T = generator.correlation_thresholds / own_T
            weights_TR = weights_TR / own_T[:, None]
        groups = _Groups.of(drawn.hierarchy.roots if drawn.hierarchy else [], len(probability_T))
        self.vectors_TD: t.Tensor = drawn.feature_dict.feature_vectors.detach().float()
        self._model = (
            _array(self.vectors_TD),
            _array(drawn.feature_dict.bias),
            np.float32(noise_std),
            _array(weights_TR),
            _array(threshold_T),
            _array(generator.mean_firing_magnitudes),
            _array(generator.std_firing_magnitudes),
            groups.parentless_A,
            _array(weights_TR[groups.parentless_A].T),
            *groups[1:],
        )
        self._kernel = compiled_module(f"{__package__}.synthetic_rows")
        with logging_compilation("the drawing of synthetic activations"):
            self.rows(0, range(1))

    def rows(
        self, seed: int, numbers: range, *, with_firing: bool = False
    ) -> tuple[t.Tensor, t.Tensor]:
        """Rows of a stream, (B, D), and the magnitudes of the features in them, (B, T), both in float32.

        Arguments:
            seed: the stream's seed.
            numbers: the rows' numbers in the stream, from 0.
            with_firing: whether to return magnitudes. Otherwise they are (0, T).
        """
        features, width = self.vectors_TD.shape
        x_BD = t.empty(len(numbers), width)
        firing_BT = t.zeros(len(numbers) if with_firing else 0, features)
        x, firing = x_BD.numpy(), firing_BT.numpy()

        def draw(rows: slice) -> None:
            first = numbers.start + rows.start
            self._kernel.draw_rows(np.uint64(seed), first, *self._model, x[rows], firing[rows])

        map_row_blocks(draw, len(numbers), _ROWS_AT_ONCE)
        return x_BD, firing_BT


def _array(values: t.Tensor) -> np.ndarray:
    return values.detach().float().contiguous().numpy()


class SyntheticSource(BatchSource):
    """A synthetic model's activations in float32, as a `BatchSource` that knows the true features.

    Arguments:
        model: `synthetic:NAME`.
        drawn: what `draw_model` returns for it.
        stream: "train" or "heldout". They have different random numbers for the same seed.
        seed: seeds the rows.

    Attributes:
        vectors_TD: the true features' directions.
    """

    def __init__(
        self,
        model: str,
        drawn: Any,
        *,
        stream: str = "train",
        out_batch_size: int,
        seed: int = 0,
        device: str = "cpu",
    ):
        self._model, self._stream, self._seed = model, stream, seed
        self._sampler = Sampler(drawn, synthetic_settings(model).noise_std)
        self._stream_seed = drawn_seed(stream, seed)
        self.out_batch_size, self.device = out_batch_size, device
        self.vectors_TD = self._sampler.vectors_TD
        self.d_submodule = self.vectors_TD.shape[1]
        self.tokens_seen = 0
        self._last = range(0)
        self._firing_BT: t.Tensor | None = None

    def __iter__(self) -> "SyntheticSource":
        return self

    def __next__(self) -> t.Tensor:
        first = self.tokens_seen
        self._last, self._firing_BT = range(first, first + self.out_batch_size), None
        self.tokens_seen += self.out_batch_size
        return self._sampler.rows(self._stream_seed, self._last)[0].to(self.device)

    @property
    def firing_BT(self) -> t.Tensor:
        """The true features' magnitudes in the last batch, 0 if one doesn't fire. Drawn only when they are asked for."""
        if self._firing_BT is None:
            drawn = self._sampler.rows(self._stream_seed, self._last, with_firing=True)
            self._firing_BT = drawn[1]
        return self._firing_BT

    def mean_squared_norm(self) -> float:
        x_BD, _ = self._sampler.rows(self._stream_seed, range(_NORM_ROWS))
        return float(x_BD.square().sum(1).mean())

    @property
    def config(self) -> dict[str, Any]:
        made_from = _hashed_settings(synthetic_settings(self._model))
        return {**self._settings(), "device": str(self.device), "synthetic_model": made_from}

    def _settings(self) -> dict[str, Any]:
        """The settings that the batches depend on."""
        return {
            "d_submodule": self.d_submodule,
            "model": self._model,
            "stream": self._stream,
            "out_batch_size": self.out_batch_size,
            "seed": self._seed,
        }

    def state_dict(self) -> dict[str, Any]:
        return {"tokens_seen": self.tokens_seen, "config": self._settings()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.tokens_seen = state["tokens_seen"]
