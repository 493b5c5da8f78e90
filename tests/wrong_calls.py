# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
"""Wrong calls, each beside one that is right: for each public name a name that it doesn't have, and a value of another type.

Nothing here is executed. Each wrong call says which rule must flag it. pyright fails if a wrong call isn't flagged by its
rule, or if any other line is flagged; an untyped signature fails both ways.
"""

from typing import Any

import torch as t

from dictionary_learning_ext import (
    ProbabilisticTopKTrainer,
    RunConfig,
    VAEase,
    VAEaseTrainer,
    VariationalTopKAutoEncoder,
    VariationalTopKTrainer,
    features_of,
    load_dictionary,
    measure,
    train,
    trainer_options,
)
from dictionary_learning_ext.config.sae import (
    BatchTopKConfig,
    JumpReLUConfig,
    MatryoshkaConfig,
    ProbabilisticTopKConfig,
    ReLUConfig,
    SAEConfig,
    TopKConfig,
    VAEaseConfig,
    VSAEConfig,
    VSAETopKConfig,
)


def settings() -> None:
    RunConfig(steps=20, normalize="unit", max_norm_multiple=10.0, save_every="2h")
    RunConfig(step=20)  # pyright: ignore[reportCallIssue]
    RunConfig(steps="20")  # pyright: ignore[reportArgumentType]
    RunConfig(normalize="sqrtd")  # pyright: ignore[reportArgumentType]
    TopKConfig(k=8)
    VSAETopKConfig(8)  # pyright: ignore[reportCallIssue]
    VSAETopKConfig(noise_to_signal="0.6")  # pyright: ignore[reportArgumentType]
    VSAETopKConfig(k=8, beta=0.1, posterior="learned", rectify=True, sigma=0.5)
    VSAETopKConfig(betta=0.1)  # pyright: ignore[reportCallIssue]
    VSAETopKConfig(beta="0.1")  # pyright: ignore[reportArgumentType]
    VSAETopKConfig(posterior="points")  # pyright: ignore[reportArgumentType]
    VSAEConfig(beta=0.1)
    VSAEConfig(k=8)  # pyright: ignore[reportCallIssue]
    VSAEConfig(beta="0.1")  # pyright: ignore[reportArgumentType]
    TopKConfig(k=8, auxk_alpha=0.0)
    TopKConfig(beta=0.1)  # pyright: ignore[reportCallIssue]
    TopKConfig(auxk_alpha="0")  # pyright: ignore[reportArgumentType]
    ProbabilisticTopKConfig(temperature_end=0.1)
    ProbabilisticTopKConfig(posterior="fixed")  # pyright: ignore[reportCallIssue]
    ProbabilisticTopKConfig(temperature_end="0.1")  # pyright: ignore[reportArgumentType]
    BatchTopKConfig(k=8)
    BatchTopKConfig(group_fractions=(0.5, 0.5))  # pyright: ignore[reportCallIssue]
    BatchTopKConfig(k="8")  # pyright: ignore[reportArgumentType]
    ReLUConfig(l1_penalty=0.1, sparsity_warmup_steps=5)
    ReLUConfig(k=8)  # pyright: ignore[reportCallIssue]
    ReLUConfig(sparsity_warmup=0.1)  # pyright: ignore[reportCallIssue]
    JumpReLUConfig(target_l0=16.0)
    JumpReLUConfig(l1_penalty=0.1)  # pyright: ignore[reportCallIssue]
    JumpReLUConfig(target_l0="16")  # pyright: ignore[reportArgumentType]
    MatryoshkaConfig(k=8, group_fractions=(0.5, 0.5))
    MatryoshkaConfig(groups=(0.5, 0.5))  # pyright: ignore[reportCallIssue]
    MatryoshkaConfig(group_fractions=("a", "b"))  # pyright: ignore[reportArgumentType]
    VAEaseConfig(gamma_init=0.1, active_gate=0.05)
    VAEaseConfig(sigma=1.0)  # pyright: ignore[reportCallIssue]
    VAEaseConfig(active_gate="0.05")  # pyright: ignore[reportArgumentType]


def attributes_of_settings() -> None:
    run, vsae, relu = RunConfig(), VSAETopKConfig(), ReLUConfig()
    print(run.steps + 1, vsae.k + 1, vsae.beta + 1.0, relu.l1_penalty + 1.0)
    print(run.step)  # pyright: ignore[reportAttributeAccessIssue, reportUnknownArgumentType, reportUnknownMemberType]
    print(vsae.betta)  # pyright: ignore[reportAttributeAccessIssue, reportUnknownArgumentType, reportUnknownMemberType]
    print(relu.k)  # pyright: ignore[reportAttributeAccessIssue, reportUnknownArgumentType, reportUnknownMemberType]
    vsae.k = 16  # pyright: ignore[reportAttributeAccessIssue]


def trainers(x: t.Tensor) -> None:
    """steps, activation_dim, dict_size, k where there is one, layer, lm_name, then options by name."""
    vsae = VariationalTopKTrainer(20, 16, 32, 4, 0, "lm", posterior="fixed", sigma=0.5, seed=0)
    VariationalTopKTrainer(20, 16, 32, 4)  # pyright: ignore[reportCallIssue]
    VariationalTopKTrainer(20, 16, 32, 4, 0, "lm", beta=0.1, noise_anneal_steps=None, lr=1e-3)
    print(vsae.update(0, x).item(), vsae.ae.encode(x))
    print(vsae.update(x))  # pyright: ignore[reportCallIssue, reportUnknownArgumentType]
    ProbabilisticTopKTrainer(20, 16, 32, 4, 0, "lm", temperature_start=2.0)
    VAEaseTrainer(20, 16, 32, 0, "lm", gamma_init=0.1, active_gate=0.05, lr=1e-3, seed=0)
    VAEaseTrainer(20, 16, "32", 0, "lm")  # pyright: ignore[reportArgumentType]


def dictionaries(x: t.Tensor) -> None:
    vsae = VariationalTopKAutoEncoder(16, 32, 4, posterior="learned", log_var_init=-2.0)
    VariationalTopKAutoEncoder(16, 32, 4, sigma="1")  # pyright: ignore[reportArgumentType]
    VariationalTopKAutoEncoder(16, 32, 4, noise_to_signal=0.3)  # pyright: ignore[reportCallIssue]
    print(vsae.encode(x, sample=True), vsae.decode(x), vsae.posterior(x).mu)
    print(vsae.encode(x, samples=True))  # pyright: ignore[reportCallIssue, reportUnknownArgumentType]
    print(vsae.encode(x, generator=0))  # pyright: ignore[reportArgumentType]
    vaease = VAEase(16, 32, gamma_init=0.1, prior_std=1.0)
    VAEase(16, 32, gamma_init="0.1")  # pyright: ignore[reportArgumentType]
    print(vaease.encode(x, sample=True), vaease.posterior(x).gate)
    print(vaease.encode(x, sampled=True))  # pyright: ignore[reportCallIssue, reportUnknownArgumentType]


def functions(run: RunConfig, sae: SAEConfig, held_out: Any) -> None:
    print(trainer_options("paper", activation_dim=16, dict_size=32, k=4, steps=20)["sigma"])
    trainer_options(activation_dim=16, dict_size=32, k=4, steps=20, sigma=1.0)  # pyright: ignore[reportCallIssue]
    trainer_options(activation_dim=16, dict_size="32", k=4, steps=20)  # pyright: ignore[reportArgumentType]
    print(train(run, {"a": sae, "b": TopKConfig()}, {"b": "blocks.1.hook_mlp_out"})["a"].name)
    train(run, {"a": sae}, resumed=True)  # pyright: ignore[reportCallIssue]
    train(run, {"a": run})  # pyright: ignore[reportArgumentType]
    found = features_of("runs/a", tokens=10_000, hook="blocks.0.hook_resid_post")
    print(found.top(17), found[17].firing_rate)
    features_of("runs/a", token=10_000)  # pyright: ignore[reportCallIssue]
    features_of("runs/a", tokens="10,000")  # pyright: ignore[reportArgumentType]
    found.top("17")  # pyright: ignore[reportArgumentType]
    print(found[17].densities)  # pyright: ignore[reportAttributeAccessIssue, reportUnknownArgumentType, reportUnknownMemberType]
    dictionary, config = load_dictionary("runs/a", "cpu", step=100)
    print(dictionary.activation_dim, config["trainer"])
    load_dictionary("runs/a", devices="cpu")  # pyright: ignore[reportCallIssue]
    load_dictionary("runs/a", step="100")  # pyright: ignore[reportArgumentType]
    print(measure({"a": (dictionary, 1.0)}, held_out, seed=1)["a"]["fve"])
    measure({"a": (dictionary, 1.0)}, held_out, seeds=1)  # pyright: ignore[reportCallIssue]
    measure({"a": (dictionary, "1")}, held_out)  # pyright: ignore[reportArgumentType]
