"""RESULTS.md, from the committed raw results alone.

    python experiments/write_results.py

Every number in it is read from results/*.json or computed from them here.
"""

import json
import statistics
from pathlib import Path
from typing import Any

import baselines
import better_vsae
import full_size
import paper_claims
import selection_churn
from pages import RESULTS, about_line, spread, table
from paper_raw import AS_STATED, RATIOS, Raw

PAGE = Path(__file__).parent / "RESULTS.md"


def read(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def opening() -> list[str]:
    return [
        "# Results",
        "",
        "What we asked of variational SAEs, what was run, what came out, what it means, and what stays "
        "open. This page is written by `python experiments/write_results.py` from the raw results in "
        "`experiments/results/*.json`, and a test writes it again; each section names the script that "
        "made its raw results. Terms are those of the README. All comparisons are matched: one buffer, "
        "the same batches in the same order, the same initial weights for a seed, one optimiser and "
        "schedule, AuxK for all. ± is the standard deviation over seeds.",
        "",
    ]


def short() -> list[str]:
    """The answers, with the numbers they rest on."""
    raw = Raw(read("reproduce_paper"))
    equations, code = AS_STATED[1:]

    def lost(model: str, ratio: int) -> str:
        return f"{-statistics.mean(raw.differences('fve', model, 4, ratio)):.3f}"

    lines = [
        "## In short",
        "",
        f"- The vSAE of the paper's equations loses {lost(equations, 8)} of FVE at k/F = 1/8 and "
        f"{lost(equations, 32)} at 1/32, that of its code, which never samples, {lost(code, 8)} and "
        f"{lost(code, 32)}. The paper's small losses are those of the code, and so are its dead "
        f"features on this model ({near_dead(raw, code)} near-dead < 0.1 at 1/32; TopK "
        f"{near_dead(raw, 'TopK')}, equations {near_dead(raw, equations)}).",
        f"- On SmolLM2 at k = 64, too, the equations fail (FVE {at_full_size('both', 'fve')}, near-dead "
        f"{at_full_size('both', 'near_dead_0.1')}; TopK {at_full_size('TopK', 'fve')}, "
        f"{at_full_size('TopK', 'near_dead_0.1')}); noise on the selection, annealed, keeps "
        f"{at_full_size('selection', 'fve')}, and its seeds agree more "
        f"({at_full_size('selection', 'agreement')}; TopK {at_full_size('TopK', 'agreement')}).",
        "- Noise that stays hurts by churning the selection in training (section 3).",
    ]
    for size, (sampled, found) in confirmed().items():
        lines.append(f"- {size}, sampled vSAE ({sampled}): {better_vsae.conclusion(found)}")
    return [*lines, ""]


def near_dead(raw: Raw, model: str) -> str:
    """Share of features selected in fewer than 0.1 k/F of the tokens, at F = 4D, k/F = 1/32."""
    return f"{statistics.mean(raw.of('near_dead_0.1', model, 4, 32)):.3f}"


def at_full_size(model: str, figure: str) -> str:
    """On SmolLM2 at k = 64, of the model whose name begins so."""
    rows = read("full_size")["rows"]
    own = [row[figure] for row in rows if row["model"].startswith(model) and row["k"] == 64]
    return f"{statistics.mean(own):.3f}"


def confirmed() -> dict[str, tuple[str, dict[str, Any]]]:
    """Of each size that was confirmed: the pick, and what the tests say."""
    rows = read("better_vsae")["rows"]
    searched = [row for row in rows if row["stage"] == "search"]
    found = {}
    for size in better_vsae.SIZES:
        own = [row for row in better_vsae.merged(rows) if row["size"] == size]
        if own:
            found[size] = (better_vsae.pick(searched, size), better_vsae.verdicts(own))
    return found


def runs() -> list[str]:
    """What was run, when, from which commit, in how many minutes."""
    rows = {
        "The paper, claim by claim": [
            "`reproduce_paper.py train`, `bench`",
            *_when("reproduce_paper"),
        ],
        "The same on SmolLM2-135M, D = 576": ["`full_size.py`", *_when("full_size")],
        "The related work's SAEs": ["`baselines.py`", *_when("baselines")],
        "Why noise hurts": ["`selection_churn.py`", read("selection_churn")["settings"]["date"]],
    }
    for stage, settings in read("better_vsae")["stages"].items():
        rows[f"A vSAE worth using: {stage}"] = [f"`better_vsae.py {stage}`", about_line(settings)]
    return [
        "## What was run",
        "",
        *table("question", rows, ["command", "when"]),
        "",
        "On two cores of an AMD EPYC (Zen 4), mostly two single-threaded runs side by side, so minutes are "
        "those of a shared machine; those of section 5 are added up from the logs of its parts. Commits "
        "are those at writing.",
        "",
    ]


def _when(name: str) -> list[str]:
    return [about_line(read(name)["settings"])]


def paper() -> list[str]:
    """The paper's comparison, in short; its claims in full."""
    content = read("reproduce_paper")
    raw = Raw(content)
    cells = {
        f"{model}, k/F = 1/{ratio}": [
            spread(raw.of(figure, model, 4, ratio))
            for figure in (
                "fve",
                "frac_recovered",
                "near_dead_0.1",
                "near_dead_0.5",
                "stability_rms",
            )
        ]
        for ratio in RATIOS
        for model in AS_STATED
    }
    heads = ["FVE", "CE recovered", "near-dead < 0.1", "near-dead < 0.5", "selection stability"]
    found = paper_claims.claims(raw)
    return [
        "## 1. The paper, claim by claim",
        "",
        "Asked: at equal k, does the paper's vSAE lose reconstruction and living features, and gain in "
        "SCR, TPP and dispersion? Its equations (sigma = 1, noise on both) and its public code (which "
        f"never samples: a penalty) are two models, so both were run. {content['settings']['setting']}. "
        "[All figures and tables](results/reproduce_paper.md).",
        "",
        *table("F = 4D", cells, heads),
        "",
        "| the paper says | here | verdict |",
        "|---|---|---|",
        *(f"| {claim} | {numbers} | {verdict} |" for claim, numbers, verdict in found),
        "",
        *_paper_means(raw),
    ]


def _paper_means(raw: Raw) -> list[str]:
    """What it means, with the numbers it rests on."""
    equations, code = AS_STATED[1:]

    def mean(figure: str, model: str, ratio: int = 8) -> float:
        return statistics.mean(raw.of(figure, model, 4, ratio))

    def by_ratio(model: str) -> str:
        ratios = RATIOS
        return ", ".join(f"{mean('near_dead_0.1', model, ratio):.3f}" for ratio in ratios)

    return [
        f"What it means: at k/F = 1/8 the paper's equations leave an FVE of {mean('fve', equations):.3f} "
        f"and its code {mean('fve', code):.3f}, against TopK's {mean('fve', 'TopK'):.3f}. A gap as small "
        "as the paper reports is not what its equations give. Its code's penalty leaves features "
        "near-dead at small k/F and revives them at large k/F, where TopK loses its own: at 1/32, 1/16, "
        f"1/8, 1/4 near-dead < 0.1 is {by_ratio(code)} against TopK's {by_ratio('TopK')}. The paper "
        "measured its code, and explains it by its equations.",
        "",
    ]


def size() -> list[str]:
    content = read("full_size")
    return [
        "## 2. On a real language model, at the paper's size",
        "",
        *full_size.tables(content)[2:],
        "",
    ]


def churn() -> list[str]:
    content = read("selection_churn")
    lines = selection_churn.page(content)
    return [
        "## 3. Why noise hurts",
        "",
        "Asked: does reconstruction fall because noise changes which features win? "
        f"{content['settings']['setting']}; [the table](results/selection_churn.md).",
        "",
        *(line for line in lines if line.startswith("- ")),
        "",
        "Noise on the values makes the selection as unstable as noise on the selection does and costs "
        "a fraction of it: what hurts is churn while training. One curve of FVE against stability, as "
        "others found for one kind of noise, does not hold over the three.",
        "",
    ]


def related() -> list[str]:
    content = read("baselines")
    return [
        "## 4. The related work's SAEs, in the same loop",
        "",
        *baselines.tables(content)[2:],
        "",
    ]


def better() -> list[str]:
    lines = better_vsae.tables(read("better_vsae"))
    start = next(i for i, line in enumerate(lines) if line.startswith("Embedded model"))
    deeper = ["#" + line if line.startswith("## ") else line for line in lines[start:]]
    return [
        "## 5. A variational SAE worth using?",
        "",
        "Asked: is there a sampled vSAE (noise_to_signal of 0.01 or more in training) that reconstructs "
        "as well as TopK, is no worse on what people use SAEs for, and better than both TopK and point "
        "with the same penalty on two measures? Margins, seeds, measures and the rule that picks were "
        "committed before the confirmation ran (`better_vsae.py`).",
        "",
        *deeper,
        "",
    ]


def means() -> list[str]:
    """What section 5 means."""
    rows = better_vsae.merged(read("better_vsae")["rows"])
    lines = []
    for size, (_, found) in confirmed().items():
        over = found["agreement"]["over"]
        within = {
            model: statistics.mean(
                row["within"] for row in rows if (row["size"], row["model"]) == (size, model)
            )
            for model in ("TopK", "point", "sampled")
        }
        lines.append(
            f"- {size}: agreement of seeds rises by {statistics.mean(over['TopK']):+.3f} over TopK's and "
            f"{statistics.mean(over['point']):+.3f} over point's, while the nearest directions within "
            "one dictionary lie at a cosine of "
            + ", ".join(f"{value:.3f} ({model})" for model, value in within.items())
            + "."
        )
    return [
        "What it means: noise that explores the selection and is gone by half of the run adds to what a "
        "weak penalty does, where the table says `better`: in near-dead features, TPP and agreement at "
        "k/F = 1/8; in agreement alone at 1/32, where the penalty without noise revives more features, "
        "and at F = 32D, where SCR and TPP are not shown to be no worse either. Agreement could rise "
        "because a dictionary's own directions draw "
        "together; whether they do:",
        "",
        *lines,
        "",
        "Caveats: the search was widened three times, always on its own two seeds, before the "
        "confirmation of that size was read; the second size's confirmation was begun with another "
        "pick and deleted unread. The margins stand since commit a2328f2, the candidates since c11c58f, "
        "1cd7a84 and b4b0e7c, each before its size's confirmation. Each seed's agreement is with the next seed, so its eight values are "
        "not independent. SAE Bench's sets are the books that the model was trained on, and small. One "
        "language model, one layer, one learning rate, short runs.",
        "",
    ]


def questions() -> list[str]:
    return [
        "## What stays open",
        "",
        "- Whether section 5 holds in longer runs, deeper layers and larger language models; SCR's "
        "spread over seeds is too large on this one to tell.",
        "- SmolLM2 was trained on half a million tokens, not on the millions that the question asks.",
        "- VAEase's gate inside TopK, a Laplace or a learned prior were not built.",
        "- People or a language model were not asked how readable features are; absorption needs a "
        "language model that knows first letters.",
        "- The paper's own language model and text (`reproduce_paper.py train --lm "
        "EleutherAI/pythia-70m`) were not run.",
    ]


def page() -> list[str]:
    """The lines of RESULTS.md."""
    lines = [*opening(), *short(), *runs(), *paper(), *size(), *churn(), *related()]
    lines += [*better(), *means(), *questions()]
    return [line.replace("](full_size.png)", "](results/full_size.png)") for line in lines]


def main() -> None:
    PAGE.write_text("\n".join(page()) + "\n", encoding="utf-8")
    print(f"{PAGE}: {len(page())} lines")


if __name__ == "__main__":
    main()
