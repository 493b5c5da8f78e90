"""Which features come back between the seeds of each setting, among many run folders."""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from ..codes.codes import Codes, kept_codes
from ..config.run import RunConfig
from ..errors import UserError
from ..evaluation.folders import Loaded, open_folders
from ..run_folder.comparing import grouped_by_setting
from ..run_folder.reading import read_metrics_if_any
from ..run_folder.sae_names import hash_of_sae, results_folder
from ..run_folder.settings import run_settings, seeds_of
from ..run_folder.weights import load_dictionary
from .directions import decoder_directions
from .random_tokens import Numbers
from .reproduce import ReturningFeatures, compare_saes

logger = logging.getLogger(__name__)


def compare_seeds(
    configs: Mapping[str, dict[str, Any]], *, encode: bool = False
) -> Iterator[tuple[list[str], ReturningFeatures]]:
    """Compare the seeds of each setting that has several: yields the setting's folders, and which features come back.

    Of folders with the same seeds the first counts, as a copy of a run is not another seed. What SAEs do is compared where
    codes on one text are kept beside all of them, and otherwise their directions alone. A setting that can't be compared is
    left out with a warning.

    Arguments:
        configs: each folder's config.json.
        encode: encode held-out text with SAEs that were evaluated and with random tokens, and keep what is found. Default: no
            text is read.
    """
    failed: set[Any] = set()  # language models: one attempt and one warning for each
    random_tokens: dict[str, Numbers | None] = {}
    for folders in grouped_by_setting(dict(configs)):
        by_seeds: dict[tuple[Any, ...], str] = {}
        for folder in folders:
            by_seeds.setdefault(seeds_of(configs[folder]), folder)
        if len(by_seeds) < 2:
            continue
        logger.info("matching the features of %d seeds", len(by_seeds))
        seeds = {folder: configs[folder] for folder in by_seeds.values()}
        model = run_settings(configs[folders[0]]).get("model")
        try:
            saes = {folder: load_dictionary(folder, RunConfig.device) for folder in seeds}
            opened = None
            if encode and model not in failed and all(map(read_metrics_if_any, seeds)):
                try:
                    opened = open_folders([*saes], saes=saes)
                    opened.codes()
                except UserError as error:
                    failed.add(model)
                    logger.warning("what the features do was not compared: %s", error)
            directions = {name: decoder_directions(sae) for name, (sae, _) in saes.items()}
            found = compare_saes(seeds, directions, codes=_kept_codes(saes))
            if opened is not None and found.codes is not None:
                found = found.against_random_tokens(opened, known=random_tokens)
            yield folders, found
        except UserError as error:
            logger.warning("which features come back was not measured: %s", error)


def _kept_codes(saes: Mapping[str, Loaded]) -> dict[str, Codes] | None:
    """The codes that are kept beside SAEs; None unless all have codes on the same text."""
    kept = {
        name: kept_codes(results_folder(name), sae, hash_of_sae(name))
        for name, (sae, _) in saes.items()
    }
    codes = {name: known for name, known in kept.items() if known is not None}
    texts = {known.reading.hash for known in codes.values()}
    return codes if len(codes) == len(saes) and len(texts) == 1 else None
