"""`vsae report`: a page that shows what SAEs learned."""

from dataclasses import dataclass, field

import tyro

from ..config.report_options import ReportOptions
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
    figures: bool = True
    """Also write the figures as PNG and SVG files."""
    report: ReportOptions = field(default_factory=ReportOptions)
    inputs: InputFlags = field(default_factory=InputFlags)


def run(flags: ReportFlags) -> None:
    from ..report import write_report

    path = write_report(
        flags.folder,
        flags.against,
        flags.out,
        options=flags.report,
        figures=flags.figures,
        on_step=lambda step: print(f"  {step} …", flush=True),
        **vars(flags.inputs),
    )
    print(f"wrote {path}; open it in a browser")


COMMAND = Command("report", ReportFlags, run)
