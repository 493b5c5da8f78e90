"""Run a wandb sweep file on this machine, without wandb's server.

Configurations that share the language model, text and training settings are trained in one process on
the same batches, or on the same text at several hook points. As many are trained at once as memory
allows: on this process's device, or on several with a process each. Each gets the same weights, bit
for bit, as it would in a run of its own. Rerunning an interrupted sweep continues it.
"""

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from signal import SIGINT

from ..config.run import TrainConfig
from ..errors import Interrupted, TrainingError, UserError
from ..run_folder.names import FAILED
from ..run_folder.writing import is_of_a_full_disk
from .chunk import chunks_of
from .manifest import Manifest, begin, is_done, withdraw

logger = logging.getLogger(__name__)


def run_sweep(
    configs: dict[str, TrainConfig],
    save_dir: Path,
    at_once: int | None = None,
    *,
    devices: Sequence[str] = (),
    name: str | None = None,
    command: str | None = None,
    on_begin: Callable[[Manifest], None] = lambda manifest: None,
) -> dict[str, Path]:
    """Train every configuration, or those that an interrupted sweep has not finished.

    Arguments:
        save_dir: gets one run folder per configuration, named after it.
        at_once: how many to train together (default: as many as memory allows, and with several
            devices, at most each one's share).
        devices: train in a process for each of these (default: in this process, where the runs say).
        name: the sweep's, which groups its runs in wandb.
        command: what to type to continue.
        on_begin: called once it is certain which sweep save_dir holds, before anything is trained.

    Returns: the run folders, by name.

    Raises: ConfigError if save_dir holds another sweep, or there is no such device; other UserErrors
    for what no run can be trained with, e.g. a full disk; TrainingError, after all others have run, if
    any failed; Interrupted after a signal. A sweep that could begin no run leaves no folder.
    """
    if devices:
        from ..trainers.base import require_device

        for device in devices:
            require_device(device, "devices")
    for chunk in chunks_of(configs, save_dir, name, len(configs), _ended(configs, save_dir)):
        chunk.prepare()
    manifest = begin(
        configs,
        save_dir,
        at_once=at_once,
        memory_allows=memory_allows(configs, devices),
        name=name,
        command=command,
    )
    on_begin(manifest)
    try:
        return _run(configs, save_dir, manifest, devices)
    except KeyboardInterrupt as stop:
        signal = stop.signal if isinstance(stop, Interrupted) else SIGINT
        done = sum(is_done(save_dir / name) for name in configs)
        raise Interrupted(
            signal,
            f"stopped by {signal.name}; {done} of {len(configs)} runs are finished; "
            f"{manifest.how_to_continue}",
        ) from stop
    except UserError:
        withdraw(manifest, save_dir)
        raise


def _run(
    configs: dict[str, TrainConfig], save_dir: Path, manifest: Manifest, devices: Sequence[str]
) -> dict[str, Path]:
    failed = _failed(configs, save_dir)
    failures = [
        f"{name} failed earlier (see {save_dir / name / FAILED}; to train it again, delete its folder)"
        for name in failed
    ]
    ended = _ended(configs, save_dir)
    chunks = list(chunks_of(configs, save_dir, manifest.name, manifest.at_once, ended))
    if devices and chunks:
        from .device_pool import train_on

        failures += train_on(devices, chunks)
    else:
        for chunk in chunks:
            try:
                chunk.train()
            except TrainingError as error:  # names its SAEs
                failures.append(error.as_typed)
            except UserError as error:
                if len(chunks) == 1 or _hits_all(error):
                    raise
                failures.append(f"{chunk}: {error.as_typed}")
                logger.error("%s", failures[-1])
    if failures:
        raise TrainingError("; ".join(failures))
    return {name: save_dir / name for name in configs}


def _hits_all(error: UserError) -> bool:
    """Whether the other runs would end alike: the disk is full, or another process writes there."""
    cause = error.__cause__
    is_full = isinstance(cause, OSError) and is_of_a_full_disk(cause)
    return is_full or isinstance(cause, BlockingIOError)


def _failed(configs: dict[str, TrainConfig], save_dir: Path) -> list[str]:
    return [name for name in configs if (save_dir / name / FAILED).is_file()]


def _ended(configs: dict[str, TrainConfig], save_dir: Path) -> list[str]:
    """The runs that are finished or failed. Another is trained again once its folder is deleted."""
    done = [name for name in configs if is_done(save_dir / name)]
    return [*done, *_failed(configs, save_dir)]


def memory_allows(configs: dict[str, TrainConfig], devices: Sequence[str] = ()) -> int:
    """How many of the SAEs, with their Adam state, fit into half of the free memory.

    With several devices, no more than each one's share of the SAEs.
    """
    from ..training.memory import free_bytes, row_width, sae_bytes

    each = max(sae_bytes(c.sae, row_width(c.run)) for c in configs.values())
    devices = devices or [next(iter(configs.values())).run.device]
    free = min(free_bytes(device) / devices.count(device) for device in devices)
    return min(math.ceil(len(configs) / len(devices)), max(1, int(free / 2 / each)))
