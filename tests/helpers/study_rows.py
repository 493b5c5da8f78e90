"""Rows of the study of reproducibility, made up."""

from experiments.reproducibility import decisions, stronger_noise
from experiments.reproducibility.settings import CONFIRM, RIVAL, RIVALS, SAMPLED, TOP_K

NAME = next(iter(CONFIRM))


def rows_of(stage, name, arm, seeds, less_null, **metrics):
    """A part's rows, of an arm: one of the pair, two of its SAEs."""
    part = f"{stage}: {name}: {seeds[0]}, {seeds[1]}"
    usual = {"fve": 0.9, "frac_recovered": 0.99, "near_dead_0.1": 0.1, "near_dead_0.5": 0.4}
    saes = [{"part": part, "arm": arm, "seed": s} | usual | metrics for s in seeds]
    return [{"part": part, "arm": arm, "less_null": less_null}], saes


def content_of(found):
    return {
        "parts": {},
        "pairs": [row for pairs, _ in found for row in pairs],
        "saes": [row for _, saes in found for row in saes],
    }


def searched(**special):
    """Every candidate at one level, except for those named: arm -> (less_null, metrics)."""
    special = {arm: special.get(arm, (0.2, {})) for arm in [TOP_K, *SAMPLED, *RIVALS]} | special
    return content_of(
        [
            rows_of("search", "search", arm, (900, 901), less_null, **metrics)
            for arm, (less_null, metrics) in special.items()
        ]
    )


def confirmed(values, pairs=decisions.CONFIRM_PAIRS, name=NAME, **metrics):
    """By arm, a level; pair i is 0.001 i higher in every arm."""
    return content_of(
        [
            rows_of("confirm", name, arm, seeds, level + 0.001 * i, **metrics.get(arm, {}))
            for i, seeds in enumerate(pairs)
            for arm, level in values.items()
        ]
    )


def follow_up_searched(**special):
    """Every candidate of the follow-up at one level, except for those named: arm -> (less_null, metrics)."""
    usual = dict.fromkeys((TOP_K, *stronger_noise.CANDIDATES), (0.3, {}))
    usual[RIVAL] = (0.35, {"fve": 0.88, "near_dead_0.1": 0.0})
    return content_of(
        [
            rows_of("stronger", "search", arm, stronger_noise.SEARCH_SEEDS, less_null, **metrics)
            for arm, (less_null, metrics) in (usual | special).items()
        ]
    )
