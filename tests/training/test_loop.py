"""The loop: company, logging, failures, what it writes; and upstream's loop with our trainer."""

import json

import pytest
import torch as t
import wandb
from dictionary_learning.evaluation import evaluate as upstream_evaluate
from dictionary_learning.trainers.top_k import TopKTrainer
from dictionary_learning.training import trainSAE
from interrupted_runs import sae_of
from tqdm import tqdm

from dictionary_learning_ext import VariationalTopKTrainer, load_dictionary, train
from dictionary_learning_ext.activations import inputs as language_model_run
from dictionary_learning_ext.activations.buffer import ResidualBuffer
from dictionary_learning_ext.activations.hook_points import find_hook
from dictionary_learning_ext.activations.inputs import open_inputs
from dictionary_learning_ext.activations.text import open_text
from dictionary_learning_ext.config.architectures import TRAINED
from dictionary_learning_ext.config.run import RunConfig
from dictionary_learning_ext.errors import (
    ConfigError,
    LanguageModelError,
    NonFiniteError,
    TextError,
    TrainingError,
)
from dictionary_learning_ext.evaluation.folders import evaluate_folders
from dictionary_learning_ext.evaluation.metrics import METRICS
from dictionary_learning_ext.run_folder.names import PAGE_MARK
from dictionary_learning_ext.training.sae_run import SAERun
from experiments.robustness.wandb_files import history

HOOK = "blocks.0.hook_resid_post"


@pytest.fixture
def run_of(tiny_lm_dir, text, tmp_path):
    def run(**changes):
        settings = {
            "model": str(tiny_lm_dir),
            "data": text,
            "steps": 30,
            "batch_size": 64,
            "n_ctxs": 16,
            "ctx_len": 32,
            "eval_tokens": 0,
            "log_steps": 10,
            "save_dir": str(tmp_path / "run"),
        }
        return RunConfig(**settings | changes)

    return run


def weights(folder):
    return t.load(folder / "ae.pt", weights_only=True)


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert t.equal(one[name], other[name]), name


@pytest.mark.parametrize("architecture", TRAINED)
def test_every_architecture_trains_saves_loads_and_is_evaluated(architecture, run_of):
    run = run_of(eval_tokens=200)
    (folder,) = train(run, {"one": sae_of(architecture)}).values()
    metrics = json.loads((folder / "metrics.json").read_text())
    assert set(metrics) == set(METRICS) | {"measured_on"}
    assert metrics["measured_on"]["hook"] == HOOK
    assert metrics["tokens"] >= 200
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 10, 20, 30]
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


@pytest.mark.parametrize("architecture", ["vsae_top_k", "top_k", "relu"])
def test_a_folder_measured_again_has_the_metrics_that_its_training_wrote(architecture, run_of):
    """So training measures what it saves: the SAE of raw activations, on the text it names."""
    (folder,) = train(run_of(eval_tokens=200), {"one": sae_of(architecture)}).values()
    written = json.loads((folder / "metrics.json").read_text())
    assert abs(load_dictionary(folder)[1]["run"]["norm_factor"] - 1) > 0.1
    again = evaluate_folders([folder], tokens=200)[str(folder)]
    assert written["fve"] < 1
    for key, value in again.items():
        expected = pytest.approx(value, rel=1e-6) if isinstance(value, float) else value
        assert written[key] == expected, key


@pytest.mark.parametrize(
    ("dtype", "architectures"),
    [("float32", TRAINED), ("bfloat16", ["vsae_top_k", "probabilistic_top_k", "vaease"])],
)
def test_company_and_logging_change_nothing_to_the_bit(dtype, architectures, run_of, tmp_path):
    saes = {name: sae_of(name) for name in architectures} | {"dense": sae_of(k=16)}
    together = train(run_of(log_steps=1, dtype=dtype, save_dir=str(tmp_path / "together")), saes)
    for name, sae in saes.items():
        run = run_of(log_steps=1000, dtype=dtype, save_dir=str(tmp_path / name))
        (alone,) = train(run, {name: sae}).values()
        assert_equal(weights(alone), weights(together[name]))


def test_the_same_configs_can_be_passed_twice(run_of, tmp_path):
    saes = {"a": sae_of(), "b": sae_of("top_k")}
    first = train(run_of(save_dir=str(tmp_path / "1")), saes)
    second = train(run_of(save_dir=str(tmp_path / "2")), saes)
    for name in saes:
        assert_equal(weights(first[name]), weights(second[name]))


@pytest.mark.parametrize("normalize", ["sqrt_d", "unit", "none"])
def test_the_saved_sae_takes_raw_activations(normalize, run_of, tiny_lm, text):
    run = run_of(normalize=normalize, steps=200)
    (folder,) = train(run, {"one": sae_of("top_k", k=16)}).values()
    dictionary, config = load_dictionary(folder)
    hook = find_hook(tiny_lm, HOOK)
    stream = open_text(text, split="heldout")
    x = next(
        ResidualBuffer(stream, tiny_lm, hook.submodule, n_ctxs=16, ctx_len=32, out_batch_size=256)
    )
    fve = 1 - (x - dictionary(x)).pow(2).sum() / (x - x.mean(0)).pow(2).sum()
    assert fve > 0.5
    target = {"sqrt_d": 16, "unit": 1}.get(normalize)
    factor = config["trainer"]["norm_factor"]
    assert config["run"]["norm_factor"] == factor
    if target is None:
        assert factor == 1.0
    else:
        assert (x / factor).pow(2).sum(-1).mean().item() == pytest.approx(target, rel=0.1)
        (mean,) = open_inputs(run, [HOOK]).train().mean_squared_norms().values()
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
    with pytest.raises(ConfigError, match=r"already holds a run.*overwrite=True"):
        train(run_of(), {"x": sae_of(seed=1)})
    assert_equal(weights(folder), before)
    train(run_of(overwrite=True), {"x": sae_of(seed=1)})
    assert not t.equal(weights(folder)["encoder.weight"], before["encoder.weight"])


@pytest.mark.parametrize("normalize", ["none", "sqrt_d"])
def test_a_try_that_fails_before_its_first_step_leaves_no_folder(
    normalize, run_of, tmp_path, monkeypatch
):
    monkeypatch.setattr(language_model_run, "require_enough_text", lambda *args: None)
    short = tmp_path / "short.txt"
    short.write_text("the cat")
    with pytest.raises(TextError):
        train(run_of(data=str(short), normalize=normalize), {"x": sae_of()})
    assert not (tmp_path / "run").exists()


def test_overwriting_leaves_nothing_that_describes_the_former_sae(run_of, caplog):
    (folder,) = train(run_of(), {"x": sae_of()}).values()
    for name in ("report.html", "report_files/a.csv", "eval_results/core/a.json", "exports/a/b.pt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("of the former SAE")
    (folder.parent / "report.html").write_text("of several")
    train(run_of(overwrite=True), {"x": sae_of(seed=1)})
    written = {"ae.pt", "config.json", "metrics.json", "metrics.jsonl", "resume", ".lock"}
    assert {path.name for path in folder.iterdir()} <= written
    assert f"{folder.parent / 'report.html'} may show the SAE that is overwritten" in caplog.text


@pytest.mark.parametrize("is_ours", [True, False])
def test_pages_on_several_saes_go_with_the_one_that_is_overwritten(is_ours, run_of):
    (folder,) = train(run_of(), {"x": sae_of()}).values()
    for name in ("report.html", "index.html"):
        (folder.parent / name).write_text(PAGE_MARK if is_ours else "a site")
    data = folder.parent / "report_files"
    data.mkdir()
    train(run_of(overwrite=True), {"x": sae_of(seed=1)})
    there = [(folder.parent / name).exists() for name in ("report.html", "index.html")]
    assert [*there, data.exists()] == [not is_ours] * 3


def test_text_that_ends_early_names_both_counts_and_keeps_what_was_trained(
    run_of, tmp_path, monkeypatch
):
    monkeypatch.setattr(language_model_run, "require_enough_text", lambda *args: None)
    short = tmp_path / "short.txt"
    short.write_text("the cat sat on the mat. " * 400)
    with pytest.raises(TextError, match=r"\d+ tokens.*expected 64 for the next batch, found \d+"):
        train(run_of(data=str(short), steps=500), {"x": sae_of()})
    folder = tmp_path / "run"
    assert not (folder / "ae.pt").exists()
    assert len(list((folder / "checkpoints").iterdir())) == 1


def test_empty_text_is_an_error_before_anything_is_written(run_of, tmp_path):
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(TextError, match="no documents to train on"):
        train(run_of(data=str(tmp_path / "empty.txt")), {"x": sae_of()})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("architecture", ["vsae_top_k", "vaease", "top_k", "relu"])
def test_a_trainer_that_diverges_stops_alone_and_the_run_says_so(architecture, run_of, monkeypatch):
    original = SAERun.update

    def poisoned(self, step, x_BD):
        if self.name == "bad" and step == 15:
            x_BD = x_BD * t.nan
        original(self, step, x_BD)

    monkeypatch.setattr(SAERun, "update", poisoned)
    run = run_of()
    with pytest.raises(TrainingError, match=r"bad: failed at or before step (15|20): not finite"):
        train(run, {"bad": sae_of(architecture), "good": sae_of()})
    from pathlib import Path

    base = Path(run.save_dir)
    assert all(v.isfinite().all() for v in weights(base / "good").values())
    assert not (base / "bad" / "ae.pt").exists()
    (saved,) = (base / "bad" / "checkpoints").iterdir()
    state = t.load(saved, weights_only=True)
    assert all(value.isfinite().all() for value in state.values())
    assert len((base / "good" / "metrics.jsonl").read_text().splitlines()) == 4


def test_activations_that_are_not_finite_name_the_step_and_keep_what_was_trained(
    run_of, tmp_path, monkeypatch
):
    from dictionary_learning_ext.activations import hook_points as shared_pass

    original, calls = shared_pass.read_places, []

    def poisoned(*arguments):
        calls.append(1)
        return [x * (t.nan if len(calls) > 2 else 1.0) for x in original(*arguments)]

    monkeypatch.setattr(shared_pass, "read_places", poisoned)
    with pytest.raises(NonFiniteError, match=r"step 16: .*NaN or infinite"):
        train(run_of(), {"x": sae_of()})
    (saved,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert saved.name == "ae_16.pt"


def test_held_out_text_that_ends_is_measured_as_far_as_it_goes(run_of, caplog):
    (folder,) = train(run_of(eval_tokens=10**6, steps=5), {"x": sae_of()}).values()
    metrics = json.loads((folder / "metrics.json").read_text())
    assert 0 < metrics["tokens"] < 10**6
    assert f"measured on {metrics['tokens']} tokens, not 1000000" in caplog.text


@pytest.mark.parametrize("architecture", TRAINED)
def test_every_architecture_trains_in_bf16(architecture, run_of):
    run = run_of(eval_tokens=200, steps=12, dtype="bfloat16")
    (folder,) = train(run, {"one": sae_of(architecture)}).values()
    assert json.loads((folder / "metrics.json").read_text())["frac_recovered"] is not None
    assert all(v.dtype != t.bfloat16 for v in weights(folder).values())


def test_the_run_is_refused_before_training_when_the_model_or_hook_is_wrong(run_of, tmp_path):
    with pytest.raises(LanguageModelError, match=r"blocks\.\{0\.\.2\}"):
        train(run_of(hook="blocks.7.hook_resid_post"), {"x": sae_of()})
    with pytest.raises(LanguageModelError, match="save_pretrained"):
        train(run_of(model=str(tmp_path / "nothing")), {"x": sae_of()})
    assert not (tmp_path / "run").exists()


def test_names_of_saes_cannot_leave_the_run_folder(run_of):
    with pytest.raises(ConfigError, match="plain folder name"):
        train(run_of(), {"../out": sae_of(), "b": sae_of("top_k")})


def test_wandb_offline_logs_the_numbers_of_metrics_jsonl(run_of):
    run = run_of(wandb="offline", eval_tokens=200)
    folders = train(run, {"a": sae_of(), "b": sae_of("top_k")})
    wandb.teardown()  # its service writes the files behind our back
    for folder in folders.values():
        (log,) = folder.glob("wandb/offline-run-*/run-*.wandb")
        rows = history(log)
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        assert [row["fve"] for row in rows] == [json.loads(line)["fve"] for line in lines]


@pytest.mark.parametrize("normalize", [False, True])
def test_upstreams_trainsae_takes_our_trainer_beside_its_own(normalize, tiny_lm, text, tmp_path):
    hook = find_hook(tiny_lm, HOOK)

    def buffer(split):
        return ResidualBuffer(
            open_text(text, split=split),
            tiny_lm,
            hook.submodule,
            n_ctxs=16,
            ctx_len=32,
            out_batch_size=64,
        )

    common = {
        "steps": 40,
        "activation_dim": 16,
        "dict_size": 32,
        "k": 4,
        "layer": 0,
        "lm_name": "tiny",
        "lr": 1e-3,
        "warmup_steps": 5,
        "seed": 0,
        "device": "cpu",
    }
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


def test_the_progress_bar_names_a_few_saes_by_what_they_differ_in(run_of, monkeypatch):
    shown = []
    monkeypatch.setattr(tqdm, "set_postfix_str", lambda bar, text, **_: shown.append(text))
    train(run_of(), {f"{'long' * 10}{k}": sae_of("top_k", k=k) for k in (2, 3, 4, 5)})
    assert [part.partition(":")[0] for part in shown[-1].split(" | ")] == [
        "k=2",
        "k=3",
        "k=4",
        "and 1 more",
    ]
