"""RESULTS.md, from its template and the committed raw results.

    python -m experiments.write_results

The text is in RESULTS.md.j2. Every number in it is read from results/*.json or computed from them by
paper/paper_facts.py and better_vsae/vsae_facts.py. A sentence that the numbers no longer show stops the
writing: see `pages.claim`.
"""

from pathlib import Path
from typing import Any

import jinja2

from experiments import raw_results
from experiments.better_vsae.vsae_facts import BaselineFacts, FullSizeFacts, SearchFacts
from experiments.ground_truth.truth_facts import TruthFacts
from experiments.index import find
from experiments.pages import claim, table
from experiments.paper.paper_facts import ChurnFacts, PaperFacts
from experiments.raw_results import RESULTS, about_line
from experiments.reproducibility.study_facts import StudyFacts

FOLDER = Path(__file__).parent
PAGE, TEMPLATE = FOLDER / "RESULTS.md", FOLDER / "RESULTS.md.j2"
QUESTIONS = {
    "paper.reproduce_paper": "The paper, claim by claim",
    "better_vsae.full_size": "The same on SmolLM2-135M, D = 576",
    "better_vsae.baselines": "The related work's SAEs",
    "paper.selection_churn": "Why noise hurts",
}


def read(name: str) -> dict[str, Any]:
    return raw_results.read(RESULTS / f"{name}.json")


def runs() -> str:
    """What was run, when, from which commit, in how many minutes."""
    rows = {}
    for name, question in QUESTIONS.items():
        experiment = find(name)
        settings = read(experiment.raw.removesuffix(".json"))["settings"]
        when = about_line(settings) if "minutes" in settings else settings["date"]
        rows[question] = [experiment.measured_by, when]
    search = find("better_vsae.search_and_confirm")
    for stage, settings in read("better_vsae")["stages"].items():
        command = f"`python -m {search.module} {stage}`"
        rows[f"A vSAE worth using: {stage}"] = [command, about_line(settings)]
    return "\n".join(table("question", rows, ["command", "when"]))


def one_line(text: str) -> str:
    """A paragraph, or an item of a list, that is wrapped in the template."""
    return " ".join(text.split()) + "\n"


def page() -> str:
    """RESULTS.md.

    Raises:
        ClaimError: a sentence of the template is not what the raw results show.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["one_line"] = one_line
    return environment.get_template(TEMPLATE.name).render(
        claim=claim,
        runs=runs(),
        paper=PaperFacts(read("reproduce_paper")),
        full_size=FullSizeFacts(read("full_size")),
        churn=ChurnFacts(read("selection_churn")),
        baselines=BaselineFacts(read("baselines")),
        search=SearchFacts(read("better_vsae")),
        study=StudyFacts(read("reproducibility")),
        truth=TruthFacts(read("match_to_truth")),
    )


def main() -> None:
    text = page()
    PAGE.write_text(text, encoding="utf-8")
    print(f"{PAGE}: {len(text.splitlines())} lines")


if __name__ == "__main__":
    main()
