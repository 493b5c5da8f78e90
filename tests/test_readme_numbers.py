"""The README's numbers of results and of speed, computed again from the raw results."""

import json
import re
from pathlib import Path
from statistics import mean

import pytest

from dictionary_learning_ext.config.presets import recommended_lr
from experiments.reproducibility import decisions, relative_noise
from experiments.reproducibility.settings import BOTH
from experiments.return_score.threshold_page import auc_of_tests

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "README.md").read_text(encoding="utf-8")
README = " ".join(PAGE.split())
"""However its lines are broken."""


def raw(name):
    return json.loads((ROOT / "experiments" / "results" / f"{name}.json").read_text())


def coming_back():
    """The table, and what is said of the rates and of the earlier study."""
    content = raw("relative_noise")
    vsae = relative_noise.recommended(content)
    arms = [relative_noise.TOP_K, vsae, relative_noise.PROBABILISTIC]
    measures = {
        "returning_0.7": ("as a direction", "{:.0%}"),
        "same": ("in what it does", "{:.0%}"),
        "fve": ("FVE", "{:.3f}"),
    }
    for setting in relative_noise.SETTINGS:
        rows = decisions.parts_of(content, "confirm", setting)
        place = re.sub("embedded, |F = 4D, ", "", setting)
        for measure, (label, form) in measures.items():
            found = [decisions.means(rows, arm, measure) for arm in arms]
            cells = [form.format(mean(values)) if values else "not run" for values in found]
            best = max(cell for cell in cells if cell != "not run")
            bold = [
                f"**{cell}**" if cells.count(best) == 1 and cell == best else cell for cell in cells
            ]
            yield f"| {place if label == 'as a direction' else ''} | {label} | {' | '.join(bold)} |".replace(
                "|  |", "| |"
            )
    lr = recommended_lr(2**14) / 2e-4
    yield f"({lr:.1f} times upstream's default,"
    rows = decisions.parts_of(content, "confirm", relative_noise.SMOLLM2[0])
    (fve, direction, function, rare), (fve_k, direction_k, function_k, rare_k) = (
        [
            mean(decisions.means(rows, arm, measure))
            for measure in ("fve", "returning_0.7", "same", "near_dead_0.1")
        ]
        for arm in (vsae, "TopK")
    )
    pairs = {1: "one pair", 2: "two pairs"}[len(decisions.means(rows, "TopK", "same"))]
    yield (
        f"{direction:.0%} of the vSAE's come back as a direction and {function:.0%} in what they do, TopK's "
        f"{direction_k:.0%} and {function_k:.0%} (FVE {fve:.3f}, {fve_k:.3f}; near-dead {rare:.0%}, {rare_k:.0%}; "
        f"{pairs})"
    )


def the_paper():
    def fve(model):
        rows = raw("reproduce_paper")["rows"]
        place = (model, 4, 8)
        return mean(r["fve"] for r in rows if (r["model"], r["multiple"], r["ratio"]) == place)

    equations, code, top_k = (fve(model) for model in ("equations, beta 1", "code, beta 1", "TopK"))
    yield f"an FVE of {equations:.3f} at blocks.0, k/F = 1/8, beta 1."
    yield f"which never samples, has {code:.3f}, TopK {top_k:.3f}."


def the_truth():
    def mcc(arm, steps):
        place = (arm, f"F = 1,024, {steps} steps")
        rows = raw("long_runs")["rows"]
        return mean(row["true_mcc"] for row in rows if (row["arm"], row["part"]) == place)

    for steps, samples, before in (
        ("2,000", "2 million samples", "mean cosine "),  # of 1,024
        ("16,000", "16 million", ""),
    ):
        vsae, top_k = mcc("noise and penalty", steps), mcc("TopK", steps)
        yield f"after {samples} ({before}{vsae:.3f}, TopK {top_k:.3f})"
    rows = raw("synth_16k")["rows"]
    vsae, top_k = (
        rows[f"{arm}, seed 0, 20,000,000 samples"]["f1_score"] for arm in ("recommended", "TopK")
    )
    yield f"they are behind: F1 {vsae:.3f}, TopK {top_k:.3f}"


def speed():
    cpu = "AVX512, no AMX"
    step = raw("benchmark_step")[cpu]["by_k"]["64"]["fixed, noise on selection, float32"][1]
    runs = raw("benchmark_pipeline")[cpu]["one"]
    whole = runs["upstream trainSAE, TopK"] / runs["vSAE, float32"]
    yield f"a step takes {step:.2f} of the time of upstream's TopK, and a whole run is {whole:.1f} times as fast"


def the_score():
    content = raw("relative_noise")
    arm, found = relative_noise.recommended(content), []
    for setting in (relative_noise.SETTINGS[0], relative_noise.SMOLLM2[0]):
        rows = decisions.parts_of(content, "confirm", setting)
        parts = [row["part"] for row in rows if row["arm"] == arm and "same" in row]
        files = [
            relative_noise.features_file(setting, arm, int(part.split()[-2][:-1])) for part in parts
        ]
        of_each = [one for file in files for one in relative_noise.score_of_two(arm, file)]
        found.append([mean(one[i] for one in of_each) for i in (2, 3)])
    (top, lowest), (real_top, real_lowest) = found
    yield f"Of a tuned vSAE's top fifth, {top:.0%} come back in what they do, of the lowest {lowest:.0%}"
    yield f"on SmolLM2-135M {real_top:.0%} and {real_lowest:.0%}."


def the_score_of_others():
    found = auc_of_tests(raw("return_score_threshold"), "function", "today")
    tested = ("recommended", "TopK", "BatchTopK", "Matryoshka", "JumpReLU")
    for label, places in {
        "small model, blocks.2 / blocks.0, k/F = 1/32": (
            "blocks.2, F = 4D, k/F = 1/32",
            "blocks.0",
        ),
        "SmolLM2-135M, blocks.1, k/F = 1/36": ("SmolLM2",),
        "small model, blocks.2, k/F = 1/8": ("k/F = 1/8",),
    }.items():
        row = f"| {label} |"
        for arm in tested:
            of_arm = {setting: auc for (setting, own), auc in found.items() if own == arm}
            aucs = [f"{of_arm[at]:.2f}" for place in places for at in of_arm if place in at]
            row += f" {' / '.join(aucs)} |" if aucs else " |"
        yield row


def the_worth():
    for arm, measure, form in (
        (BOTH, "effect", "{:.3f} nats a firing (others {:.3f})"),
        (BOTH, "logits", "(cosine {:.3f}, others {:.3f})"),
        ("TopK", "effect", "of TopK by {:.3f} (others {:.3f})"),
    ):
        place = (arm, measure, "function", "rate and norm")
        own = [
            row
            for row in raw("worth")["rows"]
            if (row["arm"], row.get("measure"), row.get("split"), row.get("matched")) == place
        ]
        assert len(own) == 4
        ours, others = (mean(row[key] for row in own) for key in ("returning", "others"))
        yield form.format(ours, others)


PHRASES = (
    coming_back,
    the_worth,
    the_paper,
    the_truth,
    the_score,
    the_score_of_others,
    speed,
)
NOT_MEASURED = ["0.5", "3.1", "1.8", "0.7", "0.7", "1.4"]
"""An AUC of chance, the oldest Python (3.10), the small model's millions of parameters, from which cosine and correlation
a feature comes back, and the millions of different tokens."""
FIRST_RUN = (
    "40% of TopK's features come back and 57% of the vSAE's, at an FVE of 0.886 and 0.885",
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
