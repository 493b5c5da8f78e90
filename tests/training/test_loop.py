"""The loop: company, hook points, failures, what it writes; and upstream's loop with our trainer."""

import logging
import os
import re
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch as t
from dictionary_learning.evaluation import evaluate as upstream_evaluate
from dictionary_learning.trainers.top_k import TopKTrainer
from dictionary_learning.training import trainSAE
from interrupted_runs import STEPS, assert_equal, results, resumed, sae_of, stopped_at
from planted_sinks import saved_with_sinks
from upstreams_tracing import upstreams_tracing

from dictionary_learning_ext import VariationalTopKTrainer, devices, load_dictionary, train
from dictionary_learning_ext.activations import inputs, passes
from dictionary_learning_ext.activations.buffer import ResidualBuffer
from dictionary_learning_ext.activations.language_models import load_language_model
from dictionary_learning_ext.activations.text import open_text
from dictionary_learning_ext.config.architectures import TRAINED
from dictionary_learning_ext.config.run import RunConfig
from dictionary_learning_ext.errors import (
    CheckpointError,
    ConfigError,
    Interrupted,
    NonFiniteError,
    TextError,
    TrainingError,
)
from dictionary_learning_ext.evaluation.metrics import METRICS
from dictionary_learning_ext.run_folder.reading import load_config, read_history
from dictionary_learning_ext.run_folder.resume_points import load_point, steps_of
from dictionary_learning_ext.run_folder.sae_folder import read_metrics
from dictionary_learning_ext.training import loop
from dictionary_learning_ext.training.sae_run import SAERun

HOOK = "blocks.0.hook_resid_post"


@pytest.fixture
def run_of(run):
    """A shorter run, which evaluates nothing."""
    short = {"steps": 30, "log_steps": 10, "eval_tokens": 0, "save_every": RunConfig.save_every}
    return lambda **changes: replace(run, **short | changes)


def stop(*_, **__):
    os.kill(os.getpid(), signal.SIGTERM)


def weights(folder):
    return t.load(folder / "ae.pt", weights_only=True)


@pytest.mark.parametrize(
    ("instructions", "architecture", "slow"),
    [
        (None, "vsae_top_k", ["language model"]),
        (None, "top_k", ["language model", "upstream's TopK"]),
        ("AMX", "top_k", []),
    ],
)
def test_bfloat16_is_warned_of_where_torch_multiplies_it_without_instructions(
    instructions, architecture, slow, run_of, caplog, monkeypatch
):
    monkeypatch.setattr(devices, "bf16_instructions", lambda: instructions)
    train(run_of(dtype="bfloat16", steps=1, eval_tokens=0), {"one": sae_of(architecture)})
    warned = [line for line in caplog.messages if line.startswith("dtype='bfloat16': ")]
    assert len(warned) == bool(slow)
    assert all(part in warned[0] for part in slow)
    assert ("upstream's" in "".join(warned)) == (len(slow) == 2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", TRAINED)
def test_every_architecture_trains_saves_loads_and_is_evaluated(architecture, dtype, run_of):
    run = run_of(eval_tokens=200, dtype=dtype)
    (folder,) = train(run, {"one": sae_of(architecture)}).values()
    metrics = read_metrics(folder)
    assert set(metrics) == set(METRICS) | {"measured_on", "of"}
    assert metrics["measured_on"]["hook"] == HOOK
    assert metrics["tokens"] >= 200
    assert metrics["frac_recovered"] is not None
    assert all(value.dtype != t.bfloat16 for value in weights(folder).values())
    rows: Any = read_history(folder)
    assert [row["step"] for row in rows] == [0, 10, 20, 30]
    assert [row["tokens"] for row in rows] == [n * run.batch_size for n in (0, 10, 20, 30)]
    assert rows[-1]["fve"] > rows[0]["fve"]
    dictionary, config = load_dictionary(folder)
    assert dictionary.dict_size == 32
    assert config["run"]["settings"]["architecture"] == architecture
    x = t.randn(5, 16)
    assert dictionary.encode(x).shape == (5, 32)


def test_the_evaluation_leaves_the_trainers_own_model_in_training_units(run_of, monkeypatch):
    kept, original = [], SAERun.close
    monkeypatch.setattr(
        SAERun, "close", lambda self, code: kept.append(self) or original(self, code)
    )
    (folder,) = train(run_of(eval_tokens=200), {"one": sae_of("top_k")}).values()
    (one,) = kept
    assert one.norm_factor != 1.0
    saved, own = weights(folder), one.trainer.ae.state_dict()
    assert t.equal(saved["b_dec"], own["b_dec"] * one.norm_factor)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "architectures"),
    [("float32", TRAINED), ("bfloat16", ["vsae_top_k", "probabilistic_top_k", "vaease"])],
)
def test_company_and_logging_change_nothing_to_the_bit(dtype, architectures, run_of, tmp_path):
    saes = {name: sae_of(name) for name in architectures} | {"dense": sae_of(k=16)}
    short = {"steps": 15, "dtype": dtype}
    together = train(run_of(log_steps=1, save_dir=str(tmp_path / "together"), **short), saes)
    for name, sae in saes.items():
        run = run_of(log_steps=1000, save_dir=str(tmp_path / name), **short)
        (alone,) = train(run, {name: sae}).values()
        assert_equal(weights(alone), weights(together[name]))


@pytest.mark.parametrize("normalize", ["sqrt_d", "unit", "none"])
def test_the_saved_sae_takes_raw_activations(normalize, run_of, tiny_lm, text):
    run = run_of(normalize=normalize, steps=200)
    (folder,) = train(run, {"one": sae_of("top_k", k=16)}).values()
    dictionary, config = load_dictionary(folder)
    stream = open_text(text, split="heldout")
    x = next(ResidualBuffer(stream, tiny_lm, HOOK, n_ctxs=16, ctx_len=32, out_batch_size=256))
    fve = 1 - (x - dictionary(x)).pow(2).sum() / (x - x.mean(0)).pow(2).sum()
    assert fve > 0.5
    target = {"sqrt_d": 16, "unit": 1}.get(normalize)
    factor, alpha = (config["trainer"][name] for name in ("norm_factor", "auxk_alpha"))
    assert config["run"]["norm_factor"] == factor
    ((mean,),) = inputs.open_inputs(run, [HOOK]).training_batches().mean_squared_norms().values()
    assert alpha == pytest.approx((target or mean) / 32), "in units of E||x||^2"
    if target is None:
        assert factor == 1.0
    else:
        assert (x / factor).pow(2).sum(-1).mean().item() == pytest.approx(target, rel=0.1)
        assert factor == pytest.approx((mean / target) ** 0.5, rel=1e-5), "of the first fill"


def test_checkpoints_on_the_way_do_not_disturb_training(run_of, tmp_path):
    plain = run_of(save_dir=str(tmp_path / "a"))
    saving = run_of(save_dir=str(tmp_path / "b"), save_steps="linear:2")
    (one,), (two,) = (list(train(run, {"x": sae_of()}).values()) for run in (plain, saving))
    assert_equal(weights(one), weights(two))
    saved = sorted(path.name for path in (two / "checkpoints").iterdir())
    assert saved == ["ae_10.pt", "ae_20.pt"]
    early = t.load(two / "checkpoints/ae_10.pt", weights_only=True)
    assert not t.equal(early["encoder.weight"], weights(two)["encoder.weight"])


def test_a_folder_that_holds_a_run_is_kept_unless_overwrite(run_of):
    (folder,) = train(run_of(), {"x": sae_of()}).values()
    before = weights(folder)
    with pytest.raises(ConfigError, match="overwrite=True"):
        train(run_of(), {"x": sae_of(seed=1)})
    assert_equal(weights(folder), before)
    train(run_of(overwrite=True), {"x": sae_of(seed=1)})
    assert not t.equal(weights(folder)["encoder.weight"], before["encoder.weight"])


@pytest.mark.parametrize("normalize", ["none", "sqrt_d"])
@pytest.mark.parametrize("content", ["the cat", "\n\n"])
def test_a_try_that_fails_before_its_first_step_leaves_no_folder(
    content, normalize, run_of, tmp_path
):
    short = tmp_path / "short.txt"
    short.write_text(content)
    with pytest.raises(TextError):
        train(run_of(data=str(short), normalize=normalize, text_passes=1), {"x": sae_of(sigma=0.5)})
    assert not (tmp_path / "run").exists()


def test_overwriting_leaves_nothing_that_describes_the_former_sae(run_of):
    """In its folder: pages beside it stay."""
    (folder,) = train(run_of(), {"x": sae_of()}).values()
    for name in ("report.html", "report_files/a.csv", "eval_results/core/a.json", "exports/a/b.pt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("of the former SAE")
    page = folder.parent / "index.html"
    page.write_text("a page on several SAEs")
    train(run_of(overwrite=True), {"x": sae_of(seed=1)})
    written = {"ae.pt", "config.json", "metrics.json", "metrics.jsonl", "resume", ".lock"}
    assert {path.name for path in folder.iterdir()} <= written
    assert page.exists()


def test_text_that_ends_early_names_both_counts_and_keeps_what_was_trained(run_of, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("the cat sat on the mat. " * 400)
    with pytest.raises(TextError, match=r"\d+ tokens.*expected 64 .*, found \d+"):
        train(run_of(data=str(short), steps=500, text_passes=1), {"x": sae_of()})
    folder = tmp_path / "run"
    assert not (folder / "ae.pt").exists()
    assert len(list((folder / "checkpoints").iterdir())) == 1


def test_a_short_text_is_read_until_the_steps_are_done_and_each_pass_is_said_once(
    run_of, tmp_path, caplog, monkeypatch
):
    """At two hook points, and exactly as with a cap that is high enough; also if it is stopped."""
    caplog.set_level("INFO", "dictionary_learning_ext")
    short = tmp_path / "short.txt"
    lines = ["the cat sat on the mat by the door and the dog lay there. " * 3] * 24
    short.write_text("<|endoftext|>".join(lines))
    hooks = {"a": HOOK, "b": "blocks.1.hook_mlp_out"}
    saes = dict.fromkeys(hooks, sae_of())
    run = run_of(data=str(short), steps=100)
    capped = replace(run, text_passes=50, save_dir=str(tmp_path / "capped"))
    whole = train(capped, saes, hooks)
    said = [text for text in caplog.messages if "is read again" in text]
    assert len(said) > 1
    assert len(said) == len(set(said))
    stopped_at(45, monkeypatch)
    with pytest.raises(Interrupted):
        train(run, saes, hooks)
    resumed(run.save_dir)
    for name in hooks:
        assert_equal(weights(whole[name]), weights(tmp_path / "run" / name))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["vsae_top_k", "vaease", "top_k", "relu"])
def test_a_trainer_that_diverges_stops_alone_and_the_run_says_so(architecture, run_of, monkeypatch):
    original = SAERun.update

    def poisoned(self, step, x_BD):
        if self.name == "bad" and step == 15:
            x_BD = x_BD * t.nan
        original(self, step, x_BD)

    monkeypatch.setattr(SAERun, "update", poisoned)
    run = run_of()
    with pytest.raises(TrainingError, match=r"bad: .* step (15|20): not finite"):
        train(run, {"bad": sae_of(architecture), "good": sae_of()})
    base = Path(run.save_dir)
    assert all(v.isfinite().all() for v in weights(base / "good").values())
    assert not (base / "bad" / "ae.pt").exists()
    (saved,) = (base / "bad" / "checkpoints").iterdir()
    state = t.load(saved, weights_only=True)
    assert all(value.isfinite().all() for value in state.values())
    assert len(read_history(base / "good")) == 4


def test_activations_that_are_not_finite_name_the_step_and_keep_what_was_trained(
    run_of, tmp_path, monkeypatch
):
    original, calls = passes.read_places, []

    def poisoned(*arguments):
        calls.append(1)
        return [x * (t.nan if len(calls) > 2 else 1.0) for x in original(*arguments)]

    monkeypatch.setattr(passes, "read_places", poisoned)
    monkeypatch.setattr(loop, "warn_of_sinks", lambda *_: None)  # it reads, too
    with pytest.raises(NonFiniteError, match=r"step 16: .*NaN"):
        train(run_of(), {"x": sae_of()})
    (saved,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert saved.name == "ae_16.pt"


def test_held_out_text_that_ends_is_measured_as_far_as_it_goes(run_of, caplog):
    (folder,) = train(run_of(eval_tokens=10**6, steps=5), {"x": sae_of()}).values()
    metrics = read_metrics(folder)
    assert 0 < metrics["tokens"] < 10**6
    assert f"measured on {metrics['tokens']} tokens, not 1000000" in caplog.text


@upstreams_tracing
@pytest.mark.parametrize("normalize", [False, True])
def test_upstreams_trainsae_takes_our_trainer_beside_its_own(normalize, tiny_lm, text, tmp_path):
    sizes = {"n_ctxs": 16, "ctx_len": 32, "out_batch_size": 64}

    def buffer(split):
        return ResidualBuffer(open_text(text, split=split), tiny_lm, HOOK, **sizes)

    common = {"steps": 40, "activation_dim": 16, "dict_size": 32, "k": 4, "layer": 0, "lr": 1e-3}
    common |= {"lm_name": "tiny", "warmup_steps": 5, "seed": 0, "device": "cpu"}
    trainSAE(
        buffer("train"),
        [
            {"trainer": VariationalTopKTrainer, "posterior": "learned", **common},
            {"trainer": TopKTrainer, **common},
        ],
        steps=40,
        save_dir=str(tmp_path),
        save_steps=[20],
        log_steps=10,
        verbose=True,
        normalize_activations=normalize,
        device="cpu",
    )
    for i, dict_class in enumerate(["VariationalTopKAutoEncoder", "AutoEncoderTopK"]):
        dictionary, config = load_dictionary(tmp_path / f"trainer_{i}")
        assert type(dictionary).__name__ == config["trainer"]["dict_class"] == dict_class
        assert (tmp_path / f"trainer_{i}" / "checkpoints" / "ae_20.pt").exists()
        metrics = upstream_evaluate(dictionary, buffer("train"), max_len=32, batch_size=8)
        assert metrics["frac_variance_explained"] > 0
        assert {"loss_original", "loss_reconstructed", "frac_recovered"} <= metrics.keys()


# --- several hook points in one run: each as in a run of its own, to the bit

HOOKS = {"early": "blocks.0.hook_mlp_out", "late": "blocks.2.hook_resid_pre"}
SAES = {"early": sae_of(), "late": sae_of("top_k", dict_size=24)}


def test_each_is_the_run_of_its_own_and_stays_so_when_stopped_and_resumed(
    run, tmp_path, monkeypatch
):
    alone = {}
    for name, hook in HOOKS.items():
        own = replace(run, hook=hook, save_dir=str(tmp_path / "alone" / name))
        alone |= train(own, {name: SAES[name]})
    stopped_at(15, monkeypatch)
    with pytest.raises(Interrupted, match=f"`vsae train --resume {run.save_dir}`$"):
        train(run, SAES, HOOKS)
    together = resumed(run.save_dir)
    for name in HOOKS:
        assert together[name] == Path(run.save_dir) / name
        assert_equal(results(together[name]), results(alone[name]))
        assert load_config(together[name]) == load_config(alone[name])
        assert load_config(together[name]).run.hook == HOOKS[name]


# --- activations and texts that define few metrics: what is said, and that every file is JSON


@pytest.fixture
def small(run_of):
    sizes = {"steps": 3, "batch_size": 16, "n_ctxs": 4, "ctx_len": 16, "log_steps": 1}
    sizes |= {"eval_tokens": 64, "eval_documents": 16}
    return lambda **changes: run_of(**sizes | changes)


def metrics_of(run: RunConfig) -> dict[str, Any]:
    """Train; the content of metrics.json. Both files must be strict JSON, without NaN."""
    (folder,) = train(run, {"sae": sae_of()}).values()
    for name in ("metrics.jsonl", "metrics.json"):
        assert not re.search("NaN|Infinity", (folder / name).read_text())
    return read_metrics(folder)


def changed_model(lm_dir: Path, out: Path, value: float) -> str:
    """A model whose activations are all alike: `value` in every place."""
    lm: Any = load_language_model(str(lm_dir))
    with t.no_grad():
        for parameter in lm._module.parameters():
            parameter.zero_()
        lm._module.gpt_neox.embed_in.weight.fill_(value)
    lm._module.save_pretrained(out)
    lm.tokenizer.save_pretrained(out)
    return str(out)


def test_activations_without_variance_have_no_fve(small, tiny_lm_dir, tmp_path):
    metrics = metrics_of(small(model=changed_model(tiny_lm_dir, tmp_path / "ones", 1.0)))
    assert metrics["fve"] is None
    assert "no variance" in metrics["not_measured"]["fve"]
    assert "the loss" in metrics["not_measured"]["frac_recovered"]


@pytest.mark.parametrize(
    ("changes", "documents", "expected"),
    [
        ({"ctx_len": 1, "n_ctxs": 64}, None, {"loss_original": None, "frac_recovered": None}),
        ({}, 2000, {"loss_tokens": 0, "loss_positions": 16, "frac_recovered": None}),
        ({"eval_tokens": 1}, None, {"tokens": 1, "fve": None}),
    ],
    ids=["contexts of one token", "documents of one token", "one token"],
)
def test_what_one_token_does_not_define_is_not_measured(
    changes, documents, expected, small, tmp_path
):
    if documents:
        (tmp_path / "a.jsonl").write_text('{"text": "a"}\n' * documents)
        changes = changes | {"data": str(tmp_path / "a.jsonl")}
    metrics = metrics_of(small(**changes))
    assert {name: metrics[name] for name in expected} == expected
    assert {name for name in expected if expected[name] is None} <= metrics["not_measured"].keys()


def test_sinks_are_named_at_each_hook_point_unless_they_are_left_out(
    small, lm_dir_of, tmp_path, caplog
):
    model = saved_with_sinks(lm_dir_of("gpt2"), tmp_path / "sinks")
    hooks = {"a": HOOK, "b": "blocks.1.hook_resid_post"}
    for multiple, expected in ((None, 2), (10.0, 0)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            save_dir = str(tmp_path / f"run{multiple}")
            run = small(model=model, save_dir=save_dir, max_norm_multiple=multiple)
            train(run, {"a": sae_of(), "b": sae_of()}, hooks)
        said = [text for text in caplog.messages if "position 0 of each context" in text]
        assert len(said) == expected
        for text, hook in zip(said, hooks.values(), strict=False):
            assert text.startswith(f"{hook}: some activations ")
            assert "max_norm_multiple=10 " in text


# --- where a signal ends a run, and what is kept


def test_a_run_that_ended_in_its_evaluation_is_evaluated(run, tmp_path, monkeypatch):
    (whole,) = train(replace(run, save_dir=str(tmp_path / "whole")), {"x": sae_of()}).values()

    monkeypatch.setattr(loop, "evaluated", stop)
    with pytest.raises(Interrupted, match=r"SIGTERM .*vsae eval"):
        train(run, {"x": sae_of()})
    monkeypatch.undo()
    resumed(run.save_dir)
    assert_equal(results(whole), results(Path(run.save_dir)))


def test_a_signal_in_the_middle_of_a_fill_is_answered_before_the_fill_ends(
    run, tmp_path, monkeypatch
):
    (whole,) = train(replace(run, save_dir=str(tmp_path / "whole")), {"x": sae_of()}).values()
    original = ResidualBuffer.refreshing

    def refreshing(self):
        if self.fills == 3:
            stop()
        yield from original(self)

    monkeypatch.setattr(ResidualBuffer, "refreshing", refreshing)
    with pytest.raises(Interrupted) as stopped:
        train(run, {"x": sae_of()})
    monkeypatch.undo()
    assert stopped.value.exit_code == 143
    (step,) = steps_of(Path(run.save_dir))[-1:]
    assert load_point(Path(run.save_dir), step).batches["batches"] == 0
    resumed(run.save_dir)
    assert_equal(results(whole), results(Path(run.save_dir)))


def test_by_time_too_and_the_signal_handlers_are_given_back(run, monkeypatch):
    former = signal.getsignal(signal.SIGTERM)
    clock = iter(range(10**6))
    monkeypatch.setattr("time.monotonic", lambda: next(clock) * 3.0)
    seen = []
    original = SAERun.write_resume_point
    monkeypatch.setattr(
        SAERun,
        "write_resume_point",
        lambda self, step, *rest: seen.append(step) or original(self, step, *rest),
    )
    train(replace(run, save_every="1m", eval_tokens=0), {"x": sae_of()})
    assert seen[-1] == STEPS
    assert len(seen) > 2
    assert signal.getsignal(signal.SIGTERM) is former


def test_none_writes_no_points_but_a_signal_does(run, monkeypatch):
    quiet = replace(run, save_every="none")
    (folder,) = train(quiet, {"x": sae_of()}).values()
    assert steps_of(folder) == []
    stopped_at(12, monkeypatch)
    with pytest.raises(Interrupted):
        train(replace(quiet, overwrite=True), {"x": sae_of()})
    assert steps_of(folder) == [12]


def test_what_is_trained_is_not_thrown_away_for_want_of_a_point(run, monkeypatch):
    quiet = replace(run, save_every="none", save_steps="20")
    monkeypatch.setattr(loop, "evaluated", stop)
    with pytest.raises(Interrupted):
        train(quiet, {"x": sae_of()})
    monkeypatch.undo()
    before = (Path(run.save_dir) / "ae.pt").read_bytes()
    with pytest.raises(CheckpointError, match="vsae eval"):
        resumed(run.save_dir)
    assert (Path(run.save_dir) / "ae.pt").read_bytes() == before


def test_a_signal_in_the_last_step_is_not_forgotten(run, monkeypatch):
    stopped_at(STEPS, monkeypatch)
    with pytest.raises(Interrupted, match="the evaluation"):
        train(run, {"x": sae_of()})


def test_a_signal_before_the_first_step_says_that_nothing_was_written(run, monkeypatch):
    monkeypatch.setattr(loop, "Run", stop)
    with pytest.raises(Interrupted) as stopped:
        train(run, {"x": sae_of()})
    said = "stopped by SIGTERM before the first step; nothing was written or changed"
    assert str(stopped.value) == said
    assert not Path(run.save_dir).exists()


def test_a_signal_while_wandb_opens_is_answered_at_the_first_step_and_its_runs_are_closed(
    run, monkeypatch
):
    closed, original = [], SAERun.close
    monkeypatch.setattr(
        SAERun, "close", lambda self, code: closed.append(code) or original(self, code)
    )
    monkeypatch.setattr(loop, "open_all", stop)
    with pytest.raises(Interrupted, match="at step 0; continue"):
        train(run, {"x": sae_of()})
    assert closed == [143]
    assert steps_of(Path(run.save_dir)) == [0]


@pytest.mark.parametrize("is_left_empty", [False, True])
def test_a_folder_that_is_moved_during_training_does_not_come_back(
    is_left_empty, run, tmp_path, monkeypatch
):
    folder, original = Path(run.save_dir), SAERun.update

    def update(self, step, x_BD):
        if step == 15:
            folder.rename(tmp_path / "moved")
            if is_left_empty:
                folder.mkdir()
        original(self, step, x_BD)

    monkeypatch.setattr(SAERun, "update", update)
    with pytest.raises(CheckpointError, match=re.escape(str(folder))):
        train(replace(run, log_steps=100), {"x": sae_of()})
    assert not [path for path in folder.rglob("*") if path.suffix]
    monkeypatch.undo()
    resumed(tmp_path / "moved")
