"""wandb's sweep files: which runs a file describes, and the configuration of each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from ..config.run_config import TrainConfig
from ..errors import ConfigError

_EXAMPLE = "sweeps/embedded.yaml"
_KEYS = {"name", "project", "entity", "description", "program", "method", "metric", "parameters"}
_KEYS |= {"command", "run_cap"}
_DISTRIBUTIONS = ("uniform", "log_uniform_values", "int_uniform", "categorical", "constant")


@dataclass(frozen=True)
class Sweep:
    """The content of a wandb sweep file that can be run here."""

    name: str
    flags: list[str]
    """Flags of `vsae train` that every run shares."""
    assignments: list[dict[str, Any]]
    """The swept settings of each run."""


def read_sweep(path: Path, seed: int = 0) -> Sweep:
    """Read a sweep file.

    Arguments:
        seed: seeds the draws of a random search.

    Raises: ConfigError that names the mistake in the file.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path}: no such file; expected a sweep file, e.g. {_EXAMPLE}"
        ) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        cause = " ".join(str(error).split())
        raise ConfigError(
            f"{path}: not valid YAML ({cause}); for an example, see {_EXAMPLE}"
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("parameters"), dict):
        raise ConfigError(
            f"{path}: expected wandb's keys method and parameters; for an example, see {_EXAMPLE}"
        )
    if unknown := sorted(map(str, content.keys() - _KEYS)):
        raise ConfigError(
            f"{path}: unknown key {unknown[0]!r}; expected {', '.join(sorted(_KEYS))}"
        )
    parameters = {str(name): _choices(path, name, p) for name, p in content["parameters"].items()}
    method = content.get("method")
    if method == "bayes":
        raise ConfigError(
            f"{path}: method bayes needs wandb's server: run `wandb sweep {path}`, then `wandb agent "
            "ID`; to run it here, use grid or random"
        )
    if method == "grid":
        assignments = _grid(path, parameters)
    elif method == "random":
        assignments = _random(path, parameters, content.get("run_cap"), seed)
    else:
        raise ConfigError(f"{path}: method is {method!r}; expected grid or random")
    if not assignments:
        raise ConfigError(f"{path}: the grid is empty; give every parameter a value or values")
    return Sweep(str(content.get("name") or path.stem), _flags(path, content), assignments)


def configurations(
    sweep: Sweep, parse: Callable[[list[str]], TrainConfig], extra: Sequence[str] = ()
) -> dict[str, TrainConfig]:
    """The configuration of every run, by name: the same that a wandb agent's command would give.

    Arguments:
        parse: turns flags of `vsae train` into a configuration.
        extra: flags that override those in the file.

    Raises: ConfigError for an invalid value, before anything runs.
    """
    found: dict[str, TrainConfig] = {}
    for assignment in sweep.assignments:
        swept = [f"--{name}={value}" for name, value in assignment.items()]
        config = parse([*sweep.flags, *swept, *extra])
        config = replace(config, sae=config.sae.resolve(config.run.steps, config.run.batch_size))
        if config.name in found:
            raise ConfigError(
                f"{sweep.name}: two runs have the settings {assignment}; remove one of them"
            )
        found[config.name] = config
    return found


def _flags(path: Path, content: dict[str, Any]) -> list[str]:
    """The flags that `command` passes to `vsae train` in every run."""
    command = content.get("command", ["vsae", "train", "${args}"])
    words = [str(word) for word in command] if isinstance(command, list) else []
    if words[:2] != ["vsae", "train"] or words[-1] != "${args}":
        raise ConfigError(
            f"{path}: command is {command!r}; expected a list: vsae, train, any of its flags, and "
            "${args} last"
        )
    flags = words[2:-1]
    # A local sweep names and resumes its folders itself.
    own = [flag for flag in flags if flag.startswith(("--resume", "--save-dir", "--save_dir"))]
    if unusable := [flag for flag in own if flag != "--resume=auto"]:
        raise ConfigError(
            f"{path}: command has {unusable[0]}; expected no --save-dir, and --resume=auto or no "
            "--resume"
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
            f"{where}: distribution {kind!r} needs wandb's server; to run it here, use one of "
            f"{', '.join(_DISTRIBUTIONS)}"
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
                    f"{where}: YAML reads {value} as text; write it with a decimal point, e.g. 1.0e-4"
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
            f"{where}: min={low} and max={high}; expected min below max, and min above 0 for "
            "log_uniform_values"
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
            raise ConfigError(f"{path}: parameter {name!r} has no values, so the grid is empty")
    return list(ParameterGrid(parameters))


def _random(path: Path, parameters: dict[str, Any], cap: Any, seed: int) -> list[dict[str, Any]]:
    from sklearn.model_selection import ParameterSampler

    if type(cap) is not int or cap < 1:
        raise ConfigError(
            f"{path}: run_cap is {cap!r}; a random search needs a number of runs, e.g. 20"
        )
    sampled = ParameterSampler(parameters, cap, random_state=seed)
    return [{n: v.item() if hasattr(v, "item") else v for n, v in one.items()} for one in sampled]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
