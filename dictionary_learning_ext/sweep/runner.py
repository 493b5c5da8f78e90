"""Run a wandb sweep file on this machine, without wandb's server.

Configurations that share the language model, hook point, text and training settings are trained in
one process on the same batches, as many at once as memory allows. Each gets the same weights, bit
for bit, as it would in a run of its own. Rerunning an interrupted sweep continues it.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from signal import SIGINT

from ..config.run_config import TrainConfig
from ..config.sae_config import SAEConfig
from ..errors import Interrupted, TrainingError
from ..run_folder.names import CONFIG, FAILED
from .manifest import Manifest, begin, is_done


def run_sweep(
    configs: dict[str, TrainConfig],
    save_dir: Path,
    at_once: int | None = None,
    *,
    name: str | None = None,
    command: str | None = None,
    on_begin: Callable[[Manifest], None] = lambda manifest: None,
) -> dict[str, Path]:
    """Train every configuration, or those that an interrupted sweep has not finished.

    Arguments:
        save_dir: gets one run folder per configuration, named after it.
        at_once: how many to train together (default: as many as memory allows).
        name: the sweep's, which groups its runs in wandb.
        command: what to type to continue.
        on_begin: called once it is certain which sweep save_dir holds, before anything is trained.

    Returns: the run folders of those that did not fail, by name.

    Raises: ConfigError if save_dir holds another sweep; TrainingError, after all others have run,
    if any failed; Interrupted after a signal.
    """
    manifest = begin(
        list(configs),
        save_dir,
        at_once=at_once,
        memory_allows=memory_allows(configs),
        name=name,
        command=command,
    )
    on_begin(manifest)
    try:
        return _run(configs, save_dir, manifest)
    except KeyboardInterrupt as stop:
        signal = stop.signal if isinstance(stop, Interrupted) else SIGINT
        done = sum(is_done(save_dir / name) for name in configs)
        raise Interrupted(
            signal,
            f"stopped by {signal.name}; {done} of {len(configs)} runs are finished; "
            f"{manifest.how_to_continue}",
        ) from stop


def _run(configs: dict[str, TrainConfig], save_dir: Path, manifest: Manifest) -> dict[str, Path]:
    from ..training.loop import train

    failures, folders = [], {}
    for group in _groups(configs):
        for start in range(0, len(group), manifest.at_once):
            chunk: dict[str, SAEConfig] = {}
            for name in group[start : start + manifest.at_once]:
                if (save_dir / name / FAILED).is_file():
                    failures.append(f"{name} failed earlier (see {save_dir / name / FAILED})")
                else:
                    chunk[name] = configs[name].sae
            if not chunk:
                continue
            target = save_dir / next(iter(chunk)) if len(chunk) == 1 else save_dir
            run = replace(configs[next(iter(chunk))].run, save_dir=str(target))
            has_started = any((save_dir / name / CONFIG).is_file() for name in chunk)
            try:
                train(run, chunk, resume=has_started, group=manifest.name)
            except TrainingError as error:
                failures.append(str(error))
            for name in chunk:
                if not (save_dir / name / FAILED).is_file():
                    folders[name] = save_dir / name
    if failures:
        raise TrainingError("; ".join(failures))
    return folders


def _groups(configs: dict[str, TrainConfig]) -> list[list[str]]:
    """Names, grouped by what can share one buffer and training loop."""
    groups: dict[str, list[str]] = {}
    for name, config in configs.items():
        groups.setdefault(repr(config.run), []).append(name)
    return list(groups.values())


def memory_allows(configs: dict[str, TrainConfig]) -> int:
    """How many of the SAEs, with their Adam state, fit into half of the free memory."""
    from ..activations.language_models import width_of
    from ..training.memory import free_bytes, sae_bytes

    each = max(sae_bytes(c.sae.dict_size, width_of(c.run.model)) for c in configs.values())
    free = free_bytes(next(iter(configs.values())).run.device)
    return min(len(configs), max(1, int(free / 2 / each)))
