"""The README and the guide: their commands and Python run, and what they link to is there."""

import json
import re
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from statistics import mean, stdev

import pytest
from export_folders import of_gemma_scope
from guide import PAGES, ROOT, blocks, lines, our_words, run_page
from notebooks import NOTEBOOKS, read

from dictionary_learning_ext.cli import COMMANDS, main
from dictionary_learning_ext.commands.flags import Command, parse
from dictionary_learning_ext.config.architectures import TRAINED
from experiments.reproducibility import decisions, relative_noise
from experiments.reproducibility.settings import BOTH, CONFIRM, PENALTY, RIVAL, TOP_K
from experiments.return_score import threshold
from experiments.return_score.threshold_page import auc_of_tests

NOT_HERE = () if find_spec("sae_bench") else ("bench",)
"""Subcommands whose extra isn't installed. `make test-saebench` runs their page."""
NEEDED = {"ground_truth.md": "sae_lens", "sae_lens.md": "sae_lens"}
"""What the whole of a page needs. `make test-saebench` runs it."""


def test_blocks_and_commands_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "vsae not in a block\n```bash\nvsae eval a  # vsae b\nN=1 torchrun --n 2 -m "
        "dictionary_learning_ext train \\\n  --k 3\npip install vsae\n# vsae c\n```\n"
        "```python\nx = 1\n```\n"
    )
    (_, bash), python = blocks(page)
    assert python == ("python", "x = 1\n")
    assert lines(bash) == [
        "vsae eval a",
        "N=1 torchrun --n 2 -m dictionary_learning_ext train --k 3",
        "pip install vsae",
    ]
    assert [our_words(line) for line in lines(bash)] == [["eval", "a"], ["train", "--k", "3"], None]


def legal_anywhere(command: Command) -> Command:
    """The command, which starts from no folder: that of a page isn't there."""
    start = command.starting_point
    if start is None:
        return command
    folders = {"config", "resume", "activations"}
    return replace(
        command,
        starting_point=lambda given: start({n: t for n, t in given.items() if n not in folders}),
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_are_legal(page):
    """As they are written: every flag and every value is one that the command takes."""
    found = [line for kind, block in blocks(page) if kind == "bash" for line in lines(block)]
    for name, *words in filter(None, map(our_words, found)):
        if "--help" in words:
            continue
        flags = parse(legal_anywhere(COMMANDS[name]), words)
        if name == "sweep":
            parse(legal_anywhere(COMMANDS["train"]), list(flags.passed_on))


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_runs(page, guide_folder, tiny_lm_dir, monkeypatch):
    if page.name in NEEDED:
        pytest.importorskip(
            NEEDED[page.name], reason="needs the extra: pip install -e '.[saelens]'"
        )
    monkeypatch.chdir(guide_folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(guide_folder / "caches"))
    run_page(page, tiny_lm_dir, skips=NOT_HERE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_files_that_a_page_links_to_are_there(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    assert not [link for link in links if not (page.parent / link).exists()]


def test_sections_that_pages_link_to_are_there():
    """A heading's anchor is its text in lower case, with dashes for spaces, as on a Git host."""
    checked = 0
    for page in PAGES:
        for target, anchor in re.findall(r"\]\(([\w./]*\.md)?#([\w-]+)\)", page.read_text()):
            checked += 1
            text = ((page.parent / target) if target else page).read_text(encoding="utf-8")
            headings = re.findall(r"^#+ (.*)$", text, re.M)
            anchors = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
            assert anchor in anchors, f"{page.name}: {target}#{anchor}"
    assert checked > 35


@pytest.mark.slow
def test_the_readmes_check_of_any_sae_runs_on_local_folders(
    tiny_lm_dir, text, tmp_path, monkeypatch
):
    """Two of Gemma Scope on the hub, and an SAE of one's own: folders of Gemma Scope's layout stand for them."""
    monkeypatch.chdir(tmp_path)
    block = re.search(r"```text\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.S)
    assert block is not None
    on_text = ["--model", str(tiny_lm_dir), "--data", text, "--tokens", "300"]
    local = {}
    for line in lines(block[1]):
        _, command, *words = line.split()
        for name in (word for word in words if "/" in word):
            local[name] = f"gemma-scope-2b-pt-res/layer_0/width_{len(local)}/average_l0_8"
            of_gemma_scope(tmp_path / local[name], 16, 32)
        assert main([command, *(local.get(word, word) for word in words), *on_text]) == 0
    assert len(local) == 3
    assert Path("scores.csv").is_file()


def test_every_architecture_is_in_the_guide():
    page = (ROOT / "docs/own_model_and_text.md").read_text(encoding="utf-8")
    assert not [name for name in TRAINED if f"`{name}`" not in page]


def test_the_readmes_test_commands_are_in_the_makefile():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    named = set(re.findall(r"(?:`|^)make ([\w-]+)", text, re.M))
    assert {"test", "lint"} <= named
    assert not {target for target in named if f"\n{target}:" not in makefile}


def test_the_results_are_those_of_the_results_page():
    """The guide repeats numbers of RESULTS.md; those of the README are in test_readme_numbers."""
    results = (ROOT / "experiments/RESULTS.md").read_text(encoding="utf-8")
    text = (ROOT / "docs/science.md").read_text(encoding="utf-8")
    numbers = set(re.findall(r"-?\d\.\d{3,4}", text))
    assert len(numbers) > 40
    assert not {number for number in numbers if number not in results} - {"0.0000"}


def test_what_the_return_score_makes_of_the_truth_is_that_of_the_raw_results():
    rows = json.loads((ROOT / "experiments/results/long_runs.json").read_text())["rows"]
    long = [row for row in rows if row["part"].endswith("16,000 steps")]
    large = [row for row in long if row["part"].startswith("F = 1,024")]
    small = [row for row in long if row["part"].startswith("F = 512")]

    def interval(rows, name, form):
        return " to ".join(format(of(row[name] for row in rows), form) for of in (min, max))

    text = (ROOT / "docs/reproducibility.md").read_text(encoding="utf-8")
    _, _, section = " ".join(text.split()).partition("## From one SAE alone")
    assert f"chance: AUC {interval(long, 'auc_truth', '.2f')} (" in section
    results = " ".join((ROOT / "experiments/RESULTS.md").read_text(encoding="utf-8").split())
    assert f"For return its AUC is {interval(large, 'auc_return', '.2f')} there after 16" in results
    assert f"it fails for return, too ({interval(small, 'auc_return', '.2f')})" in results


SCORED = [test.setting for test in threshold.TESTS[:3:2]] + [
    "SmolLM2-135M, blocks.1, F = 4D, k = 64"
]
"""blocks.2 and blocks.0 of the embedded model, and SmolLM2."""


@pytest.mark.parametrize("arm", ["TopK", "BatchTopK", "Matryoshka", "JumpReLU", "recommended"])
def test_the_scores_of_other_saes_are_those_of_the_raw_results(arm):
    content = json.loads((ROOT / "experiments/results/return_score_threshold.json").read_text())
    cells = ["a vSAE (penalty 0.03)" if arm == "recommended" else arm]
    for label in ("direction", "function"):
        auc = auc_of_tests(content, label, "today")
        returning = [
            [
                r["returning"][label]
                for r in content["tests"]
                if (r["setting"], r["arm"]) == (at, arm)
            ]
            for at in (SCORED[0], SCORED[2])
        ]
        cells.append(" / ".join(f"{mean(shares):.0%}" for shares in returning if shares))
        cells.append(" / ".join(f"{auc[at, arm]:.2f}" for at in SCORED if (at, arm) in auc))
    assert f"| {' | '.join(cells)} |" in (ROOT / "docs/reproducibility.md").read_text("utf-8")


def test_what_error_share_alone_does_is_that_of_the_raw_results():
    content = json.loads((ROOT / "experiments/results/return_score_threshold.json").read_text())
    auc = auc_of_tests(content, "function", "one signal")
    at_2, at_0, real = (
        {arm: f"{value:.2f}" for (at, arm), value in auc.items() if at == place} for place in SCORED
    )
    page = " ".join((ROOT / "docs/reproducibility.md").read_text("utf-8").split())
    assert f"({real['recommended']}, {real['TopK']} and {real['BatchTopK']}, in the table" in page
    weak = [f"{name} ({at_2[name]} / {at_0[name]})" for name in ("Matryoshka", "JumpReLU")]
    assert " and ".join(weak) in page
    assert f"for TopK and BatchTopK at blocks.0 ({at_0['TopK']} and {at_0['BatchTopK']})" in page


@pytest.mark.parametrize("other", [TOP_K, PENALTY, RIVAL])
def test_the_intervals_are_those_of_the_raw_results(other):
    """Of the mean over the pairs of seeds, by Student's t with six degrees of freedom."""
    content = json.loads((ROOT / "experiments/results/reproducibility.json").read_text())
    cells = []
    for setting in CONFIRM:
        rows = decisions.parts_of(content, "confirm", setting)
        if not decisions.means(rows, other, "returning_0.7"):
            cells.append("–")
            continue
        points = [100 * d for d in decisions.paired(rows, BOTH, other, "returning_0.7")]
        assert len(points) == 7
        half = 2.447 * stdev(points) / len(points) ** 0.5
        low, high = mean(points) - half, mean(points) + half
        cells.append(f"{mean(points):+.1f} ({low:.1f} to {high:.1f})")
    assert f" | {' | '.join(cells)} |" in (ROOT / "experiments/RESULTS.md").read_text("utf-8")


@pytest.mark.parametrize("setting", relative_noise.SETTINGS)
@pytest.mark.parametrize(
    ("measure", "form"),
    [
        ("returning_0.7", "{:.0%}"),
        ("same", "{:.0%}"),
        ("fve", "{:.4f}"),
        ("near_dead_0.1", "{:.0%}"),
    ],
)
def test_the_shares_and_fve_of_the_guide_are_those_of_the_raw_results(setting, measure, form):
    content = json.loads((ROOT / "experiments/results/relative_noise.json").read_text())
    rows = decisions.parts_of(content, "confirm", setting)
    cells = []
    for arm in (relative_noise.TOP_K, relative_noise.BOTH, relative_noise.PROBABILISTIC):
        values = decisions.means(rows, arm, measure)
        cells.append(form.format(mean(values)) if values else "not run")
    assert f" | {' | '.join(cells)} |" in (ROOT / "docs/science.md").read_text("utf-8")


def test_what_the_presets_rate_does_on_smollm2_is_that_of_the_raw_results():
    content = json.loads((ROOT / "experiments/results/relative_noise.json").read_text())
    rows = decisions.parts_of(content, "tuning", relative_noise.SMOLLM2[0])
    half, own, twice = (
        mean(decisions.means(rows, name, "near_dead_0.1"))
        for name in relative_noise.smollm2_candidates(content)[relative_noise.BOTH]
    )
    page = " ".join((ROOT / "docs/settings.md").read_text("utf-8").split())
    said = f"leaves {own:.0%} of the features near-dead, twice of it {twice:.0%}, and half of it {half:.1%},"
    assert said in page


def test_what_the_benchmark_says_of_a_vsae_is_that_of_the_raw_results():
    rows = json.loads((ROOT / "experiments/results/synth_16k.json").read_text())["rows"]
    own, other = (rows[f"{arm}, seed 0, 20,000,000 samples"] for arm in ("recommended", "TopK"))
    page = " ".join((ROOT / "docs/ground_truth.md").read_text("utf-8").split())
    for key in ("f1_score", "mcc", "explained_variance", "uniqueness"):
        assert f"({other[key]:.3f} and {own[key]:.3f})" in page, key


PUBLISHED = ("dictionary_learning_ext.sae_lens", "dictionary_learning_ext.sae_bench")
"""What needs an extra stays where it is."""


def test_pages_and_notebooks_import_what_is_public():
    sources = [block for page in PAGES for kind, block in blocks(page) if kind == "python"]
    for path in NOTEBOOKS:
        sources += [cell.source for cell in read(path).cells if cell.cell_type == "code"]
    modules = re.findall(r"^from (dictionary_learning_ext[\w.]*) import", "\n".join(sources), re.M)
    assert len(modules) > 15
    deep = {module for module in modules if module != "dictionary_learning_ext"}
    assert not [module for module in deep if not module.startswith(PUBLISHED)]
