"""What comes back of dictionaries of random tokens, which were never trained, at the settings of the tables of RESULTS.md and the guide?

    python -m experiments.random_tokens train [PLACE …]     # default: all without rows
    python -m experiments.random_tokens tables              # write the page again from the raw results

SmolLM2's need language_models.smollm2, those of synthetic samples SAELens.
"""

import argparse
import time
from dataclasses import dataclass
from statistics import mean
from typing import Any

import torch as t

from dictionary_learning_ext.activations.inputs import in_batches
from dictionary_learning_ext.activations.rows import ContextBatch
from dictionary_learning_ext.evaluation.folders import OpenedFolders
from dictionary_learning_ext.features.agreement import SHOWN
from dictionary_learning_ext.features.random_tokens import come_back_of, random_token_saes
from experiments import raw_results
from experiments.ground_truth.synthetic import SMALL, SyntheticModel
from experiments.pages import table
from experiments.raw_results import RESULTS, about, about_line
from experiments.stages import Page, Stages
from experiments.trained_saes import run_settings

RAW = RESULTS / "random_tokens.json"
SMOLLM2 = "runs/smollm2-135m"
SEEDS = (0, 1)
"""Each draws two dictionaries of disjoint tokens: a pair."""
HELD_OUT, LEAST = 50_000, 40_000
KINDS = {"random tokens": None, "the same, none of cosine 0.7 with another": 0.7}
Row = dict[str, Any]


@dataclass(frozen=True)
class Place:
    title: str
    hook: str
    dict_size: int
    k: int
    model: str = "embedded"

    @property
    def tokens(self) -> int:
        """From which the dictionaries are drawn and fitted: as many as `vsae reproduce` takes."""
        return max(LEAST, 16 * self.dict_size)

    def activations(self) -> tuple[t.Tensor, list[ContextBatch]]:
        """The activations of training tokens, and the held-out contexts."""
        run = run_settings(
            hook=self.hook, model=self.model, data="embedded", max_norm_multiple=10.0
        )
        opened = OpenedFolders(run, {}, HELD_OUT)
        x_ND = t.cat([*in_batches(opened.contexts("train", self.tokens))])
        return x_ND, [*opened.contexts("heldout", HELD_OUT)]


class Samples(Place):
    """Samples of `synthetic:small` in place of tokens."""

    def activations(self) -> tuple[t.Tensor, list[ContextBatch]]:
        model = SyntheticModel.of(SMALL)
        x_ND, held_out_ND = (
            next(model.rows(stream, n))
            for stream, n in (("train", self.tokens), ("heldout", HELD_OUT))
        )
        ids_1N = t.zeros(1, len(held_out_ND), dtype=t.long)
        nothing_1N = t.zeros_like(ids_1N, dtype=t.bool)
        return x_ND, [ContextBatch(ids_1N, ~nothing_1N, held_out_ND[None], nothing_1N)]


BLOCK = "blocks.{}.hook_resid_post"
PLACES = {
    "b2": Place("blocks.2, k/F = 1/32", BLOCK.format(2), 512, 16),
    "b0": Place("blocks.0, k/F = 1/32", BLOCK.format(0), 512, 16),
    "b1": Place("blocks.1, k/F = 1/32", BLOCK.format(1), 512, 16),
    "mlp_out": Place("blocks.2.hook_mlp_out, k/F = 1/32", "blocks.2.hook_mlp_out", 512, 16),
    "b2_8": Place("blocks.2, k/F = 1/8", BLOCK.format(2), 512, 64),
    "smollm2_1": Place("SmolLM2-135M, blocks.1, k/F = 1/36", BLOCK.format(1), 2304, 64, SMOLLM2),
    "truth": Samples("synthetic:small, random samples, k/F = 1/128", "", 1024, 8),
}
"""By the names that recompute.py has for these settings."""


def train(arguments: argparse.Namespace) -> None:
    content = raw_results.read_or(RAW, {"places": {}})
    for name in arguments.places or [name for name in PLACES if name not in content["places"]]:
        began, place = time.monotonic(), PLACES[name]
        x_ND, held_out = place.activations()
        sizes = [(place.dict_size, place.k)] * 2
        rows = {
            kind: [
                come_back_of(random_token_saes(x_ND, sizes, seed=seed, twins=twins), held_out)
                for seed in SEEDS
            ]
            for kind, twins in KINDS.items()
        }
        content["places"][name] = {"seeds": SEEDS, "rows": rows, "settings": about(began)}
        raw_results.write(RAW, content)


def tables(content: Row) -> list[str]:
    lines = []
    for name, place in PLACES.items():
        if (found := content["places"].get(name)) is None:
            continue
        rows = {kind: cells(pairs) for kind, pairs in found["rows"].items()}
        lines += [f"## {place.title}", "", *table("", rows, [m.label for m in SHOWN]), ""]
        seeds = " and ".join(map(str, found["seeds"]))
        drawn = f"F = {place.dict_size:,}, k = {place.k}, drawn from {place.tokens:,} with seeds {seeds}"
        lines += [f"{drawn}. {about_line(found['settings'])}.", ""]
    return lines


def cells(pairs: list[Row]) -> list[str]:
    """Means of the pairs; the FVE of what comes back of each, too."""
    first, *others = (measure.text(mean(pair[measure.key] for pair in pairs)) for measure in SHOWN)
    each = ", ".join(SHOWN[0].text(pair[SHOWN[0].key]) for pair in pairs)
    return [f"{first} ({each})", *others]


def add_places(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("places", nargs="*", metavar="PLACE", help=f"of {', '.join(PLACES)}")


STAGES = Stages("random_tokens", {"train": train}, {"random_tokens": Page(tables)}, add_places)

if __name__ == "__main__":
    STAGES.run()
