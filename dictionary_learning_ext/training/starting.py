"""What a run does between its settings and its first step: builds, restores and starts every SAE."""

import logging
from collections.abc import Mapping
from pathlib import Path

from dictionary_learning.dictionary import Dictionary

from ..activations.buffer import Batches
from ..config.run import TrainConfig
from ..run_folder.resume_points import ResumePoint
from ..trainers.build import build_trainer
from .config_json import config_json
from .initial_weights import start_from
from .processes import Processes
from .resuming import restore_generators, state_of_rank
from .sae_run import SAERun, SilentSAERun

logger = logging.getLogger(__name__)


def built(
    configs: dict[str, TrainConfig],
    folders: dict[str, Path],
    device: str,
    sources: Batches,
    points: dict[Path, ResumePoint],
    initial: Mapping[str, Dictionary],
    processes: Processes,
) -> tuple[list[SAERun], int]:
    """Every SAE, initialised or restored from its resume point, and the step to start at.

    Arguments:
        device: of this process.
        initial: the trained SAE that each starts from, by name, if any.
    """
    if points:
        start = next(iter(points.values())).step
        of_hook = {config.run.hook: points[folders[name]] for name, config in configs.items()}
        with processes.together():
            states = {hook: state_of_rank(each, processes.rank) for hook, each in of_hook.items()}
            sources.load_state_dicts({hook: state["buffer"] for hook, state in states.items()})
        norm_factors = {hook: point.run["norm_factor"] for hook, point in of_hook.items()}
    else:
        start = 0
        with processes.together():
            mean_squared_norms = sources.mean_squared_norms()
        norm_factors = sources.norm_factors(processes.means(mean_squared_norms))
        for source in sources.sources.values():
            if outliers := source.outliers():
                logger.warning("%s", outliers)
    with processes.together():
        sae_runs = [
            _built(
                name,
                config,
                folders[name],
                device,
                sources,
                norm_factors[config.run.hook],
                processes,
            )
            for name, config in configs.items()
        ]
        for one in sae_runs:
            if one.name in initial:
                hook = sources.hooks[one.run.hook]
                start_from(one.trainer, initial[one.name], one.norm_factor, one.config.sae, hook)
    if processes.are_several:
        for one in sae_runs:
            one.trainer.join(processes.ranks)
    return sae_runs, start


def _built(
    name: str,
    config: TrainConfig,
    folder: Path,
    device: str,
    sources: Batches,
    norm_factor: float,
    processes: Processes,
) -> SAERun:
    run, hook = config.run, sources.hooks[config.run.hook]
    trainer = build_trainer(
        config.sae,
        steps=run.steps,
        activation_dim=hook.activation_dim,
        layer=hook.layer,
        lm_name=run.model,
        hook=hook.name,
        device=device,
        dtype=run.dtype,
        name=folder.name,
    )
    kind = SAERun if processes.is_first else SilentSAERun
    return kind(name, config, trainer, folder, norm_factor, processes)


def begin(
    sae_runs: list[SAERun],
    sources: Batches,
    points: dict[Path, ResumePoint],
    group: str | None,
    processes: Processes,
) -> None:
    """Start or resume every SAE. No folder is changed before it is certain that all can."""
    groups = {one.name: group or one.folder.resolve().parent.name for one in sae_runs}
    with processes.together():
        for one in sae_runs:
            if points:
                one.restore(points[one.folder])
                restore_generators(one.trainer, points[one.folder], processes.rank)
            else:
                one.open_wandb(groups[one.name])
    with processes.together():
        for one in sae_runs:
            if points:
                one.resume(points[one.folder], groups[one.name])
            else:
                one.start(config_json(one, sources.sources[one.run.hook].config))
