"""SAE Bench's SCR and TPP with equally many features in use. Needs [sae-bench].

Both reward having few features. So each SAE is measured once more with only its N most used features left,
N being the number that the SAE with the fewest uses.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch as t

from dictionary_learning_ext.config.architectures import BenchEvaluation
from dictionary_learning_ext.sae_bench.adapter import BenchSAE, load_bench_sae
from dictionary_learning_ext.sae_bench.results import BenchResults
from dictionary_learning_ext.sae_bench.runner import bench
from experiments.paper.labelled_books import on_books, write_books
from experiments.trained_saes import TEXTS


class MaskedSAE(BenchSAE):
    """An SAE with only some of its features left.

    Arguments:
        kept_F: a mask. All other features are zeroed after encoding.
    """

    kept_F: t.Tensor

    def __init__(self, sae: BenchSAE, kept_F: t.Tensor):
        super().__init__(
            sae.dictionary,
            model_name=sae.cfg.model_name,
            hook_name=sae.cfg.hook_name,
            hook_layer=sae.cfg.hook_layer,
        )
        self.register_buffer("kept_F", kept_F.to(sae.W_enc))

    def encode(self, x: t.Tensor) -> t.Tensor:
        return super().encode(x) * self.kept_F


def most_used(selected_F: list[int], n: int) -> t.Tensor:
    """A mask, (F,), of the n features that were selected most often."""
    counts = t.tensor(selected_F)
    mask_F = t.zeros(len(counts), dtype=t.bool)
    mask_F[counts.argsort(descending=True, stable=True)[:n]] = True
    return mask_F


def in_use(core: dict[str, Any]) -> int:
    """How many features are not near-dead at 0.1, by a result of core.

    "Selected once" saturates in small dictionaries.
    """
    ours = core["eval_result_unstructured"]
    return round(len(ours["selected"]) * (1 - ours["near_dead_0.1"]))


def bench_size_matched(
    folders: Sequence[Path], evals: Sequence[BenchEvaluation], **settings: Any
) -> tuple[BenchResults, dict[str, str]]:
    """What `bench` gives for run folders, with SCR and TPP of the masked SAEs too.

    Arguments:
        evals: core, which counts how often features are used, SCR, TPP, and any others.
        settings: of `bench`.

    Returns: the results; and the labels of the masked SAEs, by those of the whole ones. The SAE with the
        fewest features in use needs none.

    Raises: BenchError if core fails.
    """
    ablating: list[BenchEvaluation] = ["scr", "tpp"]
    outcome = bench(folders, evals=[e for e in evals if e not in ablating], **settings)
    if any(evaluation == "core" for evaluation, _ in outcome.failures):
        outcome.check()
    controls = _controls(folders, outcome)
    # In one call with the whole SAEs: the SAE that fills SAE Bench's cache gets other random numbers.
    found = bench(folders, evals=ablating, extra=dict(controls.values()), **settings)
    for label, results in found.results.items():
        outcome.results.setdefault(label, {}).update(results)
    outcome.failures |= found.failures
    return outcome, {label: masked for label, (masked, _) in controls.items()}


def _controls(folders: Sequence[Path], outcome: BenchResults) -> dict[str, tuple[str, MaskedSAE]]:
    """The masked SAEs with their labels, by those of the whole ones, from the results of core."""
    labels = list(outcome.results)[: len(folders)]  # in the order of the folders
    cores = [outcome.results[label]["core"] for label in labels]
    n = min(map(in_use, cores))
    controls = {}
    for folder, label, core in zip(folders, labels, cores, strict=True):
        if in_use(core) > n:
            place = {x: core["sae_cfg_dict"][x] for x in ("model_name", "hook_name", "hook_layer")}
            kept_F = most_used(core["eval_result_unstructured"]["selected"], n)
            masked = MaskedSAE(load_bench_sae(folder, **place), kept_F)
            controls[label] = f"{label}_top{n}", masked
    return controls


def benched(
    folders: dict[str, Path],
    evals: Sequence[BenchEvaluation],
    tokens: int,
    books: Path | None = None,
) -> dict[str, tuple[Any, Any]]:
    """SAE Bench's results of each model of a seed, plain and size-matched.

    Arguments:
        tokens: core's.
        books: a folder, to evaluate on the embedded books, which are written there. Default: on SAE Bench's own data sets.
    """
    settings: dict[str, Any] = {
        "tokens": tokens,
        "train_size": TEXTS[0],
        "test_size": TEXTS[1],
        "data": "hub" if books is None else str(books),
    }
    if books is not None:
        write_books(books)
    with nullcontext() if books is None else on_books():
        outcome, controls = bench_size_matched(list(folders.values()), ("core", *evals), **settings)
    outcome.check()
    results = outcome.results  # in the order of the folders, masked SAEs last
    return {
        model: (results[label], results[controls.get(label, label)])
        for model, label in zip(folders, results, strict=False)
    }
