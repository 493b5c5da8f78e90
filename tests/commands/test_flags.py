"""The forms in which flags can be typed, the flags that commands share, and their help."""

import re

import pytest
from command_runs import settings_of

from dictionary_learning_ext.cli import COMMANDS, main
from dictionary_learning_ext.commands import (
    bench,
    compare,
    evaluate,
    export,
    push,
    report,
    sweep,
    train,
)
from dictionary_learning_ext.commands.flags import InputFlags, parse, vsae
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


def without_box(text):
    """A help's words, of one column."""
    return " ".join(text.replace("│", " ").split())


@pytest.mark.parametrize("module", [bench, evaluate, export, report], ids=lambda m: m.COMMAND.name)
def test_the_shared_flags_are_one_declaration(module, capsys):
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
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as stop:
        parse(command, ["--help"])
    assert not stop.value.code
    text = capsys.readouterr().out
    assert "\\" not in text
    assert "  " not in text.partition("\n\n")[0]
    shown = without_box(text)
    # After a flag's type, which may be several words in brackets, comes its help.
    type_of = r"(?:\[[^()]*?\]+|\{[^}]*\}\S*|[A-Z|\[\]{}]+)"
    assert re.findall(rf"(--[a-z-]+) (?:{type_of} )*\((?:default|required)", shown) == []
    if re.search(r"--device [A-Z]", shown):
        assert re.search(r"--device \S+ Where to compute: cpu, cuda or cuda:N\.", shown)


@pytest.mark.parametrize(
    ("module", "args", "message"),
    [
        (evaluate, ["run", "--tokens", "many"], "--tokens many: expected a whole number"),
        (evaluate, ["run", "--tokns", "5"], "no such flag: --tokns (did you mean --tokens?)"),
        (train, ["--bata", "5"], "no such flag: --bata (did you mean --beta or --data?)"),
        (report, [], "expected FOLDER"),
        (push, ["run"], "expected FOLDER OWNER/NAME"),
        (export, ["run"], "expected --format, one of sae-bench"),
        (export, ["run", "--format=pickle"], "--format pickle: expected one of sae-bench"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_help(module, args, message):
    with pytest.raises(UserError) as refused:
        parse(module.COMMAND, args)
    assert str(refused.value).startswith(message)
    assert str(refused.value).endswith(f" (see `vsae {module.COMMAND.name} --help`)")


@pytest.mark.parametrize(
    ("module", "args"),
    [
        (train, ["-k", "32"]),
        (train, ["--rectify", "-k", "32"]),
        (compare, ["a", "-k", "32"]),
        (report, ["a", "--against", "b", "-k", "32"]),
    ],
)
def test_a_flag_with_one_dash_is_no_folder(module, args):
    with pytest.raises(UserError, match=r"^-k: flags start .*; did you mean --k\?$"):
        parse(module.COMMAND, args)


def test_a_negative_number_is_a_value():
    assert parse(train.COMMAND, ["--beta", "-1e-3"]).sae.beta == -1e-3


def test_a_bare_boolean_stands_before_a_folder():
    assert parse(bench.COMMAND, ["--floor", "a", "b"]).folders == ("a", "b")
    assert parse(push.COMMAND, ["--public", "True", "a", "me/a"]).public


def test_the_help_of_train_shows_what_it_starts_from_and_no_none(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        parse(train.COMMAND, ["--help"])
    shown = without_box(capsys.readouterr().out)
    assert re.search(r"--k INT Features [^(]*\(default: 16\)", shown)  # the preset's
    assert re.search(r"--prior-std FLOAT [^(]*\(default: 1\.0\)", shown)  # the class's
    assert re.search(r"--noise-on \{both,values,selection\} .*?\(default: selection\)", shown)
    assert "{None" not in shown
    assert "default: None" not in shown
    assert "--typed" not in shown
    for width in range(60, 130):
        monkeypatch.setenv("COLUMNS", str(width))
        with pytest.raises(SystemExit):
            parse(sweep.COMMAND, ["--help"])
        lines = capsys.readouterr().out.splitlines()
        assert not re.search(r"default:[│\s]*None|\{None|default: \)", "\n".join(lines))
        assert (
            len({len(line) for line in lines if line.startswith(("│", "╭", "╰"))}) <= 1
        )  # the box is whole


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
