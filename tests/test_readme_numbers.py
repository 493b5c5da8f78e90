"""The README's numbers of results and of speed, computed again from the raw results."""

import json
import re
from pathlib import Path
from statistics import mean

import pytest

from experiments.better_vsae import success_criteria
from experiments.reproducibility import decisions
from experiments.reproducibility.settings import BOTH, CONFIRM, TOP_K

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
WORDS = {1: "one", 3: "three", 4: "four", 6: "six"}


def raw(name):
    return json.loads((ROOT / "experiments" / "results" / f"{name}.json").read_text())


def returning():
    """Phrases on the features that come back, and on what that costs."""
    content = raw("reproducibility")

    def at(setting, arm, measure):
        rows = content["pairs"] + content["saes"]
        part = f"confirm: {setting}: "
        return mean(
            r[measure]
            for r in rows
            if r["part"].startswith(part) and r["arm"] == arm and measure in r
        )

    back = {s: [at(s, arm, "returning_0.7") for arm in (BOTH, TOP_K)] for s in CONFIRM}
    embedded, deep = next(iter(CONFIRM)), list(CONFIRM)[-1]
    yield f"[{back[embedded][0]:.0%} instead of TopK's {back[embedded][1]:.0%}](#results)"
    yield (
        f"{back[embedded][0]:.0%} instead of TopK's {back[embedded][1]:.0%} on the embedded model "
        f"(blocks.2, k/F = 1/32), {back[deep][0]:.0%} instead of {back[deep][1]:.0%} in a middle layer"
    )
    lost = max(at(s, TOP_K, "fve") - at(s, BOTH, "fve") for s in CONFIRM)
    yield f"FVE falls by at most {lost:.4f}."
    more = sum(both > top_k for both, top_k in back.values())
    yield f"More return at all {WORDS[more]} settings"
    found = decisions.verdicts(content, BOTH)
    p = decisions.corrected(found)
    passed = sum(decisions.passes(found[s], p[s]) for s in CONFIRM)
    yield f"At {WORDS[passed]} of them all its tests pass. "


def the_paper():
    def fve(model):
        rows = raw("reproduce_paper")["rows"]
        place = (model, 4, 8)
        return mean(r["fve"] for r in rows if (r["model"], r["multiple"], r["ratio"]) == place)

    yield f"FVE {fve('equations, beta 1'):.3f} with beta 1"
    yield f"TopK's is {fve('TopK'):.3f}."
    yield f"Nearly: FVE {fve('code, beta 1'):.3f}."


def rarely_used():
    found = {s: f for s, (_, f) in success_criteria.confirmed(raw("better_vsae")["rows"]).items()}
    reached = [size for size in found if success_criteria.is_reached(found[size])]
    lost = -mean(found[reached[0]]["fve"]["over"]["TopK"])
    yield f"At {WORDS[len(reached)]} of {WORDS[len(found)]} sizes, for {lost:.4f} FVE,"
    seeds = {row["seed"] for row in raw("full_size")["rows"]}
    yield f"layer 0 ({WORDS[len(seeds)]} seeds)"


def speed():
    cpu = "AVX512, no AMX"
    rows = raw("benchmark_step")[cpu]["by_k"]["64"]
    for dtype, says in (("float32", "fp32"), ("bfloat16", "bf16 (upstream in fp32)")):
        ms, over_upstream, *_ = rows[f"fixed, noise on selection, {dtype}"]
        yield f"| one step, k = 64, {says} | {ms:.0f} ms | {over_upstream:.2f} of its time |"
    runs = raw("benchmark_pipeline")[cpu]
    ours, theirs = runs["one"]["vSAE, bfloat16"], runs["one"]["upstream trainSAE, TopK"]
    yield f"| {round(128 * 2048 / ours, -2):,.0f} tokens/s | {theirs / ours:.1f} times as fast |"
    ours, theirs = runs["twelve"]["vSAE, bfloat16"], runs["twelve"]["one call"]
    yield f"| {ours:.0f} s | {theirs / ours:.1f} times as fast |"


@pytest.mark.parametrize("phrases", [returning, the_paper, rarely_used, speed])
def test_a_number_is_that_of_the_raw_results(phrases):
    for phrase in phrases():
        assert phrase in README


def test_every_measured_number_is_in_one_of_them():
    """Of the sections Results and Speed: all numbers but those of settings and sizes."""
    sections = re.search(r"\n## Results\n(.*?)\n## Development\n", README, re.DOTALL)
    assert sections is not None
    rest = sections.group(1)
    for phrases in (returning, the_paper, rarely_used, speed):
        for phrase in phrases():
            rest = rest.replace(phrase, "")
    assert not re.findall(r"\d\.\d|\d%|\d ms|\d s\b|\dk? tokens/s", rest)
