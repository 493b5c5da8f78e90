"""Runs of a sweep that are trained together, with one language model and one loop."""

import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..config.run import RunConfig, TrainConfig
from ..config.sae import SAEConfig
from ..run_folder.files import CONFIG, all_locked
from ..run_folder.reading import by_resume_step
from ..training.plan import plan

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Chunk:
    """Runs of a sweep that differ only in the settings of the SAE and in the hook point."""

    configs: dict[str, TrainConfig]
    """The settings of each run, by its name."""
    save_dir: Path
    """The sweep's folder."""
    sweep: str | None
    """The sweep's name, by which wandb groups its runs."""

    def __str__(self) -> str:
        first, *others = self.configs
        return f"{first} and {len(others)} more" if others else first

    def prepare(self) -> None:
        """Check the runs before anything is loaded or written.

        Raises what `plan` and `find_inputs` do, and ConfigError if another process trains them, e.g. one that a killed
        sweep left.
        """
        planned = plan(*self._given, resume=self._has_started)
        with all_locked(folder for folder in planned.folders if folder.exists()):
            pass
        from ..activations.inputs import find_inputs

        find_inputs(planned.settings, planned.hooks)

    def train(self) -> None:
        """Train the runs, or continue them. Raises what `loop.train` does."""
        from ..training.loop import train

        def log_start(folders: Sequence[Path], device: str) -> None:
            logger.info("training %s on %s", ", ".join(map(str, folders)), device)

        train(*self._given, resume=self._has_started, group=self.sweep, on_start=log_start)

    @property
    def _given(self) -> tuple[RunConfig, dict[str, SAEConfig], dict[str, str]]:
        """The first three arguments of `train`."""
        name, *others = self.configs
        save_dir = self.save_dir if others else self.save_dir / name
        run = replace(self.configs[name].run, save_dir=str(save_dir))
        saes = {name: config.sae for name, config in self.configs.items()}
        return run, saes, {name: config.run.site for name, config in self.configs.items()}

    @property
    def _has_started(self) -> bool:
        return any(
            (self.save_dir / name / CONFIG).is_file() and not config.run.overwrite
            for name, config in self.configs.items()
        )


def chunks_of(
    configs: dict[str, TrainConfig],
    save_dir: Path,
    sweep: str | None,
    at_once: int,
    without: Collection[str] = (),
) -> Iterator[Chunk]:
    """Divide runs into chunks of at most `at_once`. Runs that resume from different steps are in different chunks.

    Arguments:
        without: runs that are finished or failed, which no chunk has. They are counted, so that the others stay in the
            chunks that they began in.
    """
    groups: dict[str, list[str]] = {}
    for name, config in configs.items():
        groups.setdefault(repr(replace(config.run, hook="", target=None)), []).append(name)
    for names in groups.values():
        for start in range(0, len(names), at_once):
            chosen = [name for name in names[start : start + at_once] if name not in without]
            for together in by_resume_step([save_dir / name for name in chosen]):
                yield Chunk({each.name: configs[each.name] for each in together}, save_dir, sweep)
