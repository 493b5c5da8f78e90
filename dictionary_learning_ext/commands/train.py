"""`vsae train`: one SAE."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from ..config import RunConfig, TrainConfig, load_config
from ..errors import UserError
from ..presets import preset
from ..sae_config import SAEConfig


@dataclass(frozen=True)
class Flags:
    """Train one SAE on a language model's activations, save it and evaluate it."""

    sae: SAEConfig = field(default_factory=SAEConfig)
    run: RunConfig = field(default_factory=RunConfig)
    preset: str | None = None
    """Start from named settings: quickstart, paper or paper-as-run. Other flags win over it."""
    config: Path | None = None
    """Start from the settings of a run: its folder or config.json. Other flags win over it."""


def run(flags: Flags) -> None:
    from ..comparison import read_metrics, table
    from ..training import train

    folders = train(flags.run, {"sae": flags.sae})
    if flags.run.eval_tokens:
        print(table({str(folder): read_metrics(folder) for folder in folders.values()}))
    for folder in folders.values():
        print(f"saved in {folder}; load it with load_dictionary({str(folder)!r})")


def starting_point(args: list[str]) -> Flags:
    """The defaults of --preset or --config, as far as --architecture and --posterior use them."""
    pattern = r"(?:^|\n)--(preset|config|architecture|posterior)(?:=|\n)([^\n]+)"
    given = dict(re.findall(pattern, "\n".join(args)))
    if "preset" in given and "config" in given:
        raise UserError("--preset and --config: give one of them; other flags win over either")
    start = TrainConfig()
    if "preset" in given:
        start = preset(given["preset"])
    elif "config" in given:
        start = load_config(given["config"])
    sae = start.sae.changed_to(given.get("architecture"), given.get("posterior"))
    return Flags(sae, start.run)
