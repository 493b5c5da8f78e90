"""Do return and truth agree after long training? And does a score from one SAE order its features by truth?

    python -m experiments.ground_truth.long_runs train            # draw, train, measure, write the page
    python -m experiments.ground_truth.long_runs tables           # write the page's tables again

    ... train --sizes 1024 --steps 2000                           # these sizes and lengths alone

PROTOCOL.md was written before. It can be stopped at any time: a cell (a size and a length) that has its rows is not run
again. The samples are drawn once, which needs [synthetic].
"""

import time
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch as t
from safetensors.numpy import save_file

from dictionary_learning_ext import RunConfig
from dictionary_learning_ext.activations.synthetic import SyntheticSource, draw_model
from dictionary_learning_ext.config.sae import SAEConfig
from dictionary_learning_ext.features.reproducibility import (
    RETURNING,
    matching,
    reproducibility,
)
from dictionary_learning_ext.features.return_score import return_scores
from experiments import raw_results
from experiments.pages import each, table
from experiments.raw_results import RESULTS, about, about_line
from experiments.reproducibility.settings import RIVALS, SAMPLED, Options, Setting
from experiments.return_score.fitting import auc
from experiments.stages import Page, Stages
from experiments.trained_saes import FIRST_HOOK, directions_of, metrics_of, train_missing

MODEL, K, SEEDS, LENGTHS, SIZES = "synthetic:small", 8, (0, 1), (2000, 16_000), (1024, 512, 2048)
SAMPLES, PART = 1_500_000, 1 << 16
BATCH, TOKENS = 1024, 50_000
RUNS, RAW = Path("runs/truth"), RESULTS / "long_runs.json"
ARMS: dict[str, Options] = {
    "TopK": {"architecture": "top_k"},
    "noise alone": SAMPLED["noise 0.3, penalty 0"],
    "noise and penalty": SAMPLED["noise 0.3, penalty 0.03"],
    "Probabilistic TopK": RIVALS["Probabilistic TopK, T from 1"],
}
SHOWN = {
    "fve": "FVE",
    "true_mcc": "true MCC",
    "true": "true, 0.7",
    "pw_mcc": "PW-MCC",
    "returning": "returning, 0.7",
    "near_dead_0.1": "near-dead < 0.1",
    "auc_return": "AUC, return",
    "auc_truth": "AUC, truth",
    "rate_return": "AUC of firing rate, return",
    "rate_truth": "truth",
}


def sae_of(own: Options, size: int, steps: int, seed: int) -> SAEConfig:
    setting = Setting("", "", 128, dict_size=size, k=K, steps=steps)
    return setting.sae(own, seed)


def draw() -> tuple[Path, np.ndarray]:
    """The folder of samples, written once, and the true directions."""
    folder, truth = RUNS / "samples", RUNS / "truth.npy"
    if not truth.exists():
        source = SyntheticSource(MODEL, draw_model(MODEL), out_batch_size=PART)
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(-(-SAMPLES // PART)):
            x_ND = next(source).numpy()[: SAMPLES - number * PART]
            save_file({"activations": x_ND}, folder / f"{number:03d}.safetensors")
        np.save(truth, source.vectors_TD.numpy())
    return folder, np.load(truth)


def train(arguments: Namespace) -> None:
    t.set_num_threads(arguments.threads)
    folder, truth_TD = draw()
    for size in arguments.sizes:
        for steps in arguments.steps:
            part, began = f"F = {size:,}, {steps:,} steps", time.monotonic()
            if part in read()["parts"]:
                continue
            rows = [{"part": part} | row for row in rows_of(folder, truth_TD, size, steps)]
            content = read()
            content["rows"] += rows
            content["parts"][part] = about(began)
            raw_results.write(RAW, content)


def read() -> dict[str, Any]:
    return raw_results.read_or(RAW, {"parts": {}, "rows": []})


def rows_of(samples: Path, truth_TD: np.ndarray, size: int, steps: int) -> list[dict[str, Any]]:
    """A row for each SAE of a cell."""
    folders = trained(samples, size, steps, ARMS)
    return [row for arm in ARMS for row in _rows_of_arm(arm, folders[arm], truth_TD)]


def trained(
    samples: Path, size: int, steps: int, arms: Mapping[str, Options]
) -> dict[str, list[Path]]:
    """Each arm's folders, one of each seed."""
    folders: dict[str, list[Path]] = {arm: [] for arm in arms}
    for seed in SEEDS:
        run = RunConfig(
            activations=str(samples),
            hook=FIRST_HOOK,
            data_seed=seed,
            text_passes=2 + steps * BATCH // SAMPLES,
            steps=steps,
            batch_size=BATCH,
            eval_tokens=TOKENS,
            log_steps=steps // 4,
            save_every="none",
            overwrite=True,
        )
        saes = {arm.replace(" ", "-"): sae_of(own, size, steps, seed) for arm, own in arms.items()}
        found = train_missing(run, RUNS / f"F{size}_{steps}" / str(seed), saes)
        for arm in arms:
            folders[arm].append(found[arm.replace(" ", "-")])
    return folders


def _rows_of_arm(arm: str, folders: list[Path], truth_TD: np.ndarray) -> list[dict[str, Any]]:
    unit = {str(folder): directions_of(folder) for folder in folders}
    found = reproducibility({name: t.from_numpy(each) for name, each in unit.items()})
    scores = return_scores(folders, TOKENS)
    rows = []
    for seed, name in enumerate(unit):
        true_F = _true_match(unit[name], truth_TD)
        score = scores[name]
        labels = {"return": found.scores(name).returns_F > 0, "truth": true_F >= RETURNING[0]}
        aucs = {f"auc_{what}": auc(score.score_F, own_F[None]) for what, own_F in labels.items()}
        rate_F = np.nan_to_num(score.signals["firing_rate"])
        rows.append(
            {
                "arm": arm,
                "seed": seed,
                "true_mcc": float(true_F.sum()) / min(len(true_F), len(truth_TD)),
                "true": float(labels["truth"].mean()),
                "pw_mcc": found.pair.pw_mcc,
                "returning": float(labels["return"].mean()),
                **{f"rate_{what}": auc(rate_F, own_F[None]) for what, own_F in labels.items()},
                **aucs,
                **metrics_of(Path(name), ("fve", "near_dead_0.1")),
            }
        )
    return rows


def true_matches(folders: list[Path], truth_TD: np.ndarray) -> list[dict[str, Any]]:
    """Of each SAE, how well the features that come back match the truth, and the others."""
    unit = {str(folder): directions_of(folder) for folder in folders}
    found = reproducibility({name: t.from_numpy(each) for name, each in unit.items()})
    rows = []
    for seed, (name, unit_FD) in enumerate(unit.items()):
        true_F, returns_F = _true_match(unit_FD, truth_TD), found.scores(name).returns_F > 0
        of_groups = {
            "true_returning": float(true_F[returns_F].mean()),
            "true_others": float(true_F[~returns_F].mean()),
        }
        rows.append({"seed": seed, "share": float(returns_F.mean())} | of_groups)
    return rows


def _true_match(unit_FD: np.ndarray, truth_TD: np.ndarray) -> np.ndarray:
    """(F,), each feature's absolute cosine with its partner among the true ones; 0 for those left over."""
    n = max(len(unit_FD), len(truth_TD))
    padded = [np.pad(one, ((0, n - len(one)), (0, 0))) for one in (unit_FD, truth_TD)]
    return matching(*padded, signed=False, exact_up_to=n)[1][: len(unit_FD)]


def tables(content: dict[str, Any]) -> list[str]:
    lines = [f"{MODEL}, D = 128, 1,024 true features, k = {K}; one number a seed.", ""]
    for part, own in content["parts"].items():
        rows = {}
        for arm in ARMS:
            of_arm = [row for row in content["rows"] if (row["part"], row["arm"]) == (part, arm)]
            rows[arm] = [each([row[name] for row in of_arm]) for name in SHOWN]
        lines += [f"## {part}", "", *table("", rows, list(SHOWN.values())), ""]
        lines += [f"{about_line(own)}.", ""]
    return lines


def options(parser: ArgumentParser) -> None:
    parser.add_argument("--sizes", type=int, nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--steps", type=int, nargs="+", choices=LENGTHS, default=list(LENGTHS))
    parser.add_argument("--threads", type=int, default=1, help="of torch")


STAGES = Stages("ground_truth.long_runs", {"train": train}, {"long_runs": Page(tables)}, options)

if __name__ == "__main__":
    STAGES.run()
