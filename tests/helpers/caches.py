"""Small caches of a tiny model's activations."""

import shutil

import datasets
import pytest
from kept import kept

from dictionary_learning_ext.activations.cache_writer import write_cache
from dictionary_learning_ext.config.run import RunConfig

HOOK, OTHER = "blocks.1.hook_resid_post", "blocks.0.hook_resid_post"
D, CTX_LEN, TOKENS = 16, 32, 4000


def write_small(folder, run, tokens=TOKENS, hooks=(HOOK,), **options):
    """Files of 32 contexts: 1,024 tokens."""
    of_number = 2 if options.get("dtype") == "float16" else 4
    file_bytes = 32 * run.ctx_len * D * len(hooks) * of_number
    return write_cache(folder, run, hooks, tokens, **{"file_bytes": file_bytes} | options)


@pytest.fixture
def no_video(monkeypatch):
    """datasets 3 imports a video reader from torchvision, which newer versions of that lack."""
    monkeypatch.setattr(datasets.config, "TORCHVISION_AVAILABLE", False)


@pytest.fixture(scope="session")
def cached_run(tiny_lm_dir, text):
    """The settings of a small cache."""
    return RunConfig(
        model=str(tiny_lm_dir), data=text, ctx_len=CTX_LEN, eval_tokens=300, eval_documents=3
    )


@pytest.fixture(scope="session")
def small_cache(cached_run, tmp_path_factory):
    """A cache of two hook points: 4 files. Leave it as it is."""
    made = kept("cache", lambda folder: write_small(folder, cached_run, hooks=(HOOK, OTHER)))
    return shutil.copytree(made, tmp_path_factory.mktemp("cache") / "cache")
