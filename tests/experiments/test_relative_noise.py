"""The study of relative noise: which candidates, which scale and which arms are chosen, and when a setting is satisfied."""

import argparse
import json
from dataclasses import replace

import pytest
from caches import HOOK, D

from dictionary_learning_ext.config.presets import preset
from dictionary_learning_ext.run_folder.reading import load_config
from experiments.reproducibility import convergence, parts, relative_noise, settings
from experiments.reproducibility.relative_noise import (
    BOTH,
    CANDIDATES,
    NOISE,
    NORM,
    OWN,
    PROBABILISTIC,
    RELATIVE_BOTH,
    SETTINGS,
    SMOLLM2,
    TOP_K,
    better,
    better_scale,
    chosen,
    recommended,
    satisfies,
    tables,
    with_penalty,
)
from experiments.reproducibility.settings import CONFIRM


def rows_of(part, arm, **measures):
    return {"part": part, "arm": arm} | measures


def tuning(named, special):
    """Candidates with an FVE of 0.8 and no return, but for those in `special`: FVE, return."""
    found = {name: special.get(name, (0.8, 0.0)) for name in named}
    return [
        rows_of("tuning: tuning: 0, 1", name, fve=fve, less_null=returns)
        for name, (fve, returns) in found.items()
    ]


@pytest.fixture
def content(monkeypatch):
    """A function: the search's raw results, with those of the first protocol's tuning in their place."""

    def make(**special):
        special = {name.replace("_", " "): value for name, value in special.items()}
        by_name = {name: special[key] for key, name in KEYS.items() if key in special}
        first = [name for own in convergence.CANDIDATES.values() for name in own]
        monkeypatch.setattr(
            parts, "read", lambda raw: {"saes": [], "pairs": tuning(first, by_name)}
        )
        now = [name for own in CANDIDATES.values() for name in own]
        return {"saes": [], "pairs": tuning(now, by_name)}

    return make


KEYS = {
    "old top k": next(iter(convergence.CANDIDATES[TOP_K])),
    "top k": next(iter(CANDIDATES[TOP_K])),
    "own": next(iter(CANDIDATES[OWN])),
    "own other": [*CANDIDATES[OWN]][1],
    "norm": next(iter(CANDIDATES[NORM])),
    "noise": next(iter(convergence.CANDIDATES[NOISE])),
}


def test_the_better_scale_returns_more_among_those_that_keep_the_chosen_top_ks_fve(content):
    found = content(top_k=(0.90, 0.1), own=(0.8995, 0.3), own_other=(0.898, 0.9), norm=(0.95, 0.2))
    assert better_scale(found) == (OWN, KEYS["own"])
    found = content(old_top_k=(0.91, 0.1), own=(0.8995, 0.3), norm=(0.95, 0.2))
    assert better_scale(found) == (NORM, KEYS["norm"]), "a TopK of the first tuning counts"
    found["pairs"].pop()
    assert better_scale(found) is not None, "it needs no other arm"
    found["pairs"] = [row for row in found["pairs"] if row["arm"] != KEYS["norm"]]
    assert better_scale(found) is None


def test_noise_and_penalty_is_searched_from_the_choice_of_the_better_scale(content):
    found = content(top_k=(0.90, 0.1), norm=(0.90, 0.2))
    named = with_penalty(found)
    scale = CANDIDATES[NORM][KEYS["norm"]]
    assert len(named) == 8
    assert all(own["relative"] == scale["relative"] for own in named.values())
    assert {own["penalty"] for own in named.values()} == {0.01, 0.03}
    assert chosen(found) is None, "not before it is searched, too"
    found["pairs"] += tuning(named, {[*named][3]: (0.9, 0.5)})
    choices = chosen(found)
    assert choices is not None
    assert OWN not in choices
    assert (choices[NORM], choices[RELATIVE_BOTH]) == (KEYS["norm"], [*named][3])


def of_pairs(arm, fve, same, dead):
    return [
        rows_of(str(i), arm, fve=fve, same=each, **{"near_dead_0.1": dead})
        for i, each in enumerate(same)
    ]


@pytest.mark.parametrize(
    ("own", "missed"),
    [
        ((0.8991, [0.4, 0.4], 0.029), set()),
        ((0.8989, [0.4, 0.4], 0.02), {"FVE"}),
        ((0.95, [0.4, 0.4], 0.031), {"near-dead"}),
        ((0.95, [0.9, 0.29], 0.0), {"same in every pair"}),
        ((0.95, [0.4], 0.0), set()),  # of the pairs that both have
    ],
)
def test_a_setting_is_satisfied_by_fve_near_dead_and_function(own, missed):
    rows = of_pairs(TOP_K, 0.9, [0.3, 0.3], 0.02) + of_pairs(OWN, *own)
    found = satisfies(rows, OWN)
    assert found is not None
    assert {what for what, holds in found.items() if not holds} == missed
    assert satisfies(rows, NORM) is None


def confirmed(shares, names=SETTINGS, pairs=1):
    """Rows of the embedded confirmation: the share of each arm that does the same, at an FVE of 0.9, by setting."""
    found = []
    for name, of_setting in zip(names, shares, strict=True):
        for i in range(pairs):
            for arm, same in of_setting.items():
                part = f"confirm: {name}: {i}, {i}"
                found.append(rows_of(part, arm, fve=0.9, same=same, **{"near_dead_0.1": 0.0}))
    return found


def test_the_better_vsae_satisfies_more_settings_then_does_more_of_the_same():
    def of(*shares, more=()):
        named = [dict(zip((TOP_K, NOISE, BOTH), each, strict=False)) for each in shares]
        return better({"saes": [], "pairs": [*confirmed(named), *more]}, (NOISE, BOTH))

    assert of((0.3, 0.4, 0.5), (0.3, 0.4, 0.4), (0.3, 0.4, 0.4)) == BOTH
    assert of((0.3, 0.4, 0.9), (0.3, 0.4, 0.9), (0.3, 0.4, 0.2)) == NOISE, "it satisfies all three"
    assert of((0.3, 0.4, 0.5), (0.3, 0.4, 0.5), (0.3, 0.4)) is None, "a pair is missing"
    more = [rows_of(f"confirm: {SETTINGS[0]}: 8, 9", NOISE, fve=0.9, same=0.9)]
    equal = (0.3, 0.4, 0.4)
    assert of((0.3, 0.4, 0.5), equal, equal, more=more) == BOTH, "of the pairs that both have"
    begun = [rows_of(f"tuning: {SMOLLM2[0]}: 920, 921", f"{NOISE}, lr 0.001")]
    assert of((0.3, 0.4, 0.5), equal, equal, more=begun) == NOISE, "what is searched stays"


def test_the_preset_is_the_vsae_that_the_rule_names():
    """Its learning rate is rounded: it is a multiple of upstream's rule."""
    content = parts.read(relative_noise.RAW)
    arm = recommended(content)
    assert arm is not None
    options = relative_noise.candidates(content)[arm][(chosen(content) or {})[arm]]
    setting = CONFIRM[SETTINGS[0]]
    theirs, config = (
        setting.sae({n: v for n, v in options.items() if n != "batch"}, 0),
        preset("recommended"),
    )
    assert config.run.batch_size == options["batch"]
    assert config.run.steps * config.run.batch_size == pytest.approx(10**6, rel=0.1)
    ours = config.sae.to_flat()
    differ = {name for name, value in theirs.to_flat().items() if ours[name] != value}
    assert differ <= {"lr"}, differ
    assert ours["lr"] == pytest.approx(theirs.lr, rel=0.02)


def test_a_vsae_that_satisfies_one_setting_is_not_the_preset(monkeypatch):
    monkeypatch.setattr(relative_noise, "chosen", lambda content: {TOP_K: "", NOISE: "", BOTH: ""})

    def of(*shares):
        named = [dict(zip((TOP_K, NOISE, BOTH), each, strict=True)) for each in shares]
        return recommended({"saes": [], "pairs": confirmed(named)})

    assert of((0.3, 0.4, 0.5), (0.3, 0.2, 0.2), (0.3, 0.2, 0.2)) is None
    assert of((0.3, 0.9, 0.4), (0.3, 0.2, 0.4), (0.3, 0.2, 0.2)) == BOTH


@pytest.fixture
def smollm2(small_cache, tmp_path, monkeypatch):
    """A function: runs the stage on a tiny model in SmolLM2's place, with the committed search on the embedded model and
    these rows of its confirmation, and returns the rows and the page's lines."""
    content = parts.read(relative_noise.RAW)
    for kind in ("pairs", "saes"):
        content[kind] = [row for row in content[kind] if row["part"].startswith("tuning: tuning")]
    raw = tmp_path / "relative_noise.json"
    small = replace(
        CONFIRM[SMOLLM2[0]], cache="", hook=HOOK, activation_dim=D, dict_size=4 * D, k=4
    )
    small = replace(small, steps=3, passes=4, dtype="float32", eval_tokens=256, eval_documents=2)
    for name in SMOLLM2:
        monkeypatch.setitem(CONFIRM, name, small)
    monkeypatch.setattr(parts, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(settings, "RUNS", small_cache)
    monkeypatch.setattr(relative_noise, "RAW", raw)
    monkeypatch.setattr(relative_noise, "FEATURES", tmp_path / "features")
    monkeypatch.setattr(relative_noise, "CODE_TOKENS", 256)
    monkeypatch.setattr(relative_noise, "LR_FACTORS", (0.5, 2.0))

    def run(rows, **options):
        if not raw.exists():
            raw.write_text(json.dumps(content | {"pairs": content["pairs"] + rows}))
        given = {"arm": "", "setting": "", "first": 0, "pairs": 7, "threads": 1} | options
        relative_noise.smollm2(argparse.Namespace(**given))
        found = parts.read(raw)
        return {part: parts.parts_of(found, *part) for part in PARTS}, tables(found)

    return run


PARTS = [("tuning", SMOLLM2[0]), *(("confirm", name) for name in SMOLLM2)]
ON_SMOLLM2 = (TOP_K, BOTH, NORM, PROBABILISTIC)


def test_smollm2_is_not_begun_before_its_arms_are_known(smollm2):
    with pytest.raises(SystemExit, match=rf'confirm --setting "{SETTINGS[0]}"'):
        smollm2([])


@pytest.mark.slow
def test_on_smollm2_the_learning_rate_is_searched_then_confirmed_and_nothing_runs_twice(smollm2):
    shares = {TOP_K: 0.3, NOISE: 0.4, BOTH: 0.5, NORM: 0.6, RELATIVE_BOTH: 0.5}
    rows = confirmed([shares] * 3)
    with pytest.raises(SystemExit, match=f'--arm "{TOP_K}" --pairs 0'):
        smollm2(rows, arm=NORM)
    found, page = smollm2(rows, arm=TOP_K, pairs=0)
    assert {row["arm"].partition(", lr")[0] for row in found[PARTS[0]]} == {NORM, TOP_K}
    assert f"## {SMOLLM2[0]}, 3,072 tokens" not in page

    found, page = smollm2(rows, pairs=1, setting=SMOLLM2[0])
    pairs = {part: [row["arm"] for row in own if "seed" not in row] for part, own in found.items()}
    searched = {
        arm: [n for n in pairs[PARTS[0]] if n.startswith(f"{arm}, lr")] for arm in ON_SMOLLM2
    }
    assert [len(own) for own in searched.values()] == [2] * 4
    assert len(pairs[PARTS[0]]) == 8, "nothing twice"
    assert (sorted(pairs[PARTS[1]]), pairs[PARTS[2]]) == (sorted(ON_SMOLLM2), [])
    assert f"## {SMOLLM2[0]}, 3,072 tokens" in page
    (line,) = (each for each in page if each.startswith(f"- {SMOLLM2[0]}, pairs: "))
    assert f"{BOTH} (1 of 2)" in line
    assert sum(f"**{name}**" in "".join(page) for own in searched.values() for name in own) == 4

    tuned = {arm: relative_noise.confirmed_arms()[arm] for arm in ON_SMOLLM2}
    scale = (512 / (4 * D)) ** 0.5
    for arm, own in tuned.items():
        place = parts.seed_folder("confirm", SMOLLM2[0], 4000) / parts.arm_folder_name(arm)
        config = load_config(place)
        factor = config.sae.lr / (own["lr"] * scale)
        assert any(factor == pytest.approx(each) for each in (0.5, 2)), arm
        assert (config.run.batch_size, config.run.steps) == (own["batch"], 3072 // own["batch"])
    assert smollm2(rows, pairs=1, setting=SMOLLM2[0])[0] == found
    kept = {file.suffix for file in relative_noise.FEATURES.iterdir()}
    assert kept == {".npz"}
