"""An experiment's SAEs: trained once, and again only if their folders are gone."""

import shutil
from dataclasses import replace
from functools import partial

import pytest

from dictionary_learning_ext.config.sae import SAEConfig
from dictionary_learning_ext.errors import ConfigError
from experiments import trained_saes


def test_a_finished_sae_is_kept_and_one_of_other_settings_is_refused(cached_run, tmp_path):
    run = replace(cached_run, steps=2, batch_size=32, n_ctxs=8, eval_tokens=0)
    sae = SAEConfig(dict_size=32, k=4)
    train_missing = partial(trained_saes.train_missing, finished="ae.pt")  # it isn't measured
    folder = train_missing(run, tmp_path, {"one": sae})["one"]
    weights = (folder / "ae.pt").stat().st_mtime_ns
    train_missing(run, tmp_path, {"one": sae})
    assert (folder / "ae.pt").stat().st_mtime_ns == weights

    with pytest.raises(ConfigError, match=f"steps=2, not 3; to train it again, delete {folder}"):
        train_missing(replace(run, steps=3), tmp_path, {"one": sae})
    with pytest.raises(ConfigError, match="k=4, not 8"):
        train_missing(run, tmp_path, {"one": replace(sae, k=8)})
    shutil.rmtree(folder)
    train_missing(run, tmp_path, {"one": replace(sae, k=8)})
    assert (folder / "ae.pt").exists()
