"""The vSAE over BatchTopK, and its trainer: the vSAE of `variational_top_k.py`, whose batch shares the features that are kept.

On top of upstream's BatchTopK (Bussmann et al. 2024, arXiv 2412.06410). Shapes: B batch, D activation_dim, F dict_size,
K = k. The loss of a batch is in `step.py`.
"""

from typing import Any

import torch as t
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE

from ..config.sae import PAPER_SIGMA, NoiseOn, Posterior, PosteriorOptions, VSAEBatchTopKConfig
from .dictionaries import TopKCode, Transcoder, require_width, sides
from .posterior import GaussianPosterior
from .step import draw_code
from .variational_top_k import VariationalDictionary, VariationalTopKTrainer


class VariationalBatchTopKAutoEncoder(VariationalDictionary, BatchTopKSAE):
    """A BatchTopK SAE with a Gaussian posterior N(mu, sigma^2) for each feature.

        mu_BF    = W_enc (x - b_dec) + b_enc
        f_BF     = ReLU(mu) where mu > threshold, 0 elsewhere
        x_hat_BD = W_dec f + b_dec                    # decoder columns are unit-norm

    In training, and in a sample, the code is that of a batch instead:

        z_BF     = mu + sigma * eps,  eps ~ N(0, I)
        f_BF     = ReLU(z) on the B K largest of z, 0 elsewhere

    The posterior and `noise_on` are those of `VariationalTopKAutoEncoder`. The threshold is the running average of the
    smallest positive mean among the B K largest.

    Arguments:
        activation_dim: D, the width of the activations.
        dict_size: F, the number of features.
        k: K, the features kept per token, on average.
        sigma: the fixed posterior's standard deviation.
        others: see `PosteriorOptions`.

    Raises: ConfigError for a value out of range.
    """

    options_class = PosteriorOptions
    over_batch = True

    def __init__(
        self,
        activation_dim: int,
        dict_size: int,
        k: int,
        *,
        sigma: float = PAPER_SIGMA,
        posterior: Posterior = PosteriorOptions.posterior,
        log_var_init: float = PosteriorOptions.log_var_init,
        noise_on: NoiseOn = PosteriorOptions.noise_on,
        prior_std: float = PosteriorOptions.prior_std,
    ):
        options = PosteriorOptions(
            posterior=posterior, log_var_init=log_var_init, noise_on=noise_on, prior_std=prior_std
        )
        self._build(activation_dim, dict_size, k, sigma, options)

    def encode(
        self,
        x: t.Tensor,
        return_active: bool = False,
        use_threshold: bool = True,
        *,
        sample: bool = False,
        generator: t.Generator | None = None,
    ) -> Any:
        """The features of `x`, dense: (B, D) -> (B, F), (B, L, D) -> (B, L, F).

        Arguments:
            x: activations of any float dtype, in the SAE's units.
            return_active: return `(features, whether each fires in any row, ReLU(mu))` instead.
            use_threshold: keep the positive means above the threshold, as many as there are: all of them while it isn't set (-1),
                in the first half of a short run. Otherwise the B K largest of all B rows, or the B L K largest of all B L.
            sample: use a sample of the posterior instead of its mean. It keeps the B K largest, whatever `use_threshold` says.
            generator: for the sample's noise. Default: torch's own generator.

        Raises: ConfigError for `x` of another width.
        """
        require_width(x, self.activation_dim)
        mu = self._mu(x)
        if use_threshold and not sample:
            rectified = mu.relu()
            features = rectified * (rectified > self.threshold)
        else:
            std = self._std(x)
            std_NF = std.flatten(0, -2) if std.dim() else std
            how = self._draw(generator, 1.0 if sample else 0.0)
            code = draw_code(mu.flatten(0, -2), std_NF, how)
            features = code.selection.spread(code.values, self.dict_size).view(mu.shape)
        if return_active:
            return features, features.flatten(0, -2).sum(0) > 0, mu.relu()
        return features

    def sparse_encode(self, x: t.Tensor) -> TopKCode:
        """The features that `encode` keeps by the threshold, without the zeros: M values, their features, and their rows (M,).

        Raises: ConfigError for `x` of another width.
        """
        require_width(x, self.activation_dim)
        return self._above_threshold(self._mu(x))

    def code_of(self, posterior: GaussianPosterior) -> TopKCode:
        """The code by a posterior's mean: the same as `sparse_encode`, without encoding again."""
        return self._above_threshold(posterior.mu)

    def _above_threshold(self, mu: t.Tensor) -> TopKCode:
        mu_NF = mu.flatten(0, -2)
        rows_M, indices_M = (mu_NF > self.threshold.clamp(min=0)).nonzero(as_tuple=True)
        return TopKCode(mu_NF[rows_M, indices_M], indices_M, rows_M)


class VariationalBatchTopKTranscoder(Transcoder, VariationalBatchTopKAutoEncoder):
    """`VariationalBatchTopKAutoEncoder` that reconstructs another activation than it reads: see `Transcoder`."""


class VariationalBatchTopKTrainer(VariationalTopKTrainer):
    """Trains a vSAE over BatchTopK: `VariationalTopKTrainer`, except for which features a batch keeps.

    A batch of B tokens keeps the B K largest z of all its tokens instead of the K of each, and a ReLU is applied to their
    values, as in upstream's BatchTopKTrainer. With posterior="point" and beta=0 it is upstream's trainer, up to rounding.

    A feature has fired when it has a positive mean among the B K largest means. `threshold`, by which the trained SAE encodes, is
    the running average of the smallest of these; it begins at `threshold_start_step`, at the last step at the latest.

    Arguments beyond upstream's: those of `VariationalTopKTrainer`, with the options of `VSAEBatchTopKConfig`. Its
    dictionary can't be split.

    Raises: ConfigError for a value out of range, or activations that are not (B, D).
    """

    settings_class = VSAEBatchTopKConfig
    dictionary_class = VariationalBatchTopKAutoEncoder
    ae: VariationalBatchTopKAutoEncoder

    def __init__(
        self,
        steps: int,
        activation_dim: int,
        dict_size: int,
        k: int,
        layer: int,
        lm_name: str,
        dict_class: type | None = None,
        lr: float | None = None,
        **options: Any,
    ):
        sizes = (steps, activation_dim, dict_size, k)
        super().__init__(*sizes, layer, lm_name, dict_class, lr, **options)
        self.threshold_start_step = min(self.threshold_start_step, self.steps - 2)

    def _encoded(self, x: t.Tensor) -> t.Tensor:
        """See `SamplingTrainer`. Over the batch, since the threshold lags behind."""
        f: Any = self.ae.encode(sides(self.ae, x)[0], use_threshold=False)
        return f
