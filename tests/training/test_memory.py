"""What a machine can't train is refused in numbers, before anything is loaded or written."""

import psutil
import pytest
from small_commands import refused

from dictionary_learning_ext.config.run import RunConfig
from dictionary_learning_ext.config.sae import SAEConfig
from dictionary_learning_ext.errors import ConfigError
from dictionary_learning_ext.training import loop
from dictionary_learning_ext.training.memory import free_bytes, require_memory, sae_bytes

GB = 10**9


@pytest.fixture
def machine(monkeypatch):
    """A machine of so many bytes, whatever this one has."""

    def of(total):
        memory = psutil.virtual_memory()._replace(total=total, available=total // 2)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)

    return of


@pytest.fixture
def run(tiny_lm_dir):
    return RunConfig(model=str(tiny_lm_dir), ctx_len=32, n_ctxs=8, batch_size=32)


def test_the_command_refuses_it_in_one_line(flags, machine, monkeypatch, tmp_path, capsys):
    machine(24 * GB)
    monkeypatch.setattr(loop, "open_inputs", lambda *_, **__: pytest.fail("it was loaded"))
    save_dir = tmp_path / "run"
    command = ["train", *flags, "--dict-size=1000000000", f"--save-dir={save_dir}"]
    line = refused(command, capsys)
    assert "need 512 GB of memory, and this machine has 24 GB; lower --dict-size" in line
    assert not save_dir.exists()


def test_every_sae_counts_once_for_each_process_on_a_cpu(run, machine):
    saes = [SAEConfig(dict_size=64, k=4), SAEConfig(dict_size=32, k=4)]
    needed = 4 * 4 * 2 * (64 + 32) * 16  # weights, gradients, two averages; encoder and decoder
    for processes in (1, 3):
        machine(processes * needed)
        require_memory(run, saes, processes)
        machine(processes * needed - 1)
        with pytest.raises(ConfigError, match=r"need .* of memory"):
            require_memory(run, saes, processes)


def test_a_frozen_decoder_has_no_gradient_and_no_averages():
    encoder = decoder = 4 * 32 * 16  # bytes
    frozen = SAEConfig(dict_size=32, freeze_decoder=True)
    assert sae_bytes(frozen, 16) == 4 * encoder + decoder


def test_free_memory_is_what_is_available(machine):
    machine(24 * GB)
    assert free_bytes("cpu") == 12 * GB
