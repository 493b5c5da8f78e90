"""What does the one command say, as a user types it? The README's table, and four hook points at the preset's own length.

    python -m experiments.as_typed train     # continues where it was stopped
    python -m experiments.as_typed tables    # write the page again from the raw results

`vsae train --seeds … --beside top_k` trains, `vsae reproduce FOLDER --json` measures. blocks.1.hook_attn_out is a hook point that no
study used.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean
from typing import Any

from dictionary_learning_ext.run_folder.sae_folder import read_metrics
from experiments import raw_results
from experiments.pages import table
from experiments.raw_results import RESULTS, about, about_line
from experiments.stages import Page, Stages

RAW, RUNS = RESULTS / "as_typed.json", Path("runs/as_typed")
FRESH = "9310,9311,9312"
"""Seeds that no earlier study had."""
PLACES = {
    "quickstart": ("--seeds=3", "--steps=4000"),
    **{
        hook: (f"--seeds={FRESH}", f"--hook={hook}")
        for hook in (
            "blocks.2.hook_resid_post",
            "blocks.0.hook_resid_post",
            "blocks.2.hook_mlp_out",
            "blocks.1.hook_attn_out",
        )
    },
}
"""What is typed after `vsae train --beside top_k`, by the row's name."""
TOP_K, VSAE, RANDOM = "TopK", "vSAE", "random tokens, untrained"
KINDS = {TOP_K: "top_k", VSAE: "vsae"}
"""How the names of each kind's run folders begin."""
MEASURES = {
    "explained": "in_function_fve",
    "function": "in_function",
    "direction": "direction_0.7",
}
"""The measures of a pair here, by their keys in `vsae reproduce --json`."""
Row = dict[str, Any]


def train(_: argparse.Namespace) -> None:
    content = raw_results.read_or(RAW, {"places": {}})
    for place, words in PLACES.items():
        if place in content["places"]:
            continue
        began, folder = time.monotonic(), RUNS / place
        vsae("train", "--beside=top_k", *words, f"--save-dir={folder}")
        compared = json.loads(vsae("reproduce", str(folder), "--json", printed=True))
        rows = {name: row_of(folder, start, compared) for name, start in KINDS.items()}
        (chance,) = {json.dumps(found["random_tokens"]) for found in compared["settings"].values()}
        rows[RANDOM] = of_chance(json.loads(chance))
        content["places"][place] = {
            "rows": rows,
            "typed": ["vsae", "train", "--beside=top_k", *words],
            "settings": about(began),
        }
        raw_results.write(RAW, content)


def vsae(*words: str, printed: bool = False) -> str:
    """Run a command; what it prints, if asked for."""
    command = [sys.executable, "-m", "dictionary_learning_ext", *words]
    return subprocess.run(
        command, check=True, text=True, stdout=subprocess.PIPE if printed else None
    ).stdout


def row_of(folder: Path, start: str, compared: Row) -> Row:
    """The numbers of the SAEs of a kind, and of their pairs."""
    folders = sorted(folder.glob(f"{start}_seed*"))
    metrics = [read_metrics(each) for each in folders]
    names = {each.name for each in folders}
    (own,) = (of for of in compared["settings"].values() if names >= of["saes"].keys())
    return {
        "fve": [each["fve"] for each in metrics],
        "near_dead": [each["near_dead_0.1"] for each in metrics],
        "loss_added": [each["loss_reconstructed"] - each["loss_original"] for each in metrics],
        **{name: [pair[key] for pair in own["pairs"]] for name, key in MEASURES.items()},
    }


def of_chance(numbers: Row) -> Row:
    """The same of random tokens: one pair, without the loss."""
    same = {"fve": "fve", "near_dead": "near_dead_0.1", "explained": "in_function_fve"}
    same |= {"function": "in_function", "direction": "as_direction"}
    return {name: [numbers[key]] for name, key in same.items()}


def tables(content: Row) -> list[str]:
    lines = []
    for found in content["places"].values():
        rows = {name: cells(row) for name, row in found["rows"].items()}
        columns = ["FVE of what comes back", "in what they do", "as a direction", "FVE"]
        columns += ["near-dead < 0.1", "loss added (nats)"]
        lines += [f"## `{' '.join(found['typed'])}`", "", *table("", rows, columns), ""]
        lines += [f"{about_line(found['settings'])}.", ""]
    return lines


def cells(row: Row) -> list[str]:
    """Means; of what comes back the range of the pairs, too."""
    back = row["explained"]
    spread = f" ({min(back):.2f} to {max(back):.2f})" if len(back) > 1 else ""
    shares = [f"{mean(row[name]):.0%}" for name in ("function", "direction")]
    loss = f"{mean(row['loss_added']):.4f}" if "loss_added" in row else ""
    fve, dead = f"{mean(row['fve']):.4f}", f"{mean(row['near_dead']):.1%}"
    return [f"{mean(back):.2f}{spread}", *shares, fve, dead, loss]


STAGES = Stages("as_typed", {"train": train}, {"as_typed": Page(tables)})

if __name__ == "__main__":
    STAGES.run()
