"""Where a run starts: at its newest resume points, or at a trained SAE's weights (`--init-from`)."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch as t
from dictionary_learning.dictionary import Dictionary

from ..activations.batches import Batches
from ..activations.hook_points import HookPoint
from ..activations.rows import drawn_seed
from ..config.architectures import BY_DICT_CLASS, TRAINED
from ..config.checks import require
from ..config.run import MAY_MOVE, require_same
from ..config.sae import SAEConfig
from ..errors import CheckpointError, LanguageModelError
from ..run_folder.files import CONFIG, divided
from ..run_folder.foreign_weights import load_foreign
from ..run_folder.identity import differences, require_alike
from ..run_folder.reading import load_config
from ..run_folder.resume_points import NewestPoints, ResumePoint, newest_points
from ..run_folder.sae_folder import find_sae
from ..run_folder.weights import for_raw_activations, load_sae
from ..trainers.base import Trainer
from .plan import Plan
from .processes import Processes

logger = logging.getLogger(__name__)

_OPTIONAL = "log_var_encoder."
"""The prefix of weights that a trained SAE may lack: a learned log-variance then starts as usual."""

_AS_THE_POINT = "continue it with {former} (if you edited config.json, restore {former} there), or start a new run"


def points_of(planned: Plan, processes: Processes) -> NewestPoints:
    """The newest resume points that all SAEs of a run have, of this process's SAEs. No step if the run starts from scratch.
    Every rank must call it.

    Raises: CheckpointError if there are points and none can be used; ConfigError if the settings have changed.
    """
    if not planned.resume:
        return NewestPoints(None, {}, [])
    jobs, where = planned.jobs_of(processes), os.path.commonpath(planned.folders)
    found = newest_points(planned.folders, [job.folder for job in jobs], processes.are_all)
    for problem in found.problems:
        logger.warning("%s: skipped", problem)
    if found.step is None:
        # Only a resume point records the text. A folder without config.json was not begun.
        for job in (job for job in jobs if (job.folder / CONFIG).is_file()):
            was, but = load_config(job.folder).to_dict(), ("model", "activations")
            require_same(was, job.config.to_dict(), str(job.folder), but=but)
        logger.info("%s: no resume point yet; starting from scratch", where)
        return found
    for job in jobs:
        was, now = found.points[job.folder].settings, job.config.to_dict()
        require_same(was, now, str(job.folder), but=MAY_MOVE, advice=_AS_THE_POINT)
    device = planned.settings.device
    if processes.is_first and jobs and has_moved(point := found.points[jobs[0].folder], device):
        logger.warning(
            "%s: continues on %s, was on %s: the result is no longer bit-identical to an uninterrupted run's",
            *(where, device, point.settings["device"]),
        )
    logger.info("resuming from step %d of %s", found.step, ", ".join(map(str, planned.folders)))
    return found


def has_moved(point: ResumePoint, device: str) -> bool:
    """Whether a point was written on another kind of device, e.g. a GPU."""
    was = str(point.settings["device"])
    return was.partition(":")[0] != device.partition(":")[0]


def require_same_inputs(
    points: Mapping[Path, ResumePoint], model: str, hashes: dict[str, str], versions: dict[str, Any]
) -> None:
    """Raise a LanguageModelError if the language model has changed since a point was written. Warn if the versions of
    packages have.

    Arguments:
        points: by run folder.
        hashes, versions: the present ones, in the form of a `ResumePoint`.
    """
    changed = "it has changed since the run was interrupted: put the original back"
    for folder, point in points.items():
        both = {f"the language model {model!r}": hashes, str(folder): point.hashes}
        require_alike(both, LanguageModelError, changed)
        was = point.versions
        if names := differences(was, versions):
            differ = [f"{name} was {was[name]}, is {versions[name]}" for name in names]
            said = ", ".join(differ)
            logger.warning("%s: %s: the result may not be bit-identical", folder, said)


def continue_batches(
    batches: Batches, points: Mapping[str, ResumePoint], processes: Processes
) -> None:
    """Continue the batches at the resume points of this process's hook points.

    Every rank must call it, as a process may read hook points at which only other processes train SAEs.
    """
    states = {hook: point.batches for hook, point in points.items()}
    for of_rank in processes.gather(states):
        states |= of_rank
    batches.load_state_dict({hook: states[hook] for hook in batches.by_hook})


def restore(trainer: Trainer, point: ResumePoint, folder: Path, device: str) -> None:
    """Load the state of a resume point into a trainer.

    If the point was written on another kind of device, whose generators have another state, they get new seeds.
    """
    state = dict(point.trainer)
    if has_moved(point, device) and state.pop("generator", None) is not None:
        generator = cast(Any, trainer).generator
        generator.manual_seed(drawn_seed(generator.initial_seed(), "moved at", point.step))
    if trainer.part.is_split:
        from ..trainers.split import read_divided

        read_divided(trainer, state, divided(folder, point.step))
    trainer.load_state_dict(state)
    trainer.check(point.step)


# --- a trained SAE's weights


def trained_sae(sae: SAEConfig) -> Dictionary | None:
    """Load the SAE that init_from names, in float32, for raw activations. Returns None without init_from.

    The folder is one of `vsae train`, upstream's `trainSAE`, SAELens or sparsify.

    Raises: CheckpointError if the folder is damaged or missing; ConfigError if the SAE's class, dict_size or k differ
    from those in `sae`.
    """
    if sae.init_from is None:
        return None
    try:
        found = find_sae(sae.init_from)
        if found.form is not None:
            source = load_foreign(found, unit_norm=True)
        else:
            source = load_sae(found).float()
    except CheckpointError as error:
        raise error.within("init_from") from error
    _require_fit(sae, source)
    return source


def _require_fit(sae: SAEConfig, source: Any) -> None:
    """Raise a ConfigError unless `source` has the class, dict_size and k of the settings."""
    own, k = TRAINED[sae.architecture].dict_class, sae.kept_per_token
    wanted = {"class": own, "dict_size": sae.dict_size, "k": k}
    there = {
        "class": type(source).__name__,
        "dict_size": source.dict_size,
        "k": k and int(source.k),
    }
    if there["class"] in _classes_to_start_from(sae.architecture):
        there["class"] = own
    for name, value in wanted.items():
        expected = f"an SAE of {name}={value}, not {there[name]}"
        instead = "use the architecture, dict_size and k of that SAE"
        require(there[name] == value, "init_from", sae.init_from, expected, instead=instead)


def _classes_to_start_from(architecture: str) -> set[str]:
    """The dictionary classes from whose weights an architecture can start: its own class, the class that it is exported as,
    and those that are exported as its own. A vSAE can so start from upstream's TopK, and a TopK from a vSAE."""
    row = TRAINED[architecture]
    others = [
        each
        for each in BY_DICT_CLASS.values()
        if each.subtracts_b_dec == row.subtracts_b_dec
        and (each.dictionary == row.exported_as or each.exported_as == row.dictionary)
    ]
    return {row.dict_class, *(each.dict_class for each in others)}


@t.no_grad()
def start_from(
    trainer: Trainer, source: Dictionary, norm_factor: float, sae: SAEConfig, hook: HookPoint
) -> None:
    """Copy the weights of `source`, which takes raw activations, into a trainer that has taken no step.

    The trainer's settings (posterior, sigma, …) and optimiser stay as they are.

    Arguments:
        norm_factor: the number that raw activations are divided by in the new run.

    Raises: ConfigError if the activations have another width.
    """
    fits = source.activation_dim == hook.activation_dim
    width = f"activation_dim={hook.activation_dim}, as of {hook.name}, not {source.activation_dim}"
    require(fits, "init_from", sae.init_from, width, instead="give another model or hook")
    given = for_raw_activations(source, 1 / norm_factor).state_dict()  # in training units
    own = trainer.ae.state_dict()  # shares the weights' memory
    names = {name for name, _ in trainer.ae.named_parameters()}
    for name in names | ({"threshold"} & own.keys()):
        if name in given or not name.startswith(_OPTIONAL):
            own[name].copy_(trainer.part.own(name, given[name]))
    logger.info("starting from the weights of %s", sae.init_from)
