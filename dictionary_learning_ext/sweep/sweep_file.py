"""wandb's sweep files: which runs a file describes, and the configuration of each."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from ..config.checks import did_you_mean, is_of_type
from ..config.names import names_in_sweep
from ..config.run import TrainConfig
from ..errors import ConfigError, UserError, in_shell
from ..run_folder.files import require_folder_name

logger = logging.getLogger(__name__)

_EXAMPLE = "sweeps/embedded.yaml"
_KEYS = {"name", "project", "entity", "description", "program", "method", "metric", "parameters"}
_KEYS |= {"command", "run_cap"}
_PARAMETER_KEYS = {"value", "values", "min", "max", "distribution"}
_STARTS = {"preset", "config"}
"""What a run starts from: one of them, so that a typed one replaces the file's."""
_OWN = {"save_dir", "overwrite", "resume"}
"""Flags that a sweep file can't set, since the sweep itself names and continues its runs."""
_FOR_AGENTS = "--wandb=online"
"""What only wandb's agents take from a file, so that a local sweep of the same file needs no server."""
_DISTRIBUTIONS = ("uniform", "log_uniform_values", "int_uniform", "categorical", "constant")

_MOST_DRAWS = 100
"""How often a random search draws for each of its runs, as some draws repeat others."""
_MOST_RUNS = 100_000


@dataclass(frozen=True)
class Sweep:
    """The content of a wandb sweep file that can be run here."""

    file: Path
    name: str
    flags: list[str]
    """Flags of `vsae train` that every run shares."""
    assignments: list[dict[str, Any]]
    """The swept settings of each run."""


def read_sweep(path: Path, seed: int = 0) -> Sweep:
    """Read a sweep file; `seed` seeds the draws of a random search.

    Raises: ConfigError that names the mistake in the file.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        what = f"can't be read ({error.strerror})"
        if isinstance(error, IsADirectoryError):
            what = f"a folder; to show a sweep's results, use --results {in_shell(path)}"
        raise ConfigError(f"{path}: {what}", expected=f"a sweep file, e.g. {_EXAMPLE}") from error
    except (ValueError, yaml.YAMLError) as error:  # ValueError: a date that is none, not UTF-8
        cause = " ".join(str(error).split())
        raise ConfigError(
            f"{path}: not valid YAML ({cause}); for an example, see {_EXAMPLE}"
        ) from error
    if isinstance(content, dict):
        _require_known(str(path), content, _KEYS)
    if not isinstance(content, dict) or not isinstance(content.get("parameters"), dict):
        raise ConfigError(
            f"{path}: expected wandb's keys method and parameters; for an example, see {_EXAMPLE}"
        )
    parameters: dict[str, Any] = {}
    for given, parameter in content["parameters"].items():
        name = str(given).replace("-", "_")
        if name in parameters:
            raise ConfigError(f"{path}: parameter {name!r} is there twice; remove one of them")
        parameters[name] = _choices(path, given, parameter)
    if own := sorted(parameters.keys() & _OWN):
        raise ConfigError(
            f"{path}: parameter {own[0]!r}: a local sweep names, keeps and resumes its runs' folders itself",
            instead="leave it out",
        )
    method, cap = content.get("method"), content.get("run_cap")
    if cap is not None and (type(cap) is not int or not 1 <= cap <= _MOST_RUNS):
        raise ConfigError(f"{path}: run_cap is {cap!r}; expected 1 to {_MOST_RUNS:,} runs, e.g. 20")
    if method == "grid":
        assignments = _grid(path, parameters, cap)
    elif method == "random":
        assignments = _random(path, parameters, cap, seed)
    else:
        others = (
            f"others need wandb's server: run `wandb sweep {in_shell(path)}`, then `wandb agent ID`"
        )
        raise ConfigError(f"{path}: method is {method!r}; expected grid or random; {others}")
    name = str(content.get("name") or path.stem)
    require_folder_name(name, f"{path}: name")
    return Sweep(path, name, _flags(path, content), assignments)


def configurations(
    sweep: Sweep, parse: Callable[[list[str]], TrainConfig], fixed: Sequence[str] = ()
) -> dict[str, TrainConfig]:
    """The configuration of every run, by its folder's name: the same that a wandb agent's command would give.

    Arguments:
        parse: turns flags of `vsae train` into a configuration.
        fixed: flags that override those in the file's command.

    Raises: UserError for an invalid value, or a fixed flag that the file sweeps, before anything
    runs. It names the file unless the mistake is in the fixed flags.
    """
    typed = _names(fixed)
    refused = dict.fromkeys(sweep.assignments[0], f"{sweep.file} sweeps it")
    refused |= {"resume": "a sweep continues by itself", "overwrite": "a sweep keeps its runs"}
    for name in sorted(typed & refused.keys()):
        raise ConfigError(refused[name], name=name, instead="leave it out")
    shared = _without_start(sweep.flags) if typed & _STARTS else sweep.flags
    if _FOR_AGENTS in shared and "wandb" not in typed:
        logger.info("%s: not logged to wandb; to log the runs, add --wandb online", sweep.file)
    shared = [flag for flag in shared if flag != _FOR_AGENTS]
    configs = []
    for assignment in sweep.assignments:
        swept = [f"--{name}={value}" for name, value in assignment.items()]
        try:
            config = parse([*shared, *fixed, *swept])
            resolved = config.sae.resolve(config.run.steps)
        except UserError as error:
            if error.name in typed:
                raise
            raise error.within(str(sweep.file)) from error
        if len(config.run.hooks) > 1:
            raise ConfigError(
                "a run of a sweep has one hook point",
                name="hook",
                value=config.run.hook,
                instead=f"sweep hook in {sweep.file}, with values {config.run.hooks}",
            )
        configs.append(replace(config, sae=resolved))
    found: dict[str, TrainConfig] = {}
    names = names_in_sweep(sweep.assignments, configs)
    for name, config, assignment in zip(names, configs, sweep.assignments, strict=True):
        if name in found:
            raise ConfigError(
                f"{sweep.file}: two runs have the settings {assignment}; remove one of them"
            )
        found[name] = config
    return found


def _names(flags: Sequence[str]) -> set[str]:
    """The names of the settings that these flags give."""
    return {
        flag.removeprefix("--").partition("=")[0].replace("-", "_")
        for flag in flags
        if flag.startswith("--")
    }


def _without_start(flags: Sequence[str]) -> list[str]:
    """The flags without --preset and --config, and without their values."""
    kept, rest = [], list(flags)
    while rest:
        flag = rest.pop(0)
        if not _names([flag]) & _STARTS:
            kept.append(flag)
        elif "=" not in flag and rest:
            rest.pop(0)
    return kept


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
    if own := [flag for flag in flags if _names([flag]) & _OWN]:
        raise ConfigError(
            f"{path}: command has {own[0]}; a sweep names, keeps and resumes its runs' folders itself",
            instead="leave it out",
        )
    return flags


def _require_known(where: str, content: dict[Any, Any], known: set[str]) -> None:
    for key in content:
        if key not in known:
            expected = ", ".join(sorted(known)) + did_you_mean(key, sorted(known))
            raise ConfigError(f"{where}: unknown key {key!r}; expected {expected}")


def _choices(path: Path, name: Any, parameter: Any) -> Any:
    """A parameter's list of values, or the scipy distribution to draw them from."""
    where = f"{path}: parameter {name!r}"
    if not isinstance(parameter, dict):
        raise ConfigError(f"{where} is {parameter!r}; expected value, values, or min and max")
    kind = parameter.get("distribution")
    if kind is not None and kind not in _DISTRIBUTIONS:
        raise ConfigError(
            f"{where}: distribution {kind!r} needs wandb's server; to run it here, use one of "
            f"{', '.join(_DISTRIBUTIONS)}"
        )
    _require_known(where, parameter, _PARAMETER_KEYS)
    if "value" in parameter or "values" in parameter:
        values = [parameter["value"]] if "value" in parameter else parameter["values"]
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{where}: values is {values!r}; expected a list that is not empty")
        return values
    low: Any = parameter.get("min")
    high: Any = parameter.get("max")
    if not (is_of_type(low, float) and is_of_type(high, float)):
        raise ConfigError(
            f"{where}: min={low!r}, max={high!r}; expected value, values, or finite min and max"
        )
    if low >= high or (kind == "log_uniform_values" and low <= 0):
        raise ConfigError(
            f"{where}: min={low} and max={high}; expected min below max, and min above 0 for "
            "log_uniform_values"
        )
    from scipy import stats

    if kind == "log_uniform_values":
        return stats.loguniform(low, high)
    if kind == "int_uniform" or (kind is None and isinstance(low, int) and isinstance(high, int)):
        return stats.randint(int(low), int(high) + 1)
    return stats.uniform(low, high - low)


def _grid(path: Path, parameters: dict[str, Any], cap: int | None) -> list[dict[str, Any]]:
    from sklearn.model_selection import ParameterGrid

    for name, choices in parameters.items():
        if not isinstance(choices, list):
            raise ConfigError(f"{path}: parameter {name!r} has min and max; a grid needs values")
    if cap is None and (there := math.prod(map(len, parameters.values()))) > _MOST_RUNS:
        raise ConfigError(f"{path}: a grid of {there:,} runs; set run_cap, or sweep fewer values")
    return list(islice(ParameterGrid(parameters), cap))


def _random(
    path: Path, parameters: dict[str, Any], cap: int | None, seed: int
) -> list[dict[str, Any]]:
    """`cap` different draws. Raises ConfigError if there are not so many."""
    from sklearn.model_selection import ParameterSampler

    if cap is None:
        raise ConfigError(f"{path}: a random search needs a number of runs, e.g. run_cap: 20")
    if all(isinstance(choices, list) for choices in parameters.values()):
        if (there := math.prod(map(len, parameters.values()))) < cap:
            logger.warning("%s: run_cap is %d, but there are only %d settings", path, cap, there)
        n = min(cap, there)  # drawn without replacement
        return list(ParameterSampler(parameters, n, random_state=seed))
    found: dict[str, dict[str, Any]] = {}
    for one in ParameterSampler(parameters, _MOST_DRAWS * cap, random_state=seed):
        values = {name: v.item() if hasattr(v, "item") else v for name, v in one.items()}
        found.setdefault(repr(values), values)
        if len(found) == cap:
            return list(found.values())
    raise ConfigError(
        f"{path}: run_cap is {cap}, but only {len(found)} different settings can be drawn; lower it,"
        " or widen the parameters"
    )
