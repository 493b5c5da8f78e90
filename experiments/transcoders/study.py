"""Which features of transcoders come back, and what do they explain of the MLP's output? See PROTOCOL_TRANSCODERS.md.

python -m experiments.transcoders.study train [LAYER …]   # default: all; continues where it was stopped
python -m experiments.transcoders.study tables            # write the page's tables again
"""

import argparse
import time
from pathlib import Path
from statistics import mean
from typing import Any

from dictionary_learning_ext import RunConfig, train
from dictionary_learning_ext.config.hooks import pair_name
from dictionary_learning_ext.config.sae import SAEConfig, share_of_run
from dictionary_learning_ext.config.sae import sae_settings as package_settings
from dictionary_learning_ext.features.agreement import SHOWN
from dictionary_learning_ext.features.reproduce import reproduce_settings
from dictionary_learning_ext.run_folder.reading import is_finished
from experiments import raw_results
from experiments.pages import table
from experiments.raw_results import RESULTS, about, about_line
from experiments.stages import Page, Stages
from experiments.trained_saes import metrics_of

RAW, RUNS = RESULTS / "transcoders.json", Path("runs/transcoders")
SEEDS, LAYERS, HELD_OUT = (9500, 9501, 9502), (0, 1, 2, 3), 50_000
POINT = {"posterior": "point", "beta": 0.0}
NOISY = {
    **{"posterior": "fixed", "noise_on": "selection", "noise_to_signal": 0.3, "sigma": None},
    **{"noise_anneal_steps": share_of_run(0.5), "beta": 0.01, "kl_scope": "selected"},
}
ARMS: dict[str, dict[str, Any]] = {
    "TopK": {"architecture": "vsae_top_k", "rectify": True, **POINT},
    "vSAE": {"architecture": "vsae_top_k", **NOISY},
    "BatchTopK": {"architecture": "vsae_batch_top_k", **POINT},
    "vSAE over BatchTopK": {"architecture": "vsae_batch_top_k", **NOISY},
}
METRICS = ("fve", "loss_added", "near_dead_0.1", "l0")


def sae_of(arm: str, seed: int) -> SAEConfig:
    options = {"dict_size": 512, "k": 16, "lr": 4e-3, "start": "random", "seed": seed, **ARMS[arm]}
    return package_settings(options.pop("architecture"), options)


def sites(layer: int) -> dict[str, str]:
    target = f"blocks.{layer}.hook_mlp_out"
    return {"transcoder": pair_name(f"blocks.{layer}.mlp.hook_in", target), "SAE": target}


def run_of(layer: int, seed: int) -> RunConfig:
    return RunConfig(
        **{"activations": str(RUNS / "cache"), "save_dir": str(RUNS / f"layer{layer}_seed{seed}")},
        **{"hook": f"blocks.{layer}.hook_mlp_out", "data_seed": seed, "steps": 8000},
        **{"batch_size": 256, "n_ctxs": 512, "normalize": "sqrt_d", "max_norm_multiple": 10.0},
        eval_tokens=HELD_OUT,
    )


def names() -> dict[str, tuple[str, str]]:
    """Each SAE of a run: its kind and its arm, by its name."""
    slug = {arm: arm.lower().replace(" ", "_") for arm in ARMS}
    return {
        f"{kind.lower()}_{slug[arm]}": (kind, arm) for kind in ("transcoder", "SAE") for arm in ARMS
    }


def measure(arguments: argparse.Namespace) -> None:
    content = raw_results.read_or(RAW, {"rows": [], "settings": {}})
    for layer in arguments.layers or LAYERS:
        began, of_seed = time.monotonic(), {}
        for seed in SEEDS:
            run = run_of(layer, seed)
            saes = {name: sae_of(arm, seed) for name, (_, arm) in names().items()}
            hooks = {name: sites(layer)[kind] for name, (kind, _) in names().items()}
            folders = {name: Path(run.save_dir or "") / name for name in saes}
            is_begun = any((folder / "config.json").exists() for folder in folders.values())
            if not all(is_finished(folder, run) for folder in folders.values()):
                train(run, saes, hooks, resume=is_begun)
            of_seed[seed] = folders
        content["rows"] = [row for row in content["rows"] if row["layer"] != layer]
        for name, (kind, arm) in names().items():
            own = [of_seed[seed][name] for seed in SEEDS]
            (found,) = reproduce_settings(own, HELD_OUT)[0].values()
            content["rows"].append(
                {
                    **{"layer": layer, "kind": kind, "arm": arm},
                    "seeds": [metrics_of(folder, METRICS) for folder in own],
                    "numbers": found.numbers(),
                    "pairs": [pair.measures["in_function_fve"] for pair in found.pairs.values()],
                    "random_tokens": found.random_tokens,
                }
            )
        content["settings"] = about(began, content["settings"])
        raw_results.write(RAW, content)


NOISE = [("vSAE", "TopK"), ("vSAE over BatchTopK", "BatchTopK")]


def differences(rows: list[dict[str, Any]], layers: list[int]) -> list[str]:
    """What the noise changes in the FVE of what comes back, as the protocol judges it."""
    found = {(row["layer"], row["kind"], row["arm"]): row["pairs"] for row in rows}
    shown = {}
    for kind in ("transcoder", "SAE"):
        for noisy, plain in NOISE:
            both = [(found[n, kind, noisy], found[n, kind, plain]) for n in layers]
            gains = [mean(ours) - mean(theirs) for ours, theirs in both]
            spread = mean(max(pairs) - min(pairs) for of_layer in both for pairs in of_layer)
            same_sign = max(sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains))
            is_one = same_sign >= 3 and abs(mean(gains)) > spread
            cells = [" ".join(f"{gain:+.3f}" for gain in gains), f"{mean(gains):+.3f}"]
            shown[f"{noisy} less {plain}, {kind}"] = [
                *cells,
                f"{spread:.3f}",
                "yes" if is_one else "no",
            ]
    columns = [
        ", ".join(f"blocks.{n}" for n in layers),
        "mean",
        "mean range of pairs",
        "a difference?",
    ]
    return table("FVE of what comes back", shown, columns)


def tables(content: dict[str, Any]) -> list[str]:
    lines, heads = [], [*(m.label for m in SHOWN), "loss added", "L0"]
    layers = sorted({row["layer"] for row in content["rows"]})
    for title, own in [("Mean over the layers", layers), *((f"blocks.{n}", [n]) for n in layers)]:
        rows = [row for row in content["rows"] if row["layer"] in own]
        shown = {}
        for kind, arm in names().values():
            of_arm = [row for row in rows if (row["kind"], row["arm"]) == (kind, arm)]
            cells = [m.text(mean(row["numbers"][m.key] for row in of_arm)) for m in SHOWN]
            seeds = [seed for row in of_arm for seed in row["seeds"]]
            added, l0 = (mean(seed[name] for seed in seeds) for name in ("loss_added", "l0"))
            shown[f"{arm}, {kind}"] = [*cells, f"{added:.4f}", f"{l0:.2f}"]
        for kind in ("transcoder", "SAE"):
            null = [row["random_tokens"] for row in rows if row["kind"] == kind]
            cells = [m.text(mean(each[m.key] for each in null)) for m in SHOWN]
            shown[f"random tokens, {kind}"] = [*cells, "", ""]
        lines += [f"## {title}", "", *table("", shown, heads), ""]
        if len(own) > 1:
            lines += [*differences(rows, layers), ""]
    return [*lines, f"{about_line(content['settings'])}.", ""]


def add_layers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("layers", nargs="*", type=int, metavar="LAYER")


STAGES = Stages("transcoders.study", {"train": measure}, {"transcoders": Page(tables)}, add_layers)

if __name__ == "__main__":
    STAGES.run()
