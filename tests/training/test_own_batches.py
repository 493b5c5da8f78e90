"""SAEs that are trained on a caller's own batches."""

import json
import os
import signal
from dataclasses import replace

import pytest
import torch as t

from dictionary_learning_ext import RunConfig, load_dictionary, train_saes
from dictionary_learning_ext.config.run import TrainConfig
from dictionary_learning_ext.config.sae import TopKConfig, VSAETopKConfig
from dictionary_learning_ext.errors import (
    ConfigError,
    Interrupted,
    NonFiniteError,
    TextError,
    UserError,
)
from dictionary_learning_ext.run_folder.sae_folder import find_sae, read_metrics
from dictionary_learning_ext.run_folder.trained_on import trained_on
from dictionary_learning_ext.run_folder.weights import for_raw_activations
from dictionary_learning_ext.trainers.build import build_trainer

B, D, STEPS = 64, 16, 12
SAES = {
    "vsae": VSAETopKConfig(k=4, dict_size=32),
    "top_k": TopKConfig(k=4, dict_size=32),
}


@pytest.fixture
def run(tmp_path):
    return RunConfig(steps=STEPS, log_steps=3, save_dir=str(tmp_path / "run"))


def batches(n=STEPS, width=D):
    generator = t.Generator().manual_seed(0)
    return [5 * t.randn(B, width, generator=generator) for _ in range(n)]


def stepped(sae):
    """The weights after a step on each batch, in units of E||x||^2 = D of the first."""
    given = batches()
    factor = float((given[0].square().sum(1).mean() / D).sqrt())
    config, sizes = TrainConfig(sae, RunConfig(steps=STEPS)).resolved, {"layer": 0, "energy": D}
    trainer = build_trainer(config, activation_dim=D, **sizes, name="x", device="cpu")
    for step, x_BD in enumerate(given):
        trainer.update(step, x_BD / factor)
    return for_raw_activations(trainer.ae, factor).state_dict()


def test_every_sae_is_trained_on_each_batch_and_measured_by_the_evaluator(run):
    given = batches()
    before = [x_BD.clone() for x_BD in given]
    folders = train_saes(
        given, SAES, run, lambda sae: {"fve": t.tensor(0.5), "size": sae.dict_size}
    )
    assert all(map(t.equal, given, before)), "the caller's batches stay as they are"
    for name, sae in SAES.items():
        found, config = load_dictionary(folders[name])
        for key, value in stepped(sae).items():
            t.testing.assert_close(found.state_dict()[key], value, rtol=1e-6, atol=1e-7)
        of = {"weights": find_sae(folders[name]).hash}
        assert read_metrics(folders[name]) == {"fve": 0.5, "size": 32, "of": of}
        assert config["run"]["settings"]["batch_size"] == B
        lines = (folders[name] / "metrics.jsonl").read_text().splitlines()
        assert len(lines) == STEPS // 3 + 1
        assert json.loads(lines[-1])["step"] == STEPS


def test_a_target_belongs_to_the_text_and_is_ignored(run):
    place = {"hook": "blocks.0.mlp.hook_in", "target": "blocks.0.hook_mlp_out"}
    folders = train_saes(batches(), SAES, replace(run, **place))
    assert type(load_dictionary(folders["vsae"])[0]).__name__ == "VariationalTopKAutoEncoder"
    assert find_sae(folders["vsae"]).run.target is None


def test_later_commands_ask_for_the_language_model(run, tmp_path, tiny_lm_dir, text):
    train_saes(batches(), {"a": SAES["top_k"]}, run)
    with pytest.raises(ConfigError, match=r"own.*give model, hook and data, or activations"):
        trained_on(find_sae(tmp_path / "run"))
    found = trained_on(
        find_sae(tmp_path / "run"), str(tiny_lm_dir), "blocks.1.hook_resid_post", text
    )
    assert (found.model, found.hook, found.data) == (
        str(tiny_lm_dir),
        "blocks.1.hook_resid_post",
        text,
    )


def seven(then_a_signal):
    yield from batches(7)
    if then_a_signal:
        os.kill(os.getpid(), signal.SIGTERM)
        yield from batches(5)


@pytest.mark.parametrize(
    ("then_a_signal", "error", "said", "step"),
    [(False, TextError, "ended after 7.*lower steps", 7), (True, Interrupted, "step 8; the", 8)],
)
def test_what_ends_it_leaves_the_weights(then_a_signal, error, said, step, run, tmp_path):
    with pytest.raises(error, match=said):
        train_saes(seven(then_a_signal), {"a": SAES["top_k"]}, run)
    assert load_dictionary(tmp_path / "run", step=step)[0].dict_size == 32


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ([], "there are no batches"),
        ([t.zeros(3)], r"batch 0 is of shape \(3,\); expected a tensor of shape \(B, D\)"),
        ([t.ones(4, 8).numpy()], "batch 0 is ndarray"),
        ([t.full((4, 8), t.nan)], "batch 0 has NaN"),
        ([t.randn(4, 8), t.randn(4, 9)], r"batch 1 is of shape \(4, 9\); .*\(B, 8\)"),
        ([t.randn(4, 8), t.randn(0, 8)], r"batch 1 is of shape \(0, 8\)"),
    ],
)
def test_what_is_no_batch_is_refused(wrong, said, run):
    with pytest.raises(UserError, match=said):
        train_saes(wrong, SAES, replace(run, steps=2))


@pytest.mark.parametrize("save_steps", ["none", "6"])
def test_a_batch_with_an_infinity_is_named(save_steps, run):
    given = batches()
    given[4][3, 2] = t.inf
    with pytest.raises(NonFiniteError, match="step 6: batch 4 has"):
        train_saes(given, SAES, replace(run, save_steps=save_steps))


def test_a_bad_sae_is_judged_by_what_the_evaluator_measured(run, caplog):
    folders = train_saes(batches(), SAES, run, evaluator=lambda sae: {"fve": 0.4})
    said = [each for each in caplog.messages if "looks bad" in each]
    for folder, line in zip(folders.values(), said, strict=True):
        assert line.startswith(f"{folder} looks bad: The reconstruction")
    caplog.clear()
    train_saes(batches(), SAES, replace(run, overwrite=True), evaluator=lambda sae: {"fve": 0.9})
    assert "looks bad" not in caplog.text


def test_a_learning_rate_that_is_too_high_is_named_without_an_evaluator(run, caplog):
    train_saes(batches(), {"x": TopKConfig(k=4, dict_size=32, lr=1e3, warmup_steps=0)}, run)
    (line,) = [each for each in caplog.messages if "looks bad" in each]
    assert "lr=1000" in line
