"""The data sets of sae-probes (Kantamneni et al. 2025, arXiv 2502.16681), on which SAE Bench fits k-sparse probes."""

from ..config.checks import did_you_mean, require

ALL = "all"
SMALLEST = "smallest"
_SMALL = {6, 7, 22, 24, 41, *range(114, 136), 154, 155, 156}
"""The numbers of the 30 small data sets of 113, with which their names begin: those of at most 100,000 characters in all
texts together. They have 64,000 of its 334,000 texts."""
MAX_TOKENS = 1024
"""The most tokens of a text, from its end: sae-probes's own."""
_LISTING = "python -c 'from sae_probes import DATASETS; print(*DATASETS)'"


def chosen_sets(asked: str) -> list[str]:
    """The names of the data sets in `--probing-sets`: smallest, all, or names separated by commas.

    Raises: ConfigError for a name that sae-probes does not have.
    """
    from sae_probes import DATASETS  # takes seconds  # pyright: ignore[reportMissingImports]

    if asked == ALL:
        return list(DATASETS)
    if asked == SMALLEST:
        return [name for name in DATASETS if int(name.partition("_")[0]) in _SMALL]
    names = list(dict.fromkeys(name.strip() for name in asked.split(",") if name.strip()))
    for name in names or [asked]:
        expected = f"{SMALLEST}, {ALL}, or names separated by commas{did_you_mean(name, DATASETS)}"
        listed = f"`{_LISTING}` lists all"
        require(name in DATASETS, "probing_sets", asked, expected, instead=listed)
    return names
