"""`vsae report`: write a page that shows what SAEs learned."""

from dataclasses import dataclass, field
from pathlib import Path

from ..config.run import ReportOptions
from ..errors import ConfigError
from ..run_folder.files import CONFIG
from .flags import FOLDER, FOLDERS, Command, positional
from .measure import MeasuredFlags


@dataclass(frozen=True)
class ReportFlags:
    """Write an HTML page that shows what an SAE learned."""

    folder: str = field(metadata=positional(FOLDER))
    """A run folder, or another library's SAE (see docs/any_sae.md). A folder that holds run folders gets an
    index page instead: their metrics, links to their reports, and how well the seeds of a setting agree."""
    against: tuple[str, ...] = field(default=(), metadata={"metavar": FOLDERS})
    """Other SAEs to compare it with, trained on the same language model and hook point."""
    seeds: tuple[str, ...] = field(default=(), metadata={"metavar": FOLDERS})
    """Run folders of other seeds of the same SAE. The page then shows which of its features come
    back, by their directions and by their activations on the page's tokens."""
    out: str | None = None
    """The page to write, x.html, or a folder for it. Its data go to a folder beside it. Default:
    FOLDER/report.html (results/NAME/report.html for another library's SAE), or FOLDER/index.html."""
    report: ReportOptions = field(default_factory=ReportOptions)
    inputs: MeasuredFlags = field(default_factory=MeasuredFlags)


def run(flags: ReportFlags) -> None:
    from ..report.page import write_report
    from ..report.runs_page import write_index
    from ..run_folder.reading import runs_in

    def print_step(step: str) -> None:
        print(f"  {step} …", flush=True)

    folder = Path(flags.folder)
    if (folder / CONFIG).is_file() or not runs_in(folder):
        path = write_report(
            flags.folder,
            flags.against,
            flags.out,
            seeds=flags.seeds,
            options=flags.report,
            on_step=print_step,
            **flags.inputs.given,
        )
    elif flags == ReportFlags(flags.folder, out=flags.out):
        path = write_index(flags.folder, flags.out)
    else:
        raise ConfigError(
            f"{flags.folder}: holds run folders and gets an index page, which reads no text; leave out "
            "all flags but --out, or give one of the run folders"
        )
    print(f"wrote {path}; open it in a browser")


REPORT = Command(
    "report",
    ReportFlags,
    run,
    examples=(
        "vsae report runs/a --seeds runs/b --against runs/top_k",
        "vsae report runs",
    ),
)
