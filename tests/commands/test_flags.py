"""The forms in which flags can be typed, and the help. Mistakes are in test_refusals.py."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from dictionary_learning_ext.cli import COMMANDS
from dictionary_learning_ext.commands.flags import (
    HIDDEN,
    Command,
    flags_of,
    parse,
    positional,
    vsae,
)
from dictionary_learning_ext.commands.measure import InputFlags
from dictionary_learning_ext.config.architectures import tuned_lr
from dictionary_learning_ext.errors import UserError

TRAIN = COMMANDS["train"]


def test_the_forms_a_sweep_agent_types_all_work():
    agent = ["--dict_size=64", "--rectify=True", "--lr=None", "--noise_on=values", "--k=8"]
    sae = parse(TRAIN, agent).sae
    found = (sae.dict_size, sae.rectify, sae.noise_on, sae.k)
    assert found == (64, True, "values", 8)
    assert sae.resolve(10).lr == tuned_lr(64)
    assert parse(TRAIN, ["--rectify", "--seed", "3"]).sae.rectify is True, "a bare boolean"
    for typed in (
        ["--group_fractions=[0.5, 0.25, 0.25]"],
        ["--group-fractions", "0.5", "0.25", "0.25"],
    ):
        sae: Any = parse(TRAIN, ["--architecture=matryoshka", *typed]).sae
        assert sae.group_fractions == (0.5, 0.25, 0.25)


def test_a_folders_name_stays_whole():
    assert parse(COMMANDS["eval"], ["My Drive/a,b[1]"]).folders == ("My Drive/a,b[1]",)


def test_a_home_folder_that_the_shell_leaves_is_found(monkeypatch):
    monkeypatch.setenv("HOME", "/home/jane")
    assert parse(COMMANDS["eval"], ["run", "--out=~/there"]).out == "/home/jane/there"
    assert parse(TRAIN, ["--init-from", "~/sae"]).sae.init_from == "/home/jane/sae"
    assert parse(COMMANDS["cache"], ["~/there"]).folder == "/home/jane/there"


@pytest.mark.parametrize("command", ["bench", "eval", "export", "report"])
def test_the_shared_flags_are_one_declaration(command):
    """Under the same names on the command line, and nested in the command's own."""
    needed = ["run", "--format=sae-lens"] if command == "export" else ["run"]
    shared = {
        "model": "lm",
        "hook": "blocks.1.hook_resid_post",
        "data": "a.txt",
        "device": "cuda:1",
    }
    given = [f"--{name}={value}" for name, value in shared.items()]
    inputs = parse(COMMANDS[command], [*needed, *given]).inputs
    assert isinstance(inputs, InputFlags)
    default = vars(parse(COMMANDS[command], needed).inputs)
    assert vars(inputs) == default | shared
    assert default.pop("device") == "auto"
    names = {"model", "hook", "data", "max_norm_multiple", "remove_bos"}
    assert default.keys() == names | (
        {"activations", "text_column", "device_map", "no_keep"} & flags_of(COMMANDS[command]).keys()
    )
    assert not any(default.values())


def test_the_bench_runs_what_an_audit_advises_against_only_if_it_is_named():
    assert parse(COMMANDS["bench"], ["run"]).evals == "core,sae_probes"
    assert parse(COMMANDS["bench"], ["run", "--evals", "scr,tpp"]).evals == "scr,tpp"


def help_of(command, capsys, *args):
    with pytest.raises(SystemExit) as stop:
        parse(command, [*args])
    assert not stop.value.code
    return capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_the_help_explains_every_flag_and_device_alike(command, capsys, monkeypatch):
    for width in (60, 100, 200):
        monkeypatch.setenv("COLUMNS", str(width))
        text = help_of(command, capsys, "--help-all")
        assert max(map(len, text.splitlines())) <= min(width, 100)
    assert text.isascii(), "any terminal shows it"
    assert "None" not in text
    explained = re.findall(r"^  --([a-z0-9-]+)(?: \S+)*?(?:\s{2,}|\n\s{26})[A-Za-z]", text, re.M)
    flags = flags_of(command)
    if command is TRAIN:
        flags = parse(command, []).sae.to_dict()
    assert {name.replace("-", "_") for name in explained} >= set(flags)
    if "device" in explained:
        assert re.search(r"--device TEXT +Where to compute: auto \(CUDA", text)
    examples = re.findall(
        rf"^  vsae {command.name}\b(.*)$", text.partition("\nExamples:\n")[2], re.M
    )
    assert len(examples) == 2
    for words in examples:
        parse(command, words.split())


@pytest.mark.parametrize("none", ["none", "None", "NONE"])
def test_none_is_taken_wherever_a_flag_may_be_none_and_is_a_value_where_it_says_so(none):
    """The preset that training starts from has a number for the first three."""
    args = ["--noise-anneal-steps", none, f"--max_norm_multiple={none}", "--decay-start", none]
    args += ["--normalize", none, "--save-every", none, "--save-steps", none, "--sigma", "1"]
    flags = parse(TRAIN, args)
    sae, run = flags.sae, flags.run
    assert (sae.noise_anneal_steps, run.max_norm_multiple, sae.decay_start) == (None, None, None)
    assert (run.normalize, run.save_every, run.save_steps) == ("none", "none", "none")
    assert parse(COMMANDS["eval"], ["run", "--tokens", none]).tokens is None
    assert parse(COMMANDS["sweep"], [f"--at-once={none}"]).at_once is None
    report = parse(COMMANDS["report"], ["run", "--activations", none])
    assert report.inputs.activations == "none"
    assert parse(COMMANDS["eval"], ["none"]).folders == ("none",)
    assert parse(TRAIN, ["--data", "none"]).run.data == "none"


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
    given: dict[str, Any] = field(default_factory=dict, metadata=HIDDEN)
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
    headings={"Shape": "* | margin", "Page": "shades frame"},
)


@pytest.mark.parametrize("asked", ["--help", "--help-all"])
def test_the_help_has_every_flag_under_one_heading(asked, capsys):
    shape, page = (
        help_of(DRAW, capsys, "--kind=square", asked).partition("\nShape:\n")[2].split("\nPage:\n")
    )
    own, of_page = (re.findall(r"^  --([a-z-]+)", part, re.M) for part in (shape, page))
    assert of_page == ["shades", "frame"]
    assert set(own) == {"side", "is-filled", "kind"} | (
        {"margin"} if asked == "--help-all" else set()
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
        (
            "p --kind square --side 1_000",
            {"given": {"page": Path("p"), "kind": "square", "side": 1000}},
        ),
        ("p --kind square --side 1e3", {"shape": Square(side=1000)}),
        ("p a --frame", {"words": ("p", "a", "--frame")}),
    ],
)
def test_flags_are_the_fields_of_what_a_command_starts_from(words, expected):
    flags = parse(DRAW, words.split())
    assert {name: getattr(flags, name) for name in expected} == expected


def test_a_flag_of_another_start_is_told_from_one_that_there_is_not():
    with pytest.raises(UserError) as of_another:
        parse(DRAW, ["p", "--side", "3"])
    assert str(of_another.value).startswith("--side 3: a round shape has no side (see ")
    assert of_another.value.name == "side"
    with pytest.raises(UserError) as unknown:
        parse(DRAW, ["p", "--sied", "3"])
    assert str(unknown.value).startswith("no such flag: --sied; did you mean --side?")
    assert unknown.value.name == "sied"


def test_a_bare_boolean_stands_before_a_folder():
    assert parse(COMMANDS["bench"], ["--compare", "a", "b"]).folders == ("a", "b")
    assert parse(COMMANDS["push"], ["--public", "True", "a", "me/a"]).public
    exported = parse(COMMANDS["export"], ["--allow-inexact", "runs/a", "--format", "sparsify"])
    assert (exported.folder, exported.allow_inexact) == ("runs/a", True)


@pytest.mark.parametrize(
    ("environment", "on_path", "beside", "typed"),
    [
        ("here/.venv", "same", True, "vsae"),
        ("here/.venv", None, True, ".venv/vsae"),
        ("here/.venv", "other", False, "vsae"),
        ("here/.venv", None, False, "{python} -m dictionary_learning_ext"),
        # Another installation's is not suggested, and what is can be pasted.
        ("my environment", "other", True, "'{beside}'"),
        ("my environment", None, False, "'{python}' -m dictionary_learning_ext"),
    ],
)
def test_suggested_commands_work_from_where_the_user_stands(
    environment, on_path, beside, typed, tmp_path, monkeypatch
):
    same, other = tmp_path / environment, tmp_path / "other"
    for folder in (same, other, tmp_path / "here"):
        folder.mkdir(parents=True, exist_ok=True)
    for folder in [same] * beside + [other] * (on_path == "other"):
        (folder / "vsae").touch(0o755)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("sys.executable", str(same / "python"))
    monkeypatch.setenv("PATH", {"same": str(same), "other": str(other), None: ""}[on_path])
    assert vsae() == typed.format(python=same / "python", beside=same / "vsae")
