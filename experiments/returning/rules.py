"""The rules of PROTOCOL_RETURNING.md (which start becomes the default, and which vSAE the preset) and of PROTOCOL_BATCH.md."""

from collections.abc import Collection, Iterable, Mapping
from statistics import mean
from typing import Any

from experiments.pages import table

FVE_BELOW, NEAR_DEAD_ABOVE, BACK_BELOW, MCC_BELOW, AHEAD = 0.0005, 0.01, 0.02, 0.01, 0.01
AHEAD_OF_PRESET = 0.02
"""Of another architecture, or of the preset's at another rate."""
DATA, TODAY = ", from the data", "vSAE"
CANDIDATES = (TODAY, f"vSAE{DATA}", f"vSAE until 0.25{DATA}")

Means = Mapping[str, Any]
ByPlace = Mapping[str, Mapping[str, Means]]
"""The means of each arm, by its name, at each place."""
Truth = Mapping[str, Mapping[str, float]]
"""The MCC of each arm, by its name, after each number of samples, the smaller first."""


def _range(of_seeds: Means) -> float:
    low, high = of_seeds["loss_added_range"]
    return high - low


def start_fails(places: ByPlace, truth: Truth) -> list[str]:
    """The conditions on a start from the data that don't hold."""
    holds: dict[str, bool] = {}
    for kind in ("TopK", "vSAE"):
        for place, arms in places.items():
            was, now = arms[kind], arms[kind + DATA]
            holds[f"FVE, {kind}, {place}"] = now["fve"] >= was["fve"] - FVE_BELOW
            most = was["loss_added"] + _range(was)
            holds[f"loss added, {kind}, {place}"] = now["loss_added"] <= most
            most = was["near_dead_0.1"] + NEAR_DEAD_ABOVE
            holds[f"near-dead, {kind}, {place}"] = now["near_dead_0.1"] <= most
            if kind == "vSAE":
                least = was["in_function_fve"] - BACK_BELOW
                holds[f"FVE of what comes back, {place}"] = now["in_function_fve"] >= least
        for samples, mcc in truth.items():
            holds[f"MCC, {kind}, {samples}"] = mcc[kind + DATA] >= mcc[kind] - MCC_BELOW
    back = {arm: _mean_back(places, arm) for arm in ("vSAE", "vSAE" + DATA)}
    holds["FVE of what comes back, in the mean"] = back["vSAE" + DATA] > back["vSAE"]
    return [name for name, is_met in holds.items() if not is_met]


def _mean_back(places: ByPlace, arm: str) -> float:
    return mean(arms[arm]["in_function_fve"] for arms in places.values())


def preset_fails(places: ByPlace, truth: Truth, arm: str, top_k: str) -> list[str]:
    """The conditions on a candidate that don't hold. Of an arm that was not trained on truth, that one is left out."""
    holds: dict[str, bool] = {}
    for place, arms in places.items():
        own, rival = arms[arm], arms[top_k]
        holds[f"FVE, {place}"] = own["fve"] >= rival["fve"] - FVE_BELOW
        holds[f"loss added, {place}"] = own["loss_added"] <= rival["loss_added"] + _range(rival)
    mcc = [*truth.values()][-1]
    if arm in mcc:
        holds["MCC"] = mcc[arm] >= mcc[top_k] - MCC_BELOW
    return [name for name, is_met in holds.items() if not is_met]


def _is_out(fails: Iterable[str]) -> bool:
    """What fails at mlp_out alone stays a candidate."""
    return not all("mlp_out" in name for name in fails)


def preset(places: ByPlace, truth: Truth) -> str:
    """The arm that the rules make the preset."""
    is_data = not start_fails(places, truth)
    top_k = "TopK" + (DATA if is_data else "")
    passed = {}
    for arm in CANDIDATES if is_data else (TODAY,):
        if not _is_out(preset_fails(places, truth, arm, top_k)):
            passed[arm] = _mean_back(places, arm)
    best = max(passed, key=lambda arm: passed[arm], default=TODAY)
    leads = passed.get(best, 0.0) >= _mean_back(places, TODAY) + AHEAD
    return best if leads else TODAY


def verdict(places: ByPlace, truth: Truth) -> list[str]:
    """What the rules say, as lines of the page."""
    fails = start_fails(places, truth)
    top_k = "TopK" + ("" if fails else DATA)
    rows = {
        arm: [
            f"{_mean_back(places, arm):.3f}",
            "; ".join(preset_fails(places, truth, arm, top_k)) or "none",
        ]
        for arm in CANDIDATES
    }
    return [
        "## By the rules",
        "",
        f"Conditions on the start from the data that fail: {'; '.join(fails) or 'none'}.",
        "",
        *table("", rows, ["FVE of what comes back, mean over places", "conditions that fail"]),
        "",
        f"The preset: {preset(places, truth)}.",
        "",
    ]


def in_its_place(places: ByPlace, truth: Truth, highest: Collection[str], top_k: str) -> list[str]:
    """Which architecture README recommends in the preset's place, as lines of the page.

    Arguments:
        highest: the arms at the highest rate that was tried, so that none brackets it.
    """
    rows, least = {}, _mean_back(places, TODAY) + AHEAD_OF_PRESET
    for arm in next(iter(places.values())):
        if _mean_back(places, arm) < least:
            continue
        fails = preset_fails(places, truth, arm, top_k)
        not_run = ["MCC"] * (arm not in [*truth.values()][-1])
        not_run += ["a higher rate"] * (arm in highest)
        answer = "not at this rate" if _is_out(fails) else "undecided" if not_run else "yes"
        cells = [f"{_mean_back(places, arm):.4f}", "; ".join(fails) or "none"]
        rows[arm] = [*cells, "; ".join(not_run) or "nothing", answer]
    columns = ["FVE of what comes back", "conditions that fail", "not run", "in its place?"]
    return [
        f"Architectures that lead the preset ({least - AHEAD_OF_PRESET:.4f}) by {AHEAD_OF_PRESET:g} in the mean over their "
        f"{len(places)} places{':' if rows else ': none.'}",
        "",
        *(table("", rows, columns) if rows else []),
        "",
    ]


# --- PROTOCOL_BATCH.md

FVE_ABOVE, L0_WITHIN = 0.003, 0.02


def over_batch_fails(
    places: ByPlace, truth: Truth, k: Mapping[str, int], arm: str, preset: str
) -> list[str]:
    """The conditions on the vSAE over BatchTopK, to become the preset, that don't hold.

    Arguments:
        k: of each place.
    """
    own, was = _mean_back(places, arm), _mean_back(places, preset)
    holds = {"FVE of what comes back": own >= was - AHEAD}
    for place, arms in places.items():
        holds[f"FVE, {place}"] = arms[arm]["fve"] >= arms[preset]["fve"] + FVE_ABOVE
        holds[f"L0, {place}"] = abs(arms[arm]["l0"] / k[place] - 1) <= L0_WITHIN
    added = {
        name: mean(arms[name]["loss_added"] for arms in places.values()) for name in (arm, preset)
    }
    most = added[preset] + mean(_range(arms[preset]) for arms in places.values())
    holds["loss added"] = added[arm] <= most
    mcc = [*truth.values()][-1]
    holds["MCC"] = mcc[arm] >= mcc[preset] - MCC_BELOW
    return [name for name, is_met in holds.items() if not is_met]
