"""Do the features of a variational SAE come back when it is trained again? PROTOCOL.md is what was
written down before the confirmation.

    python -m experiments.reproducibility.study train      # search, confirm, length: about 30 hours
    python -m experiments.reproducibility.study tables     # write the page's tables again

    ... search                                  # one pair of seeds of every candidate
    ... confirm --setting "embedded, blocks.0"  # settings whose name begins so; all if left out
    ... confirm --pairs 2                       # the first two pairs of seeds
    ... probes                                  # sae_probes of the settings that have run; needs [saebench]
    ... length
    ... stronger                                # the follow-up

It can be stopped at any time: a part (a setting and a pair of seeds) that has its rows in
results/reproducibility.json is not run again.
"""

import argparse

import torch as t

from experiments.reproducibility import decisions, page, parts, stronger_noise
from experiments.reproducibility.settings import CANDIDATES, CONFIRM, LENGTH, SEARCH, arms
from experiments.stages import Page, Stages

NOT_CHOSEN = (
    "no setting is chosen: expected the rows of all candidates in results/reproducibility.json, and one "
    "that keeps TopK's FVE and near-dead; type: python -m experiments.reproducibility.study search"
)
NO_RIVAL = (
    "no best rival is known: expected the rows of all rivals in results/reproducibility.json; type: "
    "python -m experiments.reproducibility.study search"
)


def search(arguments: argparse.Namespace) -> None:
    t.set_num_threads(arguments.threads)
    parts.run_part("search", "search", SEARCH, CANDIDATES, decisions.SEARCH_SEEDS)


def chosen() -> tuple[str, str | None]:
    """The one setting that is confirmed, and the best rival if all have been searched."""
    content = parts.read()
    if (found := decisions.chosen(content)) is None:
        raise SystemExit(NOT_CHOSEN)
    return found, decisions.best_rival(content)


def settings_named(arguments: argparse.Namespace) -> list[str]:
    """The settings of the confirmation that `--setting` asks for."""
    names = [name for name in CONFIRM if name.startswith(arguments.setting)]
    if not names:
        known = "\n  ".join(CONFIRM)
        raise SystemExit(
            f"--setting {arguments.setting!r}: expected the start of one of\n  {known}"
        )
    return names


def confirm(arguments: argparse.Namespace) -> None:
    t.set_num_threads(arguments.threads)
    both, rival = chosen()
    for name in settings_named(arguments):
        for seeds in decisions.CONFIRM_PAIRS[: arguments.pairs]:
            parts.run_part("confirm", name, CONFIRM[name], arms(both, rival, CONFIRM[name]), seeds)


def probes(arguments: argparse.Namespace) -> None:
    t.set_num_threads(arguments.threads)
    for name in settings_named(arguments):
        parts.probe_setting(name)


def length(arguments: argparse.Namespace) -> None:
    t.set_num_threads(arguments.threads)
    both, rival = chosen()
    for seeds in decisions.LENGTH_PAIRS[: arguments.pairs]:
        parts.run_part("length", "length", LENGTH, arms(both, rival, LENGTH), seeds)


def stronger(arguments: argparse.Namespace) -> None:
    """The follow-up. It ends after its search if no candidate has the rival's FVE, or if the choice has
    been confirmed already."""
    t.set_num_threads(arguments.threads)
    both, rival = chosen()
    if rival is None:
        raise SystemExit(NO_RIVAL)
    stronger_noise.search(rival)
    if (found := stronger_noise.chosen(parts.read())) is not None:
        stronger_noise.confirm(found, both, arguments.pairs)


def train(arguments: argparse.Namespace) -> None:
    for stage in (search, confirm, length):
        stage(arguments)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--setting", default="", help="the start of a setting's name")
    parser.add_argument(
        "--pairs", type=int, choices=range(1, 8), default=7, help="how many pairs of seeds"
    )
    parser.add_argument("--threads", type=int, default=1, help="of torch")


STAGES = Stages(
    "reproducibility.study",
    {
        "train": train,
        "search": search,
        "confirm": confirm,
        "probes": probes,
        "length": length,
        "stronger": stronger,
    },
    {"reproducibility": Page(page.tables, page.draw)},
    options,
)

if __name__ == "__main__":
    STAGES.run()
