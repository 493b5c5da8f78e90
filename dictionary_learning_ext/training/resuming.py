"""What a run starts from: its newest resume points, or a trained SAE's weights (`--init-from`)."""

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch as t
from dictionary_learning.dictionary import Dictionary

from ..activations.buffer import Batches
from ..activations.hook_points import HookPoint
from ..activations.rows import drawn_seed
from ..config.architectures import BY_DICT_CLASS, TRAINED
from ..config.run import may_move, require_same
from ..config.sae import SAEConfig
from ..errors import CheckpointError, ConfigError, LanguageModelError, in_shell
from ..run_folder.foreign_weights import load_foreign
from ..run_folder.reading import read_config
from ..run_folder.resume_points import RankState, ResumePoint, newest_points
from ..run_folder.weights import for_raw_activations, load_dictionary
from ..trainers.base import Trainer
from ..trainers.state import load_trainer_state
from .plan import Job
from .processes import Processes

logger = logging.getLogger(__name__)

_OPTIONAL = "log_var_encoder."
"""The weights that a trained SAE may lack: those of a learned log-variance then start as usual."""


def checked_points(jobs: Sequence[Job], processes: Processes) -> list[ResumePoint]:
    """The newest resume point of each job, checked against its settings; empty if there are none yet.

    Raises: CheckpointError if there are points and none can be used; ConfigError for other settings
    or another number of processes.
    """
    points, problems = newest_points(job.folder for job in jobs)
    where = os.path.commonpath([job.folder for job in jobs])
    for problem in problems:
        logger.warning("%s: skipped", problem)
    if not points:
        logger.info("%s: no resume point yet; starting from scratch", where)
        return []
    first = points[jobs[0].folder]
    if has_moved(first, device := jobs[0].config.run.device):
        logger.warning(
            "%s: continues on %s, was on %s: the result is no longer bit-identical to an uninterrupted run's",
            *(where, device, first.settings["device"]),
        )
    for job in jobs:
        folder, point = job.folder, points[job.folder]
        run = job.config.run
        was = replace(run, activations=point.settings["activations"])
        require_same(point.settings, job.config.to_dict(), str(folder), but=may_move(was, run))
        count = len(point.ranks)
        if count != processes.count:  # each rank has its place in the text, and its own noise
            command = Processes(count=count, local_count=count // point.machines).command
            raise ConfigError(
                f"{where}: the run was started with {count} process{'es' if count > 1 else ''}, not "
                f"{processes.count}; continue with `{command} train --resume {in_shell(where)}`"
            )
    return [points[job.folder] for job in jobs]


def has_moved(point: ResumePoint, device: str) -> bool:
    """Whether a point was written on another kind of device than this one."""
    was = str(point.settings["device"])
    return was.partition(":")[0] != device.partition(":")[0]


def require_same_inputs(
    jobs: Sequence[Job],
    points: Sequence[ResumePoint],
    hashes: dict[str, str],
    versions: dict[str, Any],
) -> None:
    """Raise a LanguageModelError if the language model has changed since a point was written. Warns of other versions
    of the packages.

    Arguments:
        hashes, versions: those of now, as a `ResumePoint` has them.
    """
    for job, point in zip(jobs, points, strict=True):
        folder = job.folder
        for part, what in (("language_model", "weights"), ("tokenizer", "tokenizer or config")):
            if point.hashes[part] != hashes[part]:
                raise LanguageModelError(
                    f"{folder}: the language model {job.config.run.model!r} has changed since the "
                    f"run was interrupted: the SHA-256 or commit of its {what} was {point.hashes[part][:12]}, "
                    f"not {hashes[part][:12]}; put the original back"
                )
        if point.versions != versions:
            logger.warning(
                "%s: started with %s, resumes with %s: the result may not be bit-identical",
                folder,
                point.versions,
                versions,
            )
    where = ", ".join(str(job.folder) for job in jobs)
    logger.info("resuming from step %d of %s", points[0].step, where)


def rank_state(trainer: Trainer, batches: dict[str, Any]) -> RankState:
    """What this process adds to a trainer's resume point. `batches` is its place in the training data."""
    generators = {
        name: value.get_state().numpy().tobytes().hex()
        for name, value in vars(trainer.state_holder()).items()
        if isinstance(value, t.Generator)
    }
    return {"batches": batches, "generators": generators}


def continue_batches(
    batches: Batches, jobs: Sequence[Job], points: Sequence[ResumePoint], rank: int
) -> dict[str, float]:
    """Put the batches where the resume points have them. Returns the points' norm factors."""
    by_hook = {job.hook: point for job, point in zip(jobs, points, strict=True)}
    batches.load_state_dicts(
        {hook: point.ranks[rank]["batches"] for hook, point in by_hook.items()}
    )
    return {hook: point.norm_factor for hook, point in by_hook.items()}


def restore(trainer: Trainer, point: ResumePoint, rank: int, device: str) -> None:
    """Put a trainer where a point has it, with this rank's generators.

    Where the point was written on another kind of device, whose generators have another state, they are seeded anew.
    """
    holder, has_kept_its_kind = trainer.state_holder(), not has_moved(point, device)
    load_trainer_state(holder, point.trainer | {"generators": {}})
    for name, state in point.ranks[rank]["generators"].items():
        generator = getattr(holder, name)
        if has_kept_its_kind:
            generator.set_state(t.frombuffer(bytearray.fromhex(state), dtype=t.uint8))
        else:
            generator.manual_seed(drawn_seed(generator.initial_seed(), "moved at", point.step))
    trainer.check(point.step)


# --- a trained SAE's weights


def trained_sae(sae: SAEConfig) -> Dictionary | None:
    """The SAE that init_from names, in float32, for raw activations; None without init_from.

    The folder is one that `vsae train`, upstream's `trainSAE`, SAELens or sparsify wrote.

    Raises: CheckpointError if the folder is damaged or missing; ConfigError if its class, dict_size or
    k is another than `sae` has.
    """
    if sae.init_from is None:
        return None
    try:
        config = read_config(sae.init_from)
        if "foreign" in config:
            source = load_foreign(config, unit_norm=True)
        else:
            source = load_dictionary(sae.init_from)[0].float()
    except CheckpointError as error:
        raise error.within("init_from") from error
    _require_fit(sae, source)
    return source


def _require_fit(sae: SAEConfig, source: Any) -> None:
    """Raise a ConfigError unless an SAE can have the weights of `source`."""
    given, k = type(source).__name__, sae.kept_per_token
    if given not in _fitting_classes(sae.architecture):
        own = TRAINED[sae.architecture].dict_class
        problem = f"its class is {given}, not {own} (architecture {sae.architecture})"
        fitting = [name for name in TRAINED if given in _fitting_classes(name)]
        other = f"architecture={fitting[0]!r}" if fitting else None
    elif source.dict_size != sae.dict_size:
        problem = f"its dict_size is {source.dict_size}, not {sae.dict_size}"
        other = f"dict_size={source.dict_size}"
    elif k is not None and int(source.k) != k:
        problem = f"its k is {int(source.k)}, not {k}"
        has_k = "k" in sae.options
        other = f"k={int(source.k)}" if has_k else "architecture='vsae_top_k'"
    else:
        return
    raise ConfigError(
        problem,
        name="init_from",
        value=sae.init_from,
        instead=f"give {other}" if other else "no architecture starts from this class",
    )


def _fitting_classes(architecture: str) -> set[str]:
    """The classes whose weights are those of an architecture: its own, and upstream's TopK for vSAEs."""
    row = TRAINED[architecture]
    as_upstream = (row.exported_as or row.dictionary).partition(":")[2]
    exported_as_it = {
        each.dict_class for each in BY_DICT_CLASS.values() if each.exported_as == row.dictionary
    }
    return {row.dict_class, as_upstream} | exported_as_it


@t.no_grad()
def start_from(
    trainer: Trainer, source: Dictionary, norm_factor: float, sae: SAEConfig, hook: HookPoint
) -> None:
    """Give a trainer that has taken no step the weights of `source`, which takes raw activations.

    Its settings (posterior, sigma, …) and its optimiser stay its own.

    Arguments:
        norm_factor: what raw activations are divided by in the new run.

    Raises: ConfigError if the activations are not as wide as those of `source`.
    """
    if source.activation_dim != hook.activation_dim:
        raise ConfigError(
            f"its activation_dim is {source.activation_dim}, but {hook.name} is "
            f"{hook.activation_dim} wide",
            name="init_from",
            value=sae.init_from,
            instead="give another model or hook",
        )
    given = for_raw_activations(source, 1 / norm_factor).state_dict()  # in training units
    own = trainer.ae.state_dict()  # shares the weights' memory
    names = [name for name, _ in trainer.ae.named_parameters()]
    for name in [*names, *({"threshold"} & own.keys() - set(names))]:
        if name in given or not name.startswith(_OPTIONAL):
            own[name].copy_(given[name])
    logger.info("starting from the weights of %s", Path(sae.init_from or ""))
