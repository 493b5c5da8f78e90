"""Lists the experiments: `python -m experiments`, or one of them in full: `python -m experiments NAME`."""

import ast
import sys
from pathlib import Path

from experiments.index import EXPERIMENTS, Experiment, find

ROOT = Path(__file__).parents[1]


def facts(experiment: Experiment) -> list[str]:
    """How to run it, for how long, with what, and where its results are."""
    lines = [experiment.command, f"{experiment.minutes} minutes"]
    if experiment.needs:
        lines[-1] += f"; needs {experiment.needs}"
    for kind, names in (("raw results", experiment.raw), ("page", experiment.pages)):
        for name in names:
            file = (ROOT / "experiments" / "results" / name).resolve()
            is_there = "" if file.exists() else " (not there yet)"
            lines.append(f"{kind}: {file.relative_to(ROOT)}{is_there}")
    return lines


def listing() -> list[str]:
    lines = [
        "Every experiment: its question, command, minutes on 2 cores, needs and results.",
        "Stages: train trains SAEs and measures them, bench runs SAE Bench or a benchmark, tables",
        "writes the pages' tables again from the raw results. `python -m experiments NAME` shows one in full.",
    ]
    for experiment in EXPERIMENTS:
        lines += ["", experiment.question, *(f"    {line}" for line in facts(experiment))]
    return lines


def in_full(experiment: Experiment) -> list[str]:
    """With the docstring of its file, which is read, not imported."""
    file = ROOT / (experiment.module.replace(".", "/") + ".py")
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return [experiment.question, *(f"    {line}" for line in facts(experiment)), "", docstring]


def main(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print("\n".join(listing()))
        return 0
    if len(words) > 1:
        typed = " ".join(["python -m", f"experiments.{words[0]}", *words[1:]])
        print(f"expected one name; a stage is run by its module: {typed}", file=sys.stderr)
        return 2
    try:
        print("\n".join(in_full(find(words[0]))))
    except KeyError:
        names = "\n  ".join(experiment.name for experiment in EXPERIMENTS)
        print(f"there is no experiment {words[0]}; expected one of\n  {names}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except BrokenPipeError:  # as in `python -m experiments | head`
        sys.stdout = None
