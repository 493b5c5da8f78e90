"""RESULTS.md is its template with the raw results; a sentence that they no longer show stops it."""

import re

import pytest

from experiments import write_results
from experiments.pages import ClaimError

read = write_results.read
CLAIM = re.compile(r'claim\("([^"]+)"')


def rows(content, **wanted):
    return [row for row in content["rows"] if wanted.items() <= row.items()]


def put(metric, value, **wanted):
    """Give every row of this kind another value of a metric."""

    def spoil(content):
        found = rows(content, **wanted)
        assert found, wanted
        for row in found:
            row[metric] = value

    return spoil


def add(metric, value, **wanted):
    def spoil(content):
        for row in rows(content, **wanted):
            row[metric] += value

    return spoil


def bench_gain_at_small_n(content):
    for row in content["bench"]:
        row["scr"] |= {"2": 0.9 if row["model"] == "code, beta 1" else 0.1, "5": 0.1}


def fourth_seed(content):
    content["rows"] += [row | {"seed": 3} for row in content["rows"] if row["seed"] == 0]


def same_fve_where_equally_stable(content):
    for row in content["rows"]:
        row["fve"] = row["stability_sigma"] or 1.0


def search_only(metric, value, model):
    return add(metric, value, stage="search", model=model)


EQUATIONS, CODE = {"model": "equations, beta 1"}, {"model": "code, beta 1"}


def level(value, arm):
    """Every pair of the study's confirmation of an arm is at this level."""

    def spoil(content):
        for row in content["pairs"]:
            if row["part"].startswith("confirm") and row["arm"] == arm:
                row["less_null"] = value

    return spoil


def rival_of_the_follow_up_returns_most(content):
    for row in content["pairs"]:
        if row["part"].startswith("stronger") and row["arm"] == "best rival":
            row["less_null"] = 0.9


LAST = "F = 32D, k/F = 1/256"
SPOILS = {
    "Noise that lasts longer returns more than the rival, but at a lower FVE": (
        "reproducibility",
        rival_of_the_follow_up_returns_most,
    ),
    "on SAELens's synthetic activations the same noise finds less of the truth, and returns less": (
        "match_to_truth",
        put("true_mcc", 0.9, model="noise and penalty"),
    ),
    "every pair, noise and penalty are better than TopK and than the penalty alone": (
        "reproducibility",
        level(0.5, "penalty alone"),
    ),
    "Most of it is the noise's: alone it gains more than the penalty alone": (
        "reproducibility",
        level(0.2, "noise alone"),
    ),
    "loses reconstruction whichever way it is read": (
        "reproduce_paper",
        put("fve_sampled", 0.99, model="equations, beta 0.01"),
    ),
    "keeps": ("reproduce_paper", put("fve", 0.8, ratio=8, **CODE)),
    "makes features near-dead where k/F is small": (
        "reproduce_paper",
        put("near_dead_0.1", 0.0, ratio=32, multiple=4, **CODE),
    ),
    "revives them where it is large": (
        "reproduce_paper",
        put("near_dead_0.1", 0.9, ratio=4, **CODE),
    ),
    "appear in no reading": ("reproduce_paper", put("alive", 0.1, multiple=16, **CODE)),
    "hurts by churning the selection in training": (
        "selection_churn",
        put("fve", 0.5, noise_on="values", sigma=1.6),
    ),
    "is not what its equations give": ("reproduce_paper", put("fve", 0.98, ratio=4, **EQUATIONS)),
    "gives it only at a beta below 1": (
        "reproduce_paper",
        put("fve", 0.99, ratio=4, **CODE),
    ),
    "whether the penalty kills or revives depends on k/F": (
        "reproduce_paper",
        put("near_dead_0.1", 0.0, ratio=32, multiple=4, **CODE),
    ),
    "loses reconstruction either way": ("reproduce_paper", put("fve", 1.0, ratio=16, **CODE)),
    "is better at large N": ("reproduce_paper", bench_gain_at_small_n),
    "Three seeds": ("full_size", fourth_seed),
    "makes the selection as unstable as noise on the selection does": (
        "selection_churn",
        put("stability_sigma", 0.9, noise_on="values", sigma=0.8),
    ),
    "costs a fraction of it": ("selection_churn", put("fve", 0.5, noise_on="values", sigma=1.6)),
    "does not hold over the three": ("selection_churn", same_fve_where_equally_stable),
    "BatchTopK reconstructs best at this L0": ("baselines", put("fve", 0.99, model="TopK")),
    "do not stand at TopK's L0": ("baselines", put("l0", 16.5, model="ReLU, L1 3")),
    "does not reach the L0 that it aims at": (
        "baselines",
        put("l0", 20.0, model="JumpReLU, L0 aimed at 16"),
    ),
    "applying its threshold once brings it nearer": (
        "baselines",
        put("l0", 200.0, model="JumpReLU, L0 aimed at 16"),
    ),
    "depends on where gamma begins": (
        "baselines",
        put("l0", 66.0, model="VAEase, gamma from 1, lr 0.005"),
    ),
    "has no zeros": ("baselines", put("l0", 511.0, model="purely variational, sigma 1, beta 1")),
    "less stable at all three sizes": (
        "better_vsae",
        put("stability_rms", 0.9, stage="confirm", model="sampled", size=LAST),
    ),
    "only looks more stable than TopK because TopK applies a ReLU": (
        "better_vsae",
        search_only("stability_rms", -0.1, "TopK without ReLU"),
    ),
    "changes SCR at N = 2 and 5 in no run": ("better_vsae", add("scr", 0.001, stage="bench")),
    "is too large on this one to tell": (
        "better_vsae",
        add("scr", 1.0, stage="bench", model="sampled"),
    ),
    "was confirmed at F = 4D, k/F = 1/8 alone": (
        "better_vsae",
        put("fve", 0.5, stage="confirm", model="sampled", size="F = 4D, k/F = 1/8"),
    ),
    "other k/F picked other penalties": (
        "better_vsae",
        put("near_dead_0.5", 0.0, stage="search", model="selection 0.1, KL 0.01"),
    ),
}


def written(monkeypatch, name, spoil):
    def read_spoiled(wanted):
        content = read(wanted)
        if wanted == name:
            spoil(content)
        return content

    monkeypatch.setattr(write_results, "read", read_spoiled)
    return write_results.page()


def test_results_are_made_from_the_raw_results():
    assert write_results.page() == write_results.PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "name", ["selection_churn", "reproduce_paper", "full_size", "baselines", "better_vsae"]
)
def test_every_raw_result_shows_in_it(monkeypatch, name):
    """A number that differs shows, without breaking any sentence."""

    def spoil(content):
        for row in content["rows"]:
            if row.get("near_dead_0.5") is not None:
                row["near_dead_0.5"] += 0.001
            elif row.get("near_dead_0.1") is not None:
                row["fve"] += 0.001

    assert written(monkeypatch, name, spoil) != write_results.PAGE.read_text(encoding="utf-8")


def test_every_claim_of_the_template_is_spoiled_below():
    template = write_results.TEMPLATE.read_text(encoding="utf-8")
    assert template.count("{{ claim(") == len(CLAIM.findall(template))
    assert set(CLAIM.findall(template)) == set(SPOILS)


@pytest.mark.parametrize("sentence", SPOILS)
def test_a_claim_that_the_numbers_no_longer_show_stops_the_writing(monkeypatch, sentence):
    """All claims are looked at, not only the first that fails."""
    failed = []
    monkeypatch.setattr(
        write_results, "claim", lambda says, *, holds: says if holds else failed.append(says) or ""
    )
    monkeypatch.setattr(
        "experiments.better_vsae.search_and_confirm.claim", lambda says, holds: says
    )
    written(monkeypatch, *SPOILS[sentence])
    assert sentence in failed


def test_a_failing_claim_raises(monkeypatch):
    with pytest.raises(ClaimError, match="'loses reconstruction whichever way it is read'"):
        written(monkeypatch, *SPOILS["loses reconstruction whichever way it is read"])
