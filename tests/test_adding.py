"""An architecture of one's own: a trainer that the package doesn't have, its settings, and a row."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import pytest
import torch as t
from torch import nn

from dictionary_learning_ext import load_dictionary
from dictionary_learning_ext.cli import main
from dictionary_learning_ext.config import architectures, sae
from dictionary_learning_ext.trainers.base import SamplingTrainer
from dictionary_learning_ext.trainers.dictionaries import OwnDictionary


class ImaginarySAE(OwnDictionary):
    """A ReLU SAE, its activations squared."""

    def __init__(self, activation_dim: int, dict_size: int):
        super().__init__()
        self.activation_dim, self.dict_size = activation_dim, dict_size
        self.encoder = nn.Linear(activation_dim, dict_size)
        self.decoder = nn.Linear(dict_size, activation_dim, bias=False)
        self.b_dec = nn.Parameter(t.zeros(activation_dim))

    def encode(self, x: t.Tensor) -> t.Tensor:
        return self.encoder(x - self.b_dec).relu().square()

    @t.no_grad()
    def scale_biases(self, scale: float) -> None:
        self.encoder.weight /= scale**0.5  # the square makes it scale again
        self.encoder.bias *= scale**0.5
        self.b_dec *= scale


class ImaginaryTerms(NamedTuple):
    loss: t.Tensor
    l2_loss: t.Tensor


@dataclass(frozen=True, kw_only=True)
class ImaginaryConfig(sae.SAEConfig):
    """Without options of its own."""

    architecture: Literal["imaginary"] = "imaginary"


class ImaginaryTrainer(SamplingTrainer):
    settings_class = ImaginaryConfig
    dictionary_class = ImaginarySAE

    def _terms(self, x: t.Tensor, step: int, generator: t.Generator) -> ImaginaryTerms:
        l2_loss = (x - self.ae(x)).square().sum(-1).mean()
        return ImaginaryTerms(l2_loss, l2_loss)


ROW = architectures.Architecture(
    name="imaginary",
    title="Imaginary",
    description="an SAE that is not there",
    trainer=f"{__name__}:ImaginaryTrainer",
    dictionary=f"{__name__}:ImaginarySAE",
)


@pytest.fixture
def registered(monkeypatch):
    for table in (architectures.ARCHITECTURES, architectures.TRAINED):
        monkeypatch.setitem(table, ROW.name, ROW)
    monkeypatch.setitem(architectures.BY_DICT_CLASS, ROW.dict_class, ROW)
    monkeypatch.setitem(sae.CONFIGS, ROW.name, ImaginaryConfig)


def test_the_example_takes_activations_of_any_unit():
    sae = ImaginarySAE(4, 8)
    x_BD = t.randn(16, 4, generator=t.Generator().manual_seed(0))
    before = sae(x_BD, output_features=True)
    sae.scale_biases(4.0)
    for now, was in zip(sae(4 * x_BD, output_features=True), before, strict=True):
        t.testing.assert_close(now, 4 * was)


def test_an_architecture_from_outside_is_trained_saved_and_loaded(registered, flags, tmp_path):
    run = tmp_path / "run"
    words = [flag for flag in flags if not flag.startswith(("--k=", "--steps="))]
    words += ["--steps=2", "--architecture=imaginary", f"--save-dir={run}"]
    assert main(["train", *words]) == 0
    loaded, config = load_dictionary(run)
    assert config["trainer"]["trainer_class"] == "ImaginaryTrainer"
    assert isinstance(loaded, ImaginarySAE)
    saved = t.load(run / "ae.pt", weights_only=True)
    assert all(t.equal(value, saved[name]) for name, value in loaded.state_dict().items())
    assert saved["b_dec"].all(), "it starts at 0"
