"""Which features come back between the seeds of each setting, among many run folders."""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from dictionary_learning.dictionary import Dictionary

from ..codes.codes import Codes, kept_codes
from ..config.run import RunConfig
from ..errors import LanguageModelError, UserError
from ..evaluation.folders import open_folders
from ..run_folder.comparing import grouped_by_setting
from ..run_folder.sae_folder import SAEFolder
from ..run_folder.weights import load_sae
from .directions import decoder_directions
from .reproduce import compare_saes
from .reproducibility import Numbers, Reproducibility

logger = logging.getLogger(__name__)


def compare_seeds(
    folders: Mapping[str, SAEFolder], *, encode: bool = False
) -> Iterator[tuple[list[str], Reproducibility]]:
    """Compare the seeds of each setting that has several: yields the names of a setting's SAEs, and which features come back.

    Of folders with the same seeds the first counts, as a copy of a run is not another seed. What SAEs do is compared where
    codes on one text are kept beside all of them, and otherwise their directions alone. A setting that can't be compared is
    left out with a warning.

    Arguments:
        folders: the SAEs, by their names.
        encode: encode held-out text with SAEs that were evaluated and with random tokens, and keep what is found. Default: no
            text is read.
    """
    failed: set[Any] = set()  # language models: one attempt and one warning for each
    known: dict[str, Numbers | None] = {}
    for names in grouped_by_setting(folders):
        by_seeds: dict[tuple[Any, ...], str] = {}
        for name in names:
            by_seeds.setdefault(folders[name].seeds, name)
        if len(by_seeds) < 2:
            continue
        logger.info("matching the features of %d seeds", len(by_seeds))
        seeds = {name: folders[name] for name in by_seeds.values()}
        model = folders[names[0]].source.get("model")
        try:
            saes = {name: load_sae(one, RunConfig.device) for name, one in seeds.items()}
            opened = None
            if encode and model not in failed and all(one.metrics for one in seeds.values()):
                try:
                    opened = open_folders([*seeds.values()], saes=saes)
                    opened.codes()
                except UserError as error:
                    if isinstance(error, LanguageModelError):
                        failed.add(model)
                    logger.warning("what the features do was not compared: %s", error)
            directions = {name: decoder_directions(sae) for name, sae in saes.items()}
            codes = _kept_codes(seeds, saes)
            yield names, compare_saes(seeds, directions, codes, opened, known=known)
        except UserError as error:
            logger.warning("which features come back was not measured: %s", error)


def _kept_codes(
    folders: Mapping[str, SAEFolder], saes: Mapping[str, Dictionary]
) -> dict[str, Codes] | None:
    """The codes that are kept beside SAEs; None unless all have codes on the same text."""
    kept = {name: kept_codes(one.results, saes[name], one.hash) for name, one in folders.items()}
    codes = {name: known for name, known in kept.items() if known is not None}
    texts = {known.reading.hash for known in codes.values()}
    return codes if len(codes) == len(saes) and len(texts) == 1 else None
