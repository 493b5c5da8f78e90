"""`vsae report`: a page that shows what SAEs learned."""

from dataclasses import dataclass, field
from typing import Literal

import tyro

from ..config.options import Split
from .flags import Command, Folder, Folders, InputFlags


@dataclass(frozen=True)
class ReportFlags:
    """Write an HTML page that shows what an SAE learned."""

    folder: tyro.conf.Positional[Folder]
    """A run folder."""
    against: Folders = ()
    """Other run folders to compare it with, trained on the same language model and hook point."""
    out: str | None = None
    """The page to write. Its data and figures go to a folder beside it. Default:
    FOLDER/report.html."""
    tokens: int = 100_000
    """Tokens to collect the features' contexts from."""
    split: Split = "heldout"
    """Which part of the text to read: heldout or train."""
    synthesise: int = 12
    """Number of features of each SAE for which tokens are synthesised by gradient ascent, the
    most readable first. 0 is off. This takes most of the time on a large model."""
    map_tokens: int = 20_000
    """Tokens whose activations make the map. Paper: 20,000."""
    map_features: int = 2048
    """Maximum number of features on the map. t-SNE's time grows with it."""
    map_space: Literal["profiles", "directions"] = "profiles"
    """What places a feature on the map. profiles: its activations over the tokens (paper).
    directions: its decoder direction."""
    pages: int = 2048
    """Maximum number of feature pages for each SAE. The other features are only in the CSV
    file."""
    figures: bool = True
    """Also write the figures as PNG and SVG files."""
    logits: bool = True
    """Show which tokens each feature promotes and suppresses."""
    seed: int = 0
    """Seeds all random numbers."""
    inputs: InputFlags = field(default_factory=InputFlags)


def run(flags: ReportFlags) -> None:
    from ..report import write_report
    from ..report.analysis import ReportOptions

    given = vars(flags)
    options = ReportOptions(**{name: given[name] for name in vars(ReportOptions())})
    path = write_report(
        flags.folder,
        flags.against,
        flags.out,
        options=options,
        figures=flags.figures,
        on_step=lambda step: print(f"  {step} …", flush=True),
        **vars(flags.inputs),
    )
    print(f"wrote {path}; open it in a browser")


COMMAND = Command("report", ReportFlags, run)
