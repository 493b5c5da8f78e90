"""A cache that the runs of a sweep read, so that the language model runs once although each has its own data order."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from ..config.hooks import sides_of
from ..config.run import RunConfig, TrainConfig
from ..errors import DiskError
from ..run_folder.cache_manifest import CacheDtype
from ..training.processes import interrupts

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SweepCache:
    """A cache that is written before a sweep's runs, and that each of them reads in its own order."""

    folder: Path
    tokens: int
    """The least number of tokens to cache for training."""
    dtype: CacheDtype = "float32"

    def read_by(self, configs: dict[str, TrainConfig]) -> dict[str, TrainConfig]:
        """The settings of the same runs, which read the cache."""
        return {
            name: replace(config, run=replace(config.run, activations=str(self.folder)))
            for name, config in configs.items()
        }

    def write(self, configs: dict[str, TrainConfig], is_read: bool) -> dict[str, TrainConfig]:
        """Write the cache, or continue it; see `write_cache`.

        Arguments:
            configs: the settings of the runs, without the cache.
            is_read: whether some runs read it already.

        Returns: the settings of the runs, which read the cache unless the disk is too small for it.

        Raises: DiskError if the disk is too small, and some runs read it already.
        """
        from ..activations.cache_writer import write_cache

        run = next(iter(configs.values())).run
        sites = [config.run.site for config in configs.values()]
        settings = replace(
            run,
            data_seed=0,  # one text for all seeds, whichever they are
            text_passes=None,
            eval_tokens=max(run.eval_tokens, RunConfig.eval_tokens),  # for reports and comparisons
        )
        try:
            with interrupts() as signals, signals.deferred():
                write_cache(
                    self.folder,
                    settings,
                    list(dict.fromkeys(side for site in sites for side in sides_of(site))),
                    self.tokens,
                    dtype=self.dtype,
                    overwrite=run.overwrite,
                    on_plan=logger.info,
                    before_batch=signals.check,
                )
        except DiskError as error:
            if is_read:
                raise DiskError(error.problem, instead="free some space to continue") from error
            logger.info(
                "%s. Continuing without a cache: the language model runs once per seed.",
                error.problem,
            )
            return configs
        return self.read_by(configs)
