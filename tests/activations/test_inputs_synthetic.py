"""Training, evaluating and comparing SAEs on SAELens's synthetic models."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch as t
from interrupted_runs import assert_equal, results, resumed, sae_of, stopped_at
from small_commands import refused

from dictionary_learning_ext import train
from dictionary_learning_ext.activations import language_models
from dictionary_learning_ext.activations import synthetic as synthetic_activations
from dictionary_learning_ext.activations.inputs import open_inputs
from dictionary_learning_ext.activations.synthetic import Sampler, draw_model, model_hash
from dictionary_learning_ext.cli import main
from dictionary_learning_ext.config import synthetic_models
from dictionary_learning_ext.config.synthetic_models import NO_HOOK, settings_of_run
from dictionary_learning_ext.errors import ActivationsError, Interrupted

synthetic = pytest.importorskip(
    "sae_lens.synthetic", reason="needs the extra: pip install -e '.[synthetic]'"
)

TINY = "synthetic:tiny"


@pytest.fixture(autouse=True)
def tiny(monkeypatch, tmp_path_factory):
    """A model of 40 features in 16 dimensions, with a cache folder of its own; and no language model can be
    loaded."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("caches")))
    small = synthetic_models.SYNTHETIC_MODELS["small"]
    sizes = {"num_features": 40, "hidden_dim": 16}
    trees = small.config["hierarchy"] | {"total_root_nodes": 2, "branching_factor": 3}
    correlation = {"rank": 4, "correlation_scale": 0.1}
    config = small.config | sizes | {"hierarchy": trees, "correlation": correlation}
    row = replace(small, config=config)
    monkeypatch.setitem(synthetic_models.SYNTHETIC_MODELS, "tiny", row)

    def load(*_, **__):
        raise AssertionError("a language model is loaded")

    monkeypatch.setattr(language_models.Pretrained, "load", load)


@pytest.fixture
def run(run):
    return replace(run, **settings_of_run(TINY), eval_tokens=500)


def metrics_of(folder):
    return json.loads((Path(folder) / "metrics.json").read_text())


def test_a_model_is_the_same_every_time_and_quiet(capsys):
    t.manual_seed(5)
    one = draw_model("synthetic:small")
    t.manual_seed(6)
    other = draw_model("synthetic:small")
    assert t.equal(one.feature_dict.feature_vectors, other.feature_dict.feature_vectors)
    assert one.feature_dict.feature_vectors.shape == (1024, 128)
    assert t.allclose(one.feature_dict.feature_vectors.norm(dim=1), t.ones(1024))
    for name in ("firing_probabilities", "mean_firing_magnitudes"):
        each = [getattr(model.activation_generator, name) for model in (one, other)]
        assert t.equal(*each)
    assert capsys.readouterr() == ("", "")


def kept():
    return list((Path(os.environ["XDG_CACHE_HOME"]) / "dictionary_learning_ext").iterdir())


def of_the_rows(model):
    """All that the rows depend on, as arrays."""
    return Sampler(model)._model


def test_a_model_is_drawn_once_and_kept_by_what_it_is_made_from(monkeypatch):
    drawn = draw_model(TINY)
    (folder,) = kept()
    before = (folder / "synthetic_model.safetensors").stat().st_mtime_ns
    for array, again in zip(of_the_rows(drawn), of_the_rows(draw_model(TINY)), strict=True):
        assert np.array_equal(array, again)
    assert (folder / "synthetic_model.safetensors").stat().st_mtime_ns == before
    row = synthetic_models.SYNTHETIC_MODELS["tiny"]
    changed = replace(row, config=row.config | {"seed": 1})
    monkeypatch.setitem(synthetic_models.SYNTHETIC_MODELS, "tiny", changed)
    other = draw_model(TINY)
    assert not t.equal(other.feature_dict.feature_vectors, drawn.feature_dict.feature_vectors)
    assert len(kept()) == 2


@pytest.mark.parametrize("given", ["", "relative"])
def test_without_a_cache_folder_of_the_users_it_is_that_of_the_home_folder(
    given, monkeypatch, tmp_path
):
    monkeypatch.setenv("XDG_CACHE_HOME", given)
    monkeypatch.setenv("HOME", str(tmp_path))
    draw_model(TINY)
    assert len(list((tmp_path / ".cache" / "dictionary_learning_ext").iterdir())) == 1


def test_a_kept_model_that_is_damaged_is_one_line_that_names_the_folder(capsys):
    draw_model(TINY)
    (folder,) = kept()
    (folder / "synthetic_model.safetensors").write_bytes(b"damaged")
    line = refused(["train", f"--model={TINY}"], capsys)
    assert line.startswith(
        f"vsae: model='{TINY}': expected a model that SAELens can read in {folder}"
    )
    assert "; delete " in line


def test_where_it_can_not_be_kept_it_is_drawn_with_a_warning(monkeypatch, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert draw_model(TINY).cfg.num_features == 40
    (message,) = caplog.messages
    assert "set XDG_CACHE_HOME" in message


def test_of_two_processes_that_draw_at_once_the_first_keeps_it(caplog):
    drawn = draw_model(TINY)
    (folder,) = kept()
    synthetic_activations._keep(drawn, folder)
    assert kept() == [folder]
    assert not caplog.messages


@pytest.mark.slow
def test_a_run_that_is_stopped_ends_as_one_that_is_not(run, tmp_path, monkeypatch):
    whole = replace(run, save_dir=str(tmp_path / "whole"))
    train(whole, {"x": sae_of()})
    stopped_at(35, monkeypatch)
    with pytest.raises(Interrupted):
        train(run, {"x": sae_of()})
    resumed(run.save_dir)
    assert_equal(results(Path(run.save_dir)), results(tmp_path / "whole"))


def test_the_commands_train_evaluate_and_compare(tmp_path, capsys):
    one, other = (str(tmp_path / name) for name in ("one", "other"))
    flags = [f"--model={TINY}", "--steps=20", "--batch-size=64", "--dict-size=32", "--k=4"]
    flags += ["--eval-tokens=500"]
    assert main(["train", *flags, f"--save-dir={one}"]) == 0
    out = capsys.readouterr().out
    assert "report" not in out, "which would be refused"
    assert "synthetic:tiny is not" in out
    again = ["train", *flags, "--architecture=top_k", "--data-seed=1", f"--save-dir={other}"]
    assert main(again) == 0
    first, second = metrics_of(one), metrics_of(other)
    for name in ("true_mcc", "firing_f1", "true_coverage", "uniqueness"):
        assert 0 < first[name] < 1
    assert first["true_mcc"] != second["true_mcc"]
    assert first["frac_recovered"] is None
    assert first["measured_on"]["hook"] == NO_HOOK
    config = json.loads((tmp_path / "one" / "config.json").read_text())
    assert config["run"]["settings"]["hook"] == config["trainer"]["submodule_name"] == NO_HOOK

    (tmp_path / "one" / "metrics.json").unlink()
    assert main(["eval", one]) == 0
    assert metrics_of(one) == first
    capsys.readouterr()
    assert main(["compare", one, other]) == 0
    out = capsys.readouterr().out
    assert f"{first['true_mcc']:.4f}" in out
    assert f"{second['firing_f1']:.4f}" in out
    assert "Not a matched" not in out
    line = refused(["report", one], capsys)
    said = "a report shows tokens, but synthetic:tiny is not a language model"
    assert f"{said}; use `vsae eval`" in line


def test_held_out_samples_are_the_same_for_every_seed_and_not_those_of_training(run):
    opened = [open_inputs(replace(run, data_seed=seed), [NO_HOOK]) for seed in (0, 1)]
    held_out = [each.held_out(NO_HOOK, 500) for each in opened]
    first, second = (next(each.batches) for each in held_out)
    assert t.equal(first, second)
    trained = [each.training_batches().next()[NO_HOOK] for each in opened]
    assert not t.equal(*trained)
    assert not t.equal(trained[0], first[:64])
    assert held_out[0].truth.firing_BT.shape == (500, 40)
    assert opened[0].language_model is None
    with pytest.raises(ActivationsError, match="synthetic:tiny"):
        next(opened[0].contexts(NO_HOOK, "train", 10))


def test_a_run_whose_model_has_changed_is_refused(run, monkeypatch):
    stopped_at(15, monkeypatch)
    with pytest.raises(Interrupted):
        train(run, {"x": sae_of()})
    row = synthetic_models.SYNTHETIC_MODELS["tiny"]
    changed = replace(row, config=row.config | {"seed": 1})
    monkeypatch.setitem(synthetic_models.SYNTHETIC_MODELS, "tiny", changed)
    with pytest.raises(ValueError, match="'synthetic:tiny' has changed"):
        resumed(run.save_dir)


def test_a_model_that_saelens_has_saved_draws_the_same_rows(run, tmp_path):
    drawn = draw_model(TINY)
    drawn.save(tmp_path)
    saved = f"synthetic:{tmp_path}"
    models = zip(of_the_rows(drawn), of_the_rows(draw_model(saved)), strict=True)
    assert all(np.array_equal(*arrays) for arrays in models)
    train(replace(run, **settings_of_run(saved)), {"x": sae_of()})
    assert metrics_of(run.save_dir)["true_mcc"] > 0
    before = model_hash(saved)
    drawn.feature_dict.feature_vectors.data *= 2
    drawn.save(tmp_path)
    assert model_hash(saved) != before


def test_directions_are_made_as_orthogonal_as_saelens_makes_them(monkeypatch):
    row = synthetic_models.SYNTHETIC_MODELS["tiny"]
    config = row.config | {"orthogonalization": {"num_steps": 30, "lr": 1e-2, "chunk_size": 8}}
    monkeypatch.setitem(synthetic_models.SYNTHETIC_MODELS, "tiny", replace(row, config=config))
    expected = synthetic.SyntheticModel(synthetic.SyntheticModelConfig.from_dict(config))
    drawn = draw_model(TINY)
    assert drawn.cfg == expected.cfg
    vectors_TD = expected.feature_dict.feature_vectors
    assert t.allclose(drawn.feature_dict.feature_vectors, vectors_TD, atol=1e-5)
    monkeypatch.setitem(synthetic_models.SYNTHETIC_MODELS, "tiny", row)
    assert not t.allclose(draw_model(TINY).feature_dict.feature_vectors, vectors_TD, atol=1e-2)


def test_the_benchmark_is_made_by_its_published_configuration():
    """In few features: the whole one takes a minute."""
    settings = synthetic_models.SYNTHETIC_MODELS["bench-16k"]
    config = synthetic.SyntheticModelConfig.from_dict(
        settings.config | {"num_features": 12_000, "hidden_dim": 8, "orthogonalization": None}
    )
    model = synthetic.SyntheticModel(config)
    of_trees = model.hierarchy.feature_indices_used
    assert len(of_trees) == 128 * (1 + 4 + 16 + 64)
    magnitudes = model.activation_generator.mean_firing_magnitudes
    assert (float(magnitudes[0]), float(magnitudes[-1])) == (5.0, 4.0)
    assert config.hierarchy.scale_children_by_parent
