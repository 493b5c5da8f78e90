"""wandb's sweep files: the runs that a file describes, and the settings of each."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import Any

import yaml

from ..config.checks import did_you_mean, is_of_type, require
from ..config.names import names_in_sweep
from ..config.run import TrainConfig
from ..errors import ConfigError, UserError, in_shell
from ..run_folder.files import require_folder_name

logger = logging.getLogger(__name__)

_EXAMPLE = "sweeps/embedded.yaml"
_KEYS = {"name", "project", "entity", "description", "program", "method", "metric", "parameters"}
_KEYS |= {"command", "run_cap"}
_PARAMETER_KEYS = {"value", "values"}
_STARTS = {"preset", "config"}
"""Flags for where a run's settings come from. A run takes one of them: one that the user typed replaces the file's."""
_OWN = {"save_dir", "overwrite", "resume"}
"""Flags that a sweep file can't set, because the sweep names its run folders and continues them."""
_FOR_AGENTS = "--wandb=online"
"""A flag in sweep files that a local sweep leaves out, as it needs wandb's server."""


@dataclass(frozen=True)
class Sweep:
    """The content of a wandb sweep file that can be run here."""

    file: Path
    name: str
    flags: list[str]
    """The flags of `vsae train` that all runs share."""
    assignments: list[dict[str, Any]]
    """The values of the swept settings, for each run."""
    metric: dict[str, Any] | None = None
    """The name of the metric that ranks the runs, and its goal, as the file has them."""


def read_sweep(path: Path) -> Sweep:
    """Read a sweep file. Raises ConfigError that names the mistake in the file."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        what = f"can't be read ({error.strerror})"
        if isinstance(error, IsADirectoryError):
            what = f"a folder; to show a sweep's results, use --results {in_shell(path)}"
        raise ConfigError(f"{path}: {what}", expected=f"a sweep file, e.g. {_EXAMPLE}") from error
    except (ValueError, yaml.YAMLError) as error:  # ValueError: a date that is none, not UTF-8
        cause = " ".join(str(error).split())
        what = f"{path}: not valid YAML ({cause})"
        raise ConfigError(what, instead=f"for an example, see {_EXAMPLE}") from error
    try:
        return _sweep(path, content)
    except ConfigError as error:
        raise error.within(str(path)) from error


def _sweep(path: Path, content: Any) -> Sweep:
    """The sweep that a file's content describes. Raises ConfigError, without the file's name."""
    content = content if isinstance(content, dict) else {}
    _require_known("", content, _KEYS)
    if not isinstance(content.get("parameters"), dict):
        example = f"for an example, see {_EXAMPLE}"
        raise ConfigError(expected="wandb's keys method and parameters", instead=example)
    command = content.get("command", ["vsae", "train", "${args}"])
    words = [str(word) for word in command] if isinstance(command, list) else []
    expected = "a list: vsae, train, any of its flags, and ${args} last"
    require(words[:2] == ["vsae", "train"] and words[-1] == "${args}", "command", command, expected)
    flags = words[2:-1]
    others = (
        f"others need wandb's server: run `wandb sweep {in_shell(path)}`, then `wandb agent ID`"
    )
    require(
        content.get("method") == "grid", "method", content.get("method"), "grid", instead=others
    )
    parameters = {
        str(name).replace("-", "_"): _choices(name, parameter)
        for name, parameter in content["parameters"].items()
    }
    for own in sorted((parameters.keys() | _names(flags)) & _OWN):
        what = "a sweep names, keeps and resumes its run folders itself"
        raise ConfigError(what, name=own, instead="leave it out")
    cap = content.get("run_cap")
    is_number = cap is None or (is_of_type(cap, int) and cap > 0)
    require(is_number, "run_cap", cap, "a whole number above 0")
    every = islice(product(*parameters.values()), cap)
    assignments = [dict(zip(parameters, values, strict=True)) for values in every]
    name, metric = str(content.get("name") or path.stem), content.get("metric")
    require_folder_name(name, "name")
    has_name = metric is None or (isinstance(metric, dict) and isinstance(metric.get("name"), str))
    require(has_name, "metric", metric, "name: eval/fve, or another metric, and a goal")
    goal = (metric or {}).get("goal", "minimize")
    require(goal in ("minimize", "maximize"), "metric", metric, "a goal: minimize or maximize")
    return Sweep(path, name, flags, assignments, metric and {"name": metric["name"], "goal": goal})


def configurations(
    sweep: Sweep, parse: Callable[[list[str]], TrainConfig], fixed: Sequence[str] = ()
) -> dict[str, TrainConfig]:
    """The settings of every run, by the name of its folder. A wandb agent's command would give the same settings.

    Arguments:
        parse: turns flags of `vsae train` into settings.
        fixed: flags that override those in the file's command.

    Raises: UserError for an invalid value, or a fixed flag that the file sweeps. It names the file unless the
        mistake is in the fixed flags.
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
            config = config.resolved
        except UserError as error:
            if error.name in typed:
                raise
            raise error.within(str(sweep.file)) from error
        hooks, expected = config.run.hooks, "one hook point in a run of a sweep"
        instead = f"sweep hook in {sweep.file}, with values {hooks}"
        require(len(hooks) == 1, "hook", config.run.hook, expected, instead=instead)
        configs.append(config)
    return dict(zip(names_in_sweep(sweep.assignments, configs), configs, strict=True))


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


def _require_known(where: str, content: dict[Any, Any], known: set[str]) -> None:
    """Raise a ConfigError for a key that is not known."""
    for key in content:
        if key not in known:
            expected = ", ".join(sorted(known)) + did_you_mean(key, sorted(known))
            raise ConfigError(f"{where}unknown key {key!r}; expected {expected}")


def _choices(name: Any, parameter: Any) -> list[Any]:
    """The list of a parameter's values."""
    where = f"parameter {name!r}"
    expected = ConfigError(
        f"{where} is {parameter!r}", expected="value, or a list of values that is not empty"
    )
    if not isinstance(parameter, dict):
        raise expected
    _require_known(f"{where}: ", parameter, _PARAMETER_KEYS)
    values = [parameter["value"]] if "value" in parameter else parameter.get("values")
    if not isinstance(values, list) or not values:
        raise expected
    return values
