"""Tiny language models with random weights, so that every test runs in seconds and offline."""

import os
import signal

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "WANDB_SILENT": "true"}
os.environ.setdefault(
    "CUDA_VISIBLE_DEVICES", ""
)  # --device auto is the CPU; `make test-gpu` shows a GPU
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # waiting threads would take other tests' cores

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from kept import kept
from nnsight import LanguageModel
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from dictionary_learning_ext.activations.language_models import load_language_model
from dictionary_learning_ext.features import matching
from dictionary_learning_ext.trainers.kernels import compiled as compiled_selection

torch.set_num_threads(
    1
)  # work this small is slower on two; what threads change, tests set themselves
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a script's background jobs ignore

pytest_plugins = [
    "caches",
    "guide",
    "interrupted_runs",
    "report_runs",
    "small_commands",
    "torchrun",
]


@pytest.fixture(scope="session", autouse=True)
def compiled_kernels() -> None:
    """Compiled before any test looks at what is logged: compiling for over a second is."""
    for dtype in (torch.float32, torch.bfloat16):
        compiled_selection.is_available(torch.zeros(1, 1), dtype)


@pytest.fixture(scope="session", autouse=True)
def coarse_nulls() -> Iterator[None]:
    """Nulls of a larger standard error: that of SAEs as small as these takes a thousand draws."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matching, "NULL_ERROR", 0.01)
        yield


LANGUAGE_MODELS = {"tokenizer", "lm_dir_of", "lm_of", "tiny_lm_dir", "tiny_lm"}
"""Fixtures that load transformers' models."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs a language model is a test of commands: see the markers in pyproject.toml. Files with the most slow
    tests come first, so that all processes end at about the same time."""
    slow = Counter()
    for item in items:
        if LANGUAGE_MODELS & set(getattr(item, "fixturenames", ())):
            item.add_marker("commands")
        slow[item.path] += item.get_closest_marker("slow") is not None
    items.sort(key=lambda item: -slow[item.path])


BESIDE = {
    "tests/report/test_page_in_browser.py": "tests/report/test_page.py",
}
"""Files that share reports with another file: one process makes them once for both."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """`--dist loadfile`, with these files as one."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return BESIDE.get(file, file)

    return Scheduling(config, log) if config.getoption("dist") == "loadfile" else None


SENTENCES = [
    "It was the best of times, it was the worst of times.",
    "The cat sat on the mat, and the dog lay by the door.",
    "Call me Ishmael. Some years ago I thought I would sail about a little.",
]
SHAPE: dict[str, Any] = {
    "vocab_size": 304,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 128,
}
END: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
CONFIGS: dict[str, Callable[[], Any]] = {
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**SHAPE, **END),
    "llama": lambda: transformers.LlamaConfig(**SHAPE, num_key_value_heads=2, **END),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=304, n_embd=16, n_layer=3, n_head=2, n_positions=128, **END
    ),
    "gemma": lambda: transformers.Gemma2Config(
        **SHAPE, num_key_value_heads=2, head_dim=8, sliding_window=64, **END
    ),
    "qwen": lambda: transformers.Qwen2Config(**SHAPE, num_key_value_heads=2, **END),
    "gpt_neox_sequential": lambda: transformers.GPTNeoXConfig(
        **SHAPE, use_parallel_residual=False, **END
    ),
    "gemma1": lambda: transformers.GemmaConfig(**SHAPE, num_key_value_heads=2, head_dim=8, **END),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **SHAPE, num_key_value_heads=2, head_dim=8, sliding_window=64, **END
    ),
    "qwen3": lambda: transformers.Qwen3Config(**SHAPE, num_key_value_heads=2, head_dim=8, **END),
    "olmo2": lambda: transformers.Olmo2Config(**SHAPE, num_key_value_heads=2, **END),
    "glm4": lambda: transformers.Glm4Config(**SHAPE, num_key_value_heads=2, head_dim=8, **END),
    "granite": lambda: transformers.GraniteConfig(
        **SHAPE, num_key_value_heads=2, residual_multiplier=0.5, **END
    ),
    "bloom": lambda: transformers.BloomConfig(
        vocab_size=304, hidden_size=16, n_layer=3, n_head=2, **END
    ),
}


@pytest.fixture
def own_wandb():
    """Child processes start a wandb service of their own, which ends with them.

    Where an earlier test has started one in this process, wandb hands it to children through the
    environment, and it writes their files when it likes. So it is ended, not only hidden. Returns what
    ends this process's again.
    """
    import wandb

    def end():
        wandb.teardown()
        os.environ.pop("WANDB_SERVICE", None)

    end()
    return end


@pytest.fixture(scope="session")
def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Byte-level BPE of 304 tokens; bos and eos are `<|endoftext|>`, id 0, and pad is id 1."""
    bpe: Any = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|pad|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=304,
        special_tokens=special,  # pyright: ignore[reportCallIssue]
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(SENTENCES, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=special[0], eos_token=special[0], pad_token=special[1]
    )


@pytest.fixture(scope="session")
def lm_dir_of(tokenizer: transformers.PreTrainedTokenizerFast) -> Callable[[str], Path]:
    """Makes the folder of a random model of a family: a key of CONFIGS. Leave it as it is."""

    def lm_dir(family: str) -> Path:
        def make(folder: Path) -> None:
            torch.manual_seed(0)
            model = transformers.AutoModelForCausalLM.from_config(CONFIGS[family]())
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)

        return kept(f"lm_{family}", make)

    return lm_dir


@pytest.fixture(scope="session")
def lm_of(lm_dir_of: Callable[[str], Path]) -> Callable[[str], LanguageModel]:
    """Loads the random model of a family, once."""
    loaded: dict[str, LanguageModel] = {}

    def lm(family: str) -> LanguageModel:
        if family not in loaded:
            loaded[family] = load_language_model(str(lm_dir_of(family)))
        return loaded[family]

    return lm


@pytest.fixture(scope="session")
def tiny_lm_dir(lm_dir_of: Callable[[str], Path]) -> Path:
    """The folder of a random GPT-NeoX: 3 layers, d_model 16, 304 tokens."""
    return lm_dir_of("gpt_neox")


@pytest.fixture(scope="session")
def tiny_lm(lm_of: Callable[[str], LanguageModel]) -> LanguageModel:
    """The model of `tiny_lm_dir`, loaded. Leave it as it is."""
    return lm_of("gpt_neox")


@pytest.fixture(scope="session")
def text() -> str:
    """A local text of random words, long enough for a few hundred tiny steps."""
    words = "the cat and dog sat on a mat by the door in times of best and worst"
    choices = torch.randint(
        len(words.split()), (600, 60), generator=torch.Generator().manual_seed(0)
    ).tolist()

    def make(folder: Path) -> None:
        lines = [" ".join(words.split()[i] for i in row) for row in choices]
        (folder / "text.txt").write_text("\n\n".join(lines))

    return str(kept("text", make) / "text.txt")
