"""The README's numbers of results and of speed, computed again from the raw results."""

import json
import re
from pathlib import Path
from statistics import mean, stdev

import pytest

from experiments.reproducibility import convergence, decisions
from experiments.reproducibility.settings import ARMS, BOTH, CONFIRM, PENALTY, RIVAL, TOP_K
from experiments.return_score.settings import RECOMMENDED, UNSEEN

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "README.md").read_text(encoding="utf-8")
README = " ".join(PAGE.split())
"""However its lines are broken."""
WORDS = {4: "four", 6: "six"}


def raw(name):
    return json.loads((ROOT / "experiments" / "results" / f"{name}.json").read_text())


def returning():
    """The table of features that come back, and what is said of it."""
    content = raw("reproducibility")
    found = decisions.verdicts(content, BOTH)
    deviations, back, fve = [], {}, {}
    for setting in CONFIRM:
        rows = decisions.parts_of(content, "confirm", setting)
        cells = []
        for arm in (TOP_K, PENALTY, BOTH, RIVAL):
            share = [100 * one for one in decisions.means(rows, arm, "returning_0.7")]
            if not share:
                cells.append("not run")
                continue
            explained = decisions.means(rows, arm, "fve")
            back[setting, arm], fve[setting, arm] = mean(share), mean(explained)
            deviations.append(stdev(explained))
            cells.append(f"{mean(share):.1f} ± {stdev(share):.1f}% ({mean(explained):.3f})")
        assert len(found[setting].over[TOP_K]) == 7
        has_rival = (setting, RIVAL) in back
        best = max(ARMS, key=lambda arm: back.get((setting, arm), 0.0))
        bold = f"{back[setting, best]:.1f} ± " if has_rival else "not bold"
        yield " | ".join(re.sub(rf"^({bold}.*%)", r"**\1**", cell) for cell in cells)
    yield f"FVE's standard deviation is at most {max(deviations):.4f}."
    p = decisions.corrected(found)
    passed = sum(decisions.passes(found[s], p[s]) for s in CONFIRM)
    yield f"The vSAE meets it at {WORDS[passed]} of the {WORDS[len(CONFIRM)]} settings."
    eighth = next(s for s in CONFIRM if s.endswith("1/8"))
    more = (1 - fve[eighth, BOTH]) / (1 - fve[eighth, TOP_K]) - 1
    yield f"leaves {more:.0%} more of the variance unexplained"
    missing = [100 - back[s, BOTH] for s in CONFIRM if s.startswith("SmolLM2")]
    yield f"On SmolLM2, {missing[0]:.0f}% and {missing[1]:.0f}% of the vSAE's"


def at_convergence():
    """At blocks.2, and at blocks.0."""
    settings = [
        convergence.confirmed(raw("convergence"), name) for name in convergence.SETTINGS[:2]
    ]
    back, fve = {}, {}
    for arm in convergence.ARMS:
        back[arm] = [f"{mean(decisions.means(s, arm, 'returning_0.7')):.0%}" for s in settings]
        fve[arm] = " and ".join(f"{mean(decisions.means(s, arm, 'fve')):.3f}" for s in settings)
        assert all(len(decisions.means(s, arm, "fve")) == 7 for s in settings)
    arm = convergence.BOTH
    chosen = (convergence.chosen(raw("convergence")) or {})[arm]
    yield f"(the vSAE: penalty {convergence.CANDIDATES[arm][chosen]['penalty']:g})"
    two, zero = back[convergence.BOTH]
    yield f"{two} of the vSAE's features come back at blocks.2 and {zero} at blocks.0"
    yield f"of TopK's (with a ReLU) {' and '.join(back[convergence.TOP_K])}."
    yield f"higher, too: {fve[convergence.BOTH]}, TopK's {fve[convergence.TOP_K]}."
    yield f"(tuned, {' and '.join(back[convergence.PROBABILISTIC])})"


def the_paper():
    def fve(model):
        rows = raw("reproduce_paper")["rows"]
        place = (model, 4, 8)
        return mean(r["fve"] for r in rows if (r["model"], r["multiple"], r["ratio"]) == place)

    equations, top_k = fve("equations, beta 1"), fve("TopK")
    yield f"k/F = 1/8, FVE is {equations:.3f}, and TopK's {top_k:.3f}."


def the_truth():
    def mcc(arm, steps):
        place = (arm, f"F = 1,024, {steps} steps")
        rows = raw("long_runs")["rows"]
        return mean(row["true_mcc"] for row in rows if (row["arm"], row["part"]) == place)

    for steps, before in (("2,000", "mean cosine "), ("16,000", "")):
        vsae, top_k = mcc("noise and penalty", steps), mcc("TopK", steps)
        yield f"after {steps}{' steps' * bool(before)} ({before}{vsae:.3f}, TopK {top_k:.3f})"


def speed():
    cpu = "AVX512, no AMX"
    rows = raw("benchmark_step")[cpu]["by_k"]["64"]
    single, half = (
        rows[f"fixed, noise on selection, {dtype}"][1] for dtype in ("float32", "bfloat16")
    )
    yield f"takes {single:.2f} of the time of upstream's TopK, and {half:.2f} in bf16"
    runs = raw("benchmark_pipeline")[cpu]["one"]
    single, half = (
        runs["upstream trainSAE, TopK"] / runs[f"vSAE, {dtype}"]
        for dtype in ("float32", "bfloat16")
    )
    yield f"A whole run is {single:.1f} times as fast in fp32, and {half:.1f} times with ours in bf16."


def the_score():
    rows = raw("return_score")["tests"]
    own = [r for r in rows if (r["setting"], r["arm"]) == (UNSEEN, RECOMMENDED)]
    top, lowest = (mean(row["fifths"][fifth] for row in own) for fifth in "51")
    yield f"{top:.0%} of the vSAE's top fifth did and {lowest:.0%} of its lowest"


PHRASES = (returning, at_convergence, the_paper, the_truth, the_score, speed)
NOT_MEASURED = ["0.7", "1.8", "3.1"]
"""The cosine from which a feature comes back, and the oldest Python (3.10)."""
FIRST_RUN = (
    "20% of TopK's features come back and 35% of the vSAE's, at an FVE of 0.870 and 0.869",
    "2.4 GB",
)
"""What a quickstart shows, and the size of the packages: measured once, by hand."""


@pytest.mark.parametrize("phrases", PHRASES)
def test_a_number_is_that_of_the_raw_results(phrases):
    for phrase in phrases():
        assert phrase in README


def test_every_measured_number_is_in_one_of_them():
    """Of the whole page without its code: all numbers but those of settings and sizes."""
    rest = re.sub(r"```.*?```|\]\(.*?\)", "", README, flags=re.DOTALL)
    for phrase in (*FIRST_RUN, *(phrase for phrases in PHRASES for phrase in phrases())):
        assert phrase in rest
        rest = rest.replace(phrase, "")
    assert re.findall(r"\d\.\d|\d%|\d ms|\d s\b|\dk? tokens/s", rest) == NOT_MEASURED


def test_the_page_is_short():
    assert PAGE.count("\n") <= 120
