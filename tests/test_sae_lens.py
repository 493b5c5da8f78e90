"""A vSAE that SAELens trains, with its own trainer and runners, beside our trainer."""

import json
from typing import Any

import pytest
import torch as t
import wandb
from datasets import Dataset

from dictionary_learning_ext import (
    VariationalTopKTrainer,
    find_hook,
    load_dictionary,
    load_language_model,
    open_text,
)
from dictionary_learning_ext.config.sae import (
    TopKConfig,
    VSAEBatchTopKConfig,
    VSAEConfig,
    VSAETopKConfig,
)
from dictionary_learning_ext.errors import ConfigError
from dictionary_learning_ext.run_folder.weights import for_raw_activations

pytest.importorskip("sae_lens", reason="needs the extra: pip install -e '.[sae-lens]'")

import sae_lens  # pyright: ignore[reportMissingImports]
from sae_lens.config import SAETrainerConfig  # pyright: ignore[reportMissingImports]
from sae_lens.loading import pretrained_sae_loaders  # pyright: ignore[reportMissingImports]
from sae_lens.saes.sae import TrainStepInput  # pyright: ignore[reportMissingImports]

from dictionary_learning_ext.sae_bench.lens_model import hooked_transformer
from dictionary_learning_ext.sae_lens import (
    VariationalTopKTrainingSAE,
    register,
    runner_options,
)

pytestmark = pytest.mark.extra

D, F, K, B, STEPS = 16, 48, 4, 32, 50
HOOK = "blocks.2.hook_resid_post"
SMALL: dict[str, Any] = {
    "dict_size": F,
    "k": K,
    "beta": 0.1,
    "prior_std": 0.5,
    "lr": 1e-2,
    "warmup_steps": 0,
    "decay_start": 30,
    "auxk_alpha": 0.1,
    "dead_feature_threshold": 3 * B,
}
BY_POSTERIOR = {
    "fixed": {"sigma": 0.25},
    "learned": {"log_var_init": -3.0},
    "point": {},
}
GRID = [
    {"posterior": posterior, "noise_on": noise_on, "kl_scope": kl_scope} | own
    for posterior, own in BY_POSTERIOR.items()
    for noise_on in ("both", "values", "selection")
    for kl_scope in ("all", "selected")
    if posterior != "point" or noise_on == "both"
]
FIXED: dict[str, Any] = {"posterior": "fixed", "sigma": 0.25}
OTHERS = [
    FIXED | {"noise_on": "selection", "noise_anneal_steps": 25},
    FIXED | {"kl_schedule": "cosine", "kl_warmup_steps": 20},
    FIXED | {"rectify": True},
    FIXED | {"select_by": "magnitude"},
    FIXED | {"beta": 0.0, "auxk_alpha": 0.0},
    FIXED | {"k": F},
    {"posterior": "learned", "noise_anneal_steps": 25, "rectify": True, "seed": 3},
]


@pytest.fixture(autouse=True)
def registered():
    register()


def batches(n=STEPS, dtype=t.float64, scale=1.0):
    """Sparse sums of a few directions."""
    generator = t.Generator().manual_seed(1)
    directions = t.randn(40, D, generator=generator, dtype=dtype)
    strengths = t.rand(n, B, 40, generator=generator, dtype=dtype)
    is_on = t.rand(n, B, 40, generator=generator) < 0.1
    return list(((strengths * is_on) @ directions + 0.5) * scale)


def settings_of(**changes):
    return VSAETopKConfig(**SMALL | changes)


def options_of(settings, dtype="float64", normalize_activations="none", steps=STEPS):
    options = runner_options(
        settings,
        activation_dim=D,
        steps=steps,
        batch_size=B,
        normalize_activations=normalize_activations,
    )
    options["sae"].dtype = dtype
    return options


def their_trainer(options, data, sae=None, **changes):
    """SAELens's own trainer, of the arguments that its runner would give it."""
    given = {
        "total_training_samples": options["training_tokens"],
        "train_batch_size_samples": options["train_batch_size_tokens"],
        "lr_end": options["lr"] / 10,
        **{name: options[name] for name in ("lr", "lr_warm_up_steps", "lr_decay_steps")},
    }
    sae = sae or VariationalTopKTrainingSAE(options["sae"])
    config = SAETrainerConfig(**given | changes)
    return sae_lens.SAETrainer(config, sae, iter(data))


def our_trainer(settings, width=D, steps=STEPS, batch_size=B, energy=None, **changes):
    """Ours, in float64. Default of E||x||^2: the width, as of normalised activations."""
    resolved, energy = settings.resolve(steps), float(energy or width)
    arguments = resolved.trainer_arguments() | {"mean_squared_norm": energy} | changes
    trainer = VariationalTopKTrainer(
        steps=steps, activation_dim=width, layer=0, lm_name="x", device="cpu", **arguments
    )
    trainer.ae.double()
    if resolved.posterior == "fixed":
        trainer.ae.sigma.fill_(resolved.sigma_of(energy))  # not rounded to float32
    return trainer


def saved_state(sae):
    state = dict(sae.state_dict())
    sae.process_state_dict_for_saving(state)
    return state


def differences(sae, ae):
    """The largest difference of each of the weights."""
    theirs, ours = saved_state(sae), ae.state_dict()
    pairs = {
        "W_enc": ours["encoder.weight"].t(),
        "b_enc": ours["encoder.bias"],
        "W_dec": ours["decoder.weight"].t(),
        "b_dec": ours["b_dec"],
    }
    if "W_var" in theirs:
        pairs["W_var"] = ours["log_var_encoder.weight"].t()
        pairs["b_var"] = ours["log_var_encoder.bias"]
    return {name: float((theirs[name] - value).abs().max()) for name, value in pairs.items()}


def watch(monkeypatch, of, name, see):
    """Let a method show what it is given."""
    method = getattr(of, name)

    def watched(*args, **named):
        see(*args, *named.values())
        return method(*args, **named)

    monkeypatch.setattr(of, name, watched)


def step_input(x, step=0, is_logging_step=False):
    return TrainStepInput(
        sae_in=x,
        coefficients={},
        dead_neuron_mask=None,
        n_training_steps=step,
        is_logging_step=is_logging_step,
    )


# --- the same weights


@pytest.mark.parametrize("changes", GRID + OTHERS, ids=lambda c: "-".join(map(str, c.values())))
def test_the_weights_after_50_steps_are_our_trainers(changes):
    if changes["posterior"] == "point":
        changes = {name: value for name, value in changes.items() if name != "noise_on"}
    settings, data = settings_of(**changes), batches()
    energy = float(data[0].square().sum(-1).mean())
    sae = their_trainer(options_of(settings), data).fit()
    ours = our_trainer(settings, energy=energy)
    n_dead = []
    for step, x in enumerate(data):
        ours.update(step, x)
        n_dead.append(int(ours.dead_features))
    assert max(n_dead) > 0 or int(ours.ae.k) == F
    assert t.equal(sae.tokens_since_fired, ours.num_tokens_since_fired)
    assert max(differences(sae, ours.ae).values()) < 1e-8
    f = t.rand(B, F, dtype=t.float64)
    t.testing.assert_close(sae.decode(f), ours.ae.decode(f), rtol=0, atol=1e-8)
    moved = differences(sae, our_trainer(settings).ae)
    assert min(moved["W_enc"], moved["b_dec"]) > 1e-3


@pytest.mark.parametrize(
    "changes",
    [{"noise_to_signal": 0.3}, {"posterior": "learned"}],
    ids=["fixed", "learned"],
)
def test_normalised_activations_have_the_same_meaning(changes, tmp_path, monkeypatch):
    """SAELens's factor is folded as ours is, and noise_to_signal is relative to E||x||^2 = D."""
    settings = settings_of(**changes)
    data = batches(STEPS + 8, scale=7.0)
    options = options_of(settings, normalize_activations="expected_average_only_in")
    if changes == {"noise_to_signal": 0.3}:
        assert options["sae"].resolved.sigma_of(D) == (0.3 * D / K) ** 0.5
    folders = {"checkpoint_path": str(tmp_path), "save_final_checkpoint": True}
    trainer = their_trainer(options, data, n_batches_for_norm_estimate=8, **folders)
    factors = []
    watch(monkeypatch, trainer.sae, "fold_activation_norm_scaling_factor", factors.append)
    sae = trainer.fit()
    ours = our_trainer(settings)
    for step, x in enumerate(data[8:]):
        ours.update(step, x * factors[0])
    raw = for_raw_activations(ours.ae, 1 / factors[0])
    assert max(differences(sae, raw).values()) < 1e-8
    x = data[0]
    expected = raw.decode(raw.encode(x).relu())  # as SAELens's topk
    t.testing.assert_close(sae(x), expected, rtol=0, atol=1e-8)
    (final,) = tmp_path.iterdir()
    loaded = sae_lens.TrainingSAE.load_from_disk(final)
    t.testing.assert_close(loaded(x), expected, rtol=0, atol=1e-8)
    assert loaded.cfg.normalize_activations == "none"
    assert loaded.settings.prior_std == pytest.approx(float(raw.prior_std))
    if loaded.settings.posterior == "fixed":
        assert loaded.settings.sigma == pytest.approx(float(raw.sigma))


def test_initial_weights_follow_from_the_seed_and_leave_torchs_generator():
    settings = settings_of(posterior="learned", seed=5)
    t.manual_seed(0)
    expected = t.rand(3)
    t.manual_seed(0)
    sae = VariationalTopKTrainingSAE(options_of(settings)["sae"])
    assert t.equal(t.rand(3), expected)
    ours = our_trainer(settings).ae
    assert t.equal(sae.W_enc, ours.encoder.weight.t())
    assert t.equal(sae.W_dec, ours.decoder.weight.t())
    assert t.equal(sae.b_var, ours.log_var_encoder.bias)
    other = VariationalTopKTrainingSAE(options_of(settings_of(posterior="learned", seed=6))["sae"])
    assert not t.allclose(other.W_enc, sae.W_enc)


def test_autocast_is_our_bfloat16():
    settings, x = settings_of(sigma=0.25), batches(1, t.float32)[0]
    ours = our_trainer(settings, dtype="bfloat16")
    ours.ae.float()
    ours._start_decoder_bias(x)
    losses = {}
    for enabled in (True, False):
        sae = VariationalTopKTrainingSAE(options_of(settings, "float32")["sae"])
        with t.autocast("cpu", t.bfloat16, enabled=enabled):
            output = sae.training_forward_pass(step_input(x))
        output.loss.backward()
        assert sae.W_enc.grad.dtype == t.float32
        losses[enabled] = output.loss.item()
    assert losses[True] == pytest.approx(ours.loss(x, 0).item(), rel=1e-6)
    assert losses[True] != pytest.approx(losses[False], rel=1e-6)


def test_a_run_that_goes_on_after_its_steps_is_said_once(caplog):
    data = batches()
    sae = their_trainer(options_of(settings_of(sigma=0.25)), data).fit()
    last = sae.cfg.steps
    caplog.clear()
    sae.training_forward_pass(step_input(data[0], last - 1))
    assert not caplog.records
    for step in (last, last + 1):
        sae.training_forward_pass(step_input(data[0], step))
    (record,) = caplog.records
    assert f"steps={last}" in record.getMessage()


def test_the_parts_of_the_loss_add_up():
    data = batches()
    trainer = their_trainer(
        options_of(settings_of(sigma=0.25)), data, total_training_samples=40 * B
    )
    sae = trainer.fit()
    output = t.compile(sae.training_forward_pass)(step_input(data[40], 40, True))
    t.testing.assert_close(sum(output.losses.values()), output.loss)
    assert all(value.item() > 0 for value in output.losses.values())
    assert output.metrics["kl"].item() > 0
    assert (output.feature_acts != 0).sum(-1).max() <= K
    assert output.hidden_pre.shape == (B, F)

    without = VariationalTopKTrainingSAE(options_of(settings_of(sigma=0.25, beta=0.0))["sae"])
    output = without.training_forward_pass(step_input(data[0], 0, True))
    assert output.metrics["kl"].item() > output.losses["kl_loss"].item() == 0


# --- SAELens's runners


@pytest.fixture(scope="module")
def embedded():
    """The embedded model in TransformerLens, and its text."""
    lm = load_language_model("embedded")
    documents = open_text("embedded")
    text = [next(documents) for _ in range(100)]
    model = hooked_transformer(lm, find_hook(lm, HOOK), "embedded")
    return {"override_model": model, "override_dataset": Dataset.from_dict({"text": text})}


@pytest.fixture
def logged(monkeypatch):
    """What would be logged to wandb."""
    lines: list[dict[str, Any]] = []
    for name in ("init", "finish", "log_artifact"):
        monkeypatch.setattr(wandb, name, lambda *_, **__: None)
    monkeypatch.setattr(wandb, "log", lambda line, step: lines.append(line))
    return lines


def run_settings(**changes):
    """The preset recommended, for 50 steps."""
    given = {"noise_on": "selection", "noise_to_signal": 0.3, "noise_anneal_steps": 25}
    given |= {"kl_scope": "selected", "beta": 0.03, "lr": 2e-3, "warmup_steps": 0}
    return VSAETopKConfig(**{"dict_size": 256, "k": 16, "decay_start": 37} | given | changes)


def runner_config(tmp_path, **changes):
    options = runner_options(run_settings(), activation_dim=128, steps=50, batch_size=256)
    given = {
        "model_name": "embedded",
        "hook_name": HOOK,
        "dataset_path": "embedded",
        "context_size": 32,
        "store_batch_size_prompts": 16,
        "n_batches_in_buffer": 16,
        "n_batches_for_norm_estimate": 4,
        "output_path": str(tmp_path / "out"),
        "checkpoint_path": None,
    }
    return options | given | changes


def test_the_runner_trains_it_on_the_embedded_model(embedded, tmp_path, logged, monkeypatch):
    """In float64, with evaluations, as our trainer on the same batches."""
    given = runner_config(tmp_path, dtype="float64")
    given["sae"].dtype = "float64"
    logger = sae_lens.LoggingConfig(wandb_log_frequency=10, eval_every_n_wandb_logs=2)
    config = sae_lens.LanguageModelSAERunnerConfig(
        **given, logger=logger, n_eval_batches=1, eval_batch_size_prompts=4
    )
    runner = sae_lens.LanguageModelSAETrainingRunner(config, **embedded)
    seen, factors = [], []
    watch(monkeypatch, runner.sae, "training_forward_pass", lambda each: seen.append(each.sae_in))
    watch(monkeypatch, runner.sae, "fold_activation_norm_scaling_factor", factors.append)
    sae = runner.run()
    assert len(seen) == 50
    ours = our_trainer(run_settings(), width=128, batch_size=256)
    for step, x in enumerate(seen):
        ours.update(step, x)
    assert max(differences(sae, for_raw_activations(ours.ae, 1 / factors[0])).values()) < 1e-8

    lines = [line for line in logged if "losses/kl_loss" in line]
    assert len(lines) == 5
    assert lines[0]["metrics/noise_scale"] > lines[1]["metrics/noise_scale"] > 0
    assert lines[-1]["metrics/noise_scale"] == 0
    assert lines[-1]["metrics/explained_variance"] > lines[0]["metrics/explained_variance"]
    assert lines[-1]["metrics/l0"] == 16
    name = "model_performance_preservation"
    scores = [line[name]["ce_loss_score"] for line in logged if name in line]
    assert len(scores) == 2
    assert all(0.9 < score < 1 for score in scores)


def test_what_it_saves_is_a_topk_that_both_libraries_load(embedded, tmp_path, monkeypatch):
    given = runner_config(tmp_path, logger=sae_lens.LoggingConfig(log_to_wandb=False))
    config = sae_lens.LanguageModelSAERunnerConfig(**given)
    sae = sae_lens.LanguageModelSAETrainingRunner(config, **embedded).run()
    folder = tmp_path / "out"
    saved = json.loads((folder / "cfg.json").read_text())
    assert saved["architecture"] == "topk"
    assert saved["metadata"]["training_architecture"] == "vsae_top_k"
    assert saved["metadata"]["training_architecture_details"]["settings"]["noise_on"] == "selection"

    x = t.randn(64, 128, generator=t.Generator().manual_seed(0)) * 3
    theirs, (ours, _) = sae_lens.SAE.load_from_disk(folder), load_dictionary(folder)
    monkeypatch.setattr(
        pretrained_sae_loaders,
        "hf_hub_download",
        lambda repo_id, filename, force_download: str(tmp_path / filename),
    )
    from_hub = sae_lens.SAE.from_pretrained("jane/saes", "out")
    assert type(theirs).__name__ == type(from_hub).__name__ == "TopKSAE"
    f = ours.encode(x)
    assert (f != 0).sum(-1).max() == 16
    for other in (theirs, from_hub, sae):
        t.testing.assert_close(other.encode(x), f, rtol=0, atol=2e-6)
        t.testing.assert_close(other(x), ours(x), rtol=0, atol=2e-6)


def test_the_runner_of_several_trains_it_beside_a_topk(embedded, tmp_path):
    given = runner_config(tmp_path, logger=sae_lens.LoggingConfig(log_to_wandb=False))
    hook = given.pop("hook_name")
    vsae = given.pop("sae")
    top_k = sae_lens.TopKTrainingSAEConfig(d_in=128, d_sae=256, k=16)
    config = sae_lens.MultiSAETrainingRunnerConfig(
        saes={"vsae": vsae, "top_k": top_k}, hook_names=hook, **given
    )
    saes = sae_lens.MultiSAETrainingRunner(config, **embedded).run()
    initial = our_trainer(run_settings(), width=128, batch_size=256).ae
    assert differences(saes["vsae"], initial)["W_dec"] > 1e-2
    x = t.randn(64, 128, generator=t.Generator().manual_seed(0))
    for name in ("vsae", "top_k"):
        saved = sae_lens.SAE.load_from_disk(tmp_path / "out" / name)
        assert saved.cfg.architecture() == "topk"
        t.testing.assert_close(saved(x), saes[name](x), rtol=0, atol=2e-6)


# --- files


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    """Weights, dead features and noise continue."""
    settings, data = settings_of(sigma=0.25, noise_anneal_steps=40), batches()
    whole = their_trainer(options_of(settings), data).fit()
    first = their_trainer(options_of(settings), data)
    for x in data[:20]:
        first.step(x)
        first.n_training_steps += 1
    first.save_checkpoint("half", tmp_path)
    second = their_trainer(options_of(settings), data[20:])
    second.load_trainer_state(tmp_path / "half")
    second.sae.load_weights_from_checkpoint(tmp_path / "half")
    resumed = second.fit()
    one, other = saved_state(whole), saved_state(resumed)
    assert one.keys() == other.keys()
    for name, value in one.items():
        t.testing.assert_close(other[name], value, rtol=0, atol=1e-12)


def test_a_run_starts_from_a_checkpoint_of_another(tmp_path):
    """As with SAELens's from_pretrained_path: b_dec is kept, noise and dead features start anew."""
    settings, data = settings_of(posterior="learned"), batches()
    trained = their_trainer(options_of(settings), data)
    trained.fit()
    trained.save_checkpoint("first", tmp_path)
    loaded = sae_lens.TrainingSAE.load_from_disk(tmp_path / "first")
    assert isinstance(loaded, VariationalTopKTrainingSAE)
    one, other = saved_state(trained.sae), saved_state(loaded)
    for name in ("W_enc", "b_enc", "W_dec", "b_dec", "W_var", "b_var"):
        t.testing.assert_close(other[name], one[name], rtol=0, atol=1e-15)
    kept = loaded.b_dec.detach().clone()
    loaded.training_forward_pass(step_input(data[0]))
    assert t.equal(loaded.b_dec, kept)
    assert loaded.tokens_since_fired.max() == B


@pytest.mark.parametrize(
    ("changes", "saved_as"),
    [
        ({"select_by": "magnitude"}, "abstopk"),
        ({"k": F}, "abstopk"),
        ({"k": F, "rectify": True}, "topk"),
    ],
    ids=["by magnitude", "all features", "all features, rectified"],
)
def test_what_keeps_signs_is_saved_as_an_abstopk(changes, saved_as, tmp_path):
    sae = their_trainer(options_of(settings_of(sigma=0.25, **changes)), batches()).fit()
    sae.save_inference_model(tmp_path)
    assert json.loads((tmp_path / "cfg.json").read_text())["architecture"] == saved_as
    theirs, (ours, _) = sae_lens.SAE.load_from_disk(tmp_path), load_dictionary(tmp_path)
    x = batches(1)[0]
    assert (theirs.encode(x) < 0).any() == (saved_as == "abstopk")
    t.testing.assert_close(theirs.encode(x), ours.encode(x.float()).double(), rtol=0, atol=2e-6)


# --- what is wrong


ERRORS: list[tuple[dict[str, Any], str]] = [
    ({"k": 99}, "k=99: expected 1 to dict_size=48"),
    ({"posterior": "point", "sigma": 0.2}, "posterior point does not use it; leave out sigma"),
    ({"noise_to_signal": 0.3}, "normalize='none': expected sqrt_d or unit, with noise_to_signal"),
    ({"kl_warmup_steps": 51}, "kl_warmup_steps=51: expected 0 to steps=50"),
    ({"noise_on": "values_"}, "did you mean 'values'"),
    ({"beta": "1"}, "beta='1': expected a finite number"),
    ({"steps": 0}, "steps=0: expected at least 1"),
    ({"d_in": 0}, "d_in=0: expected at least 1"),
    ({"normalize_activations": "layer_norm"}, "expected one of none, expected_average_only_in"),
    ({"dtype": "bfloat16"}, "dtype='bfloat16': expected one of float32, float64"),
    ({"apply_b_dec_to_input": False}, "apply_b_dec_to_input=False: expected True"),
    ({"decoder_init_norm": 0.1}, "decoder_init_norm=0.1: expected None"),
]


@pytest.mark.parametrize(
    ("sae", "message"),
    [
        (TopKConfig(), "architecture='top_k': "),
        (VSAEBatchTopKConfig(), "architecture='vsae_batch_top_k': "),
        (VSAETopKConfig(init_from="runs/one"), "from_pretrained_path"),
        (VSAETopKConfig(decay_start=4), "decay_start=4: expected between 5 and steps=50"),
    ],
    ids=["architecture", "over a batch", "init_from", "decay_start"],
)
def test_settings_that_the_runner_can_not_have_are_named(sae, message):
    with pytest.raises(ConfigError) as raised:
        runner_options(sae, activation_dim=D, steps=STEPS, batch_size=B)
    assert message in str(raised.value)


def test_the_runs_arguments_are_those_of_vsae_train():
    settings = VSAEConfig(dict_size=2**12, decay_start=750, rectify=True)
    options = runner_options(settings, activation_dim=512, steps=1000, batch_size=64)
    sae = options.pop("sae")
    assert (sae.k, sae.d_sae, sae.resolved.kl_warmup_steps) == (2**12, 2**12, 100)
    assert sae.resolved.rectify
    assert options == {
        "training_tokens": 64_000,
        "train_batch_size_tokens": 64,
        "lr": our_trainer(VSAETopKConfig(dict_size=2**12), width=8).lr,
        "lr_warm_up_steps": 100,
        "lr_decay_steps": 250,
    }
