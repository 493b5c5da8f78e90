"""The quickstart's comparison over several seeds: the table in the README.

    python -m experiments.better_vsae.quickstart_seeds        # 2 minutes a seed on 2 cores

Trains what `vsae quickstart --seed N` trains, for seeds 0, 1 and 2, unless runs/quickstart_seeds
holds it already, and writes results/quickstart_seeds.md.
"""

import time
from pathlib import Path

from dictionary_learning_ext import RunConfig, train
from dictionary_learning_ext.config.presets import quickstart
from dictionary_learning_ext.run_folder.reading import read_metrics

SEEDS, STEPS = (0, 1, 2), 1000
RUNS = Path("runs/quickstart_seeds")
RESULTS = Path(__file__).parents[1] / "results" / "quickstart_seeds.md"
COLUMNS = {
    "FVE": "fve",
    "CE recovered": "frac_recovered",
    "near-dead < 0.1": "near_dead_0.1",
    "near-dead < 0.5": "near_dead_0.5",
    "selection stability": "stability_rms",
}


def main():
    names = list(quickstart(STEPS, 0))
    for seed in SEEDS:
        folder = RUNS / str(seed)
        if not all((folder / name / "metrics.json").exists() for name in names):
            run = RunConfig(save_dir=str(folder), steps=STEPS, overwrite=True)
            train(run, quickstart(STEPS, seed))
    lines = [
        f"{time.strftime('%Y-%m-%d')}; embedded model, blocks.0.hook_resid_post, D = 128, F = 512, "
        f"k = 16, {STEPS} steps of 1,024 tokens; seeds {', '.join(map(str, SEEDS))}",
        "",
        "| | " + " | ".join(COLUMNS) + " |",
        "|---" * (len(COLUMNS) + 1) + "|",
    ]
    for name in names:
        figures = [read_metrics(RUNS / str(seed) / name) for seed in SEEDS]
        cells = [" / ".join(f"{f[key]:.3f}" for f in figures) for key in COLUMNS.values()]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
