"""How much memory does it take to collect the features of a report?

    python -m experiments.robustness.report_memory bench     # about 22 minutes
    python -m experiments.robustness.report_memory tables    # write the page again

Random activations (D = 128) go through TopK SAEs with random weights, in contexts of 128 tokens. The
language model is left out: it takes the same memory whatever the dictionary. Each row is measured in a
process of its own. Its peak resident memory is read before and after collecting.
"""

import argparse
import json
import resource
import time
from typing import Any

from experiments import raw_results
from experiments.pages import table
from experiments.raw_results import RESULTS, about_line
from experiments.stages import Stages, in_child

ROWS = ((2304, 100_000), (2304, 1_000_000), (16_384, 100_000), (16_384, 1_000_000))
K, WIDTH, CTX_LEN, CONTEXTS, SEED = 64, 128, 128, 32, 0


def peak_mb() -> float:
    """The most memory this process has had, MB (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def collect(part: str) -> str:
    """Collect in this process; a row as JSON.

    Args:
        part: dict_size and the number of tokens, e.g. "2304 100000".
    """
    import torch as t
    from dictionary_learning.trainers.top_k import AutoEncoderTopK

    from dictionary_learning_ext.activations.inputs import ContextBatch
    from dictionary_learning_ext.features.collector import FeatureCollector

    dict_size, tokens = map(int, part.split())
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
    row = {
        "dict_size": dict_size,
        "tokens": statistics.tokens,
        "before": before,
        "peak": peak_mb(),
        "dense": statistics.tokens * dict_size * 4 / 2**20,
        "seconds": seconds,
    }
    return json.dumps(row)


def measure(_: argparse.Namespace) -> None:
    rows = [
        json.loads(in_child(STAGES.name, "bench", "--only", f"{dict_size} {tokens}"))
        for dict_size, tokens in ROWS
    ]
    content = {"settings": {"date": time.strftime("%Y-%m-%d")}, "rows": rows}
    raw_results.write(RESULTS / "report_memory.json", content)


def tables(content: dict[str, Any]) -> list[str]:
    """The page, from the raw results alone."""
    rows = {
        f"{row['dict_size']:,} features, {row['tokens']:,} tokens": [
            f"{row['before']:,.0f}",
            f"{row['peak']:,.0f}",
            f"{row['peak'] - row['before']:,.0f}",
            f"{row['dense']:,.0f}",
            f"{row['seconds']:.0f}",
        ]
        for row in content["rows"]
    }
    columns = ["before", "peak", "added", "tokens x F in fp32", "seconds"]
    return [
        f"{about_line(content['settings'])}, seed {SEED}. Random "
        f"activations of width {WIDTH}, random TopK SAEs, k = {K}, one thread. MB of resident "
        "memory: before (torch and the SAE), the peak, the difference, and what all activations "
        "would take at once.",
        "",
        *table("", rows, columns),
    ]


STAGES = Stages("robustness.report_memory", {"bench": measure}, tables, child=collect)

if __name__ == "__main__":
    STAGES.run()
