"""SAE Bench on the embedded model: a TopK SAE and two vSAEs between a random and an identity SAE.

    pip install -e '.[saebench]'
    python -m experiments.better_vsae.bench_embedded        # the wall time is in the results

Takes what `vsae quickstart` trains (seed 0), unless runs/bench_embedded holds it already, and runs
every evaluation that this model carries, with the size-matched control. Writes
results/bench_embedded.md and the paper's figures 3 to 5 beside it.
"""

import time
from pathlib import Path

from dictionary_learning_ext import RunConfig, train
from dictionary_learning_ext.config.presets import quickstart
from dictionary_learning_ext.sae_bench.bench_results import BenchResults
from dictionary_learning_ext.sae_bench.bench_runner import bench
from dictionary_learning_ext.sae_bench.comparison_table import columns_of, table
from dictionary_learning_ext.sae_bench.paper_figures import write_figures

STEPS, SEED = 1000, 0
RUNS = Path("runs/bench_embedded")
RESULTS = Path(__file__).parents[1] / "results"
TRAINED = "top_k"
LESS_IS_MORE = ("near-dead", "absorption")
NOT_MEASURES = ("L0", "alive", "probing, language model")


def wall_times(outcome: BenchResults) -> str:
    """Seconds of every evaluation, summed over the SAEs."""
    sums: dict[str, float] = {}
    for results in outcome.results.values():
        for name, result in results.items():
            seconds = result["eval_result_unstructured"]["wall_seconds"]
            sums[name] = sums.get(name, 0.0) + seconds
    return ", ".join(f"{name} {seconds:.0f} s" for name, seconds in sums.items())


def verdicts(outcome: BenchResults) -> list[str]:
    """For each measure, whether identity > TopK > random, with the three numbers."""
    columns = columns_of(outcome)
    random = next(label for label in columns if label.startswith("random"))
    lines = []
    for name, trained in columns[TRAINED].items():
        floor, ceiling = columns[random].get(name), columns["identity"].get(name)
        if name.startswith(NOT_MEASURES) or floor is None or ceiling is None:
            continue
        sign = -1 if name.startswith(LESS_IS_MORE) else 1
        above = sign * (trained - floor) > 0
        below = sign * (ceiling - trained) > 0
        says = {
            (True, True): "identity > TopK > random",
            (True, False): "TopK > random, and above the identity: it is no ceiling here",
            (False, True): "**can't tell TopK from random here**",
            (False, False): "**orders neither as it should here**",
        }[above, below]
        lines.append(f"| {name} | {floor:.3f} | {trained:.3f} | {ceiling:.3f} | {says} |")
    return lines


def main():
    saes = quickstart(STEPS, SEED)
    folders = [RUNS / name for name in saes]
    if not all((folder / "ae.pt").exists() for folder in folders):
        train(RunConfig(save_dir=str(RUNS), steps=STEPS, overwrite=True), saes)
    outcome = bench(folders, floor=True, size_matched=True)
    figures = write_figures(outcome, RESULTS / "bench_embedded")
    controls = [f"`{control}` is `{label}`" for label, control in outcome.matched.items()]
    lines = [
        f"{time.strftime('%Y-%m-%d')}; embedded model, blocks.0.hook_resid_post, D = 128, F = 512, "
        f"k = 16, {STEPS} steps of 1,024 tokens, seed {SEED}; SAE Bench 0.6.0 on the embedded "
        f"books. Wall time on 2 shared cores, all SAEs: {wall_times(outcome)}.",
        "",
        table(outcome, "markdown"),
        "",
        "A column named _topN is the SAE beside it masked to its N most used features, N being how "
        f"many the SAE that uses fewest uses: {'; '.join(controls) or 'no SAE uses more'}. "
        "The random SAE is an untrained TopK SAE of the same size, the identity's features are the "
        "128 activations themselves.",
        "",
        "## What each measure can tell apart at this size",
        "",
        "| measure | random | TopK | identity | |",
        "|---|---|---|---|---|",
        *verdicts(outcome),
        "",
        *(f"Could not be had: {line}." for line in outcome.failure_lines()),
        "",
        *(f"![{figure.stem}](bench_embedded/{figure.name})" for figure in figures),
    ]
    (RESULTS / "bench_embedded.md").write_text("\n".join(lines).rstrip() + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
