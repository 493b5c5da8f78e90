"""Measuring during training: what is measured, and that the training never notices."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from caches import write_small
from interrupted_runs import STEPS, assert_equal, results, resumed, sae_of, stopped_at

from dictionary_learning_ext import train
from dictionary_learning_ext.activations.rows import ActivationReader
from dictionary_learning_ext.errors import Interrupted
from dictionary_learning_ext.evaluation.folders import evaluate_folders
from dictionary_learning_ext.run_folder.files import CODES, HELD_OUT_PREFIX
from dictionary_learning_ext.run_folder.reading import read_history
from dictionary_learning_ext.training import loop

OTHER = "blocks.1.hook_mlp_out"
MEASURED = ("fve", "loss_added", "near_dead_0.1")


@pytest.fixture
def run_on(run, tmp_path):
    """Runs on a text, a cache of it, or own activations, which nothing says the language model of."""

    def of_source(source):
        if source == "text":
            return run
        folder = tmp_path / source
        if source == "cache":
            write_small(folder, run, 6000, (run.hook, OTHER))
        else:
            folder.mkdir()
            rows = np.random.default_rng(0).standard_normal((5000, 16))
            np.save(folder / "x.npy", rows.astype("f4"))
        return replace(run, activations=str(folder))

    return of_source


def held_out(folder):
    """What was measured on held-out tokens, by step."""
    return {
        line["step"]: {
            k.removeprefix(HELD_OUT_PREFIX): v for k, v in line.items() if HELD_OUT_PREFIX in k
        }
        for line in read_history(folder)
        if any(HELD_OUT_PREFIX in key for key in line)
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "normalize", "architectures"),
    [
        ("text", "sqrt_d", ("vsae_top_k", "batch_top_k")),
        ("cache", "none", ("vsae_top_k", "relu")),
        ("own", "sqrt_d", ("vsae_top_k", "relu")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_training_does_not_notice_and_a_resume_neither_repeats_nor_loses_one(
    source, normalize, architectures, run_on, tmp_path, monkeypatch
):
    saes = {name: sae_of(name) for name in architectures}
    if normalize == "none":
        saes["vsae_top_k"] = sae_of(sigma=1.0)
    plain = replace(run_on(source), normalize=normalize)
    measuring = replace(plain, eval_every=15)
    without = train(replace(plain, save_dir=str(tmp_path / "plain")), saes)
    whole = train(replace(measuring, save_dir=str(tmp_path / "whole")), saes)
    for step in (30, 44):  # where it is measured, and where it isn't
        stopped_at(step, monkeypatch)
        with pytest.raises(Interrupted):
            resumed(plain.save_dir) if step == 44 else train(measuring, saes)
    stopped = resumed(plain.save_dir)
    for name in saes:
        assert_equal(results(stopped[name]), results(whole[name]))
        one, other = results(without[name]), results(whole[name])
        former, lines = (
            [json.loads(line) for line in log.splitlines()]
            for log in (one.pop("log"), other.pop("log"))
        )
        assert_equal(one, other)
        steps = [line["step"] for line in lines]
        assert steps == sorted({*range(0, STEPS, 7), *range(0, STEPS, 15), STEPS})
        same = [{k: v for k, v in line.items() if HELD_OUT_PREFIX not in k} for line in lines]
        assert [line for line in same if line["step"] in (*range(0, STEPS, 7), STEPS)] == former
        found = held_out(whole[name])
        assert list(found) == [0, 15, 30, 45, STEPS]
        expected = set(MEASURED) - ({"loss_added"} if source == "own" else set())
        assert all(set(metrics) == expected for metrics in found.values())


@pytest.mark.parametrize("sample", [None, 64], ids=["all", "sample"])
def test_the_numbers_are_an_evaluations_on_as_many_tokens(sample, run, monkeypatch):
    """At two hook points. `run` measures on fewer tokens than a sample has at most."""
    if sample:
        monkeypatch.setattr(loop, "SAMPLE_TOKENS", sample)
    hooks = {"early": run.hook, "late": OTHER}
    run = replace(run, eval_every=20, save_steps="20")
    folders = train(run, {name: sae_of() for name in hooks}, hooks)
    for folder in folders.values():
        found, tokens = held_out(folder), sample or run.eval_tokens
        final = evaluate_folders([folder], tokens=tokens)[str(folder)]
        kept = (Path(folder) / CODES).read_bytes()
        earlier = evaluate_folders([folder], tokens=tokens, step=20)[str(folder)]
        for key in MEASURED:
            assert found[STEPS][key] == pytest.approx(final[key], rel=1e-6), key
            assert found[20][key] == pytest.approx(earlier[key], rel=1e-6), key
        assert found[STEPS]["fve"] > found[20]["fve"] + 0.05
        assert (Path(folder) / CODES).read_bytes() == kept, "the final SAE's"


def test_what_does_not_depend_on_an_sae_is_computed_once(run, monkeypatch):
    passes, original = [], ActivationReader.logits_with
    monkeypatch.setattr(
        ActivationReader, "logits_with", lambda *given: passes.append(1) or original(*given)
    )
    train(replace(run, eval_every=30), {"a": sae_of(), "b": sae_of("top_k")})
    at_the_end, measurements = 2 + 2, 3
    assert len(passes) - at_the_end == 2 + 2 * measurements
