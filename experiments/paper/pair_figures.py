"""The paper's figures 4, 5, 10 and 11, cosine matrices and synthesised tokens, of the pair that its public code trains.

    python -m experiments.paper.pair_figures train    # three seeds of both, and what the figures show
    python -m experiments.paper.pair_figures bench    # SCR, TPP, sparse probing; needs [sae-bench]
    python -m experiments.paper.pair_figures tables   # write the page again from the raw results

The last row of PROTOCOL_AS_PUBLISHED.md's addition: embedded model, blocks.3, F = 16D, k/F = 1/32, by the package's own trainers.
"""

import argparse
import time
from pathlib import Path
from typing import Any

from dictionary_learning_ext import RunConfig
from dictionary_learning_ext.config.architectures import upstream_lr
from dictionary_learning_ext.config.sae import SAEConfig, share_of_run
from experiments import raw_results
from experiments.pages import labels_of, save_plot, spread, table
from experiments.paper import feature_maps, reproduced_figures
from experiments.paper.as_published import BATCH, HELD_OUT, LAST, LR, NEVER, SMALL, D
from experiments.paper.reproduce_paper import scores, synthesised
from experiments.raw_results import RESULTS, about, about_line
from experiments.stages import Page, Stages
from experiments.trained_saes import metrics_of, run_settings, sae_config, train_missing

RAW, RUNS = RESULTS / "pair_figures.json", Path("runs/pair_figures")
RATIO, STEPS, SEEDS = 32, 10_001, (0, 1, 2)
TOP_K, VSAE = "their TopK", "their vSAE"
METRICS = ("fve", "cossim", "frac_recovered", "alive", "near_dead_0.1", "near_dead_0.5")
MAPS = ("silhouette", "evenness", "dispersion")


def pair(seed: int) -> dict[str, SAEConfig]:
    """Both SAEs of a seed, with the public code's settings."""
    schedule = {"warmup_steps": max(200, STEPS // 50), "decay_start": share_of_run(0.8)}
    shared = {"dict_size": SMALL, "k": SMALL // RATIO, "seed": seed} | schedule
    top_k = {"lr": upstream_lr(SMALL), "dead_feature_threshold": NEVER}
    return {
        TOP_K: sae_config(architecture="top_k", **top_k, **shared),
        VSAE: sae_config(architecture="vsae_as_published", lr=LR, beta=1.0, **shared),
    }


def run_config(seed: int) -> RunConfig:
    return run_settings(
        hook=LAST,
        steps=STEPS,
        batch_size=BATCH,
        n_ctxs=2500,
        ctx_len=128,
        text_passes=2,
        normalize="unit",
        dtype="bfloat16",
        max_norm_multiple=None,
        data_seed=seed,
        eval_tokens=HELD_OUT,
        save_every="10m",
    )


def folders_of(seed: int) -> dict[str, Path]:
    """Both SAEs' run folders. What has not been trained yet is trained, on the same batches."""
    place = RUNS / f"seed{seed}"
    named = {name.replace(" ", "_"): sae for name, sae in pair(seed).items()}
    found = train_missing(run_config(seed), place, named).values()
    return dict(zip((TOP_K, VSAE), found, strict=True))


def train(_: argparse.Namespace) -> None:
    began, before = time.monotonic(), raw_results.read_or(RAW, {})
    rows, maps = [], []
    for seed in SEEDS:
        folders = folders_of(seed)
        rows += [{"model": m, "seed": seed} | metrics_of(f, METRICS) for m, f in folders.items()]
        found = feature_maps.measure([*folders.values()], seed)
        maps += [{"model": m, "seed": seed} | own for m, own in zip(folders, found, strict=True)]
    settings = about(began, before.get("settings"))
    bench = before.get("bench", [])
    raw_results.write(RAW, {"settings": settings, "rows": rows, "maps": maps, "bench": bench})


def bench(_: argparse.Namespace) -> None:
    from experiments.size_matched import benched

    content = raw_results.read(RAW)
    for seed in (s for s in SEEDS if s not in {row["seed"] for row in content["bench"]}):
        began = time.monotonic()
        found = benched(
            folders_of(seed), ("scr", "tpp", "sparse_probing"), HELD_OUT, RUNS / "labelled_books"
        )
        for model, results in found.items():
            content["bench"].append(
                {"model": model, "ratio": RATIO, "seed": seed} | scores(*results)
            )
        content["settings"] = about(began, content["settings"])
        raw_results.write(RAW, content)


def tables(content: dict[str, Any]) -> list[str]:
    """Mean and spread over seeds."""

    def cells(kind: str, names: tuple[str, ...]) -> dict[str, list[str]]:
        return {
            model: [
                spread([row[n] for row in content[kind] if row["model"] == model]) for n in names
            ]
            for model in (TOP_K, VSAE)
        }

    lines = [
        f"{about_line(content['settings'])}; embedded, {LAST}, D = {D}, F = {SMALL:,}, k = {SMALL // RATIO}, {STEPS:,} steps of "
        f"{BATCH}, seeds {SEEDS}; {HELD_OUT:,} held-out tokens.",
        "",
        *table("", cells("rows", METRICS), labels_of(METRICS)),
        "",
        *table("the map of figures 10 and 11", cells("maps", MAPS), [*MAPS]),
    ]
    if content["bench"]:
        by_n = {}
        for name in ("scr", "scr_matched", "tpp", "tpp_matched"):
            for model, rows in reproduced_figures.by_model(content["bench"], RATIO).items():
                label = f"{model}: {name.replace('_', ', ')}"
                by_n[label] = [spread([row[name][n] for row in rows]) for n in rows[0][name]]
        lines += ["", *table("", by_n, [f"N = {n}" for n in content["bench"][0]["scr"]])]
    return [*lines, *synthesised(content["maps"])]


def draw(content: dict[str, Any], page: Path) -> None:
    shown = [row for row in content["maps"] if "map" in row]
    drawn = {
        "figure_10_11": reproduced_figures.figure_10_11(shown),
        "cosines": reproduced_figures.cosine_matrices(shown),
    }
    if content["bench"]:
        drawn["figure_4_5"] = reproduced_figures.figure_4_5(content["bench"])
        drawn["figure_4_by_data_set"] = reproduced_figures.by_data_set(content["bench"])
    for name, figure in drawn.items():
        save_plot(figure, page.with_suffix("") / f"{name}.png", dpi=75)


STAGES = Stages(
    "paper.pair_figures", {"train": train, "bench": bench}, {"pair_figures": Page(tables, draw)}
)

if __name__ == "__main__":
    STAGES.run()
