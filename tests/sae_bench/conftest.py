"""Small SAEs on the tiny model, and SAE Bench's results for them."""

import pytest
import torch as t
from bench_saes import FOUR, SMALL, F, K

from dictionary_learning_ext import RunConfig, train
from dictionary_learning_ext.config.sae import TopKConfig, VSAETopKConfig


@pytest.fixture(autouse=True)
def gradients():
    """SAE Bench turns them off and leaves them off."""
    with t.enable_grad():
        yield


@pytest.fixture(scope="session")
def trained(tiny_lm_dir, text, tmp_path_factory):
    """Run folders of a TopK SAE and a vSAE on the tiny model. Leave them as they are."""
    folder = tmp_path_factory.mktemp("trained")
    run = RunConfig(
        model=str(tiny_lm_dir),
        data=text,
        hook="blocks.0.hook_resid_post",
        save_dir=str(folder),
        steps=60,
        batch_size=64,
        n_ctxs=8,
        ctx_len=32,
        eval_tokens=0,
    )
    return train(
        run,
        {
            "top_k": TopKConfig(dict_size=F, k=K),
            "vsae": VSAETopKConfig(dict_size=F, k=K, noise_on="values", sigma=0.1, beta=0.1),
        },
    )


@pytest.fixture(scope="session")
def written_books(tmp_path_factory):
    from experiments.paper.labelled_books import write_books

    folder = tmp_path_factory.mktemp("books")
    write_books(folder)
    return str(folder)


@pytest.fixture
def books(written_books):
    """A folder for --data that has texts for every evaluation, labelled ones too."""
    from experiments.paper.labelled_books import on_books

    with on_books():
        yield written_books


@pytest.fixture(scope="session")
def benched(trained, written_books):
    """Results of the two."""
    from dictionary_learning_ext.sae_bench.runner import bench
    from experiments.paper.labelled_books import on_books

    with t.enable_grad(), on_books():
        settings = SMALL | {"data": written_books}
        return bench(list(trained.values()), evals=FOUR, again=True, **settings)


@pytest.fixture
def one(trained, tmp_path):
    """A copy of the vSAE's folder."""
    folder = tmp_path / "one"
    folder.mkdir()
    for name in ("ae.pt", "config.json"):
        (folder / name).write_bytes((trained["vsae"] / name).read_bytes())
    return folder
