"""The search for a variational SAE that is worth using, and its confirmation on fresh seeds.

    python -m experiments.better_vsae.study search     # many settings, two seeds each: pick one of each size
    python -m experiments.better_vsae.study confirm    # TopK, point, and the pick, on eight fresh seeds
    python -m experiments.better_vsae.study bench      # SAE Bench of what confirm trained; needs [saebench]
    python -m experiments.better_vsae.study tables     # write the page again from the raw results

Raw figures go to results/better_vsae.json, the page made from them to results/better_vsae.md. What the
raw results hold is not measured again: delete a stage's rows there to have it so. What is searched, at
what sizes, is in vsae_candidates.py, what decides in vsae_goal.py. "TopK" is posterior point, rectified,
beta 0: upstream's TopK to rounding (tests/test_variational_top_k.py), from the same code as the others.
"""

import itertools
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from dictionary_learning_ext import RunConfig, train
from dictionary_learning_ext.features.geometry import agreement
from dictionary_learning_ext.run_folder.reading import read_metrics
from experiments import pages
from experiments.better_vsae import goal as vsae_goal
from experiments.better_vsae.candidates import (
    CANDIDATES,
    SEARCHED,
    SIZES,
    TOP_K,
    D,
    partner_of,
    sae_of,
    without_noise,
)
from experiments.better_vsae.goal import CONFIRM_SEEDS, MEASURES, SEARCH_SEEDS
from experiments.pages import RESULTS, about, about_line, table
from experiments.trained_saes import TEXTS, benched, directions_of, folder_name

EVAL_TOKENS = 20_000
RAW, RUNS = RESULTS / "better_vsae.json", Path("runs/better_vsae")


def folder_of(stage: str, size: str, model: str, seed: int) -> Path:
    dict_size, k, _ = SIZES[size]
    return RUNS / stage / f"F{dict_size}_k{k}" / folder_name(model, seed)


def measure(
    stage: str, size: str, models: dict[str, dict[str, Any]], seeds: tuple[int, ...]
) -> None:
    """Train what has no row yet, and the partners of its agreement, from one buffer; add its rows."""
    began, content = time.monotonic(), read()
    done = {(row["stage"], row["size"], row["model"], row["seed"]) for row in content["rows"]}
    cells = [
        (model, seed)
        for model, seed in itertools.product(models, seeds)
        if (stage, size, model, seed) not in done
    ]
    if not cells:
        return
    partners = [(model, partner_of(size, seed)) for model, seed in cells]
    paths = {cell: folder_of(stage, size, *cell) for cell in [*cells, *partners]}
    missing = {
        path.name: sae_of(models[model], size, seed)
        for (model, seed), path in paths.items()
        if not (path / "metrics.json").exists()
    }
    if missing:
        parent = paths[cells[0]].parent
        run = RunConfig(
            steps=SIZES[size][2],
            save_dir=str(parent if len(missing) > 1 else parent / next(iter(missing))),
            overwrite=True,
            eval_tokens=EVAL_TOKENS,
            log_steps=500,
        )
        train(run, missing)
    rows = []
    for cell, other in zip(cells, partners, strict=True):
        figures = read_metrics(paths[cell])
        row = {"stage": stage, "size": size, "model": cell[0], "seed": cell[1], "partner": other[1]}
        row |= {name: figures[name] for name in (*MEASURES, "noise_to_signal") if name in figures}
        rows.append(row | agreements(paths[cell], paths[other]))
    write(stage, rows, began)


def agreements(folder: Path, other: Path) -> dict[str, float]:
    """How far two seeds' directions agree, and the nearest within one; kept, for it takes a while."""
    kept = folder / f"agreement_with_{other.name}.json"
    if not kept.exists():
        own = directions_of(folder)
        within = own @ own.T - 2 * np.eye(len(own))
        found = {
            "agreement": agreement(own, directions_of(other)),
            "within": float(within.max(axis=1).mean()),
        }
        kept.write_text(json.dumps(found))
    return json.loads(kept.read_text())


def read() -> dict[str, Any]:
    return json.loads(RAW.read_text()) if RAW.exists() else {"stages": {}, "rows": []}


def write(stage: str, rows: list[dict[str, Any]], began: float) -> None:
    """Add a stage's rows, and the minutes that they took."""
    content = read()
    content["rows"] += rows
    content["stages"][stage] = about(began, content["stages"].get(stage))
    RAW.write_text(json.dumps(content, indent=0) + "\n")


def search() -> None:
    for size, names in SEARCHED.items():
        measure("search", size, {name: CANDIDATES[name] for name in names}, SEARCH_SEEDS)


def confirm() -> None:
    """TopK, point with the pick's penalty, and the pick."""
    for size in SIZES:
        chosen = CANDIDATES[vsae_goal.pick(read()["rows"], size)]
        models = {"TopK": TOP_K, "point": without_noise(chosen), "sampled": chosen}
        measure("confirm", size, models, CONFIRM_SEEDS)


def bench_confirmed() -> None:
    """SCR and TPP, raw and masked to equal numbers of features in use."""
    from dictionary_learning_ext.sae_bench.comparison_table import curve

    done = {(row["size"], row["seed"]) for row in read()["rows"] if row["stage"] == "bench"}
    for size, seed in itertools.product(SIZES, CONFIRM_SEEDS):
        if (size, seed) in done:
            continue
        began, rows = time.monotonic(), []
        folders = {m: folder_of("confirm", size, m, seed) for m in ("TopK", "point", "sampled")}
        for model, found in benched(folders, ("scr", "tpp"), EVAL_TOKENS).items():
            row: dict[str, Any] = {"stage": "bench", "size": size, "model": model, "seed": seed}
            for suffix, results in zip(("", "_matched"), found, strict=True):
                scr = curve(results["scr"], "scr")
                row["scr" + suffix] = statistics.mean(scr[n] for n in (2, 5))
                tpp = curve(results["tpp"], "total_metric")
                row["tpp" + suffix] = statistics.mean(tpp.values())
            rows.append(row)
        write("bench", rows, began)


def effect(values: list[float]) -> str:
    """Mean and mean over standard deviation."""
    spread = statistics.stdev(values)
    size = f" (d = {statistics.mean(values) / spread:.1f})" if spread > 0 else ""
    return f"{statistics.mean(values):+.4f}{size}"


def tables(content: dict[str, Any]) -> list[str]:
    """The page, from the raw results alone."""
    rows = content["rows"]
    lines = ["`python -m experiments.better_vsae.study search`, `confirm`, `bench`", ""]
    for stage, settings in content["stages"].items():
        lines.append(f"- {stage}: {about_line(settings)}")
    lines += [
        "",
        f"Embedded model, blocks.0.hook_resid_post, D = {D}, 1,000 steps of 1,024 tokens (500 at F = 32D), "
        f"lr 2e-3, sqrt_d; {EVAL_TOKENS:,} held-out tokens; SCR and TPP with {TEXTS[0]} and {TEXTS[1]} "
        "texts. A number after selection, both or values is noise_to_signal = k sigma^2 / D in training; "
        "selection and both are annealed to 0 over the first half unless told; KL is beta of a KL on the "
        "selected features. TopK has upstream's ReLU, the others have none unless told. A feature is dead "
        "for AuxK after a tenth of the run's tokens without firing unless told. In "
        "1,000 steps at F = 4D no feature stays silent so long: AuxK on and off are the same there. "
        "Agreement of seeds is the mean cosine of decoder directions with another seed's, matched one to "
        "one; within, of a direction with its nearest in the same dictionary. Masking to equal numbers of "
        "features in use leaves the few most attributed ones as they are: size-matched SCR is SCR.",
        "",
        f"## Search (seeds {SEARCH_SEEDS})",
        "",
        *search_tables(rows),
        f"## Confirmation (seeds {CONFIRM_SEEDS})",
        "",
        "`no worse`: p of a one-sided sign-flip test of sampled - TopK + margin. `better`: the larger "
        "of the p values against TopK and against point; `corrected`: Holm's, over the goal's "
        "measures of one size, not over the three sizes. The least p that eight pairs can give is "
        f"{2.0**-8:.4f}. Agreements are tested on the pairs of seeds that share no SAE: eight at "
        "F = 4D, k/F = 1/8 (with seeds 8 to 15), four elsewhere (each seed's is with the next), whose least "
        f"p is {2.0**-4:.4f}, so that there agreement can't pass. Differences are signed so that more is "
        "better.",
        "",
        *confirmation_tables(rows),
    ]
    return lines[:-1]


def search_tables(rows: list[dict[str, Any]]) -> list[str]:
    lines = []
    for size in SIZES:
        found = [row for row in rows if (row["stage"], row["size"]) == ("search", size)]
        means = vsae_goal.means_of(found)
        figures = [n for n in (*MEASURES, "within") if n in means["TopK"]]
        heads = [MEASURES[n][0] if n in MEASURES else n for n in figures]
        cells = {model: [f"{own[n]:.3f}" for n in figures] for model, own in means.items()}
        lines += [*table(size, cells, heads), "", f"Picked: {vsae_goal.pick(rows, size)}.", ""]
    return lines


def confirmation_tables(rows: list[dict[str, Any]]) -> list[str]:
    lines = []
    for size, (picked, found) in vsae_goal.confirmed(rows).items():
        means, cells = vsae_goal.means_of(vsae_goal.merged(rows, size)), {}
        for name, verdict in found.items():
            label, _, margin = MEASURES[name]
            cells[label] = [
                *(f"{means[model][name]:.4f}" for model in ("TopK", "point", "sampled")),
                *(effect(verdict["over"][other]) for other in ("TopK", "point")),
                f"{margin:g}",
                f"{verdict['no_worse']:.4f}",
                f"{verdict['better']:.4f}",
                f"{verdict['corrected']:.3f}" if "corrected" in verdict else "",
            ]
        heads = ["TopK", "point", "sampled", "sampled - TopK", "sampled - point", "margin"]
        heads += ["no worse, p", "better, p", "corrected"]
        lines += [f"{size}; sampled is {picked}.", "", *table("", cells, heads), ""]
        lines += [vsae_goal.conclusion(found), ""]
    return lines


def main() -> None:
    stages = {"search": search, "confirm": confirm, "bench": bench_confirmed, "tables": None}
    if len(sys.argv) != 2 or sys.argv[1] not in stages:
        raise SystemExit(f"expected one of {', '.join(stages)}, as in: better_vsae.py search")
    if stage := stages[sys.argv[1]]:
        stage()
    pages.write("better_vsae.md", tables(read()))


if __name__ == "__main__":
    main()
