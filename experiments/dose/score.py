"""Is the return score of one SAE better than its one signal `error_share`? On the SAEs of dose.embedded.

    python -m experiments.dose.score train      # from the run folders of dose.embedded's confirmation
    ... train --stage search                    # from those of its search
    python -m experiments.dose.score tables     # write the page's table again

The rule: if `error_share` alone is as good at three of four settings, the score becomes `error_share`.
"""

import argparse
import time
from statistics import mean
from typing import Any

from dictionary_learning_ext.evaluation.folders import open_folders
from dictionary_learning_ext.features.agreement import same_in_another
from dictionary_learning_ext.features.return_score import return_scores_of
from experiments import raw_results
from experiments.dose import embedded
from experiments.pages import table
from experiments.raw_results import RESULTS, about, about_line
from experiments.recompute import auc
from experiments.reproducibility import parts
from experiments.reproducibility.parts import arm_folder_name, seed_folder
from experiments.stages import Page, Stages

RAW = RESULTS / "dose_score.json"
COMES_BACK = 0.7


def orders_of(one: str, other: str) -> list[dict[str, float]]:
    """How well the score and `error_share` tell which features come back in what they do: the AUC of each, and the share
    that comes back, for each of the two SAEs."""
    opened = open_folders([one, other])
    codes = opened.codes(embedded.CODE_TOKENS, keep=False)
    found = []
    for name, alike_F in zip(codes, same_in_another(*codes.values()), strict=True):
        scores = return_scores_of(codes[name], opened.saes[name][0])
        same_F = alike_F >= COMES_BACK
        found.append(
            {
                "score": auc(same_F, scores.score_F),
                "error_share": auc(same_F, codes[name].rise_F),
                "share": float(same_F.mean()),
            }
        )
    return found


def train(arguments: argparse.Namespace) -> None:
    content = raw_results.read_or(RAW, {"rows": [], "about": {}})
    done = {(row["part"], row["arm"]) for row in content["rows"]}
    for row in parts.read(embedded.RAW)["pairs"]:
        stage, name, seeds = row["part"].split(": ", 2)
        if stage != arguments.stage_of or (row["part"], row["arm"]) in done:
            continue
        began = time.monotonic()
        pair = [
            str(seed_folder(stage, name, int(seed)) / arm_folder_name(row["arm"]))
            for seed in seeds.split(", ")
        ]
        for order in orders_of(*pair):
            content["rows"].append({"part": row["part"], "arm": row["arm"], **order})
        content["about"] = about(began, content["about"])
        raw_results.write(RAW, content)


def tables(content: dict[str, Any]) -> list[str]:
    rows: dict[str, list[dict[str, float]]] = {}
    for row in content["rows"]:
        rows.setdefault(f"{row['part']}: {row['arm']}", []).append(row)
    names = ("score", "error_share", "share")
    cells = {n: [f"{mean(row[m] for row in own):.3f}" for m in names] for n, own in rows.items()}
    columns = ["AUC of the score", "of error_share", "share in what they do"]
    return [*table("the mean of a pair", cells, columns), "", f"{about_line(content['about'])}."]


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--stage", dest="stage_of", choices=("search", "confirm"), default="confirm"
    )


STAGES = Stages("dose.score", {"train": train}, {"dose_score": Page(tables)}, options)

if __name__ == "__main__":
    STAGES.run()
