"""What attention sinks do to an SAE and to its metrics: SmolLM2-135M at a middle layer.

    pip install gguf accelerate
    python -m experiments.language_models.smollm2 runs/smollm2-135m        # the language model, once
    python -m experiments.language_models.attention_sinks train    # train, measure, write the page
    python -m experiments.language_models.attention_sinks tables   # write the page's tables again

TopK and the preset `recommended` as it was then are trained on all tokens, and without those whose norm is over 10
times the median. The language model reads the text once: its activations are kept in a file, and all
four SAEs are trained on them, several times over. Each is measured both ways: on all tokens, with all
positions replaced in CE, and with the sinks left out and left alone.

What is read or trained is not done again at the same options: to continue, run the stage again.
"""

import argparse
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch as t

from dictionary_learning_ext import RunConfig, load_dictionary
from dictionary_learning_ext.activations.inputs import open_inputs, open_model
from dictionary_learning_ext.activations.language_models import CausalLM, load_model
from dictionary_learning_ext.activations.positions import PositionRule
from dictionary_learning_ext.activations.rows import ActivationReader
from dictionary_learning_ext.activations.text import open_text
from dictionary_learning_ext.activations.tokens import ContextStream
from dictionary_learning_ext.config.presets import preset
from dictionary_learning_ext.config.sae import SAEConfig
from dictionary_learning_ext.evaluation.measure import measure
from dictionary_learning_ext.run_folder.files import CONFIG, WEIGHTS, replacing, write_json
from dictionary_learning_ext.run_folder.weights import save_weights
from dictionary_learning_ext.trainers.build import build_trainer
from experiments import raw_results
from experiments.pages import table
from experiments.raw_results import RESULTS, about, about_line
from experiments.stages import Page, Stages

MULTIPLE, BATCH, LR, CTX_LEN, AT_ONCE = 10.0, 1024, 1e-3, 128, 16
MODELS = ("TopK", "recommended")
RECOMMENDED_THEN = {"posterior": "fixed", "noise_to_signal": 0.1, "beta": 0.01}
"""What the preset had when this was measured."""
TRAINED_ON = ("all tokens", "no sinks")
MEASURED = ("fve", "frac_recovered", "near_dead_0.1", "alive", "positions_left_alone")
SHOWN_LAYERS = (0, 1, 2, 5, 10, 15, 20, 25, 28)


def train_and_measure(arguments: argparse.Namespace) -> None:
    """Read, train and evaluate what is not there yet, and write the raw results."""
    began = time.monotonic()
    t.set_num_threads(arguments.threads)
    run = RunConfig(
        model=arguments.lm,
        hook=f"blocks.{arguments.layer}.hook_resid_post",
        ctx_len=CTX_LEN,
        eval_documents=arguments.eval_documents,
    )
    x_ND, kept_N = read_once(run, arguments)
    folders: dict[tuple[str, str], Path] = {}
    for trained_on in TRAINED_ON:
        rows_ND = x_ND if trained_on == "all tokens" else x_ND[kept_N]
        for model in MODELS:
            folder = folder_of(model, trained_on, arguments)
            folders[model, trained_on] = folder
            if not (folder / WEIGHTS).exists():
                train_one(
                    config_of(model, rows_ND.shape[1], arguments), rows_ND, folder, run, arguments
                )
    language_model = load_model(run)  # in float32: CE in bfloat16 is coarse
    saes = {}
    for (model, trained_on), folder in folders.items():
        sae, config = load_dictionary(folder)
        saes[f"{model}, {trained_on}"] = (sae, config["trainer"]["norm_factor"])
    rows = {name: {"name": name} for name in saes}
    for way, multiple in (("all", None), ("left_alone", MULTIPLE)):
        of_way = replace(run, max_norm_multiple=multiple)
        inputs = open_inputs(of_way, [run.hook], language_model=language_model)
        held_out = inputs.held_out(run.hook, arguments.eval_tokens)
        for name, metrics in measure(saes, held_out, arguments.eval_tokens).items():
            rows[name] |= {way: {key: metrics[key] for key in MEASURED}}
    settings = {
        **about(began),
        "layer": arguments.layer,
        "tokens": len(x_ND),
        "sinks": len(x_ND) - int(kept_N.sum()),
        "setting": f"{Path(arguments.lm).name}, {run.hook}, D = {x_ND.shape[1]}, "
        f"F = {arguments.dict_size}, k = {arguments.k}, {arguments.steps:,} steps of {BATCH:,} tokens, "
        f"lr {LR:g} and falling in the last quarter, sqrt_d, activations read in bfloat16, seed 0; "
        f"measured in float32 on {arguments.eval_tokens:,} held-out tokens, CE on "
        f"{arguments.eval_documents} held-out documents",
    }
    norms = norms_by_layer(language_model)
    raw_results.write(
        arguments.raw, {"settings": settings, "rows": list(rows.values()), "norms": norms}
    )


def read_into(arguments: argparse.Namespace) -> Path:
    """The folder of what was read of one language model and layer, and of the SAEs trained on it."""
    lm = arguments.lm.strip("/").replace("/", "_")
    return arguments.runs / f"{lm}_layer_{arguments.layer}_{arguments.tokens}_tokens"


def folder_of(model: str, trained_on: str, arguments: argparse.Namespace) -> Path:
    """The run folder of an SAE, named by all that it was trained with."""
    sizes = f"F_{arguments.dict_size}_k_{arguments.k}_{arguments.steps}_steps"
    return read_into(arguments) / f"{model}_{trained_on.replace(' ', '_')}_{sizes}"


def read_once(run: RunConfig, arguments: argparse.Namespace) -> tuple[t.Tensor, t.Tensor]:
    """Activations, (N, D) in bfloat16, and which of them are no sinks; read once, then from a file."""
    path = read_into(arguments) / "rows.pt"
    if not path.exists():
        model, hook = open_model(replace(run, dtype="bfloat16"))
        rule = PositionRule(max_norm_multiple=MULTIPLE)
        reader = ActivationReader(model.module, hook.place, rule)
        contexts = ContextStream(open_text(run.data, seed=0), model.tokenizer, CTX_LEN)
        x, kept, n = [], [], 0
        while n < arguments.tokens:
            input_ids_BL, mask_BL = contexts.next_batch(AT_ONCE)
            read = reader.read(input_ids_BL, mask_BL, reader.rule.by_token(input_ids_BL, mask_BL))
            x.append(read.x_BLD.flatten(0, 1).clone())
            kept.append(read.wanted_BL.flatten())
            n += len(x[-1])
        with replacing(path) as temporary:
            t.save({"x_ND": t.cat(x), "kept_N": t.cat(kept)}, temporary)
    rows = t.load(path)
    return rows["x_ND"], rows["kept_N"]


def config_of(model: str, width: int, arguments: argparse.Namespace) -> SAEConfig:
    """TopK, or the preset, at one size and learning rate."""
    sizes: dict[str, Any] = {"k": arguments.k, "dict_size": arguments.dict_size, "lr": LR}
    config = replace(preset("recommended").sae, **sizes, **RECOMMENDED_THEN)
    if model == "TopK":
        config = SAEConfig(architecture="top_k", decay_start=config.decay_start, **sizes)
    return config.resolve(arguments.steps, BATCH).with_sigma(width, "sqrt_d")


def train_one(
    sae: SAEConfig, rows_ND: t.Tensor, folder: Path, run: RunConfig, arguments: argparse.Namespace
) -> None:
    """Train on the rows, in a new order each pass, and write ae.pt and config.json."""
    width = rows_ND.shape[1]
    squares = sum(float(part.double().square().sum()) for part in rows_ND.split(1 << 14))
    norm_factor = math.sqrt(squares / len(rows_ND) / width)
    trainer = build_trainer(
        sae,
        steps=arguments.steps,
        activation_dim=width,
        layer=arguments.layer,
        lm_name=run.model,
        hook=run.hook,
        device="cpu",
        dtype="bfloat16",
        name=folder.name,
    )
    generator, order = t.Generator().manual_seed(0), t.empty(0, dtype=t.long)
    for step in range(arguments.steps):
        while len(order) < BATCH:
            order = t.cat([order, t.randperm(len(rows_ND), generator=generator)])
        trainer.update(step, rows_ND[order[:BATCH]].float() / norm_factor)
        order = order[BATCH:]
    if failure := trainer.check(arguments.steps):
        raise SystemExit(f"{folder}: {failure.what} at step {failure.step}")
    write_json(folder / CONFIG, {"trainer": trainer.config | {"norm_factor": norm_factor}})
    save_weights(folder / WEIGHTS, trainer.ae, norm_factor)


@t.no_grad()
def norms_by_layer(model: CausalLM) -> list[dict[str, float]]:
    """The norms after each block but the last, over some contexts of held-out text."""
    contexts = ContextStream(open_text("embedded", split="heldout"), model.tokenizer, CTX_LEN)
    input_ids_BL, _ = contexts.next_batch(AT_ONCE)
    states = model.module(input_ids_BL, output_hidden_states=True).hidden_states
    found = []
    for layer, x_BLD in enumerate(states[1:-1]):  # the last is behind the final norm
        norms_BL = x_BLD.float().norm(dim=-1)
        is_far_BL = norms_BL > MULTIPLE * norms_BL.median()
        found.append(
            {
                "layer": layer,
                "median": float(norms_BL.median()),
                "largest": float(norms_BL.max()),
                "far": float(is_far_BL.double().mean()),
                "far_at_0": float(is_far_BL[:, 0].double().mean()),
            }
        )
    return found


def tables(content: dict[str, Any]) -> list[str]:
    settings, rows, norms = content["settings"], content["rows"], content["norms"]

    def three(value: float | None) -> str:
        return "" if value is None else f"{value:.3f}"

    cells = {
        row["name"].replace(", ", ", trained on "): [
            three(row["all"]["fve"]),
            three(row["left_alone"]["fve"]),
            three(row["all"]["frac_recovered"]),
            three(row["left_alone"]["frac_recovered"]),
            three(row["left_alone"]["alive"]),
            three(row["left_alone"]["near_dead_0.1"]),
        ]
        for row in rows
    }
    columns = ["FVE, all tokens", "FVE, no sinks", "CE recovered, sinks replaced"]
    columns += ["CE recovered, sinks left alone", "alive", "near-dead < 0.1"]
    by_layer = {
        f"blocks.{int(norm['layer'])}.hook_resid_post": [
            f"{norm['median']:.1f}",
            f"{norm['largest']:.1f}",
            f"{norm['largest'] / norm['median']:.1f}",
            f"{norm['far']:.4f}",
            f"{norm['far_at_0']:.3f}",
        ]
        for norm in norms
        if norm["layer"] in SHOWN_LAYERS
    }
    heads = ["median norm", "largest norm", "ratio", "share over 10 medians", "at position 0"]
    return [
        f"{about_line(settings)}; {settings['setting']}.",
        "",
        f"Of the {settings['tokens']:,} tokens read for training, {settings['sinks']:,} have a norm over "
        f"{MULTIPLE:g} times the median of the {AT_ONCE * CTX_LEN:,} tokens read together.",
        "",
        *table(f"blocks.{settings['layer']}", cells, columns),
        "",
        *table("", by_layer, heads),
    ]


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--lm", default="runs/smollm2-135m", help="the language model's folder")
    parser.add_argument("--layer", type=int, default=15, help="train on the output of this block")
    parser.add_argument("--tokens", type=int, default=100_000, help="to read")
    parser.add_argument("--steps", type=int, default=800, help="of each SAE")
    parser.add_argument("--dict-size", type=int, default=2304, help="features of each SAE")
    parser.add_argument("--k", type=int, default=64, help="selected features per token")
    parser.add_argument("--eval-tokens", type=int, default=8192, help="held-out tokens")
    parser.add_argument("--eval-documents", type=int, default=12, help="held-out documents, for CE")
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/attention_sinks"), help="SAEs go here"
    )
    parser.add_argument(
        "--raw", type=Path, default=RESULTS / "attention_sinks.json", help="raw results"
    )


STAGES = Stages(
    "language_models.attention_sinks",
    {"train": train_and_measure},
    {"attention_sinks": Page(tables)},
    options,
    raw_of=lambda arguments: arguments.raw,
)

if __name__ == "__main__":
    STAGES.run()
