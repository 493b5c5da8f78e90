"""The paper's comparison, matched: TopK against its vSAE, at its k/F, over several seeds.

    python -m experiments.paper.reproduce_paper train    # every SAE and its metrics
    python -m experiments.paper.reproduce_paper bench    # SCR, TPP, sparse probing; needs [sae-bench]
    python -m experiments.paper.reproduce_paper tables   # write the pages again from the raw results

    ... bench --ratio 32                   # at k/F = 1/32; without it 1/8
    ... train --lm FOLDER                  # another language model, from a local folder
    ... train --lm EleutherAI/pythia-70m   # the paper's: TinyStories, 20,000 steps; needs a GPU

TopK against the vSAE of the paper's equations (fixed sigma = 1, noise on both), and against the penalty of
its public code alone, in upstream's TopK (point, rectified): `code`, which beta.md shows. The code's own pair is as_published.py's.
KL on all features, linear KL annealing, at k/F = 1/32 to 1/4 with F = 4D, and at
k/F = 1/32 with F = 16D, the other reading of its dictionary. Everything else is shared: batches,
initial weights of a seed, optimiser, AuxK. The page has the tables, the paper's figures 3 to 5, 10 and
11, its cosine matrices, synthesised tokens, and the verdicts on the paper's claims, which are frozen.
Another language model's results go to files that carry its name.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch as t

from dictionary_learning_ext import RunConfig
from dictionary_learning_ext.activations.inputs import open_model
from dictionary_learning_ext.config.presets import PRESETS
from experiments import raw_results
from experiments.pages import SHOWN, labels_of, spread, table
from experiments.paper import feature_maps, reproduced_figures
from experiments.paper.feature_maps import dispersion
from experiments.paper.reproduced_figures import AS_STATED, RATIOS, Row, rows_at
from experiments.raw_results import RESULTS, about, about_line
from experiments.stages import Page, Stages
from experiments.trained_saes import (
    FIRST_HOOK,
    agreement,
    directions_of,
    folder_name,
    metrics_of,
    run_settings,
    sae_config,
    train_missing,
)

SEEDS, EVAL_TOKENS = (0, 1, 2, 3, 4), 20_000
SCORES = ("activation", "random", "in_text")
"""Activations of the feature: at the last synthesised token, the best at random tokens, and the largest in the text."""
BENCHED = 8
"""F/k of SCR and TPP by default, at F = 4D: the paper's k = 256."""
MODELS: dict[str, dict[str, Any]] = {
    "TopK": {"architecture": "top_k"},
    "equations, beta 0.01": {"beta": 0.01},
    "equations, beta 0.1": {"beta": 0.1},
    "equations, beta 1": {"beta": 1.0},
    "code, beta 0.01": {"posterior": "point", "rectify": True, "beta": 0.01},
    "code, beta 0.1": {"posterior": "point", "rectify": True, "beta": 0.1},
    "code, beta 1": {"posterior": "point", "rectify": True, "beta": 1.0},
    "code, KL on selected, beta 1": {
        "posterior": "point",
        "rectify": True,
        "beta": 1.0,
        "kl_scope": "selected",
    },
}
GRID: dict[tuple[int, int], tuple[str, ...]] = {  # (F/D, F/k): models
    (4, 32): AS_STATED,
    (4, 16): AS_STATED,
    (4, 8): tuple(MODELS),
    (4, 4): AS_STATED,
    (16, 32): (*AS_STATED, "code, KL on selected, beta 1"),
}


def run_of(lm: str) -> RunConfig:
    """The paper's settings for its language model; shorter runs on the embedded text for any other."""
    shared: dict[str, Any] = {"eval_tokens": EVAL_TOKENS, "log_steps": 500}
    if lm == PRESETS["paper"]["model"]:
        names = ("model", "data", "hook", "steps", "dtype", "n_ctxs", "ctx_len", "batch_size")
        device = "cuda" if t.cuda.is_available() else "cpu"
        return run_settings(**{n: PRESETS["paper"][n] for n in names}, device=device, **shared)
    return run_settings(model=lm, hook=FIRST_HOOK, steps=1000, **shared)


def place_of(lm: str) -> tuple[Path, Path]:
    """Where the SAEs of a language model are, and their raw results."""
    suffix = "" if lm == "embedded" else "_" + Path(lm).name
    return Path(f"runs/reproduce_paper{suffix}"), RESULTS / f"reproduce_paper{suffix}.json"


def name_of(model: str, k: int, seed: int) -> str:
    return folder_name(model, f"k{k}", f"seed{seed}")


def measure(arguments: argparse.Namespace) -> None:
    """Train what is not there yet, and write every SAE's metrics."""
    lm = arguments.lm
    began, run, raw = time.monotonic(), run_of(lm), place_of(lm)[1]
    before = raw_results.read_or(raw, {})
    width = open_model(run)[1].activation_dim
    rows: list[dict[str, Any]] = []
    for multiple in sorted({multiple for multiple, _ in GRID}):
        folders = train_cells(lm, run, multiple, multiple * width)
        rows += rows_of(folders, multiple)
    chance = np.random.default_rng(0).normal(size=(2, 16 * width, width))
    settings = {
        "agreement_by_chance": {
            m: agreement(chance[0, : m * width], chance[1, : m * width]) for m in (4, 16)
        },
        **about(began, before.get("settings")),
        "setting": f"{Path(lm).name}, blocks.0.hook_resid_post, D = {width}, {run.steps:,} steps of "
        f"{run.batch_size:,} tokens, sqrt_d, seeds {SEEDS}; {EVAL_TOKENS:,} held-out tokens",
    }
    content = {"settings": settings, "rows": rows, "bench": before.get("bench", [])}
    content["maps"] = maps_of(lm, width)
    raw_results.write(raw, content)


def train_cells(
    lm: str, run: RunConfig, multiple: int, dict_size: int
) -> dict[tuple[str, int, int], Path]:
    """Train the missing SAEs of F = multiple x D, all from one buffer; all folders, by cell and seed."""
    cells = [(m, ratio) for (own, ratio), models in GRID.items() if own == multiple for m in models]
    folder = place_of(lm)[0] / f"F{dict_size}"
    folders = {
        (model, ratio, seed): folder / name_of(model, dict_size // ratio, seed)
        for model, ratio in cells
        for seed in SEEDS
    }
    lr = 2e-3 if run.steps <= 1000 else 5e-4
    saes = {
        path.name: sae_config(
            k=dict_size // ratio, dict_size=dict_size, lr=lr, seed=seed, **MODELS[model]
        )
        for (model, ratio, seed), path in folders.items()
    }
    train_missing(run, folder, saes)
    return folders


def rows_of(folders: dict[tuple[str, int, int], Path], multiple: int) -> list[dict[str, Any]]:
    """The metrics of every SAE, and of its decoder directions."""
    rows, directions = [], {cell: directions_of(path) for cell, path in folders.items()}
    for (model, ratio, seed), path in folders.items():
        row = {"model": model, "multiple": multiple, "ratio": ratio, "seed": seed}
        row |= metrics_of(path, SHOWN)
        own = directions[model, ratio, seed]
        other = directions[model, ratio, SEEDS[(SEEDS.index(seed) + 1) % len(SEEDS)]]
        cosines = own @ own.T
        row["dispersion"] = dispersion(cosines)
        np.fill_diagonal(cosines, 0.0)
        row["correlation"] = float(np.abs(cosines).sum() / (cosines.size - len(cosines)))
        row["agreement"] = agreement(own, other)
        rows.append(row)
    return rows


def maps_of(lm: str, width: int) -> list[dict[str, Any]]:
    """Figures 8 to 11 at F = 4D, k/F = 1/8: largest activations, clusters, how they are used."""
    runs, _ = place_of(lm)
    k, rows = 4 * width // 8, []
    for seed in SEEDS:
        folders = [runs / f"F{4 * width}" / name_of(model, k, seed) for model in AS_STATED]
        found = feature_maps.measure(folders, seed)
        rows += [
            {"model": model, "seed": seed} | own
            for model, own in zip(AS_STATED, found, strict=True)
        ]
    return rows


def bench_as_stated(arguments: argparse.Namespace) -> None:
    """SAE Bench of the paper's two models at the k/F of figures 4 and 5, with the size-matched control."""
    from experiments.size_matched import benched

    lm = arguments.lm
    runs, raw = place_of(lm)
    books = runs / "labelled_books" if lm == "embedded" else None
    content = raw_results.read(raw)
    width = open_model(run_of(lm))[1].activation_dim
    rows = content["bench"]
    ratio, F = arguments.ratio, 4 * width
    done = {row["seed"] for row in rows if row["ratio"] == ratio}
    for seed in (seed for seed in SEEDS if seed not in done):
        folders = {m: runs / f"F{F}" / name_of(m, F // ratio, seed) for m in AS_STATED}
        found = benched(folders, ("scr", "tpp", "sparse_probing"), EVAL_TOKENS, books)
        for model, (own, matched) in found.items():
            row = {"model": model, "multiple": 4, "ratio": ratio, "seed": seed}
            row |= scores(own, matched)
            rows.append(row)
        raw_results.write(raw, content)


def scores(own: dict[str, Any], matched: dict[str, Any]) -> Row:
    """SCR and TPP by N and sparse probing's accuracy, from an SAE's results in SAE Bench, plain and size-matched."""
    from dictionary_learning_ext.sae_bench.results import curve, metrics

    return {
        "scr": curve(own["scr"], "scr"),
        "scr_by_data_set": by_data_set(own["scr"], "scr"),
        "tpp_by_data_set": by_data_set(own["tpp"], "total_metric"),
        "scr_matched": curve(matched["scr"], "scr"),
        "tpp": curve(own["tpp"], "total_metric"),
        "tpp_matched": curve(matched["tpp"], "total_metric"),
        "tpp_intended": curve(own["tpp"], "intended_diff_only"),
        "tpp_unintended": curve(own["tpp"], "unintended_diff_only"),
        "probing": metrics(own["sparse_probing"], "sae")["sae_top_1_test_accuracy"],
    }


def by_data_set(result: dict[str, Any], which: str) -> dict[str, dict[int, float]]:
    """SAE Bench's metric at each N, of each data set; see `curve`."""
    from dictionary_learning_ext.sae_bench.results import curve

    category = "scr_metrics" if which == "scr" else "tpp_metrics"
    return {
        detail["dataset_name"]: curve(result | {"eval_result_metrics": {category: detail}}, which)
        for detail in result["eval_result_details"]
    }


def tables(content: dict[str, Any]) -> list[str]:
    return tables_of(content, [model for model in MODELS if not is_penalty(model)])


def tables_of_penalty(content: dict[str, Any]) -> list[str]:
    """For the page of beta.py."""
    return tables_of(content, [m for m in MODELS if m == "TopK" or is_penalty(m)])


def is_penalty(model: str) -> bool:
    """Whether it is the code's penalty alone, which is neither of the paper's two models."""
    return model.startswith("code")


def tables_of(content: dict[str, Any], shown: list[str]) -> list[str]:
    """Mean and spread over seeds of every cell's metrics; SCR and TPP by N."""
    settings = content["settings"]
    lines = [f"{about_line(settings)}; {settings['setting']}.", ""]
    for (multiple, ratio), models in GRID.items():
        cells = {}
        for model in (model for model in models if model in shown):
            own = rows_at(content["rows"], model, multiple, ratio)
            cells[model] = [spread([row[metric] for row in own]) for metric in SHOWN]
        lines += [*table(f"F = {multiple}D, k/F = 1/{ratio}", cells, labels_of(SHOWN)), ""]
    chance = settings["agreement_by_chance"].items()
    by_size = ", ".join(f"{value:.3f} at F = {multiple}D" for multiple, value in chance)
    lines.append(f"Agreement of seeds of random directions: {by_size}.")
    for ratio in RATIOS:
        cells = {}
        for model in (model for model in AS_STATED if model in shown):
            own = rows_at(content["bench"], model, 4, ratio)
            for name in ("scr", "scr_matched", "tpp", "tpp_matched") if own else ():
                by_n = [spread([row[name][n] for row in own]) for n in own[0][name]]
                cells[f"{model}: {name.replace('_', ', ')}"] = by_n
        if cells:
            columns = [f"N = {n}" for n in content["bench"][0]["scr"]]
            lines += ["", *table(f"F = 4D, k/F = 1/{ratio}", cells, columns)]
    return [*lines, *synthesised([row for row in content["maps"] if row["model"] in shown])]


def synthesised(maps: list[Row]) -> list[str]:
    """The table of synthesised tokens, if there are any."""
    cells = {
        f"{row['model']}: {found['feature']}": [
            f"`{found['text']!r}`",
            *(f"{found[name]:g}" for name in SCORES),
        ]
        for row in maps
        for found in row.get("synthesised", ())
    }
    columns = ["synthesised tokens", *(name.replace("_", " ") for name in SCORES)]
    return ["", *table("feature", cells, columns)] if cells else []


def draw(content: dict[str, Any], page: Path) -> None:
    reproduced_figures.draw(content, page.with_suffix(""))


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--lm", default="embedded", help="embedded, a folder, or a name on the hub")
    parser.add_argument("--ratio", type=int, choices=RATIOS, default=BENCHED, help="bench: F/k")


STAGES = Stages(
    "paper.reproduce_paper",
    {"train": measure, "bench": bench_as_stated},
    {"reproduce_paper": Page(tables, draw)},
    options,
    raw_of=lambda arguments: place_of(arguments.lm)[1],
)

if __name__ == "__main__":
    STAGES.run()
