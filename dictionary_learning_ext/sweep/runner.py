"""Run a wandb sweep file on this machine, without wandb's server.

Configurations that share the language model, hook point, text and training settings are trained in
one process on the same batches, as many at once as memory allows. Each gets the same weights, bit
for bit, as it would in a run of its own. Rerunning an interrupted sweep continues it.
"""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

from ..config.run_config import TrainConfig
from ..config.sae_config import SAEConfig
from ..errors import ConfigError, TrainingError
from ..run_folder.names import CONFIG, FAILED, SWEEP
from ..run_folder.writing import write_json


def run_sweep(
    configs: dict[str, TrainConfig], save_dir: Path, at_once: int | None = None
) -> dict[str, Path]:
    """Train every configuration, or those that an interrupted sweep has not finished.

    Arguments:
        save_dir: gets one run folder per configuration, named after it.
        at_once: how many to train together (default: as many as memory allows).

    Returns: the run folders of those that did not fail, by name.

    Raises: ConfigError if save_dir holds another sweep; TrainingError, after all others have run,
    if any failed.
    """
    from ..training.loop import train

    at_once = _manifest(configs, save_dir, at_once)
    failures, folders = [], {}
    for group in _groups(configs):
        for start in range(0, len(group), at_once):
            chunk: dict[str, SAEConfig] = {}
            for name in group[start : start + at_once]:
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
                train(run, chunk, resume=has_started)
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


def _manifest(configs: dict[str, TrainConfig], save_dir: Path, at_once: int | None) -> int:
    """Record in save_dir which sweep it holds; return how many are trained at once."""
    names = sorted(configs)
    digest = hashlib.sha256(json.dumps(names).encode()).hexdigest()
    path = save_dir / SWEEP
    if path.is_file():
        former = json.loads(path.read_text(encoding="utf-8"))
        if former["digest"] != digest:
            raise ConfigError(
                f"{save_dir}: holds another sweep of {len(former['runs'])} runs, e.g. "
                f"{former['runs'][0]}; choose another --save-dir"
            )
        if at_once not in (None, former["at_once"]):
            raise ConfigError(
                f"--at-once {at_once}: this sweep was started with {former['at_once']}; leave out "
                "--at-once to continue it"
            )
        return former["at_once"]
    at_once = memory_allows(configs) if at_once is None else at_once
    write_json(path, {"digest": digest, "at_once": at_once, "runs": names})
    return at_once


def memory_allows(configs: dict[str, TrainConfig]) -> int:
    """How many SAEs, with their Adam state, fit into half of the free memory."""
    import psutil

    from ..activations.language_models import width_of

    free, bytes_each = psutil.virtual_memory().available, 0
    for config in configs.values():
        parameters = 2 * config.sae.dict_size * width_of(config.run.model)
        bytes_each = max(bytes_each, 4 * 4 * parameters)  # weights, gradients, two averages; fp32
    if next(iter(configs.values())).run.device != "cpu":
        import torch

        free = torch.cuda.mem_get_info()[0]
    return max(1, int(free / 2 / bytes_each))
