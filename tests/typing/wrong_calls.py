"""Calls that a type checker must flag, each marked at the end of its line, between calls that are right.

Nothing here is executed. `check.py` compares the marked lines with those that pyright flags.
"""

from typing import Any

import torch as t

from dictionary_learning_ext import (
    ProbabilisticTopKTrainer,
    RunConfig,
    SAEConfig,
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
    TopKConfig,
    VAEaseConfig,
    VSAEConfig,
    VSAETopKConfig,
)

# --- an SAE's settings, by the name of its architecture: their options are checked when it runs


def settings_by_name() -> None:
    SAEConfig(architecture="top_k", k=8)
    SAEConfig(8)  # wrong
    print(SAEConfig().lr, SAEConfig().resolve(1000, 1024).dict_size)
    print(SAEConfig().resolve(1000))  # wrong
    print(SAEConfig().resolve("1000", 1024))  # wrong


# --- an SAE's settings, by the class of its architecture


def settings_by_class() -> None:
    VSAETopKConfig(k=8, beta=0.1, posterior="learned", rectify=True, noise_anneal=0.5)
    VSAETopKConfig(architecture="vsae_top_k")
    VSAETopKConfig(architecture="vsae")  # wrong
    VSAETopKConfig(betta=0.1)  # wrong
    VSAETopKConfig(beta="0.1")  # wrong
    VSAETopKConfig(k=8.5)  # wrong
    VSAETopKConfig(k=None)  # wrong
    VSAETopKConfig(posterior="points")  # wrong
    VSAETopKConfig(select_by="size")  # wrong
    VSAETopKConfig(kl_schedule="fast")  # wrong
    VSAETopKConfig(rectify="yes")  # wrong
    VSAETopKConfig(l1_penalty=0.1)  # wrong
    VSAEConfig(beta=0.1)
    VSAEConfig(k=8)  # wrong
    TopKConfig(k=8, auxk_alpha=0.0, k_anneal=None)
    TopKConfig(beta=0.1)  # wrong
    TopKConfig(auxk_alpha="0")  # wrong
    TopKConfig(8)  # wrong
    ProbabilisticTopKConfig(temperature_end=0.1)
    ProbabilisticTopKConfig(temperature_end="0.1")  # wrong
    ProbabilisticTopKConfig(posterior="fixed")  # wrong
    BatchTopKConfig(k=8)
    BatchTopKConfig(group_fractions=(0.5, 0.5))  # wrong
    ReLUConfig(l1_penalty=0.1, sparsity_warmup=0.1)
    ReLUConfig(k=8)  # wrong
    ReLUConfig(sparsity_warmup_steps=5)  # wrong
    JumpReLUConfig(target_l0=16.0, threshold_twice=True)
    JumpReLUConfig(target_l0="16")  # wrong
    JumpReLUConfig(l1_penalty=0.1)  # wrong
    MatryoshkaConfig(k=8, group_fractions=(0.5, 0.5))
    MatryoshkaConfig(groups=(0.5, 0.5))  # wrong
    MatryoshkaConfig(group_fractions=("a", "b"))  # wrong
    VAEaseConfig(gamma_init=0.1, active_gate=0.05)
    VAEaseConfig(sigma=1.0)  # wrong
    VAEaseConfig(active_gate="0.05")  # wrong


def attributes_of_settings_by_class() -> None:
    vsae, top_k, relu = VSAETopKConfig(), TopKConfig(), ReLUConfig()
    print(vsae.k + 1, vsae.beta + 1.0, top_k.k + 1, relu.l1_penalty + 1.0)
    print(vsae.betta)  # wrong
    print(top_k.beta)  # wrong
    print(relu.k)  # wrong
    vsae.k = 16  # wrong


# --- a run's settings


def settings_of_a_run() -> None:
    RunConfig(steps=20, batch_size=128, normalize="unit", max_norm_multiple=10.0, save_every="2h")
    RunConfig(step=20)  # wrong
    RunConfig(k=8)  # wrong
    RunConfig(steps="20")  # wrong
    RunConfig(steps=None)  # wrong
    RunConfig(hook=3)  # wrong
    RunConfig(normalize="sqrtd")  # wrong
    RunConfig(text_packing="packed")  # wrong
    RunConfig(dtype="float16")  # wrong
    RunConfig(wandb="on")  # wrong
    RunConfig(max_norm_multiple="10")  # wrong
    RunConfig(remove_bos="yes")  # wrong
    RunConfig(save_every=500)  # wrong
    run = RunConfig()
    print(run.steps + 1, run.hooks)
    print(run.step)  # wrong
    print(run.save_dir.upper())  # wrong
    run.steps = 30  # wrong


# --- trainers: steps, activation_dim, dict_size, k, layer, lm_name, then options by name


def variational_top_k_trainer(x: t.Tensor) -> None:
    VariationalTopKTrainer(20, 16, 32, 4, 0, "lm", posterior="fixed", sigma=0.5, beta=0.1)
    VariationalTopKTrainer(20, 16, 32, 4, 0, "lm", lr=1e-3, device="cpu", seed=0, auxk_alpha=0.0)
    VariationalTopKTrainer(20, 16, 32, 4, 0, "lm", betta=0.1)  # wrong
    VariationalTopKTrainer(20, 16, 32, 4, 0, "lm", noise_to_signal=0.3)  # wrong
    VariationalTopKTrainer(20, 16, 32, 4, 0, "lm", temperature_start=5.0)  # wrong
    VariationalTopKTrainer(20, 16, 32, 4, 0, "lm", gamma_init=0.1)  # wrong
    VariationalTopKTrainer(20, 16, 32, 4, 0, "lm", posterior="fix")  # wrong
    VariationalTopKTrainer(20, 16, 32, 4, 0, "lm", noise_on="value")  # wrong
    VariationalTopKTrainer(20, 16, 32, 4, 0, "lm", kl_scope="some")  # wrong
    VariationalTopKTrainer(20, 16, 32, 4, 0, "lm", dtype="float16")  # wrong
    VariationalTopKTrainer(20, 16, 32, 4, 0, "lm", sigma="0.5")  # wrong
    VariationalTopKTrainer(20, 16, 32, 4, 0, "lm", beta=None)  # wrong
    VariationalTopKTrainer(20, 16, 32, 4, 0, "lm", freeze_decoder="no")  # wrong
    VariationalTopKTrainer(20, 16, 32, 4, 0, "lm", kl_warmup_steps=0.1)  # wrong
    VariationalTopKTrainer(20, 16, 32, 4, 0, "lm", seed="0")  # wrong
    VariationalTopKTrainer(20, 16, 32, "4", 0, "lm")  # wrong
    VariationalTopKTrainer(20, 16, 32, 4)  # wrong
    trainer = VariationalTopKTrainer(20, 16, 32, 4, 0, "lm")
    print(trainer.update(0, x).item(), trainer.ae.encode(x))
    print(trainer.update(x))  # wrong
    print(trainer.learning_rate)  # wrong
    print(trainer.model)  # wrong


def probabilistic_top_k_trainer(x: t.Tensor) -> None:
    ProbabilisticTopKTrainer(20, 16, 32, 4, 0, "lm", temperature_start=2.0, auxk_alpha=0.0)
    ProbabilisticTopKTrainer(20, 16, 32, 4, 0, "lm", lr=1e-3, k_anneal_steps=10, dtype="bfloat16")
    ProbabilisticTopKTrainer(20, 16, 32, 4, 0, "lm", temperature=2.0)  # wrong
    ProbabilisticTopKTrainer(20, 16, 32, 4, 0, "lm", sigma=1.0)  # wrong
    ProbabilisticTopKTrainer(20, 16, 32, 4, 0, "lm", temperature_end="0.1")  # wrong
    ProbabilisticTopKTrainer(20, 16, 32, 4, 0, "lm", k_anneal_steps=0.5)  # wrong
    ProbabilisticTopKTrainer(20, 16, 32, 4, 0, "lm", dtype="float16")  # wrong
    ProbabilisticTopKTrainer(20, 16, 32, 4, 0)  # wrong
    trainer = ProbabilisticTopKTrainer(20, 16, 32, 4, 0, "lm")
    print(trainer.update(0, x).item())
    print(trainer.temperatures)  # wrong


def vaease_trainer(x: t.Tensor) -> None:
    VAEaseTrainer(20, 16, 32, 0, "lm", gamma_init=0.1, active_gate=0.05, lr=1e-3, seed=0)
    VAEaseTrainer(20, 16, 32, 0, "lm", gamma=0.1)  # wrong
    VAEaseTrainer(20, 16, 32, 0, "lm", k=4)  # wrong
    VAEaseTrainer(20, 16, 32, 0, "lm", beta=1.0)  # wrong
    VAEaseTrainer(20, 16, 32, 0, "lm", prior_std="1")  # wrong
    VAEaseTrainer(20, 16, 32, 0, "lm", dtype="float16")  # wrong
    VAEaseTrainer(20, 16, 32, 0, "lm", lr=None)  # wrong
    VAEaseTrainer(20, 16, 32)  # wrong
    trainer = VAEaseTrainer(20, 16, 32, 0, "lm")
    print(trainer.update(0, x).item(), trainer.ae.posterior(x).gate)
    print(trainer.gamma)  # wrong


# --- dictionaries. A torch.nn.Module may have any attribute, so these are wrong where they are called


def variational_top_k_auto_encoder(x: t.Tensor) -> None:
    VariationalTopKAutoEncoder(16, 32, 4, posterior="learned", log_var_init=-2.0, rectify=True)
    VariationalTopKAutoEncoder(16, 32, 4, beta=1.0)  # wrong
    VariationalTopKAutoEncoder(16, 32, 4, posterior="learnt")  # wrong
    VariationalTopKAutoEncoder(16, 32, 4, sigma="1")  # wrong
    VariationalTopKAutoEncoder(16, 32, 4, gamma_init=0.1)  # wrong
    VariationalTopKAutoEncoder(16, 32, "4")  # wrong
    VariationalTopKAutoEncoder(16, 32)  # wrong
    sae = VariationalTopKAutoEncoder(16, 32, 4)
    print(sae.encode(x, sample=True), sae.decode(x), sae.posterior(x).mu)
    print(sae.encode(x, samples=True))  # wrong
    print(sae.encode(x, generator=0))  # wrong
    print(sae.encod(x))  # wrong
    print(sae.posterior(x).mean)  # wrong
    sae.scale_biases("2")  # wrong


def vaease(x: t.Tensor) -> None:
    VAEase(16, 32, gamma_init=0.1, prior_std=1.0)
    VAEase(16, 32, k=4)  # wrong
    VAEase(16, 32, sigma=1.0)  # wrong
    VAEase(16, 32, gamma=0.1)  # wrong
    VAEase(16, 32, active_gate="0.05")  # wrong
    VAEase(16)  # wrong
    sae = VAEase(16, 32)
    print(sae.encode(x, sample=True), sae.active_dimensions(x), sae.posterior(x).gate)
    print(sae.encode(x, sampled=True))  # wrong
    print(sae.posterior(x).gates)  # wrong
    print(sae.decode())  # wrong


# --- functions


def arguments_of_a_trainer() -> None:
    print(trainer_options("paper", activation_dim=16, dict_size=32, k=4, steps=20)["sigma"])
    trainer_options(activation_dim=16, dict_size=32, k=4, steps=20, mean_squared_norm=2.0)
    trainer_options(activation_dim=16, dict_size=32, k=4)  # wrong
    trainer_options(activation_dim=16, dict_size="32", k=4, steps=20)  # wrong
    trainer_options(activation_dim=16, dict_size=32, k=4, steps=20, sigma=1.0)  # wrong
    trainer_options("paper", 16, 32, 4, 20)  # wrong
    print(trainer_options(activation_dim=16, dict_size=32, k=4, steps=20).sigma)  # wrong


def training(run: RunConfig, sae: SAEConfig) -> None:
    print(train(run, {"a": sae, "b": SAEConfig(architecture="top_k")})["a"].name)
    train(run, {"a": VSAETopKConfig(), "b": TopKConfig()}, {"b": "blocks.1.hook_mlp_out"})
    train(run, sae)  # wrong
    train(sae, {"a": sae})  # wrong
    train(run, {"a": run})  # wrong
    train(run, {"a": sae}, ["blocks.0.hook_resid_post"])  # wrong
    train(run, {"a": sae}, resumed=True)  # wrong
    train(run, {"a": sae}, resume="yes")  # wrong


def features() -> None:
    found = features_of("runs/a", tokens=10_000, hook="blocks.0.hook_resid_post")
    print(found.top(17), found[17].density, found.search(" Emma"))
    features_of("runs/a", token=10_000)  # wrong
    features_of("runs/a", tokens="10,000")  # wrong
    features_of("runs/a", hook=0)  # wrong
    features_of(17)  # wrong
    found.tops(17)  # wrong
    found.top("17")  # wrong
    print(found[17].densities)  # wrong
    print(found["17"])  # wrong


def loading(x: t.Tensor) -> None:
    sae, config = load_dictionary("runs/a", "cpu", step=100)
    print(sae.activation_dim, config["trainer"])
    load_dictionary("runs/a", step="100")  # wrong
    load_dictionary("runs/a", devices="cpu")  # wrong
    load_dictionary(100)  # wrong
    load_dictionary("runs/a").encode(x)  # wrong


def measuring(held_out: Any) -> None:
    sae = VAEase(16, 32)
    print(measure({"a": (sae, 1.0)}, held_out, 10_000, seed=1)["a"]["fve"])
    measure({"a": sae}, held_out, 10_000)  # wrong
    measure({"a": (sae, "1")}, held_out, 10_000)  # wrong
    measure({"a": (sae, 1.0)}, held_out, "10,000")  # wrong
    measure({"a": (sae, 1.0)}, held_out)  # wrong
    measure({"a": (sae, 1.0)}, held_out, 10_000, seeds=1)  # wrong
