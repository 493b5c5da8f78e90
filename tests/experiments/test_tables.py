"""The committed pages of experiments are what their committed raw results give."""

import importlib
import json
import re

import pytest

from experiments import metrics, raw_results
from experiments.better_vsae import baselines, quickstart_seeds, search_and_confirm
from experiments.better_vsae.success_criteria import MEASURES
from experiments.ground_truth import match_to_truth
from experiments.index import EXPERIMENTS
from experiments.pages import ClaimError
from experiments.paper import selection_churn
from experiments.raw_results import RESULTS
from experiments.reproducibility import page as study_page

WITH_RAW = [e for e in EXPERIMENTS if e.raw and (RESULTS / e.raw).exists()]
SHOWN = {
    "attention_sinks.json": ("fve", "frac_recovered", "alive", "near_dead_0.1"),
    "selection_churn.json": selection_churn.METRICS[:4],
    "reproduce_paper.json": (*metrics.SHOWN, "correlation"),
    "full_size.json": metrics.SHOWN,
    "baselines.json": baselines.METRICS,
    "quickstart_seeds.json": quickstart_seeds.METRICS,
    "bench_noise.json": ("sae-probes, top 1", "FVE (ours)", "SCR, N = 2", "TPP, N = 50"),
    "match_to_truth.json": (*match_to_truth.METRICS, "pw_mcc", "correlation"),
    "reproducibility.json": study_page.SHOWN,
    "better_vsae.json": (*(name for name in MEASURES if name != "excess"), "within"),
}


BENCHMARKS = {experiment.raw for experiment in WITH_RAW if experiment.raw.startswith("benchmark_")}


def stages_of(experiment):
    return importlib.import_module(experiment.module).STAGES


def committed(experiment):
    return (RESULTS / experiment.page).read_text(encoding="utf-8").splitlines()


def test_the_raw_results_that_are_kept_are_tested():
    assert {experiment.raw for experiment in WITH_RAW} == set(SHOWN) | BENCHMARKS
    assert len(BENCHMARKS) >= 4


@pytest.mark.parametrize("experiment", WITH_RAW, ids=lambda experiment: experiment.name)
def test_pages_are_made_from_the_raw_results(experiment):
    content = raw_results.read(RESULTS / experiment.raw)
    assert stages_of(experiment).lines(content) == committed(experiment)


@pytest.mark.parametrize("experiment", WITH_RAW, ids=lambda experiment: experiment.name)
def test_every_metric_of_the_raw_results_shows_in_the_page(experiment):
    text = (RESULTS / experiment.raw).read_text(encoding="utf-8")
    lines = committed(experiment)
    if experiment.raw in BENCHMARKS:
        content = json.loads(text)
        for numbers, key in leaves(content):
            before = numbers[key]
            numbers[key] = 4 * before + (before == 0)
            assert stages_of(experiment).lines(content) != lines, (key, before)
            numbers[key] = before
        return
    for metric in SHOWN[experiment.raw]:
        try:
            spoiled_lines = stages_of(experiment).lines(spoiled(json.loads(text), metric))
        except ClaimError:
            continue  # a sentence of the page noticed
        assert spoiled_lines != lines, metric


def leaves(content):
    """Every number, as its container and its key there."""
    for key, value in content.items() if isinstance(content, dict) else enumerate(content):
        if isinstance(value, dict | list):
            yield from leaves(value)
        elif isinstance(value, int | float):
            yield content, key


def spoiled(content, metric="fve"):
    """With other values of a metric, more so from row to row."""
    if "places" in content:  # by the SAE, and by the metric of each the bench seeds
        saes = [sae for place in content["places"].values() for sae in place["values"].values()]
        for i, of_seeds in enumerate(sae[metric] for sae in saes if metric in sae):
            for seed in of_seeds:
                of_seeds[seed] += 0.5 + 0.01 * i
        return content
    rows = content["rows"] if "rows" in content else content["pairs"] + content["saes"]
    for i, row in enumerate(rows):
        for values in (row, *(part for part in row.values() if isinstance(part, dict))):
            if values.get(metric) is not None:
                values[metric] += 0.5 + 0.01 * i
    return content


@pytest.mark.parametrize(
    ("sentence", "row"),
    [
        ("AuxK on and off are the same there", {"model": "TopK without AuxK"}),
        ("size-matched SCR is SCR", {"stage": "bench"}),
    ],
)
def test_the_searchs_sentences_are_checked(sentence, row):
    content = raw_results.read(RESULTS / "better_vsae.json")
    own = next(r for r in content["rows"] if row.items() <= r.items())
    own["scr" if "SCR" in sentence else "fve"] += 0.001
    with pytest.raises(ClaimError, match=sentence):
        search_and_confirm.tables(content)


# Pages whose raw results were not kept: content that gives the page's numbers, read back from it.


def cells(name):
    """The rows of each table of a page, by name."""
    tables, page = [], (RESULTS / name).read_text(encoding="utf-8")
    for block in re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE):
        rows = [
            [cell.strip() for cell in line.strip("|").split(" | ")] for line in block.splitlines()
        ]
        tables.append({row[0].strip("| "): row[1:] for row in rows[2:]})
    return tables


def number(text):
    return float(text.replace(",", ""))


def line(name, start=2):
    return (RESULTS / name).read_text(encoding="utf-8").splitlines()[start]


def read_back(name):
    tables = cells(f"{name}.md")
    if name == "memory_of_long_runs":
        peaks = {steps.replace(",", ""): number(row[0]) for steps, row in tables[0].items()}
        return {"settings": {"date": "2026-11-24", "torch": "2.13.0+cpu"}, "peaks": peaks}
    raise KeyError(name)


@pytest.mark.parametrize(
    "name",
    [
        "memory_of_long_runs",
    ],
)
def test_a_page_whose_raw_results_were_not_kept_has_the_form_that_its_experiment_writes(name):
    (experiment,) = (e for e in EXPERIMENTS if e.page == f"{name}.md")
    lines = stages_of(experiment).lines(read_back(name))
    assert committed(experiment)[: len(lines)] == lines
