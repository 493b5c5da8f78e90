"""Recomputes every number of README and the guide that comes from an experiment, and the tables of experiments/results,
from the raw results.

    python -m experiments.recompute            # what differs; exit code 1 if anything does
    python -m experiments.recompute --write    # writes it

`make lint` runs the first. The tables of a finished study stay as they are: its page names the commit that has its code. Numbers are read from experiments/results/*.json and written to ONE file,
experiments/results/numbers.json: {name: value}. Pages take them from there in two ways.

1. In a sentence, the number with its name in a comment right behind it, and a format where the default isn't meant:

       72%<!--=tuned.b2.vsae.direction--> of the features come back, at an FVE of 0.8945<!--=tuned.b2.vsae.fve:.4f-->

   The comment is invisible where Markdown is shown. `--write` rewrites the number before it.

2. A table of TABLES, below, between two comments:

       <!-- table: comes_back -->
       <!-- end of table -->

   TABLES holds the table with `{name}` or `{name:format}` in its cells.

A new study changes a page by new numbers: add a function to SOURCES that reads its JSON. Shares are shown as whole
per cents (`%`) by default, FVE with three digits, others with the digits of DEFAULTS.
"""

import difflib
import importlib
import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from dictionary_learning_ext.evaluation.metrics import METRICS
from dictionary_learning_ext.evaluation.tables import markdown_table
from dictionary_learning_ext.features.agreement import CODE_MEASURES, COME_BACK, DIRECTION_MEASURES
from dictionary_learning_ext.features.columns import FILES
from dictionary_learning_ext.features.columns import NUMBERS as NUMBERS_OF_FEATURES
from experiments.index import EXPERIMENTS
from experiments.pages import with_tables

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "experiments" / "results"
NUMBERS = RESULTS / "numbers.json"
PAGES = (
    ROOT / "README.md",
    ROOT / "experiments" / "RESULTS.md",
    *sorted((ROOT / "docs").glob("*.md")),
)

Row = dict[str, Any]
Found = Iterable[tuple[str, float]]
"""Names and values."""


def raw(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


# --- what comes back: three studies whose rows have one form

SETTINGS = {
    "b2": "embedded, blocks.2, F = 4D, k/F = 1/32",
    "b0": "embedded, blocks.0, F = 4D, k/F = 1/32",
    "b2_8": "embedded, blocks.2, F = 4D, k/F = 1/8",
    "wide": "embedded, blocks.2, F = 32D, k/F = 1/256",
    "smollm2_1": "SmolLM2-135M, blocks.1, F = 4D, k = 64",
    "smollm2_15": "SmolLM2-135M, blocks.15, F = 4D, k = 64",
}
ARMS = {
    "topk": "TopK",
    "topk_plain": "TopK without ReLU",
    "vsae": "noise and penalty",
    "noise": "noise alone",
    "penalty": "penalty alone",
    "relative": "relative noise, norm",
    "ptopk": "Probabilistic TopK",
    "gates_off": "Probabilistic TopK, gates off",
}
MEASURES = {
    "direction": "returning_0.7",
    "function": "in what they do",
    "selections": "selections",
    "fve": "fve",
    "ce": "frac_recovered",
    "near_dead": "near_dead_0.1",
    "near_dead_half": "near_dead_0.5",
    "less_null": "less_null",
}


def of_pairs(rows: list[Row], measure: str) -> list[float]:
    """A number for each pair of seeds: the pair's, or the mean of its two SAEs'.

    "in what they do" is of all features. The rows' `same` leaves near-dead ones out of the matching and out of both counts, so
    those of them that do match are not counted here. "selections" are those of features that come back as a direction.
    """
    if measure == "in what they do":
        living = {row["part"] for row in rows if "same" in row}
        rows = [row for row in rows if row["part"] in living]
        both = of_pairs(rows, "same"), of_pairs(rows, "near_dead_0.1")
        return [same * (1 - near_dead) for same, near_dead in zip(*both, strict=True)]
    if measure == "selections":
        return of_pairs(rows, "direction_selections") or of_pairs(rows, "returning_selections")
    by_part: dict[str, list[float]] = {}
    for row in rows:
        if measure in row:
            by_part.setdefault(row["part"], []).append(row[measure])
    return [mean(values) for _, values in sorted(by_part.items())]


def rows_at(content: dict[str, Any], stage: str, setting: str, arm: str) -> list[Row]:
    start = f"{stage}: {setting}: "
    rows = content["pairs"] + content["saes"]
    return [row for row in rows if row["arm"] == arm and row["part"].startswith(start)]


def comes_back(name: str, study: str, stage: str, arms: dict[str, str]) -> Found:
    """STUDY.SETTING.ARM.MEASURE, a mean over pairs of seeds, and their number under `pairs`."""
    content = raw(study)
    for place, setting in SETTINGS.items():
        for key, arm in arms.items():
            rows = rows_at(content, stage, setting, arm)
            for measure, column in MEASURES.items():
                if values := of_pairs(rows, column):
                    yield f"{name}.{place}.{key}.{measure}", mean(values)
            if pairs := of_pairs(rows, "returning_0.7"):
                yield f"{name}.{place}.{key}.pairs", len(pairs)


def tuned() -> Found:
    """Each arm tuned at blocks.2, 1/32; 16.4M tokens (SmolLM2: 2M)."""
    yield from comes_back("tuned", "relative_noise", "confirm", ARMS)
    content = raw("relative_noise")
    alone = rows_at(content, "confirm", SETTINGS["b2"], ARMS["gates_off"])[0]["part"]
    rows = rows_at(content, "confirm", SETTINGS["b2"], ARMS["vsae"])
    for measure in ("direction", "function", "fve"):  # on the one pair that both have
        found = of_pairs([row for row in rows if row["part"] == alone], MEASURES[measure])
        yield f"tuned.b2.vsae_same_pair.{measure}", mean(found)
    for name, lr in (("half", "0.000943"), ("own", "0.00189"), ("twice", "0.00377")):
        for key in ("topk", "vsae"):
            found = rows_at(content, "tuning", SETTINGS["smollm2_1"], f"{ARMS[key]}, lr {lr}")
            for measure in ("direction", "function", "selections", "fve", "near_dead", "ce"):
                yield (
                    f"smollm2_lr.{name}.{key}.{measure}",
                    mean(of_pairs(found, MEASURES[measure])),
                )


def dose() -> Found:
    """The confirmation of the dose: 8.2M tokens, the mean over pairs of seeds; and known features at F = T / 2, one seed.
    `error_share`: the AUC with which it tells one SAE's features that come back in what they do."""
    arms = {"topk": "TopK", "light": "survival 0.6", "strong": "fixed 0.3 and penalty"}
    content, known = raw("dose_embedded"), raw("dose_truth")["rows"]
    ordered = raw("dose_score")["rows"]
    settings = {
        "b2": "blocks.2, k/F = 1/32",
        "b0": "blocks.0, k/F = 1/32",
        "b2_8": "blocks.2, k/F = 1/8",
    }
    for key, arm in arms.items():
        for place, setting in settings.items():
            rows = rows_at(content, "confirm", setting, arm)
            for measure, column in MEASURES.items():
                if values := of_pairs(rows, column):
                    yield f"dose.{place}.{key}.{measure}", mean(values)
            rows = rows_at({"pairs": ordered, "saes": []}, "confirm", setting, arm)
            yield f"dose.{place}.{key}.error_share", mean(of_pairs(rows, "error_share"))
        place = ("confirm: F = 1,024, 3.1M, seed 9003", arm)
        (row,) = [row for row in known if (row["part"], row["arm"]) == place]
        for measure in ("mcc", "f1", "fve"):
            yield f"dose.known.{key}.{measure}", row[measure]


FADING = {
    "topk": "TopK",
    "light": "survival 0.6 until 0.5",
    "fixed_quarter": "fixed 0.3 until 0.25",
    "fixed_half": "fixed 0.3 until 0.5",
    "survival_quarter": "survival 0.25 until 0.25",
    "survival_half": "survival 0.25 until 0.5",
    "gates_off": "Probabilistic TopK, gates off",
}
FADED = {
    "b2": "blocks.2, k/F = 1/32",
    "b0": "blocks.0, k/F = 1/32",
    "b2_8": "blocks.2, k/F = 1/8",
}


def fading() -> Found:
    """Noise that ends in time: the search at 1.0M and 2.0M tokens, and the confirmation; means over pairs of seeds."""
    measures = {
        "direction": "returning_0.7",
        "function": "in_function",
        "selections": "in_function_selections",
        "direction_selections": "direction_selections",
        "fve": "fve",
        "near_dead": "near_dead_0.1",
        "nats": "loss_added",
    }
    content = raw("fading_embedded")
    stages = {part.removeprefix("fading ").partition(": ")[0] for part in content["parts"]}
    for stage in sorted(stage for stage in stages if not stage.startswith("mechanism")):
        name = stage.partition(", lr")[0].replace(" ", "_").replace(".", "_")
        for place, setting in FADED.items():
            for key, arm in FADING.items():
                rows = faded_rows(content, f"fading {stage}: {setting}: ", arm)
                for measure, column in measures.items() if rows else ():
                    yield f"fading.{name}.{place}.{key}.{measure}", mean(r[column] for r in rows)
    on_truth = raw("fading_truth")["rows"]
    for key, arm in FADING.items():
        rows = [
            r
            for r in on_truth
            if r["arm"] == arm and r["part"].startswith("fading: F = 1,024, 6.1M")
        ]
        for measure in ("mcc", "f1", "fve", "near_dead") if rows else ():
            yield f"fading.known.{key}.{measure}", mean(r[measure] for r in rows)


def faded_rows(content: Row, part: str, arm: str) -> list[Row]:
    """A row a pair of seeds: how its SAEs agree, and the mean of their metrics, with `loss_added`."""
    rows = []
    for pair in content["pairs"]:
        if pair["part"].startswith(part) and pair["arm"] == arm:
            saes = [r for r in content["saes"] if (r["part"], r["arm"]) == (pair["part"], arm)]
            means = {n: mean(r[n] for r in saes) for n in ("fve", "near_dead_0.1")}
            added = mean(r["loss_reconstructed"] - r["loss_original"] for r in saes)
            rows.append(pair | means | {"loss_added": added})
    return rows


def smollm2() -> Found:
    """SmolLM2-135M's blocks.1, 2M tokens, at half of the preset's rate: means over pairs of seeds."""
    arms = {"topk": "TopK", "vsae": "vSAE, the preset", "gates_off": ARMS["gates_off"]}
    measures = {
        "direction": "as_direction",
        "direction_selections": "direction_selections",
        "function": "in_function",
        "selections": "in_function_selections",
        "near_dead": "near_dead_0.1",
        "fve": "fve",
        "nats": "loss_added",
    }
    rows = [row for row in raw("fading_smollm2")["rows"] if row["part"].startswith("lr 0.00095,")]
    for key, arm in arms.items():
        own = [row for row in rows if row["arm"] == arm]
        for measure, column in measures.items():
            values = [
                row[column] if column in row else mean(sae[column] for sae in row["saes"])
                for row in own
            ]
            yield f"smollm2.{key}.{measure}", mean(values)


def seven_pairs() -> Found:
    """At convergence, directions alone, seven pairs of seeds; batches of 512 or more."""
    yield from comes_back("seven", "convergence", "convergence", ARMS)


def untuned() -> Found:
    """Before: one learning rate for all arms, 4,000 steps (SmolLM2: 2M tokens), seven pairs; penalty 0.03."""
    arms = ARMS | {"ptopk": "best rival"}
    yield from comes_back("untuned", "reproducibility", "confirm", arms)
    content = raw("reproducibility")
    for place, setting in SETTINGS.items():
        ours, theirs = (
            of_pairs(rows_at(content, "confirm", setting, arm), "returning_0.7")
            for arm in ("noise and penalty", "TopK without ReLU")
        )
        more = [100 * (a - b) for a, b in zip(ours, theirs, strict=True)]
        half = 2.447 * stdev(more) / len(more) ** 0.5  # Student's t, six degrees of freedom
        for key, value in (("", 0.0), ("_low", -half), ("_high", half)):
            yield f"untuned.{place}.more_points{key}", mean(more) + value


# --- the order of an SAE's features by how likely they are to come back


def auc(label_N: np.ndarray, score_N: np.ndarray) -> float:
    """The probability that a positive has a higher score than a negative; ties count half."""
    positive, negative = score_N[label_N], score_N[~label_N]
    higher = (positive[:, None] > negative).mean() + 0.5 * (positive[:, None] == negative).mean()
    return float(higher)


def error_share() -> Found:
    """How one SAE's `error_share` orders its features by whether they come back in what they do, on the tuned SAEs: the AUC,
    and the share that comes back of the fifth with the largest one and with the smallest."""
    for place in ("b2", "b0", "b2_8", "smollm2_1"):
        for key in ("topk", "vsae"):
            start = SETTINGS[place].replace(", ", "_").replace(" ", "").replace("/", "")
            pattern, found = f"{start}_{ARMS[key].replace(' ', '-')}_4*.npz", []
            for file in sorted((RESULTS / "relative_noise").glob(pattern)):
                kept = np.load(file)
                for end in "ab":
                    is_alive_F = kept[f"count_{end}"] > 0
                    share_F = np.where(is_alive_F, kept[f"error_share_{end}"], -np.inf)
                    place_F = share_F.argsort().argsort() / len(share_F)
                    same_F = kept[f"same_{end}"] >= 0.7
                    shares = same_F[place_F >= 0.8].mean(), same_F[place_F < 0.2].mean()
                    found.append([auc(same_F, place_F), *map(float, shares)])
            for i, measure in enumerate(("auc", "top", "lowest")):
                yield f"error_share.{place}.{key}.{measure}", mean(one[i] for one in found)


SCORED = {
    "topk": "TopK",
    "batchtopk": "BatchTopK",
    "matryoshka": "Matryoshka",
    "jumprelu": "JumpReLU",
    "vsae": "recommended",
}


def briefly_trained() -> Found:
    """AUC of the score and of `error_share` alone, and the shares that come back, of briefly trained SAEs."""
    tests = raw("return_score_threshold")["tests"]
    for place, setting in SETTINGS.items():
        for key, arm in SCORED.items():
            rows = [row for row in tests if (row["setting"], row["arm"]) == (setting, arm)]
            for what in ("direction", "function"):
                for name, order in (("score", "today"), ("error_share", "one signal")):
                    values = [v for row in rows if (v := row["auc"][what][order]) is not None]
                    if values:
                        yield f"brief.{place}.{key}.{what}.{name}", mean(values)
                if rows:
                    yield (
                        f"brief.{place}.{key}.{what}.share",
                        mean(row["returning"][what] for row in rows),
                    )


# --- worth, truth, the paper, speed


def worth() -> Found:
    """Means over four SAEs, matched on firing rate and norm; features that come back in what they do, and others."""
    rows = raw("worth")["rows"]
    for key, split in (("function", "function"), ("direction", "direction")):
        for arm in ("topk", "vsae"):
            for measure in ("effect", "logits", "detection", "current", "previous"):
                place = (ARMS[arm], measure, split, "rate and norm")
                own = [
                    row
                    for row in rows
                    if tuple(row.get(n) for n in ("arm", "measure", "split", "matched")) == place
                ]
                for end in ("returning", "others"):
                    yield f"worth.{key}.{arm}.{measure}.{end}", mean(row[end] for row in own)


def truth() -> Found:
    """On `synthetic:small` by F and samples, and on SynthSAEBench-16k at a tenth of its length, one seed."""
    rows = raw("long_runs")["rows"]
    for size in ("1,024", "512"):
        for samples, steps in (("2m", "2,000"), ("16m", "16,000")):
            for key in ("topk", "vsae", "ptopk"):
                place = (f"F = {size}, {steps} steps", ARMS[key])
                own = [row for row in rows if (row["part"], row["arm"]) == place]
                for name, column in (
                    ("mcc", "true_mcc"),
                    ("direction", "returning"),
                    ("true", "true"),
                    ("fve", "fve"),
                ):
                    yield (
                        f"truth.F{size.replace(',', '')}.{samples}.{key}.{name}",
                        mean(row[column] for row in own),
                    )


def the_paper() -> Found:
    """blocks.0, F = 4D, k/F = 1/8, beta 1, five seeds."""
    arms = {"topk": "TopK", "equations": "equations, beta 1"}
    rows = raw("reproduce_paper")["rows"]
    for key, model in arms.items():
        own = [r for r in rows if (r["model"], r["multiple"], r["ratio"]) == (model, 4, 8)]
        for name, column in (
            ("fve", "fve"),
            ("near_dead", "near_dead_0.1"),
            ("stability", "stability_rms"),
        ):
            yield f"paper.{key}.{name}", mean(row[column] for row in own)


def published() -> Found:
    """The pair of the paper's public code, means over seeds, at blocks.0 by F/k, and at blocks.3, k/F = 1/32: `b3`, `large` with F =
    8,192, `smollm2` of that model, `smollm2_float32` the same in float32. `often`: the share
    of features that are not near-dead. `fewer`: by how much fewer of the vSAE's features are alive than of TopK's. `more_often`: how many
    times as many of them fire often. `less`: the vSAE's less TopK's."""
    rows = raw("as_published")["rows"]
    places = {f"r{ratio}": f"pair: blocks.0, F = 16D, k/F = 1/{ratio}," for ratio in PUBLISHED}
    places |= {
        "b3": "pair: blocks.3, F = 16D, k/F = 1/32,",
        "large": "large: blocks.3, F = 64D, k/F = 1/32,",
        "smollm2": "smollm2: SmolLM2-135M, blocks.3, F = 16D, k/F = 1/32,",
        "smollm2_float32": "precision: SmolLM2-135M, blocks.3, F = 16D, k/F = 1/32,",
    }
    for at, start in places.items():
        alive, often, means = {}, {}, {}
        ending = ", float32" if at.endswith("float32") else ""
        arms = {"topk": f"their TopK{ending}", "vsae": f"their vSAE{ending}"}
        here = [row for row in rows if row["part"].startswith(start)]
        seeds_of = [{row["seed"] for row in here if row["arm"] == arm} for arm in arms.values()]
        for key, arm in arms.items():
            both = set.intersection(*seeds_of)
            own = [row for row in here if row["arm"] == arm and row["seed"] in both]
            for measure, column in (
                ("alive", "alive"),
                ("near_dead", "near_dead_0.1"),
                ("fve", "fve"),
                ("nats", "loss_added"),
            ):
                yield f"published.{at}.{key}.{measure}", mean(row[column] for row in own)
            alive[key] = mean(row["alive"] for row in own)
            often[key] = 1 - mean(row["near_dead_0.1"] for row in own)
            yield f"published.{at}.{key}.often", often[key]
            means[key] = [mean(row[column] for row in own) for column in COMPARED.values()]
        yield f"published.{at}.fewer", 1 - alive["vsae"] / alive["topk"]
        yield f"published.{at}.more_often", often["vsae"] / often["topk"]
        for measure, vsae, top_k in zip(COMPARED, means["vsae"], means["topk"], strict=True):
            yield f"published.{at}.less.{measure}", vsae - top_k


def authors() -> Found:
    """What the authors published of their pair: the same names as `published`, and counts of features."""
    found = {}
    for key, arm in (("topk", "TopK"), ("vsae", "vSAE")):
        own = raw("authors_counts")["saes"][arm]
        found[key] = {
            "count": own["selected"],
            "shown_count": own["in_histogram"],
            "beyond_count": own["beyond"],
            "often_count": own["often"],
            "sample_count": own["selected_in_fewer"],
            "alive": own["selected"] / own["dict_size"],
            "near_dead": own["near_dead_0.1"],
        }
        for measure, value in found[key].items():
            yield f"authors.{key}.{measure}", value
    for name, measure in (
        ("fewer", "count"),
        ("shown_fewer", "shown_count"),
        ("sample_fewer", "sample_count"),
        ("often_fewer", "often_count"),
    ):
        yield f"authors.{name}", 1 - found["vsae"][measure] / found["topk"][measure]


PUBLISHED = (128, 64, 32, 16)
"""F/k."""
COMPARED = {
    "ce_score": "frac_recovered",
    "fve": "fve",
    "cossim": "cossim",
    "alive": "alive",
    "near_dead": "near_dead_0.1",
}


def speed() -> Found:
    """A step's share of upstream's time, and how many times as fast a whole run is; AMD Zen 4, 2 threads, fp32."""
    cpu = "AVX512, no AMX"
    step = raw("benchmark_step")[cpu]["by_k"]["64"]["fixed, noise on selection, float32"][1]
    runs = raw("benchmark_pipeline")[cpu]["one"]
    yield "speed.step", step
    yield "speed.run", runs["upstream trainSAE, TopK"] / runs["vSAE, float32"]


def returning() -> Found:
    """Whose features come back: means over four seeds and six pairs, from the random start."""
    content = raw("whose_features")
    places = {
        "b0": "blocks.0, k/F = 1/32",
        "b2": "blocks.2, k/F = 1/32",
        "b2_8": "blocks.2, k/F = 1/8",
        "mlp_out": "mlp_out, k/F = 1/32",
    }
    arms = {
        "topk": ("start", "TopK"),
        "vsae": ("start", "vSAE"),
        "gates": ("gates off", "gates off"),
    }
    measures = {
        "explained": "in_function_fve",
        "function": "function_0.7",
        "direction": "direction_0.7",
        "near_dead": "near_dead_0.1",
        "fve": "fve",
        "nats": "loss_added",
    }
    for name, place in places.items():
        for key, (part, arm) in arms.items():
            at = (f"{part}: {place}", arm)
            own = [r for r in content["pairs"] + content["saes"] if (r["part"], r["arm"]) == at]
            for measure, column in measures.items():
                values = [row[column] for row in own if column in row]
                yield f"returning.{name}.{key}.{measure}", mean(values)
                if measure == "explained":
                    yield f"returning.{name}.{key}.explained_least", min(values)
                    yield f"returning.{name}.{key}.explained_most", max(values)


def random_tokens() -> Found:
    """The null of each setting: dictionaries of random tokens, two pairs."""
    measures = {
        "explained": "in_function_fve",
        "function": "in_function",
        "direction": "as_direction",
        "near_dead": "near_dead_0.1",
        "fve": "fve",
    }
    for place, found in raw("random_tokens")["places"].items():
        for measure, column in measures.items():
            yield (
                f"random.{place}.{measure}",
                mean(r[column] for r in found["rows"]["random tokens"]),
            )


TYPED = {
    "blocks.2.hook_resid_post": "typed.b2",
    "blocks.0.hook_resid_post": "typed.b0",
    "blocks.2.hook_mlp_out": "typed.mlp_out",
    "blocks.1.hook_attn_out": "typed.attn_out",
}


def as_typed() -> Found:
    """What the one command says as it is typed: means over SAEs, and over pairs, of these the range too. `quickstart`: the
    front page's table."""
    for place, found in raw("as_typed")["places"].items():
        at = TYPED.get(place, place)
        for key, name in (("topk", "TopK"), ("vsae", "vSAE"), ("random", RANDOM)):
            for measure, values in found["rows"][name].items():
                yield f"{at}.{key}.{measure}", mean(values)
                yield f"{at}.{key}.{measure}_least", min(values)
                yield f"{at}.{key}.{measure}_most", max(values)


SOURCES: tuple[Callable[[], Found], ...] = (
    as_typed,
    returning,
    random_tokens,
    dose,
    fading,
    smollm2,
    tuned,
    seven_pairs,
    untuned,
    error_share,
    briefly_trained,
    worth,
    truth,
    the_paper,
    published,
    authors,
    speed,
)
DEFAULTS = {
    "explained": ".2f",
    "explained_least": ".2f",
    "explained_most": ".2f",
    "direction": ".0%",
    "function": ".0%",
    "share": ".0%",
    "true": ".0%",
    "top": ".0%",
    "lowest": ".0%",
    "alive": ".0%",
    "often": ".0%",
    "fewer": ".0%",
    "shown_fewer": ".0%",
    "sample_fewer": ".0%",
    "often_fewer": ".0%",
    "count": ",.0f",
    "shown_count": ",.0f",
    "beyond_count": ",.0f",
    "often_count": ",.0f",
    "sample_count": ",.0f",
    "near_dead": ".0%",
    "near_dead_half": ".0%",
    "pairs": ".0f",
    "dead": ".0f",
    "selections": ".0%",
    "direction_selections": ".0%",
    "loss": ".2f",
    "auc": ".2f",
    "score": ".2f",
    "error_share": ".2f",
    "step": ".2f",
    "run": ".1f",
}
"""Formats by the last part of a name. Otherwise: three digits."""

# --- the pages


def defined(header: list[str], rows: list[tuple[str, ...]]) -> str:
    """The guide's table of metrics, measures or numbers of features, each with its key in front."""
    return f"\n{markdown_table(header, [(f'`{key}`', *cells) for key, *cells in rows])}\n"


RANDOM = "random tokens, untrained"


def readme_table() -> str:
    """RESULTS.md's: what comes back at each place. Of the SAEs of the fading the weights weren't kept."""
    whole = "{{{0}.explained}} ({{{0}.explained_least}} to {{{0}.explained_most}})"
    shares = "{{{0}.function}} | {{{0}.direction}} | {{{0}.near_dead}} | {{{0}.fve}}"
    gates = ARMS["gates_off"]
    three = {"topk": "TopK", "vsae": "vSAE", "gates": gates}
    lines = []
    for place, null, studies in (
        ("**blocks.0 (the paper's)**", "b0", {"returning.b0": three}),
        ("**blocks.2**", "b2", {"returning.b2": three}),
        ("**blocks.2, k/F = 1/8**", "b2_8", {"returning.b2_8": three}),
        ("**blocks.2.hook_mlp_out**", "mlp_out", {"returning.mlp_out": three}),
        (
            "**SmolLM2-135M, blocks.1** ¹",
            "smollm2_1",
            {"smollm2": {"topk": "TopK", "vsae": "vSAE", "gates_off": gates}},
        ),
    ):
        for study, arms in studies.items():
            for key, arm in arms.items():
                name = f"{place}, {arm}" if key == "topk" else arm
                explained = whole if study.startswith("returning") else ""
                row = f"| {name} | {explained} | {shares} | {{{{{{0}}.loss}}}} |"
                lines.append(row.format(f"{study}.{key}"))
        null_row = f"| {RANDOM} | {{{{{{0}}.explained}}}} | {shares} |  |"
        lines.append(null_row.format(f"random.{null}"))
    columns = (
        "FVE of what comes back | in what they do | as a direction | near-dead | FVE | loss added"
    )
    return "\n".join([f"|  | {columns} |", "|---|---|---|---|---|---|---|", *lines])


TABLES = {
    "metrics": defined(
        ["key", "column", "better", "what it is"],
        [(m.key, m.label, m.better or "", m.definition) for m in METRICS.values()],
    ),
    "measures_of_seeds": defined(
        ["key", "name", "what it is"],
        [
            (m.key, m.label, m.definition)
            for m in (COME_BACK[1], *CODE_MEASURES, *DIRECTION_MEASURES)
        ],
    ),
    "numbers_of_features": defined(
        ["column", "what it is", "report", "one SAE", "several SAEs"],
        [
            (n.key, n.definition, *("x" if file in n.files else "" for file in FILES))
            for n in NUMBERS_OF_FEATURES
        ],
    ),
    "quickstart": """
| | FVE of what comes back | FVE | come back | near-dead |
|---|---|---|---|---|
| TopK | {quickstart.topk.explained:.2f} ({quickstart.topk.explained_least:.2f} to {quickstart.topk.explained_most:.2f}) | {quickstart.topk.fve} | {quickstart.topk.function} | {quickstart.topk.near_dead} |
| vSAE | {quickstart.vsae.explained:.2f} ({quickstart.vsae.explained_least:.2f} to {quickstart.vsae.explained_most:.2f}) | {quickstart.vsae.fve} | {quickstart.vsae.function} | {quickstart.vsae.near_dead} |
| random tokens, untrained | {quickstart.random.explained:.2f} | {quickstart.random.fve} | {quickstart.random.function} | {quickstart.random.near_dead} |
""",
    "readme": readme_table(),
    "explained": "\n".join(
        [
            f"| FVE of what comes back | TopK | vSAE | {ARMS['gates_off']} | {RANDOM} |",
            "|---|---|---|---|---|",
            *(
                f"| {name} | {{returning.{place}.topk.explained}} | {{returning.{place}.vsae.explained}} "
                f"| {{returning.{place}.gates.explained}} | {{random.{place}.explained}} |"
                for name, place in (
                    ("blocks.0 (the paper's)", "b0"),
                    ("blocks.2", "b2"),
                    ("blocks.2, k/F = 1/8", "b2_8"),
                    ("blocks.2.hook_mlp_out", "mlp_out"),
                )
            ),
        ]
    ),
    "dose": """
|  |  | TopK | survival 0.6 | `recommended` | random tokens, untrained |
|---|---|---|---|---|---|
| blocks.2, k/F = 1/32 | as a direction | {dose.b2.topk.direction} | {dose.b2.light.direction} | {dose.b2.strong.direction} | {random.b2.direction} |
|  | in what it does, at least | {dose.b2.topk.function} | {dose.b2.light.function} | {dose.b2.strong.function} | {random.b2.function} |
|  | selections of those that come back as a direction | {dose.b2.topk.selections} | {dose.b2.light.selections} | {dose.b2.strong.selections} |  |
|  | FVE | {dose.b2.topk.fve:.4f} | {dose.b2.light.fve:.4f} | {dose.b2.strong.fve:.4f} | {random.b2.fve:.4f} |
|  | loss added, TopK = 1 | {dose.b2.topk.loss} | {dose.b2.light.loss} | {dose.b2.strong.loss} |  |
|  | near-dead < 0.1 | {dose.b2.topk.near_dead} | {dose.b2.light.near_dead} | {dose.b2.strong.near_dead} | {random.b2.near_dead} |
| blocks.0, k/F = 1/32 | as a direction | {dose.b0.topk.direction} | {dose.b0.light.direction} | {dose.b0.strong.direction} | {random.b0.direction} |
|  | in what it does, at least | {dose.b0.topk.function} | {dose.b0.light.function} | {dose.b0.strong.function} | {random.b0.function} |
|  | selections of those that come back as a direction | {dose.b0.topk.selections} | {dose.b0.light.selections} | {dose.b0.strong.selections} |  |
|  | FVE | {dose.b0.topk.fve:.4f} | {dose.b0.light.fve:.4f} | {dose.b0.strong.fve:.4f} | {random.b0.fve:.4f} |
|  | loss added, TopK = 1 | {dose.b0.topk.loss} | {dose.b0.light.loss} | {dose.b0.strong.loss} |  |
|  | near-dead < 0.1 | {dose.b0.topk.near_dead} | {dose.b0.light.near_dead} | {dose.b0.strong.near_dead} | {random.b0.near_dead} |
| blocks.2, k/F = 1/8 | as a direction | {dose.b2_8.topk.direction} | {dose.b2_8.light.direction} | {dose.b2_8.strong.direction} | {random.b2_8.direction} |
|  | in what it does, at least | {dose.b2_8.topk.function} | {dose.b2_8.light.function} | {dose.b2_8.strong.function} | {random.b2_8.function} |
|  | selections of those that come back as a direction | {dose.b2_8.topk.selections} | {dose.b2_8.light.selections} | {dose.b2_8.strong.selections} |  |
|  | FVE | {dose.b2_8.topk.fve:.4f} | {dose.b2_8.light.fve:.4f} | {dose.b2_8.strong.fve:.4f} | {random.b2_8.fve:.4f} |
|  | loss added, TopK = 1 | {dose.b2_8.topk.loss} | {dose.b2_8.light.loss} | {dose.b2_8.strong.loss} |  |
|  | near-dead < 0.1 | {dose.b2_8.topk.near_dead} | {dose.b2_8.light.near_dead} | {dose.b2_8.strong.near_dead} | {random.b2_8.near_dead} |
| known features, F half of them | MCC | {dose.known.topk.mcc} | {dose.known.light.mcc} | {dose.known.strong.mcc} |  |
|  | F1 | {dose.known.topk.f1} | {dose.known.light.f1} | {dose.known.strong.f1} |  |
|  | FVE | {dose.known.topk.fve:.4f} | {dose.known.light.fve:.4f} | {dose.known.strong.fve:.4f} |  |
""",
    "fading_confirmed": """
| 2 million tokens |  | as a direction | in what they do | selections of these | near-dead | FVE | loss added |
|---|---|---|---|---|---|---|---|
"""
    + "".join(
        f"| {place} | {FADING[key]} | {{{at}.direction}} | {{{at}.function}} | {{{at}.selections}} | {{{at}.near_dead}} | {{{at}.fve:.4f}} | {{{at}.nats:.4f}} |\n"
        if key
        else f"| {place} | {RANDOM} | {{{at}.direction}} | {{{at}.function}} |  | {{{at}.near_dead}} | {{{at}.fve:.4f}} |  |\n"
        for short, place in FADED.items()
        for key in ("topk", "light", "fixed_quarter", "fixed_half", "gates_off", "")
        for at in [f"fading.confirm_2_0M.{short}.{key}" if key else f"random.{short}"]
    ),
    "as_typed": """
| `vsae train --seeds … --beside top_k` |  | FVE of what comes back | in what they do | as a direction | near-dead | FVE | loss added |
|---|---|---|---|---|---|---|---|
"""
    + "".join(
        f"| {place} | {name} | {{{at}.explained:.2f}} ({{{at}.explained_least:.2f}} to {{{at}.explained_most:.2f}}) "
        f"| {{{at}.function}} | {{{at}.direction}} | {{{at}.near_dead}} | {{{at}.fve:.4f}} | {{{at}.loss_added:.4f}} |\n"
        if key != "random"
        else f"| {place} | {name} | {{{at}.explained:.2f}} | {{{at}.function}} | {{{at}.direction}} | {{{at}.near_dead}} | {{{at}.fve:.4f}} |  |\n"
        for short, place in (
            ("b2", "blocks.2"),
            ("b0", "blocks.0"),
            ("mlp_out", "blocks.2.hook_mlp_out"),
            ("attn_out", "blocks.1.hook_attn_out, which no study read"),
        )
        for key, name in (("topk", "TopK"), ("vsae", "vSAE"), ("random", RANDOM))
        for at in [f"typed.{short}.{key}"]
    ),
    "comes_back": """
|  |  | TopK | vSAE | Probabilistic TopK | random tokens, untrained |
|---|---|---|---|---|---|
| blocks.2, k/F = 1/32: tuned here | as a direction | {tuned.b2.topk.direction} | {tuned.b2.vsae.direction} | {tuned.b2.ptopk.direction} | {random.b2.direction} |
|  | in what it does, at least | {tuned.b2.topk.function} | {tuned.b2.vsae.function} | {tuned.b2.ptopk.function} | {random.b2.function} |
|  | FVE | {tuned.b2.topk.fve:.4f} | {tuned.b2.vsae.fve:.4f} | {tuned.b2.ptopk.fve:.4f} | {random.b2.fve:.4f} |
|  | near-dead < 0.1 | {tuned.b2.topk.near_dead} | {tuned.b2.vsae.near_dead} | {tuned.b2.ptopk.near_dead} | {random.b2.near_dead} |
| blocks.0, k/F = 1/32 | as a direction | {tuned.b0.topk.direction} | {tuned.b0.vsae.direction} | {tuned.b0.ptopk.direction} | {random.b0.direction} |
|  | in what it does, at least | {tuned.b0.topk.function} | {tuned.b0.vsae.function} | {tuned.b0.ptopk.function} | {random.b0.function} |
|  | FVE | {tuned.b0.topk.fve:.4f} | {tuned.b0.vsae.fve:.4f} | {tuned.b0.ptopk.fve:.4f} | {random.b0.fve:.4f} |
|  | near-dead < 0.1 | {tuned.b0.topk.near_dead} | {tuned.b0.vsae.near_dead} | {tuned.b0.ptopk.near_dead} | {random.b0.near_dead} |
| blocks.2, k/F = 1/8 | as a direction | {tuned.b2_8.topk.direction} | {tuned.b2_8.vsae.direction} | {tuned.b2_8.ptopk.direction} | {random.b2_8.direction} |
|  | in what it does, at least | {tuned.b2_8.topk.function} | {tuned.b2_8.vsae.function} | {tuned.b2_8.ptopk.function} | {random.b2_8.function} |
|  | FVE | {tuned.b2_8.topk.fve:.4f} | {tuned.b2_8.vsae.fve:.4f} | {tuned.b2_8.ptopk.fve:.4f} | {random.b2_8.fve:.4f} |
|  | near-dead < 0.1 | {tuned.b2_8.topk.near_dead} | {tuned.b2_8.vsae.near_dead} | {tuned.b2_8.ptopk.near_dead} | {random.b2_8.near_dead} |
""",
    "seven_pairs": """
|  |  | TopK | noise alone | vSAE | Probabilistic TopK | random tokens, untrained |
|---|---|---|---|---|---|---|
| blocks.2, k/F = 1/32 | as a direction | {seven.b2.topk.direction} | {seven.b2.noise.direction} | {seven.b2.vsae.direction} | {seven.b2.ptopk.direction} | {random.b2.direction} |
|  | FVE | {seven.b2.topk.fve:.4f} | {seven.b2.noise.fve:.4f} | {seven.b2.vsae.fve:.4f} | {seven.b2.ptopk.fve:.4f} | {random.b2.fve:.4f} |
|  | near-dead < 0.1 | {seven.b2.topk.near_dead} | {seven.b2.noise.near_dead} | {seven.b2.vsae.near_dead} | {seven.b2.ptopk.near_dead} | {random.b2.near_dead} |
| blocks.0, k/F = 1/32 | as a direction | {seven.b0.topk.direction} | {seven.b0.noise.direction} | {seven.b0.vsae.direction} | {seven.b0.ptopk.direction} | {random.b0.direction} |
|  | FVE | {seven.b0.topk.fve:.4f} | {seven.b0.noise.fve:.4f} | {seven.b0.vsae.fve:.4f} | {seven.b0.ptopk.fve:.4f} | {random.b0.fve:.4f} |
|  | near-dead < 0.1 | {seven.b0.topk.near_dead} | {seven.b0.noise.near_dead} | {seven.b0.vsae.near_dead} | {seven.b0.ptopk.near_dead} | {random.b0.near_dead} |
| blocks.2, k/F = 1/8 | as a direction | {seven.b2_8.topk.direction} | {seven.b2_8.noise.direction} | {seven.b2_8.vsae.direction} | {seven.b2_8.ptopk.direction} | {random.b2_8.direction} |
|  | FVE | {seven.b2_8.topk.fve:.4f} | {seven.b2_8.noise.fve:.4f} | {seven.b2_8.vsae.fve:.4f} | {seven.b2_8.ptopk.fve:.4f} | {random.b2_8.fve:.4f} |
|  | near-dead < 0.1 | {seven.b2_8.topk.near_dead} | {seven.b2_8.noise.near_dead} | {seven.b2_8.vsae.near_dead} | {seven.b2_8.ptopk.near_dead} | {random.b2_8.near_dead} |
""",
    "six_settings": """
| as a direction | TopK without ReLU | penalty alone | noise alone | vSAE | Probabilistic TopK | vSAE less TopK, points (95% interval) | random tokens, untrained |
|---|---|---|---|---|---|---|---|
| blocks.2, k/F = 1/32 | {untuned.b2.topk_plain.direction} | {untuned.b2.penalty.direction} | {untuned.b2.noise.direction} | {untuned.b2.vsae.direction} | {untuned.b2.ptopk.direction} | {untuned.b2.more_points:+.1f} ({untuned.b2.more_points_low:.1f} to {untuned.b2.more_points_high:.1f}) | {random.b2.direction} |
| blocks.0, k/F = 1/32 | {untuned.b0.topk_plain.direction} | {untuned.b0.penalty.direction} | {untuned.b0.noise.direction} | {untuned.b0.vsae.direction} | {untuned.b0.ptopk.direction} | {untuned.b0.more_points:+.1f} ({untuned.b0.more_points_low:.1f} to {untuned.b0.more_points_high:.1f}) | {random.b0.direction} |
| blocks.2, k/F = 1/8 | {untuned.b2_8.topk_plain.direction} | {untuned.b2_8.penalty.direction} | {untuned.b2_8.noise.direction} | {untuned.b2_8.vsae.direction} | {untuned.b2_8.ptopk.direction} | {untuned.b2_8.more_points:+.1f} ({untuned.b2_8.more_points_low:.1f} to {untuned.b2_8.more_points_high:.1f}) | {random.b2_8.direction} |
| blocks.2, F = 32D, k/F = 1/256 | {untuned.wide.topk_plain.direction} | {untuned.wide.penalty.direction} | {untuned.wide.noise.direction} | {untuned.wide.vsae.direction} | not run | {untuned.wide.more_points:+.1f} ({untuned.wide.more_points_low:.1f} to {untuned.wide.more_points_high:.1f}) |  |
| SmolLM2-135M, blocks.1, k = 64 | {untuned.smollm2_1.topk_plain.direction} | {untuned.smollm2_1.penalty.direction} | {untuned.smollm2_1.noise.direction} | {untuned.smollm2_1.vsae.direction} | {untuned.smollm2_1.ptopk.direction} | {untuned.smollm2_1.more_points:+.1f} ({untuned.smollm2_1.more_points_low:.1f} to {untuned.smollm2_1.more_points_high:.1f}) | {random.smollm2_1.direction} |
| SmolLM2-135M, blocks.15, k = 64 | {untuned.smollm2_15.topk_plain.direction} | {untuned.smollm2_15.penalty.direction} | {untuned.smollm2_15.noise.direction} | {untuned.smollm2_15.vsae.direction} | {untuned.smollm2_15.ptopk.direction} | {untuned.smollm2_15.more_points:+.1f} ({untuned.smollm2_15.more_points_low:.1f} to {untuned.smollm2_15.more_points_high:.1f}) |  |
""",
    "error_share": """
| AUC of `error_share`, in what features do | TopK | vSAE, less noise | vSAE |
|---|---|---|---|
| blocks.2, k/F = 1/32 | {dose.b2.topk.error_share} | {dose.b2.light.error_share} | {dose.b2.strong.error_share} |
| blocks.0, k/F = 1/32 | {dose.b0.topk.error_share} | {dose.b0.light.error_share} | {dose.b0.strong.error_share} |
| blocks.2, k/F = 1/8 | {dose.b2_8.topk.error_share} | {dose.b2_8.light.error_share} | {dose.b2_8.strong.error_share} |
| SmolLM2-135M, blocks.1, k/F = 1/36 | {error_share.smollm2_1.topk.auc} |  | {error_share.smollm2_1.vsae.auc} |
""",
    "worth": """
| within one SAE, matched on firing rate and size | TopK: come back | others | vSAE: come back | others |
|---|---|---|---|---|
| effect of removing it, nats a firing | {worth.function.topk.effect.returning:.3f} | {worth.function.topk.effect.others:.3f} | {worth.function.vsae.effect.returning:.3f} | {worth.function.vsae.effect.others:.3f} |
| cosine of the changes of the logits with its match's | {worth.function.topk.logits.returning:.3f} | {worth.function.topk.logits.others:.3f} | {worth.function.vsae.logits.returning:.3f} | {worth.function.vsae.logits.others:.3f} |
| detection by a word matcher | {worth.function.topk.detection.returning:.3f} | {worth.function.topk.detection.others:.3f} | {worth.function.vsae.detection.returning:.3f} | {worth.function.vsae.detection.others:.3f} |
| information on the current token, bits | {worth.function.topk.current.returning:.4f} | {worth.function.topk.current.others:.4f} | {worth.function.vsae.current.returning:.4f} | {worth.function.vsae.current.others:.4f} |
""",
    "truth": """
|  |  | TopK | vSAE (penalty 0.03) | Probabilistic TopK | random samples, untrained |
|---|---|---|---|---|---|
| F = 1,024, 2 million samples | true MCC | {truth.F1024.2m.topk.mcc} | {truth.F1024.2m.vsae.mcc} | {truth.F1024.2m.ptopk.mcc} |  |
|  | match a true feature | {truth.F1024.2m.topk.true} | {truth.F1024.2m.vsae.true} | {truth.F1024.2m.ptopk.true} |  |
|  | come back as a direction | {truth.F1024.2m.topk.direction} | {truth.F1024.2m.vsae.direction} | {truth.F1024.2m.ptopk.direction} | {random.truth.direction} |
|  | FVE | {truth.F1024.2m.topk.fve} | {truth.F1024.2m.vsae.fve} | {truth.F1024.2m.ptopk.fve} | {random.truth.fve} |
| F = 1,024, 16 million samples | true MCC | {truth.F1024.16m.topk.mcc} | {truth.F1024.16m.vsae.mcc} | {truth.F1024.16m.ptopk.mcc} |  |
|  | match a true feature | {truth.F1024.16m.topk.true} | {truth.F1024.16m.vsae.true} | {truth.F1024.16m.ptopk.true} |  |
|  | come back as a direction | {truth.F1024.16m.topk.direction} | {truth.F1024.16m.vsae.direction} | {truth.F1024.16m.ptopk.direction} | {random.truth.direction} |
|  | FVE | {truth.F1024.16m.topk.fve} | {truth.F1024.16m.vsae.fve} | {truth.F1024.16m.ptopk.fve} | {random.truth.fve} |
""",
    "paper": """
| F = 4D, k/F = 1/8 | FVE | near-dead < 0.1 | selection stability |
|---|---|---|---|
| TopK | {paper.topk.fve:.3f} | {paper.topk.near_dead:.3f} | {paper.topk.stability:.3f} |
| the equations, beta 1 | {paper.equations.fve:.3f} | {paper.equations.near_dead:.3f} | {paper.equations.stability:.3f} |
""",
    "published": """
| k/F | alive: TopK | vSAE | fewer | FVE: TopK | vSAE | loss added: TopK | vSAE | near-dead < 0.1: TopK | vSAE |
|---|---|---|---|---|---|---|---|---|---|
"""
    + "".join(
        f"| 1/{ratio} | {{{at}.topk.alive}} | {{{at}.vsae.alive}} | {{{at}.fewer}} |"
        + "".join(
            f" {{{at}.{key}.{measure}}} |"
            for measure in ("fve", "nats", "near_dead")
            for key in ("topk", "vsae")
        )
        + "\n"
        for ratio in PUBLISHED
        for at in [f"published.r{ratio}"]
    ),
    "authors": """
| blocks.3, k/F = 1/32 | theirs: TopK | vSAE |  | ours: TopK | vSAE |  |
|---|---|---|---|---|---|---|
| alive: ever selected | {authors.topk.count} ({authors.topk.alive}) | {authors.vsae.count} ({authors.vsae.alive}) | {authors.fewer} fewer | {published.b3.topk.alive:.1%} | {published.b3.vsae.alive} | {published.b3.fewer} fewer |
| of these, with a maximum of at most 2.5: the paper's | {authors.topk.shown_count} | {authors.vsae.shown_count} | {authors.shown_fewer} fewer |  |  |  |
| expected in 50,000 tokens | {authors.topk.sample_count} | {authors.vsae.sample_count} | {authors.sample_fewer} fewer |  |  |  |
| near-dead < 0.1 | {authors.topk.near_dead:.1%} | {authors.vsae.near_dead:.1%} |  | {published.b3.topk.near_dead:.1%} | {published.b3.vsae.near_dead:.1%} |  |
| fire at least a tenth as often as the average | {authors.topk.often_count} | {authors.vsae.often_count} | {authors.often_fewer} fewer | {published.b3.topk.often:.1%} | {published.b3.vsae.often:.1%} | {published.b3.more_often:.1f} times as many |
""",
    "smollm2": """
| blocks.1, k/F = 1/36 | TopK | vSAE | Probabilistic TopK, gates off | random tokens, untrained |
|---|---|---|---|---|
"""
    + "".join(
        f"| {label} | {{smollm2.topk.{m}}} | {{smollm2.vsae.{m}}} | {{smollm2.gates_off.{m}}} | {null} |\n"
        for label, m, has_null in (
            ("as a direction", "direction", True),
            ("selections of these", "direction_selections", False),
            ("in what they do", "function", True),
            ("selections of these", "selections", False),
            ("near-dead < 0.1", "near_dead:.1%", True),
            ("FVE", "fve:.4f", True),
            ("loss added (nats)", "nats:.4f", False),
        )
        for null in [f"{{random.smollm2_1.{m}}}" if has_null else ""]
    ),
    "brief_scores": """
| AUC of the order | vSAE (penalty 0.03) | TopK | BatchTopK | Matryoshka | JumpReLU |
|---|---|---|---|---|---|
| blocks.2, k/F = 1/32: the score | {brief.b2.vsae.function.score} | {brief.b2.topk.function.score} | {brief.b2.batchtopk.function.score} | {brief.b2.matryoshka.function.score} | {brief.b2.jumprelu.function.score} |
| `error_share` alone | {brief.b2.vsae.function.error_share} | {brief.b2.topk.function.error_share} | {brief.b2.batchtopk.function.error_share} | {brief.b2.matryoshka.function.error_share} | {brief.b2.jumprelu.function.error_share} |
| blocks.0, k/F = 1/32: the score | {brief.b0.vsae.function.score} | {brief.b0.topk.function.score} | {brief.b0.batchtopk.function.score} | {brief.b0.matryoshka.function.score} | {brief.b0.jumprelu.function.score} |
| `error_share` alone | {brief.b0.vsae.function.error_share} | {brief.b0.topk.function.error_share} | {brief.b0.batchtopk.function.error_share} | {brief.b0.matryoshka.function.error_share} | {brief.b0.jumprelu.function.error_share} |
| blocks.2, k/F = 1/8: the score | {brief.b2_8.vsae.function.score} | {brief.b2_8.topk.function.score} | {brief.b2_8.batchtopk.function.score} | {brief.b2_8.matryoshka.function.score} | {brief.b2_8.jumprelu.function.score} |
| `error_share` alone | {brief.b2_8.vsae.function.error_share} | {brief.b2_8.topk.function.error_share} | {brief.b2_8.batchtopk.function.error_share} | {brief.b2_8.matryoshka.function.error_share} | {brief.b2_8.jumprelu.function.error_share} |
| SmolLM2-135M, blocks.1, 1/36: the score | {brief.smollm2_1.vsae.function.score} | {brief.smollm2_1.topk.function.score} | {brief.smollm2_1.batchtopk.function.score} |  |  |
| `error_share` alone | {brief.smollm2_1.vsae.function.error_share} | {brief.smollm2_1.topk.function.error_share} | {brief.smollm2_1.batchtopk.function.error_share} |  |  |
""",
    "smollm2_rates": """
| vSAE, SmolLM2-135M, blocks.1 | near-dead < 0.1 | FVE | come back in what they do, at least |
|---|---|---|---|
| half of its learning rate | {smollm2_lr.half.vsae.near_dead:.1%} | {smollm2_lr.half.vsae.fve} | {smollm2_lr.half.vsae.function} |
| its learning rate | {smollm2_lr.own.vsae.near_dead} | {smollm2_lr.own.vsae.fve} | {smollm2_lr.own.vsae.function} |
| twice its learning rate | {smollm2_lr.twice.vsae.near_dead} | {smollm2_lr.twice.vsae.fve} | {smollm2_lr.twice.vsae.function} |
| random tokens, untrained | {random.smollm2_1.near_dead} | {random.smollm2_1.fve} | {random.smollm2_1.function} |
""",
}

TABLE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end of table -->)", re.DOTALL)
IN_TEXT = re.compile(r"([-+]?[\d,.]*\d%?)<!--=([\w.]+)(?::([^>]*?))?-->")
CELL = re.compile(r"\{([\w.]+)(?::([^}]*))?\}")


def losses(numbers: dict[str, float]) -> list[tuple[str, float]]:
    """What an SAE's reconstruction adds to the language model's loss, as a multiple of TopK's, where CE recovered or the
    nats are known."""
    added = {
        name.removesuffix(".ce"): 1 - value
        for name, value in numbers.items()
        if name.endswith(".ce")
    }
    for name, nats in numbers.items():
        arm, _, measure = name.rpartition(".")
        if measure in ("nats", "loss_added"):
            added[arm] = nats
    top_k = {arm: f"{arm.rpartition('.')[0]}.topk" for arm in added}
    return [
        (f"{arm}.loss", lost / added[top_k[arm]])
        for arm, lost in added.items()
        if top_k[arm] in added
    ]


def all_numbers() -> dict[str, float]:
    """Rounded to six digits, so that no machine's last bits are in the file."""
    found = [pair for source in SOURCES for pair in source()]
    found += losses(dict(found))
    numbers = {name: float(f"{value:.6g}") for name, value in found}
    if len(numbers) < len(found):
        raise ValueError("two numbers have one name")
    return numbers


def shown(numbers: dict[str, float], name: str, form: str | None) -> str:
    """A number as a page has it."""
    if name not in numbers:
        raise SystemExit(f"no number is called {name}: expected one of {NUMBERS.relative_to(ROOT)}")
    return format(numbers[name], form or DEFAULTS.get(name.rpartition(".")[2], ".3f"))


def filled(page: str, numbers: dict[str, float]) -> str:
    """A page with its numbers."""

    def table(match: re.Match[str]) -> str:
        text = CELL.sub(lambda cell: shown(numbers, cell[1], cell[2]), TABLES[match[2]])
        return f"{match[1]}\n{text.strip()}\n\n{match[3]}"

    def in_text(match: re.Match[str]) -> str:
        form = f":{match[3]}" if match[3] else ""
        return f"{shown(numbers, match[2], match[3])}<!--={match[2]}{form}-->"

    return IN_TEXT.sub(in_text, TABLE.sub(table, page))


def result_pages(numbers: dict[str, float]) -> dict[Path, str]:
    """The pages of the studies that are here, with their tables as they are recomputed, and their numbers."""
    found = {}
    for experiment in EXPERIMENTS:
        names = [name for name in experiment.raw if (RESULTS / name).exists()]
        if not names:
            continue
        stages = importlib.import_module(experiment.module).STAGES
        for name in names:
            page = (RESULTS / name).with_suffix(".md")
            lines = stages.pages[page.stem].tables(raw(page.stem))
            text = with_tables(page.read_text(encoding="utf-8"), lines)
            found[page] = filled(text, numbers)
    return found


def main(words: list[str]) -> int:
    numbers = all_numbers()
    wanted = {NUMBERS: json.dumps(numbers, indent=0, sort_keys=True) + "\n"}
    wanted |= {page: filled(page.read_text(encoding="utf-8"), numbers) for page in PAGES}
    wanted |= result_pages(numbers)
    differ = False
    for path, text in wanted.items():
        old = path.read_text(encoding="utf-8") if path.exists() else ""
        if old == text:
            continue
        name = path.relative_to(ROOT)
        if words == ["--write"]:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {name}")
            continue
        differ = True
        for new in difflib.unified_diff(
            old.splitlines(), text.splitlines(), str(name), "recomputed", lineterm="", n=0
        ):
            print(new)
    if differ:
        print("To write these: python -m experiments.recompute --write", file=sys.stderr)
    return int(differ)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
