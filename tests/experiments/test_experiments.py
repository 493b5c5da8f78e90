"""The committed pages of experiments are what their committed raw results give."""

import json

import pytest

from experiments import trained_saes, write_results
from experiments.better_vsae import baselines, full_size, search_and_confirm
from experiments.better_vsae.success_criteria import MEASURES
from experiments.pages import RESULTS, spread
from experiments.paper import reproduce_paper, selection_churn

PAGES = {
    "selection_churn": selection_churn.page,
    "reproduce_paper": reproduce_paper.tables,
    "full_size": full_size.tables,
    "baselines": baselines.tables,
    "better_vsae": search_and_confirm.tables,
}
SHOWN = {
    "selection_churn": ("fve", "fve_sampled", "stability_sigma", "near_dead_0.1"),
    "reproduce_paper": (*trained_saes.FIGURES, "correlation"),
    "full_size": trained_saes.FIGURES,
    "baselines": baselines.FIGURES,
    "better_vsae": (*(name for name in MEASURES if name != "excess"), "within"),
}


@pytest.mark.parametrize("name", PAGES)
def test_pages_are_made_from_the_raw_results(name):
    content = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    lines = (RESULTS / f"{name}.md").read_text(encoding="utf-8").splitlines()
    assert PAGES[name](content) == lines


@pytest.mark.parametrize("name", PAGES)
def test_every_figure_of_the_raw_results_shows_in_the_page(name):
    text = (RESULTS / f"{name}.json").read_text(encoding="utf-8")
    lines = PAGES[name](json.loads(text))
    for figure in SHOWN[name]:
        assert PAGES[name](spoiled(json.loads(text), figure)) != lines, figure


def spoiled(content, figure="fve"):
    """With other values of a figure, more so from row to row."""
    for i, row in enumerate(content["rows"]):
        if row.get(figure) is not None:
            row[figure] += 0.5 + 0.01 * i
    return content


def test_results_are_made_from_the_raw_results(monkeypatch):
    lines = write_results.PAGE.read_text(encoding="utf-8").splitlines()
    assert write_results.page() == lines
    read = write_results.read

    for spoiled_name in PAGES:
        monkeypatch.setattr(
            write_results,
            "read",
            lambda name, which=spoiled_name: spoiled(read(name)) if name == which else read(name),
        )
        assert write_results.page() != lines, spoiled_name


def test_a_figure_that_does_not_apply_is_left_out():
    assert spread([0.25, 0.75]) == "0.500 ± 0.354"
    assert spread([None, None]) == ""


def test_the_papers_two_models_are_what_their_names_say():
    def resolved(name):
        sae = reproduce_paper.SAEConfig(k=8, dict_size=64, **reproduce_paper.MODELS[name])
        return sae.resolve(1000, 1024)

    for name in reproduce_paper.MODELS:
        if name == "TopK":
            continue
        sae = resolved(name)
        assert sae.beta == float(name.rpartition("beta ")[2])
        assert sae.kl_scope == ("selected" if "KL on selected" in name else "all")
        if name.startswith("equations"):
            assert (sae.posterior, sae.sigma, sae.noise_on) == ("fixed", 1.0, "both")
            assert (sae.rectify, sae.noise_anneal_steps) == (False, None)
        else:
            assert (sae.posterior, sae.rectify) == ("point", True)
    assert resolved("TopK").architecture == "top_k"


def test_the_full_size_models_are_what_their_names_say():
    for name in full_size.MODELS:
        sae = full_size.config_of(name, 64, seed=1, steps=1000).resolve(1000, 1024)
        kind, _, rest = name.replace(",", " ,", 1).partition(" ")
        if kind == "selection":
            ratio = 64 * sae.sigma**2 / full_size.D
            assert ratio == pytest.approx(float(rest.split(",")[0]))
            assert (sae.noise_on, sae.noise_anneal_steps) == ("selection", 500)
        if ", sigma" in name:
            assert (kind, sae.sigma) == (sae.noise_on, 1.0)
        if "KL 0.01" in name:
            assert (sae.beta, sae.kl_scope) == (0.01, "selected")
        elif "beta 0.01" in name:
            assert (sae.beta, sae.kl_scope) == (0.01, "all")
        else:
            assert sae.beta == 0
        assert (sae.posterior == "point") == (kind in ("TopK", "point"))


def test_a_second_k_leaves_the_first_ks_rows_unless_the_tokens_differ(tmp_path):
    raw = tmp_path / "raw.json"

    def write(k, tokens, fve):
        rows = [{"model": "TopK", "k": k, "seed": 0, "fve": fve}]
        full_size.write_rows(raw, rows, k, tokens, text_tokens=5, began=0.0)
        return {row["k"]: row["fve"] for row in json.loads(raw.read_text())["rows"]}

    assert write(256, 1024, 0.1) == {256: 0.1}
    assert write(64, 1024, 0.2) == {64: 0.2, 256: 0.1}
    assert write(64, 1024, 0.3) == {64: 0.3, 256: 0.1}
    assert write(64, 2048, 0.4) == {64: 0.4}
