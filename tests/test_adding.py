"""One place per concept: an architecture, an option, a metric, a total and a kind of hook point are added
to a copy of the package, in as few files as it should take, and every command shows them."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import dictionary_learning_ext
from dictionary_learning_ext.config.architectures import ARCHITECTURES

pytestmark = pytest.mark.slow
PACKAGE = Path(dictionary_learning_ext.__file__).parent
TRAINER = Path(__file__).parent / "helpers" / "imaginary.py"

SETTINGS = '''@dataclass(frozen=True, kw_only=True)
class ImaginaryConfig(SAEConfig):
    """An SAE that is not there."""

    architecture: Literal["imaginary"] = field(default="imaginary", metadata=_ARCHITECTURE)
    shrink: Annotated[float, Range("above 0, and at most 1", lambda x: 0 < x <= 1)] = 1.0
    """What its activations are multiplied by."""


'''
ROW = """    Architecture(
        name="imaginary",
        title="Imaginary",
        description="an SAE that is not there",
        trainer=f"{_OURS}.imaginary:ImaginaryTrainer",
        dictionary=f"{_OURS}.imaginary:ImaginarySAE",
    ),
"""
OPTION = '''    tax: float = 0.0
    """A constant that is added to the loss."""
'''
METRIC = """    Metric(
        "twice_l0",
        "two times the features that are not zero, per token",
        "twice L0",
        lambda totals: 2 * (totals.mean("l0") or 0.0),
        better="lower",
        shown_in=("compare", "report", "sweep"),
    ),
"""
TOTAL = """    largest: float = 0.0
    \"\"\"The largest |x_i|.\"\"\"
"""
GATHERED = "        self.totals.largest = max(self.totals.largest, float(x_ND.abs().max()))\n"
METRIC_OF_TOTAL = """    Metric("largest", "the largest |x_i|", "largest", lambda totals: totals.largest),
"""


NUMBER = """    Column("twice", "two times its count", lambda one: 2 * one.codes.count_F, form="", title="twice"),
"""


def insert(path: Path, before: str, text: str) -> None:
    content = path.read_text(encoding="utf-8")
    assert content.count(before) >= 1, (path, before)
    path.write_text(content.replace(before, text + before, 1), encoding="utf-8")


def add_an_architecture(package: Path) -> None:
    shutil.copy(TRAINER, package / "trainers" / "imaginary.py")
    settings, table = package / "config" / "sae.py", package / "config" / "architectures.py"
    insert(settings, "CONFIGS: dict", SETTINGS)
    insert(settings, "        MatryoshkaConfig,\n", "        ImaginaryConfig,\n")
    first = next(iter(ARCHITECTURES))
    insert(table, f'    Architecture(\n        name="{first}"', ROW)


def add_an_option(package: Path) -> None:
    settings = package / "config" / "sae.py"
    insert(settings, "    noise_anneal: NoiseShare | None = None\n", OPTION)
    insert(settings, "    noise_anneal_steps: int | None\n", "    tax: float\n")
    for step in ("step.py", "kernels/step.py"):
        insert(
            package / "trainers" / step,
            "l2_loss + objective.kl_weight",
            "objective.settings.tax + ",
        )


def add_a_metric(package: Path) -> None:
    insert(package / "evaluation" / "metrics.py", '    Metric(\n        "l0",', METRIC)


def add_a_total(package: Path) -> None:
    """With a metric that shows it."""
    metrics, encoding = package / "evaluation" / "metrics.py", package / "codes" / "encoding.py"
    insert(encoding, "    losses: LanguageModelLosses | None = None\n", TOTAL)
    insert(metrics, '    Metric(\n        "l0",', METRIC_OF_TOTAL)
    insert(encoding, "        code_NF = _stacked(parts", GATHERED)


def add_a_number(package: Path) -> None:
    insert(package / "features" / "columns.py", '    Column(\n        "rank",', NUMBER)


def add_a_hook_point(package: Path) -> None:
    row = '    "hook_mlp_in": HookKind("in", "mlp"),\n'
    insert(package / "activations" / "hook_points.py", '    "hook_mlp_out": HookKind(', row)


ADDITIONS = {
    "architecture": (add_an_architecture, 4),
    "option": (add_an_option, 3),
    "metric": (add_a_metric, 1),
    "total": (add_a_total, 2),
    "number of every feature": (add_a_number, 1),
    "hook point": (add_a_hook_point, 1),
}
"""How each is added, and in how many files at most."""


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A copy with all of them added. The embedded model and text are linked."""
    target = tmp_path_factory.mktemp("added") / "dictionary_learning_ext"
    ignored = shutil.ignore_patterns("embedded", "*.pyc")  # numba's compiled kernels are copied
    shutil.copytree(PACKAGE, target, ignore=ignored)
    (target / "embedded").symlink_to(PACKAGE / "embedded")
    before = contents(target)
    for add, most in ADDITIONS.values():
        add(target)
        after = contents(target)
        touched = [path for path in after if after[path] != before.get(path)]
        assert 0 < len(touched) <= most, touched
        before = after
    return target


def contents(package: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in package.rglob("*.py")}


@pytest.fixture(scope="module")
def vsae(package, tmp_path_factory):
    """Runs commands of the copy in one process: exit status and output of each."""
    folder = tmp_path_factory.mktemp("runs")

    def run(*commands: list[str]) -> list[tuple[int, str]]:
        code = (
            "import io, json, sys\n"
            "from contextlib import redirect_stderr, redirect_stdout\n"
            "import dictionary_learning_ext as ext\n"
            f"assert ext.__file__.startswith({str(package.parent)!r}), ext.__file__\n"
            "from dictionary_learning_ext.cli import main\n"
            "results = []\n"
            "for words in json.loads(sys.argv[1]):\n"
            "    text = io.StringIO()\n"
            "    with redirect_stdout(text), redirect_stderr(text):\n"
            "        try:\n"
            "            status = main(words)\n"
            "        except SystemExit as stop:\n"
            "            status = stop.code or 0\n"
            "    results.append((status, text.getvalue()))\n"
            "print(json.dumps(results))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, json.dumps(commands)],
            env=os.environ | {"PYTHONPATH": str(package.parent), "COLUMNS": "200"},
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return [(status, text) for status, text in json.loads(done.stdout)]

    return run, folder


def settings_row(name: str, *values: str) -> str:
    """A row of the report's table of settings."""
    return f'<th scope="row">{name}</th>' + "".join(f"<td>{value}</td>" for value in values)


def test_what_is_added_appears_everywhere(vsae, tiny_lm_dir, text):
    run, folder = vsae
    shared = f"--model={tiny_lm_dir} --data={text} --steps=30 --batch-size=32 --n-ctxs=8"
    shared += " --ctx-len=32 --dict-size=32 --eval-tokens=200 --eval-documents=4 --log-steps=10"
    train = ["train", *shared.split()]
    imaginary = [*train, "--architecture=imaginary"]
    (
        (_, shown_help),
        *trained,
        (refused_status, refused),
        (eval_status, evaluated),
        (_, compared),
        (_, sweep),
        (report_status, reported),
        (one_status, one),
        (several_status, several),
        (export_status, exported),
        (_, bad_value),
        (_, hooks),
        (hook_status, at_hook),
        (_, exported_at_hook),
    ) = run(
        ["train", "--help-all"],
        [*imaginary, "--shrink=0.5", "--save-dir=sweep/new"],
        [*train, "--k=4", "--tax=0", "--save-dir=sweep/free"],
        [*train, "--k=4", "--tax=100", "--save-dir=sweep/taxed"],
        [*imaginary, "--k=4", "--save-dir=refused"],
        ["eval", "sweep/new", "--tokens=200"],
        ["compare", "sweep/new", "sweep/taxed"],
        ["sweep", "--results=sweep"],
        [
            "report",
            "sweep/taxed",
            "--against",
            "sweep/new",
            "--tokens=300",
        ],
        ["reproduce", "sweep/free"],
        ["reproduce", "sweep/free", "sweep/taxed", "--csv=both.csv"],
        ["export", "sweep/new", "--format=sae-lens"],
        [*imaginary, "--shrink=2", "--save-dir=refused"],
        ["hooks", f"--model={tiny_lm_dir}"],
        [*train, "--k=4", "--hook=blocks.1.hook_mlp_in", "--save-dir=inside"],
        ["export", "inside", "--format=sae-bench"],
    )
    assert [status for status, _ in trained] == [0, 0, 0], trained
    assert (eval_status, report_status) == (0, 0), (evaluated, reported)
    # the architecture
    words = " ".join(shown_help.split())
    assert "imaginary: an SAE" in words
    config = json.loads((folder / "sweep" / "new" / "config.json").read_text())
    assert (config["trainer"]["dict_class"], config["trainer"]["shrink"]) == ("ImaginarySAE", 0.5)
    assert refused_status == 2
    assert "architecture imaginary does" in refused
    assert "shrink=2.0: " in bad_value
    page = (folder / "sweep" / "taxed" / "report.html").read_text()
    assert settings_row("architecture", "vsae_top_k", "imaginary") in page
    assert settings_row("shrink", "-", "0.5") in page
    assert export_status == 2
    assert "ImaginarySAE" in exported
    # the hook point
    assert re.findall(r"(blocks\.2\.hook_mlp\w*)", hooks) == [
        "blocks.2.hook_mlp_in",
        "blocks.2.hook_mlp_out",
    ]
    assert hook_status == 0, at_hook
    config = json.loads((folder / "inside" / "config.json").read_text())
    assert config["trainer"]["submodule_name"] == "blocks.1.hook_mlp_in"
    assert "blocks.1.hook_mlp_in; SAE Bench" in exported_at_hook
    # the option
    assert "--tax X" in words
    assert "(default: 0.0)" in words
    assert settings_row("tax", "100", "-") in page
    losses = {
        name: json.loads((folder / "sweep" / name / "metrics.jsonl").read_text().splitlines()[0])
        for name in ("free", "taxed")
    }
    assert losses["taxed"]["loss"] == pytest.approx(losses["free"]["loss"] + 100)
    # the number of every feature
    assert (one_status, several_status) == (0, 0), (one, several)
    for file in (
        "sweep/taxed/report_files/features_taxed.csv",
        "sweep/free/return_scores.csv",
        "both.csv",
    ):
        with (folder / file).open(newline="") as opened:
            first = next(csv.DictReader(opened))
        assert float(first["twice"]) % 2 == 0, file
    # the metric
    metrics = json.loads((folder / "sweep" / "new" / "metrics.json").read_text())
    assert metrics["twice_l0"] == 2 * metrics["l0"] > 0
    assert metrics["largest"] > 0
    results = folder / "sweep" / "results.html"
    for shown in (evaluated, compared, sweep, page, results.read_text()):
        assert "twice L0" in shown
    assert "twice_l0" in (folder / "sweep" / "results.csv").read_text().splitlines()[0]
