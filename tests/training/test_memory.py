"""What a machine can't train is refused in numbers, before anything is loaded or written."""

import psutil
import pytest
from small_commands import refused

from dictionary_learning_ext.config.run_config import RunConfig
from dictionary_learning_ext.config.sae_config import SAEConfig
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


@pytest.mark.parametrize(
    ("flag", "needed", "advice"),
    [
        ("--dict-size=1000000000", "512 GB", "; lower --dict-size"),
        ("--n-ctxs=100000000", "205 GB", "; lower --n-ctxs or --ctx-len"),
        ("--ctx-len=100000", "at most 128", "--ctx-len"),
    ],
)
def test_the_command_refuses_it_in_one_line(
    flag, needed, advice, flags, machine, monkeypatch, tmp_path, capsys
):
    machine(24 * GB)
    monkeypatch.setattr(loop, "open_sources", lambda *_, **__: pytest.fail("it was loaded"))
    save_dir = tmp_path / "run"
    line = refused(["train", *flags, flag, f"--save-dir={save_dir}"], capsys)
    assert needed in line
    assert advice in line
    assert ", and this machine has 24 GB; " in line or "positions" in line
    assert not save_dir.exists()


def test_a_language_model_that_is_too_large_needs_a_smaller_one(run, machine):
    machine(10_000)
    small = RunConfig(**vars(run) | {"n_ctxs": 1, "ctx_len": 1, "batch_size": 1})
    with pytest.raises(ConfigError, match=r"; use a smaller model$"):
        require_memory(small, [SAEConfig(dict_size=8, k=4)])


def test_every_part_counts(run, machine, tiny_lm):
    saes = [SAEConfig(dict_size=64, k=4), SAEConfig(dict_size=32, k=4)]
    sae = 4 * 4 * 2 * (64 + 32) * 16  # weights, gradients, two averages; encoder and decoder
    buffer = 8 * 32 * 16 * 4
    model = sum(parameter.numel() for parameter in tiny_lm._model.parameters()) * 4
    machine(sae + buffer + model)
    require_memory(run, saes)
    with pytest.raises(ConfigError, match="needs at least"):
        require_memory(run, saes, 2)
    machine(sae + 2 * buffer + model)
    require_memory(run, saes, 2)
    machine(sae + buffer + model - 1)
    with pytest.raises(ConfigError, match="needs at least"):
        require_memory(run, saes)


def test_a_frozen_decoder_has_no_gradient_and_no_averages():
    encoder = decoder = 4 * 32 * 16  # bytes
    frozen = SAEConfig(dict_size=32, freeze_decoder=True)
    assert sae_bytes(frozen, 16) == 4 * encoder + decoder


def test_each_process_on_a_cpu_has_saes_and_a_buffer_of_its_own(run, machine, tiny_lm):
    of_each = sae_bytes(SAEConfig(dict_size=32), 16) + 8 * 32 * 16 * 4
    # They may share the language model's file in memory.
    model = sum(parameter.numel() for parameter in tiny_lm._model.parameters()) * 4
    machine(3 * of_each + model)
    require_memory(run, [SAEConfig(dict_size=32, k=4)], processes=3)
    machine(3 * of_each + model - 1)
    require_memory(run, [SAEConfig(dict_size=32, k=4)], processes=2)
    with pytest.raises(ConfigError, match=r"^these 3 processes need at least "):
        require_memory(run, [SAEConfig(dict_size=32, k=4)], processes=3)


def test_bfloat16_halves_the_language_model_and_the_buffer(tiny_lm_dir, machine, tiny_lm):
    run = RunConfig(model=str(tiny_lm_dir), ctx_len=32, n_ctxs=8, batch_size=32, dtype="bfloat16")
    parameters = sum(parameter.numel() for parameter in tiny_lm._model.parameters())
    needed = sae_bytes(SAEConfig(dict_size=32), 16) + 2 * (8 * 32 * 16 + parameters)
    machine(needed)
    require_memory(run, [SAEConfig(dict_size=32, k=4)])
    machine(needed - 1)
    with pytest.raises(ConfigError, match="needs at least"):
        require_memory(run, [SAEConfig(dict_size=32, k=4)])


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_contexts_beyond_the_models_positions(family, lm_dir_of, machine):
    def run_of(ctx_len):
        return RunConfig(model=str(lm_dir_of(family)), ctx_len=ctx_len, batch_size=32)

    machine(24 * GB)
    require_memory(run_of(128), [SAEConfig()])
    with pytest.raises(ConfigError, match="ctx_len=129: expected at most 128"):
        require_memory(run_of(129), [SAEConfig()])


def test_free_memory_is_what_is_available(machine):
    machine(24 * GB)
    assert free_bytes("cpu") == 12 * GB


def test_a_device_that_is_not_there_is_left_to_the_loader(run, machine):
    machine(1)
    require_memory(RunConfig(**vars(run) | {"device": "cuda:99"}), [SAEConfig()])
