"""How much memory does it take to collect the features of a report?

Random activations (D = 128) through TopK SAEs with random weights, contexts of 128 tokens: the
language model is left out, as it takes the same memory whatever the dictionary. Each row is a
process of its own; its peak resident memory is read before and after collecting.

    python -m experiments.robustness.report_memory > experiments/results/report_memory.md
"""

import resource
import subprocess
import sys
import time

ROWS = ((2304, 100_000), (2304, 1_000_000), (16_384, 100_000), (16_384, 1_000_000))
K, WIDTH, CTX_LEN, CONTEXTS, SEED = 64, 128, 128, 32, 0


def peak_mb() -> float:
    """The most memory this process has had, MB (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def collect(dict_size: int, tokens: int) -> None:
    """Collect in this process and print a row."""
    import torch as t
    from dictionary_learning.trainers.top_k import AutoEncoderTopK

    from dictionary_learning_ext.activations.contexts import ContextBatch
    from dictionary_learning_ext.features.collector import FeatureCollector

    t.manual_seed(SEED)
    t.set_num_threads(1)
    sae = AutoEncoderTopK(WIDTH, dict_size, K).requires_grad_(False)
    before = peak_mb()
    start = time.monotonic()
    collector = FeatureCollector(sae, tokens, seed=SEED)
    wanted_BL = t.ones(CONTEXTS, CTX_LEN, dtype=t.bool)
    for _ in range(tokens // (CONTEXTS * CTX_LEN)):
        ids_BL = t.randint(50_000, (CONTEXTS, CTX_LEN))
        collector.add(ContextBatch(ids_BL, wanted_BL, t.randn(CONTEXTS, CTX_LEN, WIDTH)))
    statistics = collector.statistics()
    seconds = time.monotonic() - start
    dense = statistics.tokens * dict_size * 4 / 2**20
    print(
        f"| {dict_size:,} | {statistics.tokens:,} | {before:,.0f} | {peak_mb():,.0f} | "
        f"{peak_mb() - before:,.0f} | {dense:,.0f} | {seconds:.0f} |"
    )


def main() -> None:
    if len(sys.argv) == 3:
        collect(int(sys.argv[1]), int(sys.argv[2]))
        return
    print("# Peak memory while collecting a report's features\n")
    print(
        f"`experiments/report_memory.py`, {time.strftime('%Y-%m-%d')}, seed {SEED}. Random "
        f"activations of width {WIDTH}, random TopK SAEs, k = {K}, one thread. MB of resident "
        "memory: before (torch and the SAE), the peak, the difference, and what all activations "
        "would take at once.\n"
    )
    print("| dict_size | tokens | before | peak | added | tokens x F in fp32 | seconds |")
    print("|---:|---:|---:|---:|---:|---:|---:|", flush=True)
    for row in ROWS:
        subprocess.run([sys.executable, __file__, *map(str, row)], check=True)


if __name__ == "__main__":
    main()
