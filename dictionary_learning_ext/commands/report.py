"""`vsae report`: write a page that shows what SAEs learned."""

from dataclasses import dataclass, field
from pathlib import Path

from ..config.names import is_of_seeds
from ..config.run import ReportOptions
from ..errors import ConfigError
from ..run_folder.comparing import grouped_by_setting
from ..run_folder.reading import runs_in
from ..run_folder.sae_folder import find_sae, saes_in
from .flags import FOLDERS, Command, positional
from .measure import MeasuredFlags


@dataclass(frozen=True)
class ReportFlags:
    """Write an HTML page that shows what an SAE learned."""

    folders: tuple[str, ...] = field(metadata=positional(FOLDERS))
    """A run folder, or another library's SAE (see docs/any_sae.md). Several, or a folder of `vsae train --seeds`: the
    first SAE of each setting, side by side, with their other seeds. Another folder that holds run folders gets an index page: their
    metrics, links to their reports, and how well the seeds of a setting agree."""
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
    def print_step(step: str) -> None:
        print(f"  {step} …", flush=True)

    folder = flags.folders[0]
    if len(flags.folders) == 1 and gets_an_index(Path(folder)):
        if flags != ReportFlags(flags.folders, out=flags.out):
            raise ConfigError(
                f"{folder}: holds run folders and gets an index page, which reads no text; leave out "
                "all flags but --out, or give one of the run folders"
            )
        from ..report.runs_page import write_index

        path = write_index(folder, flags.out)
    else:
        saes, out = {sae.name: sae for sae in saes_in(flags.folders)}, flags.out
        if folder not in saes and out is None:
            out = folder  # the page is about those in it
        groups = [[saes[n] for n in group] for group in grouped_by_setting(saes)]
        first, *others = (group[0] for group in groups)
        against, seeds = map(find_sae, flags.against), map(find_sae, flags.seeds)
        others = [*others, *against]
        seeds = [*(seed for group in groups for seed in group[1:]), *seeds]
        from ..report.page import write_report  # torch takes seconds

        path = write_report(
            first,
            others,
            out,
            seeds=seeds,
            options=flags.report,
            on_step=print_step,
            **flags.inputs.given,
        )
    print(f"wrote {path}; open it in a browser")


def gets_an_index(folder: Path) -> bool:
    """Whether a folder holds run folders, not those of --seeds alone, which are few enough for one report."""
    inside = runs_in(folder)
    return bool(inside) and not all(is_of_seeds(run.name) for run in inside)


REPORT = Command(
    "report",
    ReportFlags,
    run,
    examples=(
        "vsae report runs/a --seeds runs/b --against runs/top_k",
        "vsae report runs/both",
    ),
)
