"""The forms in which flags can be typed, the flags that commands share, and their help."""

import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

import pytest
from command_runs import settings_of

from dictionary_learning_ext.cli import COMMANDS, main
from dictionary_learning_ext.commands import bench, export, report, sweep, train
from dictionary_learning_ext.commands import export as push
from dictionary_learning_ext.commands import measure as compare
from dictionary_learning_ext.commands import measure as evaluate
from dictionary_learning_ext.commands.flags import (
    HIDDEN,
    Command,
    flags_of,
    parse,
    positional,
    vsae,
)
from dictionary_learning_ext.commands.measure import InputFlags
from dictionary_learning_ext.errors import UserError


def test_the_forms_a_sweep_agent_types_all_work(small, tmp_path):
    agent = ["--dict_size=64", "--rectify=True", "--lr=None", "--noise_on=values", "--k=8"]
    assert main(["train", *small, *agent]) == 0
    settings = settings_of(tmp_path / "run")
    assert {n: settings[n] for n in ("dict_size", "rectify", "lr", "noise_on", "k")} == {
        "dict_size": 64,
        "rectify": True,
        "lr": None,
        "noise_on": "values",
        "k": 8,
    }


def test_a_bare_boolean_flag_means_true(small, tmp_path):
    assert main(["train", *small]) == 0
    assert main(["train", *small, "--overwrite", "--rectify", "--seed", "3"]) == 0
    assert settings_of(tmp_path / "run")["rectify"] is True


def help_of(command, capsys, *args):
    with pytest.raises(SystemExit) as stop:
        parse(command, [*args])
    assert not stop.value.code
    return capsys.readouterr().out


@pytest.mark.parametrize("module", [bench, evaluate, export, report], ids=lambda m: m.COMMAND.name)
def test_the_shared_flags_are_one_declaration(module):
    """Under the same names on the command line, and nested in the command's own."""
    needed = ["run", "--format=safetensors"] if module is export else ["run"]
    given = ["--model=lm", "--hook=blocks.1.hook_resid_post", "--data=text.txt", "--device=cuda:1"]
    flags = parse(module.COMMAND, [*needed, *given])
    assert isinstance(flags.inputs, InputFlags)
    own = {"activations": None} if module in (evaluate, report) else {}
    assert (
        vars(flags.inputs)
        == {
            "model": "lm",
            "hook": "blocks.1.hook_resid_post",
            "data": "text.txt",
            "max_norm_multiple": None,
            "remove_bos": None,
            "device": "cuda:1",
        }
        | own
    )
    assert (
        vars(parse(module.COMMAND, needed).inputs)
        == {
            "model": None,
            "hook": None,
            "data": None,
            "max_norm_multiple": None,
            "remove_bos": None,
            "device": "cpu",
        }
        | own
    )


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_the_help_explains_every_flag_and_device_alike(command, capsys, monkeypatch):
    for width in (60, 100, 200):
        monkeypatch.setenv("COLUMNS", str(width))
        text = help_of(command, capsys, "--help-all")
        assert max(map(len, text.splitlines())) <= min(width, 100)
    assert text.isascii(), "any terminal shows it"
    assert "None" not in text
    explained = re.findall(r"^  --([a-z0-9-]+)(?: \S+)*?(?:\s{2,}|\n\s{26})[A-Za-z]", text, re.M)
    start = parse(command, []) if command is train.COMMAND else None
    flags = vars(start.sae).keys() - {*start.sae.unused()} if start else flags_of(command)
    assert {name.replace("-", "_") for name in explained} >= set(flags)
    if "device" in explained:
        assert re.search(r"--device TEXT +Where to compute: cpu, cuda or cuda:N\. \(", text)


def test_the_help_of_train_fits_two_screens_and_names_flags_that_there_are(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    text = help_of(train.COMMAND, capsys, "--help")
    assert len(text.splitlines()) < 100
    assert "--save-every" not in text
    assert "`vsae train --help-all` shows" in text
    named = {*train.COMMAND.common, *train.COMMAND.rare}
    assert named <= set(flags_of(train.COMMAND))


def test_the_help_of_train_shows_what_it_starts_from(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    shown = " ".join(help_of(train.COMMAND, capsys, "--help-all").split())
    assert re.search(r"--k N Features [^(]*\(default: 16\)", shown)  # the preset's
    assert re.search(r"--prior-std X [^(]*\(default: 1\.0\)", shown)  # the class's
    assert re.search(r"--noise-on both\|values\|selection .*?\(default: selection\)", shown)
    assert "--typed" not in shown
    relu = help_of(train.COMMAND, capsys, "--architecture=relu", "--help")
    assert "--l1-penalty X" in relu
    assert "--beta" not in relu
    assert "(default: relu)" in " ".join(relu.split())


REFUSED = [
    (evaluate, "run --tokens many", "--tokens many: expected a whole number, or none (see"),
    (evaluate, "run --tokns 5", "no such flag: --tokns (did you mean --tokens?) (see"),
    (train, "--bata 5", "no such flag: --bata (did you mean --beta or --data?) (see"),
    (train, "--bata 5 --foo --k 3", "--bata (did you mean --beta or --data?), --foo (see"),
    (train, "-- 5", "no such flag: -- (see"),
    (report, "", "expected FOLDER (see"),
    (compare, "", "expected FOLDER [FOLDER ...] (see"),
    (push, "run", "expected FOLDER OWNER/NAME (see"),
    (push, "run me/a more", "'more': expected only FOLDER OWNER/NAME (see"),
    (export, "run", "expected --format, one of sae-bench"),
    (export, "run --format=pickle", "--format pickle: expected one of sae-bench"),
    (export, "run --format=sparsfy", "did you mean 'sparsify'? (see"),
    (report, "run --out", "--out: expected a value after it (see"),
    (train, "--noise-anneal-steps no", "-steps no: expected a whole number, or none (see"),
    (train, "--noise-anneal-steps", "-steps: expected a whole number, or none after it (see"),
    (train, "--preset", "--preset: expected a value after it (see"),
    (train, "--architecture --k 3", "--architecture: expected"),
    (train, "--architecture none", "--architecture none: expected one of vsae_top_k, vsae, vaease"),
    (train, "--lr small", "--lr small: expected a finite number, or none (see"),
    (train, "--lr nan", "--lr nan: expected a finite number, or none (see"),
    (train, "--lr=", "--lr '': expected a finite number, or none (see"),
    (train, "--steps none", "--steps none: expected a whole number (see"),
    (train, "--steps 1e3", "--steps 1e3: expected a whole number (see"),
    (train, "--text-packing None", "--text-packing None: expected one of pack, truncate (see"),
    (train, "--rectify yes", "--rectify yes: expected True or False (see"),
    (
        train,
        "--architecture matryoshka --group-fractions 0.5,0.5",
        "expected numbers separated by spaces, e.g. 0.25 0.75",
    ),
    (train, "extra", "'extra': expected a flag, which starts with --, e.g. --extra"),
    (train, "--steps 12 13", "'13': expected a flag, which starts with --, e.g. --13"),
    (train, "--typed k", "no such flag: --typed ("),
    (train, "-k 32", "-k: flags start with two dashes; did you mean --k?"),
    (train, "--rectify -k 32", "-k: flags start with two dashes; did you mean --k?"),
    (compare, "a -k 32", "-k: flags start with two dashes; did you mean --k?"),
    (report, "a --against b -k 32", "-k: flags start with two dashes; did you mean --k?"),
    (sweep, "f.yaml --stepz 9", "no such flag: --stepz (did you mean --steps?) (see"),
]


@pytest.mark.parametrize(("module", "words", "message"), REFUSED, ids=[r[1] for r in REFUSED])
def test_a_mistake_is_one_line_that_says_what_to_type(module, words, message):
    with pytest.raises(UserError) as refused:
        parse(module.COMMAND, words.split())
    said = refused.value.as_typed
    assert message in said
    assert said.isprintable()
    assert said.endswith(f" (see `vsae {module.COMMAND.name} --help`)") == ("(see" in said)


@pytest.mark.parametrize("none", ["none", "None", "NONE"])
class TestNone:
    def test_it_is_taken_wherever_a_flag_may_be_none(self, none):
        """The preset that training starts from has a number for these three."""
        args = ["--noise-anneal-steps", none, f"--max_norm_multiple={none}", "--decay-start", none]
        flags = parse(train.COMMAND, args)
        found = (flags.sae.noise_anneal_steps, flags.run.max_norm_multiple, flags.sae.decay_start)
        assert found == (None, None, None)
        assert parse(evaluate.COMMAND, ["run", "--tokens", none]).tokens is None
        assert parse(sweep.COMMAND, [f"--at-once={none}"]).at_once is None

    def test_it_is_refused_by_its_flag_where_it_has_no_meaning(self, none):
        for name, expected in (("posterior", "one of fixed, learned"), ("k", "a whole number")):
            with pytest.raises(UserError, match=f"^{name}='{none}': expected {expected}"):
                parse(train.COMMAND, [f"--{name}", none])

    def test_it_is_a_value_of_its_own_where_a_flag_says_so(self, none):
        run = parse(train.COMMAND, ["--normalize", none, "--save-every", none, "--sigma", "1"]).run
        assert (run.normalize, run.save_every) == ("none", "none")
        assert parse(train.COMMAND, ["--save-steps", none]).run.save_steps == "none"
        assert parse(report.COMMAND, ["run", "--activations", none]).inputs.activations == "none"


def test_a_folder_or_a_text_may_be_called_none():
    assert parse(evaluate.COMMAND, ["none"]).folders == ("none",)
    assert parse(train.COMMAND, ["--data", "none"]).run.data == "none"


@dataclass(frozen=True, kw_only=True)
class Round:
    radius: float = 1.0
    """From the middle to the edge."""


@dataclass(frozen=True, kw_only=True)
class Square:
    side: int = 2
    """From corner to corner."""
    is_filled: bool = False
    """Paint the inside too."""


@dataclass(frozen=True)
class DrawFlags:
    """Draw a shape."""

    page: Path = field(metadata=positional("PAGE"))
    """Where to draw."""
    labels: tuple[str, ...] = field(default=(), metadata=positional("[LABEL ...]"))
    """What to write beside it."""
    shape: Round | Square = field(default_factory=Round)
    kind: Literal["round", "square"] = "round"
    """Which shape."""
    shades: tuple[float, ...] = (0.5, 1.0)
    """From light to dark."""
    frame: bool | None = None
    """Draw a frame."""
    margin: float | None = None
    """Around it."""
    typed: tuple[str, ...] = field(default=(), metadata=HIDDEN)
    words: tuple[str, ...] = field(default=(), metadata=HIDDEN)


def drawn(given):
    kind = given.get("kind", "round")
    return DrawFlags(Path("page"), shape=Square(side=4) if kind == "square" else Round())


DRAW = Command(
    "draw",
    DrawFlags,
    print,
    drawn,
    others=(Round, Square),
    unknown=lambda name, start: f"a {start.kind} shape has no {name}",
    common=("shades",),
    rare=("margin",),
)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("p", {"page": Path("p"), "shape": Round(), "labels": ()}),
        ("p a b", {"labels": ("a", "b")}),
        ("--frame p a --kind round b", {"frame": True, "page": Path("p"), "labels": ("a", "b")}),
        ("p --frame false a", {"frame": False, "labels": ("a",)}),
        ("p --frame None a", {"frame": None, "labels": ("a",)}),
        ("--kind=square --is_filled p", {"shape": Square(side=4, is_filled=True)}),
        ("--kind=square --is-filled True p", {"shape": Square(side=4, is_filled=True)}),
        ("p --kind square --side 3 --side 5", {"shape": Square(side=5)}),
        ("p --side none", {"shape": Round()}),
        ("p --radius -1e-3", {"shape": Round(radius=-0.001)}),
        ("p --margin -2 --shades 0 1e-1 .2", {"margin": -2.0, "shades": (0.0, 0.1, 0.2)}),
        ("p --kind square --side 1_000", {"typed": ("kind", "side")}),
        ("p a --frame", {"words": ("p", "a", "--frame")}),
    ],
)
def test_flags_are_the_fields_of_what_a_command_starts_from(words, expected):
    flags = parse(DRAW, words.split())
    assert {name: getattr(flags, name) for name in expected} == expected


def test_a_flag_of_another_start_is_told_from_one_that_there_is_not():
    with pytest.raises(UserError) as of_another:
        parse(DRAW, ["p", "--side", "3"])
    assert of_another.value.as_typed == "--side 3: a round shape has no side"
    assert of_another.value.name == "side"
    with pytest.raises(UserError) as unknown:
        parse(DRAW, ["p", "--sied", "3"])
    assert unknown.value.as_typed.startswith("no such flag: --sied (did you mean --side?)")
    assert unknown.value.name == "sied"


def test_help_shows_the_chosen_start_common_flags_first_and_the_rare_ones_if_asked(capsys):
    shown = help_of(DRAW, capsys, "--kind", "square", "--help")
    assert shown.splitlines() == [
        "usage: vsae draw PAGE [LABEL ...] [FLAGS]",
        "",
        "Draw a shape.",
        "",
        "  PAGE                    Where to draw. (default: page)",
        "  [LABEL ...]             What to write beside it.",
        "",
        "  --shades X [X ...]      From light to dark. (default: 0.5 1.0)",
        "",
        "  --side N                From corner to corner. (default: 4)",
        "  --is-filled             Paint the inside too.",
        "  --kind round|square     Which shape. (default: round)",
        "  --frame True|False      Draw a frame.",
        "",
        "`vsae draw --help-all` shows 1 more.",
    ]
    assert "--margin X" in help_of(DRAW, capsys, "p", "--help-all")
    assert set(flags_of(DRAW)) == {"radius", "side", "is_filled"} | {
        each.name for each in fields(DrawFlags)
    } - {"page", "labels", "shape", "typed", "words"}


def test_a_bare_boolean_stands_before_a_folder():
    assert parse(bench.COMMAND, ["--floor", "a", "b"]).folders == ("a", "b")
    assert parse(push.COMMAND, ["--public", "True", "a", "me/a"]).public
    exported = parse(export.COMMAND, ["--allow-inexact", "runs/a", "--format", "sparsify"])
    assert (exported.folder, exported.allow_inexact) == ("runs/a", True)


@pytest.mark.parametrize(
    ("on_path", "beside", "typed"),
    [
        (True, True, "vsae"),
        (False, True, ".venv/bin/vsae"),
        (True, False, "vsae"),
        (False, False, "{python} -m dictionary_learning_ext"),
    ],
)
def test_suggested_commands_work_from_where_the_user_stands(
    on_path, beside, typed, tmp_path, monkeypatch
):
    folder = tmp_path / ".venv" / "bin"
    folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.executable", str(folder / "python"))
    other = tmp_path / "other"
    for where in [folder] * beside + [other] * (on_path and not beside):
        where.mkdir(exist_ok=True)
        (where / "vsae").write_text("")
        (where / "vsae").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder if beside else other) if on_path else "")
    assert vsae() == typed.format(python=folder / "python")


def test_a_suggested_command_can_be_pasted_whatever_its_path(tmp_path, monkeypatch):
    folder = tmp_path / "my environment"
    folder.mkdir()
    monkeypatch.setattr("sys.executable", str(folder / "python"))
    monkeypatch.setenv("PATH", "")
    assert vsae() == f"'{folder / 'python'}' -m dictionary_learning_ext"
    (folder / "vsae").write_text("")
    assert vsae() == f"'{folder / 'vsae'}'"


def test_another_installations_command_is_not_suggested(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vsae").write_text("")
        (tmp_path / name / "vsae").chmod(0o755)
    monkeypatch.setattr("sys.executable", str(tmp_path / "a" / "python"))
    monkeypatch.setenv("PATH", str(tmp_path / "b"))
    assert vsae() == str(tmp_path / "a" / "vsae")
