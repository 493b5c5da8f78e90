"""What SAE Bench can tell apart: its measures' own noise, that of training, and SAEs that learned little.

    pip install -e '.[saebench]' gguf accelerate
    python -m experiments.language_models.smollm2 runs/smollm2-135m   # the larger model, once
    python -m experiments.better_vsae.bench_noise train     # 10 SAEs for each language model
    python -m experiments.better_vsae.bench_noise bench     # and the floors, with several bench seeds
    python -m experiments.better_vsae.bench_noise tables    # write the page's tables again

    ... bench --model embedded    # one of the two; the other in a process of its own

TopK, a point posterior with a penalty on its activations, and the preset `recommended` as it was then, each from three
seeds on the same batches. "Noise of the bench" is the standard deviation over the evaluation's own
seeds, which take other texts and train other probes. "Noise of training" is that over the SAEs' seeds,
of means over the bench's. The floors are those of `vsae bench --floor`, and an SAE whose decoder stays
random, trained as TopK's first seed.

What is trained or measured is not done again: to continue, run the stage again.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scipy.stats import studentized_range

from dictionary_learning_ext import RunConfig
from dictionary_learning_ext.config.architectures import BenchEvaluation
from dictionary_learning_ext.config.presets import preset
from dictionary_learning_ext.config.sae import SAEConfig
from dictionary_learning_ext.sae_bench.probes import SMALLEST, SMALLEST_SETS
from experiments import raw_results
from experiments.better_vsae.bench_embedded import is_measure
from experiments.pages import table
from experiments.raw_results import RESULTS, about, about_line
from experiments.stages import Page, Stages
from experiments.trained_saes import TEXTS, sae_config, train_missing

RAW, RUNS = RESULTS / "bench_noise.json", Path("runs/bench_noise")
SEEDS = 3
ARMS = ("TopK", "point", "recommended")
RECOMMENDED_THEN = {"posterior": "fixed", "noise_to_signal": 0.1, "beta": 0.01}
"""What the preset had when this was measured."""
FROZEN = "frozen_decoder"
FLOORS = ("random", "random_spectrum", FROZEN, "identity")
LESS_IS_MORE = ("near-dead",)
CLEAR = 2.0  # standard deviations

Values = dict[str, dict[str, dict[str, float]]]
"""By the SAE's label, the metric's name and the seed of the evaluation."""


@dataclass(frozen=True)
class Place:
    """A language model and a hook point, and what is measured there."""

    run: RunConfig
    k: int
    dict_size: int
    cached_tokens: int | None
    """Of the cache that the SAEs are trained on, several times over; None for no cache."""
    measured: tuple["Measured", ...]


@dataclass(frozen=True)
class Measured:
    """Evaluations, and what is repeated of them. Each floor and each other SAE is measured once."""

    evals: tuple[BenchEvaluation, ...]
    repeated: tuple[str, ...]
    """The arms whose SAEs are measured with several bench seeds."""
    bench_seeds: int
    texts: tuple[int | None, int | None] = (None, None)
    """In the probes' training and test sets; None for the default."""
    sets: str = SMALLEST
    """The data sets of sae_probes."""


PLACES = {
    "embedded": Place(
        RunConfig(hook="blocks.2.hook_resid_post", steps=1000, batch_size=1024),
        k=16,
        dict_size=512,
        cached_tokens=None,
        measured=(
            Measured(("sae_probes",), ARMS, 5),
            Measured(("core", "sparse_probing"), ("TopK",), 3),
            Measured(("scr", "tpp"), ("TopK",), 3, TEXTS),
        ),
    ),
    "SmolLM2": Place(
        RunConfig(
            model="runs/smollm2-135m",
            hook="blocks.8.hook_resid_post",
            steps=600,
            batch_size=1024,
            dtype="bfloat16",
            max_norm_multiple=10.0,
            eval_tokens=5_000,
            text_passes=5,
        ),
        k=64,
        dict_size=2304,
        cached_tokens=300_000,
        measured=(Measured(("sae_probes",), ARMS, 5, sets=",".join(SMALLEST_SETS[:15])),),
    ),
}


def config_of(arm: str, place: Place, seed: int) -> SAEConfig:
    shared = {"k": place.k, "dict_size": place.dict_size, "seed": seed}
    if arm == "TopK":
        return sae_config(architecture="top_k", **shared)
    if arm == "point":
        return sae_config(posterior="point", kl_scope="selected", beta=0.1, **shared)
    matched = sae_config()
    found = replace(preset("recommended").sae, **RECOMMENDED_THEN)
    return replace(found, lr=matched.lr, decay_start=matched.decay_start, **shared)


def frozen_decoder_config(place: Place) -> SAEConfig:
    """TopK's, with a decoder that stays random: from the code that can freeze it."""
    return sae_config(
        posterior="point",
        rectify=True,
        beta=0.0,
        freeze_decoder=True,
        k=place.k,
        dict_size=place.dict_size,
        seed=0,
    )


def run_name(arm: str, seed: int) -> str:
    return f"{arm}_seed{seed}"


def train_saes(arguments: argparse.Namespace) -> None:
    """Train what is missing; SmolLM2's from a cache, so that it reads the text once."""
    from dictionary_learning_ext.activations.cache_writer import write_cache
    from dictionary_learning_ext.activations.stored import open_stored

    for name in arguments.model:
        place, folder = PLACES[name], RUNS / name
        run = place.run
        if place.cached_tokens is not None:
            cache = folder / "cache"
            reading = replace(run, text_passes=1, dtype="float32")
            write_cache(cache, reading, [run.hook], place.cached_tokens)
            run = replace(run, **open_stored(cache).settings)
            run = replace(run, text_passes=place.run.text_passes, dtype=place.run.dtype)
        saes = {
            run_name(arm, seed): config_of(arm, place, seed)
            for arm in ARMS
            for seed in range(SEEDS)
        }
        train_missing(run, folder, saes | {FROZEN: frozen_decoder_config(place)})


def bench_saes(arguments: argparse.Namespace) -> None:
    """Bench what is missing, and write every metric of every SAE with every bench seed."""
    from dictionary_learning_ext.sae_bench.results import values_of
    from dictionary_learning_ext.sae_bench.runner import bench

    for name in arguments.model:
        began = time.monotonic()
        found: dict[str, dict[str, dict[int, float]]] = {}
        for each in PLACES[name].measured:
            for arms, floors, bench_seeds in (
                (ARMS, [FROZEN], 1),
                (each.repeated, [], each.bench_seeds),
            ):
                trained = [run_name(arm, seed) for arm in arms for seed in range(SEEDS)]
                outcome = bench(
                    [RUNS / name / own for own in [*trained, *floors]],
                    evals=each.evals,
                    train_size=each.texts[0],
                    test_size=each.texts[1],
                    probing_sets=each.sets,
                    bench_seeds=bench_seeds,
                    floor=bool(floors),
                )
                outcome.check()
                for label, rows in values_of(outcome).items():
                    found[label] = found.get(label, {}) | rows
        content = raw_results.read_or(RAW, {"places": {}})
        before = content["places"].get(name, {}).get("settings")
        settings = about(began, before) | {"setting": setting_of(name)}
        content["places"][name] = {"settings": settings, "values": found}
        raw_results.write(RAW, content)


def setting_of(name: str) -> str:
    place = PLACES[name]
    run = place.run
    words = (
        f"{Path(run.model).name}, {run.hook}, F = {place.dict_size:,}, k = {place.k}, "
        f"{run.steps:,} steps of {run.batch_size:,} tokens in {run.dtype}, SAE seeds 0 to {SEEDS - 1}"
    )
    if place.cached_tokens:
        words += f", trained on {place.cached_tokens:,} cached tokens, several times over"
    for each in place.measured:
        words += f"; {', '.join(each.evals)} with {each.bench_seeds} bench seeds"
        if each.repeated != ARMS:
            words += f" for {', '.join(each.repeated)}"
        if each.sets != SMALLEST:
            words += f" on the {len(each.sets.split(','))} smallest data sets"
        if each.texts[0]:
            words += f" on {each.texts[0]} and {each.texts[1]} texts a class"
    return words


def label_of(values: Values, floor: str) -> str:
    return next(label for label in values if label == floor or label.startswith(f"{floor}_F"))


def common_seeds(values: Values, metric: str, labels: Sequence[str]) -> list[str]:
    """The bench seeds with which all of these SAEs were measured."""
    shared = set.intersection(*(set(values[label].get(metric, {})) for label in labels))
    return sorted(shared)


def trained_labels() -> list[str]:
    return [run_name(arm, seed) for arm in ARMS for seed in range(SEEDS)]


def means(values: Values, arm: str, metric: str, seeds: Sequence[str]) -> list[float]:
    """A metric of an arm for each SAE seed, averaged over these bench seeds."""
    rows = [values[run_name(arm, seed)][metric] for seed in range(SEEDS)]
    return [statistics.mean(row[seed] for seed in seeds) for row in rows]


def bench_noise(values: Values, metric: str) -> float:
    """The standard deviation over bench seeds, pooled over the SAEs that have several."""
    rows = [list(values[label][metric].values()) for label in trained_labels()]
    return statistics.mean(statistics.variance(row) for row in rows if len(row) > 1) ** 0.5


def training_noise(values: Values, metric: str) -> float:
    """The standard deviation over SAE seeds on the same bench seeds, pooled over the arms."""
    seeds = common_seeds(values, metric, trained_labels())
    return (
        statistics.mean(statistics.variance(means(values, arm, metric, seeds)) for arm in ARMS)
        ** 0.5
    )


def metrics_of(values: Values) -> list[str]:
    first = values[run_name(ARMS[0], 0)]
    return [name for name in first if is_measure(name)]


def row_of(values: Values, metric: str) -> list[str]:
    """Arms, noises, floors, and what follows."""
    seeds = common_seeds(values, metric, trained_labels())
    arms = [statistics.mean(means(values, arm, metric, seeds)) for arm in ARMS]
    floors = [statistics.mean(values[label_of(values, floor)][metric].values()) for floor in FLOORS]
    noises = [bench_noise(values, metric), training_noise(values, metric)]
    cells = [f"{value:.3f}" for value in [*arms, *noises, *floors]]
    return [*cells, *("yes" if each else "no" for each in verdicts_of(values, metric))]


def verdicts_of(values: Values, metric: str) -> tuple[bool, bool]:
    """Whether every arm lies above the floors, and whether the arms differ, by the noise of training.

    The first on the bench seeds of the floors. The second by Tukey's range test over the arms.
    """
    sign = -1 if metric.startswith(LESS_IS_MORE) else 1
    noise = training_noise(values, metric)
    floors = [label_of(values, floor) for floor in FLOORS[:-1]]
    seeds = common_seeds(values, metric, [*trained_labels(), *floors])
    lowest = min(sign * statistics.mean(means(values, arm, metric, seeds)) for arm in ARMS)
    highest = max(
        sign * statistics.mean(values[label][metric][seed] for seed in seeds) for label in floors
    )
    seeds = common_seeds(values, metric, trained_labels())
    arms = [statistics.mean(means(values, arm, metric, seeds)) for arm in ARMS]
    least = studentized_range.ppf(0.95, len(ARMS), len(ARMS) * (SEEDS - 1)) / SEEDS**0.5
    return lowest - highest > CLEAR * noise, bool(max(arms) - min(arms) > least * noise)


def tables(content: dict[str, Any]) -> list[str]:
    """A section for each language model."""
    columns = [
        *ARMS,
        "noise of the bench",
        "noise of training",
        *FLOORS,
        "above the floors",
        "kinds differ",
    ]
    lines = []
    for name, place in content["places"].items():
        values, settings = place["values"], place["settings"]
        rows = {metric: row_of(values, metric) for metric in metrics_of(values)}
        lines += [f"## {name}", "", f"{settings['setting']}. {about_line(settings)}.", ""]
        lines += [*table("measure", rows, columns), ""]
    return lines[:-1]


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", nargs="+", choices=PLACES, default=list(PLACES))


STAGES = Stages(
    "better_vsae.bench_noise",
    {"train": train_saes, "bench": bench_saes},
    {"bench_noise": Page(tables)},
    options,
)

if __name__ == "__main__":
    STAGES.run()
