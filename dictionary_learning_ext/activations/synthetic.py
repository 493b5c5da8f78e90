"""Batches that a synthetic model draws, and which of its true features fired at each.

The model is SAELens's, and stays on the CPU: a batch is the same on every device. Batch n of a stream is
drawn from a seed of its own, so the number of batches says where to resume.

Shapes: B rows, D = the width of a row, T true features.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any

import torch as t

from ..config.synthetic_models import SyntheticSettings, synthetic_settings
from ..errors import ConfigError
from ..run_folder.files import sha256_of
from .buffer import require_same_settings
from .rows import drawn_seed
from .tokens import WHOLE, Share

logger = logging.getLogger(__name__)

_ROWS_OF_THE_NORM = 16_384


def draw_model(model: str) -> Any:
    """SAELens's `SyntheticModel` of `synthetic:NAME`: always the same one. `.save(folder)` keeps it.

    Raises: ConfigError if there is no such model, or SAELens isn't installed.
    """
    settings = synthetic_settings(model)
    try:
        from sae_lens.synthetic import (  # pyright: ignore[reportMissingImports]
            SyntheticModel,
            SyntheticModelConfig,
        )
    except ImportError as error:
        raise ConfigError(
            name="model",
            value=model,
            expected=f"SAELens, which draws these activations ({error})",
            instead="install it: pip install 'dictionary-learning-ext[synthetic]'",
        ) from error
    if settings.folder is not None:
        return SyntheticModel.load_from_disk(settings.folder)
    config = SyntheticModelConfig.from_dict(settings.config)
    more_orthogonal, config.orthogonalization = config.orthogonalization, None
    drawn = SyntheticModel(config)
    if more_orthogonal is not None:
        vectors_TD = drawn.feature_dict.feature_vectors
        logger.info("%s: making %s directions more orthogonal", model, f"{settings.features:,}")
        vectors_TD.data = _more_orthogonal(
            vectors_TD, steps=more_orthogonal.num_steps, lr=more_orthogonal.lr
        )
        config.orthogonalization = more_orthogonal
    return drawn


def _more_orthogonal(vectors_TD: t.Tensor, *, steps: int, lr: float) -> t.Tensor:
    """What SAELens's `orthogonalize_embeddings` returns, up to rounding, in a fraction of the time.

    Its loss is the sum of (v_i . v_j)^2 over i != j, plus T (|v_i|^2 - 1)^2 for each i. SAELens takes the gradient
    through all T^2 products; here it is 4 V (V'V), which has D^2, and what the terms i = j change in it.
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
    """A hash of what a synthetic model is made from: its settings, the weights that are read, and SAELens's
    version."""
    settings = synthetic_settings(model)
    made_from = {**_made_from(settings), "sae_lens": metadata.version("sae-lens")}
    if settings.folder is not None:
        files = sorted(settings.folder.iterdir())
        made_from["files"] = [sha256_of(path) for path in files if path.is_file()]
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()


def _made_from(settings: SyntheticSettings) -> dict[str, Any]:
    return {**settings.config, "noise_std": settings.noise_std}


class SyntheticSource:
    """A synthetic model's activations in float32, as a `BatchSource` that knows their `Truth`.

    Arguments:
        model: `synthetic:NAME`.
        drawn: what `draw_model` returns for it.
        stream: "train" or "heldout". Two streams share no seed.
        seed: of the samples.
        share: of several processes each draws its own batches.
    """

    is_used_up = False  # nothing is filled: each batch is drawn when it is asked for

    def __init__(
        self,
        model: str,
        drawn: Any,
        *,
        stream: str = "train",
        out_batch_size: int,
        seed: int = 0,
        device: str = "cpu",
        share: Share = WHOLE,
    ):
        self._model, self._drawn, self._stream = model, drawn, stream
        self._noise_std = synthetic_settings(model).noise_std
        self._seed, self._share = seed, share
        self.out_batch_size, self.device = out_batch_size, device
        self.vectors_TD: t.Tensor = drawn.feature_dict.feature_vectors.detach()
        self.firing_BT = t.zeros(0, len(self.vectors_TD))
        self.d_submodule = self.vectors_TD.shape[1]
        self.tokens_seen = 0

    def __iter__(self) -> "SyntheticSource":
        return self

    def __next__(self) -> t.Tensor:
        x_BD, self.firing_BT = self._batch(self.tokens_seen // self.out_batch_size)
        self.tokens_seen += self.out_batch_size
        return x_BD.to(self.device)

    def mean_squared_norm(self) -> float:
        batches = max(1, _ROWS_OF_THE_NORM // self.out_batch_size)
        squares = [float(self._batch(n)[0].square().sum(1).mean()) for n in range(batches)]
        return sum(squares) / batches

    def refreshing(self) -> Iterator[None]:
        return iter(())

    @property
    def config(self) -> dict[str, Any]:
        made_from = _made_from(synthetic_settings(self._model))
        return {**self._settings(), "device": str(self.device), "synthetic_model": made_from}

    def _settings(self) -> dict[str, Any]:
        """The settings that decide what the batches hold."""
        return {
            "d_submodule": self.d_submodule,
            "model": self._model,
            "stream": self._stream,
            "out_batch_size": self.out_batch_size,
            "seed": self._seed,
            "share": list(self._share),
        }

    def state_dict(self) -> dict[str, Any]:
        return {"tokens_seen": self.tokens_seen, "config": self._settings()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        require_same_settings(state["config"], self._settings())
        self.tokens_seen = state["tokens_seen"]

    def _batch(self, number: int) -> tuple[t.Tensor, t.Tensor]:
        """A batch of the stream, by its number from 0, and its firings.

        SAELens draws from torch's global generator, which is put back afterwards.
        """
        seed = drawn_seed(self._stream, self._seed, self._share.rank, number)
        with t.random.fork_rng(devices=[]):
            t.default_generator.manual_seed(seed)
            x_BD, firing_BT = self._drawn.sample_with_features(self.out_batch_size)
            return x_BD + self._noise_std * t.randn_like(x_BD), firing_BT
