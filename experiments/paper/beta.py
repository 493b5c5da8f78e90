"""Does a larger beta give the paper's dead features? What runs and which rule decides: PROTOCOL_BETA.md.

    python -m experiments.paper.beta train     # train what is missing, write the page
    python -m experiments.paper.beta as_run    # TopK and the code's penalty, longer, at the public code's rate
    python -m experiments.paper.beta tables    # write the page's tables again

Every group of SAEs that share a buffer and a size is written to the raw results once it is whole. A run that was
stopped continues where it was.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch as t

from dictionary_learning_ext.config.sae import share_of_run
from experiments import raw_results
from experiments.pages import labels_of, save_plot, table
from experiments.paper import reproduce_paper
from experiments.paper.feature_maps import largest_of
from experiments.paper.reproduced_figures import figure_8_9
from experiments.raw_results import RESULTS, about, about_line
from experiments.stages import Page, Stages
from experiments.trained_saes import (
    FIRST_HOOK,
    folder_name,
    metrics_of,
    run_settings,
    sae_config,
    train_missing,
)

D, RATIO, SEEDS, MULTIPLES, STEPS = 128, 32, (0, 1), (16, 4), 400
BETAS = (1.0, 5.0, 10.0, 50.0, 100.0, 500.0)
LOST, NEAR = 0.70, 0.05
"""The rule's: the share of TopK's living features that is lost, and how near FVE is to TopK's."""
METRICS = ("fve", "alive", "near_dead_0.1", "l0")
RAW, RUNS = RESULTS / "beta.json", Path("runs/beta")
PENALTY = RESULTS / "reproduce_paper.json"
"""The penalty alone, in longer runs, by k/F: reproduce_paper.py trains it."""
_CODE: dict[str, Any] = {"rectify": True, "select_by": "magnitude"}
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "equations": ("sqrt_d", {}),
    "code": ("unit", _CODE | {"posterior": "point"}),
    "code, no AuxK": ("unit", _CODE | {"posterior": "point", "auxk_alpha": 0.0}),
    "code, learned variance": ("unit", _CODE | {"posterior": "learned"}),
}
"""The scale of the activations, and the options."""
COLOURS = dict(zip(ARMS, ("tab:red", "tab:orange", "tab:brown", "tab:purple"), strict=True))
AS_RUN = ("TopK", "code", "code, no AuxK")

Row = dict[str, Any]


def measure(_: argparse.Namespace) -> None:
    """Train what is missing, group by group, and write each group's rows."""
    t.set_num_threads(1)
    for seed in SEEDS:
        for multiple in MULTIPLES:
            for scale in ("unit", "sqrt_d"):
                began = time.monotonic()
                content = raw_results.read_or(RAW, {"rows": []})
                group = {"scale": scale, "multiple": multiple, "seed": seed}
                if missing := missing_in(content["rows"], group):
                    content["rows"] += rows_of(group, missing)
                    content["settings"] = about(began, content.get("settings"))
                    raw_results.write(RAW, content)


def missing_in(rows: list[Row], group: Row) -> list[Row]:
    """The arms and betas of a group that have no row yet."""
    wanted: list[Row] = [{"arm": "TopK", "beta": None}]
    for arm, (scale, _) in ARMS.items():
        is_left_out = arm == "code, no AuxK" and group["multiple"] != 16
        if scale == group["scale"] and not is_left_out:
            wanted += [{"arm": arm, "beta": beta} for beta in BETAS]
    return [one for one in wanted if not any(is_in(row, group | one) for row in rows)]


def rows_of(group: Row, missing: list[Row]) -> list[Row]:
    """Train these SAEs of a group, and measure them."""
    size: dict[str, Any] = {"dict_size": group["multiple"] * D, "seed": group["seed"]}
    size["k"] = size["dict_size"] // RATIO
    size["dead_feature_threshold"] = STEPS * 256 // 10  # the default when the first seed ran
    saes = {}
    for one in missing:
        arm, beta = one["arm"], one["beta"]
        if arm == "TopK":
            saes[arm] = sae_config(architecture="top_k", **size)
        else:
            options = ARMS[arm][1] | size
            saes[folder_name(arm, f"beta{beta:g}")] = sae_config(beta=beta, **options)
    run = run_settings(
        hook=FIRST_HOOK,
        steps=STEPS,
        batch_size=256,
        dtype="bfloat16",
        n_ctxs=1000,
        normalize=group["scale"],
        eval_tokens=20_000,
        eval_documents=1,  # CE is not of interest
        log_steps=100,
    )
    place = RUNS / f"{group['scale']}_F{size['dict_size']}_seed{group['seed']}"
    folders = list(train_missing(run, place, saes).values())
    return [one | group | metrics_of(f, METRICS) for one, f in zip(missing, folders, strict=True)]


def measure_as_run(_: argparse.Namespace) -> None:
    """TopK, and the code's penalty with AuxK and without: beta 1, F = 16D, 0.4 of the public code's steps, its batches and rate."""
    t.set_num_threads(1)
    content = raw_results.read_or(RAW, {"rows": []})
    content.setdefault("as_run", [])
    run = run_settings(
        hook=FIRST_HOOK,
        steps=4000,
        batch_size=192,
        dtype="bfloat16",
        normalize="unit",
        eval_tokens=20_000,
        log_steps=1000,
    )
    options: dict[str, Any] = {
        "dict_size": 16 * D,
        "k": 16 * D // RATIO,
        "lr": 8e-4,
        "decay_start": share_of_run(0.8),
        "dead_feature_threshold": 1600 * RATIO,
    }
    for seed in SEEDS:
        if any(row["seed"] == seed for row in content["as_run"]):
            continue
        began, own = time.monotonic(), options | {"seed": seed}
        saes = {"TopK": sae_config(architecture="top_k", **own)}
        saes |= {arm: sae_config(**ARMS[arm][1], **own) for arm in AS_RUN[1:]}
        named = {folder_name(arm): sae for arm, sae in saes.items()}
        folders = train_missing(run, RUNS / f"as_run_seed{seed}", named).values()
        largest = largest_of(list(folders)) if seed == 0 else [None] * len(saes)
        for arm, folder, values in zip(saes, folders, largest, strict=True):
            row = {"arm": arm, "beta": 1.0, "scale": "unit", "multiple": 16, "seed": seed}
            row |= metrics_of(folder, (*METRICS, "frac_recovered"))
            content["as_run"].append(row if values is None else row | {"largest": values})
        content["settings"] = about(began, content.get("settings"))
        raw_results.write(RAW, content)


def is_in(row: Row, wanted: Row) -> bool:
    return all(row[name] == value for name, value in wanted.items())


def with_losses(rows: list[Row]) -> list[Row]:
    """The rows with the share of TopK's living features that each loses, and its FVE minus TopK's."""
    found = []
    for row in rows:
        group = {name: row[name] for name in ("scale", "multiple", "seed")}
        top_k = next(other for other in rows if is_in(other, group | {"arm": "TopK"}))
        lost, fve = 1 - row["alive"] / top_k["alive"], row["fve"] - top_k["fve"]
        found.append(row | {"lost": lost, "fve_less_top_k": fve})
    return found


def verdict(rows: list[Row]) -> str:
    """The rule, for the rows of one arm and size."""
    betas = sorted({row["beta"] for row in rows})
    by_beta = [[row for row in rows if row["beta"] == beta] for beta in betas]
    dead = [own for own in by_beta if all(row["lost"] >= LOST for row in own)]
    as_shown = [own for own in dead if all(row["fve_less_top_k"] >= -NEAR for row in own)]
    if as_shown:
        return f"**holds** at beta {betas_in(as_shown)}"
    if not dead:
        most = max(rows, key=lambda row: row["lost"])
        lost = percent(most["lost"])
        at_most = f"at most {lost} are lost, at beta {most['beta']:g}"
        return f"**does not hold**: {'none are lost' if most['lost'] < 0.005 else at_most}"
    return f"**holds in part**: at beta {betas_in(dead)}, where FVE is {fve_of(dead)}"


def percent(share: float) -> str:
    return f"{round(100 * share)}%"  # no -0%


def betas_in(groups: list[list[Row]]) -> str:
    return ", ".join(f"{own[0]['beta']:g}" for own in groups)


def fve_of(groups: list[list[Row]]) -> str:
    values = [row["fve"] for own in groups for row in own]
    return f"{min(values):.3f} to {max(values):.3f}"


def tables(content: dict[str, Any]) -> list[str]:
    settings, rows = content["settings"], with_losses(content["rows"])
    lines = [
        f"{about_line(settings)}; embedded model, {FIRST_HOOK}, {STEPS} steps of 256 tokens; a "
        "number for each seed that was run; 20,000 held-out tokens.",
    ]
    verdicts = {}
    for multiple in sorted(MULTIPLES):
        cells = {}
        for scale in ("sqrt_d", "unit"):
            energy = "D" if scale == "sqrt_d" else "1"
            own = {"multiple": multiple, "scale": scale}
            at_scale = [row for row in rows if is_in(row, own)]
            cells[f"TopK, E‖x‖² = {energy}"] = cells_of([r for r in at_scale if r["arm"] == "TopK"])
            for arm in dict.fromkeys(row["arm"] for row in at_scale if row["arm"] in ARMS):
                of_arm = [row for row in at_scale if row["arm"] == arm]
                for beta in BETAS:
                    cells[f"{arm}, beta {beta:g}"] = cells_of(
                        [row for row in of_arm if row["beta"] == beta]
                    )
                verdicts[f"{arm}, F = {multiple}D"] = [verdict(of_arm)]
        columns = ["lost", *labels_of(METRICS)]
        lines += ["", *table(f"F = {multiple}D, k = {multiple * D // RATIO}", cells, columns)]
    if "as_run" in content:
        as_run = with_losses(content["as_run"])
        cells = {}
        for arm in AS_RUN:
            own = [row for row in as_run if row["arm"] == arm]
            cells[arm if arm == "TopK" else f"{arm}, beta 1"] = cells_of(own)
            if arm != "TopK":
                verdicts[f"{arm}, F = 16D, 4,000 steps of 192 tokens"] = [verdict(own)]
        title = "F = 16D, k = 64, 4,000 steps of 192 tokens"
        lines += ["", *table(title, cells, ["lost", *labels_of(METRICS)])]
    lines += ["", *table("82% fewer living features", verdicts, ["by the rule"]), ""]
    return lines + reproduce_paper.tables_of_penalty(raw_results.read(PENALTY))


def cells_of(rows: list[Row]) -> list[str]:
    lost = " / ".join(percent(row["lost"]) for row in rows)
    return [lost, *(" / ".join(f"{row[name]:.3f}" for row in rows) for name in METRICS)]


def draw(content: dict[str, Any], page: Path) -> None:
    """The sweep and the largest activations, beside the page."""
    draw_sweep(content, page)
    if "as_run" in content:
        largest = {
            row["arm"] if row["arm"] == "TopK" else f"{row['arm']}, beta 1": row["largest"]
            for row in content["as_run"]
            if "largest" in row
        }
        figure = figure_8_9(largest, 16 * D)
        save_plot(figure, page.with_name("beta_largest.png"), dpi=75)


def draw_sweep(content: dict[str, Any], page: Path) -> None:
    """What is lost, L0 and FVE by beta: a line for each arm, a dot for each seed."""
    rows = with_losses(content["rows"])
    shown = {"lost": "living features lost", "l0": "L0 / k", "fve": "FVE"}
    figure, axes = plt.subplots(2, 3, figsize=(11, 5.6), sharex=True)
    for row_axes, multiple in zip(axes, sorted(MULTIPLES), strict=True):
        for axis, (name, label) in zip(row_axes, shown.items(), strict=True):
            scale = multiple * D // RATIO if name == "l0" else 1
            for arm, colour in COLOURS.items():
                own = [r for r in rows if is_in(r, {"arm": arm, "multiple": multiple})]
                if not own:
                    continue
                values = {b: [r[name] / scale for r in own if r["beta"] == b] for b in BETAS}
                means = [sum(v) / len(v) for v in values.values()]
                axis.plot(BETAS, means, color=colour, label=arm)
                for beta, each in values.items():
                    axis.plot([beta] * len(each), each, ".", color=colour)
            axis.set(title=f"{label}, F = {multiple}D", xscale="log")
            if name == "fve":
                axis.set_ylim(-1.05, 1)
            if name == "lost":
                axis.axhline(LOST, color="grey", linestyle="--", linewidth=0.8)
    for axis in axes[-1]:
        axis.set_xlabel("beta")
    axes[1][2].legend(fontsize=8)
    save_plot(figure, page.with_suffix(".png"), dpi=90)


STAGES = Stages(
    "paper.beta",
    {"train": measure, "as_run": measure_as_run},
    {"beta": Page(tables, draw)},
)

if __name__ == "__main__":
    STAGES.run()
