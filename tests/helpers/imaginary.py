"""A trainer file as a contributor would write it: copied into a package by tests/test_adding.py."""

from typing import Any, NamedTuple

import torch as t
from dictionary_learning.dictionary import Dictionary
from dictionary_learning.trainers.trainer import SAETrainer
from torch import nn

from .base import SamplingTrainer  # pyright: ignore
from .dictionaries import FromState  # pyright: ignore
from .optimizers import GuardedAdam  # pyright: ignore


class ImaginarySAE(FromState, Dictionary):
    """A ReLU SAE whose activations are shrunk by a factor."""

    shrink: t.Tensor

    def __init__(self, activation_dim: int, dict_size: int, *, shrink: float = 1.0):
        super().__init__()
        self.activation_dim, self.dict_size = activation_dim, dict_size
        self.encoder = nn.Linear(activation_dim, dict_size)
        self.decoder = nn.Linear(dict_size, activation_dim, bias=False)
        self.b_dec = nn.Parameter(t.zeros(activation_dim))
        self.register_buffer("shrink", t.tensor(shrink))

    def encode(self, x: t.Tensor) -> t.Tensor:
        return self.encoder(x - self.b_dec).relu() * self.shrink

    def decode(self, f: t.Tensor) -> t.Tensor:
        return self.decoder(f) + self.b_dec

    def forward(self, x: t.Tensor, output_features: bool = False):
        f = self.encode(x)
        return (self.decode(f), f) if output_features else self.decode(f)

    @t.no_grad()
    def scale_biases(self, scale: float) -> None:
        self.encoder.bias *= scale
        self.b_dec *= scale


class ImaginaryTerms(NamedTuple):
    loss: t.Tensor
    l2_loss: t.Tensor


class ImaginaryTrainer(SamplingTrainer, SAETrainer):
    def __init__(
        self,
        steps: int,
        activation_dim: int,
        dict_size: int,
        layer: int,
        lm_name: str,
        *,
        submodule_name: str | None = None,
        warmup_steps: int = 1000,
        decay_start: int | None = None,
        lr: float = 1e-3,
        seed: int | None = None,
        device: str = "cpu",
        dtype: str = "float32",
        wandb_name: str = "ImaginarySAE",
        shrink: float = 1.0,
    ):
        super().__init__(seed)
        self.steps, self.warmup_steps, self.decay_start = steps, warmup_steps, decay_start
        self.shrink = shrink
        self.layer, self.lm_name, self.submodule_name = layer, lm_name, submodule_name
        self.device, self.wandb_name = device, wandb_name
        self.ae: Any = ImaginarySAE(activation_dim, dict_size, shrink=shrink)  # pyright: ignore
        self._start_training(GuardedAdam(self.ae.parameters(), lr))

    def _terms(self, x: t.Tensor, step: int, generator: t.Generator) -> ImaginaryTerms:
        l2_loss = (x - self.ae(x)).square().sum(-1).mean()
        return ImaginaryTerms(l2_loss, l2_loss)

    def _logged(self, terms: Any, x: t.Tensor) -> dict[str, t.Tensor]:
        return terms._asdict()

    def update(self, step: int, x: t.Tensor) -> t.Tensor:
        loss = self._terms(x, step, self.generator).loss
        loss.backward()
        self.optimizer.guarded_step(loss, step)
        self.scheduler.step()
        return loss.detach()

    @property
    def config(self) -> dict[str, Any]:
        return {
            "trainer_class": "ImaginaryTrainer",
            "dict_class": "ImaginarySAE",
            "activation_dim": self.ae.activation_dim,
            "dict_size": self.ae.dict_size,
            "layer": self.layer,
            "lm_name": self.lm_name,
            "submodule_name": self.submodule_name,
            "shrink": self.shrink,
        }
