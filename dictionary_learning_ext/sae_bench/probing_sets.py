"""The data sets of sae-probes (Kantamneni et al. 2025, arXiv 2502.16681): which are used.

They come inside its wheel. Importing sae-probes reads them all, which takes seconds, so that the
imports of it stand in functions.
"""

from ..config.checks import likely
from ..errors import BenchError

ALL = "all"
SMALLEST = "smallest"
MOST_CHARACTERS = 100_000
"""In all texts of one of the smallest."""
SMALLEST_SETS = (
    "119_us_state_TX",
    "118_us_state_CA",
    "117_us_state_FL",
    "156_athlete_sport_baseball",
    "154_athlete_sport_football",
    "155_athlete_sport_basketball",
    "125_world_country_Italy",
    "123_world_country_United_Kingdom",
    "124_world_country_United_States",
    "120_us_timezone_Chicago",
    "131_temp_cat_Typical Time",
    "122_us_timezone_Los_Angeles",
    "121_us_timezone_New_York",
    "130_temp_cat_Frequency",
    "132_temp_cat_Event Ordering",
    "114_nyc_borough_Manhattan",
    "115_nyc_borough_Brooklyn",
    "116_nyc_borough_Bronx",
    "127_art_type_song",
    "128_art_type_movie",
    "134_context_type_Belief_states",
    "133_context_type_Causality",
    "126_art_type_book",
    "135_context_type_Event_duration",
    "129_arith_mc_A",
    "24_headline_isiran",
    "6_hist_fig_isamerican",
    "41_truthqa_tf",
    "7_hist_fig_ispolitician",
    "22_headline_isobama",
)
"""The 30 of its 113 sets whose texts have at most 100,000 characters together, smallest first: 64,000
of its 334,000 texts."""

_LISTING = "python -c 'from sae_probes import DATASETS; print(*DATASETS)'"


def chosen_sets(asked: str) -> list[str]:
    """The names of the sets that `--probing-sets` asks for.

    Arguments:
        asked: "smallest", "all", or names separated by commas.

    Raises: BenchError for a name that sae-probes does not have.
    """
    if asked == SMALLEST:
        return list(SMALLEST_SETS)
    from sae_probes import DATASETS  # pyright: ignore[reportMissingImports]

    if asked == ALL:
        return list(DATASETS)
    names = list(dict.fromkeys(name.strip() for name in asked.split(",") if name.strip()))
    for name in names or [asked]:
        if name not in DATASETS:
            close = likely(name, DATASETS) or DATASETS[:3]
            raise BenchError(
                f"sae-probes has no data set {name!r}",
                name="probing_sets",
                value=asked,
                expected=f"{SMALLEST}, {ALL}, or names separated by commas, e.g. {', '.join(close)}",
                instead=f"`{_LISTING}` lists all",
            )
    return names
