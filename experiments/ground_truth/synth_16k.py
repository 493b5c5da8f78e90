"""How much of SynthSAEBench-16k's truth do TopK and vSAEs find?

    python -m experiments.ground_truth.synth_16k train                     # draw, train, measure, write the page
    python -m experiments.ground_truth.synth_16k train --samples 200000000 # the benchmark's protocol, on a GPU
    python -m experiments.ground_truth.synth_16k tables                    # write the page's tables again

The benchmark (Chanin & Garriga-Alonso 2026, arXiv 2602.14687) trains SAEs of width 4,096 on 200 million samples in
batches of 1,024. A laptop has time for about a two-hundredth of that: each row says how many samples it saw. Everything
needs [saelens]. It can be stopped at any time: what is drawn or trained is kept.
"""

import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import torch as t
from safetensors.torch import save_file

from dictionary_learning_ext import RunConfig, load_dictionary
from dictionary_learning_ext.activations.inputs import open_inputs
from dictionary_learning_ext.activations.synthetic import SyntheticSource, draw_model
from dictionary_learning_ext.config.synthetic_models import NO_HOOK, settings_of_run
from dictionary_learning_ext.evaluation.measure import measure
from dictionary_learning_ext.features.directions import decoder_directions
from dictionary_learning_ext.features.reproducibility import RETURNING, reproducibility
from dictionary_learning_ext.run_folder.files import WEIGHTS
from experiments import raw_results
from experiments.pages import each, table
from experiments.raw_results import RESULTS, about, about_line
from experiments.reproducibility.settings import RIVALS, SAMPLED, Options, Setting
from experiments.stages import Page, Stages
from experiments.trained_saes import train_missing

NAME = "synthetic:bench-16k"
WIDTH, K, SEEDS, BATCH = 4096, 25, (0, 1), 1024
PROTOCOL = 200_000_000
LR = {PROTOCOL: 3e-4}
"""The protocol's; shorter runs have 1e-3, with which they come further."""
PART, TOKENS = 1 << 15, 20_000
RUNS, RAW = Path("runs/synth_16k"), RESULTS / "synth_16k.json"
ARMS: dict[str, Options] = {
    "TopK": {"architecture": "top_k"},
    "recommended": SAMPLED["noise 0.3, penalty 0.03"],
    "Probabilistic TopK": RIVALS["Probabilistic TopK, T from 1"],
}
SHOWN = {
    "fve": "FVE",
    "true_mcc": "true MCC",
    "firing_f1": "F1 of firing",
    "uniqueness": "uniqueness",
    "near_dead_0.1": "near-dead < 0.1",
    "pw_mcc": "PW-MCC",
    "returning": "returning, 0.7",
}


def drawn() -> str:
    """The benchmark's model, drawn once and kept: as a `--model`."""
    folder = RUNS / "model"
    if not folder.exists():
        unfinished = folder.with_suffix(".unfinished")
        draw_model(NAME).save(unfinished)
        unfinished.rename(folder)
    return f"synthetic:{folder}"


def samples_of(model: str, samples: int) -> Path:
    """The folder of that many samples. Parts that are there are not drawn again."""
    folder = RUNS / f"samples_{samples}"
    folder.mkdir(parents=True, exist_ok=True)
    source = SyntheticSource(model, draw_model(model), out_batch_size=BATCH)
    for number in range(-(-samples // PART)):
        path = folder / f"{number:05d}.safetensors"
        if path.exists():
            source.tokens_seen += PART
            continue
        # Batches, since SAELens holds several values for each true feature and row.
        x_ND = t.cat([next(source) for _ in range(PART // BATCH)])
        x_ND = x_ND[: samples - number * PART].contiguous()
        save_file({"activations": x_ND}, path.with_suffix(".unfinished"))
        path.with_suffix(".unfinished").rename(path)
    return folder


def train(arguments: Namespace) -> None:
    t.set_num_threads(arguments.threads)
    began, samples = time.monotonic(), arguments.samples
    model = drawn()
    steps = samples // BATCH
    setting = Setting("", "", 768, dict_size=WIDTH, k=K, steps=steps, lr=LR.get(samples, 1e-3))
    folders: dict[tuple[str, int], Path] = {}
    source = samples_of(model, samples)
    for seed in SEEDS:
        run = RunConfig(
            activations=str(source),
            data_seed=seed,
            text_passes=2,  # the last 5% are held out
            steps=steps,
            batch_size=BATCH,
            eval_tokens=0,  # the truth is not in the folder: rows_of measures
            log_steps=max(1, steps // 4),
            save_every="none",
            overwrite=True,
        )
        saes = {arm.replace(" ", "-"): setting.sae(own, seed) for arm, own in ARMS.items()}
        found = train_missing(run, RUNS / str(samples) / str(seed), saes, finished=WEIGHTS)
        folders |= {(arm, seed): found[arm.replace(" ", "-")] for arm in ARMS}
    content = raw_results.read_or(RAW, {"parts": {}, "rows": []})
    part = str(samples)
    content["rows"] = [row for row in content["rows"] if row["samples"] != samples]
    content["rows"] += [{"samples": samples} | row for row in rows_of(model, folders)]
    content["parts"][part] = about(began, content["parts"].get(part))
    raw_results.write(RAW, content)


def rows_of(model: str, folders: dict[tuple[str, int], Path]) -> list[dict[str, Any]]:
    """A row for each SAE: SAELens's measures of the truth, and return across the seeds of its arm."""
    loaded = {key: load_dictionary(folder) for key, folder in folders.items()}
    inputs = open_inputs(RunConfig(**settings_of_run(model), eval_tokens=TOKENS), [NO_HOOK])
    saes = {
        str(key): (sae, config["trainer"]["norm_factor"]) for key, (sae, config) in loaded.items()
    }
    measured = measure(saes, inputs.held_out(NO_HOOK, TOKENS), TOKENS)
    rows = []
    for arm in ARMS:
        own = {str(seed): decoder_directions(loaded[arm, seed][0]) for seed in SEEDS}
        found = reproducibility(own)
        for seed in SEEDS:
            metrics = measured[str((arm, seed))]
            row = {"arm": arm, "seed": seed, "pw_mcc": found.pair.pw_mcc}
            row["returning"] = found.returning(str(seed))[RETURNING[0]]
            rows.append(row | {key: metrics[key] for key in SHOWN if key in metrics})
    return rows


def tables(content: dict[str, Any]) -> list[str]:
    lines = []
    for part, own in content["parts"].items():
        rows = {}
        for arm in ARMS:
            of_arm = [r for r in content["rows"] if (str(r["samples"]), r["arm"]) == (part, arm)]
            rows[arm] = [f"{int(part):,}", *(each([r.get(key) for r in of_arm]) for key in SHOWN)]
        lines += [*table("", rows, ["samples", *SHOWN.values()]), "", f"{about_line(own)}.", ""]
    return lines


def options(parser: ArgumentParser) -> None:
    parser.add_argument("--samples", type=int, default=1_000_000, help="each SAE sees this many")
    parser.add_argument("--threads", type=int, default=2, help="of torch")


STAGES = Stages("ground_truth.synth_16k", {"train": train}, {"synth_16k": Page(tables)}, options)

if __name__ == "__main__":
    STAGES.run()
