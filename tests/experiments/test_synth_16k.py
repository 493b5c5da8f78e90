"""A row of SynthSAEBench-16k, small: what SAELens measures is what we measure, and no row is made twice."""

from argparse import Namespace

import pytest
from interrupted_runs import stopped_at

from dictionary_learning_ext import load_dictionary
from dictionary_learning_ext.activations.inputs import open_inputs
from dictionary_learning_ext.config.run import RunConfig
from dictionary_learning_ext.config.synthetic_models import NO_HOOK, settings_of_run
from dictionary_learning_ext.errors import Interrupted
from dictionary_learning_ext.evaluation.measure import measure
from dictionary_learning_ext.training.sae_run import SAERun
from experiments.ground_truth import synth_16k

pytest.importorskip("sae_lens", reason="needs the extra: pip install -e '.[synthetic]'")

MODEL, SAMPLES, HELD_OUT = "synthetic:small", 64 * 40, 2048
ARGUMENTS = Namespace(arms=["TopK", "BatchTopK"], seeds=[0], samples=SAMPLES, threads=1)
TOP_K, BATCH_TOP_K = ROWS = [f"{arm}, seed 0, 2,560 samples" for arm in ARGUMENTS.arms]


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    changed = {"MODEL": MODEL, "WIDTH": 96, "K": 8, "BATCH": 64, "LR": 1e-2, "HELD_OUT": HELD_OUT}
    changed |= {"RUNS": tmp_path / "runs", "RAW": tmp_path / "synth_16k.json"}
    for name, value in changed.items():
        monkeypatch.setattr(synth_16k, name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    monkeypatch.chdir(tmp_path)


def test_rows_are_saelens_measures_of_held_out_samples_and_are_made_once(monkeypatch):
    synth_16k.train(ARGUMENTS)
    content = synth_16k.read()
    assert list(content["rows"]) == ROWS
    inputs = open_inputs(RunConfig(**settings_of_run(MODEL)), [NO_HOOK])
    for arm, name in zip(ARGUMENTS.arms, ROWS, strict=True):
        folder = synth_16k.RUNS / str(SAMPLES) / "0" / arm
        ours = measure(
            {"": (load_dictionary(folder)[0], 1.0)}, inputs.held_out(NO_HOOK, HELD_OUT), HELD_OUT
        )[""]
        row = content["rows"][name]
        assert row["mcc"] == pytest.approx(ours["true_mcc"], abs=1e-6)
        assert row["f1_score"] == pytest.approx(ours["firing_f1"], abs=1e-6)
        assert row["uniqueness"] == ours["uniqueness"]
        assert row["explained_variance"] == pytest.approx(ours["fve"], abs=1e-5)
        assert row["sae_l0"] == pytest.approx(ours["l0"], abs=1e-4)
        assert 0 < row["precision"] < 1
        assert 0 < row["recall"] < 1
    assert any(TOP_K in line for line in synth_16k.tables(content))

    monkeypatch.setattr(synth_16k, "train_missing", lambda *_: pytest.fail("trained again"))
    synth_16k.train(ARGUMENTS)
    assert synth_16k.read() == content


def test_a_row_that_is_stopped_is_continued_and_the_rows_before_it_stay(monkeypatch):
    synth_16k.train(Namespace(**vars(ARGUMENTS) | {"arms": ["TopK"]}))
    stopped_at(25, monkeypatch)
    with pytest.raises(Interrupted):
        synth_16k.train(ARGUMENTS)
    stopped = synth_16k.read()
    assert list(stopped["rows"]) == [TOP_K]
    assert list(stopped["parts"]) == ["seed 0, 2,560 samples"]

    original, steps = SAERun.update, []

    def update(self, step, x_BD):
        steps.append(step)
        original(self, step, x_BD)

    monkeypatch.setattr(SAERun, "update", update)
    synth_16k.train(ARGUMENTS)
    assert list(synth_16k.read()["rows"]) == ROWS
    assert steps == list(range(25, 40))
