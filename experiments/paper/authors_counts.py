"""What the authors published of the pair behind the paper's figures 8 and 9: how often each feature is selected.

    git clone https://github.com/ZachData/SPAR-Variational-Sparse-Autoencoders
    python -m experiments.paper.authors_counts SPAR-Variational-Sparse-Autoencoders

Reads two files of its commit 8e1581a, writes counts alone to results/authors_counts.json, and prints them. The tables beside ours
are written by `python -m experiments.recompute --write`. Pythia-70M deduped, blocks.3, F = 8,192, k = 256.
"""

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from experiments import raw_results
from experiments.raw_results import RESULTS

COMMIT, FOLDER = "8e1581a", "comprehensive_histogram_analysis"
SAES = {
    "TopK": "TopK_SAE_pythia70m_d8192_k256_auxk0.03125_lr_auto",
    "vSAE": "VSAETopK_pythia70m_d8192_k256_lr0.0008_kl1.0_aux0_fixed_var",
}
K, OURS = 256, 50_000
"""OURS: the tokens on which as_published.py counts."""


def counts(repository: Path, name: str) -> dict[str, Any]:
    """How many features are ever selected, and how many often."""
    path = f"{COMMIT}:{FOLDER}/{name}/all_histograms_{name}.npz"
    command = ["git", "-C", str(repository), "show", path]
    found = subprocess.run(command, capture_output=True)
    if found.returncode:
        raise SystemExit(
            f"{repository} has no {path} ({found.stderr.decode().strip()}); expected a clone of the authors' repository"
        )
    with np.load(io.BytesIO(found.stdout), allow_pickle=False) as file:
        count_F, largest_F = file["feature_selection_counts"], file["feature_max_activations"]
        highest = float(file["feature_max_bin_edges"][-1])
        in_histogram = int(file["feature_max_histogram"].sum())
    tokens = int(count_F.sum()) // K
    is_rare_F = count_F < 0.1 * tokens * K / len(count_F)
    is_selected_F = count_F > 0
    return {
        "name": name,
        "tokens": tokens,
        "dict_size": len(count_F),
        "selected": int(is_selected_F.sum()),
        "highest": highest,
        "beyond": int((is_selected_F & (largest_F > highest)).sum()),
        "in_histogram": in_histogram,
        "near_dead_0.1": float(is_rare_F.mean()),
        "often": int((~is_rare_F).sum()),
        # if tokens were independent
        "selected_in_fewer": float((1 - (1 - OURS / tokens) ** count_F).sum()),
    }


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    content = {
        "commit": COMMIT,
        "fewer_tokens": OURS,
        "saes": {arm: counts(Path(sys.argv[1]), name) for arm, name in SAES.items()},
    }
    raw_results.write(RESULTS / "authors_counts.json", content)
    for arm, found in content["saes"].items():
        print(arm, found)


if __name__ == "__main__":
    main()
