"""A device that the machine lacks is named with those it has, before anything is loaded."""

import pytest
import torch
from small_commands import refused

from dictionary_learning_ext import load_dictionary
from dictionary_learning_ext.errors import ConfigError
from dictionary_learning_ext.trainers.base import require_device


def test_a_device_that_is_there_is_taken():
    require_device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:3", "gpu", "cuda:-1", ""])
def test_a_device_that_is_not_there_is_refused_with_what_is(device):
    with pytest.raises(ConfigError) as raised:
        require_device(device)
    assert str(raised.value) == (
        f"device={device!r}: expected cpu, cuda or cuda:N, and this machine has cpu and no CUDA "
        "device; use e.g. device='cpu'"
    )


def test_the_devices_that_are_there_are_listed(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(
        ConfigError, match=r"this machine has cpu, cuda:0, cuda:1; use e\.g\. device='cuda:1'"
    ):
        require_device("gpu")


@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_a_device_that_is_there_and_refuses_says_why(device, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried\nto allocate")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch, "empty", full)
    with pytest.raises(ConfigError) as raised:
        require_device(device)
    assert str(raised.value) == (
        f"device={device!r}: can't be used (CUDA out of memory. Tried); use device='cpu'"
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_every_command_says_the_same_and_blames_no_file(folder, flags, tmp_path, capsys):
    with pytest.raises(ConfigError, match="no CUDA device"):
        load_dictionary(folder, "cuda:3")
    train = ["train", *flags, f"--save-dir={tmp_path / 'run'}"]
    export = ["export", folder, "--format=safetensors"]
    for command in (train, export, ["eval", folder], ["report", folder]):
        line = refused([*command, "--device=cuda:3"], capsys)
        assert line.startswith("vsae: --device cuda:3: expected cpu, cuda or cuda:N"), command
