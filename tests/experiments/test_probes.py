"""The study's sae_probes: which SAEs are measured, and that each number gets to its own row."""

import json
import re

import pytest

from dictionary_learning_ext import RunConfig, SAEConfig, train
from experiments.reproducibility import parts, probes
from experiments.reproducibility.probes import MEASURE
from experiments.reproducibility.settings import BOTH, NOISE, TOP_K

SEEDS = (5, 6)
SETS = "119_us_state_TX,118_us_state_CA"


@pytest.fixture
def raw(tmp_path, monkeypatch):
    """Rows of three arms at a setting, and of TopK at another, with their folders."""
    monkeypatch.setattr(parts, "RUNS", tmp_path / "runs")
    arms = {"small": (TOP_K, NOISE, BOTH), "other": (TOP_K,)}
    saes = []
    for name, of_setting in arms.items():
        for seed in SEEDS:
            for arm in of_setting:
                (parts.seed_folder("confirm", name, seed) / parts.arm_folder_name(arm)).mkdir(
                    parents=True
                )
                part = parts.part_name("confirm", name, SEEDS)
                saes.append({"part": part, "arm": arm, "seed": seed, "fve": 0.9})
    pairs = [{**saes[0], "less_null": 0.1}]
    del pairs[0]["seed"]
    path = tmp_path / "raw.json"
    path.write_text(json.dumps({"parts": {}, "saes": saes, "pairs": pairs}))
    return path


def by_its_folder(folders):
    """A number that only this folder has."""
    return [
        int(folder.parent.name) + 0.1 * (folder.name == parts.arm_folder_name(BOTH))
        for folder in folders
    ]


def test_each_accuracy_gets_to_its_own_row(raw, monkeypatch):
    monkeypatch.setattr(probes, "accuracies", by_its_folder)
    before = json.loads(raw.read_text())
    probes.probe_setting("small", raw)
    content = json.loads(raw.read_text())
    for row, old in zip(content["saes"], before["saes"], strict=True):
        measured = row["part"].startswith("confirm: small") and row["arm"] != NOISE
        expected = row["seed"] + 0.1 * (row["arm"] == BOTH)
        assert row == old | ({MEASURE: expected} if measured else {})
    assert content["pairs"] == before["pairs"]
    assert content["parts"]["probes: small"]["minutes"] >= 0


def test_rows_that_another_stage_adds_meanwhile_stay(raw, monkeypatch):
    def with_another_row(folders):
        content = json.loads(raw.read_text())
        first = dict(content["saes"][0], part=parts.part_name("confirm", "small", (1, 2)), seed=1)
        content["saes"].insert(0, first)
        raw.write_text(json.dumps(content))
        return by_its_folder(folders)

    monkeypatch.setattr(probes, "accuracies", with_another_row)
    probes.probe_setting("small", raw)
    new, *rows = json.loads(raw.read_text())["saes"]
    assert MEASURE not in new
    assert [row[MEASURE] for row in rows if MEASURE in row] == [5, 5.1, 6, 6.1]


def test_what_is_measured_is_not_measured_again(raw, monkeypatch):
    monkeypatch.setattr(probes, "accuracies", by_its_folder)
    probes.probe_setting("small", raw)
    monkeypatch.setattr(probes, "accuracies", lambda _: pytest.fail("measured again"))
    before = raw.read_text()
    probes.probe_setting("small", raw)
    assert raw.read_text() == before


def test_saes_that_are_gone_are_said(raw, monkeypatch):
    monkeypatch.setattr(probes, "accuracies", lambda _: pytest.fail("measured"))
    gone = parts.seed_folder("confirm", "small", SEEDS[1]) / parts.arm_folder_name(BOTH)
    gone.rmdir()
    before = raw.read_text()
    with pytest.raises(SystemExit, match=re.escape(f"{gone} isn't there: expected the SAEs")):
        probes.probe_setting("small", raw)
    assert raw.read_text() == before


def test_sae_bench_measures_each_folder(tiny_lm_dir, text, tmp_path, monkeypatch):
    """In the order of the folders, and as SAE Bench's own files have it."""
    pytest.importorskip("sae_bench", reason="needs the extra: pip install -e '.[saebench]'")
    monkeypatch.setattr(probes, "BENCH_SEEDS", 2)
    folders = []
    for seed in SEEDS:
        run = RunConfig(
            model=str(tiny_lm_dir),
            data=text,
            save_dir=str(tmp_path / str(seed)),
            steps=30,
            batch_size=64,
            n_ctxs=8,
            ctx_len=32,
            eval_tokens=0,
        )
        saes = {
            name: SAEConfig(architecture="top_k", dict_size=64, k=4, seed=seed)
            for name in ("one", "two")
        }
        folders += train(run, saes).values()
    folders = [folders[3], folders[0], folders[2]]  # not in alphabetical order
    found = probes.accuracies(folders, SETS)
    for folder, accuracy in zip(folders, found, strict=True):
        values = []
        for path in folder.rglob("*_eval_results.json"):
            metrics = json.loads(path.read_text())["eval_result_metrics"]["sae"]
            values += [metrics[f"sae_top_{k}_test_accuracy"] for k in (1, 2, 5)]
        assert len(values) == 6
        assert accuracy == pytest.approx(sum(values) / 6)
    assert len(set(found)) > 1, "the order is tested"
