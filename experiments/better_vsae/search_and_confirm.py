"""The search for a variational SAE that is worth using, and its confirmation on fresh seeds.

    python -m experiments.better_vsae.search_and_confirm train     # search, then confirm
    python -m experiments.better_vsae.search_and_confirm bench     # SAE Bench of what confirm trained
    python -m experiments.better_vsae.search_and_confirm tables    # write the page's tables again

    ... search     # many settings, two seeds each: pick one of each size
    ... confirm    # TopK, point and the pick, on eight fresh seeds

What the raw results hold is not measured again. To measure a stage again, delete its rows from
results/better_vsae.json. candidates.py says what is searched at which sizes, success_criteria.py what
decides. "TopK" is posterior point, rectified, beta 0: upstream's TopK to rounding
(tests/trainers/test_variational_top_k.py), from the same code as the others.
"""

import argparse
import itertools
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from dictionary_learning_ext import RunConfig
from experiments import raw_results
from experiments.better_vsae import success_criteria
from experiments.better_vsae.candidates import (
    CANDIDATES,
    SEARCHED,
    SIZES,
    TOP_K,
    partner_of,
    sae_of,
    without_noise,
)
from experiments.better_vsae.success_criteria import CONFIRM_SEEDS, MEASURES, SEARCH_SEEDS
from experiments.pages import LABELS, labels_of, table
from experiments.raw_results import RESULTS, about, about_line
from experiments.stages import Page, Stages
from experiments.trained_saes import (
    FIRST_HOOK,
    agreement,
    directions_of,
    folder_name,
    metrics_of,
    train_missing,
)

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
    saes = {path.name: sae_of(models[model], size, s) for (model, s), path in paths.items()}
    run = RunConfig(hook=FIRST_HOOK, steps=SIZES[size][2], eval_tokens=EVAL_TOKENS, log_steps=500)
    train_missing(run, paths[cells[0]].parent, saes)
    rows = []
    for cell, other in zip(cells, partners, strict=True):
        row = {"stage": stage, "size": size, "model": cell[0], "seed": cell[1], "partner": other[1]}
        row |= metrics_of(paths[cell], (*MEASURES, "noise_to_signal"))
        rows.append(row | agreements(paths[cell], paths[other]))
    write(stage, rows, began)


def agreements(folder: Path, other: Path) -> dict[str, float]:
    """How far two seeds' directions agree, and the nearest within one; kept, as it takes a while."""
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
    return raw_results.read_or(RAW, {"stages": {}, "rows": []})


def write(stage: str, rows: list[dict[str, Any]], began: float) -> None:
    """Add a stage's rows, and the minutes that they took."""
    content = read()
    content["rows"] += rows
    content["stages"][stage] = about(began, content["stages"].get(stage))
    raw_results.write(RAW, content)


def search(_: argparse.Namespace) -> None:
    for size, names in SEARCHED.items():
        measure("search", size, {name: CANDIDATES[name] for name in names}, SEARCH_SEEDS)


def confirm(_: argparse.Namespace) -> None:
    """TopK, point with the pick's penalty, and the pick."""
    for size in SIZES:
        chosen = CANDIDATES[success_criteria.pick(read()["rows"], size)]
        models = {"TopK": TOP_K, "point": without_noise(chosen), "sampled": chosen}
        measure("confirm", size, models, CONFIRM_SEEDS)


def search_and_confirm(arguments: argparse.Namespace) -> None:
    search(arguments)
    confirm(arguments)


def bench_confirmed(_: argparse.Namespace) -> None:
    """SCR and TPP, raw and masked to equal numbers of features in use."""
    from dictionary_learning_ext.sae_bench.results import curve
    from experiments.size_matched import benched

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
    deviation = statistics.stdev(values)
    size = f" (d = {statistics.mean(values) / deviation:.1f})" if deviation > 0 else ""
    return f"{statistics.mean(values):+.4f}{size}"


def tables(content: dict[str, Any]) -> list[str]:
    """What was run when, the search, and the confirmation with its tests."""
    rows = content["rows"]
    return [
        *(f"- {stage}: {about_line(own)}" for stage, own in content["stages"].items()),
        "",
        f"## Search (seeds {SEARCH_SEEDS})",
        "",
        *search_tables(rows),
        f"## Confirmation (seeds {CONFIRM_SEEDS})",
        "",
        *confirmation_tables(rows)[:-1],
    ]


def search_tables(rows: list[dict[str, Any]]) -> list[str]:
    lines = []
    for size in SIZES:
        found = [row for row in rows if (row["stage"], row["size"]) == ("search", size)]
        means = success_criteria.means_of(found)
        names = [n for n in (*MEASURES, "within") if n in means["TopK"]]
        cells = {model: [f"{own[n]:.3f}" for n in names] for model, own in means.items()}
        lines += [
            *table(size, cells, labels_of(names)),
            "",
            f"Picked: {success_criteria.pick(rows, size)}.",
            "",
        ]
    return lines


def confirmation_tables(rows: list[dict[str, Any]]) -> list[str]:
    lines = []
    for size, (picked, found) in success_criteria.confirmed(rows).items():
        means, cells = success_criteria.means_of(success_criteria.merged(rows, size)), {}
        for name, verdict in found.items():
            cells[LABELS[name]] = [
                *(f"{means[model][name]:.4f}" for model in ("TopK", "point", "sampled")),
                *(effect(verdict["over"][other]) for other in ("TopK", "point")),
                f"{MEASURES[name].margin:g}",
                f"{verdict['no_worse']:.4f}",
                f"{verdict['better']:.4f}",
                f"{verdict['corrected']:.3f}" if "corrected" in verdict else "",
            ]
        heads = ["TopK", "point", "sampled", "sampled - TopK", "sampled - point", "margin"]
        heads += ["no worse, p", "better, p", "corrected"]
        lines += [f"{size}; sampled is {picked}.", "", *table("", cells, heads), ""]
        lines += [success_criteria.conclusion(found), ""]
    return lines


STAGES = Stages(
    "better_vsae.search_and_confirm",
    {
        "train": search_and_confirm,
        "bench": bench_confirmed,
        "search": search,
        "confirm": confirm,
    },
    {"better_vsae": Page(tables)},
)

if __name__ == "__main__":
    STAGES.run()
