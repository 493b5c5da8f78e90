"""Run folders of every class to export."""

import shutil
from dataclasses import replace

import pytest
import torch as t
from export_folders import D, F, K, of_class
from kept import kept_runs

from dictionary_learning_ext import RunConfig
from dictionary_learning_ext.activations.inputs import open_inputs
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

# A threshold is set by half of the run, without which BatchTopK encodes nothing.
SAES = {
    "signed": VSAEConfig(dict_size=F),
    "vsae": VSAETopKConfig(k=K, dict_size=F, posterior="learned"),
    "magnitude": VSAETopKConfig(k=K, dict_size=F, select_by="magnitude"),
    "rectified": VSAETopKConfig(k=F, dict_size=F, rectify=True),
    "vaease": VAEaseConfig(dict_size=F),
    "top_k": TopKConfig(k=K, dict_size=F),
    "probabilistic_top_k": ProbabilisticTopKConfig(k=K, dict_size=F),
    "batch_top_k": BatchTopKConfig(k=K, dict_size=F),
    "relu": ReLUConfig(dict_size=F),
    "jump_relu": JumpReLUConfig(dict_size=F),
    "matryoshka": MatryoshkaConfig(k=K, dict_size=F, group_fractions=(0.5, 0.5)),
}


@pytest.fixture(scope="session")
def trained(tiny_lm_dir, text, tmp_path_factory):
    """Run folders of every class, trained a little; "signed" selects some negative means."""
    run = RunConfig(
        model=str(tiny_lm_dir),
        data=text,
        hook="blocks.1.hook_resid_post",
        steps=12,
        batch_size=32,
        n_ctxs=8,
        ctx_len=32,
        eval_tokens=64,
        eval_documents=4,
    )
    folder = tmp_path_factory.mktemp("export") / "runs"
    return kept_runs("export", run, SAES, folder), replace(run, save_dir=str(folder))


@pytest.fixture(scope="session")
def on_the_embedded_model(tmp_path_factory):
    """The same on the embedded model, and 2,048 of its raw activations."""
    run = RunConfig(
        hook="blocks.0.hook_resid_post",
        steps=12,
        batch_size=256,
        n_ctxs=16,
        eval_tokens=0,
    )
    folder = tmp_path_factory.mktemp("export") / "embedded"
    folders = kept_runs("export_embedded", run, SAES, folder)
    return folders, next(open_inputs(run, [run.hook]).held_out(run.hook, 2048).batches)


@pytest.fixture
def folder_of(trained, tmp_path):
    """Makes a copy of a run folder, which a test may change, or one of a class that isn't trained."""

    def copy(name):
        is_trained = name in trained[0]
        shutil.copytree(trained[0][name if is_trained else "top_k"], tmp_path / name)
        return tmp_path / name if is_trained else of_class(tmp_path / name, name)

    return copy


@pytest.fixture
def x():
    return 3 * t.randn(200, D, generator=t.Generator().manual_seed(0))
