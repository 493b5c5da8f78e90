"""An SAE's folder is found once, and what its config.json says, as settings."""

import json
from pathlib import Path

import pytest

from dictionary_learning_ext.errors import CheckpointError
from dictionary_learning_ext.run_folder.sae_folder import SAEFolder, find_sae, find_saes


def sae_of(trainer=None, **settings):
    content = {"trainer": {"dict_class": "X", **(trainer or {})}}
    run = {"run": {"settings": settings}} if settings else {}
    return SAEFolder("x", Path("x"), content | run)


def test_a_folder_of_upstreams_has_the_settings_of_its_trainer():
    upstreams = sae_of({"lr": 2e-4, "k": 8, "lm_name": "x", "steps": 10, "decay_start": 5})
    assert upstreams.settings == {"lr": 2e-4, "k": 8, "steps": 10, "decay_start": 5}


def test_a_folder_without_a_run_has_no_settings_of_its_own_and_may_name_its_seed():
    upstreams = sae_of({"lr": 2e-4, "seed": 3})
    assert not upstreams.is_run
    assert upstreams.seeds == (3, None)
    assert sae_of(architecture="top_k", seed=1, data_seed=2).seeds == (1, 2)


def test_a_point_posterior_is_named_after_a_penalty_only_where_it_has_one():
    for architecture, title in (("vsae_top_k", "TopK"), ("vsae_batch_top_k", "BatchTopK")):
        plain = sae_of(architecture=architecture, posterior="point", beta=0.0)
        with_one = sae_of(architecture=architecture, posterior="point", beta=0.01)
        assert [plain.title, with_one.title] == [title, f"{title} with an L2 penalty"]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(sae_of(k=4).config))
    (tmp_path / "ae.pt").write_bytes(b"final")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "ae_5.pt").write_bytes(b"checkpoint")
    return tmp_path


def test_one_that_was_found_is_taken_as_it_is_and_found_again_at_another_step(folder):
    final, at_step = find_sae(folder), find_sae(folder, 5)
    assert find_sae(final) is final
    assert find_sae(at_step) is at_step is find_sae(at_step, 5)
    assert find_saes([final], 5) == {str(folder): at_step}
    assert final.hash != at_step.hash == find_sae(final, 5).hash
    with pytest.raises(CheckpointError, match="step 7; expected one of 5"):
        find_sae(final, 7)


def test_it_knows_its_metrics_as_they_were_when_it_first_read_them(folder):
    found = find_sae(folder)
    assert found.metrics is None
    (folder / "metrics.json").write_text('{"fve": 0.5}')
    assert found.metrics is None
    assert find_sae(folder).required_metrics == {"fve": 0.5}


def test_weights_that_are_missing_at_the_last_step_are_written_by_a_resume(folder):
    (folder / "config.json").write_text(json.dumps(sae_of(k=4, steps=9).config))
    (folder / "ae.pt").unlink()
    (folder / "resume").mkdir()
    (folder / "resume" / "step_00000009.pt").touch()
    with pytest.raises(CheckpointError, match=r"ae\.pt.*--resume") as raised:
        find_sae(folder)
    assert "not finished" not in str(raised.value)
