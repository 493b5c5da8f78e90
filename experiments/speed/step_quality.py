"""That the fast step learns what upstream's and fp32's do: FVE after the same tokens.

    python -m experiments.speed.step_quality train     # about 3 minutes
    python -m experiments.speed.step_quality tables    # write the page again

On the embedded model, all from one buffer of each dtype: upstream's TopK, the vSAE that equals it
(point, rectified, no KL), and vSAEs of each kind of noise. Three seeds. With bfloat16 the language
model, the buffer and the matmuls are in bf16, so the last columns show all that the setting changes.
"""

import argparse
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from dictionary_learning_ext import RunConfig
from dictionary_learning_ext.config.sae import SAEConfig
from experiments import raw_results
from experiments.pages import each, table
from experiments.raw_results import RESULTS
from experiments.speed.timing import header
from experiments.stages import Stages
from experiments.trained_saes import metrics_of, train_missing

STEPS, SEEDS = 600, (0, 1, 2)
SAES = {
    "upstream TopK": SAEConfig(architecture="top_k"),
    "point, rectified, beta 0": SAEConfig(posterior="point", rectify=True, beta=0.0),
    "the paper's equations": SAEConfig(beta=0.01),
    "noise on values, KL on selected": SAEConfig(
        noise_on="values", kl_scope="selected", beta=0.1, sigma=0.3
    ),
    "selection, annealed": SAEConfig(
        noise_on="selection", noise_anneal_steps=STEPS // 2, beta=0.0, sigma=0.3
    ),
}
SHARED = {"k": 16, "dict_size": 512, "lr": 2e-3, "decay_start": STEPS // 2}


def measure(_: argparse.Namespace) -> None:
    fve: dict[str, dict[str, list[float]]] = {name: {} for name in SAES}
    for dtype in ("float32", "bfloat16"):
        with tempfile.TemporaryDirectory() as folder:
            saes = {
                f"{i}_{seed}": replace(sae, seed=seed, **SHARED)
                for i, sae in enumerate(SAES.values())
                for seed in SEEDS
            }
            folders = train_missing(RunConfig(steps=STEPS, dtype=dtype), Path(folder), saes)
            for i, name in enumerate(SAES):
                fve[name][dtype] = [
                    metrics_of(folders[f"{i}_{seed}"], ["fve"])["fve"] for seed in SEEDS
                ]
    setting = f"embedded model, layer 0, D=128 F=512 k=16, {STEPS} steps of 1,024; seeds 0, 1, 2"
    content = {"header": header(setting, "dictionary-learning"), "fve": fve}
    raw_results.write(RESULTS / "benchmark_quality.json", content)


def tables(content: dict[str, Any]) -> list[str]:
    """The page, from the raw results alone."""
    fve = content["fve"]
    upstream = statistics.mean(fve["upstream TopK"]["float32"])
    rows = {}
    for name, by_dtype in fve.items():
        means = {dtype: statistics.mean(values) for dtype, values in by_dtype.items()}
        rows[name] = [
            *(each(by_dtype[dtype], 4) for dtype in ("float32", "bfloat16")),
            f"{means['bfloat16'] - means['float32']:+.4f}",
            f"{means['bfloat16'] - upstream:+.4f}",
        ]
    columns = ["float32", "bfloat16", "bf16 - fp32", "bf16 - upstream in fp32"]
    return [content["header"], "", *table("FVE", rows, columns)]


STAGES = Stages("speed.step_quality", {"train": measure}, tables)

if __name__ == "__main__":
    STAGES.run()
