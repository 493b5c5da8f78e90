"""That the fast step learns what upstream's and fp32's do: FVE after the same tokens.

    python -m experiments.speed.quality     # about 3 minutes

On the embedded model, all from one buffer of each dtype: upstream's TopK; the vSAE that is it (point,
rectified, no KL), and vSAEs of each kind of noise. Three seeds. With bfloat16 the language model, the
buffer and the matmuls are in bf16, so that the last columns hold all that the setting changes.
"""

import tempfile

from dictionary_learning_ext import RunConfig, train
from dictionary_learning_ext.config.sae_config import SAEConfig
from dictionary_learning_ext.run_folder.reading import read_metrics
from experiments.pages import table, write
from experiments.speed.timing import header

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


def main() -> None:
    from dataclasses import replace

    fve: dict[str, dict[str, list[float]]] = {name: {} for name in SAES}
    for dtype in ("float32", "bfloat16"):
        with tempfile.TemporaryDirectory() as folder:
            run = RunConfig(steps=STEPS, dtype=dtype, save_dir=folder, overwrite=True)  # pyright: ignore
            saes = {
                f"{i}_{seed}": replace(sae, seed=seed, **SHARED)
                for i, sae in enumerate(SAES.values())
                for seed in SEEDS
            }
            folders = train(run, saes)
            for i, name in enumerate(SAES):
                figures = [read_metrics(folders[f"{i}_{seed}"])["fve"] for seed in SEEDS]
                fve[name][dtype] = [float(value) for value in figures]  # pyright: ignore

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    rows = {
        name: [
            " / ".join(f"{v:.4f}" for v in by_dtype["float32"]),
            " / ".join(f"{v:.4f}" for v in by_dtype["bfloat16"]),
            f"{mean(by_dtype['bfloat16']) - mean(by_dtype['float32']):+.4f}",
            f"{mean(by_dtype['bfloat16']) - mean(fve['upstream TopK']['float32']):+.4f}",
        ]
        for name, by_dtype in fve.items()
    }
    setting = f"embedded model, layer 0, D=128 F=512 k=16, {STEPS} steps of 1,024; seeds 0, 1, 2"
    lines = [
        "`python -m experiments.speed.quality`",
        "",
        header(setting, "dictionary-learning"),
        "",
        *table("FVE", rows, ["float32", "bfloat16", "bf16 - fp32", "bf16 - upstream in fp32"]),
    ]
    write("benchmark_quality.md", lines)


if __name__ == "__main__":
    main()
