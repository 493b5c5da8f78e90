"""One run in bfloat16, through every command and the Python interface."""

import json
import math

import pytest
import torch as t

from dictionary_learning_ext import (
    agreement,
    features_of,
    load_dictionary,
    load_language_model,
    steer,
)
from dictionary_learning_ext.cli import main

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(flags, tmp_path_factory):
    """Run folders of two seeds, trained in bfloat16."""
    base = tmp_path_factory.mktemp("bfloat16")
    for seed in ("0", "1"):
        own = ["--dtype=bfloat16", "--eval-tokens=2048", "--save-steps=5", f"--seed={seed}"]
        assert main(["train", *flags, *own, f"--save-dir={base / seed}"]) == 0
    return [str(base / seed) for seed in ("0", "1")]


def test_every_command_takes_a_run_in_bfloat16(runs, tmp_path, capsys):
    one, other = runs
    formats = ("sae-bench", "dictionary-learning", "sae-lens", "sparsify")
    exports = [["export", one, "--format", name, "--allow-inexact"] for name in formats]
    page = ["--pages=4", "--tokens=2048"]
    for command in (
        ["eval", one, "--tokens=4096"],
        ["eval", one, "--step=5"],
        ["compare", one, other],
        ["report", one, "--seeds", other, *page, f"--out={tmp_path / 'one.html'}"],
        ["report", one, "--against", other, *page, f"--out={tmp_path / 'two.html'}"],
        ["reproduce", one, other],
        *exports,
        ["push", one, "owner/name", "--dry-run"],
    ):
        assert main(command) == 0, (command, capsys.readouterr().err)
    capsys.readouterr()
    assert main(["compare", one, "--json"]) == 0
    assert 0 < json.loads(capsys.readouterr().out)[one]["fve"] <= 1


@pytest.mark.parametrize("dtype", [t.float32, t.bfloat16])
def test_features_and_steering_take_a_model_in_either_dtype(runs, tiny_lm_dir, dtype):
    lm = load_language_model(str(tiny_lm_dir), dtype=dtype)
    features = features_of(runs[0], lm, tokens=500)
    activation = features.top(int(features.firing_rate.argmax()))[0].activation
    assert math.isfinite(activation)
    assert activation != 0
    ids_BL = t.tensor([[5, 9, 40, 7, 77]])
    before = lm._module(input_ids=ids_BL).logits  # pyright: ignore
    with t.no_grad(), steer(lm, None, runs[0], {3: 40.0}, mode="clamp"):
        after = lm._module(input_ids=ids_BL).logits  # pyright: ignore
    assert after.dtype == dtype
    assert not after.equal(before)


def test_agreement_of_two_seeds(runs):
    first, second = (load_dictionary(folder)[0] for folder in runs)
    assert 0 < agreement(first, second).pair.pw_mcc < 1
