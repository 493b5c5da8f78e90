"""How far two SAEs have learned the same features."""

from pathlib import Path

import torch as t

from ..features.directions import decoder_directions
from ..features.reproducibility import Reproducibility, reproducibility
from ..features.reproducibility_of_folders import (
    require_different,
    require_one_place,
    warn_of_differences,
)
from ..run_folder.reading import read_config
from .opening import SAE, dictionary_of


def agreement(a: SAE, b: SAE) -> Reproducibility:
    """Compare the features of two SAEs, as `vsae reproduce` does.

    Features are matched one to one, by the cosines of what they add to the reconstruction. All of
    them count, those that never fire included. With two run folders, a warning says what else than
    their seeds differs.

    Arguments:
        a, b: dictionaries or run folders, of one activation_dim and one dict_size.

    Returns: the two, under the names "a" and "b".

        found.pair.pw_mcc          mean absolute cosine of matched features (Song et al. 2025)
        found.pair.null            the same of random directions with the same covariance
        found.pair.agreement       mean signed cosine, under its own matching
        found.pair.match_F         (F,), each feature of a: the absolute cosine with its match in b
        found.pair.matched_F       (F,), the number of that match
        found.returning("a")       the share of a's features with a match above 0.7 and 0.9
        found.within["a"]          mean cosine of a's features to their nearest in a itself

    Raises: ReproducibilityError if their shapes differ, or for one run folder given twice or two of
        different hook points or language models; CheckpointError for a folder that can't be read.
    """
    folders = [one for one in (a, b) if isinstance(one, str | Path)]
    if len(folders) == 2:
        require_different(folders)
        configs = {str(folder): read_config(folder) for folder in folders}
        require_one_place(configs)
        warn_of_differences(configs)
    return reproducibility({"a": _directions(a), "b": _directions(b)})


def _directions(sae: SAE) -> t.Tensor:
    return decoder_directions(dictionary_of(sae))
