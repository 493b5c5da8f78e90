"""What the package does on a GPU, on the stand-in for one: nothing mixes devices, and steps don't wait.

These tests run on every machine. What only a GPU can show is in test_training_on_a_gpu.py.
"""

import dataclasses
import itertools
import shutil
from pathlib import Path

import pytest
import torch as t
from caches import CTX_LEN, HOOK, OTHER
from interrupted_runs import assert_equal, results, resumed, sae_of, stopped_at
from pretend_cuda import PretendCuda
from recorded_ops import RecordedOps
from small_trainers import BATCH, assert_same, built, weights_of
from small_trainers import batch as batch_of
from step_cases import CASES

from dictionary_learning_ext import VariationalTopKTrainer, train
from dictionary_learning_ext.activations.batches import Batches
from dictionary_learning_ext.cli import main
from dictionary_learning_ext.config.sae import CONFIGS, option_names
from dictionary_learning_ext.errors import ConfigError, Interrupted
from dictionary_learning_ext.run_folder.reading import read_history
from dictionary_learning_ext.run_folder.resume_points import load_point, save_point
from dictionary_learning_ext.run_folder.sae_folder import find_sae
from dictionary_learning_ext.run_folder.weights import load_dictionary
from dictionary_learning_ext.trainers import base
from dictionary_learning_ext.trainers import step as definition
from dictionary_learning_ext.training import loop

OURS = ("vsae_top_k", "vsae_batch_top_k", "vsae", "vaease", "probabilistic_top_k")
DEVICE = "cuda:1"  # not the one that torch takes by default


@pytest.fixture
def cuda():
    with PretendCuda(devices=2) as pretended:
        yield pretended


def tensors_of(trainer):
    """All that training changes."""
    trainer = getattr(trainer, "_trainer", trainer)  # upstream's
    optimizer = trainer.optimizer.state_dict()["state"].values()
    of_trainer = [each for each in vars(trainer).values() if isinstance(each, t.Tensor)]
    of_optimizer = itertools.chain.from_iterable(state.values() for state in optimizer)
    return [*trainer.ae.state_dict().values(), *of_trainer, *of_optimizer]


def require_steps(trainer, cuda, *, waits=False):
    """Take steps, in which features die, and log them. Unless it `waits`, no step after the first does."""
    for step in range(4):
        x = batch_of(step).to(DEVICE)
        cuda.syncs.clear()
        trainer.update(step, x)
        assert waits or step == 0 or not cuda.syncs
    trainer.metrics(step, x)
    assert trainer.check(step) is None
    return {str(each.device) for each in tensors_of(trainer)}


SETTINGS = [
    *((case.form, case.options | {"dtype": case.dtype}) for case in CASES),
    ("dense", {"noise_anneal_steps": 2, "kl_schedule": "cosine"}),
]


@pytest.mark.parametrize(("form", "settings"), SETTINGS, ids=str)
def test_no_setting_of_a_vsae_mixes_devices_or_waits_in_a_step(form, settings, cuda, monkeypatch):
    monkeypatch.setattr(definition, "dense_from", lambda *_: t.inf if form == "sparse" else 0.0)
    trainer = built("vsae_top_k", device=DEVICE, dead_feature_threshold=1, **settings)
    assert require_steps(trainer, cuda) == {DEVICE}


@pytest.mark.parametrize("noise_on", ["both", "values", "selection"])
@pytest.mark.parametrize("densest", [0.0, t.inf], ids=["dense", "sparse"])
def test_nor_does_one_over_a_batch(densest, noise_on, cuda, monkeypatch):
    monkeypatch.setattr(definition, "dense_from", lambda *_: densest)
    trainer = built("vsae_batch_top_k", device=DEVICE, dead_feature_threshold=1, noise_on=noise_on)
    assert require_steps(trainer, cuda) == {DEVICE}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", CONFIGS)
def test_no_architecture_mixes_devices_and_ours_wait_in_no_step(architecture, dtype, cuda):
    options = {"dead_feature_threshold": 1}
    names = option_names(CONFIGS[architecture])
    options = {name: value for name, value in options.items() if name in names}
    trainer = built(architecture, dtype, DEVICE, **options)
    found = require_steps(trainer, cuda, waits=architecture not in OURS)
    assert found <= {DEVICE, "cpu"} if architecture not in OURS else found == {DEVICE}


@pytest.mark.parametrize("architecture", ["vsae_top_k", "probabilistic_top_k"])
def test_auxk_costs_nothing_while_no_feature_can_be_dead_and_changes_no_number(
    architecture, cuda, monkeypatch
):
    monkeypatch.setattr(base, "LOOK_EVERY", 5)
    options = {"device": DEVICE, "dead_feature_threshold": 10 * BATCH}
    watching, always = (built(architecture, **options) for _ in range(2))
    monkeypatch.setattr(always._dead_watch, "may_be_dead", lambda *_: True)
    selections, looks = {watching: [], always: []}, []
    for step in range(40):
        x = batch_of(step).to(DEVICE)
        for trainer in selections:
            if step == 20:
                trainer.ae.encoder.bias.data[0] = -100.0  # it never fires again
            cuda.syncs.clear()
            with RecordedOps() as ops:
                trainer.update(step, x)
            selections[trainer].append(ops.counts["topk"])
            if trainer is watching and step > 0 and cuda.syncs:
                looks.append(step)
    with_auxk = [a == b for a, b in zip(*selections.values(), strict=True)]
    assert not any(with_auxk[:20])
    assert all(with_auxk[30:]), "it is dead"
    assert 1 <= len(looks) <= 7
    assert all(later - earlier >= 5 for earlier, later in itertools.pairwise(looks))
    assert int(watching.dead_features) == 1
    assert_same(weights_of(watching), weights_of(always))


@pytest.mark.slow
def test_a_stopped_run_of_every_architecture_ends_as_if_it_had_not_been_stopped(
    run, tmp_path, monkeypatch, cuda
):
    """At two hook points; it is logged, measured, evaluated, and writes checkpoints, too."""
    saes = {name: sae_of(name, seed=number) for number, name in enumerate(CONFIGS)}
    hooks = {name: (HOOK, OTHER)[number % 2] for number, name in enumerate(CONFIGS)}
    settings = {"device": DEVICE, "eval_every": 6, "save_steps": "log:2", "steps": 12}
    run = dataclasses.replace(run, **settings)
    whole = train(dataclasses.replace(run, save_dir=str(tmp_path / "whole")), saes, hooks)
    stopped_at(8, monkeypatch)
    with pytest.raises(Interrupted):
        train(run, saes, hooks)
    folders = resumed(run.save_dir)
    for name in saes:
        assert_equal(results(whole[name], 12), results(folders[name], 12))


def test_auto_trains_and_measures_where_cuda_is(flags, tmp_path, capsys, monkeypatch, cuda):
    folder, used, original = tmp_path / "run", set(), VariationalTopKTrainer.update

    def update(self, step, x):
        used.update(str(each.device) for each in (x, *self.ae.state_dict().values()))
        return original(self, step, x)

    monkeypatch.setattr(VariationalTopKTrainer, "update", update)
    assert main(["train", *flags, "--save-dir", str(folder)]) == 0
    assert f"Writing to {folder}, on cuda\n" in capsys.readouterr().out
    assert used == {"cuda:0"}
    assert find_sae(folder).config["run"]["settings"]["device"] == "cuda"
    assert main(["eval", str(folder), "--tokens", "100"]) == 0


def test_a_run_that_moves_to_the_cpu_continues_and_says_that_it_is_no_longer_bit_identical(
    run, monkeypatch, caplog
):
    stopped_at(15, monkeypatch)
    with PretendCuda(), pytest.raises(Interrupted):
        train(run, {"x": sae_of()})
    folder = Path(run.save_dir)
    point = load_point(folder, 15)
    assert point.settings["device"] == "cuda"
    of_cuda = {"generators": {"generator": t.zeros(16, dtype=t.uint8)}}  # as long as CUDA's
    save_point(folder, dataclasses.replace(point, trainer=point.trainer | of_cuda))
    train(run, {"x": sae_of()}, resume=True)
    (said,) = [record.message for record in caplog.records if "bit-identical" in record.message]
    assert "continues on cpu, was on cuda" in said
    assert find_sae(folder).config["run"]["settings"]["device"] == "cpu"
    assert read_history(folder)[-1]["step"] == run.steps


@pytest.fixture(scope="module")
def trained(tiny_lm_dir, text, tmp_path_factory):
    """Run folders of two seeds, trained on a device."""
    folder = tmp_path_factory.mktemp("trained")
    words = (
        f"train --model {tiny_lm_dir} --data {text} --steps 20 --batch-size 64 --n-ctxs 16 --ctx-len 32 "
        f"--dict-size 32 --k 4 --eval-tokens 200 --eval-documents 4 --device {DEVICE}"
    ).split()
    with PretendCuda(devices=2):
        for seed in ("0", "1"):
            seeds = ["--seed", seed, "--data-seed", seed, "--save-dir", str(folder / seed)]
            assert main([*words, *seeds]) == 0
    return folder


COMMANDS = {
    "eval": "eval {0} {1} --tokens 300",
    "reproduce": "reproduce {0} {1} --tokens 300",
    "report": "report {0} --against {1} --out {out}/r.html --tokens 300 ",
}


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_measured_on_a_trained_sae_mixes_no_devices(command, trained, tmp_path, cuda):
    folders = [shutil.copytree(trained / seed, tmp_path / seed) for seed in ("0", "1")]
    words = COMMANDS[command].format(*folders, out=tmp_path).split()
    assert main([*words, "--device", DEVICE]) == 0


def test_a_cache_is_written_and_read_on_a_device(tiny_lm_dir, text, tmp_path, cuda):
    where = ["--model", str(tiny_lm_dir), "--data", text, "--ctx-len", str(CTX_LEN)]
    hooks = ["--hook", f"{HOOK},{OTHER}", "--tokens", "2000", "--eval-tokens", "300"]
    assert main(["cache", str(tmp_path / "cache"), *where, *hooks, "--device", DEVICE]) == 0
    of_run = [
        "--steps=10",
        "--batch-size=64",
        "--n-ctxs=16",
        "--dict-size=32",
        "--k=4",
        "--eval-tokens=200",
    ]
    read = ["--activations", str(tmp_path / "cache"), "--hook", HOOK, "--device", DEVICE]
    assert main(["train", *of_run, *read, "--save-dir", str(tmp_path / "run")]) == 0
    weights = load_dictionary(tmp_path / "run", DEVICE)[0].state_dict()
    assert {str(each.device) for each in weights.values()} == {DEVICE}
    assert main(["eval", str(tmp_path / "run"), "--tokens", "100", "--device", DEVICE]) == 0


@pytest.fixture(params=[False, True])
def former(request):
    """Whether torch allows TF32 anyway."""
    products = t.backends.cuda.matmul
    was, products.allow_tf32 = products.allow_tf32, request.param
    yield request.param
    products.allow_tf32 = was


@pytest.mark.parametrize("tf32", [False, True])
def test_tf32_is_allowed_in_training_alone_and_put_back(
    tf32, former, run, tmp_path, monkeypatch, cuda
):
    seen = {}

    def noted(owner, name):
        original = getattr(owner, name)

        def noting(*arguments, **options):
            seen[name] = t.backends.cuda.matmul.allow_tf32
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, noting)

    noted(Batches, "mean_squared_norms")  # reads the first activations
    noted(VariationalTopKTrainer, "update")
    noted(loop.Run, "_evaluate")
    run = dataclasses.replace(run, device=DEVICE, tf32=tf32, steps=6, eval_tokens=64)
    train(run, {"x": sae_of()})
    assert t.backends.cuda.matmul.allow_tf32 == former
    allowed = tf32 or former
    assert seen == {"mean_squared_norms": allowed, "update": allowed, "_evaluate": former}
    stopped_at(3, monkeypatch)
    with pytest.raises(Interrupted):
        train(dataclasses.replace(run, save_dir=str(tmp_path / "stopped")), {"x": sae_of()})
    assert t.backends.cuda.matmul.allow_tf32 == former


@pytest.mark.skipif(
    not hasattr(t.backends.cuda.matmul, "fp32_precision"), reason="torch has one name for it"
)
@pytest.mark.parametrize("tf32", [False, True])
def test_tf32_that_is_set_by_torchs_newer_name_is_put_back(tf32, run, cuda):
    products = t.backends.cuda.matmul
    products.fp32_precision = "tf32"
    try:
        train(dataclasses.replace(run, device=DEVICE, tf32=tf32, steps=3), {"x": sae_of()})
        assert products.fp32_precision == "tf32"
    finally:
        products.fp32_precision = "none"


def test_tf32_on_a_cpu_is_refused(run):
    with pytest.raises(ConfigError, match=r"^tf32=True: expected False, or device='cuda'"):
        train(dataclasses.replace(run, tf32=True), {"x": sae_of()})
