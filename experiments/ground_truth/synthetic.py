"""Activations drawn from known features, and runs that train on them.

    model = SyntheticModel.of(BENCH_16K)
    train_missing(model.run(steps=1000, …), folder, saes, find=model.inputs)

The model is SAELens's. `synthetic_rows.py` draws its rows on the CPU. A row depends only on the stream's seed and the row's
number, so the number of rows is enough to continue a run that was stopped.

Shapes: B rows, D = the width of a row, T true features.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch as t

from dictionary_learning_ext import RunConfig
from dictionary_learning_ext.activations.batches import BatchSource
from dictionary_learning_ext.activations.inputs import Inputs
from dictionary_learning_ext.activations.rows import drawn_seed
from dictionary_learning_ext.config.run import UNKNOWN
from dictionary_learning_ext.run_folder.files import sha256_of, temporary_in
from dictionary_learning_ext.trainers.kernels.compiled import (
    compiled_module,
    logging_compilation,
    map_row_blocks,
)
from experiments.trained_saes import run_settings

logger = logging.getLogger(__name__)

RUNS = Path("runs/ground_truth")
_NORM_ROWS, _ROWS_AT_ONCE = 16_384, 128


@dataclass(frozen=True)
class Settings:
    """The settings of a synthetic model.

    An activation is the sum of the directions of the features that fire, each times its magnitude, plus a bias and
    Gaussian noise.
    """

    name: str
    config: dict[str, Any]
    """SAELens's `SyntheticModelConfig` as a dict. Its seed decides the model; a run's seeds don't."""
    noise_std: float = 0.0
    """Standard deviation per dimension of the noise that is added to SAELens's activations."""


SMALL = Settings(
    "small",
    {
        "num_features": 1024,
        "hidden_dim": 128,
        "firing_probability": {
            "generator_name": "zipfian",
            "exponent": 0.5,
            "max_prob": 0.2,
            "min_prob": 2e-3,
        },
        "hierarchy": {
            "total_root_nodes": 32,
            "branching_factor": 4,
            "max_depth": 2,
            "mutually_exclusive_portion": 0.5,
            "compensate_probabilities": True,
        },
        "correlation": {"rank": 16, "correlation_scale": 0.1},
        "std_firing_magnitudes": 0.3,
        "bias": 1.0,
        "seed": 0,
    },
    noise_std=0.06,
)
"""`synthetic:small` in PROTOCOL.md and the pages of results."""
BENCH_16K = Settings(
    "bench-16k",
    {
        # SynthSAEBench-16k (Chanin & Garriga-Alonso 2026, arXiv 2602.14687), version 2, by its published configuration.
        # Version 1 was uploaded without scale_children_by_parent.
        "num_features": 16_384,
        "hidden_dim": 768,
        "firing_probability": {
            "generator_name": "zipfian",
            "exponent": 0.5,
            "max_prob": 0.4,
            "min_prob": 5e-4,
        },
        "hierarchy": {
            "total_root_nodes": 128,
            "branching_factor": 4,
            "max_depth": 3,
            "mutually_exclusive_portion": 1.0,
            "mutually_exclusive_min_depth": 0,
            "compensate_probabilities": True,
            "scale_children_by_parent": True,
        },
        "orthogonalization": {"num_steps": 100, "lr": 3e-4},
        "correlation": {"rank": 25, "correlation_scale": 0.1},
        "mean_firing_magnitudes": {"generator_name": "linear", "start": 5.0, "end": 4.0},
        "std_firing_magnitudes": {"generator_name": "folded_normal", "mean": 0.5, "std": 0.5},
        "bias": 0.5,
        "seed": 42,
    },
)


@dataclass(frozen=True)
class SyntheticModel:
    """A synthetic model that is drawn."""

    drawn: Any
    """SAELens's `SyntheticModel`."""
    noise_std: float
    hash: str
    """SHA-256 of its weights."""

    @classmethod
    def of(cls, settings: Settings, runs: Path = RUNS) -> "SyntheticModel":
        """Draw a model, which takes a minute for BENCH_16K, and keep it in `runs`. Another draw that SAELens's
        `SyntheticModel.save` wrote may be put there instead, e.g. decoderesearch/synth-sae-bench-16k-v2 of the hub."""
        import sae_lens.synthetic as sae_lens  # pyright: ignore[reportMissingImports]

        folder = runs / settings.name
        if not folder.is_dir():
            runs.mkdir(parents=True, exist_ok=True)
            with temporary_in(runs, settings.name) as unfinished:
                _drawn(settings, sae_lens).save(unfinished)
                unfinished.rename(folder)
        weights = folder / "synthetic_model.safetensors"
        model = sae_lens.SyntheticModel.load_from_disk(folder)
        return cls(model, settings.noise_std, sha256_of(weights))

    def run(self, **settings: Any) -> RunConfig:
        """The settings of a run on this model. Nothing is measured on held-out text."""
        unknown = dict.fromkeys(("model", "hook", "data"), UNKNOWN)
        return run_settings(**unknown, eval_tokens=0, **settings)

    def rows(self, stream: str, batch_size: int, seed: int = 0) -> "SyntheticRows":
        """Rows of a stream, "train" or "heldout". They have different random numbers for the same seed."""
        sampler = Sampler(self.drawn, self.noise_std)
        return SyntheticRows(sampler, drawn_seed(stream, seed), batch_size)

    def inputs(self, *given: Any, **options: Any) -> Inputs:
        """The data of a run, as `carry_out` asks for it."""
        return _Inputs(self, *given, **options)


def _drawn(settings: Settings, sae_lens: Any) -> Any:
    config = sae_lens.SyntheticModelConfig.from_dict(settings.config)
    more_orthogonal, config.orthogonalization = config.orthogonalization, None
    drawn = sae_lens.SyntheticModel(config)
    if more_orthogonal is not None:
        vectors_TD = drawn.feature_dict.feature_vectors
        logger.info("making %d directions more orthogonal", len(vectors_TD))
        vectors_TD.data = _more_orthogonal(
            vectors_TD, steps=more_orthogonal.num_steps, lr=more_orthogonal.lr
        )
        config.orthogonalization = more_orthogonal
    return drawn


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
        drawn: SAELens's `SyntheticModel`.
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
        self._kernel = compiled_module("experiments.ground_truth.synthetic_rows")
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


class SyntheticRows(BatchSource):
    """Batches of a stream's rows in float32, which know the true features.

    Attributes:
        vectors_TD: the true features' directions.
    """

    def __init__(self, sampler: Sampler, stream_seed: int, out_batch_size: int):
        self._sampler, self._seed = sampler, stream_seed
        self.out_batch_size, self.vectors_TD = out_batch_size, sampler.vectors_TD
        self.d_submodule = self.vectors_TD.shape[1]
        self.tokens_seen = 0
        self._last = range(0)

    def __next__(self) -> t.Tensor:
        self._last = range(self.tokens_seen, self.tokens_seen + self.out_batch_size)
        self.tokens_seen += self.out_batch_size
        return self._sampler.rows(self._seed, self._last)[0]

    def firing_BT(self) -> t.Tensor:
        """The true features' magnitudes in the last batch, 0 if one doesn't fire."""
        return self._sampler.rows(self._seed, self._last, with_firing=True)[1]

    def first_rows(self) -> t.Tensor:
        return self._sampler.rows(self._seed, range(_NORM_ROWS))[0]

    def state_dict(self) -> dict[str, Any]:
        return {"tokens_seen": self.tokens_seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.tokens_seen = state["tokens_seen"]


class _Inputs(Inputs):
    """A synthetic model as the data of a run, which can be continued after a stop."""

    no_language_model = "these activations are synthetic"

    def __init__(self, model: SyntheticModel, *given: Any, **options: Any):
        self._model = model
        super().__init__(*given, **options)

    def _find(self, hooks: list[str]) -> None:
        width: int = self._model.drawn.feature_dict.feature_vectors.shape[1]
        self.widths = dict.fromkeys(hooks, width)

    def hashes(self) -> dict[str, str]:
        return {"language_model": self._model.hash, "tokenizer": ""}

    def _source(self, hook: str) -> BatchSource:
        settings = self._settings
        return self._model.rows("train", settings.batch_size, settings.data_seed)
