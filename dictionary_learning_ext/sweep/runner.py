"""Sweeps without a server: wandb's sweep files, run on this machine from shared buffers.

All configurations that share language model, hook point, text and training settings are trained in
one process on the same batches, as many at once as memory allows; each gives the same weights, to
the bit, as its own single run. A sweep that was stopped goes on when it is started again.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from ..config.run_config import TrainConfig
from ..config.sae_config import SAEConfig
from ..errors import ConfigError, TrainingError
from ..run_folder.names import CONFIG, FAILED, SWEEP
from ..run_folder.writing import write_json

logger = logging.getLogger(__name__)

_KEYS = {"name", "project", "entity", "description", "program", "method", "metric", "parameters"}
_KEYS |= {"command", "run_cap"}
_DISTRIBUTIONS = ("uniform", "log_uniform_values", "int_uniform", "categorical", "constant")


@dataclass(frozen=True)
class Sweep:
    """A wandb sweep file that can be run here."""

    name: str
    flags: list[str]
    """of `vsae train`, for every run"""
    assignments: list[dict[str, Any]]
    """of each run, what is swept"""


def read_sweep(path: Path, seed: int = 0) -> Sweep:
    """Read a sweep file.

    Arguments:
        seed: of the draws of a random search.

    Raises: ConfigError that names what is wrong with it.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path}: no such file; give a sweep file, as sweeps/embedded.yaml"
        ) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        cause = " ".join(str(error).split())
        raise ConfigError(f"{path}: no YAML ({cause}); see sweeps/embedded.yaml") from error
    if not isinstance(content, dict) or not isinstance(content.get("parameters"), dict):
        raise ConfigError(
            f"{path}: expected wandb's keys method and parameters; see sweeps/embedded.yaml"
        )
    if unknown := sorted(map(str, content.keys() - _KEYS)):
        raise ConfigError(
            f"{path}: unknown key {unknown[0]!r}; expected {', '.join(sorted(_KEYS))}"
        )
    parameters = {str(name): _choices(path, name, p) for name, p in content["parameters"].items()}
    method = content.get("method")
    if method == "bayes":
        raise ConfigError(
            f"{path}: method bayes needs wandb's server: `wandb sweep {path}` and `wandb agent ID`; "
            "here, use grid or random"
        )
    if method == "grid":
        assignments = _grid(path, parameters)
    elif method == "random":
        assignments = _random(path, parameters, content.get("run_cap"), seed)
    else:
        raise ConfigError(f"{path}: method is {method!r}; expected grid or random")
    if not assignments:
        raise ConfigError(f"{path}: an empty grid; give every parameter a value or values")
    return Sweep(str(content.get("name") or path.stem), _flags(path, content), assignments)


def _flags(path: Path, content: dict[str, Any]) -> list[str]:
    """What `command` gives `vsae train` in every run."""
    command = content.get("command", ["vsae", "train", "${args}"])
    words = [str(word) for word in command] if isinstance(command, list) else []
    if words[:2] != ["vsae", "train"] or words[-1] != "${args}":
        raise ConfigError(
            f"{path}: command is {command!r}; expected a list of vsae, train, any flags of it, and "
            "${args} at the end"
        )
    flags = words[2:-1]
    # A sweep here names and resumes its folders itself.
    own = [flag for flag in flags if flag.startswith(("--resume", "--save-dir", "--save_dir"))]
    if unusable := [flag for flag in own if flag != "--resume=auto"]:
        raise ConfigError(
            f"{path}: command has {unusable[0]}; expected --resume=auto or none, and no --save-dir"
        )
    return [flag for flag in flags if flag not in own]


def _choices(path: Path, name: Any, parameter: Any) -> Any:
    """A list of values, or a scipy distribution to draw them from."""
    where = f"{path}: parameter {name!r}"
    if not isinstance(parameter, dict):
        raise ConfigError(f"{where} is {parameter!r}; expected value, values, or min and max")
    kind = parameter.get("distribution")
    if kind is not None and kind not in _DISTRIBUTIONS:
        raise ConfigError(
            f"{where}: distribution {kind!r} is not run here; expected one of "
            f"{', '.join(_DISTRIBUTIONS)}, or use wandb's server"
        )
    if "value" in parameter:
        return [parameter["value"]]
    if "values" in parameter:
        values = parameter["values"]
        if not isinstance(values, list):
            raise ConfigError(f"{where}: values is {values!r}; expected a list")
        for value in values:
            if isinstance(value, str) and _is_number(value):
                raise ConfigError(
                    f"{where}: YAML reads {value} as text; write it with a point, as 1.0e-4"
                )
        return values
    low, high = parameter.get("min"), parameter.get("max")
    if not all(isinstance(n, int | float) and not isinstance(n, bool) for n in (low, high)):
        raise ConfigError(
            f"{where}: min={low!r}, max={high!r}; expected value, values, or min and max"
        )
    assert low is not None
    assert high is not None
    if low >= high or (kind == "log_uniform_values" and low <= 0):
        raise ConfigError(
            f"{where}: min={low} and max={high}; expected min below max, above 0 for a log"
        )
    from scipy import stats

    if kind == "log_uniform_values":
        return stats.loguniform(low, high)
    if kind == "int_uniform" or (kind is None and isinstance(low, int) and isinstance(high, int)):
        return stats.randint(low, high + 1)
    return stats.uniform(low, high - low)


def _grid(path: Path, parameters: dict[str, Any]) -> list[dict[str, Any]]:
    from sklearn.model_selection import ParameterGrid

    for name, choices in parameters.items():
        if not isinstance(choices, list):
            raise ConfigError(f"{path}: parameter {name!r} has min and max; a grid needs values")
        if not choices:
            raise ConfigError(f"{path}: parameter {name!r} has no values: an empty grid")
    return list(ParameterGrid(parameters))


def _random(path: Path, parameters: dict[str, Any], cap: Any, seed: int) -> list[dict[str, Any]]:
    from sklearn.model_selection import ParameterSampler

    if type(cap) is not int or cap < 1:
        raise ConfigError(
            f"{path}: run_cap is {cap!r}; a random search needs a number of runs, as 20"
        )
    sampled = ParameterSampler(parameters, cap, random_state=seed)
    return [{n: v.item() if hasattr(v, "item") else v for n, v in one.items()} for one in sampled]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def configurations(
    sweep: Sweep, parse: Callable[[list[str]], TrainConfig], extra: Sequence[str] = ()
) -> dict[str, TrainConfig]:
    """Every run's configuration by its name, made as an agent's command line would make it.

    Arguments:
        parse: from flags of `vsae train` to a configuration.
        extra: flags that win over the file's.

    Raises: ConfigError for a value that is none, before anything runs.
    """
    found: dict[str, TrainConfig] = {}
    for assignment in sweep.assignments:
        swept = [f"--{name}={value}" for name, value in assignment.items()]
        config = parse([*sweep.flags, *swept, *extra])
        config = replace(config, sae=config.sae.resolve(config.run.steps, config.run.batch_size))
        if config.name in found:
            raise ConfigError(
                f"{sweep.name}: two runs have the settings {assignment}; take one out"
            )
        found[config.name] = config
    return found


def run_sweep(
    configs: dict[str, TrainConfig], save_dir: Path, at_once: int | None = None
) -> dict[str, Path]:
    """Train every configuration, or those that are left where the sweep was stopped.

    Arguments:
        save_dir: gets a run folder for each, by its name.
        at_once: how many are trained together; as many as memory allows unless told.

    Returns: the run folder of each that did not fail.

    Raises: ConfigError if save_dir holds another sweep; TrainingError in the end if some failed.
    """
    from ..training.loop import train

    at_once = _manifest(configs, save_dir, at_once)
    failures, folders = [], {}
    for group in _groups(configs):
        for start in range(0, len(group), at_once):
            chunk: dict[str, SAEConfig] = {}
            for name in group[start : start + at_once]:
                if (save_dir / name / FAILED).is_file():
                    failures.append(f"{name} failed before (see {save_dir / name / FAILED})")
                else:
                    chunk[name] = configs[name].sae
            if not chunk:
                continue
            only = save_dir / next(iter(chunk)) if len(chunk) == 1 else save_dir
            run = replace(configs[next(iter(chunk))].run, save_dir=str(only))
            begun = any((save_dir / name / CONFIG).is_file() for name in chunk)
            try:
                train(run, chunk, resume=begun)
            except TrainingError as error:
                failures.append(str(error))
            for name in chunk:
                if not (save_dir / name / FAILED).is_file():
                    folders[name] = save_dir / name
    if failures:
        raise TrainingError("; ".join(failures))
    return folders


def _groups(configs: dict[str, TrainConfig]) -> list[list[str]]:
    """The names of those that can share a buffer and a loop, together."""
    groups: dict[str, list[str]] = {}
    for name, config in configs.items():
        groups.setdefault(repr(config.run), []).append(name)
    return list(groups.values())


def _manifest(configs: dict[str, TrainConfig], save_dir: Path, at_once: int | None) -> int:
    """Note in save_dir which sweep it holds; how many are trained at once."""
    names = sorted(configs)
    digest = hashlib.sha256(json.dumps(names).encode()).hexdigest()
    path = save_dir / SWEEP
    if path.is_file():
        former = json.loads(path.read_text(encoding="utf-8"))
        if former["digest"] != digest:
            raise ConfigError(
                f"{save_dir}: holds another sweep, of {len(former['runs'])} runs as "
                f"{former['runs'][0]}; choose another --save-dir"
            )
        if at_once not in (None, former["at_once"]):
            raise ConfigError(
                f"--at-once {at_once}: the sweep was begun with {former['at_once']}; leave it out"
            )
        return former["at_once"]
    at_once = memory_allows(configs) if at_once is None else at_once
    write_json(path, {"digest": digest, "at_once": at_once, "runs": names})
    return at_once


def memory_allows(configs: dict[str, TrainConfig]) -> int:
    """How many SAEs fit into half of the memory that is free, with their Adam state."""
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
