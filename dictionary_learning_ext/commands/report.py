"""`vsae report`: what SAEs learned, on one page."""

from dataclasses import dataclass
from typing import Literal

import tyro

from ..config.options import Split


@dataclass(frozen=True)
class Flags:
    """Write a page on what an SAE learned: its features, their map, and other SAEs beside it."""

    folder: tyro.conf.Positional[str]
    """The run folder."""
    against: tuple[str, ...] = ()
    """Run folders to compare it with, trained on the same language model and hook point."""
    out: str | None = None
    """The page to write; report.html in the run folder unless told. Numbers and figures go to a
    folder beside it."""
    tokens: int = 100_000
    """Tokens to look for features in."""
    split: Split = "heldout"
    """Which part of the text: heldout or train."""
    synthesise: int = 12
    """Features of each SAE for which tokens are made up by gradient ascent, those that are easiest
    to read first; 0 is none. They take most of the time on a large model."""
    map_tokens: int = 20_000
    """Tokens whose activations the map is made of. Paper: 20,000."""
    map_features: int = 2048
    """Features on the map at most; t-SNE's time grows with them."""
    map_space: Literal["profiles", "directions"] = "profiles"
    """What the map is made of: the features' activations over the tokens (paper) or their decoder
    directions."""
    pages: int = 2048
    """Features of each SAE that get a page at most; the others are in the CSV file alone."""
    figures: bool = True
    """Write the figures as PNG and SVG too."""
    logits: bool = True
    """Say which tokens each feature promotes and suppresses."""
    seed: int = 0
    """Of everything that is drawn."""
    model: str | None = None
    """The language model, if config.json does not say it."""
    hook: str | None = None
    """The hook point, if config.json does not say it."""
    data: str | None = None
    """Another text to look in."""
    device: str = "cpu"
    """cpu, cuda or cuda:N."""


def run(flags: Flags) -> None:
    from ..report import write_report
    from ..report.analysis import ReportOptions

    given = vars(flags)
    options = ReportOptions(**{name: given[name] for name in vars(ReportOptions())})
    where = {name: given[name] for name in ("model", "hook", "data", "device")}
    path = write_report(
        flags.folder,
        flags.against,
        flags.out,
        options=options,
        figures=flags.figures,
        on_step=lambda step: print(f"  {step} …", flush=True),
        **where,
    )
    print(f"the report is in {path}: open it in a browser")
