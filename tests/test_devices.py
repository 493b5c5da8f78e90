"""The device is chosen, and one that isn't there is one line."""

import pytest
import torch as t
from pretend_cuda import PretendCuda
from small_commands import refused

from dictionary_learning_ext.devices import chosen_device
from dictionary_learning_ext.errors import ConfigError
from dictionary_learning_ext.run_folder.weights import load_dictionary

without_gpu = pytest.mark.skipif(t.cuda.is_available(), reason="this machine has a GPU")


@pytest.mark.parametrize("auto", ["auto", None])
def test_auto_is_cuda_where_torch_can_use_it(auto):
    with PretendCuda():
        assert chosen_device(auto) == "cuda"
    if not t.cuda.is_available():
        assert chosen_device(auto) == "cpu"


@without_gpu
@pytest.mark.parametrize("device", ["cuda", "cuda:3", "gpu", "cuda:-1", ""])
def test_a_device_that_is_not_there_is_refused(device):
    assert chosen_device("cpu") == "cpu"
    with pytest.raises(ConfigError, match=f"^device='{device}': .*(device='cpu'|cuda:N)"):
        chosen_device(device)


def test_a_device_that_is_there_and_refuses_says_why(monkeypatch):
    def full(*_, **__):
        raise t.OutOfMemoryError("CUDA out of memory. Tried\nto allocate")

    monkeypatch.setattr(t, "empty", full)
    with pytest.raises(ConfigError, match=r"device=.cuda.: .*\(CUDA out of memory. Tried\)"):
        chosen_device("cuda")


@without_gpu
def test_every_command_says_the_same_and_blames_no_file(folder, flags, tmp_path, capsys):
    with pytest.raises(ConfigError, match="device='cuda:3': "):
        load_dictionary(folder, "cuda:3")
    train = ["train", *flags, f"--save-dir={tmp_path / 'run'}"]
    export = ["export", folder, "--format=sae-lens"]
    for command in (train, export, ["eval", folder], ["report", folder]):
        line = refused([*command, "--device=cuda:3"], capsys)
        assert line.startswith("vsae: device='cuda:3': "), command
