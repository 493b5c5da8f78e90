"""One SAE's run in wandb. What goes wrong there is logged as a warning and never stops training."""

import logging
import math
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ..errors import ConfigError, Setting, first_line

logger = logging.getLogger(__name__)


class WandbLog:
    """A wandb run of an SAE.

    Arguments:
        folder: the run folder. It gives the run its name, and holds wandb's files.
        group: the name that the runs of one buffer share.
        settings: for wandb's config.
        tags: of the run.
        id: the run to resume, or None for a new one. A sweep's agent sets its own.
        logged: the last step that was logged there before. Steps up to it are not logged again.

    Attributes:
        id: the run's id.
        is_new: whether this is another run than `id`, so that what was logged there is missing.

    Raises: ConfigError if wandb can't start.
    """

    def __init__(
        self,
        folder: Path,
        *,
        mode: Literal["online", "offline"],
        project: str,
        group: str,
        settings: dict[str, Any],
        tags: Sequence[str] = (),
        id: str | None = None,
        logged: int = -1,
    ):
        import wandb

        self._is_agents = "WANDB_SWEEP_ID" in os.environ
        agents = os.environ.get("WANDB_RUN_ID") if self._is_agents else None
        self.is_new = id is None or agents not in (None, id)
        if mode == "online":
            mode = os.environ.get("WANDB_MODE", mode)  # pyright: ignore[reportAssignmentType]
        self._name, self._logged = folder.name, -1 if self.is_new else logged
        try:
            self._run: Any = wandb.init(
                project=project,
                name=folder.name,
                group=os.environ.get("WANDB_SWEEP_ID", group),
                config=settings,
                tags=list(tags),
                mode=mode,
                dir=folder,
                id=agents or id,
                resume="allow" if mode == "online" else None,
                reinit="create_new",
                settings=wandb.Settings(quiet=True),  # else each run of a sweep fills a screen
            )
        except Exception as error:  # of many kinds: usage, login, network, its own process
            raise ConfigError(
                f"wandb can't start ({first_line(error)})",
                name="wandb",
                value=mode,
                instead=("log in with `wandb login`, or use ", Setting("wandb", "offline")),
            ) from error
        self.id: str = self._run.id
        if mode == "online":  # the server knows what it has
            self._logged = self._run.starting_step - 1

    def log(self, metrics: Mapping[str, float | None]) -> None:
        """Log the finite numbers among `metrics` at its "step", once."""
        known = {name: v for name, v in metrics.items() if v is not None and math.isfinite(v)}
        if (step := int(known["step"])) > self._logged:
            self._try(lambda run: run.log(known, step=step))

    def summarize(self, metrics: dict[str, Any]) -> None:
        """Put the numbers among `metrics` into the run's summary, as eval/<name>."""
        known = {f"eval/{n}": v for n, v in metrics.items() if isinstance(v, int | float)}
        self._try(lambda run: run.summary.update(known))

    def upload(self, files: Sequence[Path]) -> None:
        """Upload files as an artifact of type "model", named after the run."""

        def upload(run: Any) -> None:
            import wandb

            artifact = wandb.Artifact(f"{self.id}-sae", type="model")
            for file in files:
                artifact.add_file(str(file))
            run.log_artifact(artifact)

        self._try(upload)

    def close(self, exit_code: int) -> None:
        """End the run: 0 is success.

        A sweep's run that SIGTERM ended is marked as pre-empted, so that wandb hands it out again.
        """
        if self._is_agents and exit_code == 128 + signal.SIGTERM:
            self._try(lambda run: run.mark_preempting())
        self._try(lambda run: run.finish(exit_code=exit_code))

    def _try(self, call: Any) -> None:
        if self._run is None:
            return
        try:
            call(self._run)
        except Exception as error:
            self._run = None
            if isinstance(error, ConnectionError):
                _end_service()
            logger.warning(
                "%s: wandb failed (%s); training continues, and metrics.jsonl has all the metrics",
                self._name,
                first_line(error),
            )


def _end_service() -> None:
    """Have wandb forget its process. Otherwise it ends the program with a traceback."""
    import wandb

    try:
        wandb.teardown()
    except Exception as error:
        logger.debug("wandb's process is gone: %s", error)
