"""How often do synthesised tokens excite a feature as much as the best of a text?

For 50 random live features of each SAE: the activation at the last of the hard tokens, relative to
the largest in 100,000 held-out tokens, and the same for the best of as many random sequences.

    vsae quickstart
    vsae train --preset quickstart --architecture top_k --hook blocks.2.hook_resid_post \\
        --save-dir runs/layer2
    python -m experiments.robustness.synthesis_reach runs/quickstart/top_k \\
        runs/quickstart/vsae_annealed_selection runs/quickstart/vsae_paper runs/layer2
"""

import sys
import time

import torch as t

from dictionary_learning_ext.activations.contexts import read_contexts
from dictionary_learning_ext.evaluation.folders import open_folders
from dictionary_learning_ext.features.collector import FeatureCollector
from dictionary_learning_ext.features.synthesis import synthesise

FEATURES, TOKENS, SEED = 50, 100_000, 0


def main(folders: list[str]) -> None:
    t.set_num_threads(1)
    print("# Synthesised tokens against the best of a text\n")
    print(
        f"`experiments/synthesis_reach.py`, {time.strftime('%Y-%m-%d')}, seed {SEED}: {FEATURES} "
        f"random live features of each SAE, {TOKENS:,} held-out tokens, the default settings of "
        "`synthesise`. Ratio: activation at the last hard token / largest in the text; reached: "
        "features with a ratio of at least 0.8.\n"
    )
    print(
        "| SAE | hook | reached | median ratio | least | random reached | random median | seconds |"
    )
    print("|---|---|---:|---:|---:|---:|---:|---:|", flush=True)
    for folder in folders:
        run, saes, language_model, hook = open_folders([folder])
        sae = saes[folder][0]
        collector = FeatureCollector(sae, TOKENS, seed=SEED)
        for batch in read_contexts(run, language_model, hook, "heldout", TOKENS):
            collector.add(batch)
        statistics = collector.statistics()
        live = statistics.alive_F.nonzero().flatten()
        order = t.randperm(len(live), generator=t.Generator().manual_seed(SEED))
        features = sorted(live[order[:FEATURES]].tolist())
        start = time.monotonic()
        found = synthesise(sae, language_model, hook, features, seed=SEED)
        seconds = time.monotonic() - start
        best = statistics.max_F[features]
        ratio = t.tensor([one.activation for one in found]) / best
        random = t.tensor([one.random for one in found]) / best
        print(
            f"| {folder.rpartition('/')[2]} | {run.hook} | {int((ratio >= 0.8).sum())} of "
            f"{len(features)} | {ratio.median():.2f} | {ratio.min():.2f} | "
            f"{int((random >= 0.8).sum())} | {random.median():.2f} | {seconds:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
