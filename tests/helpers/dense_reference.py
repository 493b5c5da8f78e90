"""The vSAE's objective as design and paper state it, written densely for autograd."""

import torch as t
from torch.distributions import Normal, kl_divergence

from dictionary_learning_ext.config.sae import NoiseOn
from dictionary_learning_ext.trainers.kernels.encode import BatchMeans
from dictionary_learning_ext.trainers.kernels.select import draw_batch
from dictionary_learning_ext.trainers.step import Draw, LossTerms, StepObjective, Weights


def compiled_noise(
    batch: int, n_features: int, generator: t.Generator, noise_on: NoiseOn = "both"
) -> t.Tensor:
    """The N(0, 1) noise, (B, F), that the compiled form draws with the generator. With "values", that of each place
    among `n_features` selected ones.
    """
    means = BatchMeans(
        t.zeros(batch, 1),
        t.zeros(n_features, 1),
        t.zeros(n_features),
        rectify=False,
        matmul_dtype=t.float32,
    )
    drawn = draw_batch(means, t.ones(()), Draw(n_features, noise_on, 1.0, generator))
    if noise_on == "values":
        return drawn.values_BK
    return t.zeros(batch, n_features).scatter(1, drawn.indices_BK, drawn.values_BK)


def dense_loss(x_BD: t.Tensor, weights: Weights, objective: StepObjective) -> LossTerms:
    """Every one of `LossTerms`, with the noise that `draw_code` draws."""
    W_enc, b_enc, W_dec, b_dec, W_var, b_var = weights
    settings = objective.settings
    mu = (x_BD - b_dec) @ W_enc.T + b_enc
    mu = mu.clamp(min=0) if settings.rectify else mu

    if settings.posterior == "learned":
        log_var = (x_BD - b_dec) @ W_var.T + b_var
        std = (log_var.clamp(*objective.log_var_limits) / 2).exp()
    elif settings.posterior == "fixed":
        std = objective.sigma.expand_as(mu)
    else:
        std = t.zeros_like(mu)

    def largest(values, k):
        """Which K are kept, in the order that noise on the values is drawn in."""
        by = values.abs() if settings.select_by == "magnitude" else values
        return by.topk(k, sorted=False).indices

    generator = objective.generator
    scale = 0.0 if settings.posterior == "point" else objective.noise_scale
    if scale == 0:
        chosen, source = largest(mu, objective.k), mu
    elif settings.noise_on == "values":
        chosen = largest(mu, objective.k)
        noise = t.randn(chosen.shape, generator=generator, dtype=mu.dtype)
        eps = t.zeros_like(mu).scatter(1, chosen, noise)
        source = mu + scale * std * eps
    else:
        eps = t.empty_like(mu).normal_(generator=generator)
        z = mu + scale * std * eps
        chosen = largest(z, objective.k)
        source = z if settings.noise_on == "both" else mu
    mask = t.zeros_like(mu).scatter(1, chosen, 1.0)
    x_hat = (source * mask) @ W_dec.T + b_dec

    if settings.posterior == "point":
        kl = mu**2 / (2 * settings.prior_std**2)
    else:
        kl = kl_divergence(Normal(mu, std), Normal(t.zeros_like(mu), settings.prior_std))
    counted = kl * mask if settings.kl_scope == "selected" else kl
    kl_loss = counted.sum(1).mean()

    selected = largest(mu, objective.k)
    mu_selected = mu.gather(1, selected)
    fired = t.zeros(mu.shape[1], dtype=t.bool)
    fired[selected[(mu_selected != 0) | (scale == 0)]] = True
    since_fired = t.where(fired, 0, objective.tokens_since_fired_F + len(x_BD))
    if settings.select_by == "magnitude":
        mu_selected = mu_selected.abs()
    positive_rows = [row[row > 0] for row in mu_selected]
    smallest = t.stack([row.min() for row in positive_rows if len(row)])
    dead = since_fired >= objective.dead_feature_threshold
    auxk_loss = t.zeros((), dtype=mu.dtype)
    if dead.any() and objective.auxk_alpha > 0:
        residual = (x_BD - x_hat).detach()
        strength = mu.abs() if settings.select_by == "magnitude" else mu
        n_aux = min(objective.top_k_aux, int(dead.sum()))
        top = t.where(dead, strength, -t.inf).topk(n_aux).indices
        values = mu if settings.select_by == "magnitude" else mu.relu()
        aux_code = t.zeros_like(mu).scatter(1, top, values.gather(1, top))
        variance = (residual - residual.mean(0)).pow(2).sum(1).mean()
        auxk_loss = (residual - aux_code @ W_dec.T).pow(2).sum(1).mean() / variance

    l2_loss = (x_BD - x_hat).pow(2).sum(1).mean()
    loss = l2_loss + objective.kl_weight * kl_loss + objective.auxk_alpha * auxk_loss
    return LossTerms(loss, l2_loss, kl_loss, auxk_loss, smallest.mean(), since_fired)
